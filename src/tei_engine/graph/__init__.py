"""From safetensors files to an ONNX graph and a session that runs it. The only door to `onnx` and `onnxruntime`.

Knows architectures and tensors; nothing of texts, queues or requests.
"""
