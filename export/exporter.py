"""Write a bundle: every form of every rung, over one weights file, in one step that succeeds or leaves no trace."""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import onnx_ir as ir

from nsn_edge._version import __version__
from nsn_edge.atomic import atomic_folder
from nsn_edge.bundle import Artifact, BoundTensor, Bundle, Manifest, TensorSpec, is_bundle_folder
from nsn_edge.bundle.quantisation import QUANTISED, Quantisation
from nsn_edge.bundle.store import sha256_of
from nsn_edge.checkpoint import ASSET_NAMES, Checkpoint
from nsn_edge.errors import UsageError
from nsn_edge.export.graph import Graph, nested_nodes, spec_of, truncated
from nsn_edge.export.half import with_weights_as
from nsn_edge.export.lowering import (
    lower_bound,
    lower_bound_dense,
    lower_gated,
    lower_masked,
    lower_quantised,
    lower_sliced,
    lower_static,
)
from nsn_edge.export.precision import chosen_forms, quantisation_of
from nsn_edge.export.trace import trace
from nsn_edge.export.weights import WeightStore, belongs_in_store
from nsn_edge.ladder import RankLadder, Rung
from nsn_edge.progress import Progress, silent

DEFAULT_FRACTIONS = (0.75, 0.5, 0.35, 0.25)
"""Rungs below the dense one, as fractions of the dense linear FLOPs."""

CONFIG_NAME = "config.json"

_WEIGHTS_STAGE = "weights, MB"

_TOOLS = ("torch", "transformers", "optimum-onnx", "onnx", "onnx-ir", "numpy")


@dataclass(frozen=True)
class ExportConfig:
    """What a bundle shall hold."""

    fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    """Rungs as fractions of the dense linear FLOPs, each in `(0, 1]`: the best rank within each."""
    ranks: tuple[int, ...] = ()
    """More rungs, by rank."""
    dense_top: bool = True
    """Whether the top rung is the original dense model."""
    forms: tuple[str, ...] | None = None
    """Which of `GRAPH_FORMS` to write; None for all that exist in the precision."""
    merge: bool = True
    """Whether layers past their break-even rank are multiplied out when a rung is loaded: the fastest. Without it every
    rung stays factored, so that an engine with `share_weights` holds one copy of the weights for all rungs."""
    precision: str | None = None
    """Of the weights, one of `PRECISIONS`; None for the checkpoint's own."""
    keep_precise: tuple[str, ...] = ()
    """Nested layers to spare where the precision is int8 or int4, see `precision.sensitivity`."""
    keep_from: int = 1
    """The lowest rank whose rung spares them."""

    def __post_init__(self) -> None:
        chosen_forms(self.precision, self.forms)
        if self.keep_precise and self.precision not in QUANTISED:
            raise UsageError(
                f"every layer of a bundle in {self.precision or 'the precision of its checkpoint'} is kept as it is",
                f"keep layers precise with {' or '.join(QUANTISED)}",
            )
        if self.keep_from < 1:
            raise UsageError(f"layers are kept from a rank of 1 or more on, not from {self.keep_from}")
        if not (self.fractions or self.ranks or self.dense_top):
            raise UsageError("a bundle without rungs", "name fractions, ranks or the dense rung")

    @property
    def written_forms(self) -> tuple[str, ...]:
        """The forms that will be written."""
        return chosen_forms(self.precision, self.forms)

    def rungs_of(self, ladder: RankLadder) -> RankLadder:
        """The ladder with these rungs on it.

        Raises:
            RankError: a rank or a fraction is out of range.
        """
        ranks = [ladder.rank_for_fraction(fraction) for fraction in self.fractions]
        return ladder.with_rungs([*ranks, *self.ranks], dense_top=self.dense_top)


