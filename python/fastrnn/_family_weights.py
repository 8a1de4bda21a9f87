"""The weights (and, of an AUGRU, the input) of cells that torch does not have, as their kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence

from . import _checks
from ._layer_checks import check_input, check_like


def as_minimal(function: str, gates: int, w_ih: Tensor, bias: Tensor) -> list[Tensor]:
    """The weights of a cell without a recurrent matrix as its kernel takes them: w_hh has no columns, b_hh is zero."""
    for name, t in (("weight_ih", w_ih), ("bias", bias)):
        if not isinstance(t, Tensor):
            raise _checks.type_error(function, name, t, "a torch.Tensor")
    H = w_ih.shape[0] // gates if w_ih.ndim else 0
    symbols, rows = f"({gates}*H,)" if gates > 1 else "(H,)", (gates * H,)
    _checks.check_shape(function, "bias", bias.shape, symbols, rows)
    return [w_ih, w_ih.new_empty(*rows, 0), bias, torch.zeros_like(bias)]


def as_indrnn(w_ih: Tensor, u: Tensor, bias: Tensor) -> list[Tensor]:
    """The weights of an IndRNN: as_minimal(), and u at the end of b_hh."""
    if not isinstance(u, Tensor):
        raise _checks.type_error("indrnn", "weight_hh", u, "a torch.Tensor")
    *weights, zero = as_minimal("indrnn", 1, w_ih, bias)
    _checks.check_shape("indrnn", "weight_hh", u.shape, "(H,)", (w_ih.shape[0],))
    return [*weights, torch.cat((zero, u))]


def as_augru(end: str, w_ih: Tensor, w_hh: Tensor, *biases: Tensor) -> list[Tensor]:
    """The weights of an AUGRU, those of a GRU, as its kernel takes them: with a fourth gate, whose input part is the
    last column of x, the attention, for every unit, and whose recurrent part is zero."""
    named = zip(_checks.weight_names(1, bool(biases), False, end), (w_ih, w_hh, *biases))
    for name, w in named:
        if not isinstance(w, Tensor):
            raise _checks.type_error("augru", name, w, "a torch.Tensor")
    _checks.check_rank("augru", f"weight_ih{end}", w_ih.shape, "(3*H, I)")
    I, H = w_ih.shape[1], w_ih.shape[0] // 3
    _checks.check_weights("augru", 3, [w.shape for w in (w_ih, w_hh, *biases)], I, H, 0, 1, bool(biases), end)
    attention = pad(w_ih.new_ones(H, 1), (I, 0))
    wide = torch.cat((pad(w_ih, (0, 1)), attention))
    w_hh = pad(w_hh, (0, 0, 0, H))
    return [wide, w_hh, *(pad(b, (0, H)) for b in biases)]


def with_attention(x: object, attention: object, I: int, batch_first: bool) -> Tensor:
    """x [T, B, I] with the attention [T, B] as one more column."""
    symbols = "(B, T)" if batch_first else "(T, B)"
    if isinstance(x, PackedSequence):
        raise _checks.type_error("augru", "x", x, "a torch.Tensor; give lengths instead")
    if not isinstance(x, Tensor) or x.ndim != 2:
        check_input("augru", x, symbols.replace(")", ", I)"), " or (T, I)")
    check_like("augru", "attention", attention, x)
    _checks.check_shape("augru", "x", x.shape[-1:], "(I,)", (I,))
    _checks.check_shape("augru", "attention", attention.shape, symbols if x.ndim == 3 else "(T,)", x.shape[:-1])
    return torch.cat((x, attention.unsqueeze(-1)), -1)
