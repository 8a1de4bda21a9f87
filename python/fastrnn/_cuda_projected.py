"""A CUDA layer of an LSTM with projection, around a recurrence that knows none; the formulas are in _cuda_projection.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _cuda_norm
from . import _cuda_projection as projection
from ._backprop import Backprop
from ._cells import NORMALISED
from ._cuda_products import Direction, input_gradient, weight_gradients

if TYPE_CHECKING:
    from ._cuda_kernels import Recurrence


def split(reserve: Tensor) -> tuple[Tensor, Tensor]:
    """Of a projected layer's reserve: what the kernel keeps, and h before the projection [T*B, D*H] after it."""
    D, T, B, slots, H = reserve.shape
    kept, m = reserve.view(-1).split((D * T * B * (slots - 1) * H, D * T * B * H))
    return kept, m.view(T * B, D * H)


def _by_direction(t: Tensor | None, D: int, batch_first: bool) -> Sequence[Tensor | None]:
    """Views [T, B, ...] of the columns of each direction."""
    return [None] * D if t is None else (t.transpose(0, 1) if batch_first else t).chunk(D, dim=-1)


def forward(
    recurrence: Recurrence,
    gx: Tensor,
    states: Sequence[Tensor | None],
    ways: Sequence[Direction],
    y: Tensor,
    reserve: Tensor | None,
) -> list[Tensor]:
    """Fills y and the reserve; the last states h [D, B, P] and c [D, B, H]."""
    T, B, _, H, D = recurrence.shape
    kept, m = (None, y.new_empty(T * B, D * H)) if reserve is None else split(reserve)
    rows = recurrence.rows()
    h0 = [None] * D if states[0] is None else states[0]
    first_product = None
    if recurrence.cell not in NORMALISED:
        for d, own in enumerate(_by_direction(gx, D, recurrence.batch_first)):
            projection.add_initial(own, h0[d], ways[d].w_hh, rows, d)
    elif states[0] is not None:  # W_hh h0 belongs into the norm of R m
        first_product = torch.stack([h @ way.w_hh.t() for h, way in zip(h0, ways)])
    last = recurrence.forward(gx, [None, states[1]], m.view(*y.shape[:2], D * H), kept, first_product)
    for way, own_m, own_y in zip(ways, m.chunk(D, dim=1), y.flatten(0, 1).chunk(D, dim=1)):
        torch.mm(own_m, way.w_hr.t(), out=own_y)
    own = _by_direction(y, D, recurrence.batch_first)
    last[0] = torch.stack([projection.last_of(own[d], h0[d], rows, d) for d in range(D)])
    return last


def backward(
    recurrence: Recurrence,
    x: Tensor,
    y: Tensor,
    reserve: Tensor,
    dy: Tensor | None,
    above: Sequence[Tensor | None],
    states: Sequence[Tensor | None],
    ways: Sequence[Direction],
    wanted: Sequence[bool],
    dcs: Tensor | None,
    backprop: Backprop | None,
    gates: Callable[[Tensor, Tensor, Tensor], Tensor | None] | None,
) -> list[Tensor]:
    """All gradients of a layer with projection; the formulas are in _cuda_projection.py."""
    (T, _, _, H, D), batch_first = recurrence.shape, recurrence.batch_first
    rows = recurrence.rows()
    kept, m = split(reserve)
    m = m.view(*y.shape[:2], D * H)
    h0, dh = ([None] * D if t is None else t for t in (states[0], above[0]))
    own_y, own_dy = (_by_direction(t, D, batch_first) for t in (y, dy))
    dys = [projection.gradient_of_y(own_dy[d], dh[d], own_y[d], rows, d) for d in range(D)]
    dm = torch.cat([g @ way.w_hr for g, way in zip(dys, ways)], dim=-1)
    dm = dm.transpose(0, 1) if batch_first else dm
    above = [None, above[1]]
    dgx, dgr, m_prev, dvectors, (_, dc0) = recurrence.backward(
        dm, above, [None, states[1]], m, kept, dcs, gates, backprop
    )
    firsts = [projection.gradient_at_starts(g, rows, d) for d, g in enumerate(dgr.chunk(D, dim=-1))]
    dh0 = [projection.gradient_of_h0(firsts[d], ways[d].w_hh, dh[d], rows, T) for d in range(D)]
    sums = ()
    timed = x.transpose(0, 1) if batch_first else x
    if recurrence.cell in NORMALISED:
        dgx, sums = _cuda_norm.gradients(timed, ways, recurrence.lengths, dgx, dgr, m_prev, dvectors)
    elif any(wanted[3:]):
        sums = weight_gradients(timed, ways, recurrence.lengths, dgx, dgr, m_prev, dvectors, None)
    found = [input_gradient(dgx, ways, batch_first) if wanted[0] else None, torch.stack(dh0), dc0]
    own_m = _by_direction(m, D, batch_first)
    for d, (dw_ih, dR, *dbiases) in enumerate(sums):
        own = dys[d], own_m[d], firsts[d], h0[d], ways[d].w_hh, ways[d].w_hr
        dw_hh, dw_hr = projection.weight_gradients(dR, *own)
        found += [dw_ih, dw_hh, *(g for g in dbiases if g is not None), dw_hr]
    return found