def export_bundle(
    checkpoint: Checkpoint,
    path: Path,
    config: ExportConfig | None = None,
    *,
    graph: Graph | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Trace, lower and write a bundle.

    Args:
        checkpoint: the nested model and what is known about it.
        path: the bundle's folder. An existing bundle there is replaced at the very end; another folder is refused.
        config: which rungs and forms.
        graph: an earlier trace of the same model (a plain module is traced with `trace_module`).
        progress: hears of each graph, and of the megabytes of weights written.

    Raises:
        RankError: a rung is out of range.
        UnsupportedModelError, ExportError: the model cannot be traced or lowered.
        NsnEdgeError: the disk is full, or the folder cannot be written.
    """
    config = config or ExportConfig()
    ladder = config.rungs_of(checkpoint.ladder)
    with atomic_folder(path, is_bundle_folder) as folder:
        progress("trace", 0, 1)
        graph = graph or trace(with_weights_as(checkpoint, config.precision))
        progress("trace", 1, 1)
        how = _quantisation(graph, config)
        artifacts, outputs, bound_tensors = _write_graphs(graph, ladder, config, how, folder, progress)
        artifacts += _copy_assets(checkpoint.assets, folder)
        manifest = Manifest(
            model=checkpoint.name,
            architecture=type(checkpoint.model).__name__,
            task=checkpoint.task,
            ladder=ladder,
            inputs=tuple(spec_of(value) for value in graph.model.graph.inputs),
            outputs=outputs,
            artifacts=tuple(artifacts),
            bound_tensors=bound_tensors,
            quantisation=how,
            created_by={"nsn-edge": __version__, "python": platform.python_version(), **_versions()},
        )
        Bundle.write_manifest(folder, manifest)
    return Bundle.open(path, check_hashes=False)


def _quantisation(graph: Graph, config: ExportConfig) -> Quantisation | None:
    """How the weights are to be quantised; None for floats.

    Raises:
        UsageError: the graph is of another precision, or a layer to keep does not exist.
    """
    if config.precision in QUANTISED:
        return quantisation_of(
            graph, config.precision, config.keep_precise, keep_from=config.keep_from, originals=config.merge
        )
    if config.precision not in (None, graph.precision):
        raise UsageError(f"the graph was traced in {graph.precision}, not in {config.precision}", "trace it again")
    return None


def _write_graphs(
    graph: Graph,
    ladder: RankLadder,
    config: ExportConfig,
    how: Quantisation | None,
    folder: Path,
    progress: Progress,
) -> tuple[list[Artifact], tuple[TensorSpec, ...], tuple[BoundTensor, ...]]:
    """Lower and save every graph; return the files, the outputs that all graphs share, and what `bound` binds."""
    jobs: list[tuple[str, Rung | None, str]] = []
    for form in config.written_forms:
        if form == "static":
            jobs += [("static", rung, "dense" if rung.dense else f"rank-{rung.rank:03d}") for rung in ladder.rungs]
        else:
            jobs.append((form, None, form))
        if form == "bound":
            jobs += [("bound", rung, "bound-dense") for rung in ladder.rungs if rung.dense]
    factored = [rung.rank for rung in ladder.rungs if not rung.dense]
    rows = ladder.layer_ranks(factored[-1] if factored else 1)
    if set(config.written_forms) == {"static"} and factored and how is None:
        graph = truncated(graph, rows)
    artifacts = []
    outputs: tuple[TensorSpec, ...] = ()
    bound_tensors: tuple[BoundTensor, ...] = ()
    total_mb = _megabytes(graph, how, dense=any(rung.dense for rung in ladder.rungs))
    with WeightStore(folder, _in_megabytes(progress, total_mb)) as store:
        for done, (form, rung, stem) in enumerate(jobs):
            progress("export", done, len(jobs))
            taken: tuple[BoundTensor, ...] = ()
            if form == "bound":
                model, taken = lower_bound(graph, store) if rung is None else lower_bound_dense(graph, store)
                bound_tensors += taken
            elif rung is not None and how is not None:
                model = lower_quantised(graph, rung, store, how, rows=rows)
            elif rung is not None:
                model = lower_static(graph, rung, store, merge=config.merge)
            elif form == "gated":
                model = lower_gated(graph, ladder, store, merge=config.merge)
            else:
                model = lower_sliced(graph, store) if form == "sliced" else lower_masked(graph, store)
            file = folder / f"{stem}.onnx"
            outputs = tuple(spec_of(value) for value in model.graph.outputs)
            weight_bytes = _referenced_bytes(model, taken)
            ir.save(model, file)
            rank = None if rung is None else rung.rank
            precision = graph.precision if how is None else how.precision
            artifacts.append(
                _artifact("graph", file, form=form, rank=rank, precision=precision, weight_bytes=weight_bytes)
            )
    progress(_WEIGHTS_STAGE, total_mb, total_mb)
    progress("export", len(jobs), len(jobs))
    return [*artifacts, _artifact("weights", store.path, sha256=store.sha256)], outputs, bound_tensors


def _megabytes(graph: Graph, how: Quantisation | None, *, dense: bool) -> int:
    """What the weights file will have, rounded up; of quantised weights about that, for progress needs no more."""
    unused = set() if dense else {nested.weight for nested in nested_nodes(graph.model)}
    tensors = (value.const_value for value in graph.model.graph.initializers.values() if value not in unused)
    size_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None and belongs_in_store(tensor))
    return -(-size_bytes // 10**6 // (1 if how is None else 4))


def _in_megabytes(progress: Progress, total_mb: int) -> Callable[[int], None]:
    """Tell of the weights file's size each time that it is a megabyte larger, and not yet of its end."""
    reported = -1

    def report(size_bytes: int) -> None:
        nonlocal reported
        done = min(size_bytes // 10**6, total_mb - 1)
        if done > reported:
            progress(_WEIGHTS_STAGE, done, total_mb)
            reported = done

    return report


def _referenced_bytes(model: ir.Model, bound_tensors: Sequence[BoundTensor]) -> int:
    """Bytes of distinct external data that a graph, its branches included, refers to or takes as inputs."""
    ends: dict[int, int] = {tensor.offset: tensor.end for tensor in bound_tensors}
    graphs = {id(graph): graph for graph in (model.graph, *(node.graph for node in model.graph.all_nodes()))}
    for graph in graphs.values():
        assert isinstance(graph, ir.Graph)
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                assert tensor.offset is not None
                end = tensor.offset + (tensor.length or 0)
                ends[tensor.offset] = max(ends.get(tensor.offset, 0), end)
    return sum(end - offset for offset, end in ends.items())


def _copy_assets(assets: Path | None, folder: Path) -> list[Artifact]:
    """Tokenizer and model configuration, so that the device needs no hub."""
    if assets is None:
        return []
    sources = [assets / name for name in sorted({CONFIG_NAME, *ASSET_NAMES})]
    return [
        _artifact("asset", Path(shutil.copyfile(source, folder / source.name)))
        for source in sources
        if source.is_file()
    ]


def _artifact(
    kind: str,
    file: Path,
    *,
    form: str | None = None,
    rank: int | None = None,
    precision: str | None = None,
    weight_bytes: int | None = None,
    sha256: str | None = None,
) -> Artifact:
    return Artifact(
        kind=kind,
        path=file.name,
        sha256=sha256 or sha256_of(file),
        size_bytes=file.stat().st_size,
        form=form,
        rank=rank,
        precision=precision,
        weight_bytes=weight_bytes,
    )


def _versions() -> dict[str, str]:
    found = {}
    for tool in _TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[tool] = metadata.version(tool)
    return found
