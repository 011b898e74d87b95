"""What `pip install` gives: the rooms under one name, their data, nothing else; built from the tracked files alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_bundle import write_text_bundle

from nsn_edge._version import __version__

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"export": "nsn_edge/export", "runtimes": "nsn_edge/runtimes"}
"""Top-level folders, and where the links inside the package put them."""


@dataclass(frozen=True)
class Built:
    """A source tree and what was built from it."""

    tracked: list[str]
    wheel: Path
    sdist: Path
    wheel_of_sdist: Path


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so nothing says which files are tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def build(source: Path, out: Path, *kinds: str) -> list[Path]:
    line = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *kinds, str(source)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return sorted(out.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root = tmp_path_factory.mktemp("build")
    tracked = tracked_files()
    for name in tracked:
        target = root / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    sdist, wheel = sorted(build(root / "source", root / "out", "--sdist", "--wheel"), key=lambda file: file.suffix)
    with tarfile.open(sdist) as archive:
        archive.extractall(root / "unpacked", filter="data")
    (unpacked,) = (root / "unpacked").iterdir()
    (wheel_of_sdist,) = build(unpacked, root / "again", "--wheel")
    return Built(tracked, wheel, sdist, wheel_of_sdist)


@pytest.fixture(scope="module")
def site(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed where the checkout does not reach."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    options = ["--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([*line, *options, str(built.wheel)], check=True, timeout=120)
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def expected(tracked: list[str]) -> set[str]:
    """Where the package's tracked files belong in a wheel."""
    found = set()
    for name in tracked:
        folder, _, rest = name.partition("/")
        if Path(name).suffix in {".py", ".typed", ".csv", ".toml"} and rest:
            if folder == "nsn_edge":
                found.add(name)
            elif folder in ROOMS:
                found.add(f"{ROOMS[folder]}/{rest}")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    info = f"nsn_edge-{__version__}.dist-info"
    files = contents(built.wheel)
    packaged = {name for name in files if not name.startswith(info)}
    assert packaged == expected(built.tracked)
    assert {"nsn_edge/export/exporter.py", "nsn_edge/runtimes/policy/base.py", "nsn_edge/py.typed"} <= packaged
    assert {name.rpartition(".")[2] for name in packaged} == {"py", "typed", "csv", "toml"}
    assert f"{info}/licenses/LICENSE" in files
    entry_points = files[f"{info}/entry_points.txt"].decode()
    assert "nsn-edge = nsn_edge.cli:entry_point" in entry_points


def test_the_files_are_those_of_the_checkout(built: Built) -> None:
    files = contents(built.wheel)
    for name in expected(built.tracked):
        assert files[name] == (ROOT / name).read_bytes(), name


def test_the_sdist_builds_the_same_wheel(built: Built) -> None:
    assert built.wheel_of_sdist.name == built.wheel.name
    first, second = contents(built.wheel), contents(built.wheel_of_sdist)
    record = f"nsn_edge-{__version__}.dist-info/RECORD"
    assert set(first) == set(second)
    assert sorted(first.pop(record).splitlines()) == sorted(second.pop(record).splitlines())
    assert first == second


def test_the_sdist_holds_what_a_packager_needs(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_version_is_the_packages(built: Built) -> None:
    metadata = contents(built.wheel)[f"nsn_edge-{__version__}.dist-info/METADATA"].decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    for extra in ("ort", "export", "demo"):
        assert f"\nProvides-Extra: {extra}\n" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra" not in line]
    assert {line.split()[1].split(">")[0] for line in required} == {"numpy", "click", "rich", "tomli"}


def installed(site: Path, *line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(site), "PATH": "", "HOME": str(cwd)}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_no_stray_package_is_installed(site: Path) -> None:
    assert {path.name for path in site.iterdir()} == {"bin", "nsn_edge", f"nsn_edge-{__version__}.dist-info"}
    assert not any(path.is_symlink() for path in site.rglob("*"))


def test_the_script_answers(site: Path, tmp_path: Path) -> None:
    done = installed(site, str(site / "bin" / "nsn-edge"), "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"nsn-edge, version {__version__}\n"), done.stderr


def test_the_rooms_import_from_the_wheel(site: Path, tmp_path: Path) -> None:
    code = "import nsn_edge.export.exporter as e, nsn_edge.runtimes.session as s; print(e.__file__); print(s.__file__)"
    done = installed(site, sys.executable, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(site / "nsn_edge" / name) for name in ("export/exporter.py", "runtimes/session.py")
    ]


def test_the_packaged_policy_and_trace_are_found(site: Path, tmp_path: Path) -> None:
    write_text_bundle(tmp_path / "bundle")
    line = (str(site / "bin" / "nsn-edge"), "simulate", "bundle", "--no-queries")
    done = installed(site, *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "field_shift.csv" in done.stdout
