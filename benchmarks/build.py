"""TensorRT-RTX engines built on this processor: seconds, bytes, profiles and memory, per rung and for every rank.

    python benchmarks/build.py --json benchmarks/results/build.json

    rung           an engine per rung, from the bundle's static graphs, which share one weights file
    dedicated      the ordinary way: the same rungs, each exported on its own with its own weights
    dynamic        one engine for every rank, with an optimization profile per rung
    one profile    the same with a single profile for all ranks

MiniLM, and a Llama of 57 M random weights with its cache. The builder needs no GPU: it writes an engine for all GPUs of
compute capability 8.0 and later, whose kernels are compiled on the device at first use. Seconds are this processor's;
JetPack's `tensorrt` times kernels on the device while it builds, and is not measured here.

Each engine is built by `nsn-edge build` in a process of its own; peak is what that process held at most. Its ratio to
the room that the verb asks for before it starts has to stay below 1, and so has that of an engine's bytes to what it
expects on disk.

JSON: `engines` holds one object per model, way, precision and engine, with `seconds`, `size_bytes`, `weight_bytes`
(what its graph refers to), `peak_bytes`, `profiles` (rank ranges) and `room`, the two ratios; `totals` one per model,
way and precision; `ratios` the bytes of each rung's engine to its dedicated one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Target, arguments, publish, workspace
from random_decoder import DecoderSize, random_decoder
from rich.table import Table

from nsn_edge.bundle import Bundle
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.tensorrt.checks import memory_bytes
from nsn_edge.export.tensorrt.library import Library
from nsn_edge.export.tensorrt.plan import BuildConfig, plan_jobs

QUICK_SIZE = DecoderSize(hidden=128, layers=1, intermediate=256, heads=2)
WAYS = ("rung", "dedicated", "dynamic", "one profile")


@dataclass(frozen=True)
class Subject:
    """A model in all its exports."""

    name: str
    bundle: Bundle
    own: Mapping[int, Bundle]
    """By rank: the bundle that holds this rung alone."""


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16"], help="what engines compute with")
    parser.add_argument("--device", default="sm80+", help="the kind of GPU to build for")
    parser.add_argument("--quick", action="store_true", help="a tiny decoder, two rungs, no MiniLM: to try it")
    options = parser.parse_args()
    library = Library.load("tensorrt_rtx")
    rows: list[dict[str, Any]] = []
    for subject in subjects(options.checkpoint, options.quick):
        for precision in options.precision:
            for way in WAYS:
                rows += built(subject, way, precision, options.device)
    results = {
        "settings": {"precisions": options.precision, "device": options.device, "quick": options.quick},
        "library": {"name": library.name, "version": library.version},
        "engines": rows,
        "totals": totals(rows),
        "ratios": ratios(rows),
    }
    publish("benchmark-build", results, targets(rows), [engine_table(rows), total_table(rows)], options.json)


def subjects(checkpoint: Path | None, quick: bool) -> Iterator[Subject]:
    """The models, one after the other."""
    if quick:
        with tempfile.TemporaryDirectory(prefix="nsn-edge-build-") as name:
            yield exported(random_decoder(QUICK_SIZE), Path(name), ExportConfig(fractions=(0.5,), forms=FORMS))
        return
    with workspace(checkpoint) as (folder, encoder):
        yield exported(encoder, folder / "encoder", ExportConfig(forms=FORMS))
        yield exported(random_decoder(DecoderSize()), folder / "decoder", ExportConfig(forms=FORMS))


FORMS = ("static", "sliced")


def exported(checkpoint: Checkpoint, folder: Path, config: ExportConfig) -> Subject:
    say(f"exporting {checkpoint.name} ...")
    bundle = export_bundle(checkpoint, folder / "bundle", config)
    own = {}
    for rung in bundle.manifest.ladder.rungs:
        ranks = () if rung.dense else (rung.rank,)
        alone = ExportConfig((), ranks, dense_top=rung.dense, forms=("static",))
        own[rung.rank] = export_bundle(checkpoint, folder / f"own-{rung.rank}", alone)
    return Subject(checkpoint.name, bundle, own)


def built(subject: Subject, way: str, precision: str, device: str) -> list[dict[str, Any]]:
    """One row per engine of a way."""
    say(f"{subject.name}, {way}, {precision} ...")
    ladder = subject.bundle.manifest.ladder
    if way in ("rung", "dedicated"):
        bundles = subject.own if way == "dedicated" else dict.fromkeys(ladder.ranks, subject.bundle)
        jobs = [(bundles[rank], BuildConfig(("rung",), (rank,), precision)) for rank in ladder.ranks]
    else:
        ranks = (ladder.max_rank,) if way == "one profile" else ()
        jobs = [(subject.bundle, BuildConfig(("dynamic",), ranks, precision))]
    return [measured(subject, way, bundle, config, device) for bundle, config in jobs]


def measured(subject: Subject, way: str, bundle: Bundle, config: BuildConfig, device: str) -> dict[str, Any]:
    """Build one engine as a user does, in a process of its own, into a folder that is deleted again."""
    (job,) = plan_jobs(bundle, config)
    with tempfile.TemporaryDirectory(prefix="nsn-edge-engine-") as folder:
        file = Path(folder) / "build.json"
        line = ["build", bundle.path, "--backend", "tensorrt-rtx"]
        line += ["--kind", job.kind, "--precision", job.precision, "--device", device]
        line += [word for rank in config.ranks for word in ("--rank", rank)]
        line += ["--engines", folder, "--json-file", file, "--skip-checks"]
        peak_bytes = peak_of(list(map(str, line)))
        (engine,) = json.loads(file.read_bytes())["engines"]
    return {
        "model": subject.name,
        "way": way,
        "precision": engine["precision"],
        "engine": engine["name"],
        "rank": engine["rank"],
        "seconds": engine["build_s"],
        "size_bytes": engine["size_bytes"],
        "weight_bytes": job.artifact.weight_bytes,
        "peak_bytes": peak_bytes,
        "profiles": [profile["rank_range"] for profile in engine["profiles"]],
        "room": {"memory": peak_bytes / memory_bytes(job), "disk": engine["size_bytes"] / engine["expected_bytes"]},
    }


def peak_of(line: Sequence[str]) -> float:
    """Run the verb, and say how many bytes of its process were resident at most."""
    # Asked of the process itself: what the kernel tells of an ended one counts its parent's pages, too.
    done = subprocess.run([sys.executable, "-c", _VERB, *line], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return float(done.stdout.splitlines()[-1]) * 1e6


_VERB = """
import sys
from nsn_edge.cli import main
from nsn_edge.cli.common import run_main
from nsn_edge.runtimes.profiling.memory import peak_memory_mb

