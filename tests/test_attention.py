"""Additive attention against the oracle, and its module."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import DeviceError, DTypeError, ShapeError, nn, reference  # noqa: E402
from fastrnn.functional import additive_attention  # noqa: E402

# B, Tq, Tk, D, Dv: ones, odd numbers, more than a tile of each, no values at all.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 4, 6),
    (3, 7, 9, 33, 17),
    (2, 12, 40, 130, 64),
    (1, 4, 3, 16, 0),
    (5, 1, 17, 31, 5),
]
# A score sums D terms of rounding error 2^-24 |v| each and the softmax multiplies by it (4e-6 at D = 130 with v normal);
# the gradient of v sums B*Tq*Tk such terms.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-13}


def make(shape, dtype, scale=1.0, masked=False, seed=0):
    B, Tq, Tk, D, Dv = shape
    g = torch.Generator().manual_seed(seed)
    sizes = ((B, Tq, D), (B, Tk, D), (B, Tk, Dv), (D,))
    tensors = [torch.randn(size, generator=g, dtype=torch.float64) for size in sizes]
    tensors = [(t * scale if i < 2 else t).to(dtype).requires_grad_() for i, t in enumerate(tensors)]
    if not masked:
        return tensors, None, None
    lengths = torch.randint(0, Tk + 1, (B,), generator=g)
    return tensors, lengths, torch.rand(B, Tq, Tk, generator=g) < 0.6


def results(function, tensors):
    context, weights = function(*tensors)
    g = torch.Generator().manual_seed(1)
    ups = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype) for t in (context, weights)]
    found = torch.autograd.grad([context, weights], tensors, ups)
    return dict(zip(("context", "weights", "dquery", "dkey", "dvalue", "dv"), (context, weights, *found)))


# scale 30: pre-activations leave the range in which the exponentials are used.
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_oracle(isa, shape, dtype, scale, masked):
    tensors, lengths, mask = make(shape, dtype, scale, masked)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    got = results(lambda *t: additive_attention(*t, lengths=lengths, mask=mask), tensors)
    want = results(lambda *t: reference.additive_attention(*t, lengths, mask), exact)
    cases.assert_close(got, want, TOLERANCE[dtype])


def test_between_the_two_ranges():
    """Around the bound of the exponentials, where one element decides for a whole batch."""
    for limit in (10.7, 10.8, 21.0, 60.0):
        tensors, _, _ = make((2, 5, 6, 40, 3), torch.float32)
        with torch.no_grad():
            tensors[0][1, 2, 3], tensors[1][1, 4, 3] = limit, -limit + 0.5
        exact = [t.detach().double().requires_grad_() for t in tensors]
        cases.assert_close(results(additive_attention, tensors), results(reference.additive_attention, exact), 1e-5)


@pytest.mark.parametrize("shape", [(1, 37, 50, 64, 20), (3, 20, 33, 100, 7)], ids=str)
def test_threads_give_the_same_bits(isa, shape):
    tensors, lengths, mask = make(shape, torch.float32, masked=True)
    first = None
    for n in (1, 2, 3):
        fastrnn.set_num_threads(n)
        found = results(lambda *t: additive_attention(*t, lengths=lengths, mask=mask), tensors)
        first = first or found
        assert all(torch.equal(found[name], first[name]) for name in first), n


def test_nothing_to_attend_to_gives_zeros():
    tensors, _, _ = make((2, 3, 4, 5, 6), torch.float32)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, 1] = False
    found = results(lambda *t: additive_attention(*t, lengths=[4, 0], mask=mask), tensors)
    assert (found["context"][0, 1] == 0).all() and (found["weights"][0, 1] == 0).all()
    assert (found["context"][1] == 0).all() and (found["dkey"][1] == 0).all() and (found["dquery"][0, 1] == 0).all()
    assert (found["weights"][0, 0].sum() - 1).abs() < 1e-6
    assert all(t.isfinite().all() for t in found.values())


def test_padding_may_hold_nan():
    tensors, _, _ = make((2, 3, 4, 5, 6), torch.float32)
    want = results(lambda *t: additive_attention(*t, lengths=[4, 2]), tensors)
    with torch.no_grad():
        tensors[1][1, 2:] = tensors[2][1, 2:] = float("nan")
    found = results(lambda *t: additive_attention(*t, lengths=[4, 2]), tensors)
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_first_and_second_derivatives():
    tensors, lengths, mask = make((2, 3, 4, 5, 3), torch.float64, masked=True)

    def call(*t):
        return additive_attention(*t, lengths=lengths, mask=mask)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


# torch warns about its own internals while it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_operator_and_compile():
    tensors, lengths, mask = make((2, 3, 4, 5, 6), torch.float32, masked=True)
    torch.library.opcheck(torch.ops.fastrnn.additive_attention.default, (*tensors, lengths, mask))
    module, q, m = nn.AdditiveAttention(3, 4, 8), torch.randn(2, 5, 3), torch.randn(2, 7, 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = []
    for call in (module, compiled):
        context, weights = call(q, m, lengths=torch.tensor([7, 2]))
        found.append(
            [context, weights, *torch.autograd.grad(context.sum() + weights[:, :, 0].sum(), module.parameters())]
        )
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_go_through_float32(dtype):
    tensors, _, _ = make((2, 3, 4, 5, 6), dtype)
    context, weights = additive_attention(*tensors)
    wide, _ = additive_attention(*(t.float() for t in tensors))
    assert context.dtype is weights.dtype is dtype
    assert torch.equal(context, wide.to(dtype))
    with torch.autocast("cpu", dtype):
        assert additive_attention(*(t.float() for t in tensors))[0].dtype is dtype


def test_strided_and_expanded_arguments():
    tensors, _, _ = make((2, 6, 8, 5, 4), torch.float32)
    query, key, value, v = (t.detach() for t in tensors)
    want = additive_attention(query, key, value, v)
    other = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (query, key, value)]
    got = additive_attention(*other, v.repeat_interleave(2)[::2])
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    one = torch.ones(8, dtype=torch.bool)
    one[5] = False
    weights = additive_attention(query, key, value, v, mask=one)[1]
    assert (weights[..., 5] == 0).all() and torch.allclose(weights.sum(-1), torch.ones(2, 6))


def test_module_projects_and_precomputes():
    torch.manual_seed(0)
    module = nn.BahdanauAttention(3, 4, 8)
    query, memory = torch.randn(2, 5, 3), torch.randn(2, 7, 4)
    context, weights = module(query, memory, lengths=[7, 3])
    want = reference.additive_attention(
        module.query_layer(query), module.memory_layer(memory), memory, module.v, torch.tensor([7, 3])
    )
    torch.testing.assert_close((context, weights), want)
    keys = module.precompute(memory)
    step, one = module(query[:, 2], memory, lengths=[7, 3], keys=keys)
    torch.testing.assert_close((step, one), (context[:, 2], weights[:, 2]))
    assert "3, 4, 8" in repr(module)
    assert {name for name, _ in module.named_parameters()} == {
        "v", "query_layer.weight", "memory_layer.weight", "memory_layer.bias",
    }  # fmt: skip


def test_empty_sizes():
    tensors, _, _ = make((2, 3, 0, 4, 5), torch.float32)
    context, weights = additive_attention(*tensors)
    assert (context == 0).all() and weights.shape == (2, 3, 0)
    for shape in ((0, 3, 4, 5, 6), (2, 0, 4, 5, 6)):
        tensors, _, _ = make(shape, torch.float32)
        found = results(additive_attention, tensors)
        assert found["context"].shape == (shape[0], shape[1], 6)
        assert (found["dkey"] == 0).all() and (found["dv"] == 0).all()


q, k, val, v = torch.ones(2, 3, 4), torch.ones(2, 5, 4), torch.ones(2, 5, 6), torch.ones(4)
BAD = [
    ((q.numpy(), k, val, v), {}, DTypeError, "query is a ndarray, expected a torch.Tensor"),
    ((q.long(), k, val, v), {}, DTypeError, "query has dtype torch.int64"),
    (
        (q, k.double(), val, v),
        {},
        DTypeError,
        r"key has dtype torch.float64, expected torch.float32 \(the dtype of query\)",
    ),
    ((q[0], k, val, v), {}, ShapeError, r"query has shape \(3, 4\), expected 3 sizes"),
    ((q, k[:1], val, v), {}, ShapeError, r"key has shape \(1, 5, 4\), expected \(B, Tk, D\) = \(2, 5, 4\)"),
    ((q, k, val[:, :4], v), {}, ShapeError, r"value has shape \(2, 4, 6\), expected \(B, Tk, Dv\) = \(2, 5, 6\)"),
    ((q, k, val, v[:3]), {}, ShapeError, r"v has shape \(3,\), expected \(D,\) = \(4,\)"),
    ((q, k, val, v), {"lengths": [1, 6]}, ShapeError, "lengths has 6, expected 0 <= lengths <= T = 5"),
    ((q, k, val, v), {"lengths": [-1, 2]}, ShapeError, "lengths has -1"),
    ((q, k, val, v), {"lengths": [1.0, 2.0]}, DTypeError, "lengths has dtype torch.float32, expected an integer dtype"),
    ((q, k, val, v), {"lengths": [1]}, ShapeError, r"lengths has shape \(1,\)"),
    (
        (q, k, val, v),
        {"mask": torch.ones(2, 3, 4, dtype=torch.bool)},
        ShapeError,
        r"mask has shape \(2, 3, 4\), expected",
    ),
    ((q, k, val, v), {"mask": torch.ones(2, 3, 5)}, DTypeError, "mask has dtype torch.float32, expected torch.bool"),
    ((q.to_sparse(), k, val, v), {}, DeviceError, "query has layout torch.sparse_coo"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[b[3][:40] for b in BAD])
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=f"additive_attention: {message}"):
        additive_attention(*arguments, **options)


def test_the_module_names_bad_input():
    module = nn.AdditiveAttention(3, 4, 8)
    with pytest.raises(ShapeError, match=r"memory has shape \(2, 7, 5\), expected"):
        module(torch.ones(2, 5, 3), torch.ones(2, 7, 5))
    with pytest.raises(ValueError, match="attention_size is 0, expected an int of at least 1"):
        nn.AdditiveAttention(3, 4, 0)
