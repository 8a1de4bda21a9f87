"""The attention modules against their equations written out in torch; test_multihead.py has the multi-head one."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cosine_similarity  # noqa: E402

from fastrnn import DeviceError, DTypeError, ShapeError, nn, normalizers  # noqa: E402
from fastrnn.nn.attention import scores as score_module  # noqa: E402

B, TQ, TK, Q, M, D = 3, 4, 6, 5, 7, 8
DOUBLE = {"dtype": torch.float64}
NORMALIZERS = ["softmax", "sparsemax", "entmax15", "sigmoid", "hardmax"]


def inputs(memory_size=M):
    query, memory = torch.randn(B, TQ, Q, **DOUBLE), torch.randn(B, TK, memory_size, **DOUBLE)
    mask = torch.rand(B, TQ, TK) < 0.8
    mask[0, 1] = False
    return query.requires_grad_(), memory.requires_grad_(), torch.tensor([TK, 0, 4]), mask


def additive(q, k, v, act=torch.tanh):
    return (act(q[:, :, None] + k[:, None]) * v).sum(-1)


# name -> module, memory size, its score of query and memory
SCORES = {
    "additive": (lambda **o: nn.AdditiveAttention(Q, M, D, **o), M,
                 lambda m, q, x: additive(m.query_layer(q), m.memory_layer(x), m.v)),
    "additive relu": (lambda **o: nn.AdditiveAttention(Q, M, D, activation="relu", **o), M,
                      lambda m, q, x: additive(m.query_layer(q), m.memory_layer(x), m.v, torch.relu)),
    "additive norm": (lambda **o: nn.AdditiveAttention(Q, M, D, weight_norm=True, **o), M,
                      lambda m, q, x: additive(m.query_layer(q), m.memory_layer(x), m.g * m.v / m.v.norm())),
    "dot": (lambda **o: nn.LuongAttention(Q, **o), Q, lambda m, q, x: q @ x.transpose(1, 2)),
    "scaled dot": (lambda **o: nn.LuongAttention(Q, scale=0.3, **o), Q, lambda m, q, x: 0.3 * q @ x.transpose(1, 2)),
    "learned dot": (lambda **o: nn.LuongAttention(Q, scale="learned", **o), Q,
                    lambda m, q, x: m.g * q @ x.transpose(1, 2)),
    "general": (lambda **o: nn.LuongAttention(Q, M, score="general", **o), M,
                lambda m, q, x: torch.einsum("bqi,ij,bkj->bqk", q, m.memory_layer.weight, x)),
    "concat": (lambda **o: nn.LuongAttention(Q, M, score="concat", attention_size=D, **o), M,
               lambda m, q, x: additive(m.query_layer(q), x @ m.memory_layer.weight.T, m.v)),
    "cosine": (lambda **o: nn.LuongAttention(Q, score="cosine", scale=2.0, **o), Q,
               lambda m, q, x: 2 * cosine_similarity(q[:, :, None], x[:, None], dim=-1)),
}  # fmt: skip


def eager(score, normalizer, lengths, mask, memory, bias=None, temperature=1.0):
    score = score / temperature + (0 if bias is None else bias)
    weights = normalizers.NORMALIZERS[normalizer](score, lengths=lengths, mask=mask)
    return weights @ memory, weights


def gradients(module, result, *more):
    wanted = [*module.parameters(), *more]
    g = torch.Generator().manual_seed(1)
    ups = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in result]
    total = sum((t * up).sum() for t, up in zip(result, ups))
    return torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("normalizer", NORMALIZERS[:2])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_heads_are_attentions_side_by_side(activation, normalizer, weight_norm):
    """Each with its part of the projections, of the memory and of v."""
    heads, size = 2, 6
    options = {"activation": activation, "normalizer": normalizer, "weight_norm": weight_norm, **DOUBLE}
    module = nn.AdditiveAttention(Q, size, D, num_heads=heads, temperature=0.7, **options)
    assert module.v.shape == (heads, D // heads) and "num_heads=2" in repr(module)
    query, memory, lengths, mask = inputs(size)
    scope = {"lengths": lengths, "mask": mask, "bias": torch.randn(B, TQ, TK, **DOUBLE)}
    got = module(query, memory, **scope)
    projected = (module.query_layer(query), module.memory_layer(memory), memory)
    found = []
    for head, (q, k, value) in enumerate(zip(*(t.chunk(heads, -1) for t in projected))):
        v = module.v[head] if not weight_norm else module.g[head] * module.v[head] / module.v[head].norm()
        score = additive(q, k, v, getattr(torch, activation))
        found.append(eager(score, normalizer, lengths, mask, value, scope["bias"], 0.7))
    want = torch.cat([c for c, _ in found], -1), torch.stack([w for _, w in found], 1)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(module, got, query, memory), gradients(module, want, query, memory))
    step = {"lengths": lengths, "mask": mask[:, 1], "bias": scope["bias"][:, 1]}
    torch.testing.assert_close(module(query[:, 1], memory, **step), (got[0][:, 1], got[1][:, :, 1]))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("name", SCORES)
def test_equations(name, normalizer):
    make, size, score = SCORES[name]
    module = make(normalizer=normalizer, temperature=0.7, **DOUBLE)
    query, memory, lengths, mask = inputs(size)
    bias = torch.randn(B, TQ, TK, **DOUBLE).masked_fill(torch.rand(B, TQ, TK) < 0.1, -math.inf)
    got = module(query, memory, lengths=lengths, mask=mask, bias=bias)
    want = eager(score(module, query, memory), normalizer, lengths, mask, memory, bias, 0.7)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(module, got, query, memory), gradients(module, want, query, memory))
    plain = module(query, memory)
    torch.testing.assert_close(
        plain, eager(score(module, query, memory), normalizer, None, None, memory, None, 0.7)
    )  # fmt: skip


@pytest.mark.parametrize("normalizer", ["softmax", "entmax15"])
@pytest.mark.parametrize("name", SCORES)
def test_one_step_with_precomputed_keys(name, normalizer):
    make, size, _ = SCORES[name]
    module = make(normalizer=normalizer, **DOUBLE)
    query, memory, lengths, mask = inputs(size)
    context, weights = module(query, memory, lengths=lengths, mask=mask)
    keys = module.precompute(memory)
    step = module(query[:, 2], memory, lengths=lengths, mask=mask[:, 2], keys=keys)
    torch.testing.assert_close(step, (context[:, 2], weights[:, 2]))


def all_modules():
    sizes = (Q, M, D)
    yield from (make for make, size, _ in SCORES.values())
    yield lambda **o: nn.LuongAttention(Q, M, score="general", normalizer="sparsemax", **o)
    yield lambda **o: nn.LocalAttention(Q, M, score="general", window=2, **o)
    yield lambda **o: nn.LocalAttention(Q, M, score="additive", window=2, predictive=True, **o)
    yield lambda **o: nn.LocalAttention(Q, M, score="concat", window=2, predictive=True, renormalize=True, **o)
    yield lambda **o: nn.MonotonicAttention(*sizes, **o)
    yield lambda **o: nn.MonotonicAttention(Q, M, score="general", mode="recursive", **o)
    yield lambda **o: nn.LocationSensitiveAttention(*sizes, kernel_size=3, filters=2, **o)
    yield lambda **o: nn.LocationSensitiveAttention(*sizes, location=None, coverage=True, normalizer="entmax15", **o)


ALL = list(all_modules())
every_module = pytest.mark.parametrize("make", ALL, ids=[f"{i} {type(make()).__name__}" for i, make in enumerate(ALL)])


@every_module
def test_padding_may_hold_nan(make):
    module = make(**DOUBLE)
    query, memory, lengths, _ = inputs(module.memory_size)
    spoiled = memory.detach().clone()
    spoiled[1], spoiled[2, 4:] = math.nan, math.inf
    found = []
    for x in (memory, spoiled.requires_grad_()):
        result = module(query, x, lengths=lengths)
        found.append((result, gradients(module, result, query, x)))
    torch.testing.assert_close(*found)
    assert all(t.isfinite().all() for t in found[1][1])


@every_module
@pytest.mark.parametrize("by", ["mask", "bias"])
def test_keys_hidden_from_all_queries_may_hold_nan(make, by):
    module = make(**DOUBLE)
    query, memory, _, _ = inputs(module.memory_size)
    mask = torch.rand(memory.shape[0], query.shape[1], memory.shape[1]) < 0.7
    mask[0, :, 3] = mask[1, :, 4:] = mask[2] = False
    options = {"mask": mask} if by == "mask" else {"bias": torch.zeros(mask.shape).masked_fill(~mask, -math.inf)}
    spoiled = memory.detach().masked_fill(~mask.any(1).unsqueeze(-1), math.nan)
    found = []
    for x in (memory, spoiled.requires_grad_()):
        result = module(query, x, **options)
        found.append((result, gradients(module, result, query, x)))
    torch.testing.assert_close(*found)


@every_module
def test_no_keys_at_all(make):
    module = make(**DOUBLE)
    query, memory, _, _ = inputs(module.memory_size)
    if isinstance(module, nn.LocalAttention):
        with pytest.raises(ValueError, match="window is 2, expected at most the number of keys, 0"):
            module(query, memory[:, :0])
        return
    context, weights = module(query, memory[:, :0])
    assert (context == 0).all() and weights.shape == (*query.shape[:2], 0)


@every_module
def test_nothing_to_attend_to_gives_zeros(make):
    module = make(**DOUBLE)
    query, memory, lengths, mask = inputs(module.memory_size)
    result = context, weights = module(query, memory, lengths=lengths, mask=mask)
    for t in (context, weights):
        assert (t[1] == 0).all() and (t[0, 1] == 0).all() and t.isfinite().all()
    found = *_, dquery, dmemory = gradients(module, result, query, memory)
    assert (dmemory[1] == 0).all() and (dquery[1] == 0).all() and (dquery[0, 1] == 0).all()
    assert all(g.isfinite().all() for g in found)


# torch warns about its own internals while it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@every_module
def test_compile_and_copy(make):
    module = make()
    query, memory = torch.randn(2, 3, Q), torch.randn(2, 5, module.memory_size)
    torch._dynamo.reset()
    want = module(query, memory, lengths=torch.tensor([5, 2]))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, memory, lengths=torch.tensor([5, 2])), want)
    torch.testing.assert_close(copy.deepcopy(module)(query, memory, lengths=[5, 2]), want)
    assert str(Q) in repr(module)


def test_softmax_is_fused_and_nothing_else(monkeypatch):
    """No scores are made on the way to a softmax."""

    def forbidden(*_, **__):
        raise AssertionError("scores were asked for")

    monkeypatch.setattr(score_module, "additive_scores", forbidden)
    monkeypatch.setattr(score_module.Dot, "scores", forbidden)
    query, memory = torch.randn(B, TQ, Q), torch.randn(B, TK, Q)
    relu = nn.AdditiveAttention(Q, Q, D, activation="relu")
    for fused in (nn.AdditiveAttention(Q, Q, D), relu, nn.LuongAttention(Q), nn.LocationSensitiveAttention(Q, Q, D)):
        fused(query, memory)
        nn.LocalAttention(Q, window=2, predictive=True, renormalize=True)(query, memory)
    for other in (nn.AdditiveAttention(Q, Q, D, normalizer="sparsemax"), nn.LuongAttention(Q, dropout=0.1)):
        with pytest.raises(AssertionError, match="asked for"):
            other(query, memory)


def test_dropout():
    module = nn.LuongAttention(Q, dropout=0.5)
    query, memory = torch.randn(B, TQ, Q), torch.randn(B, TK, Q)
    plain = nn.LuongAttention(Q)(query, memory)
    context, weights = module(query, memory)
    assert ((weights == 0) | torch.isclose(weights, 2 * plain[1])).all() and (weights == 0).any()
    torch.testing.assert_close(context, weights @ memory)
    torch.testing.assert_close(module.eval()(query, memory), plain)


# ---- local


def test_local_m():
    query, memory, lengths, mask = inputs(Q)
    module = nn.LocalAttention(Q, window=1, **DOUBLE)
    near = (torch.arange(TK) - torch.arange(TQ)[:, None]).abs() <= 1
    want = eager(query @ memory.transpose(1, 2), "softmax", lengths, mask & near, memory)
    torch.testing.assert_close(module(query, memory, lengths=lengths, mask=mask), want)
    for position in (2, torch.tensor([2, 2, 2])):
        step = module(query[:, 2], memory, position=position, lengths=lengths, mask=mask[:, 2])
        torch.testing.assert_close(step, (want[0][:, 2], want[1][:, 2]))
    shifted = module(query[:1], memory[:1], position=3)[1]
    assert (shifted[0, 0] > 0).tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("score", ["dot", "additive"])
def test_local_p(score, renormalize):
    query, memory, lengths, mask = inputs(Q)
    module = nn.LocalAttention(
        Q, score=score, window=2, predictive=True, renormalize=renormalize, **DOUBLE
    )  # fmt: skip
    share = torch.sigmoid(torch.tanh(query @ module.position_layer.weight.T) @ module.v_position)
    p = lengths[:, None] * share
    distance = torch.arange(TK) - p[..., None]
    keep = mask & (distance.abs() <= 2) & (torch.arange(TK) < lengths[:, None, None])
    bell = torch.exp(-(distance**2) / (2 * 1.0**2))
    raw = query @ memory.transpose(1, 2)
    if score == "additive":
        raw = additive(module.query_layer(query), module.memory_layer(memory), module.v)
    weights = torch.where(keep, raw.exp(), 0.0) * (bell if renormalize else 1)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300) * (1 if renormalize else bell)
    want = weights @ memory, weights
    got = module(query, memory, lengths=lengths, mask=mask)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(module, got, query), gradients(module, want, query))
    assert module.position_layer.weight.grad is None and "v_position" in module.state_dict()


# ---- location, coverage


def by_hand(module, query, memory, lengths):
    """Chorowski et al. (2015), equations 8 and 9, and See et al. (2017), equation 11, one query after the other."""
    previous = torch.zeros(B, TK, **DOUBLE)
    total, contexts, rows = torch.zeros(B, TK, **DOUBLE), [], []
    for q in query.unbind(1):
        keys = module.memory_layer(memory)
        if module.location is not None:
            chosen = {"previous": [previous], "cumulative": [total], "both": [previous, total]}[module.location]
            keys = keys + module.location_layer(module.location_conv(torch.stack(chosen, 1)).transpose(1, 2))
        if module.coverage:
            keys = keys + total[..., None] * module.coverage_layer.weight[:, 0]
        score = additive(module.query_layer(q)[:, None], keys, module.v)
        context, weights = eager(score, module.normalizer, lengths, None, memory)
        previous, total = weights[:, 0], total + weights[:, 0]
        contexts.append(context[:, 0])
        rows.append(weights[:, 0])
    return torch.stack(contexts, 1), torch.stack(rows, 1)


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
@pytest.mark.parametrize("coverage", [False, True])
@pytest.mark.parametrize("location", ["previous", "cumulative", "both", None])
def test_location_sensitive(location, coverage, normalizer):
    if location is None and not coverage:
        with pytest.raises(ValueError, match="location is None without coverage"):
            nn.LocationSensitiveAttention(Q, M, D, location=None)
        return
    options = {"location": location, "coverage": coverage, "normalizer": normalizer}
    module = nn.LocationSensitiveAttention(Q, M, D, filters=3, kernel_size=3, **options, **DOUBLE)
    query, memory, lengths, mask = inputs()
    got, want = module(query, memory, lengths=lengths), by_hand(module, query, memory, lengths)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(module, got, query, memory), gradients(module, want, query, memory))
    state, keys, rows = module.start(memory), module.precompute(memory), []
    for t in range(TQ):
        context, weights = module(query[:, t], memory, lengths=lengths, mask=mask[:, t], state=state, keys=keys)
        state = state.after(weights)
        rows.append((context, weights))
    whole = module(query, memory, lengths=lengths, mask=mask)
    torch.testing.assert_close(tuple(torch.stack(r, 1) for r in zip(*rows)), whole)
    torch.testing.assert_close(state.cumulative, whole[1].sum(1))


# ---- monotonic


@pytest.mark.parametrize("mode", ["parallel", "recursive", "hard"])
@pytest.mark.parametrize("score", ["additive", "dot", "general"])
def test_monotonic(score, mode):
    module = nn.MonotonicAttention(Q, score=score, mode=mode, score_bias=-0.5, noise=1.0, **DOUBLE).eval()
    query, memory, lengths, mask = inputs(Q)
    if score == "additive":
        raw = additive(module.query_layer(query), module.memory_layer(memory), module.g * module.v / module.v.norm())
    else:
        raw = query @ (memory if score == "dot" else module.memory_layer(memory)).transpose(1, 2)
    weights = normalizers.monotonic(raw + module.score_bias, lengths=lengths, mask=mask, mode=mode)
    torch.testing.assert_close(module(query, memory, lengths=lengths, mask=mask), (weights @ memory, weights))
    state, rows = module.start(memory), []
    whole = module(query, memory, lengths=lengths)
    for t in range(TQ):
        context, weights = module(query[:, t], memory, lengths=lengths, state=state)
        state = state.after(weights)
        rows.append((context, weights))
    torch.testing.assert_close(tuple(torch.stack(r, 1) for r in zip(*rows)), whole)
    assert module.score_bias.item() == -0.5
    module.train()
    assert mode == "hard" or not torch.equal(module(query, memory)[1], module(query, memory)[1])


# ---- errors

X, Y = torch.ones(2, 3, 4), torch.ones(2, 5, 4)


def freed(t):
    """A copy whose memory has been given back, as that of a sharded parameter."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


