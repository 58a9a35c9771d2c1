"""A compressed model and its plan → an ONNX file. Knows nothing of search."""
