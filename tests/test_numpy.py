"""fastrnn.numpy against a small float64 oracle, and every malformed input that NumPy can pass. No torch needed."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

import fastrnn.numpy as fnp
from fastrnn import DTypeError, ShapeError, _core

CLASSES = {
    "rnn_tanh": (fnp.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (fnp.RNN, {"nonlinearity": "relu"}),
    "rnn_sigmoid": (fnp.RNN, {"nonlinearity": "sigmoid"}),
    "lstm": (fnp.LSTM, {}),
    "lstm_cifg": (fnp.LSTM, {"coupled": True}),
    "lstm_peephole": (fnp.LSTM, {"peepholes": True}),
    "gru": (fnp.GRU, {}),
    "gru_reset_before": (fnp.GRU, {"reset_after": False}),
    "lstm_hard": (fnp.LSTM, {"recurrent_activation": "hard_sigmoid"}),
    "gru_hard": (fnp.GRU, {"recurrent_activation": "hard_sigmoid"}),
    "gru_reset_before_hard": (fnp.GRU, {"reset_after": False, "recurrent_activation": "hard_sigmoid"}),
    "fastrnn": (fnp.FastRNN, {}),
    "fastgrnn": (fnp.FastGRNN, {}),
    "indrnn_tanh": (fnp.IndRNN, {"nonlinearity": "tanh"}),
    "indrnn_relu": (fnp.IndRNN, {}),
    "lstm_norm": (fnp.LSTM, {"layer_norm": True}),
    "gru_norm": (fnp.GRU, {"layer_norm": True}),
    "slstm": (fnp.SLSTM, {}),
    "slstm_exponential": (fnp.SLSTM, {"forget_gate": "exponential"}),
}
FAMILY = {
    "fastrnn": lambda H: {"weight_hh": (H, H), "bias": (H,), "alpha": (1,), "beta": (1,)},
    "fastgrnn": lambda H: {"weight_hh": (H, H), "bias_gate": (H,), "bias_update": (H,), "zeta": (1,), "nu": (1,)},
    "indrnn_tanh": lambda H: {"weight_hh": (H,), "bias": (H,)},
    "indrnn_relu": lambda H: {"weight_hh": (H,), "bias": (H,)},
}
WITH_C = [name for name, cell in _core.CELLS.items() if cell["states"] == 2]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x):
    return np.clip(x / 6 + 0.5, 0, 1)


def family_step(cell, x, h, w):
    gx = w["weight_ih"] @ x
    if cell.startswith("indrnn"):
        a = gx + w["bias"] + w["weight_hh"] * h
        return np.tanh(a) if cell.endswith("tanh") else np.maximum(a, 0)
    a = gx + w["weight_hh"] @ h
    if cell == "fastrnn":
        return sigmoid(w["alpha"]) * np.tanh(a + w["bias"]) + sigmoid(w["beta"]) * h
    z, n = sigmoid(a + w["bias_gate"]), np.tanh(a + w["bias_update"])
    return (sigmoid(w["zeta"]) * (1 - z) + sigmoid(w["nu"])) * n + z * h


def layer_norm(v, gain, shift):
    return (v - v.mean()) / np.sqrt(v.var() + 1e-5) * gain + shift


def oracle_step(cell, x, s, w):
    """One step of one row in float64; s and the result are tuples of states."""
    if cell in FAMILY:
        return (family_step(cell, x, s[0], w),)
    gate = hard_sigmoid if cell.endswith("_hard") else sigmoid
    cell = cell.removesuffix("_hard")
    H = w["weight_ih"].shape[0] // _core.CELLS[cell]["gates"]
    gx, gr = w["weight_ih"] @ x + w["bias_ih"], w["weight_hh"] @ s[0] + w["bias_hh"]
    norm = cell.endswith("_norm")
    if norm:
        gx, gr = (layer_norm(v - w["bias_" + k], w["gain_" + k], w["bias_" + k]) for v, k in ((gx, "ih"), (gr, "hh")))
    cell = cell.removesuffix("_norm")
    if cell.startswith("rnn"):
        f = {"tanh": np.tanh, "relu": lambda v: np.maximum(v, 0), "sigmoid": sigmoid}[cell[4:]]
        return (f(gx + gr),)
    if cell.startswith("slstm"):
        i, f, z, o = np.split(gx + gr, 4)
        _, c, n, m = s
        f = m + (f if cell.endswith("exponential") else -np.logaddexp(0, -f))
        m = np.where(n > 0, np.maximum(i, f), i)
        c, n = (np.exp(f - m) * of + np.exp(i - m) * new for of, new in ((c, np.tanh(z)), (n, 1)))
        return (sigmoid(o) * c / n, c, n, m)
    if cell.startswith("lstm"):
        if cell == "lstm_cifg":
            i, g, o = np.split(gx + gr, 3)
            f = -i  # sigmoid(-i) = 1 - sigmoid(i)
        else:
            i, f, g, o = np.split(gx + gr, 4)
        pi, pf, po = np.split(w["weight_peephole"], 3) if cell == "lstm_peephole" else (0, 0, 0)
        c = gate(f + pf * s[1]) * s[1] + gate(i + pi * s[1]) * np.tanh(g)
        o = o + po * c
        h = gate(o) * np.tanh(layer_norm(c, w["gain_c"], w["bias_c"]) if norm else c)
        return (w["weight_hr"] @ h if "weight_hr" in w else h, c)
    r, z = gate(gx[:H] + gr[:H]), gate(gx[H : 2 * H] + gr[H : 2 * H])
    if cell == "gru":
        n = np.tanh(gx[2 * H :] + r * gr[2 * H :])
    else:
        n = np.tanh(gx[2 * H :] + w["weight_hh"][2 * H :] @ (r * s[0]) + w["bias_hh"][2 * H :])
    return (n + z * (s[0] - n),)


def oracle(cell, named, x, states, lengths, mask, layers, directions):
    """The stack over x [T, B, I], row by row and step by step."""
    T, B, _ = x.shape
    last = [s.astype(np.float64) for s in states]
    for k in range(layers):
        outs = []
        for d in range(directions):
            end = f"_l{k}" + ("_reverse" if d else "")
            w = {n.removesuffix(end): v.astype(np.float64) for n, v in named.items() if n.endswith(end)}
            y = np.zeros((T, B, last[0].shape[-1]))
            for b in range(B):
                at = k * directions + d
                s = tuple(v[at, b] for v in last)
                n = T if lengths is None else int(lengths[b])
                for t in range(n)[:: -1 if d else 1]:
                    entering = t + 1 if d else t
                    if mask is not None and entering < n and mask[entering, b]:
                        s = tuple(np.zeros_like(v) for v in s)
                    s = oracle_step(cell, x[t, b], s, w)
                    y[t, b] = s[0]
                for v, new in zip(last, s):
                    v[at, b] = new
            outs.append(y)
        x = np.concatenate(outs, -1)
    return x, last


def make(cell, I, H, layers=1, directions=1, P=0, bias=True, dtype=np.float32, seed=0):
    rng, G = np.random.default_rng(seed), _core.CELLS[cell]["gates"]
    named, out = {}, P or H
    for k in range(layers):
        for end in ("", "_reverse")[:directions]:
            shapes = {"weight_ih": (G * H, directions * out if k else I), "weight_hh": (G * H, out)}
            if bias:
                shapes |= {"bias_ih": (G * H,), "bias_hh": (G * H,)}
            if P:
                shapes["weight_hr"] = (P, H)
            if cell == "lstm_peephole":
                shapes["weight_peephole"] = (3 * H,)
            if cell.endswith("_norm"):
                shapes |= dict.fromkeys(("bias_ih", "bias_hh", "gain_ih", "gain_hh"), (G * H,))
                shapes |= {"gain_c": (H,), "bias_c": (H,)} if cell == "lstm_norm" else {}
            if cell in FAMILY:
                shapes = {"weight_ih": shapes["weight_ih"]} | FAMILY[cell](H)
            for name, shape in shapes.items():
                named[f"{name}_l{k}{end}"] = (rng.uniform(-1, 1, shape) / np.sqrt(H)).astype(dtype)
    return named


def states_of(cell, rows, B, H, P, dtype, rng):
    widths = [P or H, *[H] * (_core.CELLS[cell]["states"] - 1)]
    states = [rng.standard_normal((rows, B, w)).astype(dtype) for w in widths]
    if len(states) > 2:
        states[2] = np.abs(states[2]) + dtype(0.5)  # a normaliser
    return states


def with_biases(named):
    """The oracle always adds biases."""
    zero = {
        n.replace("weight_ih", b): np.zeros(len(w))
        for n, w in named.items()
        if "weight_ih" in n
        for b in ("bias_ih", "bias_hh")
    }
    return zero | named


SHAPES = [(1, 1, 1, 1, 1, 1), (5, 3, 4, 17, 2, 2), (9, 7, 33, 16, 1, 2), (4, 2, 3, 65, 2, 1)]


@functools.cache  # one for all instruction sets: the oracle walks row by row
def example(cell, shape, options, dtype):
    T, B, I, H, layers, D = shape
    P = H // 2 if options == "projected" and cell in WITH_C and H > 1 else 0
    rng = np.random.default_rng(1)
    named = make(cell, I, H, layers, D, P, options != "no_bias", dtype)
    x = rng.standard_normal((T, B, I)).astype(dtype)
    states = states_of(cell, layers * D, B, H, P, dtype, rng)
    lengths = rng.integers(0, T + 1, B) if options in ("ragged", "reset") else None
    mask = rng.random((T, B)) < 0.4 if options == "reset" else None
    want = oracle(cell, with_biases(named), x.astype(np.float64), states, lengths, mask, layers, D)
    return named, x, states, lengths, mask, *want


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=["float32", "float64", "float16"])
@pytest.mark.parametrize("options", ["dense", "ragged", "reset", "no_bias", "batch_first", "projected"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CLASSES)
def test_matches_oracle(isa, cell, shape, options, dtype):
    named, x, states, lengths, mask, want, want_last = example(cell, shape, options, dtype)
    cls, kw = CLASSES[cell]
    batch_first = options == "batch_first"
    module = cls.from_state_dict(named, batch_first=batch_first, **kw)
    y, last = module(
        x.transpose(1, 0, 2) if batch_first else x, tuple(states) if len(states) > 1 else states[0], lengths, mask
    )
    last = last if isinstance(last, tuple) else (last,)
    assert y.dtype == dtype
    tolerance = {np.float32: 2e-5, np.float64: 1e-12, np.float16: 2e-3}[dtype]
    np.testing.assert_allclose(y.transpose(1, 0, 2) if batch_first else y, want, rtol=tolerance, atol=tolerance)
    for got, expected in zip(last, want_last):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cell", CLASSES)
def test_same_bits_as_the_torch_module(cell):
    torch = pytest.importorskip("torch")
    import fastrnn.nn

    cls, kw = CLASSES[cell]
    module = getattr(fastrnn.nn, cls.__name__)(7, 33, 2, bidirectional=True, **kw)
    x = torch.randn(9, 3, 7)
    y, last = module(x, lengths=[9, 0, 4])
    got, got_last = cls.from_torch(module)(x.numpy(), lengths=[9, 0, 4])
    assert np.array_equal(got, y.detach().numpy())
    for a, b in zip(got_last if isinstance(last, tuple) else [got_last], last if isinstance(last, tuple) else [last]):
        assert np.array_equal(a, b.detach().numpy())


def plain(**kw):
    return fnp.GRU(make("gru", 3, 5), **kw)


def x_of(T=4, B=2, I=3, dtype="f"):
    return np.random.default_rng(2).standard_normal((T, B, I)).astype(dtype)


def misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(np.uint8)
    out = np.frombuffer(raw.data, a.dtype, a.size).reshape(a.shape)
    out[...] = a
    return out


LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "reversed_inputs": lambda a: a[..., ::-1].copy()[..., ::-1],
    "every_other": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "rows_apart": lambda a: np.repeat(a, 3, 1)[:, ::3],
    "field": lambda a: np.array([(v, 1) for v in a.ravel()], "f4,i1")["f0"].reshape(a.shape),
    "misaligned": misaligned,
    "broadcast": lambda a: np.broadcast_to(a, a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read_correctly_and_never_written(layout):
    module, x = plain(), x_of()
    want, _ = module(x)
    view = LAYOUTS[layout](x)
    before = view.copy()
    if view.flags.writeable:
        view.flags.writeable = False
    got, _ = module(view)
    assert np.array_equal(got, want) and np.array_equal(view, before)


def test_broadcast_rows_and_one_wide_inputs():
    module, x = plain(), x_of(B=1)
    y, _ = module(np.broadcast_to(x, (4, 6, 3)))
    assert np.array_equal(y, np.broadcast_to(module(x)[0], (4, 6, 5)))
    narrow = fnp.GRU(make("gru", 1, 5))
    assert np.isfinite(narrow(x_of(I=1)[..., ::-1])[0]).all()


def test_empty_batch_and_zero_lengths():
    y, h = plain()(x_of(B=0))
    assert y.shape == (4, 0, 5) and h.shape == (1, 0, 5)
    h0 = np.ones((1, 2, 5), "f")
    y, h = plain()(x_of(), h0, lengths=[0, 0])
    assert not y.any() and np.array_equal(h, h0)


def test_nan_and_inf_stay_in_their_row():
    x = x_of(B=3)
    clean, _ = plain()(x)
    x[1, 1, 0], x[2, 2, 1] = np.nan, np.inf
    y, _ = plain()(x)
    assert np.array_equal(y[:, 0], clean[:, 0]) and np.isnan(y[1:, 1]).all() and not np.isnan(y[0]).any()


def test_weights_are_copied():
    named = make("lstm", 3, 5)
    module, x = fnp.LSTM(named), x_of()
    want, _ = module(x)
    named["weight_hh_l0"][...] = 0
    assert np.array_equal(module(x)[0], want)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64"])
def test_safetensors(tmp_path, kind):
    pytest.importorskip("safetensors")
    dtype = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<f4"}[kind]
    named = {f"encoder.{k}": v.astype(dtype) for k, v in make("lstm", 3, 5, layers=2).items()}
    if kind == "BF16":  # keep the upper half of each float32
        named = {k: (v.view("<u4") & 0xFFFF0000).view("<f4") for k, v in named.items()}
    stored = {k: (v.view("<u4") >> 16).astype("<u2") if kind == "BF16" else v for k, v in named.items()}
    stored["other"] = stored["encoder.bias_ih_l0"]
    header, data = {}, b""
    for k, v in stored.items():  # the format: length of the header, the header in JSON, the arrays
        header[k] = {"dtype": kind, "shape": v.shape, "data_offsets": [len(data), len(data) + v.nbytes]}
        data += v.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    module = fnp.LSTM.from_safetensors(tmp_path / "m.safetensors", prefix="encoder.")
    want = fnp.LSTM(named, prefix="encoder.")
    x = x_of(dtype="f8" if kind == "F64" else "f4")
    assert np.array_equal(module(x)[0], want(x)[0])


BAD_X = {
    "list": ([[[1.0]]], DTypeError, "x is a list"),
    "none": (None, DTypeError, "x is a NoneType"),
    "masked": (np.ma.masked_array(x_of()), DTypeError, "x is a MaskedArray"),
    "ints": (x_of().astype(int), DTypeError, "x has dtype int64"),
    "bool": (x_of() > 0, DTypeError, "x has dtype bool"),
    "complex": (x_of().astype("F"), DTypeError, "x has dtype complex64"),
    "object": (x_of().astype(object), DTypeError, "x has dtype object"),
    "float64": (x_of(dtype="d"), DTypeError, "x has dtype float64, expected float32"),
    "big_endian": (x_of().astype(">f4"), DTypeError, "newbyteorder"),
    "scalar": (np.float32(1), DTypeError, "x is a float32"),
    "rank_0": (np.array(1, "f"), ShapeError, "expected 3 sizes"),
    "rank_1": (np.ones(3, "f"), ShapeError, "expected 3 sizes"),
    "rank_4": (np.ones((1, 1, 1, 3), "f"), ShapeError, "expected 3 sizes"),
    "inputs": (x_of(I=4), ShapeError, r"\(4,\), expected \(I,\) = \(3,\)"),
    "no_inputs": (x_of(I=0), ShapeError, r"\(0,\), expected \(I,\) = \(3,\)"),
    "no_steps": (x_of(T=0), ShapeError, "T = 0"),
}


@pytest.mark.parametrize("name", BAD_X)
def test_bad_x(name):
    x, error, text = BAD_X[name]
    with pytest.raises(error, match=text) as raised:
        plain()(x)
    assert str(raised.value).startswith("gru: ")


BAD_OPTIONS = {
    "state_batch": (
        {"state": np.zeros((1, 3, 5), "f")},
        ShapeError,
        r"h0 has shape \(1, 3, 5\), expected .* \(1, 2, 5\)",
    ),
    "state_width": ({"state": np.zeros((1, 2, 4), "f")}, ShapeError, "h0 has shape"),
    "state_rank": ({"state": np.zeros((2, 5), "f")}, ShapeError, "h0 has shape"),
    "state_dtype": ({"state": np.zeros((1, 2, 5))}, DTypeError, "h0 has dtype float64"),
    "state_pair": ({"state": (np.zeros((1, 2, 5), "f"),) * 2}, (DTypeError, ShapeError), "h0 is a tuple"),
    "state_list": ({"state": [[0.0]]}, DTypeError, "h0 is a list"),
    "lengths_long": ({"lengths": [4, 5]}, ShapeError, "lengths has 5"),
    "lengths_negative": ({"lengths": [4, -1]}, ShapeError, "lengths has -1"),
    "lengths_count": ({"lengths": [4]}, ShapeError, "lengths has shape"),
    "lengths_float": ({"lengths": [4.0, 2.0]}, DTypeError, "lengths has dtype float64"),
    "lengths_ragged": ({"lengths": [[1], [1, 2]]}, DTypeError, r"lengths is a list, expected integers \[B\]"),
    "lengths_text": ({"lengths": "ab"}, DTypeError, "lengths has dtype"),
    "mask_shape": ({"reset_mask": np.zeros((2, 4), bool)}, ShapeError, "reset_mask has shape"),
    "mask_dtype": ({"reset_mask": np.zeros((4, 2), "f")}, DTypeError, "reset_mask has dtype float32"),
    "mask_list": ({"reset_mask": [[True]]}, DTypeError, "reset_mask is a list"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name):
    options, error, text = BAD_OPTIONS[name]
    with pytest.raises(error, match=text) as raised:
        plain()(x_of(), **options)
    assert str(raised.value).startswith("gru: ")


def changed(**changes):
    named = make("gru", 3, 5)
    for name, value in changes.items():
        if value is None:
            del named[name]
        else:
            named[name] = value
    return named


BAD_WEIGHTS = {
    "missing": (changed(bias_hh_l0=None), KeyError, "lacks .*bias_hh_l0"),
    "unexpected": (changed(weight_xy_l0=np.ones(3, "f")), KeyError, "unexpected .*weight_xy_l0"),
    "gap": (changed(weight_ih_l2=np.ones((15, 5), "f")), KeyError, "lacks|unexpected"),
    "none": ({}, KeyError, "is missing"),
    "short": (
        changed(weight_hh_l0=np.ones((14, 5), "f")),
        ShapeError,
        r"weight_hh_l0 has shape \(14, 5\), expected \(3\*H, H\) = \(15, 5\)",
    ),
    "bias": (changed(bias_ih_l0=np.ones(14, "f")), ShapeError, "bias_ih_l0 has shape"),
    "rank": (changed(weight_ih_l0=np.ones(15, "f")), ShapeError, "weight_ih_l0 has shape"),
    "mixed": (changed(weight_hh_l0=np.ones((15, 5))), DTypeError, "weight_hh_l0 has dtype float64"),
    "ints": (changed(weight_hh_l0=np.ones((15, 5), int)), DTypeError, "weight_hh_l0 has dtype int64"),
    "big_endian": (changed(weight_hh_l0=np.ones((15, 5), ">f4")), DTypeError, "foreign byte order"),
    "list": (changed(weight_hh_l0=[[1.0]]), DTypeError, "weight_hh_l0 is a list"),
    "keys": ({1: np.ones((15, 3), "f")}, DTypeError, "a name in weights is a int, expected a str"),
    "empty": ({"weight_ih_l0": np.ones((0, 3), "f"), "weight_hh_l0": np.ones((0, 0), "f")}, ShapeError, "H = 0"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights(name):
    with pytest.raises(DTypeError, match="gru: weights is a NoneType, expected a state_dict, or a list"):
        fnp.GRU(None)
    named, error, text = BAD_WEIGHTS[name]
    with pytest.raises(error, match=text):
        fnp.GRU.from_state_dict(named)


def test_bad_constructor_options():
    with pytest.raises(ValueError, match="nonlinearity is 'gelu'"):
        fnp.RNN(make("rnn_tanh", 3, 5), nonlinearity="gelu")
    with pytest.raises(ValueError, match="one direction"):
        fnp.GRU(make("gru", 3, 5, directions=2)).stepper()
