"""How good could it have been? A bound on the quality of every policy that keeps the limits, by one that knows all.

The oracle chooses a rung, or none, for each single request and knows every arrival, its luck and the heat to come. It
is let off easily, so that no policy is above it: a request may be answered the moment it comes, in fractions, beside
others (only over each stretch of time must the work fit), and what it heats counts as little as it can. What is left is
a linear programme,

    maximise   sum of quality * x              x in [0, 1] for each request and rung, for each request at most 1 in all
    so that    rise at the end of each row     <= what the limit leaves above the recording
               joules from the battery         <= what it holds beyond its reserve
               work that arrives in and must   <= the length of the stretch
               be done by the end of a stretch

and every set of prices >= 0 for heat, joules and time gives a number that is at or above its optimum (Lagrange duality,
Boyd & Vandenberghe, Convex Optimization, 5.1.3):

    sum over requests of max(0, best of quality - price * what it takes)  +  sum of price * what there is

Prices are improved step by step (projected subgradient, AdaGrad's steps); the lowest number found is the bound. It is a
bound, not the optimum: it can be too high, never too low.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nsn_edge.runtimes.simulation.world import World

_STEPS = 250
_HEAT_ROWS = 240  # the rise is checked at so many rows at most: leaving some out only raises the bound
_STRETCH_ROWS = 10  # of the stretches into which the work must fit
_STEP_SIZE = 0.02


@dataclass(frozen=True)
class Bound:
    """What no policy that keeps the limits can exceed."""

    quality_per_request: float
    """Mean over all requests, a missed one counting 0: compare with `Outcome.quality_per_request`."""
    steps: int
    """Of improving the prices."""


def oracle_bound(world: World, steps: int = _STEPS) -> Bound:
    """The bound for a world with requests.

    Args:
        world: from `lay_out`.
        steps: more of them make the bound tighter; it is one with any number.
    """
    count = len(world.arrival_s)
    if count == 0:
        return Bound(0.0, 0)
    problem = _Problem(world)
    prices = np.zeros(problem.resources)
    squares = np.zeros(problem.resources)
    best = math.inf
    for _ in range(max(steps, 1)):
        value, slack = problem.price(prices)
        best = min(best, value)
        squares += slack**2
        prices = np.maximum(prices - _STEP_SIZE * slack / np.sqrt(squares + 1e-12), 0.0)
    return Bound(best / count, steps)


class _Problem:
    """The linear programme, laid out for pricing. Each resource is scaled so that there is 1 of it."""

    def __init__(self, world: World) -> None:
        self._requests = len(world.arrival_s)
        deadline_s = world.arrival_s + world.scenario.deadline_ms / 1000.0
        first = np.searchsorted(world.time_s, world.arrival_s, side="right") - 1
        last = np.maximum(np.searchsorted(world.time_s, deadline_s, side="left") - 1, first)
        slowdown = _least(world.slowdown, first, last)
        self._energy_j = world.energy_j
        self._busy_s = world.service_s * slowdown[:, None]
        # What cannot be in time is worth nothing.
        in_time = self._busy_s <= world.scenario.deadline_ms / 1000.0
        self._quality = np.where(in_time, world.quality, -np.inf)
        self._heat = _Heat(world, first, last)
        self._battery = _battery_share(world, first, last)
        self._stretches = [
            _stretches(world, deadline_s, offset) for offset in range(0, _STRETCH_ROWS, _STRETCH_ROWS // 2)
        ]
        self.resources = self._heat.rows + 1 + sum(len(length_s) for _, length_s in self._stretches)

    def price(self, prices: np.ndarray) -> tuple[float, np.ndarray]:
        """The dual function at some prices (per request), and what each resource has left there.

        Args:
            prices: float64 `[resources]`, 0 or more.
        """
        heat, battery, *rest = np.split(prices, self._splits())
        per_joule = self._heat.per_joule(heat) + battery[0] * self._battery
        per_second = sum(
            (np.append(price / length_s, 0.0)[at] for (at, length_s), price in zip(self._stretches, rest, strict=True)),
            np.zeros(self._requests),
        )
        gain = self._quality - self._requests * (
            per_joule[:, None] * self._energy_j + per_second[:, None] * self._busy_s
        )
        rung = gain.argmax(axis=1)
        row = np.arange(self._requests)
        taken = gain[row, rung] > 0.0
        joules = np.where(taken, self._energy_j[row, rung], 0.0)
        seconds = np.where(taken, self._busy_s[row, rung], 0.0)
        used = [self._heat.used(joules), np.array([float(joules @ self._battery)])]
        for at, length_s in self._stretches:
            used.append(np.bincount(at, seconds, len(length_s) + 1)[:-1] / length_s)
        value = float(np.maximum(gain[row, rung], 0.0).sum()) + self._requests * float(prices.sum())
        return value, 1.0 - np.concatenate(used)

    def _splits(self) -> list[int]:
        sizes = [self._heat.rows, 1, *(len(length_s) for _, length_s in self._stretches)]
        return list(np.cumsum(sizes)[:-1])


class _Heat:
    """How the energy of each request warms the device later on.

    Work that heats later, or in a shorter burst, is warmer at the end of a row than work that heats evenly over the row
    of its arrival; and a row that ends before the deadline may not have the work yet. So what is counted is the least.
    """

    def __init__(self, world: World, first: np.ndarray, last: np.ndarray) -> None:
        self._requests = len(first)
        tau_s = world.thermal.time_constant_s
        end_s = world.time_s + world.step_s
        checked, room_c = _room(world)
        self.rows = len(checked)
        self._decay = np.exp(-np.diff(end_s[checked]) / tau_s)
        self._room_c = room_c
        # The first checked row by whose end the work is surely done; rows beyond the last one count nowhere.
        self._at = np.searchsorted(checked, last)
        counts = self._at < self.rows
        step = world.step_s[first] / tau_s
        evenly = np.divide(-np.expm1(-step), step, out=np.ones_like(step), where=step > 0.0)
        seen_s = np.append(end_s[checked], np.inf)[self._at]
        per_joule = evenly / world.thermal.heat_capacity_j_per_c * np.exp(-(seen_s - end_s[first]) / tau_s)
        self._c_per_j = np.where(counts, per_joule, 0.0)

    def per_joule(self, prices: np.ndarray) -> np.ndarray:
        """float64 `[requests]`: what a joule of each costs at the prices of the checked rows."""
        total = np.zeros(self.rows + 1)
        for row in range(self.rows - 1, -1, -1):
            later = total[row + 1] * self._decay[row] if row + 1 < self.rows else 0.0
            total[row] = prices[row] / self._room_c[row] + later
        costs: np.ndarray = self._c_per_j * total[self._at]
        return costs

    def used(self, joules: np.ndarray) -> np.ndarray:
        """float64 `[rows]`: of the room at each checked row."""
        warmth_c = np.bincount(self._at, joules * self._c_per_j, self.rows + 1)[: self.rows]
        for row in range(1, self.rows):
            warmth_c[row] += warmth_c[row - 1] * self._decay[row - 1]
        used: np.ndarray = warmth_c / self._room_c
        return used


def _room(world: World) -> tuple[np.ndarray, np.ndarray]:
    """Rows at whose end the heat is checked, and how much the rungs may add there. Rows that are too warm without any
    work are left out: no policy could help it."""
    if world.limit_c is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    surroundings_c, rise_c = np.zeros(len(world.time_s)), 0.0
    for row, (warmer_c, step_s) in enumerate(zip(world.rise_c, world.step_s, strict=True)):
        rise_c = world.thermal.after(rise_c, float(warmer_c) / world.thermal.resistance_c_per_w, float(step_s))
        surroundings_c[row] = rise_c
    # The recorded temperature holds for a row, so at its end both rows' must leave room.
    recorded_c = np.maximum(world.recorded_c, np.append(world.recorded_c[1:], -np.inf))
    room_c = world.limit_c - recorded_c - surroundings_c
    stride = -(-len(room_c) // _HEAT_ROWS)
    tightest = [start + int(np.argmin(room_c[start : start + stride])) for start in range(0, len(room_c), stride)]
    checked = np.array([row for row in tightest if room_c[row] > 0.0], dtype=np.int64)
    return checked, room_c[checked]


def _battery_share(world: World, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """float64 `[requests]`: which part of the battery a joule of each request takes; 0 where mains may pay."""
    battery = world.scenario.battery
    if battery is None:
        return np.zeros(len(first))
    off = ~world.on_mains
    kept_j = battery.capacity_wh * 3600.0 * (battery.start_pct - battery.reserve_pct) / 100.0
    charged_j = battery.charge_w * float(world.step_s[world.on_mains].sum())  # as if it were never full
    left_j = kept_j + charged_j - float((world.base_w * world.step_s)[off].sum())
    if left_j <= 0.0:
        return np.zeros(len(first))  # no policy could keep the reserve
    # Done by the deadline, or by the end of the world.
    mains_before = np.append(0, np.cumsum(world.on_mains))
    share: np.ndarray = np.where(mains_before[last + 1] == mains_before[first], 1.0 / left_j, 0.0)
    return share


def _stretches(world: World, deadline_s: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Which stretch holds each request from its arrival to its deadline (one too many: none), and their lengths."""
    starts = np.unique(np.append(0, np.arange(offset, len(world.time_s), _STRETCH_ROWS)))
    begin_s = world.time_s[starts]
    end_s = np.append(begin_s[1:], world.end_s)
    at = np.searchsorted(begin_s, world.arrival_s, side="right") - 1
    long_enough = end_s - begin_s > 0.0
    within = (deadline_s <= end_s[at]) & long_enough[at]
    return np.where(within, at, len(starts)), np.where(long_enough, end_s - begin_s, 1.0)


def _least(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The least of `values[first..last]` for each pair."""
    least: np.ndarray = values[first].copy()
    for ahead in range(1, int((last - first).max(initial=0)) + 1):
        np.minimum(least, values[np.minimum(first + ahead, last)], out=least)
    return least
