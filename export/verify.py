"""Does every exported graph say what torch says?

Each static rung and each dynamic form is run in onnxruntime on real inputs of several shapes and compared with the
torch model at the same rank, a decoder's cache included. The dynamic forms are checked at every rung and at ranks
between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nsn_edge.bundle import Bundle, MappedFactors
from nsn_edge.bundle.manifest import FORMS_OF_RUNGS, GRAPH_FORMS, RANK_INPUT, Artifact
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.errors import EngineError, UsageError, VerificationError
from nsn_edge.export.half import with_weights_as
from nsn_edge.export.precision.stored import check_stored
from nsn_edge.export.reference import Batch, Case, Reference
from nsn_edge.ladder import Rung
from nsn_edge.progress import Progress, silent

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.5, "int4": 0.2}
"""Largest allowed difference by the graph's precision, relative to the larger of 1 and the tensor's largest magnitude.
On MiniLM two sound float32 engines that sum in another order differ by 2e-5 of it at most; one layer short of one
direction at a rung, by 1.2e-3 and more. float16 itself has steps of 1e-3 there, and sound engines differ by up to 3e-3
on small random models.

What is quantised is compared with torch computing with the same integers (`precision.simulated`), not with the model as
it was: the loss of quantising is a matter of quality, not of agreement. Its limits are wide all the same. Activations
are rounded to steps, so a sum that differs in its last bit may land a whole step away, and from there on two sound
engines drift apart by up to what quantising costs (0.25 on MiniLM in int8; exactly 0 where no sum was on the brink).
So integers and scales are compared by themselves besides, to the last bit (`precision.stored`)."""


@dataclass(frozen=True)
class Check:
    """One graph at one rank against torch, over all batches."""

    form: str
    """The graph's form."""
    rank: int
    """The model's rank."""
    dense: bool
    """Whether this is the dense original."""
    precision: str
    """Of the graph's weights; decides the tolerance."""
    max_abs_diff: float
    """The largest absolute difference of any element."""
    max_relative_diff: float
    """The same, relative to the larger of 1 and the largest magnitude of its tensor: what is held to the tolerance."""
    tolerance: float
    """The limit it was held to."""
    worst_tensor: str
    """The output in which that was found."""
    worst_batch: int
    """The batch in which that was found, counted from 0."""

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; a NaN is not."""
        return self.max_relative_diff <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify_bundle`."""

    checks: tuple[Check, ...]
    """Every graph and rank that was compared."""

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def raise_if_failed(self) -> None:
        """Raises:
        VerificationError: a check failed; names the worst one and its tensor."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            worst = max(failed, key=lambda check: np.nan_to_num(check.max_relative_diff, nan=np.inf))
            raise VerificationError(
                f"{len(failed)} of {len(self.checks)} checks disagree with torch; the worst is {worst.form} at rank "
                f"{worst.rank}: {worst.worst_tensor} differs by {worst.max_abs_diff:.3g} in batch {worst.worst_batch} "
                f"(relative {worst.max_relative_diff:.3g}, tolerance {worst.tolerance:.3g})",
                "is this the checkpoint that the bundle was exported from? if so, export it again",
            )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types. A difference that is not a number becomes null."""
        checks = []
        for check in self.checks:
            item = asdict(check)
            for key in ("max_abs_diff", "max_relative_diff"):
                item[key] = item[key] if np.isfinite(item[key]) else None
            checks.append({**item, "passed": check.passed})
        return {"schema_version": 1, "kind": "verification", "passed": self.passed, "checks": checks}


def verify_bundle(
    bundle: Bundle,
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    *,
    tolerance: float | None = None,
    progress: Progress = silent,
) -> Verification:
    """Compare every graph of a bundle with torch.

    Args:
        bundle: what was exported.
        checkpoint: what it was exported from.
        batches: inputs by name; different batch sizes and lengths make the comparison worth more, since a size that
            the tracer fixed shows only in another. A decoder's hold tokens alone (see `reference`).
        tolerance: None for that of each graph's precision, see `TOLERANCES`.
        progress: hears of each graph.

    Raises:
        UsageError: no batches, or a bundle of another model.
        VerificationError: a quantised weight is not the checkpoint's, or an output has another shape than torch's.
        EngineError: onnxruntime cannot load or run a graph.
    """
    if not batches:
        raise UsageError("nothing to verify with: no input batches")
    # The rungs are the bundle's choice; the layers and their curves must be the checkpoint's.
    if bundle.manifest.ladder.layers != checkpoint.ladder.layers:
        raise UsageError(f"{bundle.path} was exported from another model than this checkpoint")
    pairs = [(artifact, rank) for artifact in _graphs(bundle) for rank in _ranks(bundle, artifact)]
    checkpoint = with_weights_as(checkpoint, bundle.manifest.precision)
    names = [spec.name for spec in bundle.manifest.inputs]
    reference = Reference(checkpoint.model, names, batches, bundle.manifest.quantisation)
    rungs = [Rung(rung.rank, rung.dense) for rung in bundle.manifest.ladder.rungs]
    checks: list[Check] = []
    session: Any = None
    loaded: Artifact | None = None
    for artifact, rank in pairs:
        progress("verify", len(checks), len(pairs))
        if artifact is not loaded:
            if bundle.manifest.quantisation:
                check_stored(bundle, artifact, checkpoint.model, bundle.manifest.quantisation)
            session, loaded = _open(bundle, artifact), artifact
        of_a_rung = artifact.form in FORMS_OF_RUNGS or artifact.rank is not None
        dense = of_a_rung and Rung(rank, dense=True) in rungs
        cases = reference.at(rank, dense)
        extra = _extra_inputs(bundle, artifact, rank)
        outputs = (_run(session, artifact, {**case.feeds, **extra}, rank) for case in cases)
        limit = TOLERANCES[artifact.precision or "fp32"] if tolerance is None else tolerance
        checks.append(_compare(artifact, rank, dense, outputs, cases, limit))
    progress("verify", len(pairs), len(pairs))
    return Verification(tuple(checks))


