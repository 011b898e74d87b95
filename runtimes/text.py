"""Text in, embeddings out: tokenizer, session and pooling, as the bundle's task describes them.

texts --tokenizer.json--> input_ids, attention_mask --session--> token vectors --pool--> [n, d] --length 1-->
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.bundle import Bundle
from nsn_edge.errors import BundleError, MissingDependencyError, UsageError
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.engines import Array
from nsn_edge.runtimes.session import EdgeSession

TOKENIZER_FILE = "tokenizer.json"

_TOKENIZER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_FEATURES = "feature-extraction"
_INSTEAD = {"text-generation": "continue a text with --prompt", "text-classification": "classify a text with --text"}


@dataclass(frozen=True)
class TextEmbedding:
    """One text's embedding, and who made it."""

    vector: npt.NDArray[np.float32]
    """float32 `[d]`."""
    rank: int
    """That answered."""


class TextInputs:
    """Texts as the arrays that a bundle's graphs take; many threads may share one."""

    def __init__(self, bundle: Bundle, purpose: str) -> None:
        """
        Args:
            bundle: carries a tokenizer.
            purpose: what the texts are for, to say what a missing package would have done.

        Raises:
            UsageError: its graph takes more than a tokenizer gives.
            BundleError: it has no tokenizer, or one that cannot be read.
            MissingDependencyError: the package `tokenizers` is not installed.
        """
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in bundle.manifest.inputs}
        if strays := sorted(set(self._dtypes) - set(_TOKENIZER_INPUTS)):
            raise UsageError(f"the model takes {', '.join(strays)}, which no tokenizer gives", "give arrays instead")
        self._tokenizer = _load_tokenizer(bundle, purpose)

    def __call__(self, texts: Sequence[str]) -> dict[str, Array]:
        """The graph's inputs for a batch: int64 `[n, longest]` each, padded to the longest text."""
        encodings = self._tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        return {name: np.array(columns[name], dtype=dtype) for name, dtype in self._dtypes.items()}


class TextEmbedder:
    """Embeds texts with a session's bundle; many threads may share one."""

    def __init__(self, session: EdgeSession) -> None:
        """
        Args:
            session: of a bundle for feature extraction that carries a tokenizer; it stays the caller's to close.

        Raises:
            UsageError: the bundle is not for feature extraction, or its graph takes more than a tokenizer gives.
            BundleError: it has no tokenizer, or one that cannot be read.
            MissingDependencyError: the package `tokenizers` is not installed.
        """
        self.session = session
        """What answers."""
        manifest = session.bundle.manifest
        self._task = manifest.task
        if self._task.name != _FEATURES:
            raise UsageError(
                f"{session.bundle.path} is a bundle for {self._task.name}, not for {_FEATURES}",
                _INSTEAD.get(self._task.name, "give its inputs as arrays instead"),
            )
        self._inputs = TextInputs(session.bundle, "embedding text")
        self._output, self._per_token = _features(session.bundle)

    def embed(
        self,
        texts: Sequence[str],
        *,
        rank: int | None = None,
        batch_size: int = 16,
        progress: Progress = silent,
    ) -> npt.NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: at least one; longer ones than the task's `max_length` tokens are cut.
            rank: that answers; None for the session's current one, which may change between batches.
            batch_size: texts per inference; texts of like length go together, so little is padding.
            progress: hears of the texts done.

        Returns:
            float32 `[n, d]` in the order of the texts, of length 1 where the task says so.

        Raises:
            UsageError: there are no texts, one is not a string, or `batch_size` is below 1.
            RankError: as `EdgeSession.run`.
            EngineError: as `EdgeSession.run`.
        """
        if isinstance(texts, str) or not texts:
            raise UsageError("nothing to embed: give a list with at least one text")
        if strays := [text for text in texts if not isinstance(text, str)]:
            raise UsageError(f"a text to embed is a string, not {strays[0]!r}")
        if batch_size < 1:
            raise UsageError(f"a batch holds 1 text or more, not {batch_size}")
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows: list[npt.NDArray[np.float32]] = []
        for start in range(0, len(texts), batch_size):
            batch = [texts[index] for index in by_length[start : start + batch_size]]
            rows.append(self._embed_batch(batch, rank)[0])
            progress("embed", min(start + batch_size, len(texts)), len(texts))
        embeddings = np.concatenate(rows)
        in_order = np.empty_like(embeddings)
        in_order[by_length] = embeddings
        return in_order

    def embed_one(self, text: str, *, rank: int | None = None) -> TextEmbedding:
        """Embed a text and say at which rank, which matters where the session's current rank changes meanwhile.

        Raises:
            RankError: as `EdgeSession.run`.
            EngineError: as `EdgeSession.run`.
        """
        vectors, answered = self._embed_batch([text], rank)
        return TextEmbedding(vectors[0], answered)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Array]:
        """The graph's inputs for a batch: int64 `[n, longest]` each, padded to the longest text."""
        return self._inputs(texts)

    def _embed_batch(self, texts: Sequence[str], rank: int | None) -> tuple[npt.NDArray[np.float32], int]:
        inputs = self.tokenize(texts)
        answer = self.session.run(inputs, rank)
        features = answer.outputs[self._output].astype(np.float32, copy=False)
        if self._per_token:
            features = _mean(features, inputs["attention_mask"]) if self._task.pooling == "mean" else features[:, 0]
        if self._task.normalize:
            features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        return features.astype(np.float32, copy=False), answer.rank