code = run_main(main, sys.argv[1:])
print(peak_memory_mb())
sys.exit(code)
"""


def totals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each model, precision and way."""
    keys = list(dict.fromkeys((row["model"], row["precision"], row["way"]) for row in rows))
    found = []
    for model, precision, way in keys:
        own = [row for row in rows if (row["model"], row["precision"], row["way"]) == (model, precision, way)]
        found.append(
            {
                "model": model,
                "precision": precision,
                "way": way,
                "engines": len(own),
                "profiles": sum(len(row["profiles"]) for row in own),
                "seconds": sum(row["seconds"] for row in own),
                "size_bytes": sum(row["size_bytes"] for row in own),
            }
        )
    return found


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bytes of the rungs' engines to the dedicated ones'."""
    dedicated = {(r["model"], r["precision"], r["rank"]): r for r in rows if r["way"] == "dedicated"}
    return [
        {
            "model": row["model"],
            "precision": row["precision"],
            "rank": row["rank"],
            "bytes": row["size_bytes"] / dedicated[row["model"], row["precision"], row["rank"]]["size_bytes"],
        }
        for row in rows
        if row["way"] == "rung"
    ]


def targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """What has to hold."""
    return [
        Target("engine of a rung, bytes to the dedicated one, at most", max(r["bytes"] for r in ratios(rows)), 1.02),
        Target("bytes of an engine to those expected, at most", max(row["room"]["disk"] for row in rows), 1.0),
        Target("memory of a build to the room asked for, at most", max(row["room"]["memory"] for row in rows), 1.0),
    ]


def engine_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Engines", title_justify="left")
    for heading in ("model", "way", "engine", "profiles", "seconds", "MB", "weights, MB", "peak, MB"):
        table.add_column(heading, justify="left" if heading in ("model", "way", "engine") else "right")
    for row in rows:
        table.add_row(
            row["model"],
            row["way"],
            row["engine"],
            str(len(row["profiles"])),
            f"{row['seconds']:.1f}",
            f"{row['size_bytes'] / 1e6:.1f}",
            f"{row['weight_bytes'] / 1e6:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        )
    return table


def total_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="All rungs served", title_justify="left")
    for heading in ("model", "precision", "way", "engines", "profiles", "seconds", "MB"):
        table.add_column(heading, justify="left" if heading in ("model", "precision", "way") else "right")
    for total in totals(rows):
        table.add_row(
            total["model"],
            total["precision"],
            total["way"],
            str(total["engines"]),
            str(total["profiles"]),
            f"{total['seconds']:.1f}",
            f"{total['size_bytes'] / 1e6:.1f}",
        )
    return table


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
