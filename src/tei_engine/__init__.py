"""The embedded engine: a TEI-compatible server on ONNX Runtime. It knows nothing of the manager."""
