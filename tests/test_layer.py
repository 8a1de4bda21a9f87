"""One layer against the oracle: outputs and every gradient by name, for each cell, instruction set, dtype and shape."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import BLOCKS, CASES, CELLS, HEADED, INITIAL, PROJECTED, TOLERANCE, WITH_C, Case  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import _kernels, _oracle, ops, reference, threads  # noqa: E402

CELL_CASES = [(cell, case) for cell in CELLS for case in CASES + INITIAL] + [
    (cell, case) for cells, some in ((WITH_C, PROJECTED), (BLOCKS, HEADED)) for cell in cells for case in some
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("cell", "case"), CELL_CASES, ids=[f"{cell}-{case}" for cell, case in CELL_CASES])
def test_matches_oracle(isa, cell, case, dtype):
    inputs = cases.make(cell, case, dtype)
    exact = inputs.to(torch.float64)
    want, got = cases.oracle(exact), cases.kernel(inputs)
    cases.assert_close(got, want, TOLERANCE[dtype]["output"])
    cases.assert_close(cases.gradients(inputs, got), cases.gradients(exact, want), TOLERANCE[dtype]["gradient"])
    with torch.no_grad():  # the inference path keeps no gates
        cases.assert_close(cases.kernel(inputs), want, TOLERANCE[dtype]["output"])


RANDOM = torch.Generator().manual_seed(7)


def random_case(k: int) -> tuple[str, Case]:
    def pick(*choices):
        return choices[torch.randint(len(choices), (), generator=RANDOM)]

    cell, H = pick(*CELLS), pick(1, 2, 3, 7, 16, 17, 33, 64, 65, 100)
    P = pick(0, 0, 1, 2, 16) if cell in WITH_C else 0
    case = Case(
        pick(1, 2, 3, 9, 20), pick(1, 2, 3, 7, 8, 13, 40), pick(1, 2, 5, 16, 31), H, D=pick(1, 2), P=P if P < H else 0,
        bias=pick(True, False), states=pick(True, False), ragged=pick(True, False), reset=pick(0.0, 0.0, 0.2, 0.9),
        batch_first=pick(True, False),
    )  # fmt: skip
    return cell, case


RANDOM_CASES = [random_case(k) for k in range(60)]


@pytest.mark.parametrize(("cell", "case"), RANDOM_CASES, ids=[f"{cell}-{case}" for cell, case in RANDOM_CASES])
def test_any_shape_matches_oracle(cell, case):
    inputs = cases.make(cell, case)
    exact = inputs.to(torch.float64)
    want, got = cases.oracle(exact), cases.kernel(inputs)
    cases.assert_close(got, want, TOLERANCE[torch.float32]["output"])
    wanted = cases.gradients(exact, want)
    magnified = cases.magnified(cell, case)
    cases.assert_close(cases.gradients(inputs, got), wanted, magnified * TOLERANCE[torch.float32]["gradient"])


BITS = [
    Case(9, 13, 17, 64, D=2, ragged=True, reset=0.2),
    Case(9, 1, 40, 130),
    Case(5, 7, 16, 33, D=2, reset=0.3, reset_to="initial"),
]


@pytest.mark.parametrize("case", BITS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_threads_and_schedules_give_the_same_bits(isa, cell, case):
    inputs = cases.make(cell, case)
    first = None
    for schedule in ("", "batch_split", "hidden_split"):
        for n in (1, 2, 3):
            out = cases.kernel(inputs, schedule=schedule, threads=n)
            found = out | cases.gradients(inputs, out)
            first = first or found
            different = [name for name in found if not torch.equal(found[name], first[name])]
            assert not different, (schedule, n, different)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_two_calls_gives_the_same_bits(isa, cell):
    inputs = cases.make(cell, Case(11, 5, 7, 33))
    with torch.no_grad():
        whole, last = ops.rnn_layer(cell, inputs.x, inputs.weights, inputs.states)
        for k in (1, 4, 10):
            a, states = ops.rnn_layer(cell, inputs.x[:k], inputs.weights, inputs.states)
            b, states = ops.rnn_layer(cell, inputs.x[k:], inputs.weights, states)
            assert torch.equal(torch.cat([a, b]), whole)
            assert all(map(torch.equal, states, last))


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_does_not_depend_on_its_neighbours(cell):
    inputs = cases.make(cell, Case(6, 13, 5, 33, D=2, ragged=True))
    with torch.no_grad():
        whole = cases.kernel(inputs)["y"]
        for rows in (slice(0, 1), slice(3, 8), slice(12, 13)):
            states = [s[:, rows] for s in inputs.states]
            y, _ = ops.rnn_layer(cell, inputs.x[:, rows], inputs.weights, states, inputs.lengths[rows], directions=2)
            assert torch.equal(y, whole[:, rows])


@pytest.mark.parametrize("cell", CELLS)
def test_resets_equal_separate_segments(cell):
    inputs = cases.make(cell, Case(10, 1, 5, 17, D=2))
    starts = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0, 0, 1], dtype=torch.bool)
    with torch.no_grad():
        y, last = ops.rnn_layer(cell, inputs.x, inputs.weights, inputs.states, None, starts[:, None], directions=2)
        bounds = [0, *starts.nonzero().flatten().tolist(), 10]
        parts, ends = [], []
        for a, b in zip(bounds, bounds[1:]):
            first, final = float(a == 0), float(b == 10)  # only the outer segments see the given state
            states = [torch.cat([s[:1] * first, s[1:] * final]) for s in inputs.states]
            part, end = ops.rnn_layer(cell, inputs.x[a:b], inputs.weights, states, directions=2)
            parts.append(part)
            ends.append(end)
    assert torch.equal(torch.cat(parts), y)
    for s, (at_start, at_end) in enumerate(zip(ends[0], ends[-1])):
        assert torch.equal(last[s], torch.cat([at_end[:1], at_start[1:]]))


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values, or for `expanded` the first row's, in other memory layouts."""
    T, B, I = x.shape
    wide = torch.full((T, 2 * B, I + 3), float("nan"), dtype=x.dtype)
    wide[:, ::2, 2:-1] = x
    return {
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced": wide[:, ::2, 2:-1],
        "last dimension strided": x.transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": x[:1, :1].expand(T, B, I),
        "negated view": torch._neg_view(-x),
    }


