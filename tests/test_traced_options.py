"""Regularisers, states of every step and options of backward where an operator is seen: torch.compile, torch.func, forward
mode, export, modes and subclasses. In eager mode their own test files compare them with the oracle."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import BLOCKS, CELLS, WITH_C, Case  # noqa: E402
from test_autograd import largest_difference  # noqa: E402
from torch import func  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import _oracle, functional, nn  # noqa: E402
from fastrnn._backprop import Backprop  # noqa: E402
from fastrnn._cells import WITH_CANDIDATE  # noqa: E402
from fastrnn._noise import Noise  # noqa: E402

# torch warns about its own internals while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:At pre-dispatch tracing:UserWarning"),
]
I, H = 5, 17
SMALL = Case(3, 2, 2, 3, D=2, ragged=True, reset=0.4, reset_to="initial")
CUT = torch.tensor([[False, True], [True, False], [False, True]])
REGULARISERS = {
    "recurrent_dropout": 0.3, "weight_dropout": 0.4, "input_dropout": 0.2, "output_dropout": 0.2, "dropout": 0.2,
}  # fmt: skip
OPTIONS = {
    "lstm": ("LSTM", {"zoneout": (0.2, 0.3), "candidate_dropout": 0.3, **REGULARISERS}, {"return_states": True}),
    "gru": ("GRU", {"zoneout": 0.2, "candidate_dropout": 0.3, "candidate_dropout_per": "sequence"}, {"return_gates": True}),
    "rnn": ("RNN", {"zoneout": 0.2, **REGULARISERS}, {"return_states": True, "return_gates": True}),
    "heads": ("LSTM", {"num_heads": 2, "zoneout": 0.2, "recurrent_dropout": 0.2}, {"return_states": True}),
    "backprop": ("LSTM", {"zoneout": 0.1, "checkpoint_every": 2, "grad_clip": 0.05}, {"detach": True}),
    "clip": ("GRU", {"grad_clip": 0.05}, {"detach": True, "return_states": True}),
    "initial": ("LSTM", {"reset_to": "initial", "learn_initial_state": True}, {"reset": True}),
    "projected": ("LSTM", {"proj_size": 3, "recurrent_dropout": 0.3, "checkpoint_every": 1}, {}),
    "slstm": ("SLSTM", {"reset_to": "initial", "checkpoint_every": 3}, {"reset": True}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", OPTIONS)
def test_compiled_training_gives_the_bits_of_eager(name):
    kind, options, call = OPTIONS[name]
    module = getattr(nn, kind)(I, 16, 2, bidirectional=True, **options)
    x, mask = torch.randn(7, 3, I, requires_grad=True), torch.rand(7, 3) < 0.4
    names = {"detach": "detach_mask", "reset": "reset_mask"}
    call = {names.get(k, k): mask if k in names else v for k, v in call.items()}
    leaves = [x, *module.parameters()]

    def loss(x):
        y, last, *states = module(x, **call)
        tensors = [y, *(last if isinstance(last, tuple) else [last])]
        tensors += [t for of in (states[0] if states else ()) for t in of]
        return sum((t**3).sum() for t in tensors), tensors

    def run(f, seed):
        torch.manual_seed(seed)
        total, tensors = f(x)
        return [*tensors, *torch.autograd.grad(total, leaves)]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want, got = run(loss, 1), run(compiled, 1)
    assert len(got) == len(want) and all(map(torch.equal, got, want))
    assert torch.equal(run(compiled, 2)[0], want[0]) == (module._rates is None), "every call draws"
    module.eval()
    with torch.no_grad():
        assert torch.equal(compiled(x)[1][0], loss(x)[1][0])


def test_compiled_function_takes_a_seed():
    module, x = nn.GRU(I, H, 2), torch.randn(4, 2, I)
    rates = {"zoneout": 0.2, "weight_dropout": 0.3, "recurrent_dropout": 0.1, "training": True}

    def call(x, seed):
        return functional.gru(x, None, module._flat_weights, seed=seed, **rates)[0]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for seed in (7, 8, -3, 2**62):  # the compiler makes a symbol of it
        assert torch.equal(compiled(x, seed), call(x, seed))
    large = torch.compile(lambda x: call(x, 2**64 - 3), fullgraph=True, backend="aot_eager")
    assert torch.equal(large(x), call(x, 2**64 - 3)) and torch.equal(large(x), call(x, -3))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_with_sizes_that_change(backend):
    module = nn.LSTM(
        I, H, zoneout=(0.1, 0.2), weight_dropout=0.3, recurrent_dropout=0.1, input_dropout=0.2, grad_clip=0.1
    )
    weights, names = module._flat_weights, ("zoneout", *REGULARISERS, "grad_clip")
    options = {name: getattr(module, name) for name in names} | {"training": True, "seed": 3}

    def loss(x):
        return functional.lstm(x, None, weights, **options)[0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for shape in ((4, 2, I), (6, 3, I)):
        x = torch.randn(shape, requires_grad=True)
        for a, b in zip(*(torch.autograd.grad(f(x), [x, *weights]) for f in (compiled, loss))):
            torch.testing.assert_close(a, b)


def options_of(cell: str, kind: str) -> dict:
    """Arguments of rnn_layer(), as far as the cell can have them."""
    product = cell in BLOCKS
    if kind == "noise":
        mask = torch.tensor([2.0, 0.0, 2.0], dtype=torch.float64).expand(2, 2, 3) if product else None
        zoneout = (0.0, 0.0) if cell.endswith("_norm") else (0.3, 0.4 if cell in WITH_C else 0.0)
        return {"noise": Noise(2**64 - 5, zoneout, True, mask, 0.3 * (cell in WITH_CANDIDATE))}
    if kind == "expectation":
        return {"noise": Noise(0, (0.3, 0.0), False)} if not cell.endswith("_norm") else {}
    return {"backprop": Backprop(1, 0.0, CUT)} if kind == "detached" else {"backprop": Backprop(0, 0.05 * product, CUT)}


def functions(cell: str, kind: str, states: bool):
    """The layer and the oracle as functions of all tensors, and those."""
    i, options = cases.make(cell, SMALL, torch.float64), options_of(cell, kind)

    def outputs(tensors, oracle):
        x, n = tensors[0], 1 + len(i.states)
        given = cases.Inputs(cell, SMALL, x, list(tensors[1:n]), list(tensors[n:]), i.lengths, i.reset_mask, i.names)
        run = cases.oracle if oracle else cases.kernel
        found = run(given, states=states, **options)
        return tuple(t for t in found.values() if t is not None)[: 2 + len(i.states) - 1 + states]

    return (lambda *t: outputs(t, False)), (lambda *t: outputs(t, True)), tuple(t.detach() for t in i)


@pytest.mark.parametrize("kind", ["noise", "detached", "expectation", "clipped"])
@pytest.mark.parametrize("cell", CELLS)
def test_torch_func_matches_the_oracle(cell, kind):
    """Every derivative that torch.func composes, in one: grad, jvp of grad, grad of jvp, vmap of grad."""
    states = kind in ("noise", "clipped") and cell in WITH_C
    f, g, args = functions(cell, kind, states)
    every = tuple(range(len(args)))
    rng = torch.Generator().manual_seed(3)
    along = tuple(torch.randn(t.shape, generator=rng, dtype=t.dtype) for t in args)
    only_x, xs = (0, *(None for _ in args[1:])), torch.stack([args[0], along[0]])

    def same(transform, *inputs):
        losses = (lambda *a, f=f: sum((o**3).sum() for o in f(*a)) for f in (f, g))
        assert largest_difference(*(transform(l)(*inputs) for l in losses)) < 1e-10

    same(lambda l: func.grad(l, every), *args)
    same(lambda l: func.vmap(func.grad(l, every), only_x, randomness="same"), xs, *args[1:])
    if kind == "clipped" and cell in BLOCKS:  # a second derivative would clip sums here, and the parts of sums there
        with pytest.raises(NotImplementedError, match=r"grad_clip is 0.05 in forward-mode AD, expected 0"):
            func.jvp(f, args, along)
        return
    same(lambda l: func.grad(lambda x, *a: func.grad(l)(x, *a).square().sum(), every), *args)
    same(lambda l: lambda *a: func.jvp(l, a, along)[1], *args)
    same(lambda l: lambda *a: func.jvp(func.grad(l, every), a, along)[1], *args)
    same(lambda l: func.grad(lambda *a: func.jvp(l, a, along)[1], every), *args)


def test_modules_under_torch_func():
    """The same numbers as without a transform; vmap(randomness="same") draws once for all."""
    module, x = nn.LSTM(I, H, 2, zoneout=(0.1, 0.2), weight_dropout=0.3, recurrent_dropout=0.2), torch.randn(4, 2, I)

    def loss(x):
        torch.manual_seed(5)
        return module(x)[0].square().sum()

    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.equal(func.grad(loss)(x), want)
    many = func.vmap(func.grad(loss), randomness="same")(torch.stack((x, 2 * x)))
    assert torch.equal(many[0], want) and torch.equal(many[1], func.grad(loss)(2 * x))
    with pytest.raises(NotImplementedError, match=r"lstm: zoneout .*vmap\(randomness='different'\), expected"):
        func.vmap(lambda x: module(x)[0], randomness="different")(x[None])


@pytest.mark.parametrize("cell", ["lstm", "gru", "slstm"])
def test_opcheck(cell):
    i = cases.make(cell, SMALL, torch.float64)
    x, weights = i.x, i.weights
    noise = {"seed": torch.tensor(-5), "zoneout_h": 0.3, "candidate_dropout": 0.3 * (cell != "slstm")}
    args = (cell, x, None, None, i.lengths, i.reset_mask, weights, 2, False, "", 0, True)
    for more in (noise, {"checkpoint_every": 1, "detach_mask": CUT, "grad_clip": 0.1}):
        torch.library.opcheck(torch.ops.fastrnn.rnn_forward.default, args, more)
        y, h, _, reserve = (t.detach() for t in torch.ops.fastrnn.rnn_forward(*args, **more))
        wanted = [True, False, False, *[True] * len(weights)]
        detached = (
            cell,
            x.detach(),
            *args[2:6],
            [w.detach() for w in weights],
            *args[7:-1],
        )  # once more is the oracle's
        back = (*detached, y, reserve, torch.randn_like(y), None, None, wanted)
        torch.library.opcheck(torch.ops.fastrnn.rnn_backward.default, back, more)
    with pytest.raises(ValueError, match="rnn_forward: seed is None, expected an int64 tensor with zoneout"):
        torch.ops.fastrnn.rnn_forward(*args, zoneout_h=0.3)
    for other, P, match in (
        ("lstm", 2, "zoneout_h is 0.3 with a projection of 2, expected 0"),
        ("gru_norm", 0, "zoneout is .* with gru_norm, expected 0"),
    ):
        j = cases.make(other, Case(3, 2, 2, 3, P=P, states=False), torch.float64)
        with pytest.raises(ValueError, match=f"rnn_forward: {match}"):
            torch.ops.fastrnn.rnn_forward(
                other, j.x, None, None, None, None, j.weights, 1, False, "", 0, True, torch.tensor(1), zoneout_h=0.3
            )
    with pytest.raises(fastrnn.ShapeError, match="rnn_forward: h_mask has shape"):
        torch.ops.fastrnn.rnn_forward(*args, h_mask=x)


def test_export_modes_and_subclasses():
    from torch._subclasses import FakeTensorMode

    module = nn.GRU(I, H, 2, zoneout=0.2, recurrent_dropout=0.2)
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    example = torch.randn(4, 3, I)
    program = torch.export.export(module, (example,), dynamic_shapes={"input": {0: T, 1: B}}).module()
    for x in (example, torch.randn(6, 2, I)):
        want, got = ((torch.manual_seed(1), f(x)[0])[1] for f in (module, program))
        assert torch.equal(got, want)
    with FakeTensorMode():
        clipped = nn.LSTM(I, H, zoneout=0.1, weight_dropout=0.1, grad_clip=0.1, checkpoint_every=1)
        y, _ = clipped(torch.randn(3, 2, I))
        y.sum().backward()
        assert y.shape == (3, 2, H) and clipped.weight_hh_l0.grad.shape == (4 * H, H)
    meta = nn.GRU(I, H, zoneout=0.2, recurrent_dropout=0.2, device="meta")
    assert meta(x.to("meta"), return_states=True)[2].h[0].is_meta

    class Tagged(torch.Tensor):
        pass

    torch.manual_seed(2)
    tagged = module(x.as_subclass(Tagged))[0]
    torch.manual_seed(2)
    assert type(tagged) is Tagged and torch.equal(tagged.as_subclass(torch.Tensor), module(x)[0])


def test_where_it_is_not_implemented_it_says_so():
    x = torch.randn(4, 2, I)
    for options, match in (
        ({"zoneout": 0.1}, "lstm: zoneout and the dropouts .* inside torch.jit.trace"),
        ({"grad_clip": 0.1}, "lstm: zoneout, .* grad_clip and detach_mask are not implemented inside torch.jit.trace"),
    ):
        with pytest.raises(NotImplementedError, match=match):
            torch.jit.trace(nn.LSTM(I, H, **options), x, check_trace=False)


def test_the_oracle_takes_no_part_in_first_derivatives(monkeypatch):
    """It would be right, and a hundred times slower."""
    monkeypatch.setattr(_oracle, "oracle", None)
    module, x = nn.LSTM(I, H, zoneout=0.1, grad_clip=0.1), torch.randn(4, 2, I)
    func.grad(lambda x: module(x)[0].sum())(x)
    torch.compile(lambda x: module(x)[0].sum(), fullgraph=True, backend="aot_eager")(x).backward()
