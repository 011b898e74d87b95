"""Export: from a nested torch model to a bundle.

    Checkpoint --trace--> Graph(NestedLinear) --lower--> one ONNX graph per rung + dynamic-rank graphs --write--> Bundle

A model is traced once, with every nested layer as one `nsn_edge::NestedLinear` node. Each deployment form is a small
lowering of that node (`lowering/`); a new target is a new lowering, never a second trace.
"""