@pytest.mark.parametrize("layout", layouts(torch.zeros(2, 2, 2)))
def test_any_layout_of_x_and_of_the_gradient(layout):
    inputs = cases.make("gru", Case(5, 3, 7, 16))
    x = layouts(inputs.x.detach())[layout].requires_grad_()
    dense = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    up = layouts(torch.randn(5, 3, 16))[layout]
    found = []
    for each in (x, dense):
        y, _ = ops.rnn_layer("gru", each, inputs.weights, inputs.states)
        found.append((y, *torch.autograd.grad(y, [each, *inputs.weights], up)))
    assert all(map(torch.equal, *found))


def test_weights_with_a_negative_bit():
    inputs = cases.make("gru", Case(5, 3, 7, 16))
    y, _ = ops.rnn_layer("gru", inputs.x, [torch._neg_view(-w) for w in inputs.weights], inputs.states)
    assert torch.equal(y, cases.kernel(inputs)["y"])


def test_weights_and_states_that_are_views():
    inputs = cases.make("lstm", Case(5, 3, 7, 16))
    strided = [w.t().contiguous().t() if w.ndim == 2 else w.repeat_interleave(2)[::2] for w in inputs.weights]
    states = [s.transpose(1, 2).contiguous().transpose(1, 2) for s in inputs.states]
    y, _ = ops.rnn_layer("lstm", inputs.x, strided, states)
    want = cases.kernel(inputs)["y"]
    assert torch.equal(y, want)
    found = torch.autograd.grad(y.sum(), list(inputs))
    assert all(map(torch.equal, found, torch.autograd.grad(want.sum(), list(inputs))))


def test_misaligned_memory():
    inputs = cases.make("lstm", Case(5, 3, 7, 16))
    want = cases.kernel(inputs)
    shifted = [
        torch.frombuffer(bytearray(b"x" + t.detach().numpy().tobytes()), dtype=torch.float32, offset=1).view(t.shape)
        for t in inputs
    ]
    assert all(t.data_ptr() % 4 for t in shifted)
    y, states = ops.rnn_layer("lstm", shifted[0], shifted[3:], shifted[1:3])
    assert torch.equal(y, want["y"]) and torch.equal(states[1], want["c"])


def test_batch_first_copies_nothing(monkeypatch):
    inputs = cases.make("gru", Case(5, 3, 7, 16, batch_first=True))
    seen = []
    monkeypatch.setattr(_kernels, "_core_forward", lambda *args: seen.append(args))
    y, _ = ops.rnn_layer("gru", inputs.x, inputs.weights, batch_first=True)
    assert y.is_contiguous() and y.shape == (3, 5, 16)
    assert seen[0][8:11] == (inputs.x.data_ptr(), 7, 35)


