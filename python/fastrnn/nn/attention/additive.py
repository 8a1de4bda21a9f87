"""Attention to the whole memory: Bahdanau's and Luong's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .base import Attention, check_positive


class AdditiveAttention(Attention):
    """Bahdanau's attention (2015, arXiv 1409.0473): score = v . tanh(W_q query + W_m memory + b).

    Args:
        query_size, memory_size: widths of queries and memory.
        attention_size: width D of the space where they are added.
        bias: whether W_m has a bias b.
        device, dtype: as in torch.nn.
        activation: "tanh" or "relu".
        weight_norm: True for g v / |v| in place of v, with a learned scalar g (Salimans & Kingma 2016).
        num_heads: the space and the memory are cut into that many parts of equal width, each attends with a v of its
            own (v is [num_heads, D/num_heads] then, g [num_heads]), and the contexts are joined; weights are [B,
            num_heads, Tq, Tk].
        normalizer: a name in fastrnn.normalizers.NORMALIZERS, or a function with their arguments.
        temperature: scores are divided by it.
        dropout: probability of dropping a weight in training; the others are divided by 1 - dropout.

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
        *,
        activation: str = "tanh",
        weight_norm: bool = False,
        num_heads: int = 1,
        normalizer: str | Callable[..., Tensor] = "softmax",
        temperature: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        for name, size in (("attention_size", attention_size), ("memory_size", memory_size), ("num_heads", num_heads)):
            check_positive("AdditiveAttention", name, size)
        for name, size in (("attention_size", attention_size), ("memory_size", memory_size)):
            if size % num_heads:
                raise ValueError(f"AdditiveAttention: num_heads is {num_heads}, expected a divisor of {name} = {size}")
        super().__init__(
            query_size, memory_size, attention_size, "additive", normalizer, temperature, dropout, device, dtype,
            {"bias": bias, "activation": activation, "weight_norm": weight_norm, "num_heads": num_heads},
            num_heads=num_heads,
        )  # fmt: skip


BahdanauAttention = AdditiveAttention


class LuongAttention(Attention):
    """Luong's global attention (2015, arXiv 1508.04025): score = query . memory, query . W memory or v . tanh(W
    [both]).

    Args:
        query_size, memory_size: widths of queries and memory; memory_size None for the same.
        score: "dot", "general", "concat" or "cosine".
        scale: of the score, a number or "learned" (a scalar g that starts as 1); not with "concat".
        attention_size: width of "concat"; None for query_size.
        normalizer, temperature, dropout, device, dtype: as in AdditiveAttention.

    Example:
        >>> context, weights = LuongAttention(3, 4, score="general")(torch.ones(2, 3), torch.ones(2, 7, 4))
        >>> context.shape, weights.shape
        (torch.Size([2, 4]), torch.Size([2, 7]))
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int | None = None,
        *,
        score: str = "dot",
        scale: float | str = 1.0,
        attention_size: int | None = None,
        normalizer: str | Callable[..., Tensor] = "softmax",
        temperature: float = 1.0,
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if score == "additive":
            raise ValueError("LuongAttention: score is 'additive', expected 'dot', 'general', 'concat' or 'cosine'")
        super().__init__(
            query_size, memory_size, attention_size, score, normalizer, temperature, dropout, device, dtype,
            {"scale": scale},
        )  # fmt: skip
