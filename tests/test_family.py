"""Modules that torch.nn does not have, against their published equations: small cells, AUGRU, sLSTM, layer norm."""

from __future__ import annotations

import pickle
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from cases import assert_same  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import functional, nn  # noqa: E402
from fastrnn._noise import Noise  # noqa: E402

I, H = 5, 7


def fastrnn_step(x, h, p):
    n = (F.linear(x, p["weight_ih"]) + F.linear(h, p["weight_hh"]) + p["bias"]).tanh()
    return p["alpha"].sigmoid() * n + p["beta"].sigmoid() * h


def fastgrnn_step(x, h, p):
    a = F.linear(x, p["weight_ih"]) + F.linear(h, p["weight_hh"])
    z, n = (a + p["bias_gate"]).sigmoid(), (a + p["bias_update"]).tanh()
    return (p["zeta"].sigmoid() * (1 - z) + p["nu"].sigmoid()) * n + z * h


def indrnn_step(x, h, p):
    return F.relu(F.linear(x, p["weight_ih"], p["bias"]) + p["weight_hh"] * h)


def mingru_step(x, h, p):
    z, n = F.linear(x, p["weight_ih"], p["bias"]).chunk(2, -1)
    return (1 - z.sigmoid()) * h + z.sigmoid() * n


def minlstm_step(x, h, p):
    f, i, n = F.linear(x, p["weight_ih"], p["bias"]).chunk(3, -1)
    total = f.sigmoid() + i.sigmoid()
    return f.sigmoid() / total * h + i.sigmoid() / total * n


FAMILY = {
    "FastRNN": fastrnn_step,
    "FastGRNN": fastgrnn_step,
    "IndRNN": indrnn_step,
    "MinGRU": mingru_step,
    "MinLSTM": minlstm_step,
}


def two_layers_by_hand(module, x, step, states):
    """y and the last states of two layers with two directions; step(x_t, states, parameters) gives the new states."""
    y, lasts = x, []
    for layer in range(2):
        sides = []
        for end in ("", "_reverse"):
            suffix = f"_l{layer}{end}"
            p = {n.removesuffix(suffix): w for n, w in module.named_parameters() if n.endswith(suffix)}
            state, steps = states, []
            for t in range(len(x))[:: -1 if end else 1]:
                state = step(y[t], state, p)
                steps.append(state[0])
            sides.append(torch.stack(steps[:: -1 if end else 1]))
            lasts.append(state)
        y = torch.cat(sides, -1)
    return y, *(torch.stack(s) for s in zip(*lasts))


@pytest.mark.parametrize("name", FAMILY)
def test_modules_of_the_family_compute_the_published_equations(name):
    torch.manual_seed(3)
    module = getattr(nn, name)(I, H, num_layers=2, bidirectional=True)
    x = torch.randn(6, 3, I)
    y, h = module(x)
    want, h_want = two_layers_by_hand(module, x, lambda x, s, p: (FAMILY[name](x, s[0], p),), (torch.zeros(3, H),))
    assert_same((y, h), (want, h_want))
    found = torch.autograd.grad(y.square().sum(), list(module.parameters()))
    assert_same(found, torch.autograd.grad(want.square().sum(), list(module.parameters())), rtol=1e-4, atol=1e-5)
    options = {"bidirectional": True}
    weights = module._flat_weights if name.startswith("Fast") else list(module.parameters())
    assert_same(getattr(functional, name.lower())(x, None, weights, **options), (y, h), rtol=0, atol=0)
    ours = getattr(fastrnn.numpy, name).from_torch(module)
    assert_same(torch.from_numpy(ours(x.numpy())[0]), y)
    again = pickle.loads(pickle.dumps(module))
    assert_same(again(x), (y, h), rtol=0, atol=0)
    alone = getattr(nn, name)(I, H)
    got = alone.stepper(3)
    for t in range(6):
        last = got(x[t])
    assert torch.equal(last, alone(x)[0][5])


