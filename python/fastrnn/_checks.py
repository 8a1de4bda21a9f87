"""Argument checks and the one wording of their errors: `function: argument has X, expected Y`.

No torch and no NumPy in here: shapes are sequences of ints, dtypes and devices are anything with a readable str().
The front ends call a check only after a cheap comparison has failed or when a call is slow anyway.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

STATE_NAMES = ("h0", "c0", "n0", "m0")  # of a cell with k states the first k


class ShapeError(ValueError, RuntimeError):
    """A size, rank or count is wrong; both bases because code written for torch catches either of them."""


class DTypeError(TypeError, ValueError, RuntimeError):
    """An argument has a type or element type that the function does not take."""


class DeviceError(RuntimeError, ValueError):
    """An argument lives where the function cannot read it: another device, layout or a freed storage."""


def function_of(cell: str) -> str:
    """The public function that runs `cell`: lstm, gru or rnn."""
    return cell.partition("_")[0]


def shape_error(function: str, argument: str, got: Sequence[int], symbols: str, expected: Sequence[int]) -> ShapeError:
    """The error for one array: `lstm: weight_hh_l0 has shape (64, 15), expected (4*H, H) = (64, 16)`."""
    got, expected = tuple(int(n) for n in got), tuple(int(n) for n in expected)
    return ShapeError(f"{function}: {argument} has shape {got}, expected {symbols} = {expected}")


def check_shape(function: str, argument: str, got: Sequence[int], symbols: str, expected: Sequence[int]) -> None:
    """Raises ShapeError unless the two shapes are the same."""
    if tuple(got) != tuple(expected):
        raise shape_error(function, argument, got, symbols, expected)


def check_rank(function: str, argument: str, got: Sequence[int], symbols: str, hint: str = "") -> None:
    """Raises ShapeError unless `got` has one size per symbol: `rnn: x has shape (3,), expected 3 sizes (T, B, I)`."""
    if len(got) != symbols.count(",") + 1:
        sizes = tuple(int(n) for n in got)
        raise ShapeError(
            f"{function}: {argument} has shape {sizes}, expected {symbols.count(',') + 1} sizes {symbols}{hint}"
        )


def check_size(function: str, argument: str, name: str, got: int, least: int = 1) -> None:
    """Raises ShapeError if a size is too small: `gru: x has T = 0, expected at least 1`."""
    if got < least:
        raise ShapeError(f"{function}: {argument} has {name} = {int(got)}, expected at least {least}")


def check_count(function: str, argument: str, got: int, expected: str) -> None:
    """Raises ShapeError for a list of the wrong length; call it only when the length is known to be wrong."""
    raise ShapeError(f"{function}: {argument} has {got} entries, expected {expected}")


def dtype_error(function: str, argument: str, got: object, expected: object, hint: str = "") -> DTypeError:
    """The error for one dtype or type: `gru: h0 has dtype float64, expected float32 (the dtype of x)`."""
    return DTypeError(f"{function}: {argument} has dtype {got}, expected {expected}{hint}")


def type_error(function: str, argument: str, got: object, expected: str) -> DTypeError:
    """The error for an object of the wrong Python type: `lstm: x is a list, expected a torch.Tensor`."""
    return DTypeError(f"{function}: {argument} is a {type(got).__name__}, expected {expected}")


def device_error(function: str, argument: str, got: object, expected: object) -> DeviceError:
    """The error for one device: `lstm: h0 is on cuda:0, expected cpu (the device of x)`."""
    return DeviceError(f"{function}: {argument} is on {got}, expected {expected}")


def storage_error(function: str, argument: str, got_bytes: int, needed_bytes: int) -> DeviceError:
    """The error for an array that reaches past its memory, such as a sharded parameter that was freed."""
    return DeviceError(
        f"{function}: {argument} has a storage of {got_bytes} bytes, expected {needed_bytes} or more (freed?)"
    )


def weight_names(directions: int, bias: bool, projection: bool, suffix: str = "") -> list[str]:
    """Parameter names of one layer in torch's order; `suffix` is `_l0`, or empty for a cell."""
    parts = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * bias + ["weight_hr"] * projection
    return [part + suffix + end for end in ("", "_reverse")[:directions] for part in parts]


