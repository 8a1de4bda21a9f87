"""The states and gates of every step: values, gradients, and what cannot be had."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import CELLS, TOLERANCE, WITH_C, Case  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import _oracle, functional, nn, ops  # noqa: E402

I, H = 5, 17
SEVERAL = [cell for cell in CELLS if fastrnn._core.CELLS[cell]["states"] > 1]
CASES = [
    Case(6, 5, 4, 33, D=2, ragged=True, reset=0.3),
    Case(5, 1, 3, 16, batch_first=True),
    Case(4, 3, 2, 20, D=2, P=7, ragged=True, batch_first=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("cell", "case"), [(cell, case) for cell in SEVERAL for case in CASES if not case.P or cell in WITH_C], ids=str
)
def test_c_of_every_step_matches_oracle(isa, cell, case, dtype):
    inputs = cases.make(cell, case, dtype)
    exact = inputs.to(torch.float64)
    want, got = cases.oracle(exact, states=True), cases.kernel(inputs, states=True)
    cases.assert_close(got, want, TOLERANCE[dtype]["output"])
    cases.assert_close(cases.gradients(inputs, got), cases.gradients(exact, want), TOLERANCE[dtype]["gradient"])
    with torch.no_grad():
        cases.assert_close(cases.kernel(inputs, states=True), want, TOLERANCE[dtype]["output"])


@pytest.mark.parametrize("cell", SEVERAL)
def test_second_derivative(cell):
    inputs = cases.make(cell, Case(3, 2, 2, 3, D=2, ragged=True), torch.float64)
    found = []
    for layer in (cases.kernel, cases.oracle):
        value = (layer(inputs, states=True)["cs"] ** 3).sum()
        (g,) = torch.autograd.grad(value, inputs.x, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), list(inputs)))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*found))


def _squash(*names):
    return lambda x, r: [getattr(torch, name)(a + b) for name, a, b in zip(names, x, r)]


# From zero, R h is the bias alone; x and r are what W x + b_ih and R h + b_hh give for each gate.
GATES = {
    "rnn_tanh": _squash("tanh"),
    "rnn_relu": _squash("relu"),
    "rnn_sigmoid": _squash("sigmoid"),
    "lstm": _squash("sigmoid", "sigmoid", "tanh", "sigmoid"),
    "lstm_cifg": _squash("sigmoid", "tanh", "sigmoid"),
    "gru": lambda x, r: [*_squash("sigmoid", "sigmoid")(x, r), torch.tanh(x[2] + torch.sigmoid(x[0] + r[0]) * r[2])],
    "gru_reset_before": _squash("sigmoid", "sigmoid", "tanh"),
    "slstm": lambda x, r: [
        torch.ones_like(x[0]),
        torch.exp(torch.nn.functional.logsigmoid(x[1] + r[1]) - x[0] - r[0]),
        *_squash("tanh", "sigmoid")(x[2:], r[2:]),
    ],
}


@pytest.mark.parametrize("cell", CELLS)
def test_gates_are_those_of_the_equations(cell):
    """One step from zero: what the gates are made of is known."""
    inputs = cases.make(cell, Case(1, 3, 4, 17, D=2, states=False))
    keep = ops.Keep(gates=True)
    y, _ = ops.rnn_layer(cell, inputs.x, inputs.weights, directions=2, keep=keep)
    G = fastrnn._core.CELLS[cell]["gates"]
    assert keep.gates.shape == (1, 3, 2, G, 17) and not keep.gates.requires_grad
    if cell in GATES:
        w_ih, _, b_ih, b_hh = inputs.weights[:4]
        x = torch.nn.functional.linear(inputs.x[0], w_ih, b_ih).view(3, G, 17).unbind(1)
        want = torch.stack(GATES[cell](x, b_hh.view(G, 17)), 1)
        assert torch.allclose(keep.gates[0, :, 0], want, atol=1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
def test_modules_return_the_states_of_every_layer(batch_first):
    module = nn.LSTM(I, H, num_layers=3, bidirectional=True, dropout=0.5, batch_first=batch_first)
    module.eval()
    x, lengths = torch.randn((4, 7, I) if batch_first else (7, 4, I)), torch.tensor([7, 0, 3, 5])
    y, (h, c), states = module(x, lengths=lengths, return_states=True)
    assert [len(of) for of in states] == [3, 3, 0]
    assert torch.equal(states.h[2], y) and torch.equal(module(x, lengths=lengths)[0], y)
    steps = states.c[2] if not batch_first else states.c[2].transpose(0, 1)
    for b, n in enumerate(lengths.tolist()):
        assert not steps[n:, b].any()
        if n:
            assert torch.equal(steps[n - 1, b, :H], c[4, b]) and torch.equal(steps[0, b, H:], c[5, b])
    (gates,) = nn.GRU(I, H)(x, return_gates=True)[2].gates
    assert gates.shape == (*x.shape[:2], 1, 3, H)
    alone = nn.LSTM(I, H)
    y, _, states = alone(x[0], return_states=True)
    assert states.c[0].shape == (x.shape[1], H) and torch.equal(states.h[0], y)
    half = nn.LSTM(I, H, dtype=torch.bfloat16)
    assert half(x.bfloat16(), return_states=True)[2].c[0].dtype is torch.bfloat16


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_functions_return_what_modules_return(kind):
    module, x = getattr(nn, kind)(I, H, 2, bidirectional=True), torch.randn(5, 3, I)
    call = getattr(functional, kind.lower())
    options = {"return_states": True, "return_gates": True}
    *_, want = module(x, **options)
    *_, got = call(x, None, module._flat_weights, bidirectional=True, **options)
    for a, b in zip(got, want):
        assert len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("grad", [True, False])
def test_what_is_returned_is_the_callers_own(grad):
    """Writing into the states of one call must not reach its backward: they are copies of what that reads."""
    inputs = cases.make("lstm", Case(4, 3, 5, 16))
    want = torch.autograd.grad(cases.kernel(inputs)["y"].sum(), list(inputs))
    with torch.set_grad_enabled(grad):
        keep = ops.Keep(gates=True)
        y, _ = ops.rnn_layer("lstm", inputs.x, inputs.weights, inputs.states, keep=keep)
    assert keep.c.untyped_storage().nbytes() == keep.c.nbytes
    assert keep.gates.untyped_storage().nbytes() == keep.gates.nbytes
    if grad:
        with torch.no_grad():
            keep.c.fill_(7)
            keep.gates.fill_(7)
        assert all(map(torch.equal, torch.autograd.grad(y.sum(), list(inputs)), want))


def test_the_check_beside_every_call_knows_them(monkeypatch):
    monkeypatch.setattr(_oracle, "CHECK", True)
    inputs = cases.make("lstm", CASES[0])
    out = cases.kernel(inputs, states=True)
    cases.gradients(inputs, out)


def test_zoneout_keeps_the_states_that_are_returned():
    module, x = nn.LSTM(I, H, zoneout=(0.5, 0.5)), torch.randn(30, 2, I)
    _, _, states = module(x, return_states=True)
    for steps in (states.h[0], states.c[0]):
        kept = (steps[1:] == steps[:-1]).double().mean()
        assert 0.45 < kept < 0.55


@pytest.mark.parametrize("form", ["batched", "batch_first", "unbatched", "packed"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_initial_states_are_learned(kind, form):
    first, sizes = form == "batch_first", {"proj_size": 5} if kind == "LSTM" else {}
    module = getattr(nn, kind)(I, H, 2, batch_first=first, bidirectional=True, learn_initial_state=True, **sizes)
    names = ("initial_h", "initial_c")[: 2 if kind == "LSTM" else 1]
    states = [getattr(module, name) for name in names]
    assert {*names} <= module.state_dict().keys() and not any(s.any() for s in states)
    assert "learn_initial_state=True" in repr(module)
    with torch.no_grad():
        for s in states:
            s.normal_()
    x = torch.randn(4, 6, I)
    rows = 4 if first else 6
    if form == "unbatched":
        x, hx = x[0], [s.squeeze(1) for s in states]
    else:
        hx = [s.expand(-1, rows, -1) for s in states]
    if form == "packed":
        x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 4, 1, 3, 3, 4]), enforce_sorted=False)
    got, want = module(x), module(x, tuple(hx) if kind == "LSTM" else hx[0])
    y, y_want = (out[0].data if form == "packed" else out[0] for out in (got, want))
    assert torch.equal(y, y_want)
    grads = [torch.autograd.grad(out.sum(), states) for out in (y, y_want)]
    assert all(map(torch.equal, *grads)) and all(g.any() for g in grads[0])
    with pytest.raises(TypeError, match="learn_initial_state=True, which torch.nn does not have"):
        fastrnn.to_torch(module)
    with pytest.raises(NotImplementedError, match=r"stepper\(\) starts from zeros, expected learn_initial_state=False"):
        getattr(nn, kind)(I, H, learn_initial_state=True).stepper()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_resets_to_the_initial_state(kind):
    """Every segment starts from the state that the call starts from, in both directions, and tells it its gradient."""
    module = getattr(nn, kind)(
        I, H, bidirectional=True, learn_initial_state=True, reset_to="initial", dtype=torch.float64
    )
    assert "reset_to='initial'" in repr(module) or "reset_to=initial" in repr(module)
    states = [getattr(module, name) for name in ("initial_h", "initial_c")[: 2 if kind == "LSTM" else 1]]
    with torch.no_grad():
        for s in states:
            s.normal_()
    x = torch.randn(10, 1, I, dtype=torch.float64)
    starts = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 0, 1], dtype=torch.bool)
    y = module(x, reset_mask=starts[:, None])[0]
    want = torch.cat([module(x[a:b])[0] for a, b in ((0, 3), (3, 4), (4, 9), (9, 10))])
    assert torch.allclose(y, want, atol=1e-12)
    grads = [torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (y, want)]
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*grads))
    given = tuple(s.detach().clone() for s in states)
    given = given if kind == "LSTM" else given[0]
    options = {"bidirectional": True, "reset_mask": starts[:, None]}
    call = getattr(functional, kind.lower())
    assert torch.equal(call(x, given, module._flat_weights, reset_to="initial", **options)[0], y)
    assert not torch.allclose(call(x, given, module._flat_weights, **options)[0], y)
    weights = {name: w.detach() for name, w in module.named_parameters() if not name.startswith("initial")}
    ours = getattr(fastrnn.numpy, kind)(weights, reset_to="initial")
    arrays = tuple(s.detach().numpy() for s in states)
    got = ours(x.numpy(), arrays if kind == "LSTM" else arrays[0], None, starts[:, None].numpy())
    assert torch.equal(torch.from_numpy(got[0]), y)
    with pytest.raises(TypeError, match=f"{kind} with reset_to='initial', which torch.nn does not have"):
        fastrnn.to_torch(getattr(nn, kind)(I, H, reset_to="initial"))


def test_gradients_of_resets_to_the_initial_state():
    weights = [w.double() for w in nn.LSTM(2, 3)._flat_weights]
    x, h0, c0 = (torch.randn(4, 2, n, dtype=torch.float64, requires_grad=True) for n in (2, 3, 3))
    mask = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 1]], dtype=torch.bool)

    def call(x, h0, c0):
        return functional.lstm(x, (h0[:1], c0[:1]), weights, reset_mask=mask, reset_to="initial")[0]

    assert torch.autograd.gradcheck(call, (x, h0, c0))
    assert torch.autograd.gradgradcheck(call, (x, h0, c0))


def test_what_resets_to_the_initial_state_cannot_do():
    with pytest.raises(ValueError, match="LSTM: reset_to is 'first', expected 'zero' or 'initial'"):
        nn.LSTM(I, H, reset_to="first")
    module, x, mask = nn.GRU(I, H, reset_to="initial"), torch.randn(4, 2, I), torch.ones(4, 2, dtype=torch.bool)
    for function in (functional.gru, lambda x, h, weights, **options: fastrnn.numpy.GRU(weights, **options)):
        with pytest.raises(ValueError, match="gru: reset_to is None, expected 'zero' or 'initial'"):
            function(x, None, [w.detach() for w in module._flat_weights], reset_to=None)
    h = torch.randn(1, 2, H)
    for state in (h, None):  # the last: from zeros, to zeros
        got = torch.func.vmap(lambda x, state=state: module(x, state, reset_mask=mask)[0])(x[None])[0]
        assert torch.equal(got, module(x, state, reset_mask=mask)[0])


def test_errors():
    module, x = nn.LSTM(I, H), torch.randn(4, 2, I)
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:3, 1]])
    with pytest.raises(ValueError, match="lstm: return_states is True with a PackedSequence, expected a tensor and"):
        module(packed, return_states=True)
