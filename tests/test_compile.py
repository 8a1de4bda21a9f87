"""torch.compile, export, fake and meta tensors, tracing, modes: whatever must see an operator, not a raw call."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import CELLS, Case  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import nn, ops  # noqa: E402
from fastrnn._cells import join_states  # noqa: E402

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
SMALL = Case(4, 3, 5, 7, D=2, ragged=True, reset=0.3)
ONE_WAY = Case(2, 3, 5, 7, ragged=True, reset=0.3)  # opcheck traces the oracle's derivatives step by step
PLAIN = Case(4, 3, 5, 16, P=3, bias=False, states=False, batch_first=True)
# torch warns about its own internals while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:At pre-dispatch tracing:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def operator_args(i: cases.Inputs, training: bool):
    h0, c0 = i.states[0] if i.states else None, join_states([s.detach() for s in i.states[1:]])
    c0 = c0 if c0 is None else c0.requires_grad_()
    c = i.case
    return (i.cell, i.x, h0, c0, i.lengths, i.reset_mask, i.weights, c.D, c.batch_first, "", 0, training)


@pytest.mark.skipif(TORCH < (2, 7), reason="torch 2.4 itself crashes when it traces a second derivative")
@pytest.mark.parametrize(
    ("cell", "case", "training"),
    [(cell, ONE_WAY, True) for cell in CELLS]
    + [("lstm", SMALL, True), ("lstm", PLAIN, True), ("lstm", PLAIN, False), ("gru", SMALL, False)],
    ids=str,
)
def test_opcheck(cell, case, training):
    i = cases.make(cell, case, torch.float64)
    args = operator_args(i, training)
    if not training:
        args = torch.utils._pytree.tree_map(lambda v: v.detach() if isinstance(v, torch.Tensor) else v, args)
    torch.library.opcheck(torch.ops.fastrnn.rnn_forward.default, args)
    if training:
        y, h, c, reserve = (t.detach() for t in torch.ops.fastrnn.rnn_forward(*args))
        ups = [torch.randn_like(y), torch.randn_like(h), torch.randn_like(c) if c.numel() else None]
        wanted = [True, bool(i.states), bool(i.states) and c.numel() > 0] + [True] * len(i.weights)
        torch.library.opcheck(torch.ops.fastrnn.rnn_backward.default, (*args[:-1], y, reserve, *ups, wanted))


def test_operators_have_gradients_of_their_own():
    i = cases.make("lstm", Case(3, 2, 2, 3, D=2, ragged=True, reset=0.3), torch.float64)

    def f(x, h0, c0, *weights):
        args = ("lstm", x, h0, c0, i.lengths, i.reset_mask, list(weights), 2, False, "", 0, True)
        return torch.ops.fastrnn.rnn_forward(*args)[:3]

    assert torch.autograd.gradcheck(f, tuple(i))
    assert torch.autograd.gradgradcheck(f, tuple(i), fast_mode=True)
    y = torch.ops.fastrnn.rnn_forward(*operator_args(i, False))[0]
    with pytest.raises(RuntimeError, match="training is False, expected True"):
        y.sum().backward()


def test_operators_check_their_arguments():
    i = cases.make("lstm", SMALL)
    args = list(operator_args(i, True))
    y, h, c, reserve = (t.detach() for t in torch.ops.fastrnn.rnn_forward(*args))
    with pytest.raises(fastrnn.ShapeError, match=r"rnn_forward: weight_hh has shape \(28, 6\), expected \(4\*H, H\)"):
        weights = [i.weights[0], i.weights[1][:, 1:], *i.weights[2:]]
        torch.ops.fastrnn.rnn_forward(*args[:6], weights, *args[7:])
    with pytest.raises(fastrnn.DTypeError, match="rnn_forward: x has dtype torch.bfloat16"):
        torch.ops.fastrnn.rnn_forward("lstm", i.x.bfloat16(), None, None, None, None, i.weights, *args[7:])
    with pytest.raises(fastrnn.ShapeError, match=r"lengths has 5, expected 0 <= lengths <= T = 4"):
        torch.ops.fastrnn.rnn_forward(*args[:4], torch.tensor([4, 5, 0]), *args[5:])
    wanted = [True] * (3 + len(i.weights))
    for name, bad in {"reserve": (y, reserve[:1], y, h, c), "dy": (y, reserve, y[1:], h, c)}.items():
        with pytest.raises(fastrnn.ShapeError, match=f"rnn_backward: {name} has shape"):
            torch.ops.fastrnn.rnn_backward(*args[:-1], *bad, wanted)
    with pytest.raises(fastrnn.ShapeError, match="rnn_backward: wanted has 2 entries, expected 11"):
        torch.ops.fastrnn.rnn_backward(*args[:-1], y, reserve, y, h, c, [True, True])


@pytest.mark.parametrize("cell", CELLS)
def test_compile_forward_and_backward(cell):
    i = cases.make(cell, SMALL, torch.float64)

    def loss(x, *rest):
        n = len(i.states)
        y, last = ops.rnn_layer(cell, torch.sin(x), rest[n:], rest[:n], i.lengths, i.reset_mask, directions=2)
        return (y * 2).sum() + sum((s**3).sum() for s in last)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(loss(*i), list(i))
    got = torch.autograd.grad(compiled(*i), list(i))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*i), loss(*i))


@pytest.mark.slow
def test_compile_with_inductor():
    module = nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True)
    x = torch.randn(3, 4, 5, requires_grad=True)
    y, _ = torch.compile(module, fullgraph=True)(x)
    want, _ = module(x)
    torch.testing.assert_close(y, want)
    inputs = [x, *module.parameters()]
    for a, b in zip(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(want.sum(), inputs)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_compile_module_with_dynamic_sizes(kind):
    module = kind(5, 4, 2, dropout=0.0, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for B, T in ((1, 1), (2, 3), (5, 9)):
        x = torch.randn(B, T, 5)
        torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=0)
        lengths = torch.arange(B) % T
        torch.testing.assert_close(compiled(x, lengths=lengths), module(x, lengths=lengths), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_compile_cell(kind):
    cell = kind(5, 4)
    x = torch.randn(3, 5)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        state = cell(x)
    torch.testing.assert_close(compiled(x), state, rtol=0, atol=0)
    torch.testing.assert_close(compiled(x, state), cell(x, state), rtol=0, atol=0)


def test_compile_narrow_and_autocast():
    module = nn.GRU(5, 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = compiled(x), module(x)
    assert got[0].dtype is torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_compiled_func_grad_is_right_or_raises():
    i = cases.make("gru", Case(3, 2, 4, 5), torch.float64)
    args = tuple(t.detach() for t in i)

    def loss(x, h0, *weights):
        return ops.rnn_layer("gru", x, weights, [h0])[0].square().sum()

    every = tuple(range(len(args)))
    compiled = torch.compile(torch.func.grad(loss, every), fullgraph=True, backend="aot_eager")
    if TORCH >= (2, 13):
        for a, b in zip(compiled(*args), torch.func.grad(loss, every)(*args)):
            torch.testing.assert_close(a, b)
    else:  # older compilers do not say how deep torch.func is
        with pytest.raises(Exception, match="setup_context|unsupported|Unsupported"):
            compiled(*args)
    twice = torch.func.grad(lambda *a: torch.func.grad(loss)(*a).square().sum())
    with pytest.raises(Exception, match="Observed exception|at most one torch.func.grad|setup_context|nsupported"):
        torch.compile(twice, fullgraph=True, backend="aot_eager")(*args)


@pytest.mark.parametrize(
    "strict",
    [False, pytest.param(True, marks=pytest.mark.skipif(TORCH < (2, 7), reason="no autograd.Function in its graphs"))],
)
def test_export_with_dynamic_sizes(strict):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(5, 4, 2, bidirectional=True)
            self.gru = nn.GRU(8, 3, reset_after=False)

        def forward(self, x, lengths, reset_mask):
            y, _ = self.lstm(x, lengths=lengths, reset_mask=reset_mask)
            return self.gru(y)

    def inputs(T, B):
        return torch.randn(T, B, 5), torch.randint(0, T + 1, (B,)), torch.rand(T, B) < 0.3

    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    shapes = {"x": {0: T, 1: B}, "lengths": {0: B}, "reset_mask": {0: T, 1: B}}
    model = Model().eval()
    program = torch.export.export(model, inputs(6, 3), dynamic_shapes=shapes, strict=strict)
    targets = [str(n.target) for m in program.graph_module.modules() for n in m.graph.nodes]
    assert sum("fastrnn.rnn_forward" in target for target in targets) == 3
    for sizes in ((6, 3), (9, 2), (2, 5)):
        x = inputs(*sizes)
        torch.testing.assert_close(program.module()(*x), model(*x), rtol=0, atol=0)


def test_fake_and_meta_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        module = nn.LSTM(5, 4, bidirectional=True)
        y, (h, c) = module(torch.randn(3, 2, 5))
        y.sum().backward()
        assert y.shape == (3, 2, 8) and h.shape == c.shape == (2, 2, 4)
        assert module.weight_ih_l0.grad.shape == (16, 5)
    module = nn.GRU(5, 4, batch_first=True, device="meta")
    x = torch.randn(2, 3, 5, device="meta")
    y, h = module(x)
    y.sum().backward()
    assert y.shape == (2, 3, 4) and h.is_meta and module.weight_hh_l0.grad.is_meta


def test_modes_and_subclasses_see_the_operator():
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names = []
    module, x = nn.GRU(5, 4), torch.randn(3, 2, 5)
    with Seen():
        y, _ = module(x)
        y.sum().backward()
    assert "fastrnn.rnn_forward.default" in names and "fastrnn.rnn_backward.default" in names
    graph = make_fx(lambda x: module(x)[0].detach())(x)
    assert any("rnn_forward" in str(n.target) for n in graph.graph.nodes)
    torch.testing.assert_close(graph(x * 2), module(x * 2)[0])

    class Tagged(torch.Tensor):
        pass

    y, _ = module(x.as_subclass(Tagged))
    assert type(y) is Tagged
    torch.testing.assert_close(y.as_subclass(torch.Tensor), module(x)[0])


def test_default_device_mode_does_not_move_outputs():
    module, x = nn.GRU(5, 4), torch.randn(3, 2, 5)
    with torch.device("meta"):
        y, _ = module(x)
    assert torch.equal(y, module(x)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_does_not_freeze_the_result():
    module = nn.LSTM(5, 4)
    traced = torch.jit.trace(module, (torch.randn(3, 2, 5),), check_trace=False)
    for shape in ((3, 2, 5), (7, 3, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), module(x), rtol=0, atol=0)


def test_inference_mode():
    module, x = nn.GRU(5, 4), torch.randn(3, 2, 5)
    with torch.inference_mode():
        y, _ = module(x)
    assert y.is_inference()
    y, _ = module(x)  # the module is as usable as before
    y.sum().backward()
