"""Which Jetson this is, and with which JetPack: read from files, never guessed from a host name.

    /etc/nv_tegra_release                      # R38 (release), REVISION: 2.0, GCID: ..., BOARD: generic, ...
    /sys/firmware/devicetree/base/model        NVIDIA Jetson AGX Thor Developer Kit, and a NUL
    /sys/firmware/devicetree/base/compatible   nvidia,p3971-0080+p3834-0008 NUL nvidia,tegra264 NUL

A carrier board of another maker has any model it likes, so the family comes from the chip where the device tree names
it, and from the model's words otherwise. A container has the device tree but often not the release file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

_TREES = ("sys/firmware/devicetree/base", "proc/device-tree")

_RELEASE = re.compile(r"#\s*R(\d{1,3})\s*\(release\),\s*REVISION:\s*(\d{1,3}(?:\.\d{1,3})*)")

_CHIP = re.compile(r"nvidia,tegra(\d{3})\b")

_FAMILY_OF_CHIP = {"210": "Nano", "186": "TX2", "194": "Xavier", "234": "Orin", "264": "Thor"}

_TX1 = re.compile(r"\btx1\b|jetson[_-]tx1|jetson-cv|p2371-2180", re.IGNORECASE)
"""The TX1 has the Nano's chip."""

_FAMILY_WORDS = (
    # Orin before Nano: "Orin Nano" is an Orin, "Xavier NX" and "Jetson-AGX" (JetPack 4) are Xaviers.
    ("Thor", re.compile(r"\bthor\b", re.IGNORECASE)),
    ("Orin", re.compile(r"\borin\b", re.IGNORECASE)),
    ("Xavier", re.compile(r"\bxavier\b|^jetson-agx$", re.IGNORECASE)),
    ("TX2", re.compile(r"\btx2\b|^quill$", re.IGNORECASE)),
    ("TX1", _TX1),
    ("Nano", re.compile(r"\bnano\b", re.IGNORECASE)),
)

_JETPACK = {
    "35.1": "5.0.2",
    "35.2": "5.1",
    "35.3": "5.1.1",
    "35.4": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4 or 5.1.5",
    "36.3": "6.0",
    "36.4": "6.1 or 6.2",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
"""By Jetson Linux release. https://developer.nvidia.com/embedded/jetpack-archive"""

_JETPACK_GENERATION = {"28": 3, "31": 4, "32": 4, "34": 5, "35": 5, "36": 6, "38": 7, "39": 7}


@dataclass(frozen=True)
class JetsonBoard:
    """A Jetson, as far as its files tell."""

    model: str | None = None
    """As the device tree calls it."""
    family: str | None = None
    """`Nano`, `TX1`, `TX2`, `Xavier`, `Orin` or `Thor`."""
    l4t: str | None = None
    """The Linux for Tegra release, `36.4.3`."""

    @property
    def jetpack_generation(self) -> int | None:
        """3 to 7; None for a release that this table does not know."""
        return _JETPACK_GENERATION.get((self.l4t or "").partition(".")[0])

    @property
    def jetpack(self) -> str | None:
        """JetPack's version as exactly as the release tells it: `6.1 or 6.2`, or just `4`."""
        if self.l4t is None:
            return None
        exact = _JETPACK.get(".".join(self.l4t.split(".")[:2]))
        generation = self.jetpack_generation
        return exact or (str(generation) if generation is not None else None)


def identify(root: Path = Path("/")) -> JetsonBoard | None:
    """The board, None where this is no Jetson. Never raises for what the files hold.

    Args:
        root: where `etc/`, `sys/` and `proc/` are.
    """
    files = SensorFiles()
    release = _RELEASE.match(files.text(root / "etc/nv_tegra_release") or "")
    model = next(filter(None, (files.text(root / tree / "model") for tree in _TREES)), None)
    compatible = next(filter(None, (files.text(root / tree / "compatible") for tree in _TREES)), None) or ""
    chip = _CHIP.search(compatible)
    # The device tree of another maker's ARM board may say "Nano", too.
    is_jetson = release is not None or chip is not None or re.search(r"\bjetson\b", model or "", re.IGNORECASE)
    if not is_jetson:
        return None
    return JetsonBoard(
        model=model,
        family=_family(model or "", compatible, chip[1] if chip else None),
        l4t=f"{release[1]}.{release[2]}" if release else None,
    )


def _family(model: str, compatible: str, chip: str | None) -> str | None:
    if chip in _FAMILY_OF_CHIP:
        is_tx1 = chip == "210" and (_TX1.search(model) or _TX1.search(compatible))
        return "TX1" if is_tx1 else _FAMILY_OF_CHIP[chip]
    return next((family for family, words in _FAMILY_WORDS if words.search(model)), None)
