"""Attention on CUDA against the oracle and the CPU: by emulation (tests/cuda_host/), and on a GPU if there is one."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from attention_cases import FUNCTIONS, SMALL, check_operator_and_compile, expected, make, options_of, results  # noqa: E402

from fastrnn import (  # noqa: E402
    DeviceError,
    _attention_kernels,
    _backends,
    _cuda_attention,
    nn,
    reference,
)
from fastrnn.functional import additive_attention, additive_scores  # noqa: E402

# B, Tq, Tk, D, Dv: ones, odd numbers, one more than a tile of each kernel (32 queries and keys, 32 columns; 16 queries,
# 64 keys), primes, a single query.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 7, 4),
    (2, 33, 65, 33, 5),
    (1, 37, 131, 67, 13),
    (3, 1, 17, 40, 8),
]
OPTIONS = ["", "lengths mask", "scale bias", "lengths causal row"]
# As in test_attention.py; the narrow types round weights, gradients of scores and results, which are then summed: a few
# units of 2^-8 and 2^-11.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12, torch.bfloat16: 6e-2, torch.float16: 1e-2}
NAMES = {dtype: str(dtype)[6:] for dtype in TOLERANCE}
SIZES = [("additive", 1.0), ("additive", 6.0), ("additive", 30.0), ("additive_relu", 1.0), ("dot", 1.0)]
# Every combination in float32; the other types differ in one template parameter.
EVERY = list(itertools.product([torch.float32], SHAPES, SIZES, OPTIONS)) + list(
    itertools.product(list(TOLERANCE)[1:], SHAPES[1:3], SIZES, OPTIONS[1:3])
)


def on(device, t):
    """A tensor, or every one of a list or dict, as a leaf on the device."""
    if isinstance(t, dict):
        return {name: on(device, each) for name, each in t.items()}
    if isinstance(t, list):
        return [on(device, each) for each in t]
    if not isinstance(t, torch.Tensor) or t.device.type == device:
        return t
    return t.detach().to(device).requires_grad_(t.requires_grad)


def found(device, score, tensors, options):
    """Outputs and gradients by name, on the CPU."""
    tensors, options = on(device, tensors), on(device, options)
    got = results(lambda *t: FUNCTIONS[score](*t, **options), tensors, options.get("bias"))
    return {name: t.detach().cpu() for name, t in got.items()}


@pytest.mark.parametrize(
    ("dtype", "shape", "score", "size", "options"),
    [(dtype, shape, *of, options) for dtype, shape, of, options in EVERY],
    ids=[f"{NAMES[d]}-{'x'.join(map(str, s))}-{of[0]}{of[1]:g}-{o or 'plain'}" for d, s, of, o in EVERY],
)
def test_matches_oracle(device, dtype, shape, score, size, options):
    tensors, options = make(score, shape, dtype, size), options_of(options, shape, dtype)
    got = found(device, score, tensors, options)
    cases.assert_close(got, expected(score, tensors, options), TOLERANCE[dtype])
    assert {t.dtype for t in got.values()} == {dtype}


@pytest.mark.parametrize("score", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=NAMES.get)
def test_agrees_with_the_cpu(device, dtype, score):
    shape = (3, 21, 40, 50, 9)
    tensors, options = make(score, shape, dtype), options_of("lengths mask scale bias", shape, dtype)
    got = found(device, score, tensors, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backends, "attention_of", lambda x: _attention_kernels)
        want = found("cpu", score, tensors, options)
    cases.assert_close(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize(("activation", "size"), [("tanh", 1.0), ("tanh", 30.0), ("relu", 1.0)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=NAMES.get)
def test_raw_scores(device, dtype, shape, activation, size):
    query, key, _, v = make("additive", shape, dtype, size)
    exact = [t.detach().double().requires_grad_() for t in (query, key, v)]
    rounded = None
    pair = []
    for function, inputs in (
        (additive_scores, on(device, [query, key, v])),
        (reference.additive_scores, exact),
    ):
        scores = function(*inputs, activation=activation)
        up = torch.linspace(-1, 1.5, scores.numel(), dtype=torch.float64) / scores[0].numel() ** 0.5
        rounded = up.to(dtype) if rounded is None else rounded
        grads = torch.autograd.grad(scores, inputs, rounded.to(scores).view_as(scores))
        pair.append(dict(zip(("scores", "dquery", "dkey", "dv"), (t.detach().cpu() for t in (scores, *grads)))))
    cases.assert_close(*pair, TOLERANCE[dtype])


def test_around_the_bounds_of_the_exponentials(device):
    """One element decides for a tile and a step of D, or for all pairs of its columns."""
    for limit in (10.0, 17.0, 19.0, 21.0, 30.0, 41.0, 43.0, 60.0, 1e6):
        tensors = make("additive", (2, 5, 6, 40, 3), torch.float32)
        with torch.no_grad():
            tensors[0][1, 2, 3], tensors[1][1, 4, 3] = limit, -limit + 0.5
        cases.assert_close(found(device, "additive", tensors, {}), expected("additive", tensors, {}), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=NAMES.get)
@pytest.mark.parametrize("small", [0.0, 1e-30, -1e-12, 1e-9, 1e-5, 1e30], ids=str)
def test_v_of_any_size(device, small, dtype):
    """v is divided by: zeros, and values that differ by orders of magnitude, next to each other and alone."""
    query, key, _, v = (t.detach() for t in make("additive", (2, 5, 6, 40, 3), dtype, 2.0))
    v[[3, 4, 5, 17]] = small
    bound = {torch.float32: 2e-6, torch.float64: 4e-15}[dtype]
    for each in (v, torch.full((40,), small, dtype=dtype)):
        got = additive_scores(*on(device, [query, key, each])).cpu()
        want = reference.additive_scores(*(t.double() for t in (query, key, each)))
        assert ((got - want).abs() <= bound * each.double().abs().sum()).all()


def test_v_may_be_infinite(device):
    query, key, _, v = (t.detach() for t in make("additive", (2, 5, 6, 40, 3), torch.float32))
    v[7] = float("inf")
    got, want = (
        f(*on(d, [query, key, v])).cpu() for f, d in ((additive_scores, device), (reference.additive_scores, "cpu"))
    )
    assert got.isinf().all() and torch.equal(got, want)


@pytest.mark.parametrize("by", ["mask", "bias"])
@pytest.mark.parametrize("score", FUNCTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=NAMES.get)
def test_nothing_to_attend_to_gives_zeros(device, dtype, score, by):
    tensors = make(score, (2, 3, 4, 5, 6), dtype)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, 1] = mask[0, 2, 3] = False
    bias = torch.zeros(2, 3, 4, dtype=dtype).masked_fill(~mask, -float("inf")).requires_grad_()
    options = {"lengths": torch.tensor([4, 0])} | ({"mask": mask} if by == "mask" else {"bias": bias})
    got = found(device, score, tensors, options)
    assert (got["context"][0, 1] == 0).all() and (got["weights"][0, 1] == 0).all()
    assert (got["context"][1] == 0).all() and (got["dkey"][1] == 0).all() and (got["dquery"][0, 1] == 0).all()
    assert got["weights"][0, 2, 3] == 0 and (got["weights"][0, 0].sum() - 1).abs() < TOLERANCE[dtype]
    assert all(t.isfinite().all() for t in got.values())


@pytest.mark.parametrize("score", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=NAMES.get)
def test_padding_may_hold_nan(device, dtype, score):
    tensors, options = make(score, (2, 5, 40, 33, 34), dtype), {"lengths": torch.tensor([40, 2])}
    want = found(device, score, tensors, options)
    with torch.no_grad():
        tensors[1][1, 2:] = tensors[2][1, 2:] = float("nan")
    got = found(device, score, tensors, options)
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("score", FUNCTIONS)
def test_nan_is_not_hidden(device, score):
    """Alone, among others, and beside keys that are masked; other queries do not see it."""
    for where in ((0, 0, 0), (1, 2, 1)):
        tensors = [t.detach() for t in make(score, (2, 3, 4, 5, 6), torch.float32)]
        tensors[0][where] = float("nan")
        for mask in (None, torch.tensor([True, False, False, False])):
            context, weights = FUNCTIONS[score](*on(device, tensors), mask=on(device, mask))
            assert context[where[:2]].isnan().all() and weights[where[:2]][0].isnan()
            assert context.isnan().any(-1).sum() == 1


@pytest.mark.parametrize("options", ["lengths mask", "scale bias"])
@pytest.mark.parametrize("score", FUNCTIONS)
def test_first_and_second_derivatives(device, score, options):
    shape = (2, 2, 3, 4, 2)
    tensors = on(device, make(score, shape, torch.float64))
    options = on(device, options_of(options, shape, torch.float64))
    bias = options.pop("bias", None)
    if bias is not None:
        tensors.append(bias)

    def call(*t):
        last = {} if bias is None else {"bias": t[-1]}
        return FUNCTIONS[score](*(t if bias is None else t[:-1]), **options, **last)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("score", FUNCTIONS)
def test_gradients_of_one_output(device, score):
    """Through the context alone, through the weights alone, of some inputs alone."""
    shape = (2, 5, 7, 33, 6)
    tensors, options = make(score, shape, torch.float32), options_of("lengths bias scale", shape, torch.float32)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    wide = options | {"bias": options["bias"].detach().double()}
    own, moved = on(device, tensors), on(device, options)
    for output in (0, 1):
        out, want = FUNCTIONS[score](*own, **moved)[output], reference.attention(score, *exact, **wide)[output]
        up = torch.randn(out.shape)
        got = torch.autograd.grad(out, own[:2], up.to(device))
        want = torch.autograd.grad(want, exact[:2], up.double())
        cases.assert_close(dict(zip("qk", (t.cpu() for t in got))), dict(zip("qk", want)), 3e-5)


# torch warns about its own internals while it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("score", FUNCTIONS)
def test_operator_and_compile(device, score):
    check_operator_and_compile(
        score,
        on(device, make(score, SMALL, torch.float32)),
        on(device, options_of("lengths mask bias", SMALL, torch.float32)),
    )


@pytest.mark.parametrize("score", FUNCTIONS)
def test_narrow_types_run_as_they_are(device, score):
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        real = _cuda_attention.forward
        patch.setattr(_cuda_attention, "forward", lambda *a: (calls.append(a[1].dtype), real(*a))[1])
        tensors = on(device, [t.detach() for t in make(score, (2, 3, 4, 5, 6), torch.float16)])
        FUNCTIONS[score](*tensors)
        wide = [t.float().requires_grad_() for t in tensors]
        with torch.autocast(device, torch.bfloat16):
            context, _ = FUNCTIONS[score](*wide)
            again, _ = FUNCTIONS[score](*(t.detach().bfloat16() for t in wide))
            gradients = torch.autograd.grad(context.sum(), wide)
    assert calls == [torch.float16, torch.bfloat16, torch.bfloat16]
    assert context.dtype is torch.bfloat16 and torch.equal(context, again)
    assert {g.dtype for g in gradients} == {torch.float32}


@pytest.mark.parametrize("score", FUNCTIONS)
def test_strided_and_expanded_arguments(device, score):
    query, key, value, *v = on(device, [t.detach() for t in make(score, (2, 6, 8, 5, 4), torch.float32)])
    want = FUNCTIONS[score](query, key, value, *v)
    other = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (query, key, value)]
    got = FUNCTIONS[score](*other, *(t.repeat_interleave(2)[::2] for t in v))
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    one = torch.ones(8, dtype=torch.bool, device=device)
    one[5] = False
    weights = FUNCTIONS[score](query, key, value, *v, mask=one)[1].cpu()
    assert (weights[..., 5] == 0).all() and torch.allclose(weights.sum(-1), torch.ones(2, 6))
    bias = torch.randn(2, 8, 6).to(device).transpose(1, 2)
    strided, dense = (FUNCTIONS[score](query, key, value, *v, bias=b)[0] for b in (bias, bias.contiguous()))
    assert torch.equal(strided, dense)


@pytest.mark.parametrize("score", FUNCTIONS)
def test_empty_sizes(device, score):
    for shape in ((0, 3, 4, 5, 6), (2, 0, 4, 5, 6), (2, 3, 0, 4, 5), (2, 3, 4, 0, 6), (2, 3, 4, 5, 0), (2, 3, 0, 4, 0)):
        got = found(device, score, make(score, shape, torch.float32), {})
        assert got["context"].shape == (shape[0], shape[1], shape[4])
        if not shape[2]:
            assert (got["context"] == 0).all() and (got["dquery"] == 0).all()
        if not shape[3]:
            assert torch.allclose(got["weights"], torch.full((2, 3, 4), 0.25))


def test_lengths_are_clamped(host):
    tensors = make("additive", (3, 4, 5, 6, 7), torch.float32)
    got = found("cpu", "additive", tensors, {"lengths": torch.tensor([-3, 9, 2])})
    want = found("cpu", "additive", tensors, {"lengths": torch.tensor([0, 5, 2])})
    assert all(torch.equal(got[name], want[name]) for name in want)


MODULES = {
    "additive": lambda: nn.AdditiveAttention(5, 6, 9),
    "relu": lambda: nn.AdditiveAttention(5, 6, 9, activation="relu", normalizer="sparsemax"),
    "concat": lambda: nn.LuongAttention(5, 6, score="concat", attention_size=9, normalizer="entmax15"),
    "general": lambda: nn.LuongAttention(5, 6, score="general", scale="learned"),
    "local": lambda: nn.LocalAttention(5, 6, score="general", window=3, predictive=True),
    "location": lambda: nn.LocationSensitiveAttention(5, 6, 9, location="both"),
}


@pytest.mark.parametrize("kind", MODULES)
def test_modules_on_both_engines_agree(device, kind, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of the convolution of "location"
    torch.manual_seed(3)
    module = MODULES[kind]()
    query, memory, lengths = torch.randn(3, 4, 5), torch.randn(3, 7, 6), torch.tensor([7, 0, 3])

    def outcome(module, *inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        context, weights = module(*inputs, lengths=lengths)
        wanted = [*inputs, *module.parameters()]
        grads = torch.autograd.grad(context.square().sum() + weights[..., 0].sum(), wanted)
        return {str(i): t.detach().cpu() for i, t in enumerate((context, weights, *grads))}

    got = outcome(module.to(device), query.to(device), memory.to(device))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backends, "attention_of", lambda x: _attention_kernels)
        want = outcome(module.cpu().double(), query.double(), memory.double())
    cases.assert_close(got, want, 3e-5)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("lengths", [[7, 0, 3], torch.tensor([7, 0, 3])], ids=["list", "tensor"])
def test_modules_keep_to_their_device(kind, lengths):
    """Lengths may lie elsewhere; on the meta device, which every machine has, a mixture of devices raises as on a GPU."""
    module = MODULES[kind]().to("meta")
    query, memory = (torch.randn(s, device="meta", requires_grad=True) for s in ((3, 4, 5), (3, 7, 6)))
    mask = torch.ones(7, dtype=torch.bool, device="meta")
    context, weights = module(query, memory, lengths=lengths, mask=mask)
    (context.sum() + weights.sum()).backward()
    assert query.grad.is_meta and memory.grad.is_meta
    with pytest.raises(ValueError, match="lengths has 8, expected 0 <= lengths <= T = 7"):
        module(query, memory, lengths=[7, 8, 3])


def test_multihead_attention_is_torchs(device):
    own, theirs = (
        kind(12, 3, batch_first=True).to(device) for kind in (nn.MultiHeadAttention, torch.nn.MultiheadAttention)
    )
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 12, device=device)
    with torch.no_grad():
        for a, b in zip(own(x, x, x), theirs(x, x, x)):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# ---- order of threads, and tests of these tests: a seeded bug has to show

MIXED = (2, 37, 70, 40, 3)


def mixed(score, dtype):
    return make(score, MIXED, dtype), options_of("lengths mask scale bias", MIXED, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=NAMES.get)
@pytest.mark.parametrize("score", FUNCTIONS)
def test_any_order_of_threads_gives_the_same_bits(host, score, dtype):
    call = (score, *mixed(score, dtype))
    first = found("cpu", *call)
    for seed in range(1, 6):
        host.set_seed(seed)
        again = found("cpu", *call)
        assert all(torch.equal(again[name], first[name]) for name in first), seed


# What each warp has found is there and the last tile has been read; a tile is in place; the warps' sums are there.
FAULTS = [
    (score, *fault)
    for score in ("additive", "additive_relu")
    for fault in (("weights", 4), ("weights", 5), ("dquery", 4), ("dquery", 5), ("dquery", 6), ("dv", 6))
    if (score, *fault) != ("additive_relu", "dquery", 4)  # no range to decide on
]


@pytest.mark.parametrize(("score", "name", "site"), FAULTS)
def test_a_missing_barrier_is_noticed(host, score, name, site):
    # The first query is beyond the exponentials: what decides that has to reach every warp.
    tensors = make("additive", MIXED, torch.float32)
    with torch.no_grad():
        tensors[0][:, 0] = 100.0
    right = found("cpu", score, tensors, {})
    if name != "weights":
        right = gradients_alone(host, score, tensors, None)
    for seed in range(1, 20):
        host.set_seed(seed)
        again = (gradients_alone if name != "weights" else found_without)(host, score, tensors, site)
        if not torch.equal(again[name], right[name]):
            return
    pytest.fail("every order of the threads gave the right result")


def found_without(host, score, tensors, site):
    host.leave_out_barrier(site, True)
    context, weights = FUNCTIONS[score](*(t.detach() for t in tensors))
    host.leave_out_barrier(site, False)
    return {"weights": weights}


def gradients_alone(host, score, tensors, site):
    """Gradients of a forward that is right, with a barrier left out of backward."""
    context, weights = FUNCTIONS[score](*tensors)
    if site is not None:
        host.leave_out_barrier(site, True)
    got = torch.autograd.grad(context.sum() + weights[..., 0].sum(), tensors)
    host.leave_out_barrier(site or 0, False)
    return dict(zip(("dquery", "dkey", "dvalue", "dv"), got))


@pytest.mark.parametrize("name", ["weights", "dbias", "dv"])
def test_a_wrong_lane_is_noticed(host, name):
    tensors, options = mixed("additive", torch.float32)
    want = expected("additive", tensors, options)
    host.set_wrong_lane(1)
    got = found("cpu", "additive", tensors, options)
    assert not cases.worst(got[name], want[name]) <= TOLERANCE[torch.float32]


# ---- errors


def test_a_score_without_kernels_is_refused(host):
    tensors = [t.detach() for t in make("dot", (1, 2, 3, 4, 5), torch.float32)]
    with pytest.raises(
        NotImplementedError, match="cosine_attention: score 'cosine' has no CUDA kernels, expected tensors"
    ):
        _cuda_attention.forward("cosine", *tensors, None, None, None, None, 1.0)


def test_what_the_machine_lacks_is_named(host):
    tensors = make("additive", (2, 3, 4, 5, 6), torch.float32)
    context, _ = additive_attention(*tensors)
    host.set_launches_fail(True)
    with pytest.raises(RuntimeError, match="additive_scores: cudaError: the emulated launch has no resources"):
        additive_attention(*tensors)
    with pytest.raises(
        RuntimeError, match="attention_softmax_gradient: cudaError: the emulated launch has no resources"
    ):
        context.sum().backward()
    host.set_launches_fail(False)
    host.set_capability(7)
    with pytest.raises(RuntimeError, match=r"cuda:0 has compute capability 7.x, expected 8.0 \(Ampere\) or newer"):
        additive_attention(*tensors)


@pytest.mark.parametrize("name", ["key", "mask", "bias"])
def test_arguments_on_different_devices_are_named(name):
    q, k, value, v = (t.detach() for t in make("additive", (2, 3, 4, 5, 6), torch.float32))
    arguments = {"key": k, "mask": torch.ones(3, 4, dtype=torch.bool), "bias": torch.ones(3, 4)}
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(DeviceError, match=f"additive_attention: {name} is on meta, expected cpu"):
        additive_attention(query=q, value=value, v=v, **arguments)
    arguments = {"key": k, "mask": torch.ones(2, 3, 4, dtype=torch.bool), "bias": torch.ones(2, 3, 4)}
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(DeviceError, match=f"attention: {name} is on meta, expected cpu"):
        _attention_call(q, value, v, **arguments)


def _attention_call(query, value, v, key, mask, bias):
    from fastrnn._attention_operators import _check_call

    _check_call("additive", query, key, value, v, None, mask, bias)


# ---- what only a device can show


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestDevice:
    @pytest.mark.parametrize("score", FUNCTIONS)
    def test_graph_capture_and_other_streams(self, score):
        tensors = on("cuda", [t.detach() for t in make(score, (4, 50, 60, 128, 32), torch.float32)])
        want = FUNCTIONS[score](*tensors)[0].clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            assert torch.equal(FUNCTIONS[score](*tensors)[0], want)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            context, _ = FUNCTIONS[score](*tensors)
        context.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(context, want)

    @pytest.mark.parametrize("score", FUNCTIONS)
    def test_nothing_synchronises(self, score):
        shape = (4, 50, 60, 128, 32)
        tensors = on("cuda", make(score, shape, torch.float32))
        options = on("cuda", options_of("lengths mask bias", shape, torch.float32))

        def call():
            context, weights = FUNCTIONS[score](*tensors, **options)
            (context.sum() + weights[..., 0].sum()).backward()

        call()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=NAMES.get)
    @pytest.mark.parametrize("score", FUNCTIONS)
    def test_the_same_bits_every_time(self, score, dtype):
        shape = (8, 100, 200, 256, 64)
        call = (score, make(score, shape, dtype), options_of("lengths mask bias", shape, dtype))
        first = found("cuda", *call)
        for _ in range(20):
            again = found("cuda", *call)
            assert all(torch.equal(again[name], first[name]) for name in first)

    def test_memory_does_not_grow_with_every_pair_and_column(self):
        B, Tq, Tk, D = 4, 400, 500, 512
        tensors = on("cuda", make("additive", (B, Tq, Tk, D, D), torch.float32))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        context, _ = additive_attention(*tensors)
        torch.autograd.grad(context.sum(), tensors)
        assert torch.cuda.max_memory_allocated() - before < 4 * B * Tq * Tk * D / 20

    def test_lengths_on_the_host_are_checked(self):
        query, key, value, v = on("cuda", [t.detach() for t in make("additive", (2, 3, 4, 5, 6), torch.float32)])
        with pytest.raises(ValueError, match="additive_attention: lengths has 5, expected 0 <= lengths <= T = 4"):
            additive_attention(query, key, value, v, lengths=[1, 5])
