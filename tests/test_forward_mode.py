"""Forward-mode derivatives of layers: against those of the oracle, alone and composed with every other transform."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import CELLS, WITH_C, Case  # noqa: E402
from test_autograd import flat, largest_difference, loss_of  # noqa: E402
from torch import func  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

from fastrnn import attention, nn, ops, reference  # noqa: E402

# torch.func.jvp itself uses what torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
RAGGED = Case(3, 2, 2, 3, D=2, ragged=True, reset=0.3)
PLAIN = Case(3, 2, 2, 3, bias=False, states=False)
PROJECTED = Case(3, 2, 2, 3, D=2, P=2, bias=False)
CHECKED = [(cell, case) for cell in CELLS for case in (RAGGED, PLAIN)] + [(cell, PROJECTED) for cell in WITH_C]
IDS = [f"{cell}-{case}" for cell, case in CHECKED]


def directions_for(tensors):
    g = torch.Generator().manual_seed(7)
    return tuple(torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype) for t in tensors)


@pytest.mark.parametrize(("cell", "case"), CHECKED, ids=IDS)
def test_matches_the_oracle(cell, case):
    """Tangents of every output along all inputs at once and along each alone, and Hessian-vector products."""
    i = cases.make(cell, case, torch.float64)
    (f, tensors), (g, _) = flat(i), flat(i, reference.layer)
    (loss, args), (loss_of_oracle, _) = loss_of(i), loss_of(i, reference.layer)
    along, every = directions_for(tensors), tuple(range(len(tensors)))

    def same(transform, got, want):
        assert largest_difference(transform(got)(*args), transform(want)(*args)) < 1e-11

    same(lambda l: lambda *a: func.jvp(l, a, along)[1], f, g)
    same(lambda l: lambda *a: func.jvp(func.grad(l, every), a, along)[1], loss, loss_of_oracle)
    same(lambda l: func.grad(lambda *a: func.jvp(l, a, along)[1], every), loss, loss_of_oracle)
    for k, t in enumerate(args):
        want = func.jvp(lambda t, k=k: g(*args[:k], t, *args[k + 1 :]), (t,), (along[k],))[1]
        with forward_ad.dual_level(), torch.no_grad():
            out = f(*args[:k], forward_ad.make_dual(t, along[k]), *args[k + 1 :])
            got = [forward_ad.unpack_dual(o).tangent for o in out]
        assert largest_difference(got, want) < 1e-11, k


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell):
    f, tensors = flat(cases.make(cell, Case(2, 2, 1, 2, ragged=True), torch.float64))
    check = {
        "check_forward_ad": True,
        "check_batched_forward_grad": True,
        "check_backward_ad": False,
        "check_batched_grad": False,
    }
    assert torch.autograd.gradcheck(f, tensors, fast_mode=cell.endswith("_norm"), **check)


@pytest.mark.parametrize("cell", ["lstm", "gru_norm", "slstm"])
def test_composes(cell):
    i = cases.make(cell, RAGGED, torch.float64)
    (f, args), (g, _) = loss_of(i), loss_of(i, reference.layer)
    along, k = directions_for(args), len(i.states) + 2  # w_hh
    xs, only_x = torch.stack([args[0], along[0]]), (0, *(None for _ in args[1:]))

    def pushed(l):
        return lambda *a: func.jvp(l, a, along)[1]

    def same(transform, *inputs):
        assert largest_difference(transform(f)(*inputs), transform(g)(*inputs)) < 1e-11

    same(lambda l: pushed(pushed(l)), *args)
    same(lambda l: pushed(pushed(func.grad(l, k))), *args)
    same(lambda l: pushed(func.grad(lambda *a: func.grad(l)(*a).square().sum(), k)), *args)
    same(lambda l: func.hessian(l), *args)
    same(lambda l: func.jacfwd(func.jacfwd(l, k), k), *args)
    same(lambda l: func.jacrev(func.jacfwd(l), k), *args)
    same(lambda l: func.vmap(pushed(l), only_x), xs, *args[1:])
    same(lambda l: lambda x: func.jvp(lambda x: func.vmap(l, only_x)(x, *args[1:]), (x,), (xs,))[1], xs)


def test_gradients_of_tangents_and_tangents_of_gradients_without_torch_func():
    i = cases.make("lstm", RAGGED, torch.float64)
    along, found = directions_for(i), []
    for layer in (ops.rnn_layer, reference.layer):
        f, tensors = flat(i, layer)
        outside = f(*tensors)[0]
        with forward_ad.dual_level():
            out = f(*map(forward_ad.make_dual, tensors, along))
            tangents = [forward_ad.unpack_dual(o).tangent for o in out]
            grads = torch.autograd.grad(sum((t**2).sum() for t in tangents), tensors)
            above = forward_ad.make_dual(torch.ones_like(outside), outside.detach())
            later = torch.autograd.grad(outside, tensors, above)  # of a forward that had no tangents
            found.append([*grads, *(forward_ad.unpack_dual(t).tangent for t in later)])
    assert largest_difference(*found) < 1e-11


@pytest.mark.parametrize("batch_first", [False, True])
def test_modules(batch_first):
    module = nn.GRU(2, 3, 2, bidirectional=True, batch_first=batch_first)
    alike = torch.nn.GRU(2, 3, 2, bidirectional=True, batch_first=batch_first)
    alike.load_state_dict(module.state_dict())
    x, dx = torch.randn(2, 3, 2, 2)
    want = func.jvp(alike, (x,), (dx,))
    for got in (func.jvp(module, (x,), (dx,)), func.jvp(module.eval(), (x,), (dx,))):
        cases.assert_same(got, want)
    # Tangents of float32 products of what was rounded to 2^-9, W and x or h in two layers of three steps: 12 * 2^-9.
    with torch.autocast("cpu", torch.bfloat16):
        (y, _), (dy, _) = func.jvp(module, (x,), (dx,))
    assert dy.dtype is y.dtype is torch.bfloat16
    torch.testing.assert_close(dy.float(), want[1][0], rtol=0.025, atol=0.025)


def test_where_it_is_not_implemented_it_says_so():
    i = cases.make("gru", Case(3, 2, 4, 5))
    f, args = loss_of(i)
    query, key = torch.randn(3, 2, 4), torch.randn(3, 5, 4)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="fastrnn::attention: .* forward-mode AD"):
        attention.dot_attention(forward_ad.make_dual(query, query), key, key)
    with pytest.raises(NotImplementedError, match="fastrnn::attention: an argument has a tangent, expected none"):
        func.jvp(lambda q: attention.dot_attention(q, key, key)[0], (query,), (query,))
    compiled = torch.compile(lambda *a: func.jvp(f, a, a)[1], fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="Observed exception|at most one torch.func.grad|nsupported"):
        compiled(*args)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    with (
        forward_ad.dual_level(),
        pytest.raises(Exception, match="Observed exception|not implemented inside torch.comp"),
    ):
        compiled(forward_ad.make_dual(args[0], args[0]), *args[1:])
