"""Attention with every score function against the oracle, in every instruction set, and its additive module."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from attention_cases import FUNCTIONS, SMALL, both, check_operator_and_compile, make, options_of, results  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import DeviceError, DTypeError, ShapeError, _core, nn, reference  # noqa: E402
from fastrnn.functional import additive_attention, additive_scores, dot_attention, dot_scores  # noqa: E402

# B, Tq, Tk, D, Dv: ones, odd numbers, more than a tile of each, whole vectors, no values at all.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 4, 6),
    (3, 7, 9, 33, 17),
    (2, 12, 40, 130, 64),
    (1, 4, 3, 16, 0),
    (5, 1, 17, 31, 150),
    (2, 9, 67, 64, 96),
]
# A score sums D terms of rounding error 2^-24 |v| each and the softmax multiplies by it (4e-6 at D = 130 with v normal);
# the gradient of v sums B*Tq*Tk such terms.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-13}


# size 30: pre-activations leave the range in which exponentials are used; 6: that in which two terms share a division.
@pytest.mark.parametrize(
    "options", ["", "lengths mask", "scale bias", "lengths causal row"], ids=lambda o: o or "plain"
)
@pytest.mark.parametrize(
    ("score", "size"),
    [("additive", 1.0), ("additive", 6.0), ("additive", 30.0), ("additive_relu", 1.0), ("dot", 1.0)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_oracle(isa, shape, dtype, score, size, options):
    got, want = both(score, make(score, shape, dtype, size), options_of(options, shape, dtype))
    cases.assert_close(got, want, TOLERANCE[dtype])


def test_every_score_is_tested():
    assert list(FUNCTIONS) == _core.SCORES == list(reference.SCORES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("activation", "size"), [("tanh", 1.0), ("tanh", 30.0), ("relu", 1.0)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_raw_scores(isa, shape, activation, size, dtype):
    query, key, _, v = make("additive", shape, dtype, size)
    exact = [t.detach().double().requires_grad_() for t in (query, key, v)]
    found = []
    for function, inputs in ((additive_scores, (query, key, v)), (reference.additive_scores, exact)):
        scores = function(*inputs, activation=activation)
        up = torch.linspace(-1, 1.5, scores.numel(), dtype=torch.float64) / scores[0].numel() ** 0.5
        up = up.to(scores.dtype).view_as(scores)
        grads = torch.autograd.grad(scores, inputs, up)
        found.append(dict(zip(("scores", "dquery", "dkey", "dv"), (scores, *grads))))
    cases.assert_close(*found, TOLERANCE[dtype])


def test_around_the_bounds_of_the_exponentials():
    """One element decides for a whole batch."""
    for limit in (10.0, 17.0, 19.0, 21.0, 30.0, 41.0, 43.0, 60.0, 1e6):
        tensors = make("additive", (2, 5, 6, 40, 3), torch.float32)
        with torch.no_grad():
            tensors[0][1, 2, 3], tensors[1][1, 4, 3] = limit, -limit + 0.5
        cases.assert_close(*both("additive", tensors, {}), 1e-5)


@pytest.mark.parametrize("small", [0.0, 1e-30, -1e-12, 1e-9, 1e-5, 1e30], ids=str)
def test_v_of_any_size(isa, small):
    """v is divided by: zeros, and values that differ by orders of magnitude, next to each other and alone."""
    query, key, _, v = make("additive", (2, 5, 6, 40, 3), torch.float32, 2.0)
    with torch.no_grad():
        v[[3, 4, 5, 17]] = small
    for each in (v.detach(), torch.full((40,), small)):
        got, want = (
            additive_scores(query, key, each),
            reference.additive_scores(*(t.double() for t in (query, key, each))),
        )
        assert ((got - want).abs() <= 2e-6 * each.double().abs().sum()).all()


@pytest.mark.parametrize("score", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1, 37, 50, 64, 20), (3, 20, 33, 800, 7), (2, 2, 1500, 512, 64)], ids=str)
def test_threads_give_the_same_bits(isa, score, shape):
    tensors, options = make(score, shape, torch.float32), options_of("lengths mask bias", shape, torch.float32)
    first = None
    for n in (1, 2, 3):
        fastrnn.set_num_threads(n)
        found = results(lambda *t: FUNCTIONS[score](*t, **options), tensors, options["bias"])
        first = first or found
        assert all(torch.equal(found[name], first[name]) for name in first), n


@pytest.mark.parametrize("by", ["mask", "bias"])
@pytest.mark.parametrize("score", FUNCTIONS)
def test_nothing_to_attend_to_gives_zeros(score, by):
    tensors = make(score, (2, 3, 4, 5, 6), torch.float32)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, 1] = False
    mask[0, 2, 3] = False
    bias = torch.zeros(2, 3, 4).masked_fill(~mask, -float("inf")).requires_grad_() if by == "bias" else None
    options = {"mask": mask} if bias is None else {"bias": bias}
    found = results(lambda *t: FUNCTIONS[score](*t, lengths=[4, 0], **options), tensors, bias)
    assert (found["context"][0, 1] == 0).all() and (found["weights"][0, 1] == 0).all()
    assert (found["context"][1] == 0).all() and (found["dkey"][1] == 0).all() and (found["dquery"][0, 1] == 0).all()
    assert found["weights"][0, 2, 3] == 0 and (found["weights"][0, 0].sum() - 1).abs() < 1e-6
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("score", FUNCTIONS)
def test_padding_may_hold_nan(score):
    tensors = make(score, (2, 5, 40, 33, 34), torch.float32)
    want = results(lambda *t: FUNCTIONS[score](*t, lengths=[40, 2]), tensors)
    with torch.no_grad():
        tensors[1][1, 2:] = tensors[2][1, 2:] = float("nan")
    found = results(lambda *t: FUNCTIONS[score](*t, lengths=[40, 2]), tensors)
    assert all(torch.equal(found[name], want[name]) for name in want)


@pytest.mark.parametrize("by", ["mask", "bias"])
@pytest.mark.parametrize("spoiled", [float("nan"), float("inf"), 3e38], ids=str)
@pytest.mark.parametrize("score", FUNCTIONS)
def test_keys_hidden_from_all_queries_may_hold_nan(score, spoiled, by):
    tensors = make(score, (3, 5, 9, 33, 34), torch.float32)
    mask = torch.rand(3, 5, 9) < 0.7
    mask[0, :, 3] = mask[1, :, 5:] = mask[2] = False
    bias = torch.zeros(3, 5, 9).masked_fill(~mask, -float("inf"))
    options = {"mask": mask} if by == "mask" else {"bias": bias}

    def everything(key, value):
        given = [t.detach().requires_grad_() for t in (tensors[0], key, value, *tensors[3:])]
        outs = FUNCTIONS[score](*given, **options)
        first = torch.autograd.grad([t.square().sum() for t in outs], given, create_graph=True)
        return outs, first, torch.autograd.grad([t.square().sum() for t in first], given)

    hidden = ~mask.any(1).unsqueeze(-1)
    found = everything(*(t.masked_fill(hidden, spoiled) for t in tensors[1:3]))
    torch.testing.assert_close(found, everything(*tensors[1:3]), rtol=1e-3, atol=1e-3)
    arrays = [
        t.detach().numpy() for t in (tensors[0], *(t.masked_fill(hidden, spoiled) for t in tensors[1:3]), *tensors[3:])
    ]
    context, _ = getattr(fastrnn.numpy, "dot_attention" if score == "dot" else "additive_attention")(
        *arrays,
        **({"activation": "relu"} if score == "additive_relu" else {}),
        **{name: t.numpy() for name, t in options.items()},
    )
    torch.testing.assert_close(torch.from_numpy(context), found[0][0].detach())


@pytest.mark.parametrize("score", FUNCTIONS)
def test_nan_is_not_hidden(score):
    """Alone, among others, and beside keys that are masked."""
    for where in ((0, 0, 0), (1, 2, 1)):
        tensors = [t.detach() for t in make(score, (2, 3, 4, 5, 6), torch.float32)]
        tensors[0][where] = float("nan")
        for mask in (None, torch.tensor([True, False, False, False])):
            context, weights = FUNCTIONS[score](*tensors, mask=mask)
            assert context[where[:2]].isnan().all() and weights[where[:2]][0].isnan()


@pytest.mark.parametrize("options", ["lengths mask", "scale bias", "row"])
@pytest.mark.parametrize("score", FUNCTIONS)
def test_first_and_second_derivatives(score, options):
    shape = (2, 3, 4, 5, 3)
    tensors, options = make(score, shape, torch.float64), options_of(options, shape, torch.float64)
    bias = options.pop("bias", None)
    if bias is not None:
        tensors.append(bias)

    def call(*t):
        last = {} if bias is None else {"bias": t[-1]}
        return FUNCTIONS[score](*(t if bias is None else t[:-1]), **options, **last)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_derivatives_of_raw_scores(activation):
    query, key, _, v = make("additive", (2, 3, 4, 5, 3), torch.float64)

    def scores(*tensors):
        return additive_scores(*tensors, activation=activation)

    assert torch.autograd.gradcheck(scores, (query, key, v))
    assert torch.autograd.gradgradcheck(scores, (query, key, v))


def test_relu_of_nothing_and_of_huge_sums():
    """Its derivative at zero is zero, as torch's; nothing overflows that does not in the sum."""
    query = torch.zeros(1, 2, 5)
    query[0, 1] = 3e38
    query, key, v = query.requires_grad_(), torch.zeros(1, 3, 5, requires_grad=True), torch.full((5,), 0.1)
    scores = additive_scores(query, key, v, activation="relu")
    dquery, dkey = torch.autograd.grad(scores.sum(), (query, key))
    torch.testing.assert_close(scores[0], torch.tensor([[0.0] * 3, [1.5e38] * 3]))
    assert (dquery[0, 0] == 0).all()
    torch.testing.assert_close((dquery[0, 1], dkey[0]), (torch.full((5,), 0.3), torch.full((3, 5), 0.1)))


