"""The frontier as numbers: points, what they lose, and how well the rest of the curve foretells them.

    loss        what dense has and this rank has not, in points of 100          (levels below)
    off line    a rank between two rungs against the straight line between them (how far it may be trusted unmeasured)
    predicted   loss = M (1 - exp(-c left_out^g)), fitted where the model is large, read off where it is small

A quality that ends at 0 cannot lose more than it has (M); perplexity has no such end, and its law is c left_out^g.
If you know the big model you know the small one, says the last of them; the error says how far that is true.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nsn_edge.errors import UsageError

SCHEMA_VERSION = 1
KIND = "evaluation"

FIT_FRACTION = 0.5
"""A prediction is fitted on ranks that cost at least this fraction of the linear FLOPs, and judged on the others."""


@dataclass(frozen=True)
class Metric:
    """What is measured."""

    name: str
    """Its key in the manifest: `spearman`, `sts_spearman`, `accuracy` or `perplexity`."""
    title: str
    """Its name for people."""
    higher_is_better: bool = True
    """Whether more is better; what is not is a positive quantity that multiplies (perplexity)."""

    @property
    def unit(self) -> str:
        """What one unit of loss is."""
        return "points" if self.higher_is_better else "hundredths of a nat"

    def level(self, value: float) -> float:
        """The value on the scale on which losses are differences: in points of 100, or 100 times the logarithm, so that
        a loss of 1 is 1 % more perplexity."""
        return 100.0 * value if self.higher_is_better else -100.0 * math.log(value)

    def most_loss(self, best: float) -> float:
        """What there is to lose."""
        return max(self.level(best), 1e-9) if self.higher_is_better else math.inf

    def value(self, level: float) -> float:
        """The reverse of `level`."""
        return level / 100.0 if self.higher_is_better else math.exp(min(-level / 100.0, 700.0))


@dataclass(frozen=True)
class Point:
    """One rank."""

    rank: int
    """The model's rank."""
    dense: bool
    """Whether this is the dense original."""
    flops_fraction: float
    """MACs of the nested linear layers against the dense model's."""
    rung: bool
    """Whether it is a rung; otherwise it lies between two."""
    trained: bool | None
    """Whether this very rank was trained; None where the checkpoint does not say."""
    energy_kept: float
    """Of the layers' outputs, on average over layers, in `[0, 1]`."""
    left_out: float
    """Of the layers' outputs, on average weighted by how much the model's output suffers from what a layer leaves out,
    in `[0, 1]`: what the prediction is made from."""
    quality: float
    """As measured."""
    loss: float = 0.0
    """Against the reference, in the metric's unit; negative where it is better."""
    off_line: float | None = None
    """Between two rungs: how far above (positive) the straight line between them, by FLOPs; in the metric's unit."""
    predicted: float | None = None
    """The quality that `left_out` foretells; None where it cannot."""
    fitted: bool = False
    """Whether the prediction was fitted on this point."""


@dataclass(frozen=True)
class Decay:
    """How the energy of the layers' directions falls, the median layer."""

    share_of_rank: tuple[float, ...]
    """Shares of a layer's full rank, rising to 1."""
    energy_kept: tuple[float, ...]
    """The energy that each keeps, on average over layers."""
    exponential_r2: float | None
    """How well the energy of direction k follows `exp(-a k)`: R^2 of the straight line through its logarithm."""
    power_r2: float | None
    """The same for `k^-a`."""


