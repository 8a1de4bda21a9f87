"""Heads: a recurrent matrix that is block-diagonal, so that each head of H/N units sees only its own past.

    R = diag(R_0, ..., R_{N-1}),    R_n [G, H/N, H/N],    stored as weight_hh [G*H, H/N]

Row g*H + u of weight_hh belongs to gate g of unit u and has the columns of that unit's own head, n = u // (H/N). The
heads of a layer share its input and nothing else, so they are N layers of H/N units side by side: every option acts in
each of them. No torch in here; arrays are tensors or NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def check_heads(function: str, num_heads: object, H: int, P: int, layer_norm: bool) -> None:
    """Raises unless a layer of H units can have this many heads."""
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"{function}: num_heads is a {type(num_heads).__name__}, expected an int")
    if num_heads < 1 or H % num_heads:
        raise ValueError(f"{function}: num_heads is {num_heads}, expected a divisor of the hidden size, {H}")
    if num_heads == 1:
        return
    if P:
        raise ValueError(
            f"{function}: num_heads is {num_heads} with a projection of {P}, expected 1: a projection mixes the heads"
        )
    if layer_norm:
        raise ValueError(
            f"{function}: num_heads is {num_heads} with layer_norm=True, expected 1: the norm is over the units of all heads"
        )


def split_rows(w: Any, num_heads: int, H: int) -> list[Any]:
    """A weight or bias [K*H, ...] as one [K*H/N, ...] for each head."""
    if num_heads == 1:
        return [w]  # which may have no columns
    parts = w.reshape(-1, num_heads, H // num_heads, *w.shape[1:]).swapaxes(0, 1)
    return [part.reshape(-1, *w.shape[1:]) for part in parts]


def split_units(s: Any, num_heads: int) -> list[Any]:
    """A state [..., H] as one [..., H/N] for each head."""
    width = s.shape[-1] // num_heads
    return [s[..., n * width : (n + 1) * width] for n in range(num_heads)]


def join_units(parts: Sequence[Any], directions: int, concatenate: Callable[..., Any]) -> Any:
    """[..., D*H/N] of each head as [..., D*H]: torch.cat or numpy.concatenate."""
    width = parts[0].shape[-1] // directions
    return concatenate([p[..., d * width : (d + 1) * width] for d in range(directions) for p in parts], -1)
