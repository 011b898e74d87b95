"""Policy files: what is read, and how each mistake is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsn_edge.errors import PolicyError
from nsn_edge.runtimes.data import DEFAULT_POLICY
from nsn_edge.runtimes.policy import BatteryStep, RungLimits, TemperatureStep, ThrottlingLimit, load_policy

GOOD = """\
schema_version = 1
unknown_max_flops = 0.25
min_dwell_s = 20

[[battery]]
enter_pct = 50
leave_pct = 55
max_flops = 0.75

[[battery]]
enter_pct = 20
leave_pct = 25.5
max_flops = 0.35

[[temperature]]
enter_c = 75
leave_c = 70
max_flops = 0.5

[[temperature]]
enter_c = 88
leave_c = 83
max_flops = 0.25

[throttling]
max_flops = 0.35
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "gentle.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    assert load_policy(write(tmp_path, GOOD)) == RungLimits(
        unknown_max_flops=0.25,
        min_dwell_s=20.0,
        battery=(BatteryStep(50.0, 55.0, 0.75), BatteryStep(20.0, 25.5, 0.35)),
        temperature=(TemperatureStep(75.0, 70.0, 0.5), TemperatureStep(88.0, 83.0, 0.25)),
        throttling=ThrottlingLimit(0.35, 5.0, 10.0),
        name="gentle",
    )


def test_the_shipped_policy_is_good_and_complete() -> None:
    limits = load_policy(DEFAULT_POLICY)
    assert limits.battery
    assert limits.temperature
    assert limits.throttling
    assert limits.unknown_max_flops == min(step.max_flops for step in limits.battery)


def test_settings_as_json_have_the_keys_of_the_file(tmp_path: Path) -> None:
    data = load_policy(write(tmp_path, GOOD)).to_json()
    assert data["schema_version"] == 1
    assert data["battery"][1] == {"enter_pct": 20.0, "leave_pct": 25.5, "max_flops": 0.35}
    assert data["throttling"] == {"max_flops": 0.35, "enter_margin_c": 5.0, "leave_margin_c": 10.0}


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) >= 1
    return GOOD.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", None, ["schema_version is missing"]),
        (changed("schema_version = 1", "schema_version = 3"), 1, ["unknown schema_version 3"]),
        (changed("schema_version = 1", "schema_version = true"), 1, ["unknown schema_version True"]),
        (changed("min_dwell_s", "min_dwel_s"), 3, ["unknown key 'min_dwel_s'", "did you mean min_dwell_s?"]),
        (changed("[throttling]", "[heat]"), 25, ["unknown key 'heat'", "the keys are schema_version"]),
        (changed("leave_pct = 25.5", "leav_pct = 25"), 12, ["[battery] unknown key", "did you mean leave_pct?"]),
        (changed("min_dwell_s = 20\n", ""), None, ["the key min_dwell_s is missing"]),
        (changed("max_flops = 0.35\n\n[[temp", "\n[[temp"), 10, ["[battery] the key max_flops is missing"]),
        (changed("enter_c = 88", 'enter_c = "88"'), 21, ["enter_c is '88', not a number"]),
        (changed("enter_c = 88", "enter_c = true"), 21, ["enter_c is True, not a number"]),
        (changed("min_dwell_s = 20", "min_dwell_s = [20]"), 3, ["min_dwell_s is [20], not a number"]),
        (changed("min_dwell_s = 20", "min_dwell_s = -1"), 3, ["min_dwell_s is -1, outside 0..86400"]),
        (changed("min_dwell_s = 20", "min_dwell_s = nan"), 3, ["min_dwell_s is nan, outside"]),
        (changed("min_dwell_s = 20", "min_dwell_s = 1" + "0" * 400), 3, ["min_dwell_s is far too large"]),
        (changed("unknown_max_flops = 0.25", "unknown_max_flops = 0"), 2, ["unknown_max_flops is 0, not a fraction"]),
        (changed("max_flops = 0.5\n", "max_flops = 50\n"), 18, ["[temperature] max_flops is 50, not a fraction"]),
        (changed("enter_pct = 20", "enter_pct = -1"), 11, ["[battery] enter_pct is -1, outside 0..100"]),
        (changed("enter_c = 75", "enter_c = 750"), 16, ["[temperature] enter_c is 750, outside -60..200"]),
        (
            changed("leave_pct = 55", "leave_pct = 50"),
            7,
            ["thresholds cross", "leave_pct 50 is not above enter_pct 50"],
        ),
        (changed("leave_c = 83", "leave_c = 89"), 22, ["thresholds cross", "leave_c 89 is not below enter_c 88"]),
        (changed("leave_pct = 25.5", "leave_pct = 56"), 12, ["thresholds cross", "leave_pct 56", "milder step's 55"]),
        (changed("enter_pct = 50", "enter_pct = 19"), 11, ["enter_pct 20 follows 19", "must fall"]),
        (changed("enter_c = 75", "enter_c = 89"), 21, ["enter_c 88 follows 89", "must rise"]),
        (changed("leave_c = 83", "leave_c = 60"), 22, ["thresholds cross", "leave_c 60", "milder step's 70"]),
        (changed("max_flops = 0.35", "max_flops = 0.8"), 13, ["a lower battery must never allow more"]),
        (changed("max_flops = 0.25\n\n[thr", "max_flops = 0.6\n\n[thr"), 23, ["more heat must never allow more"]),
        (changed("[throttling]", "[throttling]\nenter_margin_c = 10"), None, ["[throttling]", "leave_margin_c 10"]),
        ("battery = 3\n" + GOOD.split("[[battery]]")[0], 1, ["battery is not a list of steps"]),
        ("throttling = 3\n" + GOOD.split("[throttling]")[0], 1, ["throttling is 3, not a table"]),
        ("name = 3\n" + GOOD, 1, ["name is 3, not a string"]),
        (GOOD.split("[[battery]]")[0], None, ["has no limits, so it would never switch"]),
        (changed("[[temperature]]", "[[temperature]"), None, ["is not TOML", "line 15"]),
        (b"\xff\xfe", None, ["is not TOML"]),
        ("x = " + "[" * 5000, None, ["is not TOML"]),
    ],
)
def test_mistakes_are_named_with_file_line_and_key(
    tmp_path: Path, text: str | bytes, line: int | None, words: list[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    for word in words:
        assert word in said
    if line is not None:
        assert f"{path}, line {line}: " in said


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot read the policy .*absent\.toml: No such file"):
        load_policy(tmp_path / "absent.toml")
    with pytest.raises(PolicyError, match="Is a directory"):
        load_policy(tmp_path)
    with pytest.raises(PolicyError, match="far too large"):
        load_policy(write(tmp_path, b"#" * (1 << 20) + b"\n"))


@given(
    where=st.integers(0, len(GOOD)),
    length=st.integers(0, 12),
    insert=st.text(alphabet="0123456789=[]._-\"'abcept \n", max_size=12),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_damage_is_a_sound_policy_or_a_policy_error(tmp_path: Path, where: int, length: int, insert: str) -> None:
    path = write(tmp_path, GOOD[:where] + insert + GOOD[where + length :])
    refusal = ""
    try:
        limits = load_policy(path)
    except PolicyError as error:
        refusal = str(error)
    else:
        assert replace(limits) == limits, "whoever holds a policy holds a valid one"
    assert not refusal or (str(path) in refusal and "\n" not in refusal)
