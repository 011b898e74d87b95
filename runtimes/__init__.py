"""What runs on the device: engines, sessions, telemetry, policies, profiling; no torch, transformers or onnx."""
