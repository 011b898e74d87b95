"""What exporting a decoder of more than a billion parameters takes: memory, time and disk.

    python benchmarks/large.py --json benchmarks/results/large.json

A Llama with random float16 weights is nested with random factors of full rank (how much memory an export takes does
not depend on the values) and saved. A fresh process loads the checkpoint, exports it as `nsn-edge export` does, and
says what its resident memory was at most. Another compares the dense rung in onnxruntime with torch: its weights lie
last in the file, past 4 GB. `--quick` does the same with 17 million parameters, where Python weighs more than the
weights, so that memory has no target.

JSON: `model` says how large; `weights_bytes` is what the checkpoint's tensors take; `peak_bytes` is the export's peak
resident memory, `imports_bytes` what that process held before it loaded anything, `loaded_bytes` its peak while it
loaded; `load_s` and `export_s` its seconds; `bundle_bytes` and `weights_file_bytes` what was written, `graph_bytes`
the largest graph; `progress_reports` how often each stage told where it was; `dense_rung` the comparison with torch
and where its last weight begins; `ratios` the peak and the bundle over the weights.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import Target, arguments, publish
from rich.table import Table

from nsn_edge.checkpoint import WEIGHTS_NAME, Checkpoint


@dataclass(frozen=True)
class Size:
    """A Llama's measures."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int


BILLION = Size(hidden=2048, intermediate=5632, layers=22, heads=32, key_value_heads=4, vocabulary=32000)
QUICK = Size(hidden=512, intermediate=1024, layers=6, heads=8, key_value_heads=2, vocabulary=4000)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="17 million parameters")
    parser.add_argument("--folder", type=Path, help="where to put 13 GB meanwhile; default: the system's")
    options = parser.parse_args()
    size = QUICK if options.quick else BILLION
    with tempfile.TemporaryDirectory(prefix="nsn-edge-large-", dir=options.folder) as name:
        folder = Path(name)
        print("building a random decoder ...", file=sys.stderr)
        parameters = in_fresh_process("build", folder, asdict(size))["parameters"]
        weights_bytes = (folder / "checkpoint" / WEIGHTS_NAME).stat().st_size
        print("exporting it in a fresh process ...", file=sys.stderr)
        measured = in_fresh_process("export", folder, {})
        print("running its dense rung ...", file=sys.stderr)
        dense_rung = in_fresh_process("run", folder, {})
    ratios = {
        "peak_over_weights": measured["peak_bytes"] / weights_bytes,
        "bundle_over_weights": measured["bundle_bytes"] / weights_bytes,
    }
    targets = [Target("dense rung in onnxruntime against torch, relative", dense_rung["max_relative_diff"], 1e-2)]
    if not options.quick:
        targets.append(Target("peak memory of loading and exporting / weights", ratios["peak_over_weights"], 1.3))
    results = {
        "model": {**asdict(size), "parameters": parameters, "precision": "fp16"},
        "weights_bytes": weights_bytes,
        **measured,
        "dense_rung": dense_rung,
        "ratios": ratios,
    }
    table = Table(title=f"Exporting a Llama of {parameters / 1e9:.2f} billion parameters, fp16", title_justify="left")
    table.add_column("what")
    table.add_column("", justify="right")
    for what, value in (
        ("weights: dense and one full set of factors", f"{weights_bytes / 1e6:.0f} MB"),
        ("peak resident memory", f"{measured['peak_bytes'] / 1e6:.0f} MB"),
        ("of which before anything was loaded", f"{measured['imports_bytes'] / 1e6:.0f} MB"),
        ("bundle", f"{measured['bundle_bytes'] / 1e6:.0f} MB"),
        ("largest graph", f"{measured['graph_bytes'] / 1e6:.2f} MB"),
        ("loading", f"{measured['load_s']:.0f} s"),
        ("tracing and exporting", f"{measured['export_s']:.0f} s"),
    ):
        table.add_row(what, value)
    publish("benchmark-large", results, targets, [table], options.json)


