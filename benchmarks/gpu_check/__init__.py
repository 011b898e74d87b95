"""The parts of `benchmarks/gpu.py`.

runner      one process per section            results    the document, the tables, the targets
machine     what is there                      bundles    what the engines are measured on
torch_layers, torch_decoder, engines           the measurements
timing      latency, switches, energy          section    what a section may do and say
"""
