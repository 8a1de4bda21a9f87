"""Bad input to the torch front ends: one error each, naming function, argument, what it is and what it should be."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import PackedSequence  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import DeviceError, DTypeError, ShapeError, functional, nn, ops  # noqa: E402

T, B, I, H = 4, 3, 5, 16


def weights(gates=4, **changed):
    made = {"w_ih": (gates * H, I), "w_hh": (gates * H, H), "b_ih": (gates * H,), "b_hh": (gates * H,)} | changed
    return [torch.zeros(shape) for shape in made.values() if shape]


X, HX = torch.zeros(T, B, I), torch.zeros(1, B, H)


def call(x=X, state=None, w=None, **options):
    return lambda: functional.lstm(x, state, weights() if w is None else w, **options)


CATALOGUE = {
    # x
    "x is None": (call(None), DTypeError, "lstm: x is a NoneType, expected a torch.Tensor"),
    "x is a list": (call([[0.0]]), DTypeError, "lstm: x is a list, expected a torch.Tensor"),
    "x is an array": (call(X.numpy()), DTypeError, "lstm: x is a ndarray, expected a torch.Tensor"),
    "x is 1-D": (call(torch.zeros(3)), ShapeError, r"lstm: x has shape (3,), expected 3 sizes (T, B, I) or (T, I)"),
    "x is 0-D": (call(torch.zeros(())), ShapeError, r"lstm: x has shape (), expected 3 sizes (T, B, I) or (T, I)"),
    "x is 4-D": (call(X[None]), ShapeError, r"lstm: x has shape (1, 4, 3, 5), expected 3 sizes (T, B, I) or (T, I)"),
    "x is too wide": (
        call(torch.zeros(T, B, 6)), ShapeError, "lstm: x has shape (4, 3, 6), expected (T, B, I) = (4, 3, 5)",
    ),
    "x is too wide, batch_first": (
        call(torch.zeros(B, T, 6), batch_first=True), ShapeError,
        "lstm: x has shape (3, 4, 6), expected (B, T, I) = (3, 4, 5)",
    ),
    "unbatched x is too wide": (call(torch.zeros(T, 6)), ShapeError, "expected (T, B, I) = (4, 1, 5)"),
    "x has no steps": (call(X[:0]), ShapeError, "lstm: x has T = 0, expected at least 1"),
    "x has no features": (
        call(X[..., :0], w=weights(w_ih=(4 * H, 0))), ShapeError, "lstm: x has I = 0, expected at least 1",
    ),
    "x is int": (call(X.int()), DTypeError, "lstm: x has dtype torch.int32, expected float32, float64, bfloat16"),
    "x is bool": (call(X.bool()), DTypeError, "lstm: x has dtype torch.bool, expected float32"),
    "x is complex": (call(X + 0j), DTypeError, "lstm: x has dtype torch.complex64, expected float32"),
    "x is sparse": (call(X.to_sparse()), DeviceError, "lstm: x has layout torch.sparse_coo, expected a dense tensor"),
    "x is nested": (
        lambda: functional.lstm(torch.nested.nested_tensor([torch.zeros(2, I)] * 3), None, weights()), DeviceError,
        "lstm: x has layout nested, expected a dense tensor",
    ),
    "x is quantized": (
        lambda: functional.lstm(torch.quantize_per_tensor(X, 1.0, 0, torch.qint8), None, weights()), DTypeError,
        "lstm: x has dtype torch.qint8, expected float32",
    ),
    "x is meta, weights are not": (
        call(X.to("meta")), DeviceError, "lstm: weight_ih_l0 is on cpu, expected meta (the device of x)",
    ),
    "x is double": (
        call(X.double()), DTypeError,
        "lstm: weight_ih_l0 has dtype torch.float32, expected torch.float64 (the dtype of x)",
    ),
    "x is half": (
        call(X.half()), DTypeError,
        "lstm: weight_ih_l0 has dtype torch.float32, expected torch.float16 (the dtype of x)",
    ),
    # weights
    "w_hh is too narrow": (
        call(w=weights(w_hh=(64, 15))), ShapeError,
        "lstm: weight_hh_l0 has shape (64, 15), expected (4*H, H) = (64, 16)",
    ),
    "w_hh is too short": (
        call(w=weights(w_hh=(48, 16))), ShapeError,
        "lstm: weight_hh_l0 has shape (48, 16), expected (4*H, H) = (64, 16)",
    ),
    "w_ih has rows that are not gates": (
        call(w=weights(w_ih=(63, I))), ShapeError,
        "lstm: weight_ih_l0 has shape (63, 5), expected G*H = a multiple of 4",
    ),
    "w_ih has no rows": (call(w=weights(w_ih=(0, I))), ShapeError, "lstm: weight_ih_l0 has shape (0, 5), expected G*H"),
    "b_hh is too short": (
        call(w=weights(b_hh=(60,))), ShapeError, "lstm: bias_hh_l0 has shape (60,), expected (4*H,) = (64,)",
    ),
    "b_ih alone": (call(w=weights(b_hh=None)), ShapeError, "lstm: weights has 3 entries, expected a multiple of 4"),
    "no weights": (call(w=[]), ShapeError, "lstm: weights begins with shapes [], expected w_ih (G*H, I)"),
    "weights are swapped": (
        call(w=weights()[::-1]), ShapeError, "lstm: weights begins with shapes [(64,), (64,)], expected w_ih (G*H, I)",
    ),
    "a weight is missing": (call(w=[*weights()[:3], None]), DTypeError, "lstm: weights[3] is a NoneType"),
    "one weight is double": (
        call(w=[*weights()[:3], torch.zeros(64).double()]), DTypeError,
        "lstm: bias_hh_l0 has dtype torch.float64, expected torch.float32 (the dtype of x)",
    ),
    "weights of one direction for two": (
        call(bidirectional=True), ShapeError, "lstm: weights has 4 entries, expected a multiple of 8",
    ),
    "the second layer is too narrow": (
        call(w=weights() + weights(w_ih=(64, 15))), ShapeError,
        "lstm: weight_ih_l1 has shape (64, 15), expected (4*H, H) = (64, 16)",
    ),
    "the reverse direction is wrong": (
        call(w=weights() + weights(w_hh=(64, 17)), bidirectional=True), ShapeError,
        "lstm: weight_hh_l0_reverse has shape (64, 17), expected (4*H, H) = (64, 16)",
    ),
    "the projection is wrong": (
        call(w=[*weights(w_hh=(64, 3)), torch.zeros(3, 15)]), ShapeError,
        "lstm: weight_hr_l0 has shape (3, 15), expected (P, H) = (3, 16)",
    ),
    # states
    "state is a tensor": (call(state=HX), DTypeError, "lstm: state is a Tensor, expected a pair (h0, c0)"),
    "state has one entry": (call(state=(HX,)), ShapeError, "lstm: state has 1 entries, expected 2: (h0, c0)"),
    "h0 has another batch": (
        call(state=(HX[:, :2], HX)), ShapeError, "lstm: h0 has shape (1, 2, 16), expected (L*D, B, H) = (1, 3, 16)",
    ),
    "c0 has two layers": (
        call(state=(HX, HX.repeat(2, 1, 1))), ShapeError,
        "lstm: c0 has shape (2, 3, 16), expected (L*D, B, H) = (1, 3, 16)",
    ),
    "h0 of one layer for two": (
        call(state=(HX, HX), w=weights() + weights(w_ih=(64, H))), ShapeError,
        "lstm: h0 has shape (1, 3, 16), expected (L*D, B, H) = (2, 3, 16)",
    ),
    "h0 and c0 are swapped": (
        call(state=(HX, HX[..., :3]), w=[*weights(w_hh=(64, 3)), torch.zeros(3, H)]), ShapeError,
        "lstm: h0 has shape (1, 3, 16), expected (L*D, B, P) = (1, 3, 3)",
    ),
    "a batched state for unbatched x": (
        call(X[:, 0], (HX, HX)), ShapeError, "lstm: h0 has shape (1, 3, 16), expected (L*D, H) = (1, 16)",
    ),
    "c0 is double": (
        call(state=(HX, HX.double())), DTypeError, "lstm: c0 has dtype torch.float64, expected torch.float32",
    ),
    "c0 is meta": (call(state=(HX, HX.to("meta"))), DeviceError, "lstm: c0 is on meta, expected cpu"),
    # lengths and reset_mask
    "lengths too long": (call(lengths=[1, 2, 5]), ShapeError, "lstm: lengths has 5, expected 0 <= lengths <= T = 4"),
    "lengths negative": (call(lengths=[1, -2, 4]), ShapeError, "lstm: lengths has -2, expected 0 <= lengths <= T = 4"),
    "lengths short": (call(lengths=[1, 2]), ShapeError, "lstm: lengths has shape (2,), expected (B,) = (3,)"),
    "lengths empty": (call(lengths=[]), ShapeError, "lstm: lengths has shape (0,), expected (B,) = (3,)"),
    "lengths float": (
        call(lengths=[1.0, 2.0, 3.0]), DTypeError, "lstm: lengths has dtype torch.float32, expected an integer",
    ),
    "lengths bool": (call(lengths=[True] * 3), DTypeError, "lstm: lengths has dtype torch.bool, expected an integer"),
    "lengths complex": (
        call(lengths=torch.ones(3) + 0j), DTypeError, "lstm: lengths has dtype torch.complex64, expected an integer",
    ),
    "lengths meta": (
        call(lengths=torch.ones(3).long().to("meta")), DeviceError, "lstm: lengths is on meta, expected cpu",
    ),
    "lengths text": (call(lengths=["1"] * 3), DTypeError, "lstm: lengths is a list, expected integers [B]"),
    "lengths 2-D": (call(lengths=torch.ones(3, 1).int()), ShapeError, "lstm: lengths has shape (3, 1), expected (B,)"),
    "lengths with unbatched x": (call(X[:, 0], lengths=[4]), ShapeError, "lstm: lengths is given, expected none"),
    "mask transposed": (
        call(reset_mask=torch.zeros(B, T).bool()), ShapeError,
        "lstm: reset_mask has shape (3, 4), expected (T, B) = (4, 3)",
    ),
    "mask float": (
        call(reset_mask=torch.zeros(T, B)), DTypeError, "lstm: reset_mask has dtype torch.float32, expected torch.bool",
    ),
    "mask list": (call(reset_mask=[[True]]), DTypeError, "lstm: reset_mask is a list, expected a bool tensor"),
    "mask with unbatched x": (
        call(X[:, 0], reset_mask=torch.zeros(T, 1).bool()), ShapeError,
        "lstm: reset_mask has shape (4, 1), expected (T,)",
    ),
    # options
    "dropout": (call(dropout=1.5), ValueError, "lstm: dropout is 1.5, expected a probability in [0, 1]"),
    "nonlinearity": (
        lambda: functional.rnn(X, None, weights(1), nonlinearity="gelu"), ValueError,
        "rnn: nonlinearity is 'gelu', expected 'tanh', 'relu' or 'sigmoid'",
    ),
    "gru takes no pair": (
        lambda: functional.gru(X, (HX, HX), weights(3)), DTypeError,
        "gru: state is a tuple, expected a torch.Tensor h0",
    ),
    "gru has no projection": (
        lambda: functional.gru(X, None, [*weights(3, w_hh=(48, 3)), torch.zeros(3, H)]), ShapeError,
        "gru: weights has 5 entries, expected a multiple of 4",
    ),
    "schedule": (
        lambda: ops.rnn_layer("lstm", X, weights(), schedule="fast"), ValueError, "fast",
    ),
    "cell": (lambda: ops.rnn_layer("mgu", X, weights()), ValueError, "mgu: cell is 'mgu', expected one of rnn_tanh"),
    "no hidden units": (
        lambda: ops.rnn_layer("gru", X, [torch.zeros(0, I), torch.zeros(0, 0)]), ShapeError,
        "gru: weight_ih has shape (0, 5), expected G*H = a multiple of 3",
    ),
    "directions": (
        lambda: ops.rnn_layer("lstm", X, weights(), directions=3), ValueError, "lstm: directions is 3, expected 1 or 2",
    ),
    "narrow layer": (
        lambda: ops.rnn_layer("lstm", X.half(), [w.half() for w in weights()]), DTypeError,
        "lstm: x has dtype torch.float16, expected torch.float32 or torch.float64",
    ),
    "two states for a gru layer": (
        lambda: ops.rnn_layer("gru", X, weights(3), (HX, HX)), ShapeError,
        "gru: c0 is given, expected none: gru has one state",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning")
@pytest.mark.parametrize("name", CATALOGUE)
def test_catalogue(name):
    function, kind, text = CATALOGUE[name]
    with pytest.raises(kind) as caught:
        function()
    assert text in str(caught.value)
    with torch.no_grad(), pytest.raises(kind):
        function()


FORMS = {
    "one layer": (1, lambda f, x, hx: f(x, hx)),
    "two layers": (2, lambda f, x, hx: f(x, hx)),
    "ragged": (2, lambda f, x, hx: f(x, hx, lengths=[4, 1, 0])),
    "packed": (2, lambda f, x, hx: f(torch.nn.utils.rnn.pack_padded_sequence(x, [2, 4, 1], enforce_sorted=False), hx)),
    "unbatched": (2, lambda f, x, hx: f(x[:, 0], tuple(None if s is None else s[:, 0] for s in hx))),
    "narrow": (2, lambda f, x, hx: f.bfloat16()(x.bfloat16(), tuple(None if s is None else s.bfloat16() for s in hx))),
    "cell": (1, lambda f, x, hx: nn.LSTMCell(I, H)(x[0], tuple(None if s is None else s[0] for s in hx))),
    "unbatched cell": (
        1,
        lambda f, x, hx: nn.LSTMCell(I, H)(x[0, 0], tuple(None if s is None else s[0, 0] for s in hx)),
    ),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_half_of_a_state_may_be_absent(form, grad):
    """None in place of h0 or c0 means zeros, as it does in place of both."""
    layers, f = FORMS[form]
    x, given = torch.randn(T, B, I), torch.randn(layers, B, H)

    def flat(hx):
        torch.manual_seed(0)
        y, last = f(nn.LSTM(I, H, layers), x, hx)
        return [y.data if isinstance(y, PackedSequence) else y, *last]

    with torch.set_grad_enabled(grad):
        for hx in ((None, given), (given, None), (None, None)):
            want = flat(tuple(torch.zeros_like(given) if s is None else s for s in hx))
            assert all(torch.equal(a, b) for a, b in zip(flat(hx), want))


@pytest.mark.parametrize(
    "lengths", [np.array([1, 4, 2], ">i4"), np.array([2, 4, 1])[::-1], range(1, 4), (1, 4, 2)], ids=str
)
def test_lengths_of_any_make(lengths):
    module = nn.GRU(I, H)
    found = module(X + 1, lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(found, module(X + 1, lengths=torch.tensor([int(n) for n in lengths]))))


def test_errors_are_caught_by_code_written_for_torch():
    for kind, bases in {
        ShapeError: (ValueError, RuntimeError),
        DTypeError: (TypeError, ValueError, RuntimeError),
        DeviceError: (RuntimeError, ValueError),
    }.items():
        assert all(issubclass(kind, base) for base in bases)


CONSTRUCTORS = {
    "input_size=0": (ValueError, "LSTM: input_size is 0, expected at least 1"),
    "input_size=2.0": (TypeError, "LSTM: input_size is a float, expected an int"),
    "hidden_size=-1": (ValueError, "LSTM: hidden_size is -1, expected at least 1"),
    "hidden_size=None": (TypeError, "LSTM: hidden_size is a NoneType, expected an int"),
    "num_layers=0": (ValueError, "LSTM: num_layers is 0, expected at least 1"),
    "num_layers=-119": (ValueError, "LSTM: num_layers is -119, expected at least 1"),
    "num_layers=1.5": (TypeError, "LSTM: num_layers is a float, expected an int"),
    "bias=1": (TypeError, "LSTM: bias is a int, expected a bool"),
    "batch_first=0": (TypeError, "LSTM: batch_first is a int, expected a bool"),
    "dropout='a'": (ValueError, "LSTM: dropout is 'a', expected a probability in [0, 1]"),
    "dropout=True": (ValueError, "LSTM: dropout is True, expected a probability in [0, 1]"),
    "dropout=float('nan')": (ValueError, "LSTM: dropout is nan, expected a probability in [0, 1]"),
    "proj_size=4": (ValueError, "LSTM: proj_size is 4, expected at least 0 and below hidden_size = 4"),
    "proj_size=-1": (ValueError, "LSTM: proj_size is -1, expected at least 0 and below hidden_size = 4"),
}


@pytest.mark.parametrize("option", CONSTRUCTORS)
def test_constructors(option):
    kind, text = CONSTRUCTORS[option]
    arguments = eval(f"dict(dict(input_size=3, hidden_size=4), {option})")
    with pytest.raises(kind) as caught:
        nn.LSTM(**arguments)
    assert text == str(caught.value)
    with pytest.raises((ValueError, TypeError)):  # as torch
        torch.nn.LSTM(**arguments)


NORM_PARAMETERS = [("GRU", n) for n in ("bias_ih", "bias_hh", "gain_ih", "gain_hh")]
NORM_PARAMETERS += [("LSTM", n) for _, n in NORM_PARAMETERS] + [("LSTM", "gain_c"), ("LSTM", "bias_c")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind, name", NORM_PARAMETERS)
def test_parameters_of_layer_normalisation_are_finite(kind, name, value):
    module, x = getattr(nn, kind)(3, 4, layer_norm=True, bidirectional=True), torch.randn(5, 2, 3)
    getattr(module, f"{name}_l0_reverse").data[-1] = value
    expected = f"^{kind.lower()}: {name} of the layer normalisation has {value}, expected finite numbers$"
    with pytest.raises(ValueError, match=expected):
        module(x)
    with torch.no_grad(), pytest.raises(ValueError, match=expected):
        torch.compile(module, backend="eager")(x)
    state = {n: w.detach().numpy() for n, w in module.state_dict().items()}
    with pytest.raises(ValueError, match=expected):
        getattr(fastrnn.numpy, kind).from_state_dict(state, layer_norm=True)
    one_way = getattr(nn, kind)(3, 4, layer_norm=True)
    getattr(one_way, f"{name}_l0").data[0] = value
    with pytest.raises(ValueError, match=expected):
        one_way.stepper()


def test_constructor_warnings_and_names():
    with pytest.warns(UserWarning, match="GRU: dropout = 0.5 acts between layers") as caught:
        nn.GRU(3, 4, dropout=0.5)
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match="RNN: nonlinearity is 'gelu', expected one of tanh, relu, sigmoid"):
        nn.RNN(3, 4, nonlinearity="gelu")
    with pytest.raises(ValueError, match="RNNCell: nonlinearity is 'gelu'"):
        nn.RNNCell(3, 4, nonlinearity="gelu")
    with pytest.raises(TypeError):
        nn.GRU(3, 4, proj_size=2)
    with pytest.raises(ValueError, match="lstm: stepper.. needs one direction"):
        nn.LSTM(3, 4, bidirectional=True).stepper()


def test_modules_name_the_replaced_weight():
    module = nn.LSTM(3, 4, 2)
    x = torch.zeros(5, 2, 3)
    module.weight_hh_l1.data = torch.zeros(16, 5)
    with pytest.raises(ShapeError) as caught:
        module(x)
    assert str(caught.value) == "lstm: weight_hh_l1 has shape (16, 5), expected (4*H, H) = (16, 4)"
    module = nn.GRU(3, 4)
    for name, p in nn.GRU(2, 4).named_parameters():  # all of another, consistent size
        getattr(module, name).data = p.data
    with pytest.raises(ShapeError, match=r"gru: weight_ih_l0 has shape \(12, 2\), expected \(3\*H, I\) = \(12, 3\)"):
        module(torch.zeros(5, 2, 2))
    with pytest.raises(DTypeError, match="weight_ih_l0 has dtype torch.float64, expected torch.float32"):
        nn.GRU(3, 4).double()(x)
    with pytest.raises(ShapeError, match=r"lstm: x has shape \(2, 7, 9\), expected \(B, T, I\) = \(2, 7, 3\)"):
        nn.LSTM(3, 4, 2, batch_first=True)(torch.zeros(2, 7, 9))


def test_cells():
    x, h = torch.zeros(2, 3), torch.zeros(2, 4)
    cell = nn.LSTMCell(3, 4)
    for args, kind, text in [
        ((x[None],), ShapeError, "lstm_cell: x has shape (1, 2, 3), expected 2 sizes (B, I) or 1 size (I,)"),
        ((x[:, :2],), ShapeError, "lstm_cell: x has shape (2, 2), expected (B, I) = (2, 3)"),
        ((x, h), DTypeError, "lstm_cell: state is a Tensor, expected a pair (h0, c0)"),
        ((x, (h, h[:1])), ShapeError, "lstm_cell: c0 has shape (1, 4), expected (B, H) = (2, 4)"),
        ((x[0], (h, h)), ShapeError, "lstm_cell: h0 has shape (2, 4), expected (H,) = (4,)"),  # torch crashes
        ((x, (h, h[0])), ShapeError, "lstm_cell: c0 has shape (4,), expected (B, H) = (2, 4)"),
        ((x.int(),), DTypeError, "lstm_cell: x has dtype torch.int32"),
        ((x, (h, h.double())), DTypeError, "lstm_cell: c0 has dtype torch.float64, expected torch.float32"),
        (([0.0],), DTypeError, "lstm_cell: x is a list, expected a torch.Tensor"),
    ]:
        for mode in (torch.enable_grad(), torch.no_grad()):
            with mode, pytest.raises(kind) as caught:
                cell(*args)
            assert text in str(caught.value)
    cell.weight_hh.data = torch.zeros(16, 3)
    with pytest.raises(ShapeError, match=r"lstm_cell: weight_hh has shape \(16, 3\), expected \(4\*H, H\) = \(16, 4\)"):
        cell(x)


@pytest.mark.parametrize("sizes", [[3, 4], [3, 0], [3, 2], [-1, 6], []])
def test_forged_packed_sequences(sizes):
    packed = PackedSequence(torch.zeros(6, I), torch.tensor(sizes, dtype=torch.int64))
    with pytest.raises(
        ShapeError, match="lstm: x.batch_sizes is .*, expected positive sizes, none above the one before"
    ):
        nn.LSTM(I, H)(packed)


def test_packed_sequences_exclude_lengths():
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(3, I)])
    with pytest.raises(ShapeError, match="lstm: lengths is given, expected none with a PackedSequence"):
        nn.LSTM(I, H)(packed, lengths=[3])
    with pytest.raises(ShapeError, match=r"lstm: h0 has shape \(1, 2, 16\), expected \(L\*D, B, H\) = \(1, 1, 16\)"):
        nn.LSTM(I, H)(packed, (torch.zeros(1, 2, H),) * 2)


def test_another_device():
    class Elsewhere(torch.Tensor):  # a tensor that says so, because there may be no GPU
        device = torch.device("cuda", 0)

    with pytest.raises(DeviceError, match="lstm: x is on cuda:0, expected a device with kernels: "):
        nn.LSTM(I, H)(X.as_subclass(Elsewhere))


def test_mixed_dtypes_under_autocast():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(DTypeError, match="weight_ih_l0 has dtype torch.float64"):
        nn.LSTM(I, H).double()(X)


def test_nothing_is_left_behind_by_an_error():
    module = nn.LSTM(I, H)
    want = module(X)[0]
    for _ in range(3):
        with pytest.raises(fastrnn.ShapeError):
            module(X, lengths=[9, 9, 9])
    assert torch.equal(module(X)[0], want)
