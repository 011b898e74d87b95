"""What `verify` and `demo` both do: choose real inputs, compare with torch, measure and record quality.

This composes rooms (export and runtime), so no room imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nsn_edge.bundle import Bundle, TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.corpus import documentation_corpus
from nsn_edge.errors import UsageError
from nsn_edge.export.inputs import array_inputs, given_names, text_inputs
from nsn_edge.export.reference import Reference
from nsn_edge.export.verify import Verification, verify_bundle
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.engines.base import check_inputs
from nsn_edge.runtimes.quality import measure_quality
from nsn_edge.runtimes.session import Answer, EdgeSession
from nsn_edge.runtimes.text import TextEmbedder

GENERATION = "text-generation"
DECODER_TEXTS = 32
"""Each costs a prefill per rung."""
DECODER_TEXT_TOKENS = 64


def verify_on(
    bundle: Bundle,
    checkpoint: Checkpoint,
    texts: Sequence[str] | None = None,
    arrays: Path | None = None,
    *,
    tolerance: float | None = None,
    progress: Progress = silent,
) -> Verification:
    """Verify a bundle on texts (by default held-out sentences of Python's documentation), or on an `.npz` file.

    Raises:
        UsageError: no text can be fed to this model, an array is missing or has values that the model cannot take, or
            the tolerance is not a positive number.
        EngineError: an array has another dtype or shape, or onnxruntime cannot load or run a graph.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise UsageError(f"a tolerance is a number above 0, not {tolerance}")
    names = [spec.name for spec in bundle.manifest.inputs]
    if arrays is not None:
        return _verify_on_arrays(bundle, checkpoint, arrays, names, tolerance, progress)
    if checkpoint.assets is None or not (checkpoint.assets / "tokenizer_config.json").is_file():
        raise UsageError(
            f"{bundle.path} has no tokenizer, so text cannot verify it", "give arrays with --inputs FILE.npz"
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.assets, trust_remote_code=False)
    chosen = documentation_corpus().held_out if texts is None else texts
    batches = text_inputs(tokenizer, chosen, names, bundle.manifest.task.max_length)
    return verify_bundle(bundle, checkpoint, batches, tolerance=tolerance, progress=progress)


def _verify_on_arrays(
    bundle: Bundle,
    checkpoint: Checkpoint,
    file: Path,
    names: Sequence[str],
    tolerance: float | None,
    progress: Progress,
) -> Verification:
    batches = array_inputs(file, names)
    given = [spec for spec in bundle.manifest.inputs if spec.name in given_names(names)]
    for batch in batches:
        check_inputs(str(file), given, batch)
    try:
        return verify_bundle(bundle, checkpoint, batches, tolerance=tolerance, progress=progress)
    except (IndexError, ValueError, RuntimeError) as error:  # torch's, about values: names, types and shapes fit
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"torch cannot run the arrays of {file}: {reason}",
            "are the ids within the vocabulary, and is the sequence as long as the model takes?",
        ) from error


def has_quality(task: TaskSpec) -> bool:
    """Whether `record_quality` knows a measure for a task."""
    return task.pooling is not None or task.name == GENERATION


def record_quality(
    bundle: Bundle, checkpoint: Checkpoint, texts: Sequence[str] | None = None, *, progress: Progress = silent
) -> Bundle:
    """Measure every rung's quality on texts (by default held-out sentences) and write it into the manifest.

    The measure is the agreement with the top rung. Where that is not in float32 it is the agreement with what the top
    rung was made of, the checkpoint in its own floats, so that bundles of all precisions can be compared.

        embedders   `spearman`: of all pairwise similarities
        decoders    `top1_agreement`: the share of tokens of up to `DECODER_TEXTS` texts after which the same token is
                    the likeliest next one
    """
    chosen = documentation_corpus().held_out if texts is None else texts
    with EdgeSession.open(bundle) as session:
        if bundle.manifest.task.name == GENERATION:
            return bundle.record_quality(_top1_agreement(session, checkpoint, chosen[:DECODER_TEXTS], progress))
        reference = None
        if bundle.manifest.precision != "fp32":
            reference = TextEmbedder(_TorchSession(bundle, checkpoint)).embed(chosen)  # type: ignore[arg-type]
        return bundle.record_quality(measure_quality(session, chosen, reference=reference, progress=progress))


def _top1_agreement(
    session: EdgeSession, checkpoint: Checkpoint, texts: Sequence[str], progress: Progress
) -> dict[int, dict[str, float]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.assets, trust_remote_code=False)
    manifest = session.bundle.manifest
    names = [spec.name for spec in manifest.inputs]
    most = min(DECODER_TEXT_TOKENS, manifest.task.max_length or DECODER_TEXT_TOKENS)
    batches = [{"input_ids": np.array([ids[:most]])} for text in texts if (ids := tokenizer(text)["input_ids"])]
    top = manifest.ladder.rungs[-1]
    reference = Reference(checkpoint.model, names, batches)
    firsts = {case.batch: case for case in reversed(reference.at(top.rank, top.dense))}  # each batch's prefill
    quality = {}
    for done, rank in enumerate(manifest.ladder.ranks, start=1):
        agreed = [
            session.run(_as_declared(case.feeds, session.bundle), rank).outputs["logits"].argmax(axis=-1)
            == case.wanted["logits"].argmax(axis=-1)
            for case in firsts.values()
        ]
        quality[rank] = {"top1_agreement": float(np.concatenate(agreed, axis=1).mean())}
        progress("quality", done, len(manifest.ladder.ranks))
    return quality


def _as_declared(feeds: Mapping[str, np.ndarray], bundle: Bundle) -> dict[str, np.ndarray]:
    """Torch's empty caches are of the checkpoint's float, which may not be the bundle's."""
    return {spec.name: np.asarray(feeds[spec.name], dtype=spec.dtype) for spec in bundle.manifest.inputs}


class _TorchSession:
    """What `TextEmbedder` asks of a session, answered by torch at the bundle's top rung."""

    def __init__(self, bundle: Bundle, checkpoint: Checkpoint) -> None:
        self.bundle = bundle
        self._checkpoint = checkpoint

    def run(self, inputs: Mapping[str, np.ndarray], rank: int | None = None) -> Answer:
        top = self.bundle.manifest.ladder.rungs[-1]
        names = [spec.name for spec in self.bundle.manifest.inputs]
        (case,) = Reference(self._checkpoint.model, names, [inputs]).at(top.rank, top.dense)
        return Answer(dict(case.wanted), top.rank, 0.0)
