"""The attention decoder on CPUs seen from torch: from arguments that have been checked to addresses for `_core`, and back.

`arguments` everywhere: cell, bahdanau, gates, memory, keys, lengths, h0, c0, feed0, w_hh, b_hh, w_feed, w_query, v,
w_context, w_hidden, see csrc/decoder.h.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks, _core
from ._decoder_checks import FUNCTION, check_operator, check_tensor, checked_lengths, sizes_of
from ._memory import address_of, dense, rows_in_place
from .threads import current as current_threads

NAMES = (
    "x", "memory", "keys", "lengths", "h0", "c0", "feed", "weight_hh", "bias_hh", "weight_ih", "query_weight", "v",
    "output_weight", "output_weight",
)  # fmt: skip


_PARTS = ("w_feed", "w_context", "w_hidden")  # columns of weight_ih and output_weight, read where they are


class Sizes(NamedTuple):
    B: int
    T: int
    Tk: int
    H: int
    M: int  # memory
    A: int  # keys
    F: int  # what is fed


class Record(NamedTuple):
    """Where the parts of a record begin, and its size, see csrc/decoder.h."""

    c: int
    h: int
    query: int
    context: int
    out: int
    size: int


class Inputs(NamedTuple):
    """The tensors of a call as kernels read them; they have to live as long as it runs."""

    gates: Tensor
    memory: Tensor
    keys: Tensor
    lengths: Tensor | None
    h0: Tensor
    c0: Tensor | None
    feed0: Tensor | None
    w_hh: Tensor
    b_hh: Tensor | None
    w_feed: Tensor | None
    w_query: Tensor | None
    v: Tensor | None
    w_context: Tensor | None
    w_hidden: Tensor | None


def record_of(cell: str, sizes, additive: bool, bahdanau: bool) -> Record:
    return Record(*_core.decoder_record(cell, [0, 0, 0, *map(int, sizes[3:])], additive, bahdanau))


def call_of(arguments, module: ModuleType = _core, steps: int | None = None) -> tuple[object, Inputs, Sizes]:
    """The call as a compiled module takes it, its tensors, and the sizes; T is `steps` if given."""
    cell, bahdanau, *tensors = arguments
    check_operator(cell, bahdanau, *tensors)
    given = Inputs(*tensors)
    if given.gates.dtype not in (torch.float32, torch.float64):
        raise _checks.dtype_error(FUNCTION, "x", given.gates.dtype, "torch.float32 or torch.float64")
    sizes = Sizes(*sizes_of(given.gates, given.memory, given.keys, given.w_hh, given.w_feed))
    if steps is not None:
        sizes = sizes._replace(T=steps)
    given = given._replace(lengths=checked_lengths(given.lengths, sizes.Tk))
    found, distances = [], []
    for field, name, t in zip(Inputs._fields, NAMES, given):
        if field in _PARTS:
            t, distance = rows_in_place(FUNCTION, name, t)
            distances.append(distance)
        else:
            t = dense(FUNCTION, name, t)
        found.append(t)
    given = Inputs(*found)
    addresses = [*map(address_of, given)]
    call = module.Decoder(given.gates.element_size(), cell, bahdanau, list(sizes), addresses, distances)
    return call, given, sizes


def forward(cell, bahdanau, *rest):
    *tensors, training = rest
    call, _owners, sizes = call_of((cell, bahdanau, *tensors))
    found = new_outputs(cell, bahdanau, *tensors, training)
    clear_padding(found[-1], sizes)
    if sizes.B:
        _core.decoder_forward(call, *map(address_of, found), current_threads())
    return found


def new_outputs(cell, bahdanau, *rest):
    """Outputs, weights, h, c and the reserve, all of them without values."""
    gates, memory, keys, _, _, c0, _, w_hh, _, w_feed, _, v, _, _, training = rest
    B, T, Tk, H, *_ = sizes = sizes_of(gates, memory, keys, w_hh, w_feed)
    reserve = gates.new_empty((B, T, record_of(cell, sizes, v is not None, bahdanau).size) if training else (0,))
    c = gates.new_empty((B, H) if cell == "lstm" else (0,))
    return gates.new_empty(B, T, H), gates.new_empty(B, T, Tk), gates.new_empty(B, H), c, reserve


def clear_padding(reserve: Tensor, sizes: Sizes) -> None:
    """Its padding is not written, and the operator's result has to be the same each time."""
    if any(n % 32 for n in sizes[3:6]):
        reserve.zero_()


def checked_gradients(cell, bahdanau, sizes, tensors, weights, reserve, given) -> list[Tensor | None]:
    """What forward has left and what is asked of it, dense."""
    B, T, Tk, H, *_ = sizes
    record = record_of(cell, sizes, tensors.v is not None, bahdanau).size
    shapes = [(B, T, Tk), (B, T, record), (B, T, H), (B, T, Tk), (B, H), (B, H)]
    names = ("weights", "reserve", "doutputs", "dweights", "dh", "dc")
    found = []
    for name, t, shape in zip(names, (weights, reserve, *given), shapes):
        if t is not None:
            check_tensor(name, t, tensors.gates)
            _checks.check_shape(FUNCTION, name, t.shape, "the shape that goes with forward", shape)
        found.append(dense(FUNCTION, name, t))
    return found


def backward(cell, bahdanau, *rest):
    tensors, (weights, reserve, *given) = rest[:14], rest[14:]
    call, inputs, sizes = call_of((cell, bahdanau, *tensors))
    given = checked_gradients(cell, bahdanau, sizes, inputs, weights, reserve, given)
    found = new_gradients(cell, bahdanau, *rest)
    if sizes.B:
        _core.decoder_backward(call, [*map(address_of, given)], [*map(address_of, found)], current_threads())
    else:
        for t in found:
            t.zero_()
    return found


def new_gradients(cell, bahdanau, *rest):
    tensors = (*rest[:3], *rest[4:14])
    gates = rest[0]
    return tuple(
        gates.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors
    )


def generate(arguments, max_length: int, sizes, sampling, given, found) -> None:
    """Fills `found`, see generation.py. sizes: E, V, beams, end, top_k, distance of the rows of w_input; sampling:
    temperature and seed."""
    call, _owners, _ = call_of(arguments, _core, max_length)
    _core.decoder_generate(
        call, sizes, *sampling, [*map(address_of, given)], [t.data_ptr() for t in found], current_threads()
    )
