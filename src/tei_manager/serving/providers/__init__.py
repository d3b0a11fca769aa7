"""One file per kind of upstream: a call in, bytes out; bytes in, vectors out. No I/O, no clock."""
