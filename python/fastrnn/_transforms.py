"""Operators under torch.func (grad, vjp, jacrev, vmap), which a registered formula for autograd does not serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Bound once, like those of _paths.py; Dynamo traces torch.func itself.
_functorch_active = torch._C._are_functorch_transforms_active
_is_compiling = torch.compiler.is_compiling


def transforming() -> bool:
    """Whether a transform of torch.func or forward mode is active, outside of torch.compile."""
    return (_functorch_active() or forward_ad._current_level >= 0) and not _is_compiling()


def one_by_one(function: type[torch.autograd.Function], n: int, in_dims: Sequence, args: Sequence):
    """The general vmap rule: one call per element."""
    mapped = [isinstance(a, Tensor) and d is not None for a, d in zip(args, in_dims)]
    calls = [function.apply(*(a.select(d, i) if m else a for a, d, m in zip(args, in_dims, mapped))) for i in range(n)]
    outs = tuple(torch.stack(o) for o in zip(*calls))
    return outs, (0,) * len(outs)


def transformable(operator: Callable, save: Callable, differentiate: Callable) -> Callable:
    """The operator as a function that torch.func can transform; elsewhere it is the operator itself.

    Args:
        operator: one of torch.ops.fastrnn, with flat arguments.
        save, differentiate: what torch.library.register_autograd takes for it: setup_context and backward.
    """

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*args):
            return operator(*args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx, *above):
            return differentiate(ctx, *above)

        @staticmethod
        def jvp(ctx, *tangents):
            raise NotImplementedError(
                f"{operator.name()}: an argument has a tangent, expected none: forward-mode AD is not implemented here; "
                "use reverse mode (torch.func.vjp, jacrev)"
            )

        @staticmethod
        def vmap(info, in_dims, *args):
            return one_by_one(Transformed, info.batch_size, in_dims, args)

    return lambda *args: Transformed.apply(*args) if transforming() else operator(*args)
