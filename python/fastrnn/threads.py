"""How many threads a call may use.

The rule, in order: fastrnn.set_num_threads(), FASTRNN_NUM_THREADS, torch.get_num_threads() where torch is loaded (so
that DataLoader workers, where torch sets it to 1, stay single-threaded), else the CPUs that this process may run on.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from . import _core

_explicit = bool(os.environ.get("FASTRNN_NUM_THREADS"))


def set_num_threads(n: int) -> None:
    """Sets the number of threads of every later call.

    Args:
        n: at least 1; a call uses fewer where more would not pay.

    Raises:
        ValueError: n is not an integer of at least 1.
    """
    global _explicit
    if isinstance(n, bool) or not isinstance(n, int):
        raise ValueError(f"set_num_threads: n is {n!r}, expected an integer of at least 1")
    _core.set_num_threads(max(n, -1) if n < 1 else min(n, 2**31 - 1))
    _explicit = True


def get_num_threads() -> int:
    """The number of threads that a call may use now.

    Raises:
        ValueError: FASTRNN_NUM_THREADS is not an integer of at least 1.
    """
    return current() or _core.num_threads()


def current(modules: dict[str, Any] = sys.modules) -> int:
    """The `threads` argument of the kernels: torch's number, or 0 for the engine's own."""
    if _explicit:
        return 0
    torch = modules.get("torch")
    return torch.get_num_threads() if torch is not None and hasattr(torch, "get_num_threads") else 0
