"""jtop, where jetson-stats is installed: what it says, what it raises, and that it is never needed."""

from __future__ import annotations

import importlib
import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_jtop import AGX_ORIN, ORIN_NANO, FakeJtop, JtopException
from hypothesis import given
from hypothesis import strategies as st
from sensor_tree import HandClock

from nsn_edge.runtimes.telemetry import Reading
from nsn_edge.runtimes.telemetry.jetson import JtopSource
from nsn_edge.runtimes.telemetry.jetson.jtop import SOCKET, has_jtop, read_client

PAUSES_S = (0.01,)


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it never came to hold")


def test_what_a_board_with_an_input_rail_says() -> None:
    assert read_client(SimpleNamespace(**ORIN_NANO), 7.0) == Reading(
        7.0,
        temperature_c=65.75,
        power_mw=17946.0,
        gpu_load_pct=84.3,
        gpu_mhz=713.0,
        cpu_mhz=1984.0,
        power_mode="MAXN_SUPER",
        rails_mw={"VDD_CPU_GPU_CV": 8896.0, "VDD_SOC": 3923.0, "VDD_IN": 17946.0},
    )


def test_a_sum_of_rails_is_no_power_of_the_board() -> None:
    reading = read_client(SimpleNamespace(**AGX_ORIN), 7.0)
    assert reading.power_mw is None
    assert reading.rails_mw == {"VDD_GPU_SOC": 3205.0, "VDD_CPU_CV": 0.0, "VIN_SYS_5V0": 4767.0}


def test_the_flat_shapes_of_old_versions_are_read_or_unknown() -> None:
    client = SimpleNamespace(
        temperature={"CPU": 46.0, "GPU": 45.5, "PMIC": 100.0, "iwlwifi": -256.0},
        power=({"cur": 4859}, {}),
        gpu={"val": 12, "frq": 114750},
        cpu={"CPU1": {"val": 5}},
        nvpmodel="MAXN",
    )
    assert read_client(client, 7.0) == Reading(7.0, temperature_c=46.0)
    assert read_client(SimpleNamespace(), 7.0) == Reading(7.0)
    assert read_client(SimpleNamespace(gpu={}, cpu={}, power={}, temperature={}, nvpmodel=None), 7.0) == Reading(7.0)


KEYS = "rail tot cpu tj temp online power name status load freq cur VDD_IN ga10b".split()  # noqa: SIM905
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=12,
)


@given(temperature=JUNK, power=JUNK, gpu=JUNK, cpu=JUNK, mode=JUNK)
def test_no_shape_of_its_answers_raises_or_becomes_absurd(
    temperature: object, power: object, gpu: object, cpu: object, mode: object
) -> None:
    client = SimpleNamespace(
        temperature=temperature, power=power, gpu=gpu, cpu=cpu, nvpmodel=SimpleNamespace(name=mode)
    )
    reading = read_client(client, 7.0)
    assert reading.temperature_c is None or -60.0 <= reading.temperature_c <= 200.0
    assert all(math.isfinite(value) and 0.0 <= value <= 1e6 for value in reading.rails_mw.values())
    assert reading.gpu_load_pct is None or 0.0 <= reading.gpu_load_pct <= 100.0
    assert reading.power_mode is None or isinstance(reading.power_mode, str)


def test_a_running_service_is_read_with_its_age_and_forgotten() -> None:
    hang = threading.Event()
    fake = FakeJtop([ORIN_NANO, hang])
    clock = HandClock()
    with JtopSource(fake, clock, max_age_s=5.0) as source:
        assert source.wait(60.0)
        clock.now_s += 4.0
        reading = source.read()
        assert (reading.temperature_c, reading.power_mw, reading.age_s) == (65.75, 17946.0, 4.0)
        clock.now_s += 2.0
        assert source.read() == Reading(1006.0), "it hangs, and nobody waits for it"
        hang.set()


