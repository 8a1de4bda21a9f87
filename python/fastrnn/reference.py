"""The oracle: every cell and one recurrent layer in plain tensor code, for any dtype, differentiable to any order.

Slow on purpose and easy to read; the compiled kernels are tested against it, FASTRNN_CHECK=1 runs it beside every
call, and double backward differentiates it.

A cell maps the input part x = W_ih x_t + b_ih [B, G*H] and the state entering the step to the state leaving it;
w = W_hh [G*H, H or P] and b = b_hh [G*H] (or None) are the recurrent weights, product(h, w, b) = W_hh h + b_hh. Adding a cell is one function in CELLS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from ._noise import Noise, hits

State = tuple[Tensor, ...]
Activation = Callable[[Tensor], Tensor]
Product = Callable[..., Tensor]  # torch.nn.functional.linear, or something on the way to it


def _rnn(activation: Activation) -> Callable[..., State]:
    """Elman 1990: h' = activation(x + W h + b)."""

    def cell(x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear) -> State:
        return (activation(x + product(state[0], w, b)),)

    return cell


def _hard_sigmoid(x: Tensor) -> Tensor:
    """clip(x/6 + 1/2, 0, 1). torch's hardsigmoid has a derivative of float32 accuracy, also in float64."""
    return (x / 6 + 0.5).clamp(0, 1)


def _lstm(gate: Activation = torch.sigmoid) -> Callable[..., State]:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers 2000; gates i f g o."""

    def cell(x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear) -> State:
        h, c = state
        i, f, g, o = (x + product(h, w, b)).chunk(4, -1)
        c = gate(f) * c + gate(i) * g.tanh()
        return gate(o) * c.tanh(), c

    return cell


def lstm_cifg(x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear) -> State:
    """Greff et al. 2017: coupled input and forget gates, f = 1 - i; gates i g o."""
    h, c = state
    i, g, o = (x + product(h, w, b)).chunk(3, -1)
    c = c + i.sigmoid() * (g.tanh() - c)
    return o.sigmoid() * c.tanh(), c


def lstm_peephole(x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear) -> State:
    """Gers & Schmidhuber 2000: gates see the cell state, the output gate the new one; gates i f g o.

    b: [7*H], after the biases the peepholes of i, f and o.
    """
    h, c = state
    b, (pi, pf, po) = b[: w.shape[0]], b[w.shape[0] :].chunk(3)
    i, f, g, o = (x + product(h, w, b)).chunk(4, -1)
    new = (f + pf * c).sigmoid() * c + (i + pi * c).sigmoid() * g.tanh()
    return (o + po * new).sigmoid() * new.tanh(), new


def _gru(gate: Activation = torch.sigmoid) -> Callable[..., State]:
    """The GRU of torch and cuDNN: the reset gate multiplies the recurrent product; gates r z n."""

    def cell(x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear) -> State:
        (h,) = state
        xr, xz, xn = x.chunk(3, -1)
        hr, hz, hn = product(h, w, b).chunk(3, -1)
        r, z = gate(xr + hr), gate(xz + hz)
        n = (xn + r * hn).tanh()
        return (n + z * (h - n),)

    return cell


def _gru_reset_before(gate: Activation = torch.sigmoid) -> Callable[..., State]:
    """Cho et al. 2014, equations 5-8: the reset gate multiplies h before the recurrent product; gates r z n."""

    def cell(x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear) -> State:
        (h,) = state
        xr, xz, xn = x.chunk(3, -1)
        wr, wz, wn = w.chunk(3)
        br, bz, bn = (None,) * 3 if b is None else b.chunk(3)
        r, z = gate(xr + product(h, wr, br)), gate(xz + product(h, wz, bz))
        n = (xn + product(r * h, wn, bn)).tanh()
        return (n + z * (h - n),)

    return cell


def fastrnn(x: Tensor, state: State, w: Tensor, b: Tensor, product: Product = linear) -> State:
    """Kusupati et al. 2018, section 3.1: h' = alpha n + beta h. b: [3*H], after the bias alpha and beta."""
    (h,) = state
    bias, alpha, beta = b.chunk(3)
    return (alpha * (x + product(h, w, bias)).tanh() + beta * h,)


def fastgrnn(x: Tensor, state: State, w: Tensor, b: Tensor, product: Product = linear) -> State:
    """Kusupati et al. 2018, section 3.2: h' = (zeta (1 - z) + nu) n + z h.

    b: [4*H], the candidate's bias, what the gate's bias is above it, zeta and nu.
    """
    (h,) = state
    bias, more, zeta, nu = b.chunk(4)
    a = x + product(h, w, bias)
    z = (a + more).sigmoid()
    return ((zeta * (1 - z) + nu) * a.tanh() + z * h,)