def _mean(tokens: Array, attention_mask: Array) -> Array:
    """Mean of the vectors of real tokens: float32 `[n, length, d]`, `[n, length]` -> `[n, d]`."""
    weights = attention_mask[..., None].astype(np.float32)
    mean: Array = (tokens * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    return mean


def _features(bundle: Bundle) -> tuple[str, bool]:
    """Which output holds the features, and whether it has a vector per token (to be pooled) or per text."""
    outputs, pooling = bundle.manifest.outputs, bundle.manifest.task.pooling
    wanted = 2 if pooling is None else 3
    for spec in outputs:
        if spec.dtype.startswith("float") and len(spec.shape) == wanted:
            if pooling == "mean" and "attention_mask" not in {entry.name for entry in bundle.manifest.inputs}:
                raise UsageError(f"{bundle.path} wants mean pooling, but its model takes no attention_mask")
            return spec.name, pooling is not None
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs)
    raise UsageError(
        f"{bundle.path} with pooling {pooling} needs an output of {wanted} dimensions; it has {shapes}",
        "export it again with the pooling of the original model",
    )


def open_tokenizer(bundle: Bundle, purpose: str) -> Any:
    """The bundle's `tokenizers.Tokenizer`, as its file has it.

    Raises:
        BundleError: there is none, or it cannot be read.
        MissingDependencyError: the package `tokenizers`, which `purpose` needs, is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError("tokenizers", "ort", purpose) from error
    artifact = next((item for item in bundle.manifest.artifacts if item.path == TOKENIZER_FILE), None)
    if artifact is None:
        raise BundleError(
            f"{bundle.path} has no {TOKENIZER_FILE}", "export it again from a model folder that has a fast tokenizer"
        )
    try:
        return Tokenizer.from_file(str(bundle.file(artifact)))
    except Exception as error:  # the package raises plain Exception
        raise BundleError(f"{TOKENIZER_FILE} in {bundle.path} is not readable: {error}") from error


def _load_tokenizer(bundle: Bundle, purpose: str) -> Any:
    tokenizer = open_tokenizer(bundle, purpose)
    # A file may carry a fixed padding length (MiniLM's does), which would make every text cost the longest.
    padding = dict(tokenizer.padding or {"pad_id": tokenizer.token_to_id("[PAD]") or 0})
    tokenizer.enable_padding(**{**padding, "length": None})
    if bundle.manifest.task.max_length is not None:
        tokenizer.enable_truncation(max_length=bundle.manifest.task.max_length)
    return tokenizer