@pytest.mark.parametrize("options", ["lengths mask", "scale bias"])
@pytest.mark.parametrize("score", FUNCTIONS)
def test_torch_func(score, options):
    shape = (2, 3, 4, 5, 3)
    tensors, options = make(score, shape, torch.float64), options_of(options, shape, torch.float64)
    cases.check_transforms(lambda *t: sum(out.sin().sum() for out in FUNCTIONS[score](*t, **options)), tensors)


@pytest.mark.parametrize("score", FUNCTIONS)
def test_gradients_of_one_output(score):
    """Through the context alone, through the weights alone, of some inputs alone."""
    shape = (2, 5, 7, 33, 6)
    tensors, options = make(score, shape, torch.float32), options_of("lengths bias scale", shape, torch.float32)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    wide = options | {"bias": options["bias"].detach().double()}
    for output in (0, 1):
        out, want = FUNCTIONS[score](*tensors, **options)[output], reference.attention(score, *exact, **wide)[output]
        up = torch.randn(out.shape)
        got = torch.autograd.grad(out, tensors[:2], up)
        cases.assert_close(
            dict(zip("qk", got)), dict(zip("qk", torch.autograd.grad(want, exact[:2], up.double()))), 3e-5
        )


# torch warns about its own internals while it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("score", FUNCTIONS)
def test_operator_and_compile(score):
    options = options_of("lengths mask bias", SMALL, torch.float32)
    check_operator_and_compile(score, make(score, SMALL, torch.float32), options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scores_and_module_compile():
    query, key, _, v = make("additive", (2, 3, 4, 5, 6), torch.float32)
    for function, inputs in ((additive_scores, (query, key, v)), (dot_scores, (query, key, 0.3))):
        torch.testing.assert_close(torch.compile(function, backend="aot_eager")(*inputs), function(*inputs))
    module, q, m = nn.AdditiveAttention(3, 4, 8), torch.randn(2, 5, 3), torch.randn(2, 7, 4)
    for dynamic in (None, True):  # the second makes the temperature a symbol
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        options = {"lengths": torch.tensor([7, 2]), "mask": torch.rand(2, 5, 7) < 0.7}
        for a, b in zip(module(q, m, **options), compiled(q, m, **options)):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("score", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_go_through_float32(score, dtype):
    tensors = make(score, (2, 3, 4, 5, 6), dtype)
    bias = torch.randn(3, 4).to(dtype)
    context, weights = FUNCTIONS[score](*tensors, bias=bias)
    wide, _ = FUNCTIONS[score](*(t.float() for t in tensors), bias=bias.float())
    assert context.dtype is weights.dtype is dtype
    assert torch.equal(context, wide.to(dtype))
    context.float().sum().backward()
    assert all(t.grad.dtype is dtype for t in tensors)
    with torch.autocast("cpu", dtype):
        mixed = [tensors[0], *(t.float() for t in tensors[1:])]
        assert FUNCTIONS[score](*mixed)[0].dtype is dtype
        for activation in ("tanh", "relu"):
            assert additive_scores(tensors[0], tensors[1].float(), torch.ones(5), activation=activation).dtype is dtype


@pytest.mark.parametrize("score", FUNCTIONS)
def test_strided_and_expanded_arguments(score):
    query, key, value, *v = (t.detach() for t in make(score, (2, 6, 8, 5, 4), torch.float32))
    want = FUNCTIONS[score](query, key, value, *v)
    other = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (query, key, value)]
    got = FUNCTIONS[score](*other, *(t.repeat_interleave(2)[::2] for t in v))
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    one = torch.ones(8, dtype=torch.bool)
    one[5] = False
    weights = FUNCTIONS[score](query, key, value, *v, mask=one)[1]
    assert (weights[..., 5] == 0).all() and torch.allclose(weights.sum(-1), torch.ones(2, 6))
    bias = torch.randn(2, 8, 6).transpose(1, 2)
    strided, dense = (FUNCTIONS[score](query, key, value, *v, bias=b)[0] for b in (bias, bias.contiguous()))
    assert torch.equal(strided, dense)


def test_dot_scores_are_the_product():
    query, key, _ = make("dot", (2, 3, 5, 4, 6), torch.float64)
    torch.testing.assert_close(dot_scores(query, key, 0.5), 0.5 * reference.dot_scores(query, key))


@pytest.mark.parametrize("score", FUNCTIONS)
def test_agrees_with_torch(score):
    """torch's own attention, where it has one; the additive formula as everybody writes it."""
    tensors = [t.detach() for t in make(score, (2, 6, 8, 16, 5), torch.float32)]
    causal = torch.ones(6, 8, dtype=torch.bool).tril()
    context, weights = FUNCTIONS[score](*tensors, scale=0.25, mask=causal)
    if score == "dot":
        want = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=causal, scale=0.25)
    else:
        query, key, value, v = tensors
        act = torch.relu if score == "additive_relu" else torch.tanh
        scores = act(query.unsqueeze(2) + key.unsqueeze(1)) @ v * 0.25
        want = scores.masked_fill(~causal, -float("inf")).softmax(-1) @ value
    torch.testing.assert_close(context, want)


