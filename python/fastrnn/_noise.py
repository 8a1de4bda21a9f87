"""Random numbers of the regularisers: a function of a seed and of a place, the same on every backend (csrc/noise.h).

hits() restates them for the oracle and for dropout on GPUs.

>>> bool((hits(7, 0, 3, 2, 5, 0.5) == hits(7, 0, 3, 2, 5, 0.5)).all())
True
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import _core
from ._checks import check_count, check_probability, type_error
from ._heads import split_units

_64, _32 = (1 << 64) - 1, (1 << 32) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Streams: 2 d + s for zoneout of state s in direction d, and
_RECURRENT_DROPOUT, _WEIGHT_DROPOUT, _INPUT_DROPOUT, _OUTPUT_DROPOUT = 8, 16, 24, 32
CANDIDATE_DROPOUT = 40


class Noise(NamedTuple):
    """The regularisers of one layer in one call."""

    seed: int | Tensor  # a tensor where it is part of a graph, see in_graph()
    zoneout: tuple[float, float]  # of h, c: probability that a unit keeps the state of the step before
    training: bool  # False: the expectation
    h_mask: Tensor | None = None  # [D, B, H or P] factors of h where the recurrent product reads it
    candidate: float = 0.0  # probability of dropping a unit of the candidate
    candidate_per_step: bool = True  # False: the same units at every step

    def of_head(self, head: int, num_heads: int) -> Noise:
        """Those of one head: the units of head n draw as those of a layer of H/N units with another seed, and h_mask is
        the head's part of the layer's."""
        mask = self.h_mask
        mask = None if mask is None else split_units(mask, num_heads)[head].contiguous()
        return self._replace(seed=_mixed(self.seed, head * _GOLDEN), h_mask=mask)

    def for_core(self) -> tuple[int, float, float, bool, int, float, bool]:
        """As _core and _cuda take it."""
        mask = 0 if self.h_mask is None else self.h_mask.data_ptr()
        return self.seed, *self.zoneout, self.training, mask, self.candidate, self.candidate_per_step


class Rates(NamedTuple):
    """What a module or function was asked for; probabilities in [0, 1]."""

    zoneout: tuple[float, float] = (0.0, 0.0)
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    candidate_dropout: float = 0.0
    candidate_per_step: bool = True
    seed: int | Tensor = 0

    def drawn(self, function: str, seed: int | None, training: bool) -> Rates | None:
        """These for one call; a seed of None comes from torch's generator. None if nothing acts."""
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise type_error(function, "seed", seed, "an int or None")
        if not training and not any(self.zoneout):
            return None
        if not training:
            return self
        if seed is not None:
            return self._replace(seed=as_tensor(seed) if in_graph() else seed & _64)
        drawn = torch.randint(1 << 62, ())
        if in_graph():
            return self._replace(seed=drawn)
        if torch._C._get_tracing_state() is not None or torch._C._functorch.is_batchedtensor(drawn):
            raise NotImplementedError(
                f"{function}: zoneout and the dropouts of the recurrence, of the candidate, of weights, input and output are not implemented "
                "inside torch.jit.trace and torch.func.vmap(randomness='different'), expected 0 or randomness='same'"
            )
        return self._replace(seed=int(drawn))

    def of_layer(self, layer: int, training: bool, x: Tensor, B: int, width: int, D: int) -> Noise | None:
        """The regularisers of layer number `layer`, for the dtype and device of x."""
        p, candidate = (self.recurrent_dropout, self.candidate_dropout) if training else (0.0, 0.0)
        if not (any(self.zoneout) or p or candidate):
            return None
        seed = self.seed_of(layer)
        mask = None
        if p:
            mask = torch.stack([dropout_mask(seed, _RECURRENT_DROPOUT + d, B, width, p, x) for d in range(D)])
        return Noise(seed, self.zoneout, training, mask, candidate, self.candidate_per_step)

    def seed_of(self, layer: int) -> int | Tensor:
        return _mixed(self.seed, layer * 0xD1B54A32D192ED03)

    def drop_weights(self, layer: int, direction: int, w_hh: Tensor) -> Tensor:
        """DropConnect (Wan et al. 2013; on R: Merity et al. 2018): single weights are zero for the whole sequence."""
        seed, (rows, columns) = self.seed_of(layer), w_hh.shape
        return w_hh * dropout_mask(seed, _WEIGHT_DROPOUT + direction, rows, columns, self.weight_dropout, w_hh)

    def drop_input(self, layer: int, x: Tensor, batch_first: bool) -> Tensor:
        """Units of a layer's input, for the whole sequence (Gal & Ghahramani 2016)."""
        return self._drop_units(layer, _INPUT_DROPOUT, self.input_dropout, x, batch_first)

    def drop_output(self, layer: int, y: Tensor, batch_first: bool) -> Tensor:
        """Units of the last layer's output, likewise."""
        return self._drop_units(layer, _OUTPUT_DROPOUT, self.output_dropout, y, batch_first)

    def _drop_units(self, layer: int, stream: int, p: float, x: Tensor, batch_first: bool) -> Tensor:
        if not p:
            return x
        time = 1 if batch_first else 0
        mask = dropout_mask(self.seed_of(layer), stream, x.shape[1 - time], x.shape[2], p, x)
        return x * mask.unsqueeze(time)