@dataclass(frozen=True)
class Frontier:
    """Everything that `nsn-edge eval` measures."""

    metric: Metric
    """What the qualities are."""
    reference: str
    """What losses are against: `dense`, or `full rank` where the dense weights were not kept."""
    points: tuple[Point, ...]
    """Rising in rank; at most the last is dense."""
    decay: Decay
    """Of the energy."""
    prediction: tuple[float, float] | None
    """`(c, g)` of the fitted law; None where there was nothing to fit."""

    @property
    def worst_off_line(self) -> float | None:
        """The largest distance from the line; None without a rank between rungs."""
        return max((abs(point.off_line) for point in self.points if point.off_line is not None), default=None)

    @property
    def prediction_error(self) -> float | None:
        """Mean distance between predicted and measured loss, over points that were not fitted; None without any."""
        errors = [
            abs(self.metric.level(point.predicted) - self.metric.level(point.quality))
            for point in self.points
            if point.predicted is not None and not point.fitted and not point.dense
        ]
        return sum(errors) / len(errors) if errors else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, without schema version and kind."""
        return {
            "metric": self.metric.name,
            "metric_title": self.metric.title,
            "higher_is_better": self.metric.higher_is_better,
            "loss_unit": self.metric.unit,
            "reference": self.reference,
            "points": [asdict(point) for point in self.points],
            "worst_off_line": self.worst_off_line,
            "prediction": None
            if self.prediction is None
            else {
                "c": self.prediction[0],
                "g": self.prediction[1],
                "fitted_from_flops_fraction": FIT_FRACTION,
                "mean_error": self.prediction_error,
            },
            "decay": {
                key: list(value) if isinstance(value, tuple) else value for key, value in vars(self.decay).items()
            },
        }


def frontier(metric: Metric, reference: str, points: Sequence[Point], best: float, decay: Decay) -> Frontier:
    """Losses, distances from the line, and the prediction for measured points.

    Args:
        metric: what was measured.
        reference: what losses are against.
        points: rising in rank, with their measured qualities.
        best: the reference's quality.
        decay: of the energy.

    Raises:
        UsageError: no points, or ranks that do not rise.
    """
    if not points or any(b.rank <= a.rank for a, b in itertools.pairwise(points)):
        raise UsageError(f"a frontier is of ranks that rise, not {[point.rank for point in points]}")
    lost = [replace(point, loss=metric.level(best) - metric.level(point.quality)) for point in points]
    lined = [replace(point, off_line=None if point.rung else _off_line(point, lost)) for point in lost]
    law = _fit(lined, metric.most_loss(best))
    done = lined if law is None else [_predicted(point, metric, best, law) for point in lined]
    return Frontier(metric, reference, tuple(done), decay, law)


def _off_line(point: Point, points: Sequence[Point]) -> float | None:
    """The loss that the line between the neighbouring rungs has at a point's FLOPs, less the point's."""
    below = [other for other in points if other.rung and other.rank < point.rank]
    above = [other for other in points if other.rung and other.rank > point.rank]
    if not below or not above or above[0].flops_fraction <= below[-1].flops_fraction:
        return None
    low, high = below[-1], above[0]
    share = (point.flops_fraction - low.flops_fraction) / (high.flops_fraction - low.flops_fraction)
    return low.loss + share * (high.loss - low.loss) - point.loss


def _fit(points: Sequence[Point], most: float) -> tuple[float, float] | None:
    """`(c, g)` of the law by least squares in logarithms; of a single point with `g = 1`.

    Weighted by the loss: the noise of a quality is much the same everywhere, so in logarithms it is the larger, the
    smaller the loss. Measured on MiniLM (similarities, STS-B pairs, intents), that takes the error of what is foretold
    from 3.8, 1.2 and 4.9 points to 0.7, 0.4 and 2.1.
    """
    usable = [(point.left_out, _strain(point.loss, most)) for point in points if _fits(point)]
    if not usable:
        return None
    left_out, strain = np.log(np.array(usable)).T
    if len(usable) == 1 or float(np.ptp(left_out)) < 1e-6:
        return float(np.exp(strain.mean() - left_out.mean())), 1.0
    g, c = np.polyfit(left_out, strain, 1, w=np.exp(strain - strain.max()))
    return float(np.exp(c)), float(g)


def _fits(point: Point) -> bool:
    """Whether a point is one of the large model's that a law can be fitted to."""
    return not point.dense and point.flops_fraction >= FIT_FRACTION and point.left_out > 0 and point.loss > 0


def _strain(loss: float, most: float) -> float:
    """What the law says is `c left_out^g`: the loss itself while it is small, and without end as it nears `most`."""
    return loss if math.isinf(most) else -most * math.log1p(-min(loss / most, 1 - 1e-9))


def _predicted(point: Point, metric: Metric, best: float, law: tuple[float, float]) -> Point:
    if point.dense:
        return point
    c, g = law
    strain = c * point.left_out**g if point.left_out > 0 else 0.0
    most = metric.most_loss(best)
    loss = strain if math.isinf(most) else -most * math.expm1(-strain / most)
    return replace(point, predicted=metric.value(metric.level(best) - loss), fitted=_fits(point))