@pytest.mark.parametrize("score", FUNCTIONS)
def test_empty_sizes(score):
    context, weights = FUNCTIONS[score](*make(score, (2, 3, 0, 4, 5), torch.float32))
    assert (context == 0).all() and weights.shape == (2, 3, 0)
    for shape in ((0, 3, 4, 5, 6), (2, 0, 4, 5, 6), (2, 3, 4, 0, 6), (2, 3, 0, 4, 0)):
        found = results(FUNCTIONS[score], make(score, shape, torch.float32))
        assert found["context"].shape == (shape[0], shape[1], shape[4])
        if shape[3]:
            assert (found["dkey"] == 0).all()
        else:
            assert torch.allclose(found["weights"], torch.full((2, 3, 4), 0.25))


q, k, val, v = torch.ones(2, 3, 4), torch.ones(2, 5, 4), torch.ones(2, 5, 6), torch.ones(4)
BAD = [  # value and v are left out where a function has none
    ({"query": q.numpy()}, DTypeError, "query is a ndarray, expected a torch.Tensor"),
    ({"query": q.long()}, DTypeError, "query has dtype torch.int64"),
    ({"key": k.double()}, DTypeError, r"key has dtype torch.float64, expected torch.float32 \(the dtype of query\)"),
    ({"query": q[0]}, ShapeError, r"query has shape \(3, 4\), expected 3 sizes"),
    ({"key": k[:1]}, ShapeError, r"key has shape \(1, 5, 4\), expected \(B, Tk, D\) = \(2, 5, 4\)"),
    ({"query": q.to_sparse()}, DeviceError, "query has layout torch.sparse_coo"),
    ({"v": v[:3]}, ShapeError, r"v has shape \(3,\), expected \(D,\) = \(4,\)"),
    ({"v": None}, DTypeError, "v is a NoneType, expected a torch.Tensor"),
    ({"value": val[:, :4]}, ShapeError, r"value has shape \(2, 4, 6\), expected \(B, Tk, Dv\) = \(2, 5, 6\)"),
    ({"activation": "elu"}, ValueError, "activation is 'elu', expected 'tanh' or 'relu'"),
    ({"activation": None}, ValueError, "activation is None, expected 'tanh' or 'relu'"),
    ({"scale": "2"}, ValueError, "scale is '2', expected a finite number"),
    ({"scale": float("inf")}, ValueError, "scale is inf, expected a finite number"),
    ({"lengths": [1, 6]}, ShapeError, "lengths has 6, expected 0 <= lengths <= T = 5"),
    ({"lengths": [-1, 2]}, ShapeError, "lengths has -1"),
    ({"lengths": [1.0, 2.0]}, DTypeError, "lengths has dtype torch.float32, expected an integer dtype"),
    ({"lengths": [1]}, ShapeError, r"lengths has shape \(1,\)"),
    ({"lengths": ["1", "2"]}, DTypeError, r"lengths is a list, expected integers \[B\]"),
    ({"lengths": torch.ones(2) + 0j}, DTypeError, "lengths has dtype torch.complex64, expected an integer dtype"),
    ({"lengths": torch.ones(2, dtype=torch.long, device="meta")}, DeviceError, "lengths is on meta, expected cpu"),
    ({"mask": torch.ones(3, 5, dtype=torch.bool, device="meta")}, DeviceError, "mask is on meta, expected cpu"),
    ({"mask": torch.ones(2, 3, 4, dtype=torch.bool)}, ShapeError, r"mask has shape \(2, 3, 4\), expected"),
    ({"mask": torch.ones(2, 3, 5)}, DTypeError, "mask has dtype torch.float32, expected torch.bool"),
    ({"bias": torch.ones(2, 3, 4)}, ShapeError, r"bias has shape \(2, 3, 4\), expected \(B, Tq, Tk\) = \(2, 3, 5\)"),
    ({"bias": torch.ones(3, 5).double()}, DTypeError, "bias has dtype torch.float64, expected torch.float32"),
    ({"bias": 1.0}, DTypeError, "bias is a float, expected a torch.Tensor"),
]
ARGUMENTS = {
    additive_attention: ("query", "key", "value", "v"),
    dot_attention: ("query", "key", "value"),
    additive_scores: ("query", "key", "v"),
    dot_scores: ("query", "key"),
}


