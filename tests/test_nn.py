"""The modules against torch.nn itself over its options, and everything that code written for torch.nn does to them."""

from __future__ import annotations

import copy
import io
import itertools
import os
import pickle

import pytest

torch = pytest.importorskip("torch")

from cases import assert_same, flatten  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import functional, nn  # noqa: E402

KINDS = ["LSTM", "GRU", "RNN"]
I, H = 5, 7
# torch says so once per process for LSTMs with a projection.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


def options():
    for kind, layers, bias, both, batch_first in itertools.product(KINDS, (1, 2), (True, False), (0, 1), (0, 1)):
        option = {"num_layers": layers, "bias": bias, "bidirectional": bool(both), "batch_first": bool(batch_first)}
        yield kind, option
        if kind == "LSTM":
            yield kind, option | {"proj_size": 3}
        if kind == "RNN":
            yield kind, option | {"nonlinearity": "relu"}


OPTIONS = list(options())


def name_of(value):
    return ",".join(f"{k}={v}" for k, v in value.items() if v) if isinstance(value, dict) else str(value)


def pair(kind: str, *args, **kwargs):
    """torch's module and ours, made from the same seed."""
    made = []
    for package in (torch.nn, nn):
        torch.manual_seed(3)
        made.append(getattr(package, kind)(*args, **kwargs))
    return made