def slstm_step(forget_gate, heads):
    """The paper's equations 8 to 14, without a stabiliser: c, n and the exponents as they are."""

    def step(x, s, p):
        h, c, n = s
        H = h.shape[-1]
        w = torch.cat([torch.block_diag(*gate.chunk(heads)) for gate in p["weight_hh"].chunk(4)])
        i, f, z, o = (F.linear(x, p["weight_ih"], p["bias_ih"]) + F.linear(h, w, p["bias_hh"])).split(H, -1)
        f = f.sigmoid() if forget_gate == "sigmoid" else f.exp()
        c, n = f * c + i.exp() * z.tanh(), f * n + i.exp()
        return o.sigmoid() * c / n, c, n

    return step


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exponential"])
def test_slstm_computes_the_published_equations(forget_gate, heads):
    H, L = 6, 2
    options = {"forget_gate": forget_gate, "num_heads": heads}
    module = nn.SLSTM(I, H, L, bidirectional=True, dtype=torch.float64, **options)
    x = torch.randn(6, 3, I, dtype=torch.float64)
    h0, c0, n0, m0 = (torch.randn(3, H, dtype=torch.float64, requires_grad=True) for _ in range(4))
    n0.data.abs_()
    for state in ((h0, c0, n0, m0), None):
        y, (h, c, n, m) = module(x, state and tuple(s.expand(2 * L, 3, H) for s in state))
        at_first = (
            (torch.zeros(3, H, dtype=torch.float64),) * 3 if state is None else (h0, c0 * m0.exp(), n0 * m0.exp())
        )
        want, *last = two_layers_by_hand(module, x, slstm_step(forget_gate, heads), at_first)
        assert_same((y, h, c * m.exp(), n * m.exp()), (want, *last))
        assert n.min() >= min(1, n0.min() if state else 1)
        inputs = [*(state or ()), *module.parameters()]
        for ours, theirs in ((y.square().sum(), want.square().sum()), ((n * m.exp()).sum(), last[2].sum())):
            found = torch.autograd.grad(ours, inputs, retain_graph=True, materialize_grads=True)
            assert_same(found, torch.autograd.grad(theirs, inputs, retain_graph=True, materialize_grads=True))
    weights, numpy = list(module.parameters()), fastrnn.numpy.SLSTM.from_torch(module)
    assert_same(functional.slstm(x, None, weights, bidirectional=True, **options), module(x), rtol=0, atol=0)
    assert_same([torch.from_numpy(a) for a in numpy(x.numpy())[1]], module(x)[1], rtol=0, atol=0)
    assert_same(pickle.loads(pickle.dumps(module))(x), module(x), rtol=0, atol=0)
    alone = nn.SLSTM(I, H, **options)
    steps, end = (alone.stepper(3), fastrnn.numpy.SLSTM.from_torch(alone).stepper(3)), alone(x.float())
    for t in range(6):
        a, b = steps[0](x[t].float()), steps[1](x[t].float().numpy())
        for step in steps:
            step.state = step.state
    assert torch.equal(a, end[0][5]) and torch.equal(torch.from_numpy(b), a)
    assert_same(steps[0].state, end[1], rtol=0, atol=0)
    from fastrnn._device_stepper import DeviceStepper

    step = DeviceStepper(alone._cell(), [(*(w.detach() for w in alone._flat_weights), None)], 3, num_heads=heads)
    for t in range(6):
        a = step(x[t].float())
    step.state = step.state
    assert torch.equal(a, end[0][5]) and torch.equal(step.state[3], end[1][3])


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exponential"])
def test_slstm_stays_finite_where_its_exponentials_do_not(forget_gate):
    module, x = nn.SLSTM(1, 2, forget_gate=forget_gate), torch.ones(50, 3, 1, requires_grad=True)
    for size in (100.0, -100.0, 1e4, -1e4):
        with torch.no_grad():
            module.weight_ih_l0[:2], module.weight_ih_l0[2:4] = size, -size / 3
        y, last = module(x, reset_mask=torch.arange(150).view(50, 3) % 7 == 0)
        found = torch.autograd.grad(y.sum(), [x, *module.parameters()])
        assert all(t.isfinite().all() for t in (y, *last, *found)) and y.abs().max() <= 1, size


