"""The options of one call beyond the plain layer, flat, as an operator and an autograd.Function take them.

ops.rnn_layer() has them as Noise, Backprop and a flag. Tensors come first, one for the seed too: under torch.compile it
is drawn inside the graph.
"""

from __future__ import annotations

from typing import NamedTuple, get_type_hints

from torch import Tensor

from . import _checks
from ._backprop import Backprop
from ._cells import sizes
from ._layer_checks import check_backprop, check_candidate, check_zoned
from ._memory import check_storage
from ._noise import Noise, as_int, as_tensor
from ._tensor_checks import check_like


class Extras(NamedTuple):
    """See Noise and Backprop. The default is none of them."""

    seed: Tensor | None = None  # int64 []
    h_mask: Tensor | None = None
    detach_mask: Tensor | None = None
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    noise_training: bool = True
    candidate_dropout: float = 0.0
    candidate_per_step: bool = True
    checkpoint_every: int = 0
    grad_clip: float = 0.0
    reset_to_initial: bool = False

    def noise(self) -> Noise | None:
        """The regularisers, None if none acts."""
        draws = self.zoneout_h or self.zoneout_c or self.candidate_dropout
        if not draws and self.h_mask is None:
            return None
        seed = 0 if self.seed is None else as_int(self.seed)
        mask = None if self.h_mask is None else self.h_mask.contiguous()
        zoneout, candidate = (self.zoneout_h, self.zoneout_c), self.candidate_dropout
        return Noise(seed, zoneout, self.noise_training, mask, candidate, self.candidate_per_step)

    def backprop(self) -> Backprop | None:
        """The options of backward, None if there are none."""
        if not (self.checkpoint_every or self.grad_clip or self.detach_mask is not None):
            return None
        return Backprop(self.checkpoint_every, self.grad_clip, self.detach_mask)

    def check(self, function: str, cell: str, x: Tensor, weights: list[Tensor], D: int, batch_first: bool) -> None:
        """Raises unless these suit the layer: what rnn_layer() checks, and what memory needs."""
        _, B, _, H, P, _ = sizes(cell, x, weights, D, batch_first)
        for name in ("zoneout_h", "zoneout_c", "candidate_dropout"):
            _checks.check_probability(function, name, getattr(self, name))
        if self.noise_training and self.seed is None and (self.zoneout_h or self.zoneout_c or self.candidate_dropout):
            raise ValueError(f"{function}: seed is None, expected an int64 tensor with zoneout or candidate_dropout")
        check_candidate(function, cell, self.candidate_dropout)
        check_zoned(function, cell, (self.zoneout_h, self.zoneout_c))
        if P and self.zoneout_h:
            raise ValueError(f"{function}: zoneout_h is {self.zoneout_h} with a projection of {P}, expected 0")
        if self.h_mask is not None:
            check_like(function, "h_mask", self.h_mask, x)
            _checks.check_shape(function, "h_mask", self.h_mask.shape, "(D, B, H)", (D, B, P or H))
            check_storage(function, "h_mask", self.h_mask)
        if backprop := self.backprop():
            check_backprop(function, cell, x, backprop, "", batch_first)


COUNT, TENSORS = len(Extras._fields), 3
NONE = Extras()
# The fields of Extras in the language of operators.
SCHEMA = ", ".join(
    f"{'Tensor?' if kind == Tensor | None else kind.__name__} {name}={Extras._field_defaults[name]}"
    for name, kind in get_type_hints(Extras).items()
)


def flat(noise: Noise | None, backprop: Backprop | None, reset_to_initial: bool) -> Extras:
    """The options of a call of rnn_layer()."""
    # Written out: of defaults torch.compile(dynamic=True) would make symbols, which autograd.Functions cannot take.
    extras = Extras(None, None, None, 0.0, 0.0, True, 0.0, True, 0, 0.0, reset_to_initial)
    if noise is not None:
        extras = extras._replace(
            seed=as_tensor(noise.seed) if noise.training else None,
            h_mask=noise.h_mask,
            zoneout_h=noise.zoneout[0],
            zoneout_c=noise.zoneout[1],
            noise_training=noise.training,
            candidate_dropout=noise.candidate,
            candidate_per_step=noise.candidate_per_step,
        )
    if backprop is not None:
        every, clip, mask = backprop
        extras = extras._replace(checkpoint_every=every, grad_clip=clip, detach_mask=mask)
    return extras
