"""What NVIDIA's driver says of this machine's GPU; asked by ctypes, so that neither CUDA nor torch is needed for it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute of the compute capability


@dataclass(frozen=True)
class Gpu:
    """The first GPU: its name, compute capability such as "9.0", and the newest CUDA version its driver runs."""

    name: str
    capability: str
    cuda: str


def find_gpu() -> Gpu | None:
    """The first GPU that this process sees, None without a driver or a device."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    count, version = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return None
    name = ctypes.create_string_buffer(256)
    if driver.cuDeviceGetName(name, 256, 0) or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    capability = ".".join(str(_attribute(driver, which)) for which in (_MAJOR, _MINOR))
    return Gpu(name.value.decode(), capability, f"{version.value // 1000}.{version.value % 1000 // 10}")


def _attribute(driver: ctypes.CDLL, which: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, 0)
    return value.value
