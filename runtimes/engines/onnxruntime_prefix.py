"""The first rows of an onnxruntime tensor, on whatever device it lies, without a copy."""

from __future__ import annotations

import ctypes
from typing import Any


def first_rows(ort: Any, value: Any, rows: int) -> Any:
    """The first rows of an `OrtValue`, in the same memory, which stays as long as they do.

    Its DLPack description is taken over with another shape. onnxruntime lends its own array of sizes there, which must
    not be written to: the pointer is changed, and changed back once the sizes were read. Strides, where there are any,
    stay right: how far apart rows lie does not depend on how many there are.
    """
    sizes = value.shape()
    assert 1 <= rows <= sizes[0]
    capsule = value.__dlpack__()
    description = _Tensor.from_address(_address_in(capsule, b"dltensor"))
    lent = ctypes.cast(description.shape, ctypes.c_void_p)
    description.shape = (ctypes.c_int64 * len(sizes))(rows, *sizes[1:])
    try:
        return ort.OrtValue.from_dlpack(capsule)
    finally:
        description.shape = ctypes.cast(lent, ctypes.POINTER(ctypes.c_int64))


class _Tensor(ctypes.Structure):
    """DLTensor of https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h, with which a DLManagedTensor
    begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _address_in(capsule: Any, name: bytes) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address = get(capsule, name)
    assert isinstance(address, int)
    return address
