"""From a checkpoint and a measure to its frontier: every rung, ranks between them, and what the energy foretells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from nsn_edge.checkpoint import Checkpoint
from nsn_edge.errors import UsageError
from nsn_edge.frontier.curve import Frontier, Point, frontier
from nsn_edge.frontier.energy import decay_of, energy_kept, layer_weights, mean_kept
from nsn_edge.frontier.measures import Measure
from nsn_edge.ladder import RankLadder, check_rank
from nsn_edge.layers import at_rank, nsn_layers
from nsn_edge.progress import Progress, silent
from nsn_edge.sensitivity import whole

ENERGY_EXAMPLES = 32
"""On how many examples the layers' energies and weights are taken; every layer is one pass over them."""


def measure_frontier(
    checkpoint: Checkpoint, measure: Measure, rungs: Sequence[int], between: int = 1, progress: Progress = silent
) -> Frontier:
    """Ask a measure of the whole model, of every rung, and of ranks between them.

    Args:
        checkpoint: the nested model.
        measure: see `nsn_edge.frontier.measures`.
        rungs: ranks, in any order. The dense original is one besides where its weights were kept.
        between: how many ranks to measure between two neighbouring rungs.
        progress: hears of every rank.

    Raises:
        RankError: a rung is outside `1..R`.
        UsageError: no rungs, or a negative number of ranks between them.
        NsnEdgeError: the model's output is not finite.
    """
    model, ladder = checkpoint.model, checkpoint.ladder
    for rank in rungs:
        check_rank(rank, ladder.max_rank)
    if not rungs:
        raise UsageError("a frontier without rungs", "name one rank or more")
    if between < 0:
        raise UsageError(f"the number of ranks between two rungs is 0 or more, not {between}")
    dense = all(layer.weight is not None for layer in nsn_layers(model).values())
    trained = frozenset(checkpoint.trained_ranks)
    stops = sorted({*rungs} - ({ladder.max_rank} if dense else set()))
    ends = [*stops, ladder.max_rank] if dense else stops
    ranks = sorted({*stops, *ranks_between(ladder, ends, between)})
    batches = measure.batches(ENERGY_EXAMPLES)
    kept = energy_kept(model, batches, progress)
    weights = layer_weights(model, kept, batches, checkpoint.task, progress)
    progress("measure", 0, len(ranks) + 1)
    with whole(model):
        best = measure(model)
    points = []
    for done, rank in enumerate(ranks, start=1):
        progress("measure", done, len(ranks) + 1)
        with at_rank(model, rank):
            quality = measure(model)
        points.append(
            Point(
                rank=rank,
                dense=False,
                flops_fraction=ladder.flops_fraction(rank),
                rung=rank in stops,
                trained=rank in trained if trained else None,
                energy_kept=mean_kept(kept, ladder.layer_ranks(rank)),
                left_out=1 - mean_kept(kept, ladder.layer_ranks(rank), weights),
                quality=quality,
            )
        )
    if dense:
        points.append(Point(ladder.max_rank, True, 1.0, True, None, 1.0, 0.0, best))
    progress("measure", len(ranks) + 1, len(ranks) + 1)
    return frontier(measure.metric, "dense" if dense else "full rank", points, best, decay_of(kept))


def ranks_between(ladder: RankLadder, rungs: Sequence[int], count: int) -> list[int]:
    """Ranks evenly spread between neighbouring rungs; those that alignment makes the same model as one of them or as
    each other are left out, and those that cost as much as the rung above, which nobody would choose.

    Args:
        ladder: says which layer ranks a rank means.
        rungs: rising.
        count: between two neighbours.
    """
    found = []
    for low, high in itertools.pairwise(rungs):
        models = {tuple(ladder.layer_ranks(rank).values()) for rank in (low, high)}
        for step in range(1, count + 1):
            rank = low + (high - low) * step // (count + 1)
            layer_ranks = tuple(ladder.layer_ranks(rank).values())
            if layer_ranks not in models and ladder.macs(rank) < ladder.macs(high):
                models.add(layer_ranks)
                found.append(rank)
    return found