def test_states_of_an_slstm():
    module, x = nn.SLSTM(I, H, 2, bidirectional=True), torch.randn(6, 3, I)
    y, last, states = module(x, lengths=[6, 0, 4], return_states=True, return_gates=True)
    assert torch.equal(states.h[1], y) and states.gates[0].shape == (6, 3, 2, 4, H)
    for steps, ends in zip((states.c, states.n, states.m), last[1:]):
        assert torch.equal(steps[1][3, 2, :H], ends[2, 2]) and torch.equal(steps[1][0, 0, H:], ends[3, 0])
        assert not steps[0][4:, 2].any()
    n = states.n[0].unflatten(-1, (2, H))
    assert torch.allclose(n[1:, 0, 0], states.gates[0][1:, 0, 0, 1] * n[:-1, 0, 0] + states.gates[0][1:, 0, 0, 0])
    assert functional.slstm(x[:, 0], None, nn.SLSTM(I, H)._flat_weights, return_states=True)[2].m[0].shape == (6, H)
    half = nn.SLSTM(I, H, dtype=torch.bfloat16)
    assert [s.dtype for s in half(x.bfloat16())[1]] == [torch.bfloat16] * 4
    start = [torch.rand(1, 3, H) for _ in range(4)]
    one = nn.SLSTM(I, H, reset_to="initial")
    zero = torch.zeros(1, 3, H)
    assert_same(one(x, (start[0], None, start[2], None)), one(x, (start[0], zero, start[2], zero)), rtol=0, atol=0)
    mask = torch.zeros(6, 3, dtype=torch.bool)
    mask[2] = True
    assert torch.equal(one(x, tuple(start), reset_mask=mask)[0][2:], one(x[2:], tuple(start))[0])


