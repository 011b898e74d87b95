"""`nsn-edge policy check` and the profile that `run --policy` plans with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import Run

from nsn_edge.bundle import Bundle
from nsn_edge.runtimes.data import DEFAULT_POLICY
from nsn_edge.runtimes.profiling import Profile, describe_host
from nsn_edge.runtimes.profiling.result import RungProfile
from nsn_edge.runtimes.profiling.stats import LatencyStats

DEADLINE = """\
schema_version = 2
unknown_max_flops = 0.25
min_dwell_s = 20

[deadline]
deadline_ms = 50
"""


@pytest.fixture
def bundle_path(text_bundle: tuple[Path, Any]) -> Path:
    return text_bundle[0]


@pytest.fixture
def deadline(tmp_path: Path) -> Path:
    path = tmp_path / "deadline.toml"
    path.write_text(DEADLINE)
    return path


def write_profile(bundle: Path, path: Path, **changed: Any) -> Path:
    """10 ms at the lowest rung, 10 more at each above it, on this machine."""
    manifest = Bundle.open(bundle).manifest
    ladder = manifest.ladder
    rungs = []
    for number, rank in enumerate(ladder.ranks, start=1):
        ms = 10.0 * number
        rungs.append(
            RungProfile(
                rank=rank,
                dense=ladder.rung(rank).dense,
                flops_fraction=ladder.flops_fraction(rank),
                macs=ladder.macs(rank),
                latency=LatencyStats(100, ms, 0.1, 0.01, ms, ms, ms, ms, 1.1 * ms, 2 * ms),
                load_ms=1.0,
                throughput_per_s=1000.0 / ms,
            )
        )
    facts: dict[str, Any] = {
        "bundle_path": str(bundle),
        "model": manifest.model,
        "host": describe_host().to_json(),
        "settings": {"form": "static", "batch_size": 1, "sequence_length": 8},
        "rungs": tuple(rungs),
        "peak_memory_mb": None,
    }
    Profile(**{**facts, **changed}).save(path)
    return path


def test_a_sound_policy_is_said_in_sentences(run: Run) -> None:
    done = run("policy", "check", DEFAULT_POLICY)
    assert done.code == 0
    assert "default" in done.out
    assert "is sound" in done.out
    assert "from 55 % down, until 60 %, off mains: at most 75 % of FLOPs" in done.out
    assert "down at once, up by one rung after 20 s of room" in done.out


def test_with_a_bundle_each_cap_is_a_rung(run: Run, bundle_path: Path) -> None:
    document = run("policy", "check", DEFAULT_POLICY, "--bundle", bundle_path, "--json").document
    assert (document["kind"], document["schema_version"]) == ("policy-check", 1)
    assert document["policy"]["name"] == "default"
    ladder = Bundle.open(bundle_path).manifest.ladder
    caps = {item["text"]: item["rank"] for item in document["sentences"] if item["table"] == "battery"}
    assert caps["from 55 % down, until 60 %, off mains: at most 75 % of FLOPs"] == ladder.rung_within(0.75).rank
    assert [rung["rank"] for rung in document["rungs"]] == list(ladder.ranks)
    assert {rung["p50_ms"] for rung in document["rungs"]} == {None}


def test_a_missing_profile_is_named_and_a_given_one_is_shown(
    run: Run, bundle_path: Path, deadline: Path, tmp_path: Path
) -> None:
    done = run("policy", "check", deadline, "--bundle", bundle_path)
    assert done.code == 0
    assert "note: [deadline] plans with what the rungs cost on the device: nsn-edge profile" in done.out
    profile = write_profile(bundle_path, tmp_path / "profile.json")
    document = run("policy", "check", deadline, "--bundle", bundle_path, "--profile", profile, "--json").document
    assert document["rungs"][0]["p50_ms"] == 10.0
    assert not any("plan with" in note for note in document["notes"])
    elsewhere = write_profile(bundle_path, tmp_path / "other.json", host={"cpu": "another one"})
    done = run("policy", "check", deadline, "--bundle", bundle_path, "--profile", elsewhere)
    assert (done.code, "the profile is from another device than this one" in done.out) == (0, True)


def test_mistakes_are_one_line_with_file_line_and_key(run: Run, bundle_path: Path, tmp_path: Path) -> None:
    def message(text: str, *options: object) -> str:
        path = tmp_path / "bad.toml"
        path.write_text(text)
        done = run("policy", "check", path, *options)
        assert (done.code, done.out) == (2, "")
        return done.message

    said = message(DEADLINE.replace("deadline_ms", "dedline_ms"))
    assert said.startswith(f"{tmp_path / 'bad.toml'}, line 6: [deadline] unknown key 'dedline_ms'. did you mean")
    energy = DEADLINE.replace("[deadline]\ndeadline_ms = 50", "[energy]\nlast_h = 8")
    profile = write_profile(bundle_path, tmp_path / "profile.json")
    said = message(energy, "--bundle", bundle_path, "--profile", profile)
    assert "bad.toml, line 5: [energy] the profile lacks the energy of a call" in said
    said = message(DEADLINE + "[difficulty]\nthresholds = [0.5]\nranks = [3, 4]\n", "--bundle", bundle_path)
    assert "no rung at rank 3" in said
    assert "give --bundle BUNDLE, too" in message(DEADLINE, "--profile", profile)
    done = run("policy", "check", DEFAULT_POLICY, "--bundle", bundle_path, "--profile", tmp_path / "absent.json")
    assert (done.code, "no profile at" in done.message) == (2, True)


def test_run_plans_with_the_profile_and_says_what_is_missing(
    run: Run, bundle_path: Path, deadline: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a line of text\nanother line\n")
    asked = ("run", bundle_path, "--policy", deadline, "--query", "a line", "--texts", texts, "--json")
    refused = run(*asked)
    assert refused.code == 2
    assert "[deadline] what each rung costs on this device is unknown" in refused.message
    elsewhere = write_profile(bundle_path, tmp_path / "other.json", host={"cpu": "another one"})
    refused = run(*asked, "--profile", elsewhere)
    assert (refused.code, "the profile is from another device: cpu 'another one'" in refused.message) == (2, True)
    done = run(*asked, "--profile", write_profile(bundle_path, tmp_path / "profile.json"))
    assert done.code == 0
    ranks = Bundle.open(bundle_path).manifest.ladder.ranks
    # 30 ms are within 50; 40 ms with their tail and the doubt of a device that has answered nothing yet are not.
    assert f"rank {ranks[2]}: deadline 50 ms, slowdown 1.00 ± 0.10: rank {ranks[3]} would be late for" in done.err


def test_run_finds_the_profile_that_the_bundle_keeps(
    run: Run, bundle_path: Path, deadline: Path, tmp_path: Path
) -> None:
    assert run("profile", bundle_path, "--repetitions", "3", "--min-time", "0", "--warmup", "1").code == 0
    texts = tmp_path / "texts.txt"
    texts.write_text("a line of text\n")
    done = run("run", bundle_path, "--policy", deadline, "--query", "a line", "--texts", texts)
    assert done.code == 0
    assert "deadline 50 ms" in done.err or "no limit applies" in done.err


def test_a_profile_without_a_policy_is_refused(run: Run, bundle_path: Path) -> None:
    assert "give --policy FILE, too" in run("run", bundle_path, "--profile", "x.json").message
