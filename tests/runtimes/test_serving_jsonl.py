"""Events in a file: every line a document, the file bounded, the disk never the request's problem."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sensor_tree import HandClock
from tiny_bundle import TOP, TinyModel

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.events import KINDS, Cause, SessionEvent, listeners
from nsn_edge.runtimes.governor import Governor
from nsn_edge.runtimes.policy import Decision, PolicyState
from nsn_edge.runtimes.serving import JsonlEvents
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.telemetry import Answered, Reading, Work

KEYS = [
    "schema_version",
    "kind",
    "event",
    "wall_s",
    "time_s",
    "rank",
    "other_rank",
    "message",
    "duration_ms",
    "reason",
    "reading",
    "left_out",
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture
def clock() -> HandClock:
    return HandClock(5.0)


def test_a_switch_with_its_reading_and_reason(tmp_path: Path, clock: HandClock) -> None:
    work = Work((Answered(5, 1.0), Answered(5, 2.0)), 7.5, 3)
    reading = Reading(4.0, battery_pct=9.0, on_mains=False, rails_mw={"VDD_IN": 5000.0}, work=work)
    path = tmp_path / "events.jsonl"
    with JsonlEvents(path, clock=clock, wall_clock=lambda: 1.7e9) as events:
        events(SessionEvent("switched", 5, other_rank=16, duration_ms=0.02, cause=Cause("battery 9 %", reading)))
        events(SessionEvent("load_failed", 8, "cut"))
    switched, failed = lines(path)
    assert list(switched) == list(failed) == KEYS
    assert switched == {
        "schema_version": 1,
        "kind": "event",
        "event": "switched",
        "wall_s": 1.7e9,
        "time_s": 5.0,
        "rank": 5,
        "other_rank": 16,
        "message": "",
        "duration_ms": 0.02,
        "reason": "battery 9 %",
        "reading": {
            "time_s": 4.0,
            "battery_pct": 9.0,
            "on_mains": False,
            "rails_mw": {"VDD_IN": 5000.0},
            "age_s": 0.0,
            "work": {"answers": 2, "arrivals_per_s": 7.5, "waiting": 3},
        },
        "left_out": 0,
    }
    assert (failed["event"], failed["rank"], failed["message"], failed["reading"]) == ("load_failed", 8, "cut", None)


def test_a_real_session_s_story(tiny_bundle: tuple[Path, TinyModel], tmp_path: Path) -> None:
    class Falls:
        def decide(self, reading: Reading, state: PolicyState) -> Decision:
            return Decision(5, "it is hot", state)

        def to_json(self) -> dict[str, Any]:
            return {}

    class Hot:
        def read(self) -> Reading:
            return Reading(0.0, temperature_c=91.5)

    path = tmp_path / "events.jsonl"
    heard: list[SessionEvent] = []
    with JsonlEvents(path) as events:
        with EdgeSession.open(tiny_bundle[0], listener=listeners(heard.append, events)) as session:
            session.preload([5])[0].result(60)
            session.run({"x": np.ones((1, 16), np.float32)})
            Governor(Hot(), Falls(), session, clock=HandClock(0.0)).tick()
        events.close()
    told = lines(path)
    assert [line["event"] for line in told] == [event.kind for event in heard]
    assert {line["event"] for line in told} <= set(KINDS)
    switch = next(line for line in told if line["event"] == "switched")
    assert (switch["rank"], switch["other_rank"], switch["reason"]) == (5, TOP, "it is hot")
    assert switch["reading"]["temperature_c"] == 91.5
    assert switch["reading"]["work"]["answers"] == 1
    assert [line["time_s"] for line in told] == sorted(line["time_s"] for line in told)


def test_the_file_is_bounded_and_whole_lines_stay(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "events.jsonl"
    with JsonlEvents(path, max_bytes=10_000, clock=clock) as events:
        for number in range(200):
            clock.now_s += 1.0
            events(SessionEvent("loaded", number))
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["events.jsonl", "events.jsonl.1"]
    assert sum(sizes) <= 10_000
    ranks = [line["rank"] for name in ("events.jsonl.1", "events.jsonl") for line in lines(tmp_path / name)]
    assert ranks == list(range(ranks[0], 200)), "the newest, without a gap"


def test_a_storm_of_one_kind_is_counted_and_hides_no_other(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "events.jsonl"
    with JsonlEvents(path, max_per_s=5, clock=clock) as events:
        for _ in range(1000):
            events(SessionEvent("rejected", None))
        events(SessionEvent("switched", 5))
        clock.now_s += 1.0
        events(SessionEvent("rejected", None))
    told = [(line["event"], line["left_out"]) for line in lines(path)]
    assert told == [*[("rejected", 0)] * 5, ("switched", 0), ("rejected", 995)]


def test_it_appends_to_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for rank in (1, 2):
        with JsonlEvents(path) as events:
            events(SessionEvent("loaded", rank))
    assert [line["rank"] for line in lines(path)] == [1, 2]


def test_a_full_disk_loses_lines_says_so_and_recovers(
    tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk takes half a line, then nothing, then has room again."""
    path = tmp_path / "events.jsonl"
    outcomes: list[str] = ["ok", "half", "full", "full", "ok", "ok"]
    done = threading.Semaphore(0)
    write = os.write

    def disk(file: int, data: bytes) -> int:
        if threading.current_thread().name != "nsn-edge-events":
            return write(file, data)
        outcome = outcomes.pop(0)
        done.release()
        if outcome == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: len(data) // 2] if outcome == "half" else data)

    monkeypatch.setattr(os, "write", disk)
    with JsonlEvents(path, clock=clock) as events:
        for rank in range(6):
            clock.now_s += 1.0
            events(SessionEvent("loaded", rank))
            assert done.acquire(timeout=60)
            while events._left_out.get("loaded", 0) != {1: 1, 2: 2, 3: 3}.get(rank, 0):  # until the loss is noted
                threading.Event().wait(0.001)
    texts = path.read_text().splitlines()
    whole = [json.loads(text) for text in (texts[0], *texts[2:])]
    assert [(line["rank"], line["left_out"]) for line in whole] == [(0, 0), (4, 3), (5, 0)]
    assert not texts[1].endswith("}"), "the torn line stands alone"
    warnings = [record for record in caplog.records if "cannot be written" in record.message]
    assert len(warnings) == 1, "one report per outage"


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    events = JsonlEvents(folder / "events.jsonl")
    folder.rmdir()
    events(SessionEvent("loaded", 1))
    events.close()
    events(SessionEvent("loaded", 2))
    assert "cannot be written" in caplog.text


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: HandClock) -> None:
    hanging, go_on = threading.Event(), threading.Event()
    write = os.write

    def disk(file: int, data: bytes) -> int:
        if threading.current_thread().name == "nsn-edge-events":
            hanging.set()
            assert go_on.wait(60)
        return write(file, data)

    monkeypatch.setattr(os, "write", disk)
    path = tmp_path / "events.jsonl"
    with JsonlEvents(path, clock=clock, max_per_s=10**6) as events:
        events(SessionEvent("loaded", 0))
        assert hanging.wait(60)
        for rank in range(1, 3000):
            events(SessionEvent("loaded", rank))  # returns, though nothing is written
        go_on.set()
    told = lines(path)
    assert len(told) == 1001, "what the backlog holds, and the line under way"
    assert [line["rank"] for line in told] == list(range(1001))


@pytest.mark.parametrize("settings", [{"max_bytes": 100}, {"max_per_s": 0}])
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="holds nothing"):
        JsonlEvents(tmp_path / "events.jsonl", **settings)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        JsonlEvents(tmp_path / "absent" / "events.jsonl")