def test_errors_of_slstm():
    x, weights = torch.ones(2, 1, I), nn.SLSTM(I, H)._flat_weights
    states = [torch.ones(1, 1, H)] * 4
    for make in (nn.SLSTM, lambda *a, **k: functional.slstm(x, None, weights, **k)):
        with pytest.raises(ValueError, match="forget_gate is 'tanh', expected 'sigmoid' or 'exponential'"):
            make(I, H, forget_gate="tanh")
        with pytest.raises(ValueError, match="num_heads is 2, expected a divisor of the hidden size, 7"):
            make(I, H, num_heads=2)
    for bad in (states[:2], states * 2):
        for call in (partial(functional.slstm, x, bad, weights), partial(nn.SLSTM(I, H), x, bad)):
            with pytest.raises(
                fastrnn.ShapeError, match=rf"slstm: state has {len(bad)} entries, expected 4: \(h0, c0, n0, m0\)"
            ):
                call()
        with pytest.raises(fastrnn.ShapeError, match="slstm: state has . entries, expected 4"):
            fastrnn.ops.rnn_layer("slstm", x, weights, bad)
    with pytest.raises(fastrnn.DTypeError, match=r"slstm: state is a Tensor, expected a tuple \(h0, c0, n0, m0\)"):
        functional.slstm(x, states[0], weights)
    for k, name in enumerate(("h0", "c0", "n0", "m0")):
        bad = [*states[:k], torch.ones(1, 2, H), *states[k + 1 :]]
        with pytest.raises(
            fastrnn.ShapeError, match=rf"slstm: {name} has shape \(1, 2, 7\), expected .* = \(1, 1, 7\)"
        ):
            functional.slstm(x, bad, weights)
        bad[k] = states[k].double()
        with pytest.raises(fastrnn.DTypeError, match=f"slstm: {name} has dtype torch.float64, expected torch.float32"):
            functional.slstm(x, bad, weights)
    noise = Noise(1, (0.0, 0.5), True)
    with pytest.raises(ValueError, match="slstm: zoneout of c is 0.5, expected 0: c, n, m of slstm cannot be blended"):
        fastrnn.ops.rnn_layer("slstm", x, weights, noise=noise)
    with pytest.raises(fastrnn.ShapeError, match="slstm: state is list, expected a tuple"):
        fastrnn.numpy.SLSTM(weights)(x.numpy(), [1])
    step = nn.SLSTM(I, H).stepper(2)
    with pytest.raises(fastrnn.ShapeError, match=r"stepper: state has 2 entries, expected 4: \(h, c, n, m\)"):
        step.state = (torch.ones(1, 2, H),) * 2
    with pytest.raises(
        ValueError, match="slstm: return_states is True with checkpoint_every=2, expected one of the two"
    ):
        nn.SLSTM(I, H, checkpoint_every=2)(x, return_states=True)
    with pytest.raises(TypeError, match="to_torch: 0 is a SLSTM, which torch.nn does not have"):
        fastrnn.to_torch(torch.nn.Sequential(nn.SLSTM(I, H)))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_augru_computes_the_published_equations(bidirectional):
    module = nn.AUGRU(I, H, bidirectional=bidirectional)
    x, a = torch.randn(6, 3, I), torch.rand(6, 3, requires_grad=True)
    D = 1 + bidirectional
    h0 = torch.randn(D, 3, H)
    sides, lasts = [], []
    for d, end in enumerate(("", "_reverse")[:D]):
        w, r, b, c = (getattr(module, f"{name}_l0{end}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h, steps = h0[d], []
        for t in range(6)[:: -1 if d else 1]:
            (xr, xz, xn), (hr, hz, hn) = F.linear(x[t], w, b).chunk(3, -1), F.linear(h, r, c).chunk(3, -1)
            n, u = (xn + (xr + hr).sigmoid() * hn).tanh(), a[t, :, None] * (1 - (xz + hz).sigmoid())
            h = (1 - u) * h + u * n
            steps.append(h)
        sides.append(torch.stack(steps[:: -1 if d else 1]))
        lasts.append(h)
    want = torch.cat(sides, -1)
    y, h = module(x, a, h0)
    assert_same((y, h), (want, torch.stack(lasts)))
    inputs = [a, *module.parameters()]
    found = torch.autograd.grad(y.square().sum(), inputs)
    assert_same(found, torch.autograd.grad(want.square().sum(), inputs), rtol=1e-4, atol=1e-5)
    weights = list(module.parameters())
    assert torch.equal(functional.augru(x, a, h0, weights, bidirectional=bidirectional)[0], y)
    ours = fastrnn.numpy.AUGRU.from_torch(module)
    arrays = [t.detach().numpy() for t in (x, a, h0)]
    assert torch.equal(torch.from_numpy(ours(*arrays)[0]), y)
    lengths = torch.tensor([6, 0, 4])
    short = module(x, a, h0, lengths=lengths)[0]
    assert torch.allclose(short[:4, 2], module(x[:4, 2:], a[:4, 2:], h0[:, 2:])[0][:, 0], atol=1e-6)
    if not bidirectional:
        step, other = module.stepper(3), ours.stepper(3)
        from_zero = module(x, a)[0]
        for t in range(6):
            wide = torch.cat((x[t], a[t, :, None].detach()), -1)
            assert torch.equal(step(wide), from_zero[t]) and torch.equal(
                torch.from_numpy(other(wide.numpy())), from_zero[t]
            )


def test_augru_forms_and_errors():
    gru, x = torch.nn.GRU(I, H, batch_first=True), torch.randn(3, 6, I)
    module = nn.AUGRU(I, H, batch_first=True)
    module.load_state_dict(gru.state_dict())
    assert_same(module(x, torch.ones(3, 6)), gru(x))
    y, h = module(x, torch.zeros(3, 6), torch.full((1, 3, H), 0.5))
    assert (y == 0.5).all() and (h == 0.5).all()
    a = torch.rand(3, 6)
    y, _, states = module(x, a, return_gates=True)
    assert torch.equal(states.gates[0][..., 3, :], a[..., None, None].expand(3, 6, 1, H))
    assert_same(module(x[0], a[0])[0], y[0])
    small = nn.AUGRU(2, 3, bias=False, dtype=torch.float64)
    inputs = [torch.rand(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2, 2), (3, 2))]
    assert torch.autograd.gradcheck(lambda x, a: small(x, a)[0], inputs)
    assert torch.autograd.gradgradcheck(lambda x, a: small(x, a)[0], inputs)
    for bad, text in (
        (a[:2], r"attention has shape \(2, 6\), expected \(B, T\) = \(3, 6\)"),
        (a.double(), "attention has dtype"),
    ):
        with pytest.raises(ValueError, match=f"augru: {text}"):
            module(x, bad)
    with pytest.raises(fastrnn.ShapeError, match=r"augru: x has shape \(4,\), expected \(I,\) = \(5,\)"):
        module(x[..., :4], a)
    with pytest.raises(TypeError, match="augru: x is a PackedSequence"):
        module(torch.nn.utils.rnn.pack_sequence([x[0]]), a)
    with pytest.raises(fastrnn.ShapeError, match="augru: weights has 3 entries, expected 2 or 4"):
        functional.augru(x, a, None, list(gru.parameters())[:3])
    with pytest.raises(fastrnn.ShapeError, match=r"augru: weight_hh_l0 has shape"):
        functional.augru(x, a, None, [gru.weight_ih_l0, gru.weight_ih_l0])
    with pytest.raises(fastrnn.ShapeError, match="augru: attention has shape"):
        fastrnn.numpy.AUGRU.from_torch(module)(x.numpy(), a[:2].numpy())
    with pytest.raises(TypeError, match="is a AUGRU, which torch.nn does not have"):
        fastrnn.to_torch(module)


def normalised_step(kind, x, state, p):
    """The common form in torch: nn.LayerNorm over all gates of W x and of R h, and over c."""
    h = state[0]
    gx = F.layer_norm(F.linear(x, p["weight_ih"]), p["gain_ih"].shape, p["gain_ih"], p["bias_ih"])
    gh = F.layer_norm(F.linear(h, p["weight_hh"]), p["gain_hh"].shape, p["gain_hh"], p["bias_hh"])
    if kind == "LSTM":
        i, f, g, o = (gx + gh).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * F.layer_norm(c, (H,), p["gain_c"], p["bias_c"]).tanh()
        return (F.linear(h, p["weight_hr"]) if "weight_hr" in p else h), c
    (rx, zx, nx), (rh, zh, nh) = gx.chunk(3, -1), gh.chunk(3, -1)
    n = (nx + (rx + rh).sigmoid() * nh).tanh()
    z = (zx + zh).sigmoid()
    return ((1 - z) * n + z * h,)


@pytest.mark.parametrize("option", [{}, {"batch_first": True}, {"proj_size": 3}], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_layer_norm(kind, option):
    if kind == "GRU" and "proj_size" in option:
        pytest.skip("the GRU has no projection")
    torch.manual_seed(3)
    module = getattr(nn, kind)(I, H, num_layers=2, bidirectional=True, layer_norm=True, **option)
    for name, w in module.named_parameters():
        if name.startswith(("gain", "bias_c")):
            torch.nn.init.normal_(w)
    assert "layer_norm=True" in repr(module)
    x, out = torch.randn(6, 3, I), option.get("proj_size", H)
    states = torch.zeros(3, out), torch.zeros(3, H)
    want, *states = two_layers_by_hand(module, x, partial(normalised_step, kind), states)
    given = x.transpose(0, 1) if option.get("batch_first") else x
    y, last = module(given)
    y = y.transpose(0, 1) if option.get("batch_first") else y
    assert_same((y, *(last if kind == "LSTM" else (last,))), (want, *states), rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(y.square().sum(), list(module.parameters()), retain_graph=True)
    wanted = torch.autograd.grad(want.square().sum(), list(module.parameters()))
    assert_same(found, wanted, rtol=1e-3, atol=1e-4)
    ours = getattr(fastrnn.numpy, kind).from_torch(module)
    assert_same(torch.from_numpy(ours(given.numpy())[0]), module(given)[0], rtol=1e-4, atol=1e-5)
    call = getattr(functional, kind.lower())
    options = {"bidirectional": True, "batch_first": bool(option.get("batch_first")), "layer_norm": True}
    assert_same(call(given, None, module._flat_weights, **options), module(given), rtol=0, atol=0)
    alone = getattr(nn, kind)(I, H, layer_norm=True)
    step, other = alone.stepper(3), getattr(fastrnn.numpy, kind).from_torch(alone).stepper(3)
    for t in range(6):
        end, same = step(x[t]).clone(), other(x[t].numpy())
    assert torch.equal(end, alone(x)[0][5]) and torch.equal(torch.from_numpy(same), end)
    lengths = torch.tensor([6, 0, 4])
    padded = given.clone()
    beyond = torch.arange(6)[:, None] >= lengths
    padded[beyond.t() if option.get("batch_first") else beyond] = float("nan")
    y = module(padded, lengths=lengths)[0]
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), list(module.parameters())))
    assert getattr(nn, kind)(I, H, layer_norm=True, dtype=torch.bfloat16)(x.bfloat16())[0].dtype is torch.bfloat16