@pytest.mark.parametrize("name", ["query", "key", "value", "v", "lengths", "mask", "bias"])
def test_a_freed_or_shrunk_storage_is_refused(name):
    tensors = {
        "query": torch.randn(2, 3, 8),
        "key": torch.randn(2, 5, 8),
        "value": torch.randn(2, 5, 4),
        "v": torch.ones(8),
    }
    tensors |= {
        "lengths": torch.tensor([5, 2]),
        "mask": torch.ones(2, 3, 5, dtype=torch.bool),
        "bias": torch.ones(2, 3, 5),
    }
    storage = tensors[name].untyped_storage()
    for size in (storage.nbytes() - 1, 0):
        storage.resize_(size)
        with pytest.raises(DeviceError, match=f"additive_attention: {name} has a storage of {size} bytes, expected"):
            additive_attention(**tensors)


@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("bad", "error", "message"), BAD, ids=[b[2][:40] for b in BAD])
def test_bad_input_is_named(function, bad, error, message):
    good = dict(zip(("query", "key", "value", "v"), (q, k, val, v)))
    names = ARGUMENTS[function]
    takes = {*names, *(("scale", "lengths", "mask", "bias") if "value" in names else ("scale",) * (len(names) == 2))}
    takes |= {"activation"} if "v" in names else set()
    if not set(bad) <= takes:
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            function(**{name: good[name] for name in names}, **bad)
        return
    with pytest.raises(error, match=f"{function.__name__}: {message}"):
        function(**({name: good[name] for name in names} | bad))


