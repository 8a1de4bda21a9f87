"""Weights of other libraries: their published equations, step by step, against the layers with the converted weights."""

from __future__ import annotations

import numpy as np
import pytest

import fastrnn.numpy as fnp
from fastrnn import ShapeError, weights

T, B, I, H = 6, 3, 5, 7
X = np.random.default_rng(0).standard_normal((T, B, I))


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def random(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape) / 2


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def keras(cell, kernel, recurrent, bias, gate=sigmoid):
    """Gates i f c o and z r h; a GRU with a bias of two rows applies the reset gate after the product."""
    h = c = np.zeros((B, H))
    ys = []
    for x in X:
        if cell == "rnn":
            h = np.tanh(x @ kernel + h @ recurrent + bias)
        elif cell == "lstm":
            i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, -1)
            c = gate(f) * c + gate(i) * np.tanh(g)
            h = gate(o) * np.tanh(c)
        else:
            of_x, of_h = bias if bias.ndim == 2 else (bias, 0 * bias)
            xz, xr, xh = np.split(x @ kernel + of_x, 3, -1)
            hz, hr, hh = np.split(h @ recurrent + of_h, 3, -1)
            z, r = gate(xz + hz), gate(xr + hr)
            inner = r * hh if bias.ndim == 2 else (r * h) @ recurrent[:, 2 * H :]
            h = z * h + (1 - z) * np.tanh(xh + inner)
        ys.append(h)
    return np.stack(ys)


@pytest.mark.parametrize("slope", [None, 0.2, 1 / 6])
@pytest.mark.parametrize("form", ["lstm", "rnn", "gru", "gru reset_before"])
def test_keras(form, slope):
    cell = form.split()[0]
    G = {"lstm": 4, "gru": 3, "rnn": 1}[cell]
    kernel, recurrent = random(I, G * H), random(H, G * H, seed=2)
    bias = random(2, G * H, seed=3) if form == "gru" else random(G * H, seed=3)
    kind = {"lstm": fnp.LSTM, "gru": fnp.GRU, "rnn": fnp.RNN}[cell]
    options = {"reset_after": form == "gru"} if cell == "gru" else {}
    if slope is not None and cell != "rnn":
        options["recurrent_activation"] = "hard_sigmoid"
    gate = sigmoid if slope is None else lambda v: np.clip(slope * v + 0.5, 0, 1)
    found = weights.from_keras([kernel, recurrent, bias], cell, hard_sigmoid_slope=slope)
    close(kind(found, **options)(X)[0], keras(cell, kernel, recurrent, bias, gate))
    without = weights.from_keras([kernel, recurrent], cell, hard_sigmoid_slope=slope)
    zero = np.zeros_like(bias)
    close(kind(without, **options)(X)[0], keras(cell, kernel, recurrent, zero, gate))
    names = weights.from_keras([kernel, recurrent, bias], cell, layer=2, reverse=True)
    assert {name[-len("_l2_reverse") :] for name in names} == {"_l2_reverse"}


def onnx(cell, W, R, B_, P, reset_after):
    """The equations of the operators' specification: gates i o f c and z r h, peepholes i o f."""
    h = c = np.zeros((B, H))
    wb, rb = np.split(B_, 2)
    ys = []
    for x in X:
        gx, gh = x @ W.T + wb, h @ R.T + rb
        if cell == "rnn":
            h = np.tanh(gx + gh)
        elif cell == "lstm":
            pi, po, pf = np.split(P, 3)
            i, o, f, g = np.split(gx + gh, 4, -1)
            new = sigmoid(f + pf * c) * c + sigmoid(i + pi * c) * np.tanh(g)
            h, c = sigmoid(o + po * new) * np.tanh(new), new
        else:
            (xz, xr, xh), (hz, hr, hh) = np.split(gx, 3, -1), np.split(gh, 3, -1)
            z, r = sigmoid(xz + hz), sigmoid(xr + hr)
            inner = r * hh if reset_after else (r * h) @ R[2 * H :].T + rb[2 * H :]
            h = (1 - z) * np.tanh(xh + inner) + z * h
        ys.append(h)
    return np.stack(ys)


@pytest.mark.parametrize("form", ["lstm", "lstm peepholes", "rnn", "gru", "gru reset_before"])
def test_onnx(form):
    cell, G = form.split()[0], {"lstm": 4, "gru": 3, "rnn": 1}[form.split()[0]]
    W, R, B_ = random(2, G * H, I), random(2, G * H, H, seed=2), random(2, 2 * G * H, seed=3)
    P = random(2, 3 * H, seed=4) if form == "lstm peepholes" else None
    found = weights.from_onnx(W, R, B_, P, cell=cell)
    kind = {"lstm": fnp.LSTM, "gru": fnp.GRU, "rnn": fnp.RNN}[cell]
    options = (
        {"reset_after": form == "gru"} if cell == "gru" else {"peepholes": P is not None} if cell == "lstm" else {}
    )
    y = kind(found, **options)(X)[0]
    zero = np.zeros(3 * H)
    close(y[..., :H], onnx(cell, W[0], R[0], B_[0], zero if P is None else P[0], form == "gru"))
    flipped = fnp_reverse(kind, found, options)
    assert flipped.shape == y[..., H:].shape
    close(y[..., H:], flipped)
    assert "bias_ih_l0" not in weights.from_onnx(W, R, cell=cell)


