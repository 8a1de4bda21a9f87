"""Normalisers of attention scores against their definitions."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from fastrnn import DTypeError, ShapeError, normalizers  # noqa: E402
from fastrnn.normalizers import NORMALIZERS, monotonic  # noqa: E402

DIFFERENTIABLE = [name for name in NORMALIZERS if name != "hardmax"]
SIZES = [(1, 1, 1), (2, 3, 5), (3, 2, 17), (2, 1, 130)]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


def by_bisection(z, power):
    """max(z - tau, 0) ** power of a list with tau found by halving an interval."""
    low, high = max(z) - 1, max(z)
    for _ in range(200):
        tau = (low + high) / 2
        low, high = (tau, high) if sum(max(x - tau, 0) ** power for x in z) > 1 else (low, tau)
    return [max(x - high, 0) ** power for x in z]


def stop_by_stop(z, before):
    """One query of monotonic attention, the recurrence of Raffel et al. as it is written."""
    q, weights = 0.0, []
    for j, x in enumerate(z):
        passed = 1 / (1 + math.exp(z[j - 1])) if j and z[j - 1] > -math.inf else 1.0
        q = passed * q + before[j]
        weights.append(q / (1 + math.exp(-x)) if x > -math.inf else 0.0)
    return weights


def definition(name, z, before=None):
    """Weights of one row, a list of float scores, -inf for keys that do not count."""
    real = [x for x in z if x > -math.inf]
    if not real:
        return [0.0] * len(z)
    if name == "softmax":
        total = sum(math.exp(x - max(real)) for x in real)
        return [math.exp(x - max(real)) / total for x in z]
    if name == "sparsemax":
        return by_bisection(z, 1)
    if name == "entmax15":
        return by_bisection([x / 2 for x in z], 2)
    if name == "sigmoid":
        return [0.0 if x == -math.inf else 1 / (1 + math.exp(-x)) for x in z]
    if name == "hardmax":
        return [float(j == z.index(max(z))) for j in range(len(z))]
    return stop_by_stop(z, before)


def expected(name, scores, keep, temperature):
    out = torch.empty(scores.shape, dtype=torch.float64)
    for b in range(len(scores)):
        before = [1.0] + [0.0] * (scores.shape[-1] - 1)
        for i, row in enumerate((scores[b].double() / temperature).masked_fill(~keep[b], -math.inf).tolist()):
            before = definition(name, row, before)
            out[b, i] = torch.tensor(before, dtype=torch.float64)
    return out


def case(shape, dtype, seed=0):
    B, Tq, Tk = shape
    g = torch.Generator().manual_seed(seed)
    scores = (2 * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)
    lengths = torch.randint(0, Tk + 1, (B,), generator=g)
    lengths[0] = Tk
    mask = torch.rand(shape, generator=g) < 0.7
    keep = mask & (torch.arange(Tk) < lengths[:, None, None])
    return scores, lengths, mask, keep


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("name", NORMALIZERS)
def test_matches_its_definition(name, shape, dtype, temperature):
    scores, lengths, mask, keep = case(shape, dtype)
    got = NORMALIZERS[name](scores, lengths=lengths, mask=mask, temperature=temperature)
    assert got.dtype is dtype
    torch.testing.assert_close(
        got.double(), expected(name, scores, keep, temperature), rtol=0, atol=TOLERANCE[dtype]
    )  # fmt: skip
    assert (got[~keep] == 0).all()
    everything = NORMALIZERS[name](scores, temperature=temperature)
    all_keys = torch.ones_like(keep)
    torch.testing.assert_close(
        everything.double(), expected(name, scores, all_keys, temperature), rtol=0, atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_first_and_second_derivatives(name):
    scores, lengths, mask, _ = case((2, 3, 5), torch.float64)
    mask[1, 2] = False

    def call(z):
        return NORMALIZERS[name](z, lengths=lengths, mask=mask, temperature=0.7)

    assert torch.autograd.gradcheck(call, scores.requires_grad_())
    assert torch.autograd.gradgradcheck(call, scores)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_what_is_left_out_is_never_read(name):
    scores = torch.randn(2, 3, 4)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, 2] = False
    want = NORMALIZERS[name](scores, lengths=[4, 0], mask=mask)
    scores[0, 2], scores[1] = math.nan, math.inf
    scores.requires_grad_()
    got = NORMALIZERS[name](scores, lengths=[4, 0], mask=mask)
    assert torch.equal(got, want) and (got[1] == 0).all() and (got[0, 2] == 0).all()
    if name != "hardmax":
        got.square().sum().backward()
        assert scores.grad.isfinite().all() and (scores.grad[1] == 0).all() and (scores.grad[0, 2] == 0).all()


@pytest.mark.parametrize("name", NORMALIZERS)
def test_minus_infinity_is_a_mask_and_nan_is_passed_on(name):
    scores, lengths, mask, keep = case((2, 3, 5), torch.float32)
    normalize = NORMALIZERS[name]
    assert torch.equal(normalize(scores.masked_fill(~keep, -math.inf)), normalize(scores, mask=keep))
    scores[0, 2, 0] = math.nan
    got = normalize(scores)
    assert got[0, 2].isnan().any() and not got[0, :2].isnan().any()


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax15"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_rows_sum_to_one(name, scale):
    weights = NORMALIZERS[name](scale * torch.randn(5, 3000))
    assert ((weights.sum(-1) - 1).abs() < 2e-6).all() and (weights >= 0).all()
    if scale == 1 and name != "softmax":
        assert ((weights == 0).sum(-1) > 2500).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NORMALIZERS)
def test_narrow_types_are_computed_in_float32(name, dtype):
    scores = torch.randn(2, 3, 50).to(dtype)
    got = NORMALIZERS[name](scores)
    assert got.dtype is dtype
    assert torch.equal(got, NORMALIZERS[name](scores.float()).to(dtype))


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, 4), (2, 0, 4)], ids=str)
def test_empty_sizes(name, shape):
    scores = torch.zeros(shape, requires_grad=True)
    got = NORMALIZERS[name](scores)
    assert got.shape == shape
    if name != "hardmax":
        got.sum().backward()
        assert scores.grad.shape == shape


# torch warns about its own internals while it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", NORMALIZERS)
def test_compile_and_vmap(name):
    scores, lengths, mask, _ = case((2, 3, 5), torch.float32)
    normalize = NORMALIZERS[name]
    torch._dynamo.reset()
    compiled = torch.compile(normalize, fullgraph=True, backend="aot_eager")
    found = []
    for call in (normalize, compiled):
        z = scores.clone().requires_grad_()
        weights = call(z, lengths=lengths, mask=mask)
        grads = torch.autograd.grad(weights.square().sum(), z) if weights.requires_grad else ()
        found.append((weights.detach(), *grads))
    torch.testing.assert_close(*found)
    torch.testing.assert_close(torch.func.vmap(normalize)(scores), normalize(scores))


@pytest.mark.parametrize("mode", ["parallel", "recursive"])
def test_monotonic_without_underflow(mode):
    """Where the closed form of the paper divides by a product that has become zero."""
    scores, late = torch.full((1, 2, 600), 3.0, dtype=torch.float64), torch.zeros(1, 600)
    late[0, 500] = 1
    weights = monotonic(scores.float(), mode=mode, previous=late)
    first = torch.tensor(stop_by_stop([3.0] * 600, late[0].tolist()), dtype=torch.float64)
    torch.testing.assert_close(weights[0, 0].double(), first, rtol=1e-5, atol=1e-37)
    assert 0.9 < weights[0, 0, 500] < 1 and (weights.sum(-1) - 1).abs().max() < 1e-6
    sharp = monotonic(torch.tensor([[[-90.0, -90, 90, -90], [90, 90, -90, 90]]]), mode=mode)
    assert torch.equal(sharp.round(), torch.tensor([[[0.0, 0, 1, 0], [0, 0, 0, 1]]]))


@pytest.mark.parametrize("mode", ["parallel", "recursive", "hard"])
def test_monotonic_goes_on_from_the_query_before(mode):
    scores = torch.randn(2, 6, 9, dtype=torch.float64)
    whole = monotonic(scores, mode=mode)
    head = monotonic(scores[:, :4], mode=mode)
    tail = monotonic(scores[:, 4:], mode=mode, previous=head[:, -1])
    torch.testing.assert_close(torch.cat((head, tail), 1), whole)
    position = whole @ torch.arange(9.0, dtype=torch.float64) / whole.sum(-1).clamp(min=1e-30)
    alive = whole.sum(-1) > 0
    assert ((position.diff() >= -1e-12) | ~alive[:, 1:]).all()


def test_monotonic_previous_has_a_gradient():
    scores = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    previous = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    for mode in ("parallel", "recursive"):
        assert torch.autograd.gradcheck(lambda z, a: monotonic(z, mode=mode, previous=a), (scores, previous))  # noqa: B023
    assert not monotonic(scores, mode="hard", previous=previous).requires_grad


def test_get():
    assert normalizers.get("entmax15") is normalizers.entmax15
    assert normalizers.get(torch.sigmoid) is torch.sigmoid
    with pytest.raises(ValueError, match="f: normalizer is 'sparse', expected one of 'softmax', 'sparsemax', 'entmax1"):
        normalizers.get("sparse", "f")


Z = torch.zeros(2, 3, 5)
BAD = [
    (lambda f: f([0.0]), DTypeError, "scores is a list, expected a torch.Tensor"),
    (lambda f: f(Z.long()), DTypeError, "scores has dtype torch.int64, expected float32"),
    (lambda f: f(Z[0, 0, 0]), ShapeError, r"scores has shape \(\), expected a last dimension of keys"),
    (lambda f: f(Z, temperature=0), ValueError, "temperature is 0, expected a finite number above 0"),
    (lambda f: f(Z, temperature=-1.0), ValueError, "temperature is -1.0"),
    (lambda f: f(Z, temperature=math.nan), ValueError, "temperature is nan"),
    (lambda f: f(Z, mask=Z), DTypeError, "mask has dtype torch.float32, expected torch.bool"),
    (lambda f: f(Z, mask=torch.ones(4, dtype=torch.bool)), ShapeError, r"mask has shape \(4,\), expected that of sco"),
    (lambda f: f(Z, lengths=[1]), ShapeError, r"lengths has shape \(1,\), expected \(B,\) = \(2,\)"),
    (lambda f: f(Z, lengths=[1, 6]), ShapeError, "lengths has 6, expected 0 <= lengths <= T = 5"),
    (lambda f: f(Z, lengths=[1, -1]), ShapeError, "lengths has -1"),
    (lambda f: f(Z, lengths=[1.0, 2.0]), DTypeError, "lengths has dtype torch.float32, expected an integer dtype"),
    (lambda f: f(Z[0, 0], lengths=[1]), ShapeError, r"scores has shape \(5,\), expected \(B, ..., Tk\)"),
]


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[b[2][:40] for b in BAD])
def test_bad_input_is_named(name, call, error, message):
    with pytest.raises(error, match=f"{name}: {message}"):
        call(NORMALIZERS[name])


def test_bad_input_to_monotonic_is_named():
    with pytest.raises(ValueError, match="monotonic: mode is 'soft', expected one of 'parallel', 'recursive', 'hard'"):
        monotonic(Z, mode="soft")
    with pytest.raises(ShapeError, match=r"monotonic: scores has shape \(5,\), expected \(..., Tq, Tk\)"):
        monotonic(Z[0, 0])
    with pytest.raises(ShapeError, match=r"monotonic: previous has shape \(2, 4\), expected \(..., Tk\) = \(2, 5\)"):
        monotonic(Z, previous=Z[:, 0, :4])
    with pytest.raises(DTypeError, match="monotonic: previous is a list"):
        monotonic(Z, previous=[1.0])
