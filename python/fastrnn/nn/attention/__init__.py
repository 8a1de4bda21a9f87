"""Attention of recurrent decoders over the outputs of an encoder, and multi-head attention.

A module is a score (scores.py), a normaliser (fastrnn.normalizers) and a scope; base.py puts them together.
"""

from .additive import AdditiveAttention, BahdanauAttention, LuongAttention
from .base import Alignment
from .local import LocalAttention
from .location import LocationSensitiveAttention
from .monotonic import MonotonicAttention
from .multihead import MultiHeadAttention

__all__ = [
    "AdditiveAttention",
    "Alignment",
    "BahdanauAttention",
    "LocalAttention",
    "LocationSensitiveAttention",
    "LuongAttention",
    "MonotonicAttention",
    "MultiHeadAttention",
]
