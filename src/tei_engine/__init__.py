"""The embedded engine: a TEI-compatible server on ONNX Runtime. It knows nothing of the manager."""

__version__ = "0.1.0"

TEI_VERSION = "1.9.3"
"""The release of text-embeddings-router whose protocol and command line this engine speaks."""
