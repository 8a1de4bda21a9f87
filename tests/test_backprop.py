"""checkpoint_every, grad_clip and detach_mask: what they do to gradients, and that they do nothing else."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import CELLS, TOLERANCE, WITH_C, Case  # noqa: E402

from fastrnn import _core, _oracle, functional, nn, ops  # noqa: E402
from fastrnn._backprop import Backprop  # noqa: E402
from fastrnn._cells import WITH_CANDIDATE  # noqa: E402
from fastrnn._noise import Noise  # noqa: E402

I, H = 5, 17
CLIPPED = [cell for cell in CELLS if _core.CELLS[cell]["product"] and not cell.endswith("_norm")]


def found(inputs: cases.Inputs, **options) -> dict[str, torch.Tensor]:
    out = cases.kernel(inputs, **options)
    return out | cases.gradients(inputs, out)


# So many rows that a chunk of backward is a few steps, and T is several segments and a bit.
LONG = [
    Case(29, 90, 3, 20, D=2, ragged=True, reset=0.2),
    Case(31, 90, 3, 16, batch_first=True, reset=0.2, reset_to="initial"),
    Case(29, 90, 3, 20, D=2, P=5, ragged=True),
]


@pytest.mark.parametrize("schedule", ["batch_split", "hidden_split"])
@pytest.mark.parametrize("case", LONG, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_checkpoints_give_the_same_bits(isa, cell, case, schedule):
    if case.P and cell not in WITH_C:
        pytest.skip("one state is never projected")
    inputs = cases.make(cell, case)
    chunk = _core.plan(cell, 4, case.T, case.B, case.I, case.H, case.P, case.D, True, 1)["chunk_steps"]
    assert 3 * chunk < case.T, "one segment shows nothing"
    options = {"schedule": schedule, "threads": 2}
    if not cell.endswith("_norm") and not case.P:
        options["noise"] = Noise(3, (0.3, 0.3 if cell in WITH_C else 0.0), True, None, 0.3 * (cell in WITH_CANDIDATE))
    want = found(inputs, **options)
    for every in (1, chunk + 1, 10_000):
        got = found(inputs, backprop=Backprop(checkpoint_every=every), **options)
        assert [name for name in want if not torch.equal(got[name], want[name])] == [], every


def test_checkpoints_take_little_memory():
    kept = []
    T, B = 4096, 16
    x = torch.randn(T, B, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        nn.LSTM(8, 64, checkpoint_every=128)(x)
        few = sum(kept)
        kept.clear()
        nn.LSTM(8, 64)(x)
    assert few < sum(kept) / 4


@pytest.mark.parametrize(("bound", "reset_to"), [(0.5, "zero"), (1e-3, "initial")])
@pytest.mark.parametrize("cell", CLIPPED)
def test_clipped_and_detached_gradients_match_the_oracle(isa, cell, bound, reset_to):
    case = Case(9, 7, 5, 33, D=2, ragged=True, reset=0.2, reset_to=reset_to)
    inputs = cases.make(cell, case)
    detach_mask = torch.rand(case.T, case.B, generator=torch.Generator().manual_seed(3)) < 0.3
    for options in (Backprop(grad_clip=bound), Backprop(detach_mask=detach_mask), Backprop(1, bound, detach_mask)):
        exact = inputs.to(torch.float64)
        want = cases.oracle(exact, backprop=options)
        want |= cases.gradients(exact, want)
        got, plain = found(inputs, backprop=options), found(inputs)
        for name in ("y", "h", "c"):
            assert name not in got or torch.equal(got[name], plain[name])
        cases.assert_close(got, want, TOLERANCE[torch.float32]["gradient"])
        assert not torch.allclose(got["dw_hh"], plain["dw_hh"], rtol=1e-3), "the options did nothing"


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "lstm_norm"])
def test_detaching_is_cutting_the_sequence(cell):
    """The gradients of two calls, the second from detached states."""
    inputs = cases.make(cell, Case(8, 3, 4, 16))
    cut = torch.zeros(8, 3, dtype=torch.bool)
    cut[5] = True
    y, _ = ops.rnn_layer(cell, inputs.x, inputs.weights, inputs.states, backprop=Backprop(detach_mask=cut))
    got = torch.autograd.grad(y.square().sum(), list(inputs))
    first, states = ops.rnn_layer(cell, inputs.x[:5], inputs.weights, inputs.states)
    second, _ = ops.rnn_layer(cell, inputs.x[5:], inputs.weights, [s.detach() for s in states])
    want = torch.autograd.grad(torch.cat((first, second)).square().sum(), list(inputs))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(got, want))


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_relu"])
def test_second_derivative(cell):
    inputs = cases.make(cell, Case(4, 2, 2, 3, D=2, ragged=True), torch.float64)
    options = Backprop(2, 0.05, torch.rand(4, 2, generator=torch.Generator().manual_seed(1)) < 0.4)
    args = (cell, inputs.x, *(*inputs.states, None)[:2], inputs.lengths, None, inputs.weights, 2, False)
    twice = []
    for y in (
        cases.kernel(inputs, backprop=options)["y"],
        _oracle.oracle(*args, backprop=options)[0],
    ):
        (g,) = torch.autograd.grad((y**3).sum(), inputs.x, create_graph=True)
        twice.append(torch.autograd.grad(g.square().sum(), list(inputs), materialize_grads=True))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*twice))


@pytest.mark.parametrize("form", ["batched", "batch_first", "unbatched", "packed", "bfloat16"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_modules_and_functions_take_them(name, form):
    """Two layers, two directions, in every form of x: the same gradients as with the mask in the usual place."""
    torch.manual_seed(0)
    first = form == "batch_first"
    module = getattr(nn, name)(I, H, 2, bidirectional=True, batch_first=first, checkpoint_every=2, grad_clip=0.01)
    assert "checkpoint_every=2, grad_clip=0.01" in repr(module)
    x, cut = torch.randn(7, 3, I), torch.rand(7, 3) < 0.3
    lengths = torch.tensor([4, 7, 5])
    if form == "bfloat16":
        module, x = module.bfloat16(), x.bfloat16()
    if form == "unbatched":
        y = module(x[:, 0], detach_mask=cut[:, 0])[0]
        want = module(x[:, :1], detach_mask=cut[:, :1])[0][:, 0]
    elif form == "packed":
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        y = torch.nn.utils.rnn.pad_packed_sequence(module(packed, detach_mask=cut)[0])[0]
        want = module(x, lengths=lengths, detach_mask=cut)[0]
    elif first:
        y = module(x.transpose(0, 1), detach_mask=cut.t())[0].transpose(0, 1)
        other = getattr(nn, name)(I, H, 2, bidirectional=True, grad_clip=0.01)
        other.load_state_dict(module.state_dict())
        want = other(x, detach_mask=cut)[0]
        named = dict(other.named_parameters())
        grads = torch.autograd.grad(want.float().square().sum(), list(named.values()))
        got = torch.autograd.grad(y.float().square().sum(), list(module.parameters()))
        assert all(map(torch.equal, got, grads))
        return
    else:
        y = module(x, detach_mask=cut)[0]
        options = {"checkpoint_every": 2, "grad_clip": 0.01, "detach_mask": cut}
        want = getattr(functional, name.lower())(x, None, module._flat_weights, bidirectional=True, **options)[0]
    grads = [torch.autograd.grad(out.float().square().sum(), list(module.parameters())) for out in (y, want)]
    assert torch.equal(y, want) and all(map(torch.equal, *grads))


def test_errors():
    x, mask = torch.randn(4, 2, I, requires_grad=True), torch.zeros(4, 2, dtype=torch.bool)
    lstm = nn.LSTM(I, H)
    for options, message in (
        ({"checkpoint_every": -1}, "LSTM: checkpoint_every is -1, expected a number of steps, or 0"),
        ({"checkpoint_every": 2.0}, "LSTM: checkpoint_every is 2.0, expected a number of steps"),
        ({"grad_clip": -0.5}, "LSTM: grad_clip is -0.5, expected a finite number above 0, or 0"),
        ({"grad_clip": float("nan")}, "LSTM: grad_clip is nan, expected a finite number"),
        ({"grad_clip": 1.0, "layer_norm": True}, "LSTM: grad_clip is 1.0 with layer_norm=True, expected 0"),
    ):
        with pytest.raises(ValueError, match=message):
            nn.LSTM(I, H, **options)
    for bad, error, message in (
        (mask[:3], ValueError, r"lstm: detach_mask has shape \(3, 2\), expected \(T, B\) = \(4, 2\)"),
        (mask.int(), TypeError, "lstm: detach_mask has dtype torch.int32, expected torch.bool"),
        ([1, 2], TypeError, "lstm: detach_mask is a list, expected a bool tensor"),
        (mask.to("meta"), ValueError, "lstm: detach_mask is on meta"),
    ):
        with pytest.raises(error, match=message):
            lstm(x, detach_mask=bad)
    with pytest.raises(ValueError, match="lstm: return_states is True with checkpoint_every=2, expected one"):
        nn.LSTM(I, H, checkpoint_every=2)(x, return_states=True)
    with pytest.raises(ValueError, match="grad_clip is 1.0, expected 0: indrnn_tanh has no recurrent product"):
        w = cases.make("indrnn_tanh", Case(4, 2, I, H)).weights
        ops.rnn_layer("indrnn_tanh", x, w, backprop=Backprop(grad_clip=1.0))
