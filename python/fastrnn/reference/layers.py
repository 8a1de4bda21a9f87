"""One recurrent layer, step by step, for any cell and with every option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from .._noise import CANDIDATE_DROPOUT, Noise, hits
from .cells import CELLS, GATES, NORMALISED, STATES, State, layer_norm


def split_weights(weights: Sequence[Tensor], directions: int) -> list[list[Tensor | None]]:
    """The flat weights of one layer as [w_ih, w_hh, b_ih, b_hh, w_hr] per direction, None where absent."""
    n = len(weights) // directions
    parts = []
    for d in range(directions):
        w = list(weights[d * n : (d + 1) * n])
        bias = w[2:4] if n >= 4 else [None, None]
        parts.append([w[0], w[1], *bias, w[-1] if n in (3, 5) else None])
    return parts


def _direction(
    step: Callable[..., State],
    x: Tensor,  # [T, B, I]
    parts: Sequence[Tensor | None],
    state: State,
    valid: Tensor | None,  # [T, B, 1] bool, step t lies within the row
    fresh: Tensor | None,  # [T, B, 1] bool, the state entering step t is the zero state
    direction: int,
    noise: Noise | None,
    cut: Tensor | None,  # [T, B, 1] bool, no gradient of the state entering step t goes further
    grad_clip: float,
    num_heads: int,
    to_initial: bool,
) -> tuple[Tensor, Tensor, State]:
    w_ih, w_hh, b_ih, b_hh, w_hr = parts
    if step in NORMALISED:
        gates = layer_norm(linear(x, w_ih), b_hh[-len(b_ih) :], b_ih)
    else:
        gates = linear(x, w_ih, b_ih)
    mask = None if noise is None or noise.h_mask is None else noise.h_mask[direction]
    product = linear if num_heads == 1 else partial(_block_linear, num_heads)
    if grad_clip:
        gates = _clipped(gates, grad_clip)
        step = partial(
            step, product=lambda h, w, b: _clipped(product(h if mask is None else h * mask, w, b), grad_clip)
        )
    elif mask is not None:
        step = partial(step, product=lambda h, w, b: product(h * mask, w, b))
    elif num_heads > 1:
        step = partial(step, product=product)
    T, B = x.shape[:2]
    kept = [] if noise is None else [_zoneout(noise, direction, q, T, B, s, num_heads) for q, s in enumerate(state)]
    drops = (
        None if noise is None or not noise.candidate else _candidate_factors(noise, direction, T, B, state, num_heads)
    )
    initial = state if to_initial else tuple(torch.zeros_like(s) for s in state)
    ys: list[Tensor] = [x] * T
    cs = list(ys)
    for t in reversed(range(T)) if direction else range(T):
        entering = state
        if fresh is not None:
            entering = tuple(torch.where(fresh[t], first, s) for first, s in zip(initial, state))
        if cut is not None:
            entering = tuple(torch.where(cut[t], s.detach(), s) for s in entering)
        leaving = step(gates[t], entering, w_hh, b_hh, **({} if drops is None else {"keep": drops[t]}))
        if w_hr is not None:
            leaving = (linear(leaving[0], w_hr), *leaving[1:])
        if kept:
            leaving = tuple(new + k[t] * (old - new) for new, old, k in zip(leaving, entering, kept))
        ys[t], cs[t] = leaving[0], torch.cat(leaving[1:] or leaving, -1)
        if valid is not None:
            ys[t], cs[t] = (torch.where(valid[t], s, torch.zeros_like(s)) for s in (ys[t], cs[t]))
            leaving = tuple(torch.where(valid[t], new, old) for new, old in zip(leaving, state))
        state = leaving
    return torch.stack(ys), torch.stack(cs), state


class _Clip(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t, bound):
        return t.view_as(t)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-ctx.bound, ctx.bound), None

    @staticmethod
    def jvp(ctx, dt, _):
        return dt.view_as(dt)


def _clipped(t: Tensor, bound: float) -> Tensor:
    """t, whose gradient will be clipped to [-bound, bound]; that can be differentiated again."""
    return _Clip.apply(t, bound)


def _block_linear(num_heads: int, h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """R h + b for a block-diagonal R: w [G*H, H/N], whose rows have the columns of their units' own head."""
    B, H = h.shape
    blocks = w.reshape(-1, num_heads, H // num_heads, H // num_heads)
    r = torch.einsum("bnj,gnij->bgni", h.reshape(B, num_heads, -1), blocks).reshape(B, -1)
    return r if b is None else r + b


def _zoneout(noise: Noise, direction: int, state: int, T: int, B: int, like: Tensor, num_heads: int) -> Tensor:
    """How much of the state before a step stays: zeros and ones [T, B, H], or its expectation."""
    rate = noise.zoneout[state] if state < len(noise.zoneout) else 0.0
    if not rate:
        return like.new_zeros(T, 1, 1)
    if not noise.training:
        return like.new_full((T, 1, 1), rate)
    width = like.shape[-1] // num_heads
    seeds = [noise.of_head(n, num_heads).seed for n in range(num_heads)] if num_heads > 1 else [noise.seed]
    return torch.cat([hits(seed, 2 * direction + state, T, B, width, rate) for seed in seeds], -1).to(like)


def _candidate_factors(noise: Noise, direction: int, T: int, B: int, state: State, num_heads: int) -> Tensor:
    """Factors [T, B, H] of the candidate: 0 where a unit is dropped, else 1 / (1 - p)."""
    p, like = noise.candidate, state[-1]
    width = like.shape[-1] // num_heads
    seeds = [noise.of_head(n, num_heads).seed for n in range(num_heads)] if num_heads > 1 else [noise.seed]
    steps = T if noise.candidate_per_step else 1
    found = torch.cat([hits(seed, CANDIDATE_DROPOUT + direction, steps, B, width, p) for seed in seeds], -1)
    return ((1 - found.to(like)) * (1 / (1 - p) if p < 1 else 0)).expand(T, -1, -1)


def _boundaries(mask: Tensor | None, valid: Tensor | None) -> list[Tensor | None]:
    """Between which steps nothing crosses, for each direction: bool [T, B, 1] by the step that is entered."""
    if mask is None:
        return [None, None]
    starts = mask.bool().unsqueeze(-1)
    starts = starts if valid is None else starts & valid
    return [starts, torch.cat([starts[1:], torch.zeros_like(starts[:1])])]


def layer(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
    directions: int = 1,
    noise: Noise | None = None,
    return_states: bool = False,
    detach_mask: Tensor | None = None,
    grad_clip: float = 0.0,
    num_heads: int = 1,
    reset_to: str = "zero",
) -> tuple[Tensor, State] | tuple[Tensor, State, Tensor]:
    """One recurrent layer, step by step.

    Args:
        cell: a name in CELLS.
        x: [T, B, I] input.
        weights: per direction w_ih [G*H, I], w_hh [G*H, H or P], then b_ih, b_hh [G*H], then w_hr [P, H] if present.
        states: h0 [D, B, H or P] and those that the cell has besides [D, B, H]; None for zeros.
        lengths: [B] integers, true length of each row; outputs past it are zero, the last state is the one at it.
        reset_mask: [T, B] bool, where a new segment starts: no state crosses into step t from t-1, in either
            direction. Entries past a row's length do nothing.
        directions: 1, or 2 for a bidirectional layer.
        noise: zoneout and the factors of recurrent dropout, see _noise.py.
        return_states: True to return the states beyond h of every step as well.
        detach_mask: [T, B] bool, where no gradient of a state crosses from step t to t-1.
        grad_clip: bound of the gradients of W x + b_ih and of R h + b_hh, 0 for none.
        num_heads: blocks on the diagonal of the recurrent matrix; w_hh is [G*H, H/num_heads], see _heads.py.
        reset_to: "zero", or "initial": where reset_mask is true `states` enter; at the first step they do without it.

    Returns:
        y [T, B, D*(H or P)] and the last states, shaped like `states`; then, if asked for, [T, B, D*H] for a
        cell with c, [T, B, D*3*H] for one with c, n and m.

    Example:
        >>> y, (h,) = layer("gru", torch.ones(5, 2, 3), [torch.ones(12, 3), torch.ones(12, 4)])
    """
    T, B = x.shape[:2]
    parts = split_weights(weights, directions)
    if states is None:
        w_hh, w_hr = parts[0][1], parts[0][4]
        out = w_hh.shape[1] * num_heads or w_hh.shape[0] // GATES[cell]  # [G*H, 0] without a recurrent matrix
        sizes = [out, *[out if w_hr is None else w_hr.shape[1]] * (STATES[cell] - 1)]
        states = tuple(x.new_zeros(directions, B, size) for size in sizes)
    valid = None
    if lengths is not None:
        valid = (torch.arange(T, device=x.device)[:, None] < lengths[None, :]).unsqueeze(-1)
        x = torch.where(valid, x, torch.zeros_like(x))  # NaN in the padding must not reach a gradient
    fresh, cut = (_boundaries(mask, valid) for mask in (reset_mask, detach_mask))
    ys, cs, lasts = [], [], []
    for d in range(directions):
        state = tuple(s[d] for s in states)
        y, c, last = _direction(
            CELLS[cell],
            x,
            parts[d],
            state,
            valid,
            fresh[d],
            d,
            noise,
            cut[d],
            grad_clip,
            num_heads,
            reset_to == "initial",
        )
        ys.append(y)
        cs.append(c)
        lasts.append(last)
    found = torch.cat(ys, -1), tuple(torch.stack(s) for s in zip(*lasts))
    return (*found, torch.cat(cs, -1)) if return_states else found
