"""Derivatives of every kind: first, second, third, torch.func, vmap, and the ones that must raise."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import CELLS, WITH_C, Case  # noqa: E402

from fastrnn import DeviceError, _kernels, ops, reference  # noqa: E402

SMALL = Case(4, 3, 2, 3, D=2, ragged=True, reset=0.3)
SMALL_PROJECTED = Case(3, 2, 2, 3, D=2, P=2, batch_first=True, bias=False)
FOUR_STATES = Case(3, 2, 1, 2, D=2, ragged=True, reset=0.3)  # these have more to differentiate by
CHECKED = [(cell, FOUR_STATES if ops.CELLS[cell][1] > 2 else SMALL) for cell in CELLS]
CHECKED += [(cell, SMALL_PROJECTED) for cell in WITH_C]
IDS = [f"{cell}-{case}" for cell, case in CHECKED]
# Second derivatives are the oracle's, whatever the sizes: the larger ones once for one state and once for two. Those of
# norms take by far the longest.
TWICE = [(cell, FOUR_STATES if case is SMALL and cell not in ("lstm", "gru") else case) for cell, case in CHECKED]
TWICE = [(cell, replace(case, T=2, D=1) if cell.endswith("_norm") else case) for cell, case in TWICE]


def flat(i: cases.Inputs, layer=ops.rnn_layer):
    """The layer as a function of its tensors, and the tensors."""
    n = len(i.states)
    more = {"batch_first": True} if i.case.batch_first else {}

    def f(x, *rest):
        y, last = layer(i.cell, x, rest[n:], rest[:n] or None, i.lengths, i.reset_mask, directions=i.case.D, **more)
        return y, *last

    return f, tuple(i)


def loss_of(i: cases.Inputs, layer=ops.rnn_layer):
    f, tensors = flat(i, layer)
    return lambda *args: sum((o**3).sum() for o in f(*args)), tuple(t.detach() for t in tensors)


def largest_difference(got, want):
    got, want = (v if isinstance(v, (tuple, list)) else (v,) for v in (got, want))
    return max(
        (g - w).abs().max().item() / (1 + w.abs().max().item()) for g, w in zip(got, want, strict=True) if w.numel()
    )


@pytest.mark.parametrize(("cell", "case"), CHECKED, ids=IDS)
def test_gradcheck(cell, case):
    assert torch.autograd.gradcheck(*flat(cases.make(cell, case, torch.float64)))


@pytest.mark.parametrize(("cell", "case"), TWICE, ids=[f"{cell}-{case}" for cell, case in TWICE])
def test_gradgradcheck(cell, case):
    assert torch.autograd.gradgradcheck(*flat(cases.make(cell, case, torch.float64)), atol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_third_derivative(cell):
    i = cases.make(cell, SMALL, torch.float64)

    def third(layer):
        f, tensors = flat(i, layer)
        value = sum((o**3).sum() for o in f(*tensors))
        for _ in range(2):
            (g,) = torch.autograd.grad(value, i.x, create_graph=True)
            value = g.square().sum()
        return torch.autograd.grad(value, tensors, materialize_grads=True)  # an IndRNN's w_hh has no elements

    assert largest_difference(third(ops.rnn_layer), third(reference.layer)) < 1e-10


def test_a_gradient_is_computed_only_where_it_is_wanted(monkeypatch):
    i = cases.make("lstm", Case(3, 2, 4, 5))
    seen = []
    real = _kernels._core_backward
    monkeypatch.setattr(_kernels, "_core_backward", lambda *args: (seen.append(args), real(*args)))
    for name, t in i.named().items():
        for other in i:
            other.requires_grad_(other is t)
        y, (h, _) = ops.rnn_layer(i.cell, i.x, i.weights, i.states)
        (y.sum() + h.sum()).backward()
        dstates_out, dx, dstates, dweights = (seen[-1][k] for k in (24, 28, 31, 32))
        wanted = [name for name, a in zip(i.named(), [dx, *dstates, *dweights]) if a]
        assert wanted == [name]
        assert t.grad is not None
        assert dstates_out[0] and not dstates_out[1], "nothing came back through c"


@pytest.mark.parametrize("k", range(4))
def test_backward_finds_tensors_whose_memory_moved_or_is_gone(k):
    """Sharded training frees and refills storages between forward and backward without a new version."""
    i = cases.make("gru", Case(3, 2, 4, 16))
    f, tensors = flat(i)
    want = torch.autograd.grad(f(*tensors)[0].sum(), tensors)
    total, old = f(*tensors)[0].sum(), tensors[k].detach().clone()
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(tensors[k]):
        before = tensors[k].data_ptr()
        tensors[k].untyped_storage().resize_(0)
        with pytest.raises(DeviceError, match="storage of 0 bytes"):
            torch.autograd.grad(total, tensors, retain_graph=True)
        tensors[k].untyped_storage().resize_(old.nbytes + 64 * 1024)
        tensors[k].copy_(old)
        assert tensors[k].data_ptr() != before
    assert all(torch.equal(g, w) for g, w in zip(torch.autograd.grad(total, tensors), want))


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_expanded_gradient_is_read_as_it_lies(batch_first):
    i = cases.make("lstm", Case(5, 3, 4, 17, D=2, ragged=True, batch_first=batch_first))
    f, tensors = flat(i)
    y = f(*tensors)[0]
    scalar, row = torch.tensor(0.5), torch.randn(y.shape[-1] * 2)[::2]
    for dy in (scalar.expand(y.shape), row.expand(y.shape), torch._neg_view(scalar).expand(y.shape)):
        got = torch.autograd.grad(y, tensors, dy, retain_graph=True)
        want = torch.autograd.grad(y, tensors, dy.resolve_neg().contiguous(), retain_graph=True)
        assert all(torch.equal(g, w) for g, w in zip(got, want))


def test_memory_of_a_large_reserve_is_used_again_but_never_shared():
    i = cases.make("lstm", Case(130, 64, 8, 33))
    f, tensors = flat(i)
    alone = torch.autograd.grad(f(*tensors)[0].sum(), tensors)
    first, second = f(*tensors)[0], f(*(2 * t for t in tensors))[0]
    used = {y.grad_fn.saved_tensors[6].data_ptr() for y in (first, second)}
    assert len(used) == 2
    assert all(torch.equal(g, w) for g, w in zip(torch.autograd.grad(first.sum(), tensors), alone))
    torch.autograd.grad(second.sum(), tensors)
    del first, second
    assert f(*tensors)[0].grad_fn.saved_tensors[6].data_ptr() in used


def test_outputs_that_get_no_gradient():
    i = cases.make("lstm", Case(3, 2, 4, 5, D=2), torch.float64)
    f, tensors = flat(i)
    g, _ = flat(i, reference.layer)
    for k in range(3):
        got = torch.autograd.grad(f(*tensors)[k].sum(), tensors)
        assert largest_difference(got, torch.autograd.grad(g(*tensors)[k].sum(), tensors)) < 1e-12


def test_gradients_of_a_leaf_used_twice_add_up():
    i = cases.make("gru", Case(3, 2, 4, 4), torch.float64)
    w_ih, _, b, _ = i.weights
    tied = [w_ih, w_ih, b, b]  # I = H
    y, _ = ops.rnn_layer("gru", i.x, tied)
    z, _ = reference.layer("gru", i.x, tied)
    assert largest_difference(torch.autograd.grad(y.sum(), [w_ih, b]), torch.autograd.grad(z.sum(), [w_ih, b])) < 1e-12


@pytest.mark.parametrize("which", ["x", "h0", "w_hh", "y"])
def test_changing_a_saved_tensor_in_place_is_detected(which):
    i = cases.make("gru", Case(3, 2, 4, 5))
    out = cases.kernel(i)
    changed = {**i.named(), **out}[which]
    with torch.no_grad():
        changed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out["h"].sum().backward()


def test_backward_twice():
    i = cases.make("gru", Case(3, 2, 4, 5))
    y = cases.kernel(i)["y"].sum()
    first = torch.autograd.grad(y, list(i), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(y, list(i))))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, list(i))


def test_checkpoint_and_saved_tensor_hooks():
    from torch.utils.checkpoint import checkpoint

    i = cases.make("gru", Case(3, 2, 4, 5))
    f, tensors = flat(i)
    want = torch.autograd.grad(f(*tensors)[0].sum(), tensors)
    got = torch.autograd.grad(checkpoint(f, *tensors, use_reentrant=False)[0].sum(), tensors)
    assert all(map(torch.equal, got, want))
    with torch.autograd.graph.save_on_cpu():
        y = f(*tensors)[0]
    assert all(map(torch.equal, torch.autograd.grad(y.sum(), tensors), want))


def test_frozen_weights_still_pass_gradients_to_the_input_in_eval():
    i = cases.make("lstm", Case(3, 2, 4, 5), torch.float64)
    weights = [w.detach() for w in i.weights]
    (got,) = torch.autograd.grad(ops.rnn_layer("lstm", i.x, weights)[0].sum(), i.x)
    (want,) = torch.autograd.grad(reference.layer("lstm", i.x, weights)[0].sum(), i.x)
    assert largest_difference(got, want) < 1e-12


# ---- torch.func


@pytest.mark.parametrize(("cell", "case"), CHECKED, ids=IDS)
def test_func_grad_vmap_and_per_sample_gradients(cell, case):
    i = cases.make(cell, case, torch.float64)
    if case.batch_first:  # the oracle has no such option
        i = cases.make(cell, Case(3, 2, 2, 3, D=2, P=2, bias=False), torch.float64)
    f, args = loss_of(i)
    g, _ = loss_of(i, reference.layer)
    every = tuple(range(len(args)))
    xs = torch.randn(5, *args[0].shape, dtype=torch.float64)
    only_x = (0, *(None for _ in args[1:]))

    def same(transform, *inputs):
        assert largest_difference(transform(f)(*inputs), transform(g)(*inputs)) < 1e-11

    same(lambda l: torch.func.grad(l, every), *args)
    same(lambda l: torch.vmap(l, only_x), xs, *args[1:])
    same(lambda l: torch.vmap(torch.func.grad(l, every), only_x), xs, *args[1:])
    same(lambda l: torch.vmap(torch.func.grad(l), only_x), xs, *args[1:])
    same(lambda l: torch.func.grad(lambda *a: torch.vmap(l, only_x)(xs, *a).sum(), every[:-1]), *args[1:])
    same(lambda l: torch.func.grad(lambda x, *a: torch.func.grad(l)(x, *a).square().sum(), every), *args)


@pytest.mark.parametrize("batch_first", [False, True])
def test_vmap_over_anything(batch_first):
    case = Case(4, 3, 2, 5, D=2, ragged=True, reset=0.4, batch_first=batch_first)
    i = cases.make("lstm", case, torch.float64)
    n = 3

    def f(x, h0, c0, lengths, reset_mask, *weights):
        y, (h, c) = ops.rnn_layer(
            "lstm", x, weights, (h0, c0), lengths, reset_mask, directions=2, batch_first=batch_first
        )
        return y, h, c

    single = [t.detach() for t in (i.x, *i.states)] + [i.lengths, i.reset_mask] + [w.detach() for w in i.weights]
    for mapped in ([0], [1], [3], [4], [0, 2, 3, 4], [6], [0, 5, 8]):
        dims, args = [None] * len(single), list(single)
        for k, m in enumerate(mapped):
            stacked = torch.stack([args[m].roll(r, -1) for r in range(n)])
            dims[m] = min(k, stacked.ndim - 1)
            args[m] = stacked.movedim(0, dims[m])
        got = torch.vmap(f, tuple(dims))(*args)
        for e in range(n):
            one = f(*(a if d is None else a.select(d, e) for a, d in zip(args, dims)))
            for a, b in zip(got, one):
                assert torch.equal(a[e], b), mapped


def test_vmap_folds_into_one_call(monkeypatch):
    i = cases.make("gru", Case(4, 3, 2, 5))
    calls = []
    real = _kernels._core_forward
    monkeypatch.setattr(_kernels, "_core_forward", lambda *args: (calls.append(args[3]), real(*args)))
    weights = [w.detach() for w in i.weights]
    torch.vmap(lambda x: ops.rnn_layer("gru", x, weights)[0])(torch.randn(6, 4, 3, 2))
    assert calls == [18]
