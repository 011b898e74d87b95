"""What five rungs take on disk and to export, against one rung and against the ordinary way.

    python benchmarks/footprint.py --json benchmarks/results/footprint.json

The bundle holds everything that is shipped: five rungs (dense, 75, 50, 35, 25 % of the linear FLOPs), the graphs
with a rank input, the weights and the tokenizer. It is compared with the dense weights plus one set of factors. The
ordinary way is one export per rung, each with its own weights; it is carried out, not estimated.

JSON: `bundle_bytes, dense_weight_bytes, factor_bytes, separate_bytes, bundle_over_weights, bundle_over_separate`;
`export_s` holds the seconds of each repetition for `five`, `one` and `separate` (taken in turn) and `ratios` their
medians' ratios; `rungs` one object per rung with `rank, flops_fraction, graph_bytes, weight_bytes`.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from statistics import median

from common import Target, arguments, publish, workspace
from rich.table import Table

from nsn_edge.bundle import Bundle
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.layers import nsn_layers


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"five": [], "one": [], "separate": []}
    with workspace(options.checkpoint) as (folder, checkpoint):
        half = checkpoint.ladder.rank_for_fraction(0.5)
        one = ExportConfig(fractions=(), ranks=(half,), dense_top=False, forms=("static",))
        five = ExportConfig(forms=("static",))
        export_bundle(checkpoint, folder / "warm-up", one)
        for repetition in range(options.repetitions):
            print(f"exporting, repetition {repetition + 1} of {options.repetitions} ...", file=sys.stderr)
            seconds["one"].append(timed(checkpoint, folder / "one", one))
            seconds["five"].append(timed(checkpoint, folder / "five", five))
            seconds["separate"].append(separately(checkpoint, folder / "separate"))
        bundle = export_bundle(checkpoint, folder / "bundle")
        factor_bytes = sum(layer.A.nbytes + layer.B.nbytes for layer in nsn_layers(checkpoint.model).values())
        bundle_bytes = bundle.size_bytes
        separate_bytes = sum(Bundle.open(path).size_bytes for path in (folder / "separate").iterdir())
    ladder = bundle.manifest.ladder
    dense_bytes = bundle.graph(ladder.max_rank).weight_bytes
    assert dense_bytes is not None
    rungs = [
        {
            "rank": rank,
            "flops_fraction": ladder.flops_fraction(rank),
            "graph_bytes": bundle.graph(rank).size_bytes,
            "weight_bytes": bundle.graph(rank).weight_bytes,
        }
        for rank in ladder.ranks
    ]
    ratios = {
        "five_over_one": median(seconds["five"]) / median(seconds["one"]),
        "five_over_separate": median(seconds["five"]) / median(seconds["separate"]),
    }
    over_weights = bundle_bytes / (dense_bytes + factor_bytes)
    targets = [
        Target("bundle of five rungs / (dense weights + one set of factors)", over_weights, 1.02),
        Target("trace and export of five rungs / of one", ratios["five_over_one"], 1.5),
    ]
    results = {
        "model": bundle.manifest.model,
        "bundle_bytes": bundle_bytes,
        "dense_weight_bytes": dense_bytes,
        "factor_bytes": factor_bytes,
        "separate_bytes": separate_bytes,
        "bundle_over_weights": over_weights,
        "bundle_over_separate": bundle_bytes / separate_bytes,
        "export_s": seconds,
        "ratios": ratios,
        "rungs": rungs,
    }
    sizes = Table(title="Disk", title_justify="left")
    times = Table(title=f"Trace and export, median of {options.repetitions}", title_justify="left")
    for what, heading in ((sizes, "MB"), (times, "s")):
        what.add_column("what")
        what.add_column(heading, justify="right")
    for name, size in (
        ("bundle: five rungs, the dynamic graphs, tokenizer", bundle_bytes),
        ("dense weights", dense_bytes),
        ("one set of factors, full rank", factor_bytes),
        ("the ordinary way: one export per rung", separate_bytes),
    ):
        sizes.add_row(name, f"{size / 1e6:.1f}")
    for name, key in (("one rung", "one"), ("five rungs", "five"), ("five separate exports", "separate")):
        times.add_row(name, f"{median(seconds[key]):.2f}")
    publish("benchmark-footprint", results, targets, [sizes, times], options.json)


def timed(checkpoint: Checkpoint, path: Path, config: ExportConfig) -> float:
    """Seconds of one export, trace included."""
    gc.collect()  # the garbage of the last export is not this one's to sweep
    start = time.perf_counter()
    export_bundle(checkpoint, path, config)
    return time.perf_counter() - start


def separately(checkpoint: Checkpoint, folder: Path) -> float:
    """Seconds of exporting every rung on its own, each with the weights that it needs and no others."""
    seconds = 0.0
    for rung in ExportConfig().rungs_of(checkpoint.ladder).rungs:
        config = ExportConfig(
            fractions=(), ranks=() if rung.dense else (rung.rank,), dense_top=rung.dense, forms=("static",)
        )
        seconds += timed(checkpoint, folder / str(rung.rank), config)
    return seconds


if __name__ == "__main__":
    main()
