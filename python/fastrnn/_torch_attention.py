"""Heads of dot attention without weights by torch.nn.functional.scaled_dot_product_attention, where that is faster.

Only calls that torch's kernel answers as fastrnn's does are handed over. It is without second derivatives and rounds the
weights of narrow types, so nothing that wants a gradient and float32 alone; and from torch 2.5 on a row without a key is
zero, before it was NaN. So is a context into which the NaN of hidden keys got. Where keys are hidden the context is
therefore looked at, and fastrnn computes it again if it is not finite.
"""

from __future__ import annotations

import math
import os
import sys

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from . import _paths

_LOG = os.environ.get("FASTRNN_LOG") == "1"
# Wider heads are no faster there (docs/attention.md). Below a vector of keys, 16, torch's kernel makes zeros of a query
# that is NaN.
MOST_COLUMNS, FEWEST_KEYS = 64, 32


def heads_context(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, is_causal: bool
) -> Tensor | None:
    """softmax(query key^T / sqrt(D) + bias) value of each head by torch, or None where fastrnn has to compute it.

    Args:
        query: [B, heads, L, D], as key and value [B, heads, S, D] checked.
        mask: bool, broadcast to [B, heads, L, S], true where a key may be attended.
        bias: [B, heads, L, S], or broadcast to it.
        is_causal: whether mask is that of is_causal=True, and bias None.
    """
    tensors = (query, key, value, mask, bias)
    if _paths.is_watched() or _paths.is_exotic(tensors) or (torch.is_grad_enabled() and _paths.wants_gradient(tensors)):
        return None
    (B, heads, L, D), S = query.shape, key.shape[2]
    if not query.is_cpu or D > MOST_COLUMNS or S < FEWEST_KEYS or not query.numel():
        return None
    if not query.dtype is key.dtype is value.dtype is torch.float32:
        return None
    limits = None if is_causal else _as_one(mask, bias)
    context = scaled_dot_product_attention(query, key, value, attn_mask=limits, is_causal=is_causal)
    if (is_causal or limits is not None) and not math.isfinite(context.sum()):
        return None
    if _LOG:
        shape = f"B={B} heads={heads} L={L} S={S} D={D}"
        print(f"fastrnn: dot_attention_forward {shape} -> torch scaled_dot_product_attention", file=sys.stderr)
    return context


def _as_one(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """What torch calls attn_mask: bool, or a bias."""
    if mask is None or bias is None:
        return bias if mask is None else mask
    return torch.where(mask, bias, -math.inf)
