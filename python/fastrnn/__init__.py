"""Fast recurrent networks: drop-in torch modules, functions and NumPy layers over one compiled engine.

Importing this package loads neither torch nor NumPy; each front end is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._checks import DeviceError, DTypeError, ShapeError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import bench, diagnostics, functional, nn, normalizers, numpy, ops, plots, reference, scopes, weights
    from ._convert import convert, to_torch

_NEEDS_TORCH = ("diagnostics", "functional", "nn", "normalizers", "ops", "reference", "scopes")
_MODULES = (*_NEEDS_TORCH, "bench", "numpy", "plots", "weights")
_FROM = {
    "get_num_threads": "threads",
    "set_num_threads": "threads",
    "isa": "_core",
    "isas": "_core",
    "show_config": "info",
}

__all__ = [
    "DTypeError",
    "DeviceError",
    "ShapeError",
    "bench",
    "convert",
    "diagnostics",
    "functional",
    "get_num_threads",
    "isa",
    "isas",
    "nn",
    "normalizers",
    "numpy",
    "ops",
    "plots",
    "reference",
    "scopes",
    "set_isa",
    "set_num_threads",
    "show_config",
    "to_torch",
    "weights",
]


def set_isa(name: str = "") -> None:
    """Forces the instruction set of every later call.

    Args:
        name: one of isas(), "avx512", "avx2" or "scalar"; "" for the best.

    Raises:
        ValueError: this CPU cannot run it, or it is no such name.

    Example:
        >>> set_isa("scalar")
        >>> set_isa()
    """
    if not isinstance(name, str):
        raise ValueError(f"set_isa: name is {name!r}, expected one of {', '.join(__getattr__('isas')())}")
    importlib.import_module("fastrnn._core").set_isa(name)


def _with_torch(name: str, module: str) -> Any:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"fastrnn.{name} needs torch >= 2.4; install it with: pip install fastrnn[torch]") from error
    return importlib.import_module(f"fastrnn.{module}")


def __getattr__(name: str) -> Any:
    if name in ("convert", "to_torch"):
        value = getattr(_with_torch(name, "_convert"), name)
    elif name in _NEEDS_TORCH:
        value = _with_torch(name, name)
    elif name in _MODULES:
        value = importlib.import_module(f"fastrnn.{name}")
    elif name in _FROM:
        value = getattr(importlib.import_module(f"fastrnn.{_FROM[name]}"), name)
    else:
        raise AttributeError(f"module 'fastrnn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
