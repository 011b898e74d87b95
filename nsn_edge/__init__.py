"""nsn-edge: cut a transformer into a Nested Subspace Network, export it once, switch its rank on the device.

Nested Subspace Networks (arXiv 2509.17874) keep every linear layer as two factors, `W = B @ A`; the rank-r
model is the first r directions of each. The rooms of this package, and who may import whom:

    contracts (stdlib + numpy) <- torch core <- export
    contracts                  <- runtimes

Nothing heavy is imported here: `import nsn_edge` costs numpy at most, on a device without torch.
"""

from nsn_edge._version import __version__

__all__ = ["__version__"]
