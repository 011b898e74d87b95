"""The closed loop: what a policy decides changes what the device will say next.

    row of the world --> reading (heat, battery, work so far) --> policy --> rung
            ^                                                                 |
            |        power of the rung's work                                 v
            +---- heat, battery, throttling <-------- requests served, first come first served

One server, one queue. A request is served at the rung that holds when it begins. One that has not begun by its deadline
is given up, one that meets a full queue is refused, and one that ends too late was answered and missed its deadline all
the same. Time is simulated: twenty minutes take a second.
"""

from __future__ import annotations

from dataclasses import replace

from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.policy.base import PolicyState, RankPolicy
from nsn_edge.runtimes.simulation.outcome import DeviceMoment, Outcome
from nsn_edge.runtimes.simulation.result import RungSwitch
from nsn_edge.runtimes.simulation.server import RequestServer
from nsn_edge.runtimes.simulation.world import World
from nsn_edge.runtimes.telemetry.base import Reading


def run_closed_loop(world: World, policy: RankPolicy, progress: Progress = silent) -> Outcome:
    """Let a policy live through a world.

    Args:
        world: from `lay_out`.
        policy: bound to a ladder with the ranks of the world's costs.
        progress: hears of the rows done.

    Raises:
        RankError: the policy decides for a rank that the world has no costs of.
    """
    device = _Device(world)
    requests = RequestServer(world)
    timeline: list[DeviceMoment] = []
    switches: list[RungSwitch] = []
    state = PolicyState()
    rank: int | None = None
    rows = len(world.time_s)
    for row in range(rows):
        alive = device.died_at_s is None
        if alive:
            decision = policy.decide(device.reading(row, requests), state)
            world.costs.at(decision.rank)  # raises for a rank that is none of the rungs
            state = decision.state
            if rank is not None and decision.rank != rank:
                switches.append(RungSwitch(float(world.time_s[row]), rank, decision.rank, decision.reason))
            rank = decision.rank
        begin_c = device.temperature_c(row)
        work_j = requests.serve(row, rank if alive else None, device.slowdown(row))
        above_s = device.live(row, work_j)
        timeline.append(
            DeviceMoment(
                time_s=float(world.time_s[row]),
                rank=rank if alive else None,
                temperature_c=begin_c,
                battery_j=device.battery_j,
                on_mains=bool(world.on_mains[row]),
                power_w=device.power_w,
                waiting=requests.waiting,
                above_limit_s=above_s,
            )
        )
        progress("simulate", row + 1, rows)
    return Outcome(
        world=world,
        policy=policy.to_json(),
        timeline=tuple(timeline),
        switches=tuple(switches),
        answers=requests.answers(),
        battery_died_at_s=device.died_at_s,
    )


class _Device:
    """Heat and battery."""

    def __init__(self, world: World) -> None:
        self._world = world
        battery = world.scenario.battery
        self._capacity_j = battery.capacity_wh * 3600.0 if battery else None
        self.battery_j = self._capacity_j * battery.start_pct / 100.0 if battery and self._capacity_j else None
        self._rise_c = 0.0  # over what was recorded
        self._drawn_j = 0.0
        self.power_w = float(world.base_w[0])
        self.died_at_s: float | None = None

    def temperature_c(self, row: int) -> float:
        """When the row begins."""
        return float(self._world.recorded_c[row]) + self._rise_c

    def slowdown(self, row: int) -> float:
        """By the machine's other work, and by throttling."""
        return float(self._world.slowdown[row]) * (
            self._world.scenario.throttle_slowdown if self._is_throttling(row) else 1.0
        )

    def _is_throttling(self, row: int) -> bool:
        return self._world.limit_c is not None and self.temperature_c(row) > self._world.limit_c

    def reading(self, row: int, requests: RequestServer) -> Reading:
        """What the sensors say when the row begins. A sensor that was silent in the recording is silent here."""
        recorded = self._world.trace.readings[row]
        knows_heat = recorded.temperature_c is not None
        battery_pct, on_mains = recorded.battery_pct, recorded.on_mains
        if self.battery_j is not None and self._capacity_j is not None:
            battery_pct, on_mains = 100.0 * self.battery_j / self._capacity_j, bool(self._world.on_mains[row])
        return replace(
            recorded,
            temperature_c=self.temperature_c(row) if knows_heat else None,
            temperature_limit_c=self._world.limit_c,
            throttling=self._is_throttling(row) if knows_heat else None,
            battery_pct=battery_pct,
            battery_j=self.battery_j,
            on_mains=on_mains,
            power_mw=1000.0 * self.power_w,
            energy_j=self._drawn_j,
            rails_mw={},
            work=requests.work(float(self._world.time_s[row])),
        )

    def live(self, row: int, work_j: float) -> float:
        """One row of heat and power. Seconds above the limit are returned."""
        world = self._world
        step_s = float(world.step_s[row])
        if step_s <= 0.0:
            return 0.0
        work_w = work_j / step_s
        source_w = work_w + float(world.rise_c[row]) / world.thermal.resistance_c_per_w
        above_s = 0.0
        if world.limit_c is not None:
            room_c = world.limit_c - float(world.recorded_c[row])
            above_s = world.thermal.seconds_above(self._rise_c, source_w, step_s, room_c)
        self._rise_c = world.thermal.after(self._rise_c, source_w, step_s)
        self.power_w = float(world.base_w[row]) + work_w
        self._drawn_j += self.power_w * step_s
        self._discharge(row, step_s)
        return above_s

    def _discharge(self, row: int, step_s: float) -> None:
        battery = self._world.scenario.battery
        if battery is None or self.battery_j is None or self._capacity_j is None:
            return
        if self._world.on_mains[row]:
            self.battery_j = min(self.battery_j + battery.charge_w * step_s, self._capacity_j)
            return
        self.battery_j = max(self.battery_j - self.power_w * step_s, 0.0)
        if self.battery_j <= 0.0 and self.died_at_s is None:
            self.died_at_s = float(self._world.time_s[row]) + step_s
