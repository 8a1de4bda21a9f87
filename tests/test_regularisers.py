"""Zoneout, recurrent dropout and weight dropout: kernels against the oracle with the same random numbers, and the options."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import BLOCKS, CELLS, HEADED, TOLERANCE, WITH_C, Case  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import _noise, functional, nn  # noqa: E402
from fastrnn._noise import hits  # noqa: E402

I, H = 5, 17
CASES = [
    Case(9, 7, 5, 33, D=2, ragged=True, reset=0.3),
    Case(6, 1, 4, 100, batch_first=True),
    Case(4, 13, 3, 16, D=2, bias=False, states=False),
    Case(5, 13, 3, 32, D=2, reset=0.4, reset_to="initial"),
    Case(7, 3, 5, 48, D=2, P=5, ragged=True, reset=0.2),
]
EVERY = [(cell, case) for cell in CELLS for case in CASES if not case.P or cell in WITH_C]
EVERY += [(cell, HEADED[0]) for cell in BLOCKS]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("cell", "case"), EVERY, ids=[f"{cell}-{case}" for cell, case in EVERY])
def test_matches_oracle(isa, cell, case, dtype, training):
    inputs = cases.make(cell, case, dtype)
    exact = inputs.to(torch.float64)
    noise = cases.noise_for(cell, case, training, dtype, candidate_dropout=0.3)
    want, got = cases.oracle(exact, noise), cases.kernel(inputs, noise=noise)
    cases.assert_close(got, want, TOLERANCE[dtype]["output"])
    cases.assert_close(cases.gradients(inputs, got), cases.gradients(exact, want), TOLERANCE[dtype]["gradient"])
    with torch.no_grad():
        cases.assert_close(cases.kernel(inputs, noise=noise), want, TOLERANCE[dtype]["output"])
    plain = cases.kernel(inputs)
    assert (noise.h_mask is None and not any(noise.zoneout)) or not torch.allclose(plain["y"], got["y"], atol=1e-4), (
        "the noise did nothing"
    )


@pytest.mark.parametrize("cell", CELLS)
def test_threads_and_schedules_give_the_same_bits(isa, cell):
    case = Case(9, 13, 5, 64, D=2, ragged=True, reset=0.2)
    inputs, noise = cases.make(cell, case), cases.noise_for(cell, case, True, torch.float32, True, 0.3)
    first = None
    for schedule in ("batch_split", "hidden_split"):
        for n in (1, 2, 3):
            out = cases.kernel(inputs, schedule=schedule, threads=n, noise=noise)
            found = out | cases.gradients(inputs, out)
            first = first or found
            assert all(torch.equal(found[name], first[name]) for name in found), (schedule, n)


@pytest.mark.parametrize(("cell", "heads"), [*((cell, 1) for cell in CELLS), *((cell, 3) for cell in BLOCKS)])
def test_second_derivative(cell, heads):
    case = Case(3, 2, 2, 3, D=2, ragged=True, heads=heads)
    inputs = cases.make(cell, case, torch.float64)
    noise = cases.noise_for(cell, case, True, torch.float64, True, 0.3)

    def second(outputs):
        value = sum((o**3).sum() for o in outputs.values())
        (g,) = torch.autograd.grad(value, inputs.x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), list(inputs), materialize_grads=True)

    for got, want in zip(second(cases.kernel(inputs, noise=noise)), second(cases.oracle(inputs, noise))):
        assert torch.allclose(got, want, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masks_are_the_numbers_of_the_oracle(isa, dtype):
    for p, units in ((0.0, 5), (0.25, 1), (0.5, 33), (0.7, 64), (1.0, 17)):
        mask = _noise.dropout_mask(2**64 - 3, 9, 40, units, p, torch.ones(1, dtype=dtype))
        assert torch.equal(mask == 0, hits(2**64 - 3, 9, 40, 1, units, p)[:, 0])
        on_device = _noise._mask_on_device(
            2**64 - 3, 9, 40, units, p, torch.float64 if dtype is torch.float64 else torch.float32, mask.device
        )
        assert torch.equal(mask, on_device.to(dtype))
        assert mask.dtype is dtype and torch.allclose(
            mask[mask != 0].double(), torch.tensor(1 / (1 - min(p, 0.99))).double(), rtol=1e-2
        )


def test_random_numbers_are_spread_evenly():
    for rate in (0.0, 0.1, 0.5, 1.0):
        found = hits(3, 1, 50, 20, 1000, rate).double()
        for dim in range(3):  # at every time, row and unit; five standard deviations
            n = found.numel() / found.shape[dim]
            means = found.mean(dim=[d for d in range(3) if d != dim])
            assert ((means - rate).abs() <= 5 * (rate * (1 - rate) / n) ** 0.5 + 1e-12).all()
    a = hits(3, 0, 60, 60, 256, 0.5).double().flatten(0, 1) - 0.5
    correlation = (a @ a.T) / 256 * 4  # between rows and times
    assert (correlation - torch.eye(3600)).abs().max() < 0.45
    others = [hits(*key, 4, 4, 64, 0.5) for key in ((3, 0), (4, 0), (3, 1), (2**64 - 1, 0))]
    assert all(0.3 < (x != y).double().mean() < 0.7 for k, x in enumerate(others) for y in others[:k])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_modules(kind):
    x = torch.randn(12, 4, I)
    options = {"zoneout": (0.1, 0.3) if kind == "LSTM" else 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.4}
    options |= {"input_dropout": 0.2, "output_dropout": 0.2}
    if kind != "RNN":
        options |= {"candidate_dropout": 0.3, "candidate_dropout_per": "sequence"}
    module = getattr(nn, kind)(I, H, num_layers=2, bidirectional=True, **options)
    assert "recurrent_dropout=0.3" in repr(module)
    weights = module._flat_weights
    call = getattr(functional, kind.lower())
    torch.manual_seed(1)
    first = module(x)[0]
    assert not torch.equal(module(x)[0], first), "every call draws"
    torch.manual_seed(1)
    assert torch.equal(module(x)[0], first)
    torch.manual_seed(1)
    seed = int(torch.randint(1 << 62, ()))
    assert torch.equal(call(x, None, weights, bidirectional=True, training=True, seed=seed, **options)[0], first)
    first.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    module.eval()
    y = module(x)[0]
    assert torch.equal(module(x)[0], y)
    assert torch.equal(call(x, None, weights, bidirectional=True, **options)[0], y)
    ours = getattr(fastrnn.numpy, kind).from_torch(module)
    assert torch.equal(torch.from_numpy(ours(x.numpy())[0]), y)
    alone = getattr(nn, kind)(I, H, zoneout=0.25).eval()
    step, other = alone.stepper(4), getattr(fastrnn.numpy, kind).from_torch(alone).stepper(4)
    for t in range(12):
        last, same = step(x[t]).clone(), other(x[t].numpy())
    assert torch.equal(last, alone(x)[0][-1]) and torch.equal(torch.from_numpy(same), last)
    with pytest.raises(TypeError, match=f"{kind} with zoneout=0.25, which torch.nn does not have"):
        fastrnn.to_torch(alone)
    packed = torch.nn.utils.rnn.pack_sequence([x[:9, 0], x[:4, 1]])
    assert module(packed)[0].data.shape == (13, 2 * H)


def test_expectation_is_the_mean_of_one_step():
    module = nn.LSTM(I, H, zoneout=(0.3, 0.6))
    x, states = torch.randn(1, 1, I), (torch.randn(1, 1, H), torch.randn(1, 1, H))
    many = [module(x.expand(1, 4000, I), tuple(s.expand(1, 4000, H).contiguous() for s in states))[1]]
    module.eval()
    want = module(x, states)[1]
    for got, expected in zip(many[0], want):
        assert torch.allclose(got.mean(1, keepdim=True), expected, atol=0.05)


def test_zoneout_and_weight_dropout_of_one_keep_everything_and_nothing():
    x, h = torch.randn(6, 3, I), torch.randn(1, 3, H)
    module = nn.GRU(I, H, zoneout=1.0)
    assert torch.equal(module(x, h)[0][-1], h[0])
    without = nn.RNN(I, H, weight_dropout=1.0)
    weights = [w if k != 1 else torch.zeros_like(w) for k, w in enumerate(without._flat_weights)]
    assert torch.equal(without(x)[0], functional.rnn(x, None, weights)[0])


def test_weight_dropout_is_a_mask_on_the_recurrent_matrix():
    x = torch.randn(6, 3, I)
    module = nn.LSTM(I, H)
    w_ih, w_hh, *biases = module._flat_weights
    hit = hits(_noise.Rates(seed=7).seed_of(0), 16, 4 * H, 1, H, 0.4)[:, 0]
    assert 0.3 < hit.double().mean() < 0.5
    mask = ~hit / 0.6
    want = functional.lstm(x, None, [w_ih, w_hh * mask, *biases])[0]
    got = functional.lstm(x, None, module._flat_weights, weight_dropout=0.4, training=True, seed=7)[0]
    assert torch.allclose(got, want, atol=1e-6)

    def derivatives(y):  # the gradient, and that of its norm
        (g,) = torch.autograd.grad(y.square().sum(), w_hh, create_graph=True)
        return g, *torch.autograd.grad(g.square().sum(), w_hh)

    for g, w in zip(derivatives(got), derivatives(want)):
        assert torch.allclose(g, w, atol=1e-5, rtol=1e-4) and not g[hit].any()
    assert torch.equal(functional.lstm(x, None, module._flat_weights, weight_dropout=0.4)[0], module(x)[0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_input_and_output_dropout_are_the_same_units_at_all_times(batch_first):
    x = torch.randn(6, 3, I)
    given = x.transpose(0, 1) if batch_first else x
    weights = nn.GRU(I, H, 2)._flat_weights
    options = {"training": True, "seed": 7, "input_dropout": 0.4, "output_dropout": 0.5, "batch_first": batch_first}
    got = functional.gru(given, None, weights, **options)[0]
    masks = [
        ~hits(_noise.Rates(seed=7).seed_of(layer), stream, 3, 1, width, p)[:, 0] / (1 - p)
        for layer, stream, width, p in ((0, 24, I, 0.4), (1, 24, H, 0.4), (1, 32, H, 0.5))
    ]
    want = x
    for k in range(2):
        want = functional.gru(want * masks[k], None, weights[4 * k : 4 * k + 4])[0]
    want = want * masks[2]
    assert torch.allclose(got.transpose(0, 1) if batch_first else got, want, atol=1e-6)
    assert torch.equal(functional.gru(x, None, weights, input_dropout=0.4)[0], functional.gru(x, None, weights)[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_candidate_dropout_is_a_factor_of_the_candidate(kind):
    """A unit whose candidate is dropped at every step decays with its gate alone; the others are scaled."""
    call, weights = getattr(functional, kind.lower()), getattr(nn, kind)(I, H)._flat_weights
    x = torch.randn(9, 3, I)
    options = {"training": True, "seed": 7, "return_gates": True, "return_states": True}
    same = call(x, None, weights, candidate_dropout=0.4, candidate_dropout_per="sequence", **options)
    new = call(x, None, weights, candidate_dropout=0.4, **options)
    seed = _noise.Rates(seed=7).seed_of(0)
    for found, steps in ((same, 1), (new, 9)):
        hit = hits(seed, 40, steps, 3, H, 0.4).expand(9, 3, H)
        gates = found[2].gates[0][:, :, 0]
        state = (found[2].c if kind == "LSTM" else found[2].h)[0]
        before = torch.cat((torch.zeros(1, 3, H), state[:-1]))
        i, f, g = (
            (gates[:, :, k] for k in (0, 1, 2)) if kind == "LSTM" else (1 - gates[:, :, 1], *gates[:, :, 1:].unbind(2))
        )
        assert torch.allclose(state, f * before + i * g * ~hit / 0.6, atol=1e-6)
    assert torch.equal(call(x, None, weights, candidate_dropout=0.4)[0], call(x, None, weights)[0])
    none = call(x, None, weights, candidate_dropout=1.0, training=True)[0]
    assert not none.any(), "from zero, without a candidate"


def test_gradients_of_candidate_dropout():
    for kind, options in (("lstm", {"coupled": True}), ("lstm", {"peepholes": True}), ("gru", {"reset_after": False})):
        module = getattr(nn, kind.upper())(2, 3, **options, dtype=torch.float64)
        weights = [w.detach().requires_grad_() for w in module._flat_weights]
        x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
        call, options = getattr(functional, kind), {**options, "candidate_dropout": 0.4, "training": True, "seed": 1}
        assert torch.autograd.gradcheck(lambda x, *w: call(x, None, w, **options)[0], (x, *weights))  # noqa: B023


def test_bad_options():
    names = ("zoneout", "recurrent_dropout", "weight_dropout", "input_dropout", "output_dropout", "candidate_dropout")
    for name in names:
        for bad in (-0.1, 1.5, float("nan"), "0.1", True):
            with pytest.raises(ValueError, match=rf"GRU: {name} is .*, expected a probability in \[0, 1\]"):
                nn.GRU(I, H, **{name: bad})
    with pytest.raises(ValueError, match=r"LSTM: zoneout of c is 2, expected a probability"):
        nn.LSTM(I, H, zoneout=(0.1, 2))
    with pytest.raises(fastrnn.ShapeError, match="LSTM: zoneout has 3 entries, expected 2: of h and of c"):
        nn.LSTM(I, H, zoneout=(0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"LSTM: zoneout of h is 0.1 with a projection of 3, expected 0"):
        nn.LSTM(I, H, proj_size=3, zoneout=0.1)
    nn.LSTM(I, H, proj_size=3, zoneout=(0.0, 0.1))(torch.ones(2, 1, I))
    with pytest.raises(TypeError, match="gru: seed is a str, expected an int or None"):
        functional.gru(torch.ones(2, 1, I), None, nn.GRU(I, H)._flat_weights, zoneout=0.1, training=True, seed="7")
    with pytest.raises(ValueError, match="LSTM: candidate_dropout_per is 'row', expected 'step' or 'sequence'"):
        nn.LSTM(I, H, candidate_dropout=0.1, candidate_dropout_per="row")
    with pytest.raises(ValueError, match="GRU: candidate_dropout is 0.1, expected 0: gru_norm is layer-normalised"):
        nn.GRU(I, H, layer_norm=True, candidate_dropout=0.1)
    with pytest.raises(TypeError, match="candidate_dropout"):
        nn.RNN(I, H, candidate_dropout=0.1)
    with pytest.raises(ValueError, match="rnn: candidate_dropout is 0.5, expected 0: rnn_tanh has no candidate"):
        cases.kernel(cases.make("rnn_tanh", CASES[1]), noise=_noise.Noise(1, (0.0, 0.0), True, None, 0.5))
    with pytest.raises(TypeError, match="zoneout"):
        nn.FastRNN(I, H, zoneout=0.1)
    for value in ("x", None):
        with pytest.raises(fastrnn.DTypeError, match="gru: x is a"):
            nn.GRU(I, H, zoneout=0.1)(value)


def test_dropout_that_does_not_act_is_in_nobodys_way():
    module, x = nn.GRU(I, H, recurrent_dropout=0.2, weight_dropout=0.2).eval(), torch.randn(4, 2, I)
    got = torch.func.vmap(lambda x: module(x)[0])(x[None])
    assert torch.equal(got[0], module(x)[0])


def test_layers_and_directions_draw_different_numbers():
    rates = _noise.Rates((0.5, 0.5), 0.5, 0.5).drawn("rnn", 3, True)
    a, b = (rates.of_layer(k, True, torch.ones(1), 64, 64, 2) for k in (0, 1))
    assert a.seed != b.seed and not torch.equal(a.h_mask, b.h_mask) and not torch.equal(a.h_mask[0], a.h_mask[1])
    w = torch.ones(64, 64)
    drops = [rates.drop_weights(k, d, w) for k in (0, 1) for d in (0, 1)]
    assert all(not torch.equal(x, y) for i, x in enumerate(drops) for y in drops[:i])