def state_for(module, *batch: int):
    """A state of the module's own shape, through its first output."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(rows, *batch, module.proj_size or H)
    return (h, torch.randn(rows, *batch, H)) if module.mode == "LSTM" else h


@pytest.mark.parametrize(("kind", "option"), OPTIONS, ids=name_of)
def test_matches_torch(kind, option):
    theirs, ours = pair(kind, I, H, **option)
    assert repr(ours).replace(", nonlinearity=relu", "") == repr(theirs)
    assert_same(list(ours.state_dict().values()), list(theirs.state_dict().values()), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict()) and ours.mode == theirs.mode
    shape = (3, 4, I) if option["batch_first"] else (4, 3, I)
    rows = [torch.randn(n, I) for n in (2, 4, 3)]
    calls = {
        "plain": (torch.randn(shape),),
        "state": (torch.randn(shape), state_for(ours, 3)),
        "unbatched": (torch.randn(4, I), state_for(ours)),
        "packed": (pack_sequence(rows, enforce_sorted=False), state_for(ours, 3)),
        "packed, sorted": (pack_sequence(sorted(rows, key=len, reverse=True)),),
    }
    for args in calls.values():
        found = []
        for module in (ours, theirs):
            inputs = [t.clone().requires_grad_() for t in flatten(args) if t.dtype is torch.float32]
            rebuilt = rebuild(args, iter(inputs))
            out = module(*rebuilt)
            outs = [o for o in flatten(out) if o.is_floating_point()]
            value = sum((o * torch.linspace(-1, 1, o.numel()).view_as(o)).sum() for o in outs)
            found.append((out, torch.autograd.grad(value, [*inputs, *module.parameters()])))
        assert_same(found[0][0], found[1][0])
        assert_same(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


def rebuild(args, leaves):
    """args with its float tensors replaced, in order."""
    if isinstance(args, torch.Tensor):
        return next(leaves) if args.dtype is torch.float32 else args
    if isinstance(args, PackedSequence):
        return PackedSequence(next(leaves), *args[1:])
    return tuple(rebuild(a, leaves) for a in args)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_match_torch(kind, bias):
    theirs, ours = pair(kind + "Cell", I, H, bias)
    assert repr(ours) == repr(theirs)
    assert_same(list(ours.parameters()), list(theirs.parameters()), rtol=0, atol=0)
    for x in (torch.randn(3, I), torch.randn(I)):
        with torch.no_grad():
            state = theirs(x)
            assert_same(ours(x), state)
            assert_same(ours(x, state), theirs(x, state))
        assert_same(ours(x), state)
        out, want = ours(x, state), theirs(x, state)
        assert_same(out, want)
        total, expected = (sum(o.square().sum() for o in flatten(v)) for v in (out, want))
        got = torch.autograd.grad(total, list(ours.parameters()), retain_graph=True)
        want = torch.autograd.grad(expected, list(theirs.parameters()), retain_graph=True)
        assert_same(got, want, rtol=1e-4, atol=1e-5)


def test_cells_have_every_variant():
    x, h = torch.randn(3, I), torch.randn(3, H)
    for cell, name in (
        (nn.GRUCell(I, H, reset_after=False), "gru_reset_before"),
        (nn.RNNCell(I, H, nonlinearity="relu"), "rnn_relu"),
        (nn.RNNCell(I, H, nonlinearity="sigmoid"), "rnn_sigmoid"),
        (nn.LSTMCell(I, H, coupled=True), "lstm_cifg"),
        (nn.LSTMCell(I, H, recurrent_activation="hard_sigmoid"), "lstm_hard"),
        (nn.GRUCell(I, H, recurrent_activation="hard_sigmoid"), "gru_hard"),
    ):
        states = (h, h.tanh())[: fastrnn.reference.STATES[name]]
        _, want = fastrnn.reference.layer(name, x[None], cell._weights(), [s[None] for s in states])
        assert_same(cell(x, states if len(states) == 2 else h), tuple(s[0] for s in want))


def test_layers_have_every_variant():
    x = torch.randn(6, 3, I)
    for module, name in (
        (nn.GRU(I, H, bidirectional=True, reset_after=False), "gru_reset_before"),
        (nn.RNN(I, H, bidirectional=True, nonlinearity="sigmoid"), "rnn_sigmoid"),
        (nn.LSTM(I, H, bidirectional=True, coupled=True), "lstm_cifg"),
        (nn.LSTM(I, H, bidirectional=True, coupled=True, proj_size=3), "lstm_cifg"),
        (nn.LSTM(I, H, bidirectional=True, peepholes=True), "lstm_peephole"),
        (nn.LSTM(I, H, bidirectional=True, peepholes=True, bias=False, proj_size=3), "lstm_peephole"),
        (nn.LSTM(I, H, bidirectional=True, recurrent_activation="hard_sigmoid", proj_size=3), "lstm_hard"),
        (nn.GRU(I, H, bidirectional=True, recurrent_activation="hard_sigmoid"), "gru_hard"),
        (
            nn.GRU(I, H, bidirectional=True, reset_after=False, recurrent_activation="hard_sigmoid"),
            "gru_reset_before_hard",
        ),
    ):
        y, last = module(x)
        want, states = fastrnn.reference.layer(name, x, module._flat_weights, directions=2)
        assert_same((y, *(last if isinstance(last, tuple) else (last,))), (want, *states))
        again = copy.deepcopy(module)
        again.load_state_dict(module.state_dict())
        assert_same(pickle.loads(pickle.dumps(again))(x), (y, last), rtol=0, atol=0)
    for option in ({"coupled": True}, {"peepholes": True}, {"recurrent_activation": "hard_sigmoid"}):
        module = nn.LSTM(I, H, 2, **option)
        assert "{}={}".format(*next(iter(option.items()))) in repr(module)
        assert_same(functional.lstm(x, None, module._flat_weights, **option), module(x), rtol=0, atol=0)
        ours = fastrnn.numpy.LSTM.from_torch(module)(x.numpy())[0]
        assert torch.equal(torch.from_numpy(ours), module(x)[0])
        step = module.stepper(3)
        for t in range(3):
            y = step(x[t])
        assert torch.equal(y, module(x)[0][2])
        module(x)[0].square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    with pytest.raises(ValueError, match="LSTM: got coupled=True and peepholes=True, expected one of them at most"):
        nn.LSTM(I, H, coupled=True, peepholes=True)
    assert nn.LSTM(I, H, peepholes=True).weight_peephole_l0.shape == (3 * H,)
    module = nn.LSTM(I, H, 2, coupled=True)
    assert module.weight_ih_l0.shape == (3 * H, I)
    with pytest.raises(fastrnn.ShapeError, match=r"lstm: weight_ih_l0 has shape \(21, 5\), expected"):
        functional.lstm(x, None, module._flat_weights)


# ---- ragged batches and resets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_equal_packing(kind, batch_first):
    _, module = pair(kind, I, H, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn((4, 6, I) if batch_first else (6, 4, I))
    lengths = torch.tensor([3, 6, 1, 4])
    state = state_for(module, 4)
    packed, last = module(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False), state)
    want, _ = pad_packed_sequence(packed, batch_first)
    for given in (lengths, lengths.tolist(), lengths.int(), lengths.to(torch.uint8), lengths.numpy(), (3, 6, 1, 4)):
        assert_same(module(x, state, lengths=given), (want, last), rtol=0, atol=0)


def test_zero_lengths():
    module = nn.LSTM(I, H, 2, bidirectional=True)
    h, c = state_for(module, 3)
    y, (h_n, c_n) = module(torch.randn(4, 3, I), (h, c), lengths=[0, 4, 0])
    assert not y[:, [0, 2]].any() and y[:, 1].any()
    assert torch.equal(h_n[:, [0, 2]], h[:, [0, 2]]) and torch.equal(c_n[:, [0, 2]], c[:, [0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_resets_in_every_form(kind):
    module = nn.__dict__[kind](I, H, 2, bidirectional=True)
    x, mask = torch.randn(6, 3, I), torch.rand(6, 3) < 0.3
    want = module(x, reset_mask=mask)
    first = copy.deepcopy(module)
    first.batch_first = True
    y, last = first(x.transpose(0, 1), reset_mask=mask.t())
    assert_same((y.transpose(0, 1), last), want, rtol=0, atol=0)
    y, last = module(x[:, 1], reset_mask=mask[:, 1])
    assert_same(y, want[0][:, 1], rtol=0, atol=0)
    lengths = torch.tensor([2, 6, 5])
    packed, last = module(pack_padded_sequence(x, lengths, enforce_sorted=False), reset_mask=mask)
    assert_same((pad_packed_sequence(packed)[0], last), module(x, lengths=lengths, reset_mask=mask), rtol=0, atol=0)
    every = torch.ones(6, 3, dtype=torch.bool)
    single, _ = nn.__dict__[kind].forward(first, x.reshape(18, 1, I))  # batch_first: 18 rows of one step
    assert_same(module(x, reset_mask=every)[0], single.reshape(6, 3, 2 * H), rtol=0, atol=0)


# ---- dropout, dtypes, autocast


def test_dropout_between_layers():
    for kind in KINDS:
        theirs, ours = pair(kind, I, H, 3, dropout=0.5)
        x = torch.randn(4, 3, I)
        torch.manual_seed(5)
        want = theirs(x)
        torch.manual_seed(5)
        assert_same(ours(x), want)  # torch drops the same elements
        assert not torch.equal(ours(x)[0], ours(x)[0])
        assert_same(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_double(kind):
    theirs, ours = pair(kind, I, H, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 3, I, dtype=torch.float64)
    assert_same(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    assert ours.float()(x.float())[0].dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_dtypes_keep_the_state_in_float32(kind, dtype):
    module = getattr(nn, kind)(16, 32, 2, batch_first=True).to(dtype)
    exact = copy.deepcopy(module).double()
    x = torch.randn(3, 50, 16).to(dtype).requires_grad_()
    y, last = module(x)
    want, _ = exact(x.detach().double())
    assert y.dtype is dtype and all(t.dtype is dtype for t in flatten(last))
    half_ulp = torch.finfo(dtype).eps / 2
    assert (y.double() - want).abs().max() <= half_ulp * 1.01 + 1e-6  # |y| <= 1: rounded once, at the end
    grads = torch.autograd.grad(y.float().square().sum(), [x, *module.parameters()])
    assert all(g.dtype is dtype and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    theirs, ours = pair(kind, I, H, 2)
    x = torch.randn(4, 3, I)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = ours(x), theirs(x)
        assert all(t.dtype is torch.bfloat16 for t in flatten(got))  # torch's GRU answers in float32 on a CPU
        assert_same([t.float() for t in flatten(got)], [t.float() for t in flatten(want)], rtol=0, atol=0.02)
        again = ours(x, got[1])  # a bfloat16 state goes back in
        cell = getattr(nn, kind + "Cell")(I, H)
        assert flatten(cell(x[0]))[0].dtype is torch.bfloat16
    again[0].float().sum().backward()
    assert all(p.grad.dtype is torch.float32 for p in ours.parameters())
    double = copy.deepcopy(ours).double()
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        assert double(x.double())[0].dtype is torch.float64


# ---- what is done to modules


@pytest.fixture(params=KINDS)
def module(request):
    return getattr(nn, request.param)(I, H, 2, bidirectional=True)


def test_copies_and_files(module):
    x = torch.randn(4, 3, I)
    want = module(x)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other = type(module)(I, H, 2, bidirectional=True)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for each in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert_same(each(x), want, rtol=0, atol=0)
        with torch.no_grad():
            each.weight_hh_l1.zero_()
        assert not torch.equal(each(x)[0], want[0])
        assert_same(module(x), want, rtol=0, atol=0)


def test_weights_are_read_at_each_call(module):
    x = torch.randn(4, 3, I)
    other = type(module)(I, H, 2, bidirectional=True)
    want = other(x)
    state = other.state_dict()
    assert_same(torch.func.functional_call(module, state, (x,)), want, rtol=0, atol=0)
    loaded = copy.deepcopy(module)
    loaded.load_state_dict(state, assign=True)
    assert loaded.weight_hh_l0 is not module.weight_hh_l0
    assert_same(loaded(x), want, rtol=0, atol=0)
    replaced = copy.deepcopy(module)
    for name, p in replaced.named_parameters():
        p.data = state[name].t().contiguous().t() if p.ndim == 2 else state[name]
    assert_same(replaced(x), want, rtol=0, atol=0)
    set_anew = copy.deepcopy(module)
    for name in state:
        setattr(set_anew, name, torch.nn.Parameter(state[name].clone()))
    assert_same(set_anew(x), want, rtol=0, atol=0)
    assert_same(set_anew.share_memory()(x), want, rtol=0, atol=0)
    assert [w.data_ptr() for ws in set_anew.all_weights for w in ws] == [p.data_ptr() for p in set_anew.parameters()]
    assert set_anew.flatten_parameters() is None


def test_parametrizations(module):
    x = torch.randn(4, 3, I)
    want = module(x)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    assert_same(module(x), want)
    module.parametrizations.weight_hh_l0.original0.data.mul_(2)
    assert not torch.allclose(module(x)[0], want[0])
    module(x)[0].sum().backward()
    assert module.parametrizations.weight_hh_l0.original1.grad.any()
    copied = copy.deepcopy(module)
    assert_same(copied(x), module(x), rtol=0, atol=0)


def test_training_lowers_the_loss_and_buffers_follow_dtype(module):
    x, target = torch.randn(6, 8, I), torch.randn(6, 8, 2 * H).clamp(-0.9, 0.9)
    target = target.abs() if isinstance(module, nn.RNN) else target
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss = (module(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_empty_batch(module):
    y, last = module(torch.randn(4, 0, I))
    assert y.shape == (4, 0, 2 * H) and flatten(last)[0].shape == (4, 0, H)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_stepper_gives_the_bits_of_the_module(kind, bias):
    more = {"proj_size": 3} if kind == "LSTM" else {}
    module = getattr(nn, kind)(I, H, 2, bias=bias, **more)
    x = torch.randn(6, 3, I)
    with torch.no_grad():
        want, _ = module(x)
    step = module.stepper(3)
    assert torch.equal(torch.stack([step(row).clone() for row in x]), want)
    cell = getattr(nn, kind + "Cell")(I, H, bias)
    step, state = cell.stepper(3), None
    for row in x:
        with torch.no_grad():
            state = cell(row, state)
        assert torch.equal(step(row), flatten(state)[0])


def test_functional_infers_layers_and_options():
    for kind, option in OPTIONS:
        option = dict(option)
        module = getattr(nn, kind)(I, H, **option)
        x = torch.randn(3, 4, I)
        call = {"LSTM": functional.lstm, "GRU": functional.gru, "RNN": functional.rnn}[kind]
        known = {k: v for k, v in option.items() if k in ("bidirectional", "batch_first", "nonlinearity")}
        state = state_for(module, x.shape[0 if option["batch_first"] else 1])
        assert_same(call(x, state, module._flat_weights, **known), module(x, state), rtol=0, atol=0)
    x, weights = torch.randn(3, 4, I), nn.GRU(I, H)._flat_weights
    after, before = functional.gru(x, None, weights), functional.gru(x, None, weights, reset_after=False)
    assert not torch.allclose(after[0], before[0])
    deep = nn.RNN(I, H, 3)._flat_weights
    torch.manual_seed(0)
    a, _ = functional.rnn(x, None, deep, dropout=0.5, training=True)
    b, _ = functional.rnn(x, None, deep, dropout=0.5)
    assert not torch.allclose(a, b)


# ---- DistributedDataParallel


def _ddp_worker(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    data = torch.load(f"{folder}/data.pt", weights_only=True)
    model = nn.LSTM(I, H, 2, bidirectional=True)
    model.load_state_dict(data["weights"])
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    y, _ = ddp(data["x"][:, rank::2])
    y.square().mean().backward()
    torch.save({n: p.grad for n, p in model.named_parameters()}, f"{folder}/grads{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that leaves in the ordinary way, with any module


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
def test_distributed_data_parallel(tmp_path):
    model, x = nn.LSTM(I, H, 2, bidirectional=True), torch.randn(4, 6, I)
    torch.save({"weights": model.state_dict(), "x": x}, tmp_path / "data.pt")
    torch.multiprocessing.spawn(_ddp_worker, (str(tmp_path),), nprocs=2)
    model(x)[0].square().mean().backward()
    first, second = (torch.load(tmp_path / f"grads{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, p in model.named_parameters():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], p.grad)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_stepper_reads_any_tensor(exchange, monkeypatch):
    """With DLPack's C interface (torch 2.10 and later) and without it."""
    if not exchange:
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", None, raising=False)
    module = nn.LSTM(I, H)
    x = torch.randn(8, 2, I)
    want = module(x)[0]
    step = module.stepper(2)
    bytes_of = bytearray(4 * 2 * I + 1)
    shifted = torch.frombuffer(bytes_of, dtype=torch.float32, count=2 * I, offset=1).view(2, I).copy_(x[4])
    wide = torch.zeros(2, 2 * I)
    wide[:, ::2] = x[2]
    given = [
        x[0], x[1].t().contiguous().t(), wide[:, ::2], torch._neg_view(-x[3]), shifted, x[5].clone().requires_grad_(),
        torch.nn.Parameter(x[6].clone()), x[7:8].expand(1, 2, I)[0],
    ]  # fmt: skip
    for t, row in enumerate(given):
        assert torch.equal(step(row), want[t]), t
    for bad, kind in ((x[0].double(), fastrnn.DTypeError), (x[0, :1], fastrnn.ShapeError), (x, fastrnn.ShapeError)):
        with pytest.raises(kind, match="stepper: x has"):
            step(bad)
    freed = x[0].clone()
    freed.untyped_storage().resize_(0)
    for bad in (torch.empty(2, I, device="meta"), x[0].to_sparse(), x[0].to_mkldnn(), freed):
        with pytest.raises(fastrnn.DeviceError, match="stepper: x (is on meta|has layout|has a storage of 0 bytes)"):
            step(bad)
