"""Arrays from outside: what numpy saved comes back, and nothing else is believed or unpickled."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nsn_edge.arrays import read_arrays
from nsn_edge.errors import UsageError


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_was_saved_comes_back(tmp_path: Path, save: Callable[..., None]) -> None:
    file = tmp_path / "in.npz"
    save(file, ids=np.arange(6).reshape(2, 3), x=np.float32(0.5))
    arrays = read_arrays(file)
    assert list(arrays) == ["ids", "x"]
    np.testing.assert_array_equal(arrays["ids"], [[0, 1, 2], [3, 4, 5]])
    assert (arrays["x"].dtype, arrays["x"].shape) == (np.float32, ())


def cut(file: Path) -> None:
    np.savez(file, x=np.zeros(1000))
    file.write_bytes(file.read_bytes()[:500])


def flip(file: Path) -> None:
    np.savez(file, x=np.zeros(1000))
    data = bytearray(file.read_bytes())
    data[1000] ^= 0xFF
    file.write_bytes(data)


def flip_compressed(file: Path) -> None:
    np.savez_compressed(file, x=np.arange(1000))
    data = bytearray(file.read_bytes())
    data[120:140] = b"\xff" * 20
    file.write_bytes(data)


def claim_a_terabyte(file: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (125000000000,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def one_array(file: Path) -> None:
    with file.open("wb") as stream:
        np.save(stream, np.zeros(3))


def no_arrays(file: Path) -> None:
    zipfile.ZipFile(file, "w").close()


def other_files(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("letter.txt", "dear")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: None, "cannot read"),
        (lambda file: file.mkdir(), "cannot read"),
        (lambda file: file.write_bytes(b""), "is not an .npz file"),
        (lambda file: file.write_bytes(b"\x80\x04text"), "is not an .npz file"),
        (cut, "is a damaged .npz file"),
        (flip, "is a damaged .npz file"),
        (flip_compressed, "is a damaged .npz file"),
        (claim_a_terabyte, "is a damaged .npz file"),
        (one_array, "holds one unnamed array"),
        (no_arrays, "holds no arrays"),
        (other_files, "'letter.txt' in .* is no array"),
    ],
)
def test_what_is_none_is_one_line(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    file = tmp_path / "in.npz"
    write(file)
    with pytest.raises(UsageError, match=message) as caught:
        read_arrays(file)
    assert str(file) in caught.value.message
    assert caught.value.hint
    assert "pickle" not in str(caught.value), "no advice to load it all the same"


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "in.npz"
    np.savez(file, x=np.array([Trap(mark)], dtype=object))
    with pytest.raises(UsageError, match="never unpickled"):
        read_arrays(file)
    file.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(UsageError, match=r"is not an \.npz file"):
        read_arrays(file)
    assert not mark.exists()
    pickle.loads(file.read_bytes())
    assert mark.exists(), "the trap works"
