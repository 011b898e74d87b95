"""What `verify` and `demo` both do: choose real inputs, compare with torch, measure and record quality.

This composes rooms (export and runtime), so no room imports it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from nsn_edge.bundle import Bundle
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.corpus import documentation_corpus
from nsn_edge.errors import UsageError
from nsn_edge.export.inputs import array_inputs, given_names, text_inputs
from nsn_edge.export.verify import Verification, verify_bundle
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.engines.base import check_inputs
from nsn_edge.runtimes.quality import measure_quality
from nsn_edge.runtimes.session import EdgeSession


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


def record_quality(bundle: Bundle, texts: Sequence[str] | None = None, *, progress: Progress = silent) -> Bundle:
    """Measure every rung's quality on texts (by default held-out sentences) and write it into the manifest."""
    chosen = documentation_corpus().held_out if texts is None else texts
    with EdgeSession.open(bundle) as session:
        return bundle.record_quality(measure_quality(session, chosen, progress=progress))