def weight_shapes(
    gates: int,
    I: int,
    H: int,
    P: int,
    directions: int,
    bias: bool,
    vectors: int = 0,
    product: bool = True,
    num_heads: int = 1,
) -> list[tuple[int, ...]]:
    """Expected weight shapes of one layer, in the order of weight_names(); b_hh ends with the cell's vectors, and w_hh
    has the columns of one head, none for a cell without a recurrent product."""
    biases = [(gates * H,), ((gates + vectors) * H,)] if bias else []
    columns = (P or H // num_heads) if product else 0
    parts = [(gates * H, I), (gates * H, columns), *biases] + ([(P, H)] if P else [])
    return parts * directions


def _weight_symbols(
    gates: int,
    directions: int,
    bias: bool,
    projection: bool,
    first_layer: bool,
    vectors: int,
    product: bool,
    num_heads: int,
) -> Iterator[str]:
    rows = "H" if gates == 1 else f"{gates}*H"
    out = "P" if projection else "H"
    columns = "I" if first_layer else (out if directions == 1 else f"{directions}*{out}")
    own = 0 if not product else out if num_heads == 1 else f"{out}/{num_heads}"
    biases = [f"({rows},)", f"({gates + vectors}*H,)" if vectors else f"({rows},)"] if bias else []
    parts = [f"({rows}, {columns})", f"({rows}, {own})", *biases]
    return iter((parts + ["(P, H)"] * projection) * directions)


def check_weights(
    function: str,
    gates: int,
    got: Sequence[Sequence[int]],
    I: int,
    H: int,
    P: int,
    directions: int,
    bias: bool,
    suffix: str = "",
    first_layer: bool = True,
    vectors: int = 0,
    product: bool = True,
    num_heads: int = 1,
) -> None:
    """Raises ShapeError naming the first weight of one layer whose shape is wrong.

    Args:
        gates: gates of the cell (1, 3 or 4).
        got: shapes of the weights of one layer, torch's order: w_ih, w_hh, b_ih, b_hh, w_hr per direction.
        I, H, P: sizes of input, hidden state and projection (0 = none).
        vectors: parameters per unit that b_hh holds after the biases.
        product: whether the cell has a recurrent matrix; w_hh has no columns if not.
        num_heads: blocks on the diagonal of the recurrent matrix; w_hh has the columns of one.
    """
    names = weight_names(directions, bias, P > 0, suffix)
    if len(got) != len(names):
        check_count(function, f"weights{suffix}", len(got), f"{len(names)} ({', '.join(names)})")
    if vectors and not bias:
        check_count(function, f"weights{suffix}", len(got), "biases, as b_hh holds the cell's vectors")
    symbols = _weight_symbols(gates, directions, bias, P > 0, first_layer, vectors, product, num_heads)
    shapes = weight_shapes(gates, I, H, P, directions, bias, vectors, product, num_heads)
    for name, shape, symbol, expected in zip(names, got, symbols, shapes):
        check_shape(function, name, shape, symbol, expected)


def check_probability(function: str, name: str, p: object) -> None:
    """Raises unless p is a probability."""
    if isinstance(p, bool) or not isinstance(p, numbers.Real) or not 0 <= p <= 1:
        raise ValueError(f"{function}: {name} is {p!r}, expected a probability in [0, 1]")


def check_reset_to(function: str, reset_to: object) -> None:
    """Raises unless this names a state that resets can go to."""
    if reset_to not in ("zero", "initial"):
        raise ValueError(f"{function}: reset_to is {reset_to!r}, expected 'zero' or 'initial'")


def check_zoneout(function: str, rates: object, P: int) -> None:
    """Raises for zoneout of a projected h: what would be kept is not the state of a unit."""
    if rates is not None and rates.zoneout[0] and P:
        raise ValueError(
            f"{function}: zoneout of h is {rates.zoneout[0]} with a projection of {P}, expected 0: (0, p) keeps c alone"
        )


def lstm_cell(
    function: str, coupled: bool, peepholes: bool, recurrent_activation: str = "sigmoid", layer_norm: bool = False
) -> str:
    """The name of the cell that an LSTM's options ask for."""
    hard = _is_hard(function, recurrent_activation)
    if bool(coupled) + bool(peepholes) + hard + bool(layer_norm) > 1:
        asked = {"coupled=True": coupled, "peepholes=True": peepholes, "recurrent_activation='hard_sigmoid'": hard}
        asked["layer_norm=True"] = layer_norm
        raise ValueError(
            f"{function}: got {' and '.join(k for k, v in asked.items() if v)}, expected one of them at most: no cell has both"
        )
    if layer_norm:
        return "lstm_norm"
    return "lstm_cifg" if coupled else "lstm_peephole" if peepholes else "lstm_hard" if hard else "lstm"


def gru_cell(function: str, reset_after: bool, recurrent_activation: str = "sigmoid", layer_norm: bool = False) -> str:
    """The name of the cell that a GRU's options ask for."""
    hard = "_hard" if _is_hard(function, recurrent_activation) else ""
    if layer_norm:
        if hard or not reset_after:
            other = "reset_after=False" if not reset_after else "recurrent_activation='hard_sigmoid'"
            raise ValueError(
                f"{function}: got layer_norm=True and {other}, expected one of them at most: no cell has both"
            )
        return "gru_norm"
    return ("gru" if reset_after else "gru_reset_before") + hard


def indrnn_cell(function: str, nonlinearity: str) -> str:
    """The name of the cell that an IndRNN's options ask for."""
    if nonlinearity not in ("relu", "tanh"):
        raise ValueError(f"{function}: nonlinearity is {nonlinearity!r}, expected 'relu' or 'tanh'")
    return f"indrnn_{nonlinearity}"


def slstm_cell(function: str, forget_gate: str) -> str:
    """The name of the cell that an sLSTM's options ask for."""
    if forget_gate not in ("sigmoid", "exponential"):
        raise ValueError(f"{function}: forget_gate is {forget_gate!r}, expected 'sigmoid' or 'exponential'")
    return "slstm" if forget_gate == "sigmoid" else "slstm_exponential"


def _is_hard(function: str, recurrent_activation: str) -> bool:
    if recurrent_activation not in ("sigmoid", "hard_sigmoid"):
        raise ValueError(
            f"{function}: recurrent_activation is {recurrent_activation!r}, expected 'sigmoid' or 'hard_sigmoid'"
        )
    return recurrent_activation == "hard_sigmoid"


def check_norm(function: str, H: int, b_ih: Any, b_hh: Any) -> None:
    """Raises if a parameter of layer normalisation is not finite; the biases of one direction, arrays or tensors, hold
    all of them."""

    def extremes(array: Any) -> tuple[float, float]:
        return float(array.min()), float(array.max())  # NaN if it has one

    rows, columns = b_ih.shape[0], b_hh.shape[0]
    of_c = {"gain_c": H, "bias_c": H} if columns > 3 * rows else {}
    for array, parts in (
        (b_ih, {"bias_ih": rows}),
        (b_hh, {"bias_hh": rows, "gain_hh": rows, **of_c, "gain_ih": rows}),
    ):
        if all(map(math.isfinite, extremes(array))):
            continue
        begin = 0
        for name, size in parts.items():
            for value in extremes(array[begin : begin + size]):
                if not math.isfinite(value):
                    raise ValueError(
                        f"{function}: {name} of the layer normalisation has {value}, expected finite numbers"
                    )
            begin += size


def check_lengths(function: str, lowest: int, highest: int, T: int) -> None:
    """Raises ShapeError if lengths reach outside the sequence."""
    if lowest < 0:
        raise ShapeError(f"{function}: lengths has {int(lowest)}, expected 0 <= lengths <= T = {int(T)}")
    if highest > T:
        raise ShapeError(f"{function}: lengths has {int(highest)}, expected 0 <= lengths <= T = {int(T)}")