def test_the_reserve_is_only_kept_for_a_gradient(monkeypatch):
    inputs = cases.make("gru", Case(5, 3, 7, 16))
    seen = []
    monkeypatch.setattr(_kernels, "_core_forward", lambda *args: seen.append(args[21]))
    cases.kernel(inputs)
    with torch.no_grad():
        cases.kernel(inputs)
    ops.rnn_layer("gru", inputs.x.detach(), [w.detach() for w in inputs.weights])
    assert seen[0] and seen[1:] == [0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_and_inf_go_where_the_oracle_says(isa, cell, value):
    inputs = cases.make(cell, Case(5, 3, 7, 17, D=2))
    with torch.no_grad():
        inputs.x[2, 1, 3] = value
        got, want = cases.kernel(inputs), cases.oracle(inputs)
        for name in got:
            assert torch.equal(got[name].isnan(), want[name].isnan()), name
            assert torch.equal(got[name].isinf(), want[name].isinf()), name
            assert got[name][:, [0, 2]].isfinite().all(), "another row was touched"


@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_the_padding_is_never_read(cell):
    inputs = cases.make(cell, Case(6, 4, 5, 16, D=2))
    inputs.lengths = torch.tensor([6, 0, 3, 1])
    padding = torch.arange(6)[:, None] >= inputs.lengths
    inputs.x.data[padding] = float("nan")
    out = cases.kernel(inputs)
    found = cases.gradients(inputs, out)
    assert all(t.isfinite().all() for t in (out | found).values())
    assert not out["y"][padding].any() and not found["dx"][padding].any()
    assert torch.equal(out["h"][:, 1], inputs.states[0][:, 1])


def test_an_empty_batch():
    for cell in CELLS:
        inputs = cases.make(cell, Case(3, 0, 5, 16, D=2))
        out = cases.kernel(inputs)
        assert out["y"].shape == (3, 0, 32)
        found = cases.gradients(inputs, out)
        assert all(not grad.any() for grad in found.values())


@pytest.mark.parametrize("cell", CELLS)
def test_rows_without_steps_leave_no_gradient_of_weights(isa, cell):
    inputs = cases.make(cell, Case(4, 3, 5, 20, D=2, ragged=True))
    cases.gradients(inputs, cases.kernel(inputs))  # whose sums are what the memory of the next call holds
    inputs.lengths = torch.zeros_like(inputs.lengths)
    found = cases.gradients(inputs, cases.kernel(inputs))
    weights = {name: g for name, g in found.items() if name.startswith(("dw", "db"))}
    assert weights and not any(g.any() for g in weights.values())


def test_a_freed_or_shrunk_storage_is_refused():
    for k in range(6):
        inputs = cases.make("gru", Case(4, 2, 3, 16))
        tensor = list(inputs)[k]
        tensor.untyped_storage().resize_(tensor.nbytes - 4)
        with pytest.raises(fastrnn.DeviceError, match="storage of"):
            cases.kernel(inputs)
        tensor.untyped_storage().resize_(0)
        with pytest.raises(fastrnn.DeviceError, match="storage of 0 bytes"):
            cases.kernel(inputs)


def test_check_mode_finds_a_wrong_kernel(monkeypatch):
    inputs = cases.make("lstm", Case(4, 2, 3, 16, D=2, ragged=True, reset=0.3))
    monkeypatch.setattr(_oracle, "CHECK", True)
    cases.gradients(inputs, cases.kernel(inputs))  # agrees
    out = cases.kernel(inputs)
    right = reference.CELLS["lstm"]
    monkeypatch.setitem(reference.CELLS, "lstm", lambda *args: tuple(s * 1.01 for s in right(*args)))
    with pytest.raises(RuntimeError, match="lstm: FASTRNN_CHECK: gradient 0 differs"):
        cases.gradients(inputs, out)
    with pytest.raises(RuntimeError, match="lstm: FASTRNN_CHECK: output 0 differs"):
        cases.kernel(inputs)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_error_after_ten_thousand_steps_is_no_larger_than_torchs(cell, one_torch_thread):
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}[cell]
    T, B, H = 10_000, 2, 64
    ours, theirs = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        module = kind(H, H)
        x, up = torch.randn(T, B, H), torch.randn(T, B, H)
        weights = list(module._flat_weights)
        exact = [w.detach().double().requires_grad_() for w in weights]
        want = forward_and_gradients(lambda x, w=exact: ops.rnn_layer(cell, x, w)[0], x.double(), exact, up.double())
        if not seed:  # float64 agrees with torch's float64, so it may stand for the truth
            double = kind(H, H).double()
            double.load_state_dict(module.state_dict())
            assert rms([double(x[:500].double())[0]], [want[0][:500]])[0] < 1e-14
        theirs.append(rms(forward_and_gradients(lambda x, m=module: m(x)[0], x, weights, up), want))
        run = forward_and_gradients(lambda x, w=weights: ops.rnn_layer(cell, x, w)[0], x, weights, up)
        ours.append(rms(run, want))
    names = ("y", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh")
    ratios = {n: sum(a) / sum(b) for n, a, b in zip(names, zip(*ours), zip(*theirs))}
    # Two orders of summation of the same quality differ by a few percent from seed to seed.
    assert max(ratios.values()) <= 1.05, {n: round(r, 3) for n, r in ratios.items()}


@pytest.fixture
def one_torch_thread():
    """torch's pool spins at every step, which on a busy machine costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def forward_and_gradients(f, x, weights, up):
    x = x.clone().requires_grad_()
    y = f(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *weights], up)]


def rms(got, want):
    return [((g.double() - w).square().mean() / w.square().mean()).sqrt().item() for g, w in zip(got, want)]


def test_threads_and_schedule_reach_the_kernel(monkeypatch):
    inputs = cases.make("gru", Case(2, 2, 3, 16))
    seen = []
    monkeypatch.setattr(_kernels, "_core_forward", lambda *args: seen.append(args[22:24]))
    with torch.no_grad():
        cases.kernel(inputs, schedule="hidden_split", threads=2)
        cases.kernel(inputs)
    assert seen == [("hidden_split", 2), ("", threads.current())]
