"""What the attention decoder asks of its arguments; see decoder.py."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _devices
from ._tensor_checks import as_lengths, autocast_dtype, check_floats, check_lengths_within, check_like, check_memory

FUNCTION = "attention_decoder"
GATES = {"lstm": 4, "gru": 3}


def split_state(state: object, cell: str) -> tuple[Tensor | None, Tensor | None]:
    """h and c of a user's state."""
    if state is None or (isinstance(state, Tensor) and cell == "gru"):
        return state, None
    if cell == "lstm" and isinstance(state, (tuple, list)) and len(state) == 2:
        return state[0], state[1]
    expected = "a pair of tensors (h, c)" if cell == "lstm" else "a torch.Tensor"
    raise _checks.type_error(FUNCTION, "state", state, expected)


def check_user(x: object, memory: object, weights: object, cell: object, order: object, fields: tuple) -> torch.dtype:
    """What the operator does not see; returns the dtype of the result."""
    if not isinstance(cell, str) or cell not in GATES:
        raise ValueError(f"{FUNCTION}: cell is {cell!r}, expected 'lstm' or 'gru'")
    if order not in ("luong", "bahdanau"):
        raise ValueError(f"{FUNCTION}: order is {order!r}, expected 'luong' or 'bahdanau'")
    if not isinstance(weights, tuple) or len(weights) != len(fields):
        raise _checks.type_error(FUNCTION, "weights", weights, "DecoderWeights")
    for name, t, symbols in (
        ("x", x, "(B, T, E)"),
        ("memory", memory, "(B, Tk, M)"),
        ("weight_ih", weights.weight_ih, "(G*H, E + F)"),
        ("weight_hh", weights.weight_hh, "(G*H, H)"),
    ):
        check_tensor(name, t, x)
        check_memory(FUNCTION, name, t)
        _checks.check_rank(FUNCTION, name, t.shape, symbols)
    G, E, H, M = GATES[cell], x.shape[2], weights.weight_hh.shape[1], memory.shape[2]
    F = weights.weight_ih.shape[1] - E
    if order == "bahdanau":
        _checks.check_shape(FUNCTION, "weight_ih", weights.weight_ih.shape, f"({G}*H, E + M)", (G * H, E + M))
    elif F != 0:
        _checks.check_shape(
            FUNCTION, "weight_ih", weights.weight_ih.shape, f"({G}*H, E + H) or ({G}*H, E)", (G * H, E + H)
        )
    if weights.bias_ih is not None:
        check_tensor("bias_ih", weights.bias_ih, x)
        check_memory(FUNCTION, "bias_ih", weights.bias_ih)
        _checks.check_shape(FUNCTION, "bias_ih", weights.bias_ih.shape, f"({G}*H,)", (G * H,))
    if (weights.output_weight is None) != (order == "bahdanau"):
        expected = "None in Bahdanau's order" if order == "bahdanau" else "(H, M + H) in Luong's order"
        raise ValueError(
            f"{FUNCTION}: output_weight is {'given' if order == 'bahdanau' else 'None'}, expected {expected}"
        )
    if weights.output_weight is not None:
        check_tensor("output_weight", weights.output_weight, x)
        check_memory(FUNCTION, "output_weight", weights.output_weight)
        _checks.check_shape(FUNCTION, "output_weight", weights.output_weight.shape, "(H, M + H)", (H, M + H))
    return (autocast_dtype(x) if x.dtype is torch.float32 else None) or x.dtype


def check_tensor(name: str, t: object, x: object) -> None:
    """Raises unless t is a dense tensor of floats like x, on a device that has kernels."""
    if t is x:
        check_floats(FUNCTION, name, t)
    elif isinstance(x, Tensor):
        check_like(FUNCTION, name, t, x)
    if reason := _devices.why_not(t.device.type):
        raise _checks.device_error(FUNCTION, name, t.device, f"a device with kernels: {reason}")


def sizes_of(gates, memory, keys, w_hh, w_feed) -> tuple[int, ...]:
    """B, T, Tk, H, M, A, F."""
    (B, T, _), (_, Tk, M) = gates.shape, memory.shape
    return B, T, Tk, w_hh.shape[1], M, keys.shape[2], 0 if w_feed is None else w_feed.shape[1]


def check_operator(
    cell, bahdanau, gates, memory, keys, lengths, h0, c0, feed0, w_hh, b_hh, w_feed, w_query, v, w_context, w_hidden
):
    """Every tensor of the operator's arguments, except for the values of lengths."""
    if not isinstance(cell, str) or cell not in GATES:
        raise ValueError(f"{FUNCTION}: cell is {cell!r}, expected 'lstm' or 'gru'")
    for name, t, symbols in (("x", gates, "(B, T, E)"), ("memory", memory, "(B, Tk, M)"), ("keys", keys, "(B, Tk, A)")):
        check_tensor(name, t, gates)
        _checks.check_rank(FUNCTION, name, t.shape, symbols)
    check_tensor("weight_hh", w_hh, gates)
    _checks.check_rank(FUNCTION, "weight_hh", w_hh.shape, "(G*H, H)")
    B, T, Tk, H, M, A, F = sizes_of(gates, memory, keys, w_hh, w_feed)
    _checks.check_size(FUNCTION, "weight_hh", "H", H)
    rows, n = f"{GATES[cell]}*H", GATES[cell] * H
    score = "additive" if v is not None else "dot"
    if (w_query is None) != (v is None):
        raise ValueError(f"{FUNCTION}: query_weight and v: got one of them, expected both (additive) or none (dot)")
    wanted = [
        ("gates", gates, f"(B, T, {rows})", (B, T, n)),
        ("memory", memory, "(B, Tk, M)", (B, Tk, M)),
        ("keys", keys, "(B, Tk, A)" if score == "additive" else "(B, Tk, H)", (B, Tk, A if score == "additive" else H)),
        ("h0", h0, "(B, H)", (B, H)),
        ("c0", c0, "(B, H)", (B, H)),
        ("feed", feed0, "(B, H)", (B, H)),
        ("weight_hh", w_hh, f"({rows}, H)", (n, H)),
        ("bias_hh", b_hh, f"({rows},)", (n,)),
        ("weight_ih", w_feed, f"({rows}, M)" if bahdanau else f"({rows}, H)", (n, M if bahdanau else H)),
        ("query_weight", w_query, "(A, H)", (A, H)),
        ("v", v, "(A,)", (A,)),
        ("output_weight", w_context, "(H, M)", (H, M)),
        ("output_weight", w_hidden, "(H, H)", (H, H)),
    ]
    needed = {"h0", *(["c0"] if cell == "lstm" else []), *(["weight_ih"] if bahdanau else ["output_weight"])}
    needed |= {"feed"} if F and not bahdanau else set()
    for name, t, symbols, shape in wanted:
        if t is not None:
            check_tensor(name, t, gates)
            _checks.check_shape(FUNCTION, name, t.shape, symbols, shape)
        elif name in needed:
            raise _checks.type_error(FUNCTION, name, t, "a torch.Tensor")
    if lengths is not None:
        as_lengths(FUNCTION, lengths, B, gates)


def checked_lengths(lengths: Tensor | None, Tk: int) -> Tensor | None:
    """Lengths as the kernels read them, their values checked."""
    if lengths is None:
        return None
    check_lengths_within(FUNCTION, lengths, Tk)
    return lengths.to(torch.int64)
