"""num_heads of modules, functions, NumPy classes and steppers; test_layer.py and test_regularisers.py compare it with the oracle."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import fastrnn  # noqa: E402
from fastrnn import functional, nn  # noqa: E402

I, H, N = 5, 12, 3
KINDS = [
    ("LSTM", {}),
    ("LSTM", {"peepholes": True}),
    ("LSTM", {"coupled": True, "bias": False}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("RNN", {"nonlinearity": "relu"}),
]


def dense(module: torch.nn.Module) -> torch.nn.Module:
    """The module without heads whose recurrent matrix has zeros beside the blocks."""
    options = {name: getattr(module, name) for name in ("num_layers", "bidirectional", "bias")}
    for name in ("peepholes", "coupled", "reset_after", "nonlinearity", "forget_gate"):
        if hasattr(module, name):
            options[name] = getattr(module, name)
    other = type(module)(module.input_size, module.hidden_size, **options)
    state, n = module.state_dict(), H // module.num_heads
    for name, w in state.items():
        if name.startswith("weight_hh"):
            whole = w.new_zeros(w.shape[0], H)
            for row in range(w.shape[0]):
                first = row % H // n * n
                whole[row, first : first + n] = w[row]
            state[name] = whole
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize(("kind", "options"), [*KINDS, ("SLSTM", {"forget_gate": "exponential"})])
def test_equals_a_dense_matrix_with_zeros(kind, options):
    module = getattr(nn, kind)(I, H, 2, bidirectional=True, num_heads=N, **options)
    assert module.weight_hh_l1_reverse.shape == (module.weight_ih_l0.shape[0], H // N) and "num_heads=3" in repr(module)
    other, x = dense(module), torch.randn(7, 4, I)
    call = {"lengths": torch.tensor([7, 0, 3, 5]), "reset_mask": torch.rand(7, 4) < 0.2}
    for got, want in zip(module(x, **call), other(x, **call)):
        for a, b in zip(got, want):
            assert torch.allclose(a, b, atol=1e-6)
    y, _, states = module(x, return_states=True, return_gates=True)
    _, _, wanted = other(x, return_states=True, return_gates=True)
    for got, want in zip(states, wanted):
        assert len(got) == len(want) and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, want))
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:3, 1]])
    assert torch.allclose(module(packed)[0].data, other(packed)[0].data, atol=1e-6)
    a, b = (torch.autograd.grad(m(x[:, 0])[0].square().sum(), m.weight_ih_l0)[0] for m in (module, other))
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_functions_numpy_and_steppers_agree_with_the_module(kind, options):
    module, x = getattr(nn, kind)(I, H, 2, num_heads=N, zoneout=0.2, **options).eval(), torch.randn(7, 4, I)
    y, last = module(x)
    named = {k: v for k, v in options.items() if k != "bias"}
    call = getattr(functional, kind.lower())
    assert torch.equal(call(x, None, module._flat_weights, num_heads=N, zoneout=0.2, **named)[0], y)
    ours = getattr(fastrnn.numpy, kind).from_torch(module)
    got = ours(x.numpy())
    assert torch.equal(torch.from_numpy(got[0]), y)
    for a, b in zip(got[1] if kind == "LSTM" else [got[1]], last if kind == "LSTM" else [last]):
        assert torch.equal(torch.from_numpy(a), b)
    step, other = module.stepper(4), ours.stepper(4)
    for t in range(7):
        if t == 4:  # go on from a state that was taken and given back
            step.state, other.state = step.state, other.state
        assert torch.equal(step(x[t]), y[t]) and torch.equal(torch.from_numpy(other(x[t].numpy())), y[t])
    states = step.state if kind == "LSTM" else [step.state]
    assert all(map(torch.equal, states, last if kind == "LSTM" else [last]))
    step.reset(torch.tensor([True, False, True, True]))
    states = step.state if kind == "LSTM" else [step.state]
    assert all(not s[:, 0].any() and s[:, 1].any() for s in states)
    from fastrnn._device_stepper import DeviceStepper

    layers = [(*module._weights()[k * n : k * n + n][:4],) for n in (len(module._flat_weights) // 2,) for k in (0, 1)]
    layers = [(*(w.detach() for w in layer), *(None,) * (5 - len(layer))) for layer in layers]
    device = DeviceStepper(module._cell(), layers, 4, (0.2, 0.2 * (kind == "LSTM")), N)
    assert torch.equal([device(x[t]) for t in range(7)][-1], y[-1])


def test_forms_of_the_input():
    lstm, x = nn.LSTM(I, H, 2, batch_first=True, num_heads=2), torch.randn(4, 7, I)
    with torch.no_grad():
        y, _ = lstm(x)
        assert torch.equal(lstm(x[1])[0], y[1])
        half = nn.LSTM(I, H, num_heads=2, dtype=torch.bfloat16)
        y, _ = half(x.bfloat16())
        step = half.stepper(7)
        for t in range(4):
            last = step(x[t].bfloat16())
        assert y.dtype is last.dtype is torch.bfloat16 and torch.equal(last, y[-1])
        assert step.state[1].dtype is torch.bfloat16
        one = lstm.stepper()
        assert torch.equal(one(x[0, 0]), lstm(x[:1, :1])[0][0, 0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_options_reach_every_head(kind):
    options = {"recurrent_dropout": 0.3, "weight_dropout": 0.2, "zoneout": 0.2}
    module, x = getattr(nn, kind)(I, H, num_heads=N, learn_initial_state=True, **options), torch.randn(30, 8, I)
    weights = module._flat_weights
    call = getattr(functional, kind.lower())
    found = []
    for more in ({}, {"checkpoint_every": 4}):
        y, _ = call(x, None, weights, num_heads=N, training=True, seed=3, **options, **more)
        found.append([y, *torch.autograd.grad(y.square().sum(), weights)])
    assert all(map(torch.equal, *found))
    heads = found[0][0].detach().unflatten(-1, (N, H // N))
    kept = (heads[1:] == heads[:-1]).flatten(0, 1).transpose(0, 1).flatten(1)  # by zoneout: other units in each head
    assert all(0.3 < (kept[a] == kept[b]).double().mean() < 0.9 for a in range(N) for b in range(a))
    module(x)[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    cut = torch.ones(30, 8, dtype=torch.bool)
    clipped = call(x, None, weights, num_heads=N, detach_mask=cut, grad_clip=1e-3)[0]
    assert torch.autograd.grad(clipped.sum(), weights[:1])[0].abs().max() <= 1e-3 * x.abs().sum((0, 1)).max() + 1e-6


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_derivatives(kind):
    module = getattr(nn, kind)(2, 4, num_heads=2, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def call(x, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights)), (x,))[0]

    assert torch.autograd.gradcheck(call, (x, *module.parameters()))
    assert torch.autograd.gradgradcheck(lambda x: call(x, *module.parameters()), (x,))
    many = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    mapped = torch.func.vmap(lambda x: module(x)[0])(many)
    assert torch.allclose(mapped[2], module(many[2])[0], atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch about itself
def test_compile():
    module, x = nn.GRU(I, H, num_heads=N), torch.randn(3, 2, I, requires_grad=True)
    got, want = torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0], module(x)[0]
    assert torch.equal(got, want)
    assert torch.allclose(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want)), atol=1e-6)


def test_errors():
    x, weights = torch.ones(2, 1, I), nn.LSTM(I, H, num_heads=N)._flat_weights
    for bad, text in (
        (5, "num_heads is 5, expected a divisor of the hidden size, 12"),
        (0, "num_heads is 0, expected"),
    ):
        with pytest.raises(ValueError, match=f"LSTM: {text}"):
            nn.LSTM(I, H, num_heads=bad)
        with pytest.raises(ValueError, match=f"lstm: {text}"):
            functional.lstm(x, None, weights, num_heads=bad)
    with pytest.raises(TypeError, match="GRU: num_heads is a float, expected an int"):
        nn.GRU(I, H, num_heads=2.0)
    with pytest.raises(ValueError, match="LSTM: num_heads is 3 with a projection of 4, expected 1: a projection mixes"):
        nn.LSTM(I, H, proj_size=4, num_heads=N)
    for kind in (nn.LSTM, nn.GRU):
        with pytest.raises(ValueError, match="num_heads is 3 with layer_norm=True, expected 1: the norm is over"):
            kind(I, H, layer_norm=True, num_heads=N)
    norm = nn.GRU(I, H, layer_norm=True)
    with pytest.raises(ValueError, match="gru: num_heads is 3 with layer_norm=True"):
        functional.gru(x, None, norm._flat_weights, layer_norm=True, num_heads=N)
    with pytest.raises(
        fastrnn.ShapeError, match=r"weight_hh_l0 has shape \(48, 4\), expected \(4\*H, H\) = \(48, 12\)"
    ):
        functional.lstm(x, None, weights)
    with pytest.raises(
        fastrnn.ShapeError, match=r"weight_hh_l0 has shape \(48, 4\), expected \(4\*H, H/2\) = \(48, 6\)"
    ):
        functional.lstm(x, None, weights, num_heads=2)
    with pytest.raises(fastrnn.ShapeError, match=r"weight_hh_l0 has shape \(48, 4\), expected \(4\*H, H/2\)"):
        fastrnn.numpy.LSTM(nn.LSTM(I, H, num_heads=N).state_dict(), num_heads=2)
    with pytest.raises(fastrnn.ShapeError, match="lstm: h0 has shape"):
        functional.lstm(x, (torch.ones(1, 1, 4), torch.ones(1, 1, H)), weights, num_heads=N)
    with pytest.raises(TypeError, match="LSTM with num_heads=3, which torch.nn does not have"):
        fastrnn.to_torch(nn.LSTM(I, H, num_heads=N))
    step = nn.LSTM(I, H, num_heads=N).stepper(2)
    with pytest.raises(fastrnn.ShapeError, match="stepper: state has 1 entries, expected 2"):
        step.state = torch.ones(1, 2, H)
    with pytest.raises(fastrnn.ShapeError, match=r"stepper: c0 has shape \(1, 2, 4\), expected \(L, B, H\)"):
        step.state = torch.ones(1, 2, H), torch.ones(1, 2, 4)
    with pytest.raises(fastrnn.DTypeError, match="stepper: h0 has dtype torch.float64"):
        step.state = torch.ones(1, 2, H).double(), torch.ones(1, 2, H)
    with pytest.raises(fastrnn.DTypeError, match="stepper: x is a list"):
        step([1.0])
    half = nn.RNN(I, H, num_heads=N, dtype=torch.float16).stepper(2)
    with pytest.raises(fastrnn.DTypeError, match="stepper: x has dtype torch.float32, expected torch.float16"):
        half(x[0])
