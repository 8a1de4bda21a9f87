"""The equations of every cell.

A cell maps the input part x = W_ih x_t + b_ih [B, G*H] and the state entering the step to the state leaving it;
w = W_hh [G*H, H or P] and b = b_hh [G*H] (or None) are the recurrent weights, product(h, w, b) = W_hh h + b_hh; keep,
of some, is a factor of the candidate. Adding a cell is one function in CELLS.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from .. import _core

State = tuple[Tensor, ...]
Activation = Callable[[Tensor], Tensor]
Product = Callable[..., Tensor]  # torch.nn.functional.linear, or something on the way to it


def layer_norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Ba et al. 2016, over the last dimension. In plain operations, because torch.nn.functional.layer_norm has wrong second
    derivatives where one of them is forward mode (pytorch/pytorch#196700)."""
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain + shift


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

    def cell(
        x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear, keep: Tensor | float = 1.0
    ) -> State:
        h, c = state
        i, f, g, o = (x + product(h, w, b)).chunk(4, -1)
        c = gate(f) * c + gate(i) * (g.tanh() * keep)
        return gate(o) * c.tanh(), c

    return cell


def lstm_cifg(
    x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear, keep: Tensor | float = 1.0
) -> State:
    """Greff et al. 2017: coupled input and forget gates, f = 1 - i; gates i g o."""
    h, c = state
    i, g, o = (x + product(h, w, b)).chunk(3, -1)
    c = c + i.sigmoid() * (g.tanh() * keep - c)
    return o.sigmoid() * c.tanh(), c


def lstm_peephole(
    x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear, keep: Tensor | float = 1.0
) -> State:
    """Gers & Schmidhuber 2000: gates see the cell state, the output gate the new one; gates i f g o.

    b: [7*H], after the biases the peepholes of i, f and o.
    """
    h, c = state
    b, (pi, pf, po) = b[: w.shape[0]], b[w.shape[0] :].chunk(3)
    i, f, g, o = (x + product(h, w, b)).chunk(4, -1)
    new = (f + pf * c).sigmoid() * c + (i + pi * c).sigmoid() * (g.tanh() * keep)
    return (o + po * new).sigmoid() * new.tanh(), new


def _gru(gate: Activation = torch.sigmoid) -> Callable[..., State]:
    """The GRU of torch and cuDNN: the reset gate multiplies the recurrent product; gates r z n."""

    def cell(
        x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear, keep: Tensor | float = 1.0
    ) -> State:
        (h,) = state
        xr, xz, xn = x.chunk(3, -1)
        hr, hz, hn = product(h, w, b).chunk(3, -1)
        r, z = gate(xr + hr), gate(xz + hz)
        n = (xn + r * hn).tanh() * keep
        return (n + z * (h - n),)

    return cell


def _gru_reset_before(gate: Activation = torch.sigmoid) -> Callable[..., State]:
    """Cho et al. 2014, equations 5-8: the reset gate multiplies h before the recurrent product; gates r z n."""

    def cell(
        x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear, keep: Tensor | float = 1.0
    ) -> State:
        (h,) = state
        xr, xz, xn = x.chunk(3, -1)
        wr, wz, wn = w.chunk(3)
        br, bz, bn = (None,) * 3 if b is None else b.chunk(3)
        r, z = gate(xr + product(h, wr, br)), gate(xz + product(h, wz, bz))
        n = (xn + product(r * h, wn, bn)).tanh() * keep
        return (n + z * (h - n),)

    return cell


def augru(x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear) -> State:
    """Zhou et al. 2018, equations 9 and 10, with u = 1 - z: h' = h + a u (n - h); gates r z n and a, whose recurrent
    part is not read."""
    (h,) = state
    xr, xz, xn, a = x.chunk(4, -1)
    hr, hz, hn, _ = product(h, w, b).chunk(4, -1)
    r, u = (xr + hr).sigmoid(), 1 - (xz + hz).sigmoid()
    n = (xn + r * hn).tanh()
    return (h + a * u * (n - h),)


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
    i, f, g, o = (x + layer_norm(product(h, w, None), gain, shift)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * layer_norm(c, gain_c, shift_c).tanh(), c


def gru_norm(x: Tensor, state: State, w: Tensor, b: Tensor, product: Product = linear) -> State:
    """Ba et al. 2016, with the reset gate after the product. b: [9*H], shift and gains of R h, gains of x."""
    (h,) = state
    shift, gain, _ = b.chunk(3)
    xr, xz, xn = x.chunk(3, -1)
    hr, hz, hn = layer_norm(product(h, w, None), gain, shift).chunk(3, -1)
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


def _slstm(log_forget: Activation) -> Callable[..., State]:
    """Beck et al. 2024, section 2.2; gates i f z o, states h c n m. n = 0 is the empty memory, whose m is not read."""

    def cell(x: Tensor, state: State, w: Tensor, b: Tensor | None, product: Product = linear) -> State:
        h, c, n, m = state
        i, f, z, o = (x + product(h, w, b)).chunk(4, -1)
        f = m + log_forget(f)
        larger = (n > 0) & (f > i)
        m = torch.where(larger, f, i)
        other = torch.where(larger, i - f, (f - i).clamp(max=11)).exp()
        i, f = torch.where(larger, other, torch.ones_like(i)), torch.where(larger, torch.ones_like(f), other)
        c = f * c + i * z.tanh()
        n = f * n + i
        return o.sigmoid() * c / n, c, n, m

    return cell


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
    "augru": augru,
    "slstm": _slstm(torch.nn.functional.logsigmoid),
    "slstm_exponential": _slstm(lambda x: x),
    "lstm_norm": lstm_norm,
    "gru_norm": gru_norm,
}
NORMALISED = (lstm_norm, gru_norm)
STATES = {name: cell["states"] for name, cell in _core.CELLS.items()}
GATES = {name: cell["gates"] for name, cell in _core.CELLS.items()}
