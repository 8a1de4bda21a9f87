"""What the CUDA runtime reports about this machine; absent from a build for the CPU alone."""

from typing import TypedDict

class Device(TypedDict):
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    smem_bytes_per_block: int  # the most shared memory that one block can opt in to

def device_count() -> int: ...
def devices() -> list[Device]: ...
def error() -> str: ...  # why no device is usable; "" if one is
def runtime_version() -> int: ...  # 13000 for 13.0
def driver_version() -> int: ...  # 0 without a driver
