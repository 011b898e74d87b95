"""Named arrays from an `.npz` file. It comes from outside: nothing in it is unpickled, whatever it claims to be."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.errors import UsageError

_ZIP = b"PK"
_NPY = b"\x93NUMPY"
_DAMAGE = (ValueError, EOFError, OSError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
_HOW = "save it with numpy.savez(FILE, input_name=array)"


def read_arrays(path: Path | str) -> dict[str, npt.NDArray[Any]]:
    """Every array of an `.npz` file by name.

    Raises:
        UsageError: the file is missing, is no `.npz` file, is damaged, or holds Python objects.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", "name an .npz file") from error
    # Looked at first: of a file that is neither, numpy says that it may be a pickle and how to load it all the same.
    if data.startswith(_NPY):
        raise UsageError(f"{path} holds one unnamed array", _HOW)
    if not data.startswith(_ZIP):
        raise UsageError(f"{path} is not an .npz file", _HOW)
    try:
        # From memory: numpy leaves the file open when the archive is damaged.
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        arrays = {name: archive[name] for name in archive.files}
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        if "allow_pickle" in reason:
            raise UsageError(f"{path} holds Python objects, which are never unpickled", "save plain numbers") from error
        raise UsageError(f"{path} is a damaged .npz file: {reason or type(error).__name__}", _HOW) from error
    if strays := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise UsageError(f"{strays[0]!r} in {path} is no array", _HOW)
    if not arrays:
        raise UsageError(f"{path} holds no arrays", _HOW)
    return arrays
