"""An ONNX model as a DAG of layers."""
