"""TensorRT engines from a bundle's graphs: made where they will run, or ahead of time.

    Bundle + BuildConfig --plan--> BuildPlan(jobs) --build--> engines/<device>/NAME.engine + NAME.json

This room runs on the device: it needs numpy and NVIDIA's library, and neither torch nor onnx. One builder serves
JetPack's `tensorrt` (8.5 to 10) and `tensorrt_rtx`, whose builder needs no GPU; what they differ in is in `library.py`.
"""
