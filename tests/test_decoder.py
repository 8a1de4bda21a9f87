"""The attention decoder against the oracle: one call for all steps."""

from __future__ import annotations

from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import reference  # noqa: E402
from fastrnn.decoder import DecoderWeights, attention_decoder, prepare  # noqa: E402

# A step's pre-activations sum E + F + H products, a score D terms, and gradients of weights T*B of them, see cases.py.
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-12}


class Case(NamedTuple):
    B: int
    T: int
    Tk: int
    E: int
    H: int
    M: int
    A: int
    cell: str = "lstm"
    score: str = "additive"  # or dot
    order: str = "luong"
    feeding: bool = True
    lengths: bool = False
    bias: bool = True

    def __str__(self) -> str:
        return "-".join(str(v) for v in self)


def variants():
    """Every cell, score, order and feeding, each with one of the sizes: ones, odd, primes, more than a tile."""
    sizes = [
        (1, 1, 1, 1, 1, 1, 1),
        (2, 3, 5, 4, 6, 3, 7),
        (3, 4, 17, 5, 33, 20, 40),
        (9, 2, 3, 7, 16, 64, 31),
        (2, 3, 2, 3, 67, 1, 130),
        (5, 2, 40, 1, 20, 70, 16),
    ]
    n = 0
    for cell in ("lstm", "gru"):
        for score in ("additive", "dot"):
            for order, feeding in (("luong", True), ("luong", False), ("bahdanau", True)):
                for masked in (False, True):
                    yield Case(*sizes[n % len(sizes)], cell, score, order, feeding, masked, bias=n % 3 > 0)
                    n += 1
                n += 1


def make(case: Case, dtype, device: str = "cpu", seed: int = 0):
    """x, memory, keys, states, feed and weights by name, and lengths; one row has nothing to attend to."""
    g = torch.Generator().manual_seed(seed)
    c, G = case, 4 if case.cell == "lstm" else 3
    A = c.A if c.score == "additive" else c.H
    F = c.M if c.order == "bahdanau" else c.H if c.feeding else 0

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(device, dtype).requires_grad_()

    small = c.H**-0.5
    named = {
        "x": normal(c.B, c.T, c.E),
        "memory": normal(c.B, c.Tk, c.M),
        "keys": normal(c.B, c.Tk, A, scale=1.0 if c.score == "additive" else small),
        "h0": normal(c.B, c.H),
        "weight_ih": normal(G * c.H, c.E + F, scale=small),
        "weight_hh": normal(G * c.H, c.H, scale=small),
    }
    if c.cell == "lstm":
        named["c0"] = normal(c.B, c.H)
    if c.order == "luong" and F:
        named["feed"] = normal(c.B, c.H)
    if c.bias:
        named |= {"bias_ih": normal(G * c.H, scale=small), "bias_hh": normal(G * c.H, scale=small)}
    if c.score == "additive":
        named |= {"query_weight": normal(A, c.H, scale=small), "v": normal(A, scale=A**-0.5)}
    if c.order == "luong":
        named["output_weight"] = normal(c.H, c.M + c.H, scale=small)
    lengths = torch.randint(0, c.Tk + 1, (c.B,), generator=g) if c.lengths else None
    if lengths is not None:
        lengths[-1] = 0
        lengths = lengths.to(device)
    return named, lengths


def weights_of(named) -> DecoderWeights:
    return DecoderWeights(**{k: named[k] for k in DecoderWeights._fields if k in named})


def kernel(case: Case, named, lengths):
    state = (named["h0"], named["c0"]) if case.cell == "lstm" else named["h0"]
    outputs, shares, last = attention_decoder(
        named["x"], named["memory"], weights_of(named), state, cell=case.cell, order=case.order, keys=named["keys"],
        lengths=lengths, feed=named.get("feed"),
    )  # fmt: skip
    last = last if case.cell == "lstm" else (last,)
    return {"outputs": outputs, "weights": shares, **dict(zip("hc", last))}