def lstm_norm(x: Tensor, state: State, w: Tensor, b: Tensor, product: Product = linear) -> State:
    """Ba et al. 2016, equations 20-22; layer() has normalised x.

    b: [14*H], the shift of R h, its gains, gain and shift of c, gains of x.
    """
    h, c = state
    H = c.shape[-1]
    shift, gain, gain_c, shift_c, _ = b.split((4 * H, 4 * H, H, H, 4 * H))
    i, f, g, o = (x + layer_norm(product(h, w, None), (4 * H,), gain, shift)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * layer_norm(c, (H,), gain_c, shift_c).tanh(), c


def gru_norm(x: Tensor, state: State, w: Tensor, b: Tensor, product: Product = linear) -> State:
    """Ba et al. 2016, with the reset gate after the product. b: [9*H], shift and gains of R h, gains of x."""
    (h,) = state
    shift, gain, _ = b.chunk(3)
    xr, xz, xn = x.chunk(3, -1)
    hr, hz, hn = layer_norm(product(h, w, None), gain.shape, gain, shift).chunk(3, -1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = (xn + r * hn).tanh()
    return (n + z * (h - n),)


def _indrnn(activation: Activation) -> Callable[..., State]:
    """Li et al. 2018: h' = f(x + b + u h), element by element. w: [H, 0]; b: [2*H], the bias and u."""

    def cell(x: Tensor, state: State, w: Tensor, b: Tensor, product: Product = linear) -> State:
        (h,) = state
        bias, u = b.chunk(2)
        return (activation(x + product(h[:, :0], w, bias) + u * h),)

    return cell


def mingru(x: Tensor, state: State, w: Tensor, b: Tensor, product: Product = linear) -> State:
    """Feng et al. 2024: z and n of the input alone. w: [2*H, 0]."""
    (h,) = state
    z, n = (x + product(h[:, :0], w, b)).chunk(2, -1)
    z = z.sigmoid()
    return ((1 - z) * h + z * n,)


def minlstm(x: Tensor, state: State, w: Tensor, b: Tensor, product: Product = linear) -> State:
    """Feng et al. 2024: f and i of the input alone, divided by their sum. w: [3*H, 0]."""
    (h,) = state
    f, i, n = (x + product(h[:, :0], w, b)).chunk(3, -1)
    f, i = f.sigmoid(), i.sigmoid()
    return ((f * h + i * n) / (f + i),)


CELLS: dict[str, Callable[..., State]] = {
    "rnn_tanh": _rnn(torch.tanh),
    "rnn_relu": _rnn(torch.relu),
    "rnn_sigmoid": _rnn(torch.sigmoid),
    "lstm": _lstm(),
    "lstm_hard": _lstm(_hard_sigmoid),
    "lstm_cifg": lstm_cifg,
    "lstm_peephole": lstm_peephole,
    "gru": _gru(),
    "gru_hard": _gru(_hard_sigmoid),
    "gru_reset_before": _gru_reset_before(),
    "gru_reset_before_hard": _gru_reset_before(_hard_sigmoid),
    "fastrnn": fastrnn,
    "fastgrnn": fastgrnn,
    "indrnn_tanh": _indrnn(torch.tanh),
    "indrnn_relu": _indrnn(torch.relu),
    "mingru": mingru,
    "minlstm": minlstm,
    "lstm_norm": lstm_norm,
    "gru_norm": gru_norm,
}
NORMALISED = (lstm_norm, gru_norm)
# Cells without a recurrent matrix, whose w_hh is [G*H, 0].
GATES_WITHOUT_PRODUCT = {"indrnn_tanh": 1, "indrnn_relu": 1, "mingru": 2, "minlstm": 3}
STATES = {name: 2 if name.startswith("lstm") else 1 for name in CELLS}


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
) -> tuple[Tensor, Tensor, State]:
    w_ih, w_hh, b_ih, b_hh, w_hr = parts
    if step in NORMALISED:
        gates = layer_norm(linear(x, w_ih), b_ih.shape, b_hh[-len(b_ih) :], b_ih)
    else:
        gates = linear(x, w_ih, b_ih)
    mask = None if noise is None or noise.h_mask is None else noise.h_mask[direction]
    if grad_clip:
        gates = _clipped(gates, grad_clip)
        step = partial(step, product=lambda h, w, b: _clipped(linear(h if mask is None else h * mask, w, b), grad_clip))
    elif mask is not None:
        step = partial(step, product=lambda h, w, b: linear(h * mask, w, b))
    T, B = x.shape[:2]
    kept = [] if noise is None else [_zoneout(noise, direction, q, T, B, s) for q, s in enumerate(state)]
    ys: list[Tensor] = [x] * T
    cs = list(ys)
    for t in reversed(range(T)) if direction else range(T):
        entering = state
        if fresh is not None:
            entering = tuple(torch.where(fresh[t], torch.zeros_like(s), s) for s in state)
        if cut is not None:
            entering = tuple(torch.where(cut[t], s.detach(), s) for s in entering)
        leaving = step(gates[t], entering, w_hh, b_hh)
        if w_hr is not None:
            leaving = (linear(leaving[0], w_hr), *leaving[1:])
        if kept:
            leaving = tuple(new + k[t] * (old - new) for new, old, k in zip(leaving, entering, kept))
        ys[t], cs[t] = leaving[0], leaving[-1]
        if valid is not None:
            ys[t], cs[t] = (torch.where(valid[t], s, torch.zeros_like(s)) for s in (ys[t], cs[t]))
            leaving = tuple(torch.where(valid[t], new, old) for new, old in zip(leaving, state))
        state = leaving
    return torch.stack(ys), torch.stack(cs), state


def _clipped(t: Tensor, bound: float) -> Tensor:
    """t, whose gradient will be clipped to [-bound, bound]; that can be differentiated again."""
    if t.requires_grad:
        t = t.view_as(t)
        t.register_hook(lambda g: g.clamp(-bound, bound))
    return t


def _zoneout(noise: Noise, direction: int, state: int, T: int, B: int, like: Tensor) -> Tensor:
    """How much of the state before a step stays: zeros and ones [T, B, H], or its expectation."""
    rate = noise.zoneout[state]
    if not rate:
        return like.new_zeros(T, 1, 1)
    if not noise.training:
        return like.new_full((T, 1, 1), rate)
    return hits(noise.seed, 2 * direction + state, T, B, like.shape[-1], rate).to(like)


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
) -> tuple[Tensor, State] | tuple[Tensor, State, Tensor]:
    """One recurrent layer, step by step.

    Args:
        cell: a name in CELLS.
        x: [T, B, I] input.
        weights: per direction w_ih [G*H, I], w_hh [G*H, H or P], then b_ih, b_hh [G*H], then w_hr [P, H] if present.
        states: h0 [D, B, H or P] and, for the LSTM, c0 [D, B, H]; None for zeros.
        lengths: [B] integers, true length of each row; outputs past it are zero, the last state is the one at it.
        reset_mask: [T, B] bool, where a new segment starts: no state crosses into step t from t-1, in either
            direction. Entries past a row's length do nothing.
        directions: 1, or 2 for a bidirectional layer.
        noise: zoneout and the factors of recurrent dropout, see _noise.py.
        return_states: True to return c of every step as well.
        detach_mask: [T, B] bool, where no gradient of a state crosses from step t to t-1.
        grad_clip: bound of the gradients of W x + b_ih and of R h + b_hh, 0 for none.

    Returns:
        y [T, B, D*(H or P)] and the last states, shaped like `states`; then, if asked for, c [T, B, D*H].

    Example:
        >>> y, (h,) = layer("gru", torch.ones(5, 2, 3), [torch.ones(12, 3), torch.ones(12, 4)])
    """
    T, B = x.shape[:2]
    parts = split_weights(weights, directions)
    if states is None:
        w_hh, w_hr = parts[0][1], parts[0][4]
        out = w_hh.shape[1] or w_hh.shape[0] // GATES_WITHOUT_PRODUCT[cell]
        sizes = (out, out if w_hr is None else w_hr.shape[1])[: STATES[cell]]
        states = tuple(x.new_zeros(directions, B, size) for size in sizes)
    valid = None
    if lengths is not None:
        valid = (torch.arange(T, device=x.device)[:, None] < lengths[None, :]).unsqueeze(-1)
        x = torch.where(valid, x, torch.zeros_like(x))  # NaN in the padding must not reach a gradient
    fresh, cut = (_boundaries(mask, valid) for mask in (reset_mask, detach_mask))
    ys, cs, lasts = [], [], []
    for d in range(directions):
        state = tuple(s[d] for s in states)
        y, c, last = _direction(CELLS[cell], x, parts[d], state, valid, fresh[d], d, noise, cut[d], grad_clip)
        ys.append(y)
        cs.append(c)
        lasts.append(last)
    found = torch.cat(ys, -1), tuple(torch.stack(s) for s in zip(*lasts))
    return (*found, torch.cat(cs, -1)) if return_states else found


