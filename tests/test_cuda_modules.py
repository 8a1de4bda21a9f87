"""The CUDA engine through modules and steppers, and what it refuses, see test_cuda.py."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import Case  # noqa: E402
from cuda_cases import results  # noqa: E402
from torch.nn import init as nn_init  # noqa: E402

from fastrnn import DTypeError, ShapeError, _backends, _cuda_kernels, nn  # noqa: E402
from fastrnn._backprop import Backprop  # noqa: E402
from fastrnn._device_stepper import DeviceStepper  # noqa: E402
from fastrnn._noise import Noise  # noqa: E402


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *itertools.product(
            ["LSTM", "GRU", "RNN"], [{}, {"zoneout": 0.3, "recurrent_dropout": 0.2, "weight_dropout": 0.1}]
        ),
        ("LSTM", {"candidate_dropout": 0.3, "num_heads": 2}),
        ("GRU", {"candidate_dropout": 0.3, "candidate_dropout_per": "sequence"}),
        ("LSTM", {"reset_to": "initial", "learn_initial_state": True, "num_heads": 2, "zoneout": 0.2}),
        ("LSTM", {"reset_to": "initial", "learn_initial_state": True, "proj_size": 7}),
        ("LSTM", {"layer_norm": True, "recurrent_dropout": 0.2}),
        ("GRU", {"layer_norm": True, "reset_to": "initial", "learn_initial_state": True}),
        ("LSTM", {"layer_norm": True, "reset_to": "initial", "learn_initial_state": True, "proj_size": 7}),
    ],
    ids=str,
)
def test_modules_on_both_engines_agree(device, kind, options):
    def build():
        torch.manual_seed(3)
        module = getattr(nn, kind)(5, 20, num_layers=2, bidirectional=True, batch_first=True, **options)
        for name, p in module.named_parameters():
            if name.startswith("initial"):
                nn_init.normal_(p)
        return module

    module, x = build().to(device), torch.randn(3, 6, 5)
    own, lengths, resets = x.to(device).requires_grad_(), [6, 0, 3], torch.rand(3, 6).to(device) < 0.3

    def loss(module, x):
        torch.manual_seed(4)  # of the regularisers
        y, _, states = module(x, lengths=lengths, reset_mask=resets.to(x.device), return_states=True)
        sum(t.square().sum() for t in (y, *states.c)).backward()
        return y

    y = loss(module, own)
    found = {"y": y, "x": own.grad} | {n: p.grad for n, p in module.named_parameters()}
    with torch.no_grad():
        exact = build().double()
    wide = x.detach().double().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backends, "kernels_of", lambda t: _backends._kernels)
        want = loss(exact, wide)
    wanted = {"y": want, "x": wide.grad} | {n: p.grad for n, p in exact.named_parameters()}
    cases.assert_close({k: v.cpu() for k, v in found.items()}, wanted, 4e-5)


def test_packed_sequences(device):
    module = nn.GRU(4, 12).to(device)
    rows = [torch.randn(n, 4, device=device) for n in (2, 5, 3)]
    packed = torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    y, h = module(packed)
    for i, row in enumerate(torch.nn.utils.rnn.unpack_sequence(y)):
        alone, last = module(rows[i])
        torch.testing.assert_close(row, alone, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(h[:, i], last, atol=1e-6, rtol=1e-5)


def test_narrow_types_run_as_they_are(device):
    module = nn.LSTM(4, 16).to(device, torch.bfloat16)
    y, (h, c) = module(torch.randn(3, 2, 4, device=device, dtype=torch.bfloat16))
    assert {t.dtype for t in (y, h, c)} == {torch.bfloat16}
    with torch.autocast(device, torch.bfloat16):
        y, _ = nn.LSTM(4, 16).to(device)(torch.randn(3, 2, 4, device=device))
    assert y.dtype is torch.bfloat16


def test_backward_inside_autocast_is_not_narrowed(device):
    module = nn.LSTM(4, 16, proj_size=3).to(device)
    x = torch.randn(5, 3, 4, device=device, requires_grad=True)
    leaves = [x, *module.parameters()]
    want = torch.autograd.grad(module(x)[0].square().sum(), leaves)
    loss = module(x)[0].square().sum()
    with torch.autocast(device, torch.bfloat16):
        got = torch.autograd.grad(loss, leaves)
    assert all(map(torch.equal, got, want))


# torch warns about its own internals while it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiles_in_one_graph(device):
    module, x = nn.GRU(4, 12, bidirectional=True).to(device), torch.randn(5, 3, 4, device=device, requires_grad=True)
    lengths = torch.tensor([5, 0, 3], device=device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = []
    for call in (module, compiled):
        y, h = call(x, lengths=lengths)
        found.append([y, h, *torch.autograd.grad(y.square().sum() + h.sum(), [x, *module.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_padding_may_hold_nan(device):
    for kind in ("LSTM", "GRU"):
        for options in ({}, {"layer_norm": True}, {"reset_after": False})[: 2 + (kind == "GRU")]:
            module = getattr(nn, kind)(3, 10, bidirectional=True, **options).to(device)
            x = torch.randn(4, 2, 3, device=device)
            x[2:, 1] = float("nan")
            y, _ = module(x.requires_grad_(), lengths=[4, 2])
            y.square().sum().backward()
            assert all(p.grad.isfinite().all() for p in module.parameters())
            assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {"proj_size": 3}), ("LSTM", {"num_layers": 2}), ("LSTM", {"zoneout": (0.2, 0.4)}), ("GRU", {})],
)
def test_stepper_follows_the_module(device, kind, options):
    module = getattr(nn, kind)(4, 8, **options).to(device).eval()
    n = len(module.all_weights[0])
    layers = [(*w[:4], w[4] if n == 5 else None) for w in module.all_weights]
    zoneout = options.get("zoneout", (0.0, 0.0))
    step, x = DeviceStepper(module._cell(), layers, 2, zoneout), torch.randn(5, 2, 4, device=device)
    y, _ = module(x)
    for t in range(3):
        torch.testing.assert_close(step(x[t]), y[t], atol=1e-6, rtol=1e-5)
    kept = step.state
    after = step(x[3])
    step.state = kept
    assert torch.equal(step(x[3]), after)
    step.reset(torch.tensor([True, False], device=device))
    assert not (step.state[0] if kind == "LSTM" else step.state)[:, 0].any()
    step.reset()
    torch.testing.assert_close(step(x[0]), y[0], atol=1e-6, rtol=1e-5)


def test_stepper_names_bad_input(host):
    step = DeviceStepper("gru", [(*nn.GRU(4, 8)._flat_weights, None)])
    assert step(torch.ones(4)).shape == (8,)
    for call, kind, text in [
        (lambda: step(torch.ones(2, 4)), ShapeError, r"stepper: x has shape \(2, 4\), expected \(B, I\) = \(1, 4\)"),
        (lambda: step(torch.ones(1, 4).double()), DTypeError, "stepper: x has dtype torch.float64"),
        (lambda: step([1.0]), DTypeError, "stepper: x is a list, expected a torch.Tensor"),
        (lambda: step.reset(torch.ones(1)), DTypeError, "stepper: mask has dtype torch.float32"),
        (lambda: setattr(step, "state", torch.ones(1, 8)), ShapeError, "stepper: h0 has shape"),
        (lambda: DeviceStepper("gru", [], 0), ShapeError, "batch_size has B = 0"),
    ]:
        with pytest.raises(kind, match=text):
            call()


def test_what_the_machine_lacks_is_named(host):
    inputs = cases.make("gru", Case(3, 2, 4, 8))
    host.set_launches_fail(True)
    with pytest.raises(RuntimeError, match="rnn_forward: cudaError: the emulated launch has no resources"):
        cases.kernel(inputs)
    host.set_launches_fail(False)
    out = cases.kernel(inputs)
    host.set_launches_fail(True)
    with pytest.raises(RuntimeError, match="rnn_backward: cudaError: the emulated launch has no resources"):
        cases.gradients(inputs, out)
    host.set_capability(7)
    _cuda_kernels._plan.cache_clear()
    with pytest.raises(RuntimeError, match=r"cuda:0 has compute capability 7.x, expected 8.0 \(Ampere\) or newer"):
        cases.kernel(inputs)
    host.set_old_driver(True)
    assert host.error() == "cudaError: the emulated driver is too old"
    assert host.device_count() == 0


def test_what_the_engine_lacks_is_named(host):
    with pytest.raises(
        NotImplementedError, match="fastgrnn: zoneout, .* are not implemented on cuda, expected none of them"
    ):
        cases.kernel(cases.make("fastgrnn", Case(2, 1, 3, 4)), noise=Noise(1, (0.1, 0.0), True))
    with pytest.raises(NotImplementedError, match="fastgrnn: .* reset_to='initial', .* not implemented on cuda"):
        cases.kernel(cases.make("fastgrnn", Case(2, 1, 3, 4, reset=1.0, reset_to="initial")))
    with pytest.raises(
        NotImplementedError, match="lstm: recurrent_dropout with a projection is not implemented on cuda, expected 0"
    ):
        nn.LSTM(4, 8, proj_size=3, recurrent_dropout=0.1)(torch.ones(3, 2, 4))
    with pytest.raises(NotImplementedError, match="checkpoint_every of reset_after=False is not implemented on cuda"):
        cases.kernel(cases.make("gru_reset_before", Case(3, 2, 4, 8)), backprop=Backprop(checkpoint_every=1))
    with pytest.raises(ValueError, match="slstm: return_states is True with checkpoint_every=2, expected one of the"):
        nn.SLSTM(4, 8, checkpoint_every=2)(torch.ones(3, 2, 4), return_states=True)
    with pytest.raises(NotImplementedError, match="detach_mask with a projection is not implemented on cuda"):
        options = Backprop(detach_mask=torch.ones(3, 2, dtype=torch.bool))
        cases.kernel(cases.make("lstm", Case(3, 2, 4, 8, P=3)), backprop=options)


def test_lengths_are_clamped(host):
    inputs = cases.make("gru", Case(5, 3, 4, 8, D=2))
    inputs.lengths = torch.tensor([-3, 9, 2])
    found = results(inputs)
    inputs.lengths = inputs.lengths.clamp(0, 5)
    want = results(inputs)
    assert all(torch.equal(found[name], want[name]) for name in want)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_empty_batch(device, layer_norm):
    module = nn.LSTM(3, 8, layer_norm=layer_norm).to(device)
    y, (h, c) = module(torch.randn(2, 0, 3, device=device))
    assert (y.shape, h.shape, c.shape) == ((2, 0, 8), (1, 0, 8), (1, 0, 8))
    y.sum().backward()
    assert not any(p.grad.any() for p in module.parameters())


def test_more_steps_than_a_grid_has_blocks(device):
    T = 66_000
    module = nn.RNN(1, 8).to(device)
    x = torch.randn(T, 1, 1, device=device)
    with torch.no_grad():
        y, h = module(x)
        late, _ = module(x[-50:])  # a contracting network forgets
    torch.testing.assert_close(y[-1], h[0])
    torch.testing.assert_close(y[-1], late[-1], atol=1e-5, rtol=0)