@pytest.mark.parametrize("B", [3, 200], ids=["few", "many"])
def test_every_length_is_looked_at(B):
    query, key = torch.ones(B, 1, 4), torch.ones(B, 5, 4)
    for wrong in (-1, 6):
        lengths = torch.full((B,), 5)
        lengths[B // 2] = wrong
        for given in (lengths, lengths.int(), lengths.tolist()):
            with pytest.raises(ShapeError, match=f"dot_attention: lengths has {wrong}, expected 0 <= lengths <= T = 5"):
                dot_attention(query, key, key, lengths=given)


def test_the_operators_check_what_they_read():
    operator, backward = torch.ops.fastrnn.attention, torch.ops.fastrnn.attention_backward
    for call in (
        lambda: operator("cosine", q, k, val, None, None, None, None, 1.0),
        lambda: operator("additive", q, k, val, None, None, None, None, 1.0),
        lambda: operator("dot", q, k[:, :, :3], val, None, None, None, None, 1.0),
        lambda: operator("dot", q, k, val, None, None, torch.ones(2, 3, 4, dtype=torch.bool), None, 1.0),
        lambda: backward("dot", q, k, val, None, None, None, None, 1.0, torch.ones(2, 3, 5), None, None, False),
        lambda: backward("dot", q, k, val, None, None, None, None, 1.0, q, torch.ones(2, 3, 6), None, False),
    ):
        with pytest.raises(ValueError, match="attention"):
            call()


def test_module_projects_and_precomputes():
    torch.manual_seed(0)
    module = nn.BahdanauAttention(3, 4, 8)
    query, memory = torch.randn(2, 5, 3), torch.randn(2, 7, 4)
    context, weights = module(query, memory, lengths=[7, 3])
    want = reference.attention(
        "additive", module.query_layer(query), module.memory_layer(memory), memory, module.v, torch.tensor([7, 3])
    )
    torch.testing.assert_close((context, weights), want)
    keys = module.precompute(memory)
    step, one = module(query[:, 2], memory, lengths=[7, 3], keys=keys)
    torch.testing.assert_close((step, one), (context[:, 2], weights[:, 2]))
    assert "3, 4, 8" in repr(module)
    assert {name for name, _ in module.named_parameters()} == {
        "v", "query_layer.weight", "memory_layer.weight", "memory_layer.bias",
    }  # fmt: skip


def test_the_module_names_bad_input():
    module = nn.AdditiveAttention(3, 4, 8)
    with pytest.raises(ShapeError, match=r"memory has shape \(2, 7, 5\), expected"):
        module(torch.ones(2, 5, 3), torch.ones(2, 7, 5))
    with pytest.raises(ValueError, match="attention_size is 0, expected an int of at least 1"):
        nn.AdditiveAttention(3, 4, 0)