@pytest.mark.parametrize(
    "error",
    [
        JtopException("The jtop.service is not active. Please run:\nsudo systemctl restart jtop.service"),
        FileNotFoundError(2, "No such file or directory", "/run/jtop.sock"),
        ConnectionRefusedError(111, "Connection refused"),
        PermissionError(13, "Permission denied"),
        BrokenPipeError(32, "Broken pipe"),
        EOFError(),
        RuntimeError("no such board"),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("when", ["start", "ok", "property"])
def test_what_it_raises_is_survived_and_a_new_client_connects(
    error: BaseException, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"start": error, "ok": [error], "property": [{**ORIN_NANO, "power": error}]}[when]
    hang = threading.Event()
    fake = FakeJtop(broken, [ORIN_NANO, hang])
    with JtopSource(fake, pauses_s=PAUSES_S) as source:
        source.read()
        assert source.wait(60.0)
        assert source.read().temperature_c == 65.75
        assert len(fake.clients) == 2, "one that lost its service never finds it again"
        assert fake.clients[0].closed == 1
        hang.set()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [KeyError("load"), TypeError("'NoneType' object is not subscriptable")])
def test_a_property_that_stumbles_over_its_own_shape_is_unknown(error: Exception) -> None:
    """As `gpu` does on a Thor: https://github.com/rbonghi/jetson_stats/issues/885"""
    hang = threading.Event()
    with JtopSource(FakeJtop([{**ORIN_NANO, "gpu": error, "nvpmodel": error}, hang])) as source:
        assert source.wait(60.0)
        reading = source.read()
        assert reading.gpu_load_pct is reading.gpu_mhz is reading.power_mode is None
        assert reading.power_mw == 17946.0
        hang.set()


def test_a_client_whose_closing_fails_is_survived() -> None:
    hang = threading.Event()
    fake = FakeJtop([ORIN_NANO], [AGX_ORIN, hang])
    real = fake.jtop

    def jtop() -> object:
        client = real()
        if len(fake.clients) == 1:
            client.close = lambda: 1 / 0
        return client

    fake.jtop = jtop
    source = JtopSource(fake, pauses_s=PAUSES_S)
    eventually(lambda: source.read().rails_mw.get("VDD_GPU_SOC") == 3205.0)
    hang.set()
    source.close(timeout_s=60.0)


def test_a_service_that_ends_is_asked_again() -> None:
    fake = FakeJtop([ORIN_NANO, False])
    with JtopSource(fake, pauses_s=PAUSES_S):
        eventually(lambda: len(fake.clients) >= 3)
    assert all(client.closed == 1 for client in fake.clients)


def test_it_is_used_only_where_it_is_installed_and_its_service_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jtop.py").write_text("raise RuntimeError('a broken installation')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    assert not has_jtop(tmp_path), "no socket"
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(SOCKET)
        assert has_jtop(tmp_path)
        assert "jtop" not in sys.modules, "looked at, not imported"
        (tmp_path / "jtop.py").unlink()
        importlib.invalidate_caches()
        assert not has_jtop(tmp_path), "not installed"
        monkeypatch.setitem(sys.modules, "jtop", None)
        assert not has_jtop(tmp_path), "blocked"
    monkeypatch.delitem(sys.modules, "jtop")
    (tmp_path / "jtop.py").write_text("")
    (tmp_path / SOCKET).unlink()
    (tmp_path / SOCKET).write_text("no socket")
    assert not has_jtop(tmp_path)


def test_the_installed_module_is_imported_in_the_thread_that_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "jtop.py").write_text("raise RuntimeError('a broken installation')")
    with JtopSource(pauses_s=PAUSES_S) as source:
        eventually(lambda: bool(caplog.records))
        assert source.read().temperature_c is None
        hang = threading.Event()
        monkeypatch.setitem(sys.modules, "jtop", FakeJtop([ORIN_NANO, hang]))
        assert source.wait(60.0)
        hang.set()
    assert "a broken installation" in caplog.text


def test_it_is_no_dependency() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "jetson-stats" not in project
    assert "jetson_stats" not in project
