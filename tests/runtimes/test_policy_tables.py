"""Policy files of version 2: every table, and how each mistake is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_cases import COSTS, LADDER, TOP

from nsn_edge.errors import PolicyError
from nsn_edge.runtimes.difficulty import DifficultyRule
from nsn_edge.runtimes.policy import (
    BatteryStep,
    Deadline,
    EnergyBudget,
    Pi,
    PolicyState,
    RungLimits,
    RungPolicy,
    StepWise,
    build_policy,
    load_policy,
)
from nsn_edge.runtimes.policy.explain import explain, notes
from nsn_edge.runtimes.policy.limiter import Rungs
from nsn_edge.runtimes.telemetry import Reading

GOOD = """\
schema_version = 2
unknown_max_flops = 0.25
min_dwell_s = 20
max_age_s = 30

[[battery]]
enter_pct = 50
leave_pct = 55
max_flops = 0.75

[step_wise]
enter_margin_c = 4
leave_margin_c = 9

[pi]
margin_c = 6
limit_c = 95

[energy]
until = "18:00"
capacity_wh = 50
idle_mw = 2500

[deadline]
deadline_ms = 50
probability = 0.95

[difficulty]
thresholds = [0.6]
flops = [0.25, 1.0]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "whole.toml"
    path.write_text(text)
    return path


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_every_table_is_read(tmp_path: Path) -> None:
    assert load_policy(write(tmp_path, GOOD)) == RungLimits(
        unknown_max_flops=0.25,
        min_dwell_s=20.0,
        max_age_s=30.0,
        battery=(BatteryStep(50.0, 55.0, 0.75),),
        step_wise=StepWise(4.0, 9.0),
        pi=Pi(margin_c=6.0, limit_c=95.0),
        energy=EnergyBudget(until="18:00", capacity_wh=50.0, idle_mw=2500.0),
        deadline=Deadline(50.0, 0.95),
        difficulty=DifficultyRule(thresholds=(0.6,), flops=(0.25, 1.0)),
        name="whole",
    )


def test_a_time_of_day_in_either_spelling_and_settings_that_have_defaults(tmp_path: Path) -> None:
    energy = load_policy(write(tmp_path, changed('until = "18:00"', "until = 18:00:00"))).energy
    assert energy is not None
    assert energy.until == "18:00"
    empty = "schema_version = 2\nunknown_max_flops = 0.25\nmin_dwell_s = 20\n[step_wise]\n"
    assert load_policy(write(tmp_path, empty)).step_wise == StepWise()


