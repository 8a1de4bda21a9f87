"""What this machine runs: instruction set, cores, threads, torch, CUDA, and why something is off."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path

from . import _core, threads


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _caches() -> str:
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return ", ".join(found) or "not readable"


def _quota() -> str:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return "no cgroup quota readable"
    return "no cgroup quota" if quota == "max" else f"cgroup quota {float(quota) / float(period):.2f} CPUs"


def _torch() -> str:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "not installed: fastrnn.numpy works, fastrnn.nn needs pip install fastrnn[torch]"
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _cuda() -> str:
    try:
        cuda = importlib.import_module("fastrnn._cuda")
    except ImportError:
        return "off: built without nvcc (FASTRNN_CUDA=ON requires it)"
    devices = cuda.devices()
    if not devices:
        return f"off: {cuda.error() or 'no device found'}"
    names = ", ".join(str(device.get("name", device)) for device in devices)
    slow = "" if cuda.OPTIMIZED else "; kernels for tests, not optimized (FASTRNN_CUDA_FAST_COMPILE)"
    return f"{names}; runtime {cuda.runtime_version()}, driver {cuda.driver_version()}{slow}"


def report() -> dict[str, str]:
    """What this machine runs, as a dictionary of short texts in display order."""
    from . import __version__

    forced = os.environ.get("FASTRNN_ISA")
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    isas = ", ".join(_core.isas())
    return {
        "fastrnn": f"{__version__} ({Path(__file__).parent})",
        "python": f"{sys.version.split()[0]} on {platform.platform()}",
        "cpu": _cpu_name(),
        "isa": f"{_core.isa()} ({'forced by FASTRNN_ISA' if forced else 'the best'} of {isas})",
        "caches": _caches(),
        "cores": f"{affinity} usable of {os.cpu_count()}, {_quota()}",
        "threads": str(threads.get_num_threads()),
        "torch": _torch(),
        "cuda": _cuda(),
    }


def show_config() -> None:
    """Prints report()."""
    for name, text in report().items():
        print(f"{name:8} {text}")
