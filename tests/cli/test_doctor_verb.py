from __future__ import annotations

import json

import pytest

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main
from nsn_edge.runtimes import doctor
from nsn_edge.runtimes.doctor import Device


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("engines", "gpus", "sensors", "tools", "machine", "onnxruntime", "battery", "disk"):
        assert name in out
    assert "this device can run bundles" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "doctor"


@pytest.mark.parametrize("as_json", [True, False])
def test_nothing_can_run_a_bundle(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> list[str]:
        raise ImportError("No module named 'onnxruntime'")

    diagnosis = doctor.examine(Device(version_of=lambda name: None, providers=absent))
    monkeypatch.setattr(doctor, "examine", lambda: diagnosis)
    assert run_main(main, ["doctor", *(["--json"] if as_json else [])]) == 1
    out, err = capsys.readouterr()
    assert "nothing on this device can run a bundle" in err
    if as_json:
        assert json.loads(out)["can_run"] is False
    else:
        assert "pip install 'nsn-edge[ort]'" in out
        assert "onnxruntime: running bundles" in out