def test_errors_of_layer_norm():
    for kind in (nn.LSTM, nn.GRU):
        with pytest.raises(ValueError, match="bias is False with layer_norm=True, expected True"):
            kind(I, H, bias=False, layer_norm=True)
        with pytest.raises(ValueError, match="zoneout is 0.1 with layer_norm=True, expected 0"):
            kind(I, H, zoneout=0.1, layer_norm=True)
        with pytest.raises(TypeError, match="layer_norm=True, which torch.nn does not have"):
            fastrnn.to_torch(kind(I, H, layer_norm=True))
    with pytest.raises(ValueError, match="GRU: got layer_norm=True and reset_after=False, expected one of them"):
        nn.GRU(I, H, reset_after=False, layer_norm=True)
    with pytest.raises(ValueError, match="LSTM: got peepholes=True and layer_norm=True, expected one of them"):
        nn.LSTM(I, H, peepholes=True, layer_norm=True)
    with pytest.raises(fastrnn.ShapeError, match=r"gru: bias_hh_l0 has shape \(21,\), expected \(9\*H,\) = \(63,\)"):
        functional.gru(torch.ones(2, 1, I), None, nn.GRU(I, H)._flat_weights, layer_norm=True)
    with pytest.raises(fastrnn.ShapeError, match=r"lstm: bias_hh_l0 has shape \(28,\), expected \(14\*H,\) = \(98,\)"):
        fastrnn.numpy.LSTM(nn.LSTM(I, H).state_dict(), layer_norm=True)


