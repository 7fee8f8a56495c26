"""From trained weights to what others run: pipelines, model cards, ONNX, the hub, MLflow models."""