def rates_of(
    function: str,
    zoneout: float | tuple[float, float],
    recurrent_dropout: float,
    weight_dropout: float,
    input_dropout: float,
    output_dropout: float,
    candidate_dropout: float = 0.0,
    candidate_dropout_per: str = "step",
) -> Rates | None:
    """The regularisers asked for, checked; None if there are none."""
    pair = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout, zoneout)
    if len(pair) != 2:
        check_count(function, "zoneout", len(pair), "2: of h and of c")
    named = {"zoneout": pair[0], "zoneout of c": pair[1]}
    dropouts = {"recurrent_dropout": recurrent_dropout, "weight_dropout": weight_dropout}
    dropouts |= {
        "input_dropout": input_dropout,
        "output_dropout": output_dropout,
        "candidate_dropout": candidate_dropout,
    }
    for name, p in (named | dropouts).items():
        check_probability(function, name, p)
    if candidate_dropout_per not in ("step", "sequence"):
        raise ValueError(
            f"{function}: candidate_dropout_per is {candidate_dropout_per!r}, expected 'step' or 'sequence'"
        )
    if not (any(pair) or any(dropouts.values())):
        return None
    per_step, rates = candidate_dropout_per == "step", {name: float(p) for name, p in dropouts.items()}
    return Rates((float(pair[0]), float(pair[1])), candidate_per_step=per_step, **rates)


def in_graph() -> bool:
    """Whether something records operators: a number would become a constant there."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def as_tensor(seed: int | Tensor) -> Tensor:
    """A seed as int64 []."""
    if isinstance(seed, Tensor):
        return seed
    if not -(1 << 63) <= seed < 1 << 63:  # a symbol of the compiler never is
        seed = _as_signed(seed & _64)
    return torch.tensor(seed, dtype=torch.int64, device="cpu")


def as_int(seed: Tensor) -> int:
    """A seed in [0, 2^64)."""
    return int(seed) & _64


def _mixed(seed: int | Tensor, add: int) -> int | Tensor:
    """Another seed."""
    if isinstance(seed, Tensor):
        return torch.ops.fastrnn.mixed_seed(seed, _as_signed(add & _64))
    return _mix64_int((seed + add) & _64)


def dropout_mask(seed: int | Tensor, stream: int, rows: int, units: int, p: float, like: Tensor) -> Tensor:
    """Factors [rows, units] in the dtype and on the device of `like`: 0 with probability p, else 1 / (1 - p)."""
    if isinstance(seed, Tensor) or torch._C._are_functorch_transforms_active():  # whose tensors have no address
        return torch.ops.fastrnn.dropout_mask(as_tensor(seed), stream, rows, units, p, like.dtype, like.device)
    return _mask(seed, stream, rows, units, p, like.dtype, like.device)


def _mask(seed: int, stream: int, rows: int, units: int, p: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    if device.type != "cpu":
        return _mask_on_device(seed, stream, rows, units, p, wide, device).to(dtype)
    mask = torch.empty(rows, units, dtype=wide, device=device)
    _core.dropout_mask(mask.element_size(), seed, stream, rows, units, p, mask.data_ptr())
    return mask.to(dtype)


def _mask_on_device(
    seed: int, stream: int, rows: int, units: int, p: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The same numbers where they are needed: a copy from the host would wait for the device."""
    scale = 1 / (1 - p) if p < 1 else 0.0
    return hits(seed, stream, rows, 1, units, p, device)[:, 0].logical_not().to(dtype).mul_(scale)


def hits(seed: int, stream: int, T: int, B: int, units: int, rate: float, device: torch.device | str = "cpu") -> Tensor:
    """Which units are hit, with probability `rate`, at each time and row: bool [T, B, units]."""
    return bits(seed, stream, T, B, units, device) < (_32 if rate >= 1 else int(rate * 2.0**32))


def bits(seed: int, stream: int, T: int, B: int, units: int, device: torch.device | str = "cpu") -> Tensor:
    """32 random bits of each unit at each time and row, as int64 [T, B, units]."""
    count = partial(torch.arange, device=device)
    key = _mix64(count(T) + _as_signed(_mix64_int((seed + _GOLDEN * (stream + 1)) & _64)))
    key = _mix64(key[:, None] + count(B))[..., None]
    first = _mix32((count(units) + (key & _32)) & _32)
    return _mix32(first ^ (_shift(key, 32)))


def _as_signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shift(x: Tensor, n: int) -> Tensor:
    """Logical shift to the right of 64 bits, which torch keeps as signed numbers."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _mix64_int(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _64
    return x ^ (x >> 31)


def _mix64(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _as_signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _as_signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _mix32(x: Tensor) -> Tensor:
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _32
    return x ^ (x >> 16)


# Under torch.compile a seed is a tensor that the graph draws, and what is computed from it are operators.
_lib = torch.library.Library("fastrnn", "FRAGMENT")
_lib.define("mixed_seed(Tensor seed, int add) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_lib.define(
    "dropout_mask(Tensor seed, int stream, SymInt rows, SymInt units, float p, ScalarType dtype, Device device) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_lib.impl("mixed_seed", lambda seed, add: _mix64(seed + add), "CompositeExplicitAutograd")
_lib.impl("dropout_mask", lambda seed, *args: _mask(as_int(seed), *args), "CompositeExplicitAutograd")
torch.library.register_fake("fastrnn::mixed_seed", lambda seed, add: torch.empty_like(seed), lib=_lib)
torch.library.register_fake(
    "fastrnn::dropout_mask",
    lambda seed, stream, rows, units, p, dtype, device: torch.empty(rows, units, dtype=dtype, device=device),
    lib=_lib,
)
