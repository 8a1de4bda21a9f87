"""The oracle: every cell, one recurrent layer and attention in plain tensor code, for any dtype, differentiable to any
order.

Slow on purpose and easy to read; the compiled kernels are tested against it, FASTRNN_CHECK=1 runs it beside every
call, and double backward differentiates it.
"""

from .attend import SCORES, additive_attention, additive_scores, attention, attention_decoder, dot_scores
from .cells import CELLS, NORMALISED, STATES
from .layers import layer, split_weights

__all__ = [
    "CELLS",
    "NORMALISED",
    "SCORES",
    "STATES",
    "additive_attention",
    "additive_scores",
    "attention",
    "attention_decoder",
    "dot_scores",
    "layer",
    "split_weights",
]
