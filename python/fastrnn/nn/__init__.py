"""Attention, and recurrent modules with the arguments, parameter names, initialisation and state_dict of torch.nn's.

They hold parameters and call fastrnn.functional, nothing else. They do not derive from torch.nn.RNNBase: code that
asks isinstance(m, torch.nn.GRU) does so to reach torch's own equations or kernels (exporters, quantisers), which would
be wrong without a word for reset_after=False, lengths or reset_mask; and RNNBase keeps a second list of the weights
that goes stale when a weight is replaced. Here weights are read by name at each call, so that functional_call,
parametrizations, load_state_dict(assign=True) and `.data =` are all seen.
"""

from . import init
from .attention import (
    AdditiveAttention,
    Alignment,
    BahdanauAttention,
    LocalAttention,
    LocationSensitiveAttention,
    LuongAttention,
    MonotonicAttention,
    MultiHeadAttention,
)
from .cells import GRUCell, LSTMCell, RNNCell
from .decoder import AttentionDecoder
from .family import AUGRU, SLSTM, FastGRNN, FastRNN, IndRNN, MinGRU, MinLSTM
from .layers import GRU, LSTM, RNN

__all__ = [
    "AUGRU",
    "GRU",
    "LSTM",
    "RNN",
    "SLSTM",
    "AdditiveAttention",
    "Alignment",
    "AttentionDecoder",
    "BahdanauAttention",
    "FastGRNN",
    "FastRNN",
    "GRUCell",
    "IndRNN",
    "LSTMCell",
    "LocalAttention",
    "LocationSensitiveAttention",
    "LuongAttention",
    "MonotonicAttention",
    "MultiHeadAttention",
    "MinGRU",
    "MinLSTM",
    "RNNCell",
    "init",
]