def fnp_reverse(kind, found, options):
    """The backward direction as a forward layer over the sequence turned round."""
    own = {n.removesuffix("_reverse"): w for n, w in found.items() if n.endswith("_reverse")}
    return kind(own, **options)(X[::-1].copy())[0][::-1]


def haste(cell, kernel, recurrent, bias, recurrent_bias):
    """Gates i g f o and z r g."""
    h = c = np.zeros((B, H))
    ys = []
    for x in X:
        gx, gh = x @ kernel + bias, h @ recurrent + recurrent_bias
        if cell == "lstm":
            i, g, f, o = np.split(gx + gh, 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            (xz, xr, xg), (hz, hr, hg) = np.split(gx, 3, -1), np.split(gh, 3, -1)
            z = sigmoid(xz + hz)
            h = z * h + (1 - z) * np.tanh(xg + sigmoid(xr + hr) * hg)
        ys.append(h)
    return np.stack(ys)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_haste(cell):
    G = {"lstm": 4, "gru": 3}[cell]
    kernel, recurrent, bias = random(I, G * H), random(H, G * H, seed=2), random(G * H, seed=3)
    extra = random(G * H, seed=4) if cell == "gru" else None
    found = weights.from_haste(kernel, recurrent, bias, extra, cell=cell)
    kind = {"lstm": fnp.LSTM, "gru": fnp.GRU}[cell]
    close(kind(found)(X)[0], haste(cell, kernel, recurrent, bias, 0 if extra is None else extra))


def test_a_module_takes_them():
    torch = pytest.importorskip("torch")
    from fastrnn import nn

    found = weights.from_keras([random(I, 3 * H), random(H, 3 * H), random(2, 3 * H)], "gru")
    module = nn.GRU(I, H, dtype=torch.float64)
    module.load_state_dict({k: torch.from_numpy(w) for k, w in found.items()})
    close(module(torch.from_numpy(X))[0].detach().numpy(), fnp.GRU(found)(X)[0])


def test_errors():
    kernel, recurrent, bias = random(I, 4 * H), random(H, 4 * H), random(4 * H)
    with pytest.raises(ValueError, match="from_keras: cell is 'lstn', expected one of lstm, gru, rnn"):
        weights.from_keras([kernel, recurrent], "lstn")
    with pytest.raises(TypeError, match="from_keras: weights is a NoneType, expected a list"):
        weights.from_keras(None, "lstm")
    with pytest.raises(ShapeError, match="from_keras: weights has 1 entries, expected 2 or 3"):
        weights.from_keras([kernel], "lstm")
    with pytest.raises(
        ShapeError, match=r"from_keras: recurrent weights has shape \(28, 7\), expected \(G\*H, H\) = \(28, 9\)"
    ):
        weights.from_keras([kernel, recurrent], "gru")
    with pytest.raises(ShapeError, match=r"from_keras: bias has shape \(2, 5\)"):
        weights.from_keras([kernel, recurrent, bias[:5]], "lstm")
    with pytest.raises(
        ShapeError, match=r"from_keras: weight_ih has shape \(27, 5\), expected \(G\*H, ...\) = \(28, 5\)"
    ):
        weights.from_keras([kernel[:, :27], recurrent], "lstm")
    with pytest.raises(TypeError, match="from_keras: kernel is a list, expected a numpy.ndarray"):
        weights.from_keras([kernel.tolist(), recurrent], "lstm")
    with pytest.raises(ValueError, match="from_keras: hard_sigmoid_slope is -1, expected a positive number"):
        weights.from_keras([kernel, recurrent], "lstm", hard_sigmoid_slope=-1)
    with pytest.raises(ShapeError, match=r"from_onnx: W has shape \(28, 5\), expected 3 sizes \(D, G\*H, I\)"):
        weights.from_onnx(kernel.T, recurrent.T[None], cell="lstm")
    with pytest.raises(ShapeError, match="from_onnx: inputs has 4 entries, expected at most 3 for gru"):
        weights.from_onnx(random(1, 21, I), random(1, 21, H), random(1, 42), random(1, 21), cell="gru")
    with pytest.raises(ShapeError, match=r"from_onnx: P has shape \(1, 20\), expected \(D, 3\*H\) = \(1, 21\)"):
        weights.from_onnx(random(1, 28, I), random(1, 28, H), random(1, 56), random(1, 20), cell="lstm")
