"""Which Jetson: from the release file, the device tree, or either alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jetson_trees import BOARDS, write_file, write_identity

from nsn_edge.runtimes.telemetry.jetson import JetsonBoard, identify
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles


@pytest.mark.parametrize(
    ("board", "expected", "jetpack", "generation"),
    [
        ("nano-jp4", JetsonBoard("NVIDIA Jetson Nano Developer Kit", "Nano", "32.7.4"), "4", 4),
        ("tx2-jp4", JetsonBoard("quill", "TX2", "32.7.1"), "4", 4),
        ("agx-xavier-jp4", JetsonBoard("Jetson-AGX", "Xavier", "32.7.1"), "4", 4),
        ("orin-nano-jp5", JetsonBoard("NVIDIA Orin Nano Developer Kit", "Orin", "35.4.1"), "5.1.2", 5),
        ("agx-orin-jp6", JetsonBoard("NVIDIA Jetson AGX Orin Developer Kit", "Orin", "36.4.3"), "6.1 or 6.2", 6),
        ("thor-r38", JetsonBoard("NVIDIA Jetson AGX Thor Developer Kit", "Thor", "38.2.0"), "7.0", 7),
    ],
)
def test_each_generation(tmp_path: Path, board: str, expected: JetsonBoard, jetpack: str, generation: int) -> None:
    found = identify(BOARDS[board](tmp_path))
    assert found == expected
    assert (found.jetpack, found.jetpack_generation) == (jetpack, generation)


@pytest.mark.parametrize(
    ("model", "compatible", "family"),
    [
        ("Some Maker's Camera", "maker,camera nvidia,tegra234", "Orin"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "nvidia,p3509-0000+p3668-0000 nvidia,tegra194", "Xavier"),
        ("jetson_tx1", "nvidia,jetson-cv nvidia,tegra210", "TX1"),
        ("A board of 2030", "nvidia,tegra999", None),
    ],
)
def test_the_chip_tells_the_family_in_a_container_without_the_release(
    tmp_path: Path, model: str, compatible: str, family: str | None
) -> None:
    write_identity(tmp_path, model, compatible, release=None)
    assert identify(tmp_path) == JetsonBoard(model, family, None)
    assert identify(tmp_path).jetpack is None


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("NVIDIA Jetson Orin NX", "Orin"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "Orin"),
        ("NVIDIA Jetson Xavier NX", "Xavier"),
        ("NVIDIA Jetson TX2 NX", "TX2"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "Thor"),
        ("NVIDIA Jetson Nano", "Nano"),
        ("NVIDIA Jetson of a coming year", None),
    ],
)
def test_the_models_words_tell_the_family_without_a_chip(tmp_path: Path, model: str, family: str | None) -> None:
    write_file(tmp_path / "proc/device-tree/model", f"{model}\0")
    assert identify(tmp_path) == JetsonBoard(model, family, None)


def test_a_release_alone_is_a_jetson_whose_family_is_unknown(tmp_path: Path) -> None:
    write_file(tmp_path / "etc/nv_tegra_release", "# R99 (release), REVISION: 1.2, GCID: 1\n")
    found = identify(tmp_path)
    assert found == JetsonBoard(None, None, "99.1.2")
    assert found.jetpack is None
    assert found.jetpack_generation is None


@pytest.mark.parametrize(
    "model", ["Raspberry Pi 5 Model B Rev 1.0", "Orange Nano", "FriendlyElec NanoPi R5S", "Xavier's laptop"]
)
def test_other_boards_are_none(tmp_path: Path, model: str) -> None:
    write_identity(tmp_path, model, "maker,board brcm,bcm2712", release=None)
    assert identify(tmp_path) is None


def test_an_empty_root_and_this_machine_can_be_asked(tmp_path: Path) -> None:
    assert identify(tmp_path) is None
    found = identify()
    assert found is None or isinstance(found, JetsonBoard)


@given(release=st.text(max_size=80), model=st.text(max_size=40), compatible=st.text(max_size=40))
def test_any_text_in_the_files_is_survived(release: str, model: str, compatible: str) -> None:
    texts = {"nv_tegra_release": f"# R{release}", "model": model, "compatible": f"nvidia,tegra{compatible}"}

    class Files(SensorFiles):
        def text(self, path: Path) -> str | None:
            return texts.get(path.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nsn_edge.runtimes.telemetry.jetson.board.SensorFiles", Files)
        found = identify(Path("/nowhere"))
    if found is not None:
        assert found.family in (None, "Nano", "TX1", "TX2", "Xavier", "Orin", "Thor")
        assert found.jetpack_generation in (None, 3, 4, 5, 6, 7)
