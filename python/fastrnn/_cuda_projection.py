"""LSTM with projection (Sak et al. 2014) by means of one without.

The state of such a layer is h = W_hr m with m = o * tanh(c), so what enters step t from the step before is
W_hh h(t-1) = (W_hh W_hr) m(t-1): a plain LSTM over m [H] whose recurrent weights are R = W_hh W_hr [4*H, H]. The serial
part keeps one product per step, in any schedule; y = W_hr m is one long product after it. Only the first step differs,
because h0 need not be the projection of anything: W_hh h0 is added to its projected input. Backward follows from this:

    dm = W_hr' (dy + dh at the last step)          what the kernel gets from above
    dR = sum over t of dg(t) m(t-1)'               the gradient of the kernel's weights, dg its gate gradients
    dW_hh = dR W_hr' + dg(first) h0'
    dW_hr = W_hh' dR + sum over t of (dy + dh at the last step) m(t)'
    dh0 = W_hh' dg(first)

Where resets return to the initial state, each step that starts from it again is like the first one: it gets W_hh h0,
and dg(first) is the sum over all of them. Tensors here are time-major views; `d` is 0, or 1 for the reverse direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    lengths: Tensor | None  # [B], clamped to [0, T]
    reset_mask: Tensor | None  # [T, B]
    to_initial: bool  # where it is true the initial state enters, not zeros


def rows_of(
    lengths: Tensor | None, reset_mask: Tensor | None, T: int, batch_first: bool, to_initial: bool = False
) -> Rows:
    """The lengths as the kernels read them, and the mask time-major."""
    if reset_mask is not None and batch_first:
        reset_mask = reset_mask.t()
    return Rows(None if lengths is None else lengths.to(torch.int64).clamp(0, T), reset_mask, to_initial)


def step_index(x: Tensor, lengths: Tensor | None, last: bool) -> tuple[int | Tensor, ...]:
    """Index into x [T, B, ...] of the last time of each row, or of time 0; a row of length 0 has some padding there."""
    T, B = x.shape[:2]
    if not last or lengths is None:
        return (T - 1 if last else 0,)
    return (lengths - 1).clamp_min(0), torch.arange(B, device=x.device)


def _first_mask(rows: Rows, d: int) -> Tensor | None:
    """[B, 1], true where step 0 does not read h0: a reset to zero of the forward direction, an empty row."""
    lengths, reset_mask, to_initial = rows
    cut = None if lengths is None else lengths == 0
    if d == 0 and reset_mask is not None and not to_initial:
        cut = reset_mask[0] if cut is None else cut | reset_mask[0]
    return None if cut is None else cut.unsqueeze(-1)


def _masked(t: Tensor, mask: Tensor | None) -> Tensor:
    return t if mask is None else t.masked_fill(mask, 0)  # not by a product: NaN would stay


def _returns(rows: Rows, d: int, T: int) -> Tensor | None:
    """[T, B, 1], true at the steps after the first that start from the initial state again."""
    lengths, reset, to_initial = rows
    if reset is None or not to_initial:
        return None
    if lengths is not None:
        reset = reset & (torch.arange(T, device=reset.device)[:, None] < lengths)
    none = reset.new_zeros(1, reset.shape[1])
    return torch.cat((reset[1:], none) if d else (none, reset[1:])).unsqueeze(-1)


def add_initial(gx: Tensor, h0: Tensor | None, w_hh: Tensor, rows: Rows, d: int) -> None:
    """Adds W_hh h0 [B, P] to the projected input gx [T, B, 4*H] of the steps that read h0, in place."""
    if h0 is None or not gx.shape[0]:
        return
    at, more = step_index(gx, rows.lengths, last=d == 1), h0 @ w_hh.t()
    gx[at] = gx[at] + _masked(more, _first_mask(rows, d))
    if (returns := _returns(rows, d, gx.shape[0])) is not None:
        gx.copy_(torch.where(returns, gx + more, gx))


def last_of(y: Tensor, h0: Tensor | None, rows: Rows, d: int) -> Tensor:
    """The state h [B, P] after the last step, from y [T, B, P]; h0 where there was none."""
    before = y.new_zeros(y.shape[1:]) if h0 is None else h0
    if not y.shape[0]:
        return before
    h, lengths = y[step_index(y, rows.lengths, last=d == 0)], rows.lengths
    return h if lengths is None else torch.where((lengths == 0).unsqueeze(-1), before, h)


def gradient_of_y(dy: Tensor | None, dh: Tensor | None, like: Tensor, rows: Rows, d: int) -> Tensor:
    """dy + dh at the last step [T, B, P], zero beyond the lengths whatever dy has there."""
    lengths, T = rows.lengths, like.shape[0]
    total = like.new_zeros(like.shape) if dy is None else dy
    if lengths is not None:
        total = _masked(total, (torch.arange(T, device=like.device)[:, None] >= lengths).unsqueeze(-1))
    if dh is None or not T:
        return total
    total = total.clone() if total is dy else total
    at = step_index(total, lengths, last=d == 0)
    total[at] = total[at] + _masked(dh, None if lengths is None else (lengths == 0).unsqueeze(-1))
    return total


def gradient_at_starts(dgx: Tensor, rows: Rows, d: int) -> Tensor:
    """Gate gradients [B, 4*H] of the steps that read h0, added up."""
    if not dgx.shape[0]:
        return dgx.new_zeros(dgx.shape[1:])
    first = _masked(dgx[step_index(dgx, rows.lengths, last=d == 1)], _first_mask(rows, d))
    returns = _returns(rows, d, dgx.shape[0])
    return first if returns is None else first + _masked(dgx, ~returns).sum(0)


def gradient_of_h0(first: Tensor, w_hh: Tensor, dh: Tensor | None, rows: Rows, T: int) -> Tensor:
    """dh0 [B, P]; dh itself where no step ran."""
    dh0, lengths = first @ w_hh, rows.lengths
    if dh is None or (lengths is None and T):
        return dh0
    return torch.where((lengths == 0).unsqueeze(-1), dh, dh0) if T else dh


def weight_gradients(
    dR: Tensor, dy: Tensor, m: Tensor, first: Tensor, h0: Tensor | None, w_hh: Tensor, w_hr: Tensor
) -> tuple[Tensor, Tensor]:
    """dW_hh [4*H, P] and dW_hr [P, H]; dy [T, B, P] from gradient_of_y(), m [T, B, H]."""
    dw_hh = dR @ w_hr.t()
    if h0 is not None:
        dw_hh = dw_hh + first.t() @ h0
    return dw_hh, w_hh.t() @ dR + dy.flatten(0, 1).t() @ m.flatten(0, 1)
