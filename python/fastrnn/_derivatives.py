"""Derivatives of a layer beyond the first, of the reference: backward through backward, and forward mode.

A layer is y, h, c = F(u) of u = x, h0, c0, weights, and its first derivative is G(u, d) = J(u)^T d. Backward through
backward is J_G^T; forward mode multiplies by J and by J_G. torch cannot nest one level of forward mode in another
outside of torch.func, so J t is computed as the gradient of the linear function d -> <t, J^T d>, which every
transform can differentiate again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _oracle
from ._extras import Extras

Tensors = Sequence["Tensor | None"]


class Layer(NamedTuple):
    """What a call is besides the tensors that are differentiated."""

    cell: str
    lengths: Tensor | None
    reset_mask: Tensor | None
    directions: int
    batch_first: bool
    extras: Extras
    keep: bool  # c of every step is an output

    def outputs(self, x: Tensor, h0: Tensor | None, c0: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
        """y, h and, of cells that have it, c and, with keep, c of every step."""
        cell, lengths, reset_mask, directions, batch_first, extras, keep = self
        return _oracle.oracle(
            cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, extras.noise(), keep,
            extras.backprop(), extras.reset_to_initial,
        )  # fmt: skip

    def gradients(self, wanted: Sequence[bool], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """The gradients wanted of x, h0, c0, *weights. tensors: x, h0, c0, dy, dh, dc, dcs, *weights."""
        x, h0, c0, *above, weights = *tensors[:7], tensors[7:]
        chosen, f = _of_some(self.outputs, (x, h0, c0, *weights), wanted)
        out, vjp = torch.func.vjp(f, *chosen)
        return vjp(tuple(torch.zeros_like(o) if d is None else d for o, d in zip(out, above)))


def spread(found: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients found, with None where none was wanted."""
    rest = iter(found)
    return [next(rest) if want else None for want in wanted]


def _of_some(f: Callable, inputs: Tensors, wanted: Sequence[bool]) -> tuple[list[Tensor], Callable]:
    """Those of f's inputs that are wanted, and f as a function of them alone."""

    def of_some(*some: Tensor) -> tuple[Tensor, ...]:
        return tuple(f(*(s if want else t for s, t, want in zip(spread(some, wanted), inputs, wanted))))

    return [t for t, want in zip(inputs, wanted) if want], of_some


def _pulled(f: Callable, inputs: Tensors, above: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of all inputs, given those of the outputs of f. torch.func composes with autograd and itself."""
    present = [t is not None for t in inputs]
    chosen, f = _of_some(f, inputs, present)
    kind = chosen[0].device.type
    kind = kind if torch.amp.is_autocast_available(kind) else "cpu"
    with torch.enable_grad(), torch.autocast(kind, enabled=False):  # forward mode runs where forward does
        _, vjp = torch.func.vjp(f, *chosen)
        return spread(vjp(tuple(above)), present)


def _in_jvp() -> bool:
    """Whether the innermost transform of torch.func is jvp."""
    inner = torch._C._functorch.peek_interpreter_stack()
    return inner is not None and inner.key() == torch._C._functorch.TransformType.Jvp


def _levels_below() -> AbstractContextManager:
    """torch calls a rule for forward mode with forward mode off; a jvp around the innermost one needs it on."""
    return forward_ad._set_fwd_grad_enabled(True) if _in_jvp() else nullcontext()


def _primal(t: Tensor | None) -> Tensor | None:
    """t without its tangent of the innermost jvp, which must not have one again."""
    return t if t is None or not _in_jvp() else forward_ad.unpack_dual(t).primal


def _pushed(f: Callable, inputs: Tensors, tangents: Tensors, shapes: Sequence[torch.Size]) -> list[Tensor | None]:
    """The tangents of the outputs of f, which have these shapes, given those of its inputs, None for zero."""
    wanted = [t is not None for t in tangents]
    if not any(wanted):
        return [None] * len(shapes)
    with _levels_below():
        inputs, tangents = ([_primal(t) for t in of] for of in (inputs, tangents))
        chosen, f = _of_some(f, inputs, wanted)

        def pull(*above: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(f, *chosen)[1](above)

        return _pulled(pull, [chosen[0].new_zeros(shape) for shape in shapes], [t for t in tangents if t is not None])


def _wanted_inputs(wanted: Sequence[bool], tensors: Tensors) -> list[Tensor]:
    x, h0, c0, _, _, _, _, *weights = tensors
    return [t for t, want in zip((x, h0, c0, *weights), wanted) if want]


def second(layer: Layer, wanted: Sequence[bool], tensors: Tensors, ddout: Tensors) -> list[Tensor | None]:
    """The gradients of Layer.gradients(). ddout: for each of those, None for zero."""
    ddout = [torch.zeros_like(t) if d is None else d for t, d in zip(_wanted_inputs(wanted, tensors), ddout)]
    return _pulled(lambda *given: layer.gradients(wanted, *given), tensors, ddout)


def tangents_of_outputs(
    layer: Layer, inputs: Tensors, tangents: Tensors, shapes: Sequence[torch.Size]
) -> list[Tensor | None]:
    """The tangents of Layer.outputs() from those of x, h0, c0, *weights."""
    return _pushed(layer.outputs, inputs, tangents, shapes)


def tangents_of_gradients(
    layer: Layer, wanted: Sequence[bool], tensors: Tensors, tangents: Tensors
) -> list[Tensor | None]:
    """The tangents of Layer.gradients() from those of its tensors."""
    shapes = [t.shape for t in _wanted_inputs(wanted, tensors)]
    return _pushed(lambda *given: layer.gradients(wanted, *given), tensors, tangents, shapes)
