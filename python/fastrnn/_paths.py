"""Which of the call paths of ops.py a call takes: whether raw addresses will do, or somebody has to see an operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

# Bound once: a chain of attribute lookups costs as much as the guard itself. The private names are those that torch's
# own front ends use; each exists since 2.4.
_PLAIN = (Tensor, Parameter)
_is_compiling = torch.compiler.is_compiling
_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_mode = torch._C._is_torch_function_mode_enabled
_tracing_state = torch._C._get_tracing_state


def is_watched() -> bool:
    """Whether anything is active that has to see an operator rather than a raw call."""
    return (
        _is_compiling()
        or _functorch_active()
        or _dispatch_modes() > 0
        or _function_mode()
        or _tracing_state() is not None  # else path 1 would become a constant of torch.jit.trace
        or forward_ad._current_level >= 0  # else tangents would vanish without an error
    )


def is_exotic(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a tensor is of a subclass, which may want to see the operator, or has no memory."""
    for t in tensors:  # a generator would take twice as long
        if t is not None and (type(t) not in _PLAIN or t.is_meta):
            return True
    return False


def wants_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a tensor takes part in the differentiation."""
    for t in tensors:
        if t is not None and t.requires_grad:
            return True
    return False
