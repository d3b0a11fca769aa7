"""The descriptor pool of our generated stubs.

Not the default pool: a program that also imports stubs compiled from TEI's own `tei.proto`
would fail there with a duplicate symbol.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