def additive_scores(query: Tensor, key: Tensor, v: Tensor) -> Tensor:
    """Bahdanau et al. 2015: sum over d of v[d] tanh(query[q, d] + key[k, d])."""
    return ((query.unsqueeze(2) + key.unsqueeze(1)).tanh() * v).sum(-1)


def dot_scores(query: Tensor, key: Tensor, v: None = None) -> Tensor:
    """Luong et al. 2015: query[q] . key[k]."""
    return query @ key.transpose(1, 2)


SCORES: dict[str, Callable[..., Tensor]] = {"additive": additive_scores, "dot": dot_scores}


def attention(
    score: str,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    v: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Attention: softmax over k of scale * score(query[q], key[k]) + bias, and the weighted sum of the values.

    Args:
        score: a name in SCORES.
        query, key, value: [B, Tq, D], [B, Tk, D], [B, Tk, Dv]; value None for the raw scores.
        v: [D], for the additive score.
        lengths: [B] integers, how many keys are real.
        mask: bool [B, Tq, Tk], true where a key may be attended.
        bias: [B, Tq, Tk] or broadcast to it.
        scale: what scores are multiplied by.

    Returns:
        context [B, Tq, Dv] and weights [B, Tq, Tk]; zeros for a query that may attend to nothing. Without value nothing,
        and the raw scores.
    """
    scores = SCORES[score](query, key, v)
    if value is None:
        return query.new_empty(0), scores
    logits = scores * scale
    keep = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)
    if bias is not None:
        logits = logits + bias
        keep = keep & (logits != -float("inf"))
    if lengths is not None:
        keep = keep & (torch.arange(key.shape[1], device=key.device) < lengths[:, None]).unsqueeze(1)
    weights = logits.masked_fill(~keep, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~keep, 0)
    return weights @ value, weights


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """attention() with the additive score."""
    return attention("additive", query, key, value, v, lengths, mask)


def attention_decoder(
    cell: str,
    bahdanau: bool,
    gates: Tensor,
    memory: Tensor,
    keys: Tensor,
    lengths: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    feed0: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_feed: Tensor | None,
    w_query: Tensor | None,
    v: Tensor | None,
    w_context: Tensor | None,
    w_hidden: Tensor | None,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """A recurrent cell that attends to a memory at each step, in the order of Luong et al. (2015, arXiv 1508.04025) or
    of Bahdanau et al. (2015, arXiv 1409.0473).

    Args:
        cell: "lstm" or "gru".
        gates: [B, T, G*H], the input part of the gates: W x + b_ih.
        memory, keys: [B, Tk, M], [B, Tk, A].
        lengths: [B] integers, how many keys are real.
        h0, c0: [B, H]; c0 for the LSTM.
        feed0: [B, H], h~ before the first step, in Luong's order with w_feed.
        w_hh, b_hh: [G*H, H], [G*H].
        w_feed: [G*H, M] in Bahdanau's order; [G*H, H] or None in Luong's.
        w_query, v: [A, H], [A] for the additive score; None for the dot product with h itself.
        w_context, w_hidden: [H, M], [H, H] in Luong's order.

    Returns:
        outputs [B, T, H], weights [B, T, Tk] and the last state (h, and c of an LSTM).
    """
    state: State = (h0,) if c0 is None else (h0, c0)
    feed, outputs, shares = feed0, [], []

    def attend(h: Tensor) -> Tensor:
        query = (h if w_query is None else linear(h, w_query)).unsqueeze(1)
        context, weights = attention("dot" if v is None else "additive", query, keys, memory, v, lengths)
        shares.append(weights.squeeze(1))
        return context.squeeze(1)

    for t in range(gates.shape[1]):
        x = gates[:, t]
        if bahdanau:
            x = x + linear(attend(state[0]), w_feed)
        elif w_feed is not None:
            x = x + linear(feed, w_feed)
        state = CELLS[cell](x, state, w_hh, b_hh)
        feed = state[0]
        if not bahdanau:
            feed = (linear(attend(state[0]), w_context) + linear(state[0], w_hidden)).tanh()
        outputs.append(feed)
    if not outputs:
        return gates.new_empty(*gates.shape[:2], h0.shape[1]), gates.new_empty(*gates.shape[:2], keys.shape[1]), state
    return torch.stack(outputs, 1), torch.stack(shares, 1), state