BAD = [
    (lambda: nn.AdditiveAttention(4, 4, 0), ValueError, "AdditiveAttention: attention_size is 0, expected an int of at"),
    (lambda: nn.AdditiveAttention(4, 4, None), ValueError, "AdditiveAttention: attention_size is None"),
    (lambda: nn.AdditiveAttention(4, 4, 4, activation="elu"), ValueError, "AdditiveAttention: activation is 'elu', exp"),
    (lambda: nn.AdditiveAttention(4, 4, 4, temperature=0), ValueError, "AdditiveAttention: temperature is 0, expected"),
    (lambda: nn.AdditiveAttention(4, 4, 4, dropout=2), ValueError, "AdditiveAttention: dropout is 2, expected a prob"),
    (lambda: nn.AdditiveAttention(4, 4, 4, normalizer="max"), ValueError, "normalizer is 'max', expected one of 'softm"),
    (lambda: nn.LuongAttention(4, 5), ValueError, "LuongAttention: memory_size is 5, expected query_size = 4 for 'dot'"),
    (lambda: nn.LuongAttention(4, score="mlp"), ValueError, "LuongAttention: score is 'mlp', expected one of 'additiv"),
    (lambda: nn.LuongAttention(4, score="additive"), ValueError, "LuongAttention: score is 'additive', expected 'dot'"),
    (lambda: nn.AdditiveAttention(4, 4, 6, num_heads=4), ValueError, "num_heads is 4, expected a divisor of attention_si"),
    (lambda: nn.AdditiveAttention(4, 3, 6, num_heads=2), ValueError, "num_heads is 2, expected a divisor of memory_size"),
    (lambda: nn.AdditiveAttention(4, 3, 6, num_heads=0), ValueError, "num_heads is 0, expected an int of at least 1"),
    (lambda: nn.LuongAttention(4, attention_size=4), ValueError, "attention_size is 4, expected None with the score 'd"),
    (lambda: nn.LuongAttention(4, scale="sqrt"), ValueError, "scale is 'sqrt', expected a finite number or 'learned'"),
    (lambda: nn.LuongAttention(4, score="concat", scale=2), ValueError, "scale is 2 with the score 'concat', which has"),
    (lambda: nn.LuongAttention(4)(X[0, 0], Y), ShapeError, r"LuongAttention: query has shape \(4,\), expected 3 sizes"),
    (lambda: nn.LuongAttention(4)(X[:1], Y), ShapeError, r"query has shape \(1, 3, 4\), expected \(B, Tq, query_size\)"),
    (lambda: nn.LuongAttention(4)([1.0], Y), DTypeError, "LuongAttention: query is a list, expected a torch.Tensor"),
    (lambda: nn.LuongAttention(4)(X, Y[..., :3]), ShapeError, r"LuongAttention: memory has shape \(2, 5, 3\), expected"),
    (lambda: nn.LuongAttention(4)(X, Y, keys=Y[:, :4]), ShapeError, r"LuongAttention: keys has shape \(2, 4, 4\)"),
    (lambda: nn.LuongAttention(4)(X, Y, lengths=[6, 1]), ShapeError, "LuongAttention: lengths has 6, expected 0 <="),
    (lambda: nn.LuongAttention(4, normalizer="sigmoid")(X, Y, bias=X), ShapeError, r"bias has shape \(2, 3, 4\)"),
    (lambda: nn.LuongAttention(4)(X, Y, mask=X), DTypeError, "LuongAttention: mask has dtype torch.float32, expected to"),
    (lambda: nn.AdditiveAttention(4, 4, 4)(X.double(), Y), DTypeError, r"query has dtype torch.float64, expected torch.flo"),
    (lambda: nn.AdditiveAttention(4, 4, 4)(X, Y.int()), DTypeError, "AdditiveAttention: memory has dtype torch.int32, ex"),
    (lambda: nn.LuongAttention(4)(X, Y.double()), DTypeError, r"memory has dtype torch.float64, .*\(the dtype of query\)"),
    (lambda: nn.LuongAttention(4)(X, Y, keys=Y.double()), DTypeError, "LuongAttention: keys has dtype torch.float64, ex"),
    (lambda: nn.AdditiveAttention(4, 4, 4)(X, Y.to_sparse()), DeviceError, "memory has layout torch.sparse_coo, expecte"),
    (lambda: nn.AdditiveAttention(4, 4, 4)(X, Y.to("meta")), DeviceError, "AdditiveAttention: memory is on meta, expect"),
    (lambda: nn.AdditiveAttention(4, 4, 4)(X, freed(Y)), DeviceError, "AdditiveAttention: memory has a storage of 0 byt"),
    (lambda: nn.MonotonicAttention(4, 4)(X, Y, bias=freed(X[0])), DeviceError, "bias has a storage of 0 bytes, expected"),
    (lambda: nn.MultiHeadAttention(4, 2)(X, X.double()), DTypeError, "MultiHeadAttention: key has dtype torch.float64, "),
    (lambda: nn.MultiHeadAttention(4, 2)(freed(X)), DeviceError, "MultiHeadAttention: query has a storage of 0 bytes"),
    (lambda: nn.MultiHeadAttention(4, 2)(X, keys=[X, X]), DTypeError, "MultiHeadAttention: keys is a list, expected a p"),
    (
        lambda: nn.MultiHeadAttention(4, 2)(X, X, attn_mask=freed(torch.ones(2, 2))), DeviceError,
        "MultiHeadAttention: attn_mask has a storage of 0 bytes",
    ),
    (lambda: normalizers.softmax(freed(X)), DeviceError, "softmax: scores has a storage of 0 bytes, expected"),
    (lambda: normalizers.softmax(X.to_sparse()), DeviceError, "softmax: scores has layout torch.sparse_coo, exp"),
    (
        lambda: nn.LocalAttention(4, window=1)(X, Y, mask=torch.ones(2, dtype=torch.bool)), ShapeError,
        r"LocalAttention: mask has shape \(2,\), expected \(B, Tq, Tk\) = \(2, 3, 5\)",
    ),
    (
        lambda: nn.LocalAttention(4, window=1, predictive=True)(X, Y, lengths=[1]), ShapeError,
        r"LocalAttention: lengths has shape \(1,\), expected \(B,\) = \(2,\)",
    ),
    (
        lambda: nn.MonotonicAttention(4, 4)(X, Y, state=nn.Alignment(Y[:, 0], Y[:, 0])), ShapeError,
        r"MonotonicAttention: state.previous has shape \(2, 4\), expected \(B, Tk\) = \(2, 5\)",
    ),
    (
        lambda: nn.LocationSensitiveAttention(4, 4, 4)(X, Y, state=Y[:, 0]), DTypeError,
        "LocationSensitiveAttention: state is a Tensor, expected an Alignment",
    ),
    (lambda: nn.LocalAttention(4, window=0), ValueError, "LocalAttention: window is 0, expected an int of at least 1"),
    (lambda: nn.LocalAttention(4, window=6)(X, Y), ValueError, "window is 6, expected at most the number of keys, 5"),
    (lambda: nn.LocalAttention(4, window=2)(X[:, 0], Y), ValueError, "LocalAttention: position is None, expected that"),
    (lambda: nn.LocalAttention(4, window=2)(X, Y, position=-1), ValueError, "position is -1, expected an int of at lea"),
    (
        lambda: nn.LocalAttention(4, window=2, predictive=True)(X, Y, position=1), ValueError,
        "position is 1, expected None with predictive=True",
    ),
    (lambda: nn.LocationSensitiveAttention(4, 4, 4, location="x"), ValueError, "location is 'x', expected 'previous'"),
    (lambda: nn.LocationSensitiveAttention(4, 4, 4, kernel_size=4), ValueError, "kernel_size is 4, expected an odd num"),
    (lambda: nn.MonotonicAttention(4, mode="soft"), ValueError, "MonotonicAttention: mode is 'soft', expected one of"),
    (lambda: nn.MonotonicAttention(4, noise=-1), ValueError, "MonotonicAttention: noise is -1, expected a standard"),
    (lambda: nn.MultiHeadAttention(8, 3), ValueError, "MultiHeadAttention: num_heads is 3, expected a divisor of embed"),
    (lambda: nn.MultiHeadAttention(8, 0), ValueError, "MultiHeadAttention: num_heads is 0, expected an int of at lea"),
    (lambda: nn.MultiHeadAttention(4, 2)(X), DTypeError, "MultiHeadAttention: key is a NoneType, expected a torch.Ten"),
    (lambda: nn.MultiHeadAttention(4, 2)(X, Y), ShapeError, r"key has shape \(5, 2, 4\), expected \(B, S, kdim\) = \(3, 2, 4\)"),
    (
        lambda: nn.MultiHeadAttention(4, 2, batch_first=True)(X, Y, attn_mask=torch.ones(3, 4)), ShapeError,
        r"attn_mask has shape \(3, 4\), expected \(L, S\) = \(3, 5\)",
    ),
    (
        lambda: nn.MultiHeadAttention(4, 2, batch_first=True)(X, Y, key_padding_mask=torch.ones(2, 5).int()),
        DTypeError, "key_padding_mask has dtype torch.int32, expected torch.bool or a floating-point dtype",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[b[2][:48] for b in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