def test_as_json_it_has_the_keys_of_the_file_and_its_version(tmp_path: Path) -> None:
    data = load_policy(write(tmp_path, GOOD)).to_json()
    assert data["schema_version"] == 2
    assert data["deadline"]["deadline_ms"] == 50.0
    assert data["difficulty"] == {"thresholds": [0.6], "flops": [0.25, 1.0], "measure": "margin"}
    alone = load_policy(
        write(tmp_path, "schema_version = 2\nunknown_max_flops = 1\nmin_dwell_s = 0\n[deadline]\ndeadline_ms = 9")
    )
    assert alone.to_json().keys() >= {"deadline", "battery"}
    assert "pi" not in alone.to_json()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            changed("schema_version = 2", "schema_version = 1"),
            4,
            ["unknown key 'max_age_s'", "belongs to schema_version = 2"],
        ),
        (
            changed("schema_version = 2", "schema_version = 3"),
            1,
            ["unknown schema_version 3", "schema_version = 2, and 1"],
        ),
        (changed("[step_wise]", "[stepwise]"), 11, ["unknown key 'stepwise'", "did you mean step_wise?"]),
        (changed("margin_c = 6", "margn_c = 6"), 16, ["[pi] unknown key 'margn_c'", "did you mean margin_c?"]),
        (changed("limit_c = 95", "limit_c = 95000"), 17, ["[pi] limit_c is 95000", "millidegrees? write 95"]),
        (changed("leave_margin_c = 9", "leave_margin_c = 3"), 13, ["[step_wise] the thresholds cross"]),
        (changed("deadline_ms = 50\n", ""), 24, ["[deadline] the key deadline_ms is missing"]),
        (changed("deadline_ms = 50", 'deadline_ms = "50 ms"'), 25, ["deadline_ms is '50 ms', not a number"]),
        (changed("deadline_ms = 50", "deadline_ms = 0.05"), 25, ["seconds? write 50"]),
        (
            changed("probability = 0.95", "probability = 95"),
            26,
            ["[deadline] probability is 95", "per cent? write 0.95"],
        ),
        (changed('until = "18:00"', "until = 18"), 20, ["[energy] until is 18, no time of day"]),
        (changed('until = "18:00"', 'until = "6pm"'), 20, ["until is '6pm', no time of day"]),
        (changed('until = "18:00"', ""), 19, ["[energy] a budget lasts for hours or until a time of day"]),
        (changed('until = "18:00"', 'until = "18:00"\nlast_h = 8'), 20, ["[energy]", "give one of the two"]),
        (changed("idle_mw = 2500", "idle_mw = 2.5"), 22, ["[energy] idle_mw is 2.5", "watts? write 2500"]),
        (changed("max_age_s = 30", "max_age_s = 0"), 4, ["max_age_s is 0"]),
        (changed("enter_pct = 50\nleave_pct = 55", "enter_pct = 0.5\nleave_pct = 0.55"), 7, ["a fraction? write 50"]),
        (changed("thresholds = [0.6]", "thresholds = [6]"), 29, ["[difficulty] the threshold 6 is outside 0..1"]),
        (changed("thresholds = [0.6]", "treshold = [0.6]"), 29, ["unknown key 'treshold'", "did you mean thresholds?"]),
        (changed("[pi]\nmargin_c = 6\nlimit_c = 95", "[[pi]]"), 15, ["[pi] pi is [{}], not a table"]),
    ],
)
def test_mistakes_are_named_with_file_line_and_key(tmp_path: Path, text: str, line: int, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    said = str(caught.value)
    assert said.startswith(f"{path}, line {line}: "), said
    assert "\n" not in said
    for word in words:
        assert word in said


def test_fractions_for_per_cent_read_as_ever_in_version_1(tmp_path: Path) -> None:
    text = "schema_version = 1\nunknown_max_flops = 1\nmin_dwell_s = 0\n[[battery]]\n"
    text += "enter_pct = 0.5\nleave_pct = 0.8\nmax_flops = 0.5\n"
    assert load_policy(write(tmp_path, text)).battery == (BatteryStep(0.5, 0.8, 0.5),)


def test_the_whole_policy_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    policy = build_policy(path, LADDER, COSTS)
    assert policy.decide(Reading(0.0, 90.0, True, 40.0, 100.0), PolicyState()).rank < TOP, "50 ms are too few"
    with pytest.raises(PolicyError) as caught:
        build_policy(path, LADDER)
    assert str(caught.value).startswith(f"{path}, line 19: [energy] what each rung costs on this device is unknown")


def test_a_policy_of_difficulty_alone_limits_nothing(tmp_path: Path) -> None:
    text = "schema_version = 2\nunknown_max_flops = 1\nmin_dwell_s = 0\n"
    text += "[difficulty]\nthresholds = [0.5]\nflops = [0.5, 1]\n"
    limits = load_policy(write(tmp_path, text))
    assert RungPolicy(limits, LADDER).decide(Reading(0.0), PolicyState()).rank == TOP


def test_every_table_has_a_sentence_and_what_is_missing_a_note(tmp_path: Path) -> None:
    limits = load_policy(write(tmp_path, GOOD))
    said = explain(limits, Rungs(LADDER))
    tables = [item.table for item in said if item.table]
    assert tables == ["battery", "step_wise", "pi", "energy", "deadline", "difficulty"]
    assert said[0].rank == LADDER.rung_within(0.25).rank
    assert any("[energy] and [deadline] plan with" in note for note in notes(limits))
    assert not any("[deadline] plan" in note for note in notes(limits, Rungs(LADDER, COSTS)))
    assert any("[step_wise] limit_c is not given" in note for note in notes(limits))


@given(
    where=st.integers(0, len(GOOD)),
    length=st.integers(0, 12),
    insert=st.text(alphabet="0123456789=[]._-\"'abcept :\n", max_size=12),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_any_damage_is_a_policy_that_decides_or_a_policy_error(
    tmp_path: Path, where: int, length: int, insert: str
) -> None:
    path = write(tmp_path, GOOD[:where] + insert + GOOD[where + length :])
    refusal = ""
    try:
        policy = build_policy(path, LADDER, COSTS)
    except PolicyError as error:
        refusal = str(error)
    else:
        assert policy.decide(Reading(0.0, 50.0, False, 60.0, 90.0), PolicyState()).rank in LADDER.ranks
    assert not refusal or (str(path) in refusal and "\n" not in refusal)
