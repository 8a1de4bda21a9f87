"""Weights of other libraries under torch's names, in torch's layout and gate order. NumPy in, NumPy out.

The result is what fastrnn.numpy takes; for a module: `module.load_state_dict({k: torch.from_numpy(w) for k, w in
...})`.

>>> kernel, recurrent, bias = np.ones((3, 16), "f"), np.ones((4, 16), "f"), np.ones(16, "f")
>>> sorted(from_keras([kernel, recurrent, bias], "lstm"))
['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._checks import check_count, check_rank, check_shape, type_error

__all__ = ["from_haste", "from_keras", "from_onnx"]

# Where torch's gates stand in the other library: i f g o, and r z n.
_KERAS = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "rnn": (0,)}
_ONNX = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2), "rnn": (0,)}
_HASTE = {"lstm": (0, 2, 1, 3), "gru": (1, 0, 2), "rnn": (0,)}
_SIGMOIDS = {"lstm": (0, 1, 3), "gru": (0, 1), "rnn": ()}  # of torch's gates


def from_keras(
    weights: Sequence[np.ndarray],
    cell: str,
    *,
    layer: int = 0,
    reverse: bool = False,
    hard_sigmoid_slope: float | None = None,
) -> dict[str, np.ndarray]:
    """The weights of a Keras LSTM, GRU or SimpleRNN layer, as `layer.get_weights()` gives them.

    Args:
        weights: kernel [I, G*H], recurrent_kernel [H, G*H] and, with use_bias, bias [G*H]; of a GRU with reset_after
            bias [2, G*H]. A GRU's form follows from its bias; without one, say reset_after to fastrnn as Keras had it.
        cell: "lstm", "gru" or "rnn".
        layer, reverse: for the names: weight_ih_l{layer}, and `_reverse` for a Bidirectional's backward layer.
        hard_sigmoid_slope: of recurrent_activation="hard_sigmoid": 0.2 in Keras 2, 1/6 in Keras 3. The weights of the
            gates are scaled so that fastrnn's hard_sigmoid, whose slope is 1/6, gives the same. None if it is the
            sigmoid.

    Raises:
        ShapeError, TypeError, ValueError: a weight that does not fit, or an unknown cell.
    """
    f, order = "from_keras", _order("from_keras", cell, _KERAS)
    if not isinstance(weights, (list, tuple)):
        raise type_error(f, "weights", weights, "a list, from layer.get_weights()")
    if not 2 <= len(weights) <= 3:
        check_count(f, "weights", len(weights), "2 or 3: kernel, recurrent_kernel, bias")
    kernel, recurrent, *biases = _arrays(f, ("kernel", "recurrent_kernel", "bias"), weights)
    check_rank(f, "recurrent_kernel", recurrent.shape, "(H, G*H)")
    parts = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
    if biases:
        both = biases[0] if biases[0].ndim == 2 else np.stack((biases[0], np.zeros_like(biases[0])))
        check_shape(f, "bias", both.shape, "(2, G*H)", (2, kernel.shape[1]))
        parts |= {"bias_ih": both[0], "bias_hh": both[1]}
    found = _reorder(f, cell, parts, order, hard_sigmoid_slope)
    return {f"{name}_l{layer}{'_reverse' if reverse else ''}": w for name, w in found.items()}


def from_onnx(
    W: np.ndarray,
    R: np.ndarray,
    B: np.ndarray | None = None,
    P: np.ndarray | None = None,
    *,
    cell: str,
    layer: int = 0,
    hard_sigmoid_slope: float | None = None,
) -> dict[str, np.ndarray]:
    """The inputs W, R, B and P of an ONNX LSTM, GRU or RNN node.

    Args:
        W, R, B: [D, G*H, I], [D, G*H, H] and [D, 2*G*H]; gate order i o f c (LSTM) and z r h (GRU).
        P: [D, 3*H], peepholes i o f, for fastrnn.nn.LSTM(peepholes=True).
        cell: "lstm", "gru" (linear_before_reset=1 is reset_after=True) or "rnn".
        layer: for the names.
        hard_sigmoid_slope: as in from_keras(); ONNX's default alpha is 0.2.

    Raises:
        ShapeError, TypeError, ValueError: a weight that does not fit, or an unknown cell.
    """
    f, order = "from_onnx", _order("from_onnx", cell, _ONNX)
    W, R, *rest = _arrays(f, ("W", "R", "B", "P"), [a for a in (W, R, B, P) if a is not None])
    check_rank(f, "W", W.shape, "(D, G*H, I)")
    check_rank(f, "R", R.shape, "(D, G*H, H)")
    D, GH, H = R.shape
    if P is not None and cell != "lstm":
        check_count(f, "inputs", 4, f"at most 3 for {cell}: W, R, B")
    named = dict(zip([n for n, a in (("B", B), ("P", P)) if a is not None], rest))
    found = {}
    for d in range(D):
        parts = {"weight_ih": W[d], "weight_hh": R[d]}
        if "B" in named:
            check_shape(f, "B", named["B"].shape, "(D, 2*G*H)", (D, 2 * GH))
            parts |= dict(zip(("bias_ih", "bias_hh"), np.split(named["B"][d], 2)))
        own = _reorder(f, cell, parts, order, hard_sigmoid_slope)
        if "P" in named:
            check_shape(f, "P", named["P"].shape, "(D, 3*H)", (D, 3 * H))
            i, o, forget = np.split(named["P"][d], 3)
            own["weight_peephole"] = np.concatenate((i, forget, o))
        found |= {f"{name}_l{layer}{'_reverse' * d}": w for name, w in own.items()}
    return found


def from_haste(
    kernel: np.ndarray,
    recurrent_kernel: np.ndarray,
    bias: np.ndarray,
    recurrent_bias: np.ndarray | None = None,
    *,
    cell: str,
    layer: int = 0,
) -> dict[str, np.ndarray]:
    """The parameters of a haste LSTM or GRU layer: gate order i g f o, and z r g.

    Args:
        kernel, recurrent_kernel: [I, G*H], [H, G*H].
        bias, recurrent_bias: [G*H]; an LSTM has no recurrent_bias.
        cell: "lstm" or "gru" (haste's GRU is reset_after=True).
        layer: for the names.

    Raises:
        ShapeError, TypeError, ValueError: a weight that does not fit, or an unknown cell.
    """
    f, order = "from_haste", _order("from_haste", cell, _HASTE)
    given = [a for a in (kernel, recurrent_kernel, bias, recurrent_bias) if a is not None]
    kernel, recurrent, bias, *rest = _arrays(f, ("kernel", "recurrent_kernel", "bias", "recurrent_bias"), given)
    parts = {"weight_ih": kernel.T, "weight_hh": recurrent.T, "bias_ih": bias}
    parts["bias_hh"] = rest[0] if rest else np.zeros_like(bias)
    return {f"{name}_l{layer}": w for name, w in _reorder(f, cell, parts, order, None).items()}


def _order(function: str, cell: str, orders: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    if cell not in orders:
        raise ValueError(f"{function}: cell is {cell!r}, expected one of {', '.join(orders)}")
    return orders[cell]


def _arrays(function: str, names: Sequence[str], values: Sequence[object]) -> list[np.ndarray]:
    for name, value in zip(names, values):
        if not isinstance(value, np.ndarray):
            raise type_error(function, name, value, "a numpy.ndarray")
    return list(values)


def _reorder(
    function: str, cell: str, parts: dict[str, np.ndarray], order: tuple[int, ...], slope: float | None
) -> dict[str, np.ndarray]:
    """Torch's gate order; parts: [G*H, ...] in the other one."""
    G = len(order)
    GH = parts["weight_hh"].shape[0]
    check_shape(function, "recurrent weights", parts["weight_hh"].shape, "(G*H, H)", (GH, GH // G))
    if slope is not None and not slope > 0:
        raise ValueError(
            f"{function}: hard_sigmoid_slope is {slope!r}, expected a positive number, or None for the sigmoid"
        )
    found = {}
    for name, w in parts.items():
        check_shape(function, name, w.shape, "(G*H, ...)", (GH, *w.shape[1:]))
        gates = np.split(w, G)
        scaled = [
            gates[k] * w.dtype.type(6 * slope) if slope is not None and g in _SIGMOIDS[cell] else gates[k]
            for g, k in enumerate(order)
        ]
        found[name] = np.ascontiguousarray(np.concatenate(scaled))
    return found
