"""Engines on bundles: every form, every rung, through the public protocols alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpu_check.bundles import FORMS, found
from gpu_check.ort_cuda import cuda_graph_calls
from gpu_check.section import NotHereError, Section
from gpu_check.timing import Call, latency_rows, nvml, switch_row
from gpu_check.workloads import answer, call_of, inputs_of, workloads
from nsn_edge.bundle import Artifact, Bundle
from nsn_edge.errors import MissingDependencyError, NsnEdgeError, ProviderError
from nsn_edge.runtimes.dynamic import RankInputs
from nsn_edge.runtimes.engines import Engine, LoadedGraph, OnnxRuntimeEngine, fix_inputs
from nsn_edge.runtimes.engines.onnxruntime_tensorrt import usual_shapes
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.telemetry import NvmlGpu

LARGEST_BATCH = 32
_MOST_TOKENS = 512
_LIMITS = {"fp32": 5e-3, "fp16": 3e-2}
"""Largest difference to onnxruntime on the CPU, against its largest value. TensorRT and CUDA round fp32 products to
TF32 unless told otherwise, and are measured as they come."""


def run(section: Section, backend: str) -> None:
    """Measure one engine on every bundle that is there."""
    if section.plan.device == "cpu" and backend != "onnxruntime-cuda":
        raise NotHereError("it needs a GPU; with --device cpu onnxruntime alone is tried")
    bundles: dict[str, Bundle] = {}
    for name, path in found(section.plan.bundles).items():
        section.part(name, partial(_open, bundles, name, path))
    if not bundles:
        raise NotHereError(f"there are no bundles in {section.plan.bundles}; the section bundles says why")
    if section.plan.device == "cuda":
        _check_there(backend, next(iter(bundles.values())))
    with nvml(section) as gpu:
        for name, bundle in bundles.items():
            variants: list[Variant] = []
            section.part(f"{name}/engine", partial(_find, variants, section, backend, bundle), least_s=5.0)
            for variant in variants:
                if any(artifact.form == variant.form for artifact in bundle.manifest.artifacts):
                    work = partial(_measure, section, backend, variant, bundle, gpu)
                    section.part(f"{name}/{variant.label}", work, least_s=variant.least_s)
                    section.results.facts.setdefault("engines", {})[f"{name}/{variant.label}"] = _described(variant)
            if backend == "onnxruntime-cuda" and name == "layers":
                section.part(f"{name}/CUDA graph", partial(_cuda_graphs, section, bundle, gpu), least_s=5.0)


def _open(bundles: dict[str, Bundle], name: str, path: Path) -> None:
    bundles[name] = Bundle.open(path, check_hashes=False)


def _find(variants: list[Variant], section: Section, backend: str, bundle: Bundle) -> None:
    variants += _variants(section, backend, bundle)


def _measure(section: Section, backend: str, variant: Variant, bundle: Bundle, gpu: NvmlGpu | None) -> None:
    _Form(section, backend, variant, bundle, gpu).measure()


@dataclass(frozen=True)
class Variant:
    """A form on an engine with certain settings."""

    label: str
    form: str
    engine: Engine
    least_s: float = 5.0
    """Seconds without which it is not begun."""


def _described(variant: Variant) -> dict[str, Any] | str:
    try:
        return variant.engine.describe()
    except NsnEdgeError as error:
        return str(error)


def _check_there(backend: str, bundle: Bundle) -> None:
    """Fail early, in one line, where the engine itself cannot work."""
    try:
        if backend.startswith("onnxruntime"):
            # CUDA for both: TensorRT's provider would build an engine to say that there is no GPU.
            graph = bundle.file(bundle.graph(bundle.manifest.ladder.ranks[0]))
            OnnxRuntimeEngine(provider="cuda").load(graph).close()
        else:
            from nsn_edge.runtimes.engines.tensorrt.cuda import Cuda
            from nsn_edge.runtimes.engines.tensorrt.library import Library

            Cuda.open()
            Library.of(backend)
    except (ProviderError, MissingDependencyError, NsnEdgeError) as error:
        raise NotHereError(str(error)) from error


def _variants(section: Section, backend: str, bundle: Bundle) -> list[Variant]:
    if backend == "onnxruntime-cuda":
        provider = "cpu" if section.plan.device == "cpu" else "cuda"
        plain = OnnxRuntimeEngine(provider=provider)
        shared = OnnxRuntimeEngine(provider=provider, share_weights=True)
        return [Variant("static, shared weights", "static", shared), *(Variant(form, form, plain) for form in FORMS)]
    if backend == "onnxruntime-tensorrt":
        largest = LARGEST_BATCH if _has_sequences(bundle) else _MOST_TOKENS  # of a stack of layers, tokens
        shapes = usual_shapes(bundle.manifest, largest)
        engine = OnnxRuntimeEngine(provider="tensorrt", shapes=shapes)
        return [Variant(form, form, engine, least_s=20.0) for form in ("static", "sliced")]
    from nsn_edge.runtimes.engines.tensorrt import TensorRtEngine

    build(section, backend, bundle)
    return [Variant(form, form, TensorRtEngine(backend)) for form in ("static", "sliced")]


def _has_sequences(bundle: Bundle) -> bool:
    return any("sequence_length" in spec.shape for spec in bundle.manifest.inputs)


def _below(backend: str, form: str, bundle: Bundle) -> list[int]:
    """The rungs to measure besides the dense one: every second where an engine is built for each, which takes long."""
    ladder = bundle.manifest.ladder
    below = [rank for rank in ladder.ranks if rank != ladder.max_rank]
    return below[::2] if form == "static" and backend in ("onnxruntime-tensorrt", "tensorrt") else below


def build_command(backend: str, bundle: Bundle) -> list[str]:
    """`nsn-edge build` for what is measured."""
    largest = LARGEST_BATCH if _has_sequences(bundle) else _MOST_TOKENS  # of a stack of layers, tokens
    command = [sys.executable, "-m", "nsn_edge", "build", str(bundle.path), "--backend", backend]
    command += ["--kind", "rung", "--kind", "dynamic", "--batch", f"1:1:{largest}"]
    for rank in [*_below(backend, "static", bundle), bundle.manifest.ladder.max_rank]:
        command += ["--rank", str(rank)]
    return command


def build(section: Section, backend: str, bundle: Bundle) -> None:
    """Build the engines, in a process of its own.

    Raises:
        NotHereError: it failed, and with what, or it took too long.
    """
    command = build_command(backend, bundle)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(5.0, section.left_s), check=False)
    except subprocess.TimeoutExpired as error:
        raise NotHereError("building its engines took longer than was left") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise NotHereError(f"nsn-edge build failed: {lines[-1][:300]}")


class _Form:
    """One form of a bundle on one engine."""

    def __init__(self, section: Section, backend: str, variant: Variant, bundle: Bundle, gpu: NvmlGpu | None) -> None:
        self.section, self.engine, self.form, self.bundle = section, variant.engine, variant.form, bundle
        self.gpu = gpu
        self.on_gpu = section.plan.device == "cuda"
        ladder = bundle.manifest.ladder
        self.dense = ladder.max_rank
        self.below = _below(backend, self.form, bundle)
        # The other forms hold factors alone: the dense graph they are compared with is the static one.
        self.fractions = {**{rank: ladder.flops_fraction(rank) for rank in self.below}, self.dense: 1.0}
        self.about = {"model": bundle.manifest.model, "form": variant.label}

    def measure(self) -> None:
        """Parity, latency, memory; then switches, with a session of its own."""
        with ExitStack() as opened:
            graphs = self._load(opened)
            self._parity(graphs)
            for work in workloads(self.bundle, self.section.plan.quick):
                calls = {rank: call_of(self.bundle, graph, work) for rank, graph in graphs.items()}
                place = {**self.about, "workload": work.name, "batch_size": work.batch_size, **work.sizes}
                energy = self.gpu if self.form == "static" and work.batch_size == 1 else None  # it takes seconds a rung
                self.section.results.rows += latency_rows(
                    self.section, calls, self.fractions, self.dense, energy, **place
                )
        self._switches()

    def _load(self, opened: ExitStack) -> dict[int, LoadedGraph]:
        """A graph per rank, the largest factored one first; what each takes of the device's memory, when it has run."""
        graphs: dict[int, LoadedGraph] = {}
        files: dict[str, LoadedGraph] = {}
        work = workloads(self.bundle, quick=True)[0]
        full = self._weight_bytes(self.below[-1])
        before = self._used_bytes()
        for rank in [*reversed(self.below), self.dense]:
            artifact = self._artifact(rank)
            if artifact.path not in files:
                files[artifact.path] = self.engine.load(self.bundle.file(artifact))
                opened.callback(files[artifact.path].close)
            fixed = self._fixed(rank)
            graphs[rank] = fix_inputs(files[artifact.path], fixed) if fixed else files[artifact.path]
            call_of(self.bundle, graphs[rank], work)()
            after = self._used_bytes()
            if before is not None and after is not None and len(graphs) > 1 and rank != self.dense:
                added = after - before
                self.section.results.memory.append(
                    {**self.about, "rank": rank, "added_bytes": added, "of_weights": added / full}
                )
            before = after
        if before is None:
            name = f"{self.bundle.manifest.model}/{self.about['form']}/memory"
            self.section.results.notes.append(f"{name}: not run: no NVML figure")
        return graphs

    def _parity(self, graphs: Mapping[int, LoadedGraph]) -> None:
        import numpy as np

        reference = OnnxRuntimeEngine()
        for rank, graph in graphs.items():
            artifact = self._artifact(rank)
            with contextlib.closing(reference.load(self.bundle.file(artifact))) as cpu:
                expected = answer(self.bundle, fix_inputs(cpu, self._fixed(rank)))
            difference = float(np.abs(answer(self.bundle, graph) - expected).max() / np.abs(expected).max())
            limit = _LIMITS.get(artifact.precision or "fp32", _LIMITS["fp16"])
            about = {**self.about, "rank": rank, "against": "onnxruntime on the CPU"}
            self.section.results.parity.append(
                {**about, "difference": difference, "limit": limit, "ok": difference <= limit}
            )

    def _switches(self) -> None:
        work = workloads(self.bundle, self.section.plan.quick)
        small = next((w for w in work if w.name in ("tokens", "encode", "prefill")), work[0])
        inputs = inputs_of(self.bundle, small)
        with EdgeSession.open(self.bundle, engine=self.engine, form=self.form) as session:
            for loading in session.preload(self.below):
                loading.result()
            calls: dict[int, Call] = {rank: lambda: session.run(inputs) for rank in self.below}
            select: Callable[[int], object] = lambda rank: session.switch(rank).result()  # noqa: E731
            row = switch_row(
                self.section, calls, select, **self.about, workload=small.name, batch_size=small.batch_size
            )
        self.section.results.switches.append(row)

    def _artifact(self, rank: int) -> Artifact:
        """The form's graph; where it holds factors alone, the static one of the dense rung, to be compared with."""
        if rank == self.dense and not self.bundle.answers_as_original(rank, self.form):
            return self.bundle.graph(rank)
        return self.bundle.graph(rank, self.form)

    def _fixed(self, rank: int) -> Mapping[str, Any]:
        """What the graph takes besides the model's inputs."""
        form = self._artifact(rank).form
        return {} if form in (None, "static") else RankInputs(self.bundle, str(form)).at(rank)

    def _weight_bytes(self, rank: int) -> int:
        """Of the rung's own graph; of the whole file where there is none."""
        for artifact in self.bundle.manifest.artifacts:
            if artifact.form == "static" and artifact.rank == rank and artifact.weight_bytes:
                return artifact.weight_bytes
        return sum(artifact.size_bytes for artifact in self.bundle.manifest.artifacts if artifact.kind == "weights")

    def _used_bytes(self) -> int | None:
        return self.gpu.memory_used_bytes() if self.gpu is not None else None


def _cuda_graphs(section: Section, bundle: Bundle, gpu: NvmlGpu | None) -> None:
    """onnxruntime's own CUDA graphs, a stack of layers at one token and at many."""
    if section.plan.device == "cpu":
        raise NotHereError("CUDA graphs need a GPU")
    ladder = bundle.manifest.ladder
    fractions = {rank: 1.0 if rank == ladder.max_rank else ladder.flops_fraction(rank) for rank in ladder.ranks}
    for work in workloads(bundle, section.plan.quick):
        with cuda_graph_calls(bundle, work) as calls:
            section.results.rows += latency_rows(
                section,
                calls,
                fractions,
                ladder.max_rank,
                gpu,
                model=bundle.manifest.model,
                form="static, CUDA graph",
                workload=work.name,
                batch_size=work.batch_size,
            )
