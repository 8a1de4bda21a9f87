"""Attention on NumPy arrays against the functions and the module for torch, and on its own where there is no torch."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn import DTypeError, ShapeError
from fastrnn.numpy import AdditiveAttention, additive_attention, dot_attention

B, TQ, TK, D, DV = 3, 4, 7, 9, 5


def arrays(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=size).astype(dtype) for size in ((B, TQ, D), (B, TK, D), (B, TK, DV), (D,))]


ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


def eager(score, query, key, value, v, scale, lengths, mask, bias):
    query, key, value, v = (a.astype(np.float64) for a in (query, key, value, v))
    if score in ACTIVATIONS:
        s = (ACTIVATIONS[score](query[:, :, None] + key[:, None]) * v).sum(-1)
    else:
        s = query @ key.transpose(0, 2, 1)
    keep = np.broadcast_to(mask, s.shape) & (np.arange(TK) < np.asarray(lengths)[:, None, None])
    s = np.where(keep, s * scale + bias, -np.inf)
    e = np.exp(s - np.maximum(s.max(-1, keepdims=True), -1e300))
    weights = e / np.maximum(e.sum(-1, keepdims=True), 1e-300)
    return weights @ value, weights


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("score", ["tanh", "relu", "dot"])
def test_equations(isa, score, dtype):
    query, key, value, v = arrays(dtype)
    rng = np.random.default_rng(1)
    lengths, mask = [TK, 0, 4], rng.random((B, TQ, TK)) < 0.7
    mask[0, 1] = False
    bias = rng.normal(size=(1, TQ, TK)).astype(dtype)
    bias[0, 2, 1] = -np.inf
    options = {"scale": 0.5, "lengths": lengths, "mask": mask, "bias": bias}
    if score == "dot":
        got = dot_attention(query, key, value, **options)
    else:
        got = additive_attention(query, key, value, v, activation=score, **options)
    want = eager(score, query, key, value, v, 0.5, lengths, mask, bias.astype(np.float64))
    for a, b in zip(got, want):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol={"float16": 2e-3, "float32": 3e-6, "float64": 1e-13}[dtype])
    assert (got[0][1] == 0).all() and (got[1][0, 1] == 0).all()


@pytest.mark.parametrize("score", ["additive", "dot"])
def test_the_same_bits_as_torch(score):
    torch = pytest.importorskip("torch")
    from fastrnn import functional

    given = arrays("float32")[: 4 if score == "additive" else 3]
    name, mask = f"{score}_attention", np.tri(TQ, TK, dtype=bool)
    got = globals()[name](*given, lengths=[7, 3, 0], mask=mask)
    tensors = [torch.from_numpy(a) for a in given]
    want = getattr(functional, name)(*tensors, lengths=[7, 3, 0], mask=torch.from_numpy(mask))
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b.numpy())


def test_strided_and_expanded_arguments():
    query, key, value, v = arrays("float32")
    bias = np.linspace(-1, 1, TK, dtype=np.float32)
    want = additive_attention(query, key, value, v, bias=np.broadcast_to(bias, (B, TQ, TK)).copy())
    other = [np.asfortranarray(a) for a in (query, key, value)]
    got = additive_attention(*other, np.repeat(v, 2)[::2], bias=np.repeat(bias, 2)[::2])
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b)


HEADS = {"num_heads": 2, "weight_norm": True}
RELU = {"activation": "relu"}


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"weight_norm": True, "temperature": 0.5}, {"num_heads": 2}, HEADS, RELU], ids=str
)
def test_the_layer_is_the_modules(options):
    torch = pytest.importorskip("torch")
    from fastrnn import nn

    module = nn.AdditiveAttention(4, 8, 6, **options)
    query, memory = torch.randn(2, 3, 4), torch.randn(2, 7, 8)
    layer = AdditiveAttention.from_state_dict(
        {f"decoder.attention.{k}": w for k, w in module.state_dict().items()},
        prefix="decoder.attention.",
        temperature=options.get("temperature", 1.0),
        activation=options.get("activation", "tanh"),
    )
    with torch.no_grad():
        want = module(query, memory, lengths=[7, 2])
    got = layer(query.numpy(), memory.numpy(), lengths=[7, 2])
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)
    keys = layer.precompute(memory.numpy())
    step = layer(query[:, 1].numpy(), memory.numpy(), lengths=[7, 2], keys=keys)
    for a, b in zip(step, got):
        np.testing.assert_allclose(a, b[..., 1, :], rtol=1e-5, atol=1e-6)


Q, K, V, W = arrays("float32")
STATE = {"query_layer.weight": Q[0], "memory_layer.weight": K[0, :4], "v": W[:4]}
LAYER = AdditiveAttention(STATE)
BAD = [
    (lambda: dot_attention(Q.tolist(), K, V), DTypeError, "dot_attention: query is a list, expected a numpy.ndarray"),
    (lambda: dot_attention(Q, K.astype("f8"), V), DTypeError, "dot_attention: key has dtype float64, expected float32"),
    (lambda: dot_attention(Q[0], K, V), ShapeError, r"dot_attention: query has shape \(4, 9\), expected 3 sizes"),
    (lambda: dot_attention(Q, K[:1], V), ShapeError, r"key has shape \(1, 7, 9\), expected \(B, Tk, D\) = \(3, 7, 9\)"),
    (lambda: additive_attention(Q, K, V[:, :2], W), ShapeError, r"additive_attention: value has shape \(3, 2, 5\)"),
    (lambda: additive_attention(Q, K, V, W[:2]), ShapeError, r"v has shape \(2,\), expected \(D,\) = \(9,\)"),
    (lambda: dot_attention(Q, K, V, scale=np.nan), ValueError, "dot_attention: scale is nan, expected a finite number"),
    (lambda: dot_attention(Q, K, V, lengths=[1, 2, 8]), ShapeError, "dot_attention: lengths has 8, expected 0 <= len"),
    (lambda: dot_attention(Q, K, V, lengths=[1.0, 2, 3]), DTypeError, "lengths has dtype float64, expected integers"),
    (lambda: dot_attention(Q, K, V, mask=[True] * TK), DTypeError, "dot_attention: mask has dtype list, expected bool"),
    (lambda: dot_attention(Q, K, V, mask=np.ones(3, bool)), ShapeError, r"mask has shape \(3,\), expected \(B, Tq, Tk"),
    (lambda: dot_attention(Q, K, V, bias=np.ones(7)), DTypeError, "bias has dtype float64, expected float32"),
    (lambda: dot_attention(Q, K, V, bias=W), ShapeError, r"bias has shape \(9,\), expected \(B, Tq, Tk\)"),
    (lambda: AdditiveAttention({"v": W}), KeyError, "AdditiveAttention: state_dict lacks .*query_layer.weight"),
    (lambda: AdditiveAttention(STATE | {"w": W}), KeyError, "has unexpected"),
    (lambda: AdditiveAttention(STATE | {"v": W}), ShapeError, r"query_layer.weight has shape \(4, 9\), expected"),
    (
        lambda: AdditiveAttention(STATE | {"v": STATE["v"].reshape(2, -1)[:, None]}),
        ShapeError,
        "v has shape .*expected .*num_heads, D",
    ),
    (lambda: AdditiveAttention(STATE, temperature=0), ValueError, "AdditiveAttention: temperature is 0, expected"),
    (
        lambda: AdditiveAttention(STATE, activation="elu"),
        ValueError,
        "AdditiveAttention: activation is 'elu', expected",
    ),
    (lambda: additive_attention(Q, K, V, W, activation=1), ValueError, "additive_attention: activation is 1, expected"),
    (lambda: LAYER(Q[..., :2], V), ShapeError, r"AdditiveAttention: query has shape \(3, 4, 2\), expected"),
    (lambda: LAYER(Q, Q.astype("f8")), DTypeError, "AdditiveAttention: memory has dtype float64, expected float32"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[b[2][:40] for b in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
