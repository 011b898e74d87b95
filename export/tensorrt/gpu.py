"""Which GPU is here, asked of the driver itself: what an engine is locked to."""

from __future__ import annotations

import ctypes

from nsn_edge.bundle.engines import EngineDevice

_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def current_gpu(number: int = 0) -> EngineDevice | None:
    """Name and compute capability of a GPU; None where there is no driver or no such GPU."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    values = [ctypes.c_int(), ctypes.c_int()]
    try:
        driver = ctypes.CDLL(_DRIVER)
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), number)
            or driver.cuDeviceGetName(name, len(name), device)
            or driver.cuDeviceGetAttribute(ctypes.byref(values[0]), _MAJOR, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(values[1]), _MINOR, device)
        )
    except (OSError, AttributeError):
        return None
    if failed:
        return None
    major, minor = (value.value for value in values)
    return EngineDevice(name.value.decode(errors="replace"), f"{major}.{minor}")
