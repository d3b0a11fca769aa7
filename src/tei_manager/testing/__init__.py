"""Public, documented stand-ins for the parts of the world that are slow, expensive or unreliable in a test.

`tei_manager.testing.engine` is an executable that pretends to be an inference server.
"""