def oracle(case: Case, named, lengths):
    state = (named["h0"], named["c0"]) if case.cell == "lstm" else named["h0"]
    arguments = prepare(
        named["x"], named["memory"], weights_of(named), state, case.cell, case.order, named["keys"], lengths,
        named.get("feed"),
    )  # fmt: skip
    outputs, shares, last = reference.attention_decoder(*arguments)
    return {"outputs": outputs, "weights": shares, **dict(zip("hc", last))}


def results(function, case: Case, named, lengths, names=("outputs", "weights", "h", "c")):
    outs = function(case, named, lengths)
    g = torch.Generator().manual_seed(1)
    ups = {n: torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for n, t in outs.items()}
    chosen = [n for n in outs if n in names]
    found = torch.autograd.grad([outs[n] for n in chosen], list(named.values()), [ups[n] for n in chosen])
    return outs | {f"d{name}": d for name, d in zip(named, found)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", list(variants()), ids=str)
def test_matches_the_loop(engine, case, dtype):
    named, lengths = make(case, dtype, engine)
    exact = {name: t.detach().double().requires_grad_() for name, t in named.items()}
    got, want = results(kernel, case, named, lengths), results(oracle, case, exact, lengths)
    cases.assert_close(got, want, TOLERANCE[dtype])
    if lengths is not None:
        assert (got["weights"][-1] == 0).all() and (got["dkeys"][-1] == 0).all() and (got["dmemory"][-1] == 0).all()


SMALL = Case(2, 3, 4, 2, 5, 3, 4)
ORDERS = [SMALL, SMALL._replace(score="dot", cell="gru"), SMALL._replace(order="bahdanau", lengths=True)]


@pytest.mark.parametrize("case", ORDERS, ids=str)
def test_queries_and_keys_beyond_the_exponentials(engine, case):
    """On CPUs the score takes another way where |query| or |key| is above 10.75."""
    for name, scale in (("keys", 30.0), ("query_weight", 60.0)):
        named, lengths = make(case, torch.float32, engine)
        if name not in named:
            continue
        with torch.no_grad():
            named[name] *= scale
        exact = {key: t.detach().double().requires_grad_() for key, t in named.items()}
        # The large factor also multiplies the gradients and their errors.
        cases.assert_close(results(kernel, case, named, lengths), results(oracle, case, exact, lengths), 3e-4)


@pytest.mark.parametrize("case", ORDERS, ids=str)
def test_first_and_second_derivatives(device, case):
    case = case._replace(T=2, Tk=2, H=3, M=2, A=2)
    named, lengths = make(case, torch.float64, device)

    def call(*tensors):
        return tuple(kernel(case, dict(zip(named, tensors)), lengths).values())

    assert torch.autograd.gradcheck(call, tuple(named.values()))
    assert torch.autograd.gradgradcheck(call, tuple(named.values()), fast_mode=True)


@pytest.mark.parametrize("case", ORDERS[:2], ids=str)
def test_torch_func(case):
    case = case._replace(T=2, Tk=2, H=3, M=2, A=2)
    named, lengths = make(case, torch.float64)

    def call(*tensors):
        return sum(out.sin().sum() for out in kernel(case, dict(zip(named, tensors)), lengths).values())

    cases.check_transforms(call, tuple(named.values()))


@pytest.mark.parametrize("name", ["outputs", "weights", "h", "c"])
def test_each_result_alone_has_gradients(engine, name):
    case = Case(3, 4, 5, 3, 18, 7, 9, lengths=True)
    named, lengths = make(case, torch.float64, engine)

    def found(function):
        out = function(case, named, lengths)[name]
        g = torch.autograd.grad(out.pow(2).sum(), list(named.values()), allow_unused=True)
        return {n: torch.zeros_like(t) if d is None else d for (n, t), d in zip(named.items(), g)}

    cases.assert_close(found(kernel), found(oracle), 1e-12)


@pytest.mark.parametrize("case", [Case(7, 5, 19, 3, 33, 20, 40, lengths=True), SMALL._replace(B=1)], ids=str)
def test_threads_give_the_same_bits(isa, case):
    named, lengths = make(case, torch.float32)
    first = None
    for n in (1, 2, 3):
        fastrnn.set_num_threads(n)
        found = results(kernel, case, named, lengths)
        first = first or found
        assert all(torch.equal(found[name], first[name]) for name in first), n


def test_in_parts_is_the_same_as_at_once(engine):
    case = Case(3, 6, 5, 4, 17, 6, 8, lengths=True)
    named, lengths = make(case, torch.float64, engine)
    whole = kernel(case, named, lengths)
    state, feed, outputs = (named["h0"], named["c0"]), named["feed"], []
    for part in named["x"].split([1, 3, 2], 1):
        y, _, state = attention_decoder(
            part, named["memory"], weights_of(named), state, keys=named["keys"], lengths=lengths, feed=feed
        )
        feed = y[:, -1]
        outputs.append(y)
    cases.assert_close({"y": torch.cat(outputs, 1), "c": state[1]}, {"y": whole["outputs"], "c": whole["c"]}, 1e-14)


def test_padding_may_hold_nan(engine):
    case = Case(2, 3, 4, 2, 5, 3, 4, lengths=True)
    named, _ = make(case, torch.float32, engine)
    lengths = torch.tensor([4, 2], device=engine)
    want = results(kernel, case, named, lengths)
    with torch.no_grad():
        named["memory"][1, 2:] = named["keys"][1, 2:] = float("nan")
    got = results(kernel, case, named, lengths)
    assert all(torch.equal(got[name], want[name]) for name in want)


# torch warns about its own internals while it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_operator_and_compile(engine):
    case = SMALL._replace(lengths=True)
    named, lengths = make(case, torch.float32, engine)
    state = (named["h0"], named["c0"])
    arguments = prepare(
        named["x"], named["memory"], weights_of(named), state, "lstm", "luong", named["keys"], lengths, named["feed"]
    )
    arguments = [t.detach().requires_grad_() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
                 for t in arguments]  # fmt: skip
    torch.library.opcheck(torch.ops.fastrnn.attention_decoder.default, (*arguments, True))
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    cases.assert_close(results(compiled, case, named, lengths), results(kernel, case, named, lengths), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_go_through_float32(engine, dtype):
    case = SMALL
    named, _ = make(case, dtype, engine)
    got = kernel(case, named, None)
    want = kernel(case, {name: t.float() for name, t in named.items()}, None)
    assert all(t.dtype is dtype and torch.equal(t, want[name].to(dtype)) for name, t in got.items())
    with torch.autocast(engine, dtype):
        assert kernel(case, {name: t.float() for name, t in named.items()}, None)["outputs"].dtype is dtype


def test_strided_arguments_and_empty_sizes(engine):
    case = SMALL
    named, _ = make(case, torch.float32, engine)
    want = kernel(case, named, None)
    other = {n: t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim > 1 else t for n, t in named.items()}
    got = kernel(case, other, None)
    assert all(torch.allclose(got[name], want[name], atol=1e-6) for name in want)
    for sizes in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        case = SMALL._replace(B=sizes[0], T=sizes[1], Tk=sizes[2])
        named, _ = make(case, torch.float32, engine)
        found = results(kernel, case, named, None)
        assert found["outputs"].shape == (sizes[0], sizes[1], 5)
        assert all(t.isfinite().all() for t in found.values())
        assert sizes[1] or torch.equal(found["h"], named["h0"])


def _bad():
    n, _ = make(SMALL, torch.float32)
    w, s = weights_of(n), (n["h0"], n["c0"])
    x, m, k = n["x"], n["memory"], n["keys"]
    shape, dtype = fastrnn.ShapeError, fastrnn.DTypeError
    yield (x.detach().numpy(), m, w, s), {}, dtype, "x is a ndarray, expected a torch.Tensor"
    yield (x[0], m, w, s), {}, shape, r"x has shape \(3, 2\), expected 3 sizes"
    yield (x, m.double(), w, s), {}, dtype, r"memory has dtype torch.float64, expected torch.float32"
    yield (x, m[:1], w, s), {"keys": k}, shape, r"memory has shape \(1, 4, 3\), expected \(B, Tk, M\) = \(2, 4, 3\)"
    yield (x, m, w, s), {"keys": k[:, :3]}, shape, r"keys has shape \(2, 3, 4\), expected \(B, Tk, A\)"
    yield (x, m, w, s), {"keys": k[..., :3]}, shape, r"query_weight has shape \(4, 5\), expected \(A, H\) = \(3, 5\)"
    yield (
        (x, m, w._replace(v=None, query_weight=None), s),
        {"keys": k},
        shape,
        r"keys has shape .* expected \(B, Tk, H\)",
    )
    yield (x, m, w._replace(v=None), s), {"keys": k}, ValueError, "query_weight and v: got one of them"
    yield (x, m, w._replace(output_weight=None), s), {"keys": k}, ValueError, "output_weight is None, expected"
    yield (x, m, w, s), {"keys": k, "order": "bahdanau"}, shape, r"weight_ih has shape \(20, 7\), expected"
    yield (x, m, w._replace(weight_ih=w.weight_ih[:, :5]), s), {"keys": k}, shape, r"weight_ih has shape \(20, 5\)"
    yield (x, m, w._replace(weight_hh=w.weight_hh[:8]), s), {"keys": k}, shape, r"weight_hh has shape \(8, 5\)"
    yield (x, m, w, s[0]), {"keys": k}, dtype, r"state is a Tensor, expected a pair of tensors \(h, c\)"
    yield (x, m, w, (s[0][:1], s[1])), {"keys": k}, shape, r"h0 has shape \(1, 5\), expected \(B, H\) = \(2, 5\)"
    yield (x, m, w, s), {"keys": k, "cell": "rnn"}, ValueError, "cell is 'rnn', expected 'lstm' or 'gru'"
    yield (x, m, w, s), {"keys": k, "order": "other"}, ValueError, "order is 'other', expected 'luong' or 'bahdanau'"
    yield (x, m, w, s), {"keys": k, "lengths": [1, 5]}, shape, "lengths has 5, expected 0 <= lengths <= T = 4"
    yield (x, m, w, s), {"keys": k, "lengths": [-1, 2]}, shape, "lengths has -1"
    yield (x, m, w, s), {"keys": k, "lengths": [1.0, 2.0]}, dtype, "lengths has dtype torch.float32"
    yield (x, m, w, s), {"keys": k, "lengths": ["1", "2"]}, dtype, r"lengths is a list, expected integers \[B\]"
    yield (x, m, w, s), {"keys": k, "lengths": torch.ones(2) + 0j}, dtype, "lengths has dtype torch.complex64, expected"
    yield (x, m, w, s), {"keys": k, "cell": ["lstm"]}, ValueError, r"cell is \['lstm'\], expected 'lstm' or 'gru'"
    yield (x, m, w, s), {"keys": k, "lengths": [1]}, shape, r"lengths has shape \(1,\), expected \(B,\) = \(2,\)"
    yield (x, m, w, s), {"keys": k, "feed": s[0][:, :3]}, shape, r"feed has shape \(2, 3\), expected \(B, H\)"
    yield (x, m, list(w), s), {}, dtype, "weights is a list, expected DecoderWeights"
    yield (x.to_sparse(), m, w, s), {}, fastrnn.DeviceError, "x has layout torch.sparse_coo"


@pytest.mark.parametrize("name", ["memory", "weight_ih", "weight_hh", "output_weight", "query_weight", "v"])
def test_a_freed_storage_is_refused(name):
    memory, H = torch.randn(2, 7, 6), 8
    weights = {"weight_ih": torch.ones(4 * H, 3 + H), "weight_hh": torch.ones(4 * H, H), "v": torch.ones(6)}
    weights |= {"query_weight": torch.ones(6, H), "output_weight": torch.ones(H, 6 + H)}
    ({"memory": memory} | weights)[name].untyped_storage().resize_(0)
    with pytest.raises(fastrnn.DeviceError, match=f"attention_decoder: {name} has a storage of 0 bytes, expected"):
        attention_decoder(torch.randn(2, 5, 3), memory, DecoderWeights(**weights))


@pytest.mark.parametrize(("arguments", "options", "error", "message"), list(_bad()), ids=lambda v: str(v)[:40])
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=f"attention_decoder: {message}"):
        attention_decoder(*arguments, **options)
