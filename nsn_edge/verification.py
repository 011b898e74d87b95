"""What `verify` and `demo` both do: choose real inputs, compare with torch, measure and record quality.

This composes rooms (export and runtime), so no room imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nsn_edge.bundle import Bundle
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.corpus import documentation_corpus
from nsn_edge.errors import UsageError
from nsn_edge.export.inputs import array_inputs, text_inputs
from nsn_edge.export.verify import DEFAULT_TOLERANCE, Verification, verify_bundle
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.quality import measure_quality
from nsn_edge.runtimes.session import EdgeSession


def verify_on(
    bundle: Bundle,
    checkpoint: Checkpoint,
    texts: Sequence[str] | None = None,
    arrays: Path | None = None,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: Progress = silent,
) -> Verification:
    """Verify a bundle on texts (by default held-out sentences of Python's documentation), or on an `.npz` file.

    Raises:
        UsageError: no text can be fed to this model, or the inputs do not fit.
        EngineError: onnxruntime cannot load or run a graph.
    """
    names = [spec.name for spec in bundle.manifest.inputs]
    if arrays is not None:
        batches = array_inputs(arrays, names)
    elif checkpoint.assets is None or not (checkpoint.assets / "tokenizer_config.json").is_file():
        raise UsageError(
            f"{bundle.path} has no tokenizer, so text cannot verify it", "give arrays with --inputs FILE.npz"
        )
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint.assets, trust_remote_code=False)
        chosen = documentation_corpus().held_out if texts is None else texts
        batches = text_inputs(tokenizer, chosen, names, bundle.manifest.task.max_length)
    return verify_bundle(bundle, checkpoint, batches, tolerance=tolerance, progress=progress)


def record_quality(bundle: Bundle, texts: Sequence[str] | None = None, *, progress: Progress = silent) -> Bundle:
    """Measure every rung's quality on texts (by default held-out sentences) and write it into the manifest."""
    chosen = documentation_corpus().held_out if texts is None else texts
    with EdgeSession.open(bundle) as session:
        return bundle.record_quality(measure_quality(session, chosen, progress=progress))
