"""Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762) with torch.nn.MultiheadAttention's parameters and arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from torch.nn.functional import dropout, linear, pad

from ... import _checks, scopes
from ..._attention_masks import cleared, hidden_keys, valid_keys
from ..._tensor_checks import (
    as_lengths,
    autocast_dtype,
    check_dense,
    check_device,
    check_floats,
    check_lengths_within,
    check_like,
    check_memory,
    is_plain,
)
from ..._torch_attention import heads_context
from ...attention import dot_attention
from .base import check_positive

_NAME = "MultiHeadAttention"


class MultiHeadAttention(Module):
    """torch.nn.MultiheadAttention: same parameters, state_dict, initial values, arguments and results.

    The difference: a query that may attend to nothing has zero weights and a zero context, so that its output is the
        bias of
    `out_proj`; torch's is NaN, and so are its gradients. Besides, there is `lengths`, and `is_causal=True` needs no
    mask.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as in
            torch.nn.MultiheadAttention.

    Example:
        >>> attention = MultiHeadAttention(8, 2, batch_first=True)
        >>> y, weights = attention(*[torch.ones(3, 5, 8)] * 3, lengths=[5, 2, 0])
        >>> y.shape, weights.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        for name in ("embed_dim", "num_heads", "kdim", "vdim"):
            check_positive(_NAME, name, getattr(self, name))
        if embed_dim % num_heads:
            raise ValueError(f"{_NAME}: num_heads is {num_heads}, expected a divisor of embed_dim = {embed_dim}")
        _checks.check_probability(_NAME, "dropout", dropout)
        self.head_dim, self.batch_first, self.add_zero_attn = embed_dim // num_heads, batch_first, add_zero_attn
        made = {"device": device, "dtype": dtype}
        same = self.kdim == embed_dim == self.vdim
        shapes = {"in_proj_weight": (3 * embed_dim, embed_dim) if same else None}
        for name, width in (("q_proj_weight", embed_dim), ("k_proj_weight", self.kdim), ("v_proj_weight", self.vdim)):
            shapes[name] = None if same else (embed_dim, width)
        shapes["in_proj_bias"] = (3 * embed_dim,) if bias else None
        self._register(shapes, made)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, **made)
        self._register(dict.fromkeys(("bias_k", "bias_v"), (1, 1, embed_dim) if add_bias_kv else None), made)
        self._initialise()

    def _register(self, shapes: dict[str, tuple[int, ...] | None], made: dict[str, Any]) -> None:
        for name, shape in shapes.items():
            self.register_parameter(name, None if shape is None else Parameter(torch.empty(shape, **made)))

    def reset_parameters(self) -> None:
        """Initialises as torch does: projections by Xavier's rule, biases with zero, `out_proj` as torch.nn.Linear."""
        self.out_proj.reset_parameters()
        self._initialise()

    def _initialise(self) -> None:
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if getattr(self, name) is not None:
                torch.nn.init.xavier_uniform_(getattr(self, name))
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                torch.nn.init.zeros_(bias)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                torch.nn.init.xavier_normal_(bias)

    def precompute(
        self, key: Tensor, value: Tensor | None = None, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of a memory [B, S, kdim] (with batch_first) projected and cut into heads, once for many
        calls.

        Args:
            key, value: as in forward(); value None for key.
            lengths: [B] integers; what lies past them then reaches no gradient, NaN included.

        Returns:
            Two tensors [B, heads, S, head_dim], the argument `keys` of forward().
        """
        key, value = self._memory(key, value)
        S = key.shape[1]
        hidden = None if lengths is None else ~valid_keys(_NAME, _checked_lengths(lengths, key, S), S)
        return self._project(key, value, hidden)

    def _memory(self, key: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor]:
        """Key and value with B first, checked."""
        value = key if value is None else value
        key, _ = self._batched("key", key, self.kdim, "(B, S, kdim)")
        value, _ = self._batched("value", value, self.vdim, "(B, S, vdim)")
        _checks.check_shape(_NAME, "value", value.shape[:2], "(B, S)", key.shape[:2])
        return key, value

    def _project(self, key: Tensor, value: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values in heads; what `hidden` [B, S] says that nobody may see reaches no gradient."""
        key, value = cleared(key, hidden), cleared(value, hidden)
        weights, biases = self._projections()
        return self._heads(linear(key, weights[1], biases[1])), self._heads(linear(value, weights[2], biases[2]))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        keys: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends.

        Args:
            query: [L, B, embed_dim], [B, L, embed_dim] with batch_first, or [L, embed_dim].
            key: [S, B, kdim] in the layout of query; not needed with `keys`.
            value: [S, B, vdim]; None for key.
            key_padding_mask: [B, S], true where a key is ignored; or floats that are added to the scores.
            need_weights: False returns None for the weights, and leaves the heads to torch's
                scaled_dot_product_attention where that is faster (docs/attention.md; FASTRNN_LOG=1 prints it).
            attn_mask: [L, S] or [B*heads, L, S], true where a key is ignored; or floats that are added to the scores.
            average_attn_weights: True for the mean over the heads.
            is_causal: True for a query that sees no later key; attn_mask, if there is one, is used instead.
            lengths: [B] integers in [0, S], how many keys of each row are real.
            keys: precompute(key, value).

        Returns:
            Output, shaped like query, and weights [B, L, S] ([B, heads, L, S] not averaged; without B if unbatched).
            What bias_k and add_zero_attn append stands last.

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        query, unbatched = self._batched("query", query, self.embed_dim, "(B, L, embed_dim)")
        B, heads = query.shape[0], self.num_heads
        if keys is None:
            key, value = self._memory(key, value)
            _checks.check_shape(_NAME, "key", key.shape, "(B, S, kdim)", (B, *key.shape[1:]))
            S = key.shape[1]
        else:
            k, v = self._checked_keys(keys, query)
            S = k.shape[2]
        weights, biases = self._projections()
        q = self._heads(linear(query, weights[0], biases[0]))
        limits = self._limits(q, S, key_padding_mask, attn_mask, is_causal, lengths, unbatched)
        if keys is None:
            k, v = self._project(key, value, limits.hidden((B, heads), S))
        k, v, limits = self._appended(k, v, limits)
        context, shares = self._attend(q, k, v, limits, need_weights)
        y = self.out_proj(context.transpose(1, 2).flatten(2))
        y = y.squeeze(0) if unbatched else y if self.batch_first else y.transpose(0, 1)
        if not need_weights:
            return y, None
        shares = shares.mean(1) if average_attn_weights else shares
        return y, shares.squeeze(0) if unbatched else shares

    def _checked_keys(self, keys: object, query: Tensor) -> tuple[Tensor, Tensor]:
        """The result of precompute()."""
        if not isinstance(keys, tuple) or len(keys) != 2:
            raise _checks.type_error(_NAME, "keys", keys, "a pair of tensors, from precompute()")
        for name, t in zip(("keys", "values"), keys):
            check_like(_NAME, name, t, query, "query")
            check_memory(_NAME, name, t)
            _checks.check_rank(_NAME, name, t.shape, "(B, heads, S, head_dim)")
            expected = (query.shape[0], self.num_heads, keys[0].shape[2], self.head_dim)
            _checks.check_shape(_NAME, name, t.shape, "(B, heads, S, head_dim)", expected)
        return keys

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, limits: _Limits, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """context [B, heads, L, head_dim] and weights [B, heads, L, S]; every head is a row of the batch."""
        drops = self.training and self.dropout > 0
        lengths, mask, bias, is_causal = limits
        if not need_weights and not drops and lengths is None:  # kernels of fastrnn skip what lies past them
            context = heads_context(q, k, v, mask, bias, is_causal)
            if context is not None:
                return context, None
        B, heads, L, _ = q.shape
        options = {name: _rows(t, (B, heads, L, k.shape[2])) for name, t in (("mask", mask), ("bias", bias))}
        lengths = None if lengths is None else lengths.repeat_interleave(heads)
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        context, weights = dot_attention(q, k, v, scale=1 / math.sqrt(self.head_dim), lengths=lengths, **options)
        if drops:
            weights = dropout(weights, self.dropout)
            context = weights @ v
        return context.unflatten(0, (B, heads)), weights.unflatten(0, (B, heads))

    def _limits(self, q, S, key_padding_mask, attn_mask, is_causal, lengths, unbatched) -> _Limits:
        """What is left out, besides lengths as one mask (true is kept) and one bias, broadcasting to [B, heads, L, S]."""
        B, heads, L = q.shape[:3]
        limits = _Limits()
        if lengths is not None:
            limits = limits._replace(lengths=_checked_lengths(lengths, q, S))
        if key_padding_mask is not None:
            _check_mask("key_padding_mask", key_padding_mask, q)
            shape, symbols = ((S,), "(S,)") if unbatched else ((B, S), "(B, S)")
            _checks.check_shape(_NAME, "key_padding_mask", key_padding_mask.shape, symbols, shape)
            limits = limits.also(key_padding_mask.reshape(B, 1, 1, S), q.dtype)
        if attn_mask is not None:
            _check_mask("attn_mask", attn_mask, q)
            if attn_mask.ndim == 3:
                _checks.check_shape(_NAME, "attn_mask", attn_mask.shape, "(B*heads, L, S)", (B * heads, L, S))
                attn_mask = attn_mask.unflatten(0, (B, heads))
            else:
                _checks.check_shape(_NAME, "attn_mask", attn_mask.shape, "(L, S)", (L, S))
                attn_mask = attn_mask[None, None]
            limits = limits.also(attn_mask, q.dtype)
        elif is_causal:
            alone = lengths is None and key_padding_mask is None
            limits = limits.keeping(scopes.causal(L, S, device=q.device)[None, None])._replace(is_causal=alone)
        return limits

    def _appended(self, k: Tensor, v: Tensor, limits: _Limits) -> tuple[Tensor, Tensor, _Limits]:
        """Keys and values with bias_k, bias_v and a zero behind them, which no mask leaves out."""
        if self.bias_k is None and not self.add_zero_attn:
            return k, v, limits
        if limits.lengths is not None:
            valid = valid_keys(_NAME, limits.lengths, k.shape[2])
            limits = limits.keeping(valid[:, None, None])
        more = 0
        if self.bias_k is not None:
            k, v = (
                torch.cat((t, b.reshape(1, self.num_heads, 1, self.head_dim).expand(len(t), -1, -1, -1)), 2)
                for t, b in ((k, self.bias_k), (v, self.bias_v))
            )
            more += 1
        if self.add_zero_attn:
            k, v = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1))
            more += 1
        mask = None if limits.mask is None else pad(limits.mask, (0, more), value=True)
        bias = None if limits.bias is None else pad(limits.bias, (0, more))
        return k, v, _Limits(mask=mask, bias=bias)

    def _projections(self) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """Weights and biases of queries, keys and values."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        return weights, (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)

    def _heads(self, t: Tensor) -> Tensor:
        """[B, T, embed_dim] as [B, heads, T, head_dim]."""
        return t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _batched(self, name: str, t: Tensor, width: int, symbols: str) -> tuple[Tensor, bool]:
        """t with B first, and whether it had no B."""
        if not is_plain(t, self.out_proj.weight):
            check_floats(_NAME, name, t)
            if autocast_dtype(t) is None:
                check_like(_NAME, name, t, self.out_proj.weight, "the parameters")
        check_memory(_NAME, name, t)
        unbatched = t.ndim == 2
        if unbatched:
            t = t.unsqueeze(0)
        _checks.check_rank(_NAME, name, t.shape, symbols, " in any layout, or without B")
        t = t if self.batch_first or unbatched else t.transpose(0, 1)
        _checks.check_shape(_NAME, name, t.shape, symbols, (*t.shape[:2], width))
        return t, unbatched

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.embed_dim}, {self.num_heads}"


class _Limits(NamedTuple):
    lengths: Tensor | None = None  # [B]
    mask: Tensor | None = None  # bool, true where a key is kept
    bias: Tensor | None = None
    is_causal: bool = False  # whether the mask is the causal one, and all there is

    def keeping(self, mask: Tensor) -> _Limits:
        return self._replace(mask=mask if self.mask is None else self.mask & mask)

    def hidden(self, rows: tuple[int, int], S: int) -> Tensor | None:
        """Bool [B, S], true for a key that no query of any head may attend to."""
        pairs = (self.mask, self.bias)
        if self.mask is not None and self.bias is not None:
            pairs = torch.broadcast_tensors(*pairs)
        mask, bias = (None if t is None else t.expand(*rows, *t.shape[2:]).flatten(1, 2) for t in pairs)
        hidden = hidden_keys(mask, bias)
        if self.lengths is None:
            return hidden
        padding = ~valid_keys(_NAME, self.lengths, S)
        return padding if hidden is None else hidden | padding

    def also(self, given: Tensor, dtype: torch.dtype) -> _Limits:
        """With a mask in torch's sense: bool, true where a key is left out, or floats to add."""
        if given.dtype is torch.bool:
            return self.keeping(~given)
        given = given.to(dtype)
        return self._replace(bias=given if self.bias is None else self.bias + given)


def _rows(t: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A mask or bias that broadcasts to [B, heads, L, S] as one that broadcasts to [B*heads, L, S]."""
    if t is None:
        return None
    if t.shape[0] == 1 and t.shape[1] == 1:
        return t[0]
    return t.expand(*shape[:2], *t.shape[2:]).flatten(0, 1)


def _checked_lengths(lengths: Tensor | Sequence[int], t: Tensor, S: int) -> Tensor:
    """Lengths [B] within S, beside t [B, *]."""
    lengths = as_lengths(_NAME, lengths, t.shape[0], t, "query", S)
    check_lengths_within(_NAME, lengths, S)
    return lengths


def _check_mask(name: str, mask: Tensor, query: Tensor) -> None:
    check_dense(_NAME, name, mask)
    check_device(_NAME, name, mask, query, "query")
    check_memory(_NAME, name, mask)
    if mask.dtype is not torch.bool and not mask.dtype.is_floating_point:
        raise _checks.dtype_error(_NAME, name, mask.dtype, "torch.bool or a floating-point dtype")