def _graphs(bundle: Bundle) -> list[Artifact]:
    graphs = [artifact for artifact in bundle.manifest.artifacts if artifact.kind == "graph"]
    return sorted(graphs, key=lambda artifact: (GRAPH_FORMS.index(artifact.form or ""), artifact.rank or 0))


def _ranks(bundle: Bundle, artifact: Artifact) -> list[int]:
    """The graph of one rung has its own; any other is checked at the rungs, at both ends and between."""
    if artifact.rank is not None:
        return [artifact.rank]
    top = bundle.manifest.ladder.max_rank
    rungs = set(bundle.manifest.ladder.ranks)
    stops = sorted(rungs | {1, top})
    between = {(low + high) // 2 for low, high in itertools.pairwise(stops)}
    return sorted(rungs | {1, top} | between)


def _extra_inputs(bundle: Bundle, artifact: Artifact, rank: int) -> Batch:
    """What a form takes besides the model's inputs."""
    if artifact.form == "static":
        return {}
    if artifact.form == "bound":
        weights = MappedFactors(bundle)
        return weights.at(rank) if artifact.rank is None else weights.originals()
    return {RANK_INPUT: np.array(rank, dtype=np.int64)}


def _open(bundle: Bundle, artifact: Artifact) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and would be printed besides
    try:
        return onnxruntime.InferenceSession(str(bundle.file(artifact)), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"onnxruntime cannot load {artifact.path}: {str(error)[:300]}") from error


def _run(session: Any, artifact: Artifact, batch: Batch, rank: int) -> dict[str, np.ndarray]:
    names = [value.name for value in session.get_inputs()]
    feeds = {name: batch[name] for name in names if name in batch}
    try:
        outputs = session.run(None, feeds)
    except Exception as error:
        raise EngineError(f"onnxruntime cannot run {artifact.path} at rank {rank}: {str(error)[:300]}") from error
    return {value.name: output for value, output in zip(session.get_outputs(), outputs, strict=True)}


def _compare(
    artifact: Artifact,
    rank: int,
    dense: bool,
    outputs: Iterable[Mapping[str, np.ndarray]],
    cases: Sequence[Case],
    tolerance: float,
) -> Check:
    worst: tuple[float, float, str, int] | None = None
    precision = artifact.precision or "fp32"
    for found, case in zip(outputs, cases, strict=True):
        wanted, index = case.wanted, case.batch
        # Outputs match by name where torch names its own (transformers), else by order (plain modules).
        named = all(name in wanted for name in found)
        order = list(found) if named else list(wanted)
        for name, key in zip(found, order, strict=False):
            a, b = found[name].astype(np.float64), wanted[key].astype(np.float64)
            if a.shape != b.shape:
                raise VerificationError(
                    f"{artifact.path} at rank {rank}: {name} has shape {a.shape}, torch says {b.shape}",
                    "the trace fixed a size that should vary: name it in dynamic_axes",
                )
            if not a.size:
                continue
            difference = float(np.max(np.abs(a - b)))
            relative = difference / max(1.0, float(np.max(np.abs(b))))
            if worst is None or not relative <= worst[0]:  # a NaN is worse than any number
                worst = (relative, difference, name, index)
                if np.isnan(relative):
                    return Check(
                        artifact.form or "", rank, dense, precision, difference, relative, tolerance, name, index
                    )
    if worst is None:
        raise VerificationError(f"{artifact.path} at rank {rank} gave nothing to compare")
    relative, difference, name, index = worst
    return Check(artifact.form or "", rank, dense, precision, difference, relative, tolerance, name, index)
