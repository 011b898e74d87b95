"""PI on temperature: the controller itself, and thermal policies in a closed loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policy_cases import COSTS, HALF, LADDER, LOWEST, TOP, after
from warm_body import course

from nsn_edge.errors import PolicyError
from nsn_edge.runtimes.policy import Pi, PolicyState, RungLimits, RungPolicy, StepWise
from nsn_edge.runtimes.policy.limiter import Rungs
from nsn_edge.runtimes.policy.pi import power_shares
from nsn_edge.runtimes.telemetry import Reading


def policy(**settings: float) -> RungPolicy:
    """With gains of round numbers."""
    return RungPolicy(
        RungLimits(0.25, 20.0, pi=Pi(**{"gain_per_c": 0.05, "integral_per_c_s": 0.002, **settings})), LADDER
    )


def at(time_s: float, heat_c: float, limit_c: float = 100.0) -> Reading:
    return Reading(time_s, temperature_c=heat_c, temperature_limit_c=limit_c)


def test_the_first_output_is_the_sustainable_share_and_the_proportional_part() -> None:
    # Target 95 °C. At it half of the power; 4 degrees above half less 4 x 5 %; 4 below half and 4 x 10 %.
    for heat_c, share, rank in ((95.0, 50.0, HALF), (99.0, 30.0, LOWEST), (91.0, 90.0, LADDER.ranks[3])):
        decision = policy().decide(at(0.0, heat_c), PolicyState())
        assert decision.rank == rank
        assert decision.reason == (
            f"temperature {heat_c:g} °C, target 95 °C: {share:g} % of the top rung's power, rank {rank} at most"
        )
    assert policy().decide(at(0.0, 85.0), PolicyState()).rank == TOP
    assert policy().decide(at(0.0, 100.0), PolicyState()).rank == LOWEST


def test_the_integral_learns_what_the_device_can_shed() -> None:
    hot, cool = policy(), policy()
    state = after(hot, *(at(float(n), 96.0) for n in range(101)))
    assert state.pi is not None
    assert state.pi.integral == pytest.approx(-100 * 0.002)
    state = after(cool, *(at(float(n), 94.0) for n in range(101)))
    assert state.pi is not None
    assert state.pi.integral == pytest.approx(100 * 0.002)


def test_no_windup() -> None:
    def integral(*readings: Reading) -> float:
        state = after(policy(), *readings)
        assert state.pi is not None
        return state.pi.integral

    assert integral(*(at(60.0 * n, 20.0) for n in range(100))) == 0.0, "every rung is allowed anyway"
    assert integral(*(at(float(n), 99.0) for n in range(1000))) == -0.5, "the output ends at nothing"
    assert integral(at(0.0, 94.0), at(1e6, 94.0)) == pytest.approx(5 * 0.002), "a suspend is no evidence"
    assert integral(at(1e6, 94.0), at(0.0, 94.0)) == 0.0, "nor is a clock that jumps back"
    assert integral(at(0.0, 99.9), at(1.0, 99.9)) == pytest.approx(-4.9 * 0.002)
    assert integral(at(0.0, 180.0, 200.0), at(1.0, 199.9, 200.0)) == pytest.approx(-4.9 * 0.002)
    cut_off = after(policy(integral_cutoff_c=1.0), at(0.0, 99.0), at(1.0, 99.0))
    assert cut_off.pi is not None
    assert cut_off.pi.integral == pytest.approx(-1.0 * 0.002)


def test_a_forbidden_rung_needs_the_band_as_well() -> None:
    state = after(policy(), at(0.0, 96.0))
    assert state.rank == LADDER.ranks[1]
    assert state.pi is not None
    for heat_c, cap in ((94.9, LADDER.ranks[1]), (94.5, HALF)):  # 51 % and 55 % of the power, and the rung takes 50 %
        risen = policy().decide(at(0.0, heat_c), state).state
        assert risen.pi is not None
        assert risen.pi.cap == cap
    assert policy().decide(at(0.0, 94.9), PolicyState()).rank == HALF, "what was not forbidden needs no band"


def test_shares_are_of_energy_where_that_is_known_and_never_fall() -> None:
    by_flops = power_shares(Rungs(LADDER))
    assert by_flops == pytest.approx([LADDER.flops_fraction(rank) for rank in LADDER.ranks])
    odd = replace(
        COSTS, rungs=tuple(replace(cost, energy_mj=mj) for cost, mj in zip(COSTS.rungs, (3, 1, 2, 4, 4), strict=True))
    )
    assert power_shares(Rungs(LADDER, odd)) == (0.75, 0.75, 0.75, 1.0, 1.0)


@pytest.mark.parametrize("table", [{"pi": Pi()}, {"step_wise": StepWise()}], ids=["pi", "step_wise"])
@pytest.mark.parametrize("tau_s", [15.0, 60.0, 240.0])
def test_in_a_closed_loop_the_limit_holds_and_the_rung_does_not_flap(table: dict[str, object], tau_s: float) -> None:
    """The top rung would overheat; the one below would be within the margin."""
    limits = RungLimits(0.25, 20.0, **table)  # type: ignore[arg-type]
    found = course(RungPolicy(limits, LADDER), LADDER, tau_s=tau_s)
    assert max(found.heats_c) < 85.0
    assert found.switches <= 4 * 900 / 60
    later = found.ranks[300:]
    assert sum(map(LADDER.flops_fraction, later)) / len(later) > 0.5, "and no more is given up than must be"
    assert course(RungPolicy(limits, LADDER), LADDER, top_c=70.0, seconds=300).ranks[-1] == TOP


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sustainable": 50.0}, "sustainable is 50, outside 0..1 (per cent? write 0.5)"),
        ({"gain_per_c": 0.0}, "gain_per_c is 0, outside 0.001..10"),
        ({"limit_c": 95000.0}, "millidegrees? write 95"),
        ({"band": float("nan")}, "band is nan"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, float], words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Pi(**settings)
    assert words in str(caught.value)
