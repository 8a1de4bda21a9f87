"""Attention over the outputs of an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from .. import _checks
from ..attention import additive_attention


class AdditiveAttention(Module):
    """Bahdanau's attention: score = v . tanh(W_q query + W_m memory + b), softmax over the memory, weighted sum of it.

    Args:
        query_size, memory_size: widths of queries and memory.
        attention_size: width D of the space where they are added.
        bias: whether W_m has a bias b.
        device, dtype: as in torch.nn.

    Example:
        >>> context, weights = AdditiveAttention(3, 4, 8)(torch.ones(2, 5, 3), torch.ones(2, 7, 4), lengths=[7, 2])
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        attention_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("query_size", query_size),
            ("memory_size", memory_size),
            ("attention_size", attention_size),
        ):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"AdditiveAttention: {name} is {size!r}, expected an int of at least 1")
        self.query_size, self.memory_size, self.attention_size = query_size, memory_size, attention_size
        self.query_layer = Linear(query_size, attention_size, bias=False, device=device, dtype=dtype)
        self.memory_layer = Linear(memory_size, attention_size, bias=bias, device=device, dtype=dtype)
        self.v = Parameter(torch.empty(attention_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises both projections as torch.nn.Linear does, and v uniformly in +-1/sqrt(attention_size)."""
        self.query_layer.reset_parameters()
        self.memory_layer.reset_parameters()
        bound = 1 / math.sqrt(self.attention_size)
        torch.nn.init.uniform_(self.v, -bound, bound)

    def precompute(self, memory: Tensor) -> Tensor:
        """The projected memory [B, Tk, D], for a decoder that attends to the same memory many times."""
        return self.memory_layer(memory)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attends.

        Args:
            query: [B, Tq, query_size], or [B, query_size] for one step.
            memory: [B, Tk, memory_size].
            lengths: [B] integers, how much of each memory is real.
            mask: bool [B, Tq, Tk] or broadcast to it, true where a key may be attended.
            keys: precompute(memory), computed here when absent.

        Returns:
            context [B, Tq, memory_size] and weights [B, Tq, Tk]; without Tq for one step.

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        for name, t in (("query", query), ("memory", memory)):
            if not isinstance(t, Tensor):
                raise _checks.type_error("additive_attention", name, t, "a torch.Tensor")
        one = query.ndim == 2
        if one:
            query = query.unsqueeze(1)
        _checks.check_rank("additive_attention", "query", query.shape, "(B, Tq, query_size)", " or (B, query_size)")
        _checks.check_rank("additive_attention", "memory", memory.shape, "(B, Tk, memory_size)")
        for name, t, size in (("query", query, self.query_size), ("memory", memory, self.memory_size)):
            _checks.check_shape("additive_attention", name, t.shape, f"(B, T, {name}_size)", (*t.shape[:2], size))
        if keys is None:
            keys = self.precompute(memory)
        context, weights = additive_attention(self.query_layer(query), keys, memory, self.v, lengths=lengths, mask=mask)
        return (context.squeeze(1), weights.squeeze(1)) if one else (context, weights)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.query_size}, {self.memory_size}, {self.attention_size}"


BahdanauAttention = AdditiveAttention
