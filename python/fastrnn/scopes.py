"""Which keys a query looks at, as masks for the functions and modules of attention: causal, sliding and local windows.

A mask is bool [Tq, Tk] or [..., Tq, Tk], true where a key may be attended. Masks combine with `&`, and with `lengths`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._tensor_checks import check_dense, check_memory

__all__ = ["causal", "local_gaussian", "local_window", "sliding_window"]


def causal(Tq: int, Tk: int, *, bottom_right: bool = False, device: Any = None) -> Tensor:
    """No key after the query: k <= q.

    Args:
        Tq, Tk: numbers of queries and keys.
        bottom_right: True for k - Tk <= q - Tq: the last query sees all keys, as when the first queries are done
            already.
        device: of the result.

    Returns:
        bool [Tq, Tk].

    Example:
        >>> causal(2, 3).int().tolist(), causal(2, 3, bottom_right=True).int().tolist()
        ([[1, 0, 0], [1, 1, 0]], [[1, 1, 0], [1, 1, 1]])
    """
    return _distance("causal", Tq, Tk, bottom_right, device) <= 0


def sliding_window(
    Tq: int, Tk: int, window: int | tuple[int, int], *, bottom_right: bool = False, device: Any = None
) -> Tensor:
    """Keys near the query's own position: q - before <= k <= q + after; with before = after Luong's local-m.

    Args:
        Tq, Tk: numbers of queries and keys.
        window: how many keys before and after that position; one number for both. (D, 0) is causal.
        bottom_right: positions counted from the ends, as in causal().
        device: of the result.

    Returns:
        bool [Tq, Tk].

    Raises:
        ValueError: the window is negative, or larger than the memory.

    Example:
        >>> sliding_window(3, 3, (1, 0)).int().tolist()
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    pair = window if isinstance(window, (tuple, list)) else (window, window)
    if len(pair) != 2:
        raise ValueError(f"sliding_window: window is {window!r}, expected an int or a pair (before, after)")
    before, after = (_checked_window("sliding_window", n, Tk, 0) for n in pair)
    distance = _distance("sliding_window", Tq, Tk, bottom_right, device)
    return (-before <= distance) & (distance <= after)


def local_window(center: Tensor, Tk: int, window: int) -> Tensor:
    """Keys within a window around given positions: |k - center| <= window (local attention of Luong et al. 2015).

    Args:
        center: [..., Tq] positions, integers or not.
        Tk: number of keys.
        window: D, how far to either side.

    Returns:
        bool [..., Tq, Tk].

    Raises:
        ValueError: the window is negative, or larger than the memory.

    Example:
        >>> local_window(torch.tensor([0.4, 2.6]), 4, 1).int().tolist()
        [[1, 1, 0, 0], [0, 0, 1, 1]]
    """
    window = _checked_window("local_window", window, Tk, 0)
    return _from_center("local_window", center.detach() if isinstance(center, Tensor) else center, Tk).abs() <= window


def local_gaussian(center: Tensor, Tk: int, window: int) -> Tensor:
    """log exp(-(k - center)^2 / (2 sigma^2)) with sigma = D / 2, the bell over the window (Luong et al. 2015, eq. 10).

    Its exponential multiplies weights; itself it is a `bias` of scores, which does the same before the softmax.

    Args:
        center: [..., Tq] floating-point positions; differentiable.
        Tk: number of keys.
        window: D, at least 1.

    Returns:
        [..., Tq, Tk].

    Raises:
        ValueError: the window is smaller than 1, or larger than the memory.

    Example:
        >>> local_gaussian(torch.tensor([0.5]), 3, 1).tolist()
        [[-0.5, -0.5, -4.5]]
    """
    window = _checked_window("local_gaussian", window, Tk, 1)
    distance = _from_center("local_gaussian", center, Tk)
    if not distance.dtype.is_floating_point:
        raise _checks.dtype_error("local_gaussian", "center", center.dtype, "a floating-point dtype")
    return distance.square() * (-2 / window**2)


def _checked_window(function: str, window: object, Tk: int, least: int) -> int:
    if isinstance(Tk, bool) or not isinstance(Tk, int) or Tk < 0:
        raise ValueError(f"{function}: Tk is {Tk!r}, expected an int of at least 0")
    if isinstance(window, bool) or not isinstance(window, int) or window < least:
        raise ValueError(f"{function}: window is {window!r}, expected an int of at least {least}")
    if window > Tk:
        raise ValueError(f"{function}: window is {window}, expected at most the number of keys, {Tk}")
    return window


def _distance(function: str, Tq: int, Tk: int, bottom_right: bool, device: Any) -> Tensor:
    """k - q."""
    for name, n in (("Tq", Tq), ("Tk", Tk)):
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"{function}: {name} is {n!r}, expected an int of at least 0")
    q = torch.arange(Tq, device=device) + (Tk - Tq if bottom_right else 0)
    return torch.arange(Tk, device=device) - q.unsqueeze(-1)


def _from_center(function: str, center: Tensor, Tk: int) -> Tensor:
    """k - center; a position in a narrow type is taken as float32, in which keys can still be told apart."""
    check_dense(function, "center", center)
    if center.dtype is torch.bool or center.is_complex() or center.is_quantized:
        raise _checks.dtype_error(function, "center", center.dtype, "an integer or a floating-point dtype")
    check_memory(function, "center", center)
    center = center.float() if center.dtype in (torch.bfloat16, torch.float16) else center
    return torch.arange(Tk, device=center.device, dtype=center.dtype) - center.unsqueeze(-1)