def in_fresh_process(step: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one of `STEPS` where nothing else takes memory; its answer."""
    command = [sys.executable, str(Path(__file__).resolve()), "--step", step, str(folder), json.dumps(settings)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return result


def build(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Save a random nested Llama; the number of the original's parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_utils import no_init_weights

    from nsn_edge.bundle import TaskSpec
    from nsn_edge.convert import default_filter
    from nsn_edge.ladder import uniform_ladder
    from nsn_edge.layers import NSNLinear, replace_module_

    torch.manual_seed(0)
    size = Size(**settings)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        dtype=torch.float16,
    )
    torch.set_default_dtype(torch.float16)
    with no_init_weights():
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.data = random(*parameter.shape)
    linears = {name: module for name, module in model.named_modules() if default_filter(module, name)}
    sizes = [(name, m.in_features, m.out_features, min(m.in_features, m.out_features)) for name, m in linears.items()]
    for layer in uniform_ladder(sizes).layers:
        old: Any = linears[layer.name]
        a, b = random(layer.curve.full_rank, layer.d_in), random(layer.curve.full_rank, layer.d_out)
        replace_module_(model, old, NSNLinear.from_factors(a, b, old.bias, layer.curve, old.weight.detach()))
    Checkpoint(model, TaskSpec("text-generation"), "random Llama", {"weights": "random"}).save(folder / "checkpoint")
    return {"parameters": parameters}


def random(*shape: int) -> Any:
    """Small random float16 numbers."""
    import torch

    return torch.randn(shape, dtype=torch.float32).mul_(0.02).half()


def export(folder: Path, _: dict[str, Any]) -> dict[str, Any]:
    """Load and export the checkpoint; what it took."""
    import nsn_edge.evaluation  # noqa: F401  torch and transformers, before memory is looked at
    from nsn_edge.export.exporter import export_bundle

    reports: Counter[str] = Counter()

    def progress(stage: str, done: int, total: int) -> None:
        reports[stage] += 1
        if done == total or reports[stage] % 500 == 0:
            print(f"{stage}: {done}/{total}", file=sys.stderr)

    imports_bytes = peak_bytes()
    start = time.perf_counter()
    checkpoint = Checkpoint.load(folder / "checkpoint", progress=progress)
    loaded = time.perf_counter()
    loaded_bytes = peak_bytes()
    bundle = export_bundle(checkpoint, folder / "bundle", progress=progress)
    done = time.perf_counter()
    artifacts = bundle.manifest.artifacts
    return {
        "imports_bytes": imports_bytes,
        "loaded_bytes": loaded_bytes,
        "peak_bytes": peak_bytes(),
        "load_s": loaded - start,
        "export_s": done - loaded,
        "bundle_bytes": bundle.size_bytes,
        "weights_file_bytes": sum(item.size_bytes for item in artifacts if item.kind == "weights"),
        "graph_bytes": max(item.size_bytes for item in artifacts if item.kind == "graph"),
        "rungs": list(bundle.manifest.ladder.ranks),
        "forms": sorted({item.form for item in artifacts if item.form}),
        "progress_reports": dict(reports),
    }


def run(folder: Path, _: dict[str, Any]) -> dict[str, Any]:
    """Compare the dense rung with torch on a few tokens; the first leaves memory before the other is loaded."""
    import numpy as np
    import onnx_ir as ir
    import torch

    from nsn_edge.bundle import Bundle
    from nsn_edge.layers import at_dense
    from nsn_edge.runtimes.engines.onnxruntime import OnnxRuntimeEngine

    bundle = Bundle.open(folder / "bundle")
    ids = np.arange(1, 9)[None]
    checkpoint = Checkpoint.load(folder / "checkpoint")
    with at_dense(checkpoint.model), torch.no_grad():
        wanted = checkpoint.model(torch.from_numpy(ids)).logits.float().numpy()
    del checkpoint
    graph = bundle.graph(bundle.manifest.ladder.max_rank)
    tensors = (value.const_value for value in ir.load(bundle.file(graph)).graph.initializers.values())
    last = max(tensor.offset or 0 for tensor in tensors if isinstance(tensor, ir.ExternalTensor))
    sizes = {"batch_size": 1}  # all other sizes that vary are those of the empty cache
    feeds = {
        spec.name: np.zeros([n if isinstance(n, int) else sizes.get(n, 0) for n in spec.shape], spec.dtype)
        for spec in bundle.manifest.inputs
    }
    feeds.update(input_ids=ids, attention_mask=np.ones_like(ids), position_ids=np.arange(ids.size)[None])
    with contextlib.closing(OnnxRuntimeEngine(threads=0).load(bundle.file(graph))) as loaded:
        found = loaded.run(feeds)["logits"].astype(np.float32)
    largest = float(np.abs(wanted).max())
    relative = float(np.abs(found - wanted).max()) / max(1.0, largest)
    return {"max_relative_diff": relative, "largest_logit": largest, "last_weight_offset": last}


def peak_bytes() -> int:
    """This process's peak resident memory so far. (`getrusage` would start from the parent's.)"""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


STEPS = {"build": build, "export": export, "run": run}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(STEPS[sys.argv[2]](Path(sys.argv[3]), json.loads(sys.argv[4]))))
    else:
        main()
