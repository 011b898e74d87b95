"""How much of the top rung's quality each rung keeps, measured with the exported graphs themselves.

For sentence embeddings the measure is the Spearman rank correlation between all pairwise similarities of a set of texts
at a rung and at the top rung: 1 means that every ranking of "which is closer" is the same. It needs no labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nsn_edge.metrics import pairwise_similarity_spearman
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.text import TextEmbedder


def measure_quality(
    session: EdgeSession,
    texts: Sequence[str],
    *,
    reference: np.ndarray | None = None,
    progress: Progress = silent,
) -> dict[int, dict[str, float]]:
    """`{rank: {"spearman": ...}}` for every rung of the session's bundle, against its top rung.

    Args:
        session: of a bundle for feature extraction with a tokenizer, opened with the static form.
        texts: held out from calibration; 500 or more make the third digit steady.
        reference: embeddings `[texts, features]` to compare with in place of the top rung's: for a bundle whose top
            rung is itself an approximation, those of the model that it was quantised from.
        progress: hears of each rung.

    Raises:
        UsageError, BundleError: as `TextEmbedder`.
    """
    embedder = TextEmbedder(session)
    ranks = session.bundle.manifest.ladder.ranks
    quality = {}
    if reference is None:
        reference = embedder.embed(texts, rank=ranks[-1])
        quality[ranks[-1]] = {"spearman": 1.0}
    for done, rank in enumerate(reversed(ranks), start=1):
        if rank not in quality:
            quality[rank] = {"spearman": pairwise_similarity_spearman(reference, embedder.embed(texts, rank=rank))}
        progress("quality", done, len(ranks))
    return dict(sorted(quality.items()))