def test_errors_of_the_family():
    with pytest.raises(ValueError, match="IndRNN: nonlinearity is 'sigmoid', expected 'relu' or 'tanh'"):
        nn.IndRNN(I, H, nonlinearity="sigmoid")
    with pytest.raises(fastrnn.ShapeError, match="indrnn: weights has 2 entries, expected 3 for each layer"):
        functional.indrnn(torch.ones(2, 1, I), None, [torch.ones(H, I), torch.ones(H)])
    with pytest.raises(fastrnn.ShapeError, match=r"indrnn: weight_hh has shape \(7, 7\), expected \(H,\) = \(7,\)"):
        functional.indrnn(torch.ones(2, 1, I), None, [torch.ones(H, I), torch.ones(H, H), torch.ones(H)])
    with pytest.raises(fastrnn.ShapeError, match="mingru: weights has 1 entries, expected 2 for each layer"):
        functional.mingru(torch.ones(2, 1, I), None, [torch.ones(2 * H, I)])
    with pytest.raises(fastrnn.ShapeError, match=r"minlstm: bias has shape \(7,\), expected \(3\*H,\) = \(21,\)"):
        functional.minlstm(torch.ones(2, 1, I), None, [torch.ones(3 * H, I), torch.ones(H)])
    with pytest.raises(fastrnn.ShapeError, match=r"fastrnn: bias_hh_l0 has shape \(7,\), expected \(3\*H,\) = \(21,\)"):
        functional.fastrnn(
            torch.ones(2, 1, I), None, [torch.ones(H, I), torch.ones(H, H), torch.ones(H), torch.ones(H)]
        )
    for kind in (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell):
        with pytest.raises(ValueError, match="recurrent_activation is 'relu', expected 'sigmoid' or 'hard_sigmoid'"):
            kind(I, H, recurrent_activation="relu")
    with pytest.raises(ValueError, match="LSTM: got peepholes=True and recurrent_activation='hard_sigmoid'"):
        nn.LSTM(I, H, peepholes=True, recurrent_activation="hard_sigmoid")
    with pytest.raises(TypeError, match="to_torch: 0 is a FastRNN, which torch.nn does not have"):
        fastrnn.to_torch(torch.nn.Sequential(nn.FastRNN(I, H)))
