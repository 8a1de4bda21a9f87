"""The long products of a CUDA layer, over all its steps at once, by torch (cuBLAS): what the serial part leaves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _cuda_projection as projection
from ._noise import Noise


def without_autocast(function: Callable) -> Callable:
    """Products then have the dtypes of what they are given, which kernels rely on; what to cast has been decided before."""

    @functools.wraps(function)
    def call(*args, **options):
        kind = next(a for a in args if isinstance(a, Tensor)).device.type
        if not torch.is_autocast_enabled(kind):
            return function(*args, **options)
        with torch.autocast(kind, enabled=False):
            return function(*args, **options)

    return call


class Direction(NamedTuple):
    """The weights of one direction."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None


def project_input(x: Tensor, ways: Sequence[Direction], gx: Tensor | None = None) -> Tensor:
    """W_ih x + b_ih of all directions, with the first two dimensions of x; into gx where it is given."""
    GH = ways[0].w_ih.shape[0]
    gx = x.new_empty(*x.shape[:2], len(ways) * GH) if gx is None else gx
    for way, out in zip(ways, gx.flatten(0, 1).chunk(len(ways), dim=1)):
        flat, w = x.flatten(0, 1), way.w_ih.t()
        torch.mm(flat, w, out=out) if way.b_ih is None else torch.addmm(way.b_ih, flat, w, out=out)
    return gx


def project_again(
    x: Tensor,
    h0: Tensor | None,
    y: Tensor,
    rows: projection.Rows,
    ways: Sequence[Direction],
    noise: Noise | None,
    dgx: Tensor,
    dgr: Tensor,
    h_prev: Tensor | None = None,
) -> None:
    """What the gates of all steps are made of, as the forward loop had it step by step: W_ih x + b_ih into dgx, and R h
    + b_hh into dgr, or added to dgx if that is the same. x [T, B, I], y [T, B, D*H], with a projection D*P; h_prev is
    not needed (see _cuda_norm.py)."""
    project_input(x, ways, dgx)
    for d, own in enumerate(y.chunk(len(ways), dim=-1)):
        way, (w, b) = dgr.flatten(0, 1).chunk(len(ways), dim=1)[d], ways[d][1:4:2]
        h = _before(own, None if h0 is None else h0[d], rows, d)
        h = (h if noise is None or noise.h_mask is None else h * noise.h_mask[d]).flatten(0, 1)[:, : w.shape[1]]
        if dgr is dgx:
            way.addmm_(h, w.t())
            if b is not None:
                way.add_(b[: w.shape[0]])
        elif b is None:
            torch.mm(h, w.t(), out=way)
        else:
            torch.addmm(b[: w.shape[0]], h, w.t(), out=way)


def _before(y: Tensor, h0: Tensor | None, rows: projection.Rows, d: int) -> Tensor:
    """h before each step [T, B, H] of direction d, from y [T, B, H]; anything in padding."""
    lengths, reset, to_initial = rows
    none = y.new_zeros(1, *y.shape[1:])
    h = torch.cat((y[1:], none) if d else (none, y[:-1]))
    if h0 is not None:
        h[projection.step_index(y, lengths, last=d == 1)] = h0
    if reset is not None:  # in reverse, the reset at t is between the steps at t and t-1, and none is before the first
        reset = torch.cat((reset[1:], reset.new_zeros(1, reset.shape[1]))) if d else reset
        if d and lengths is not None:
            last = projection.step_index(y, lengths, last=True)
            reset[last] = False
        starts = reset.unsqueeze(-1)
        h = torch.where(starts, h0, h) if to_initial and h0 is not None else h.masked_fill(starts, 0)
    return h


def input_gradient(dgx: Tensor, ways: Sequence[Direction], batch_first: bool) -> Tensor:
    w_ih = ways[0].w_ih if len(ways) == 1 else torch.cat([way.w_ih for way in ways])
    dx = (dgx.flatten(0, 1) @ w_ih).unflatten(0, dgx.shape[:2])
    return dx.transpose(0, 1).contiguous() if batch_first else dx


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [T, B, I] with zeros past the lengths: it may hold anything there, also NaN, which a gradient of zero would not
    hide."""
    if lengths is None:
        return x
    beyond = torch.arange(x.shape[0], device=x.device)[:, None] >= lengths
    return x.masked_fill(beyond.unsqueeze(-1), 0)


def weight_gradients(
    x: Tensor,
    ways: Sequence[Direction],
    lengths: Tensor | None,
    dgx: Tensor,
    dgr: Tensor,
    h_prev: Tensor,
    dvectors: Tensor | None,
    late: tuple[int, Tensor] | None,
) -> list[tuple[Tensor | None, ...]]:
    """For each direction the gradients of w_ih, the recurrent weights, b_ih, b_hh: sums over all steps and rows.

    x: [T, B, I]. late: of a cell whose late gates multiplied something else than h, how many rows of its weights these
        are, and the reserve, whose last slot has it.
    """
    x, D = without_padding(x, lengths).flatten(0, 1), len(ways)
    grads = []
    for d in range(D):
        to_x, to_h, h = (t.flatten(0, 1).chunk(D, dim=1)[d] for t in (dgx, dgr, h_prev))
        to_x, to_h = to_x.t(), to_h.t()
        if not ways[d].w_hh.shape[1]:  # no product
            dw_hh = to_h.new_empty(len(to_h), 0)
        elif late is None:
            dw_hh = to_h @ h
        else:
            early, u = to_h.shape[0] - late[0], late[1][d, :, :, -1].flatten(0, 1)
            dw_hh = torch.cat((to_h[:early] @ h, to_h[early:] @ u))
        db_ih = db_hh = None
        if ways[d].b_hh is not None:
            db_ih, db_hh = to_x.sum(1), to_h.sum(1)
            if dvectors is not None:
                db_hh = torch.cat((db_hh, dvectors.chunk(D, dim=2)[d].sum((0, 1))))
        grads.append((to_x @ x, dw_hh, db_ih, db_hh))
    return grads
