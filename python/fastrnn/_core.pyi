"""The CPU kernels on raw addresses.

Addresses are plain ints (`tensor.data_ptr()`, `array.ctypes.data`), 0 = absent; sizes and strides are in elements.
Nothing is checked here: the Python front ends check everything first, and the caller keeps the memory alive during
the call.
Letters: T time steps, B rows, I inputs, H hidden units, P projected units (0 = none), D directions, G gates, S states.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

class Cell(TypedDict):
    gates: int  # G
    states: int  # S: 1 (h), 2 (h, c) or 4 (h, c, n, m)
    reserve: int  # R: what forward keeps per step for backward, in rows of H rounded up to a multiple of 16
    vectors: int  # V: parameters of each unit besides the matrices, at the end of b_hh
    product: bool  # whether there is a recurrent matrix
    drops_candidate: bool  # whether candidate dropout can act

class Plan(TypedDict):
    schedule: str  # "batch_split" or "hidden_split"
    threads: int
    chunk_steps: int  # time steps of which the input projection is computed at once

CELLS: dict[str, Cell]

def isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(isa: str) -> None: ...
def num_threads() -> int: ...
def default_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def rnn_forward(
    cell: str,
    itemsize: int,  # 4 = float32, 8 = float64
    T: int,
    B: int,
    I: int,
    H: int,
    P: int,
    D: int,
    x: int,  # [T, B, I], last dimension contiguous
    x_stride_t: int,
    x_stride_b: int,
    weights: list[int],  # per direction: w_ih [G*H, I], w_hh [G*H, P or H], b_ih [G*H], b_hh [G*H], w_hr [P, H]
    states_in: list[int],  # h [D, B, P or H], those beyond it [D, B, S-1, H]; 0 = zeros
    lengths: int,  # int64 [B] or 0
    reset_mask: int,  # bool [T, B] or 0
    reset_stride_t: int,
    reset_stride_b: int,
    y: int,  # [T, B, D * (P or H)], last dimension contiguous
    y_stride_t: int,
    y_stride_b: int,
    states_out: list[int],  # like states_in; 0 = not wanted
    reserve: int,  # [D, T, B, R, H rounded up to a multiple of 16]; 0 = inference
    schedule: str,  # "" = chosen by plan()
    threads: int,  # 0 = num_threads()
    noise: tuple[int, float, float, bool, int, float, bool] | None,
    backprop: tuple[int, float, int, int, int] | None,  # with segment_steps, reserve is the checkpoints
    reset_to_initial: bool,  # where reset_mask is true, states_in enters, not zeros
    /,
) -> None: ...
def rnn_backward(
    cell: str,
    itemsize: int,
    T: int,
    B: int,
    I: int,
    H: int,
    P: int,
    D: int,
    x: int,
    x_stride_t: int,
    x_stride_b: int,
    weights: list[int],
    states_in: list[int],
    lengths: int,
    reset_mask: int,
    reset_stride_t: int,
    reset_stride_b: int,
    y: int,  # as rnn_forward wrote it, as is reserve
    y_stride_t: int,
    y_stride_b: int,
    reserve: int,
    dy: int,  # 0 = zero
    dy_stride_t: int,
    dy_stride_b: int,
    dstates_out: list[int],  # 0 = zero
    dc: int,  # [T, B, D, S-1, H] gradient of the states beyond h of every step, 0 = zero
    dc_stride_t: int,
    dc_stride_b: int,
    dx: int,  # outputs from here on: overwritten, 0 = not wanted
    dx_stride_t: int,
    dx_stride_b: int,
    dstates_in: list[int],
    dweights: list[int],
    schedule: str,
    threads: int,
    noise: tuple[int, float, float, bool, int, float, bool] | None,
    backprop: tuple[int, float, int, int, int] | None,
    reset_to_initial: bool,
    /,
) -> None: ...
def dropout_mask(itemsize: int, seed: int, stream: int, rows: int, units: int, rate: float, out: int, /) -> None: ...
def kept_array(shape: list[int], itemsize: int) -> np.ndarray: ...  # uninitialised memory that the engine keeps
def plan(
    cell: str,
    itemsize: int,
    T: int,
    B: int,
    I: int,
    H: int,
    P: int,
    D: int,
    training: bool,
    threads: int,
    schedule: str = "",
) -> Plan: ...
def measure_fma(threads: int) -> float: ...
def measure_read(bytes: int, threads: int) -> float: ...
def measure_barrier(threads: int) -> float: ...
def activation(name: str, n: int, x: int, y: int) -> None: ...

SCORES: list[str]

class Attention:  # what forward and backward share; contiguous arrays but for mask and bias; value 0 = raw scores
    def __init__(
        self, score: str, itemsize: int, B: int, Tq: int, Tk: int, D: int, Dv: int, query: int, key: int, value: int, v: int,
        lengths: int, mask: int, mask_strides: list[int], bias: int, bias_strides: list[int], scale: float,
    ) -> None: ...  # fmt: skip

def attention_forward(attention: Attention, context: int, weights: int, threads: int, /) -> None: ...
def attention_backward(
    attention: Attention, weights: int, dcontext: int, dweights: int, dquery: int, dkey: int, dvalue: int, dv: int,
    dbias: int, threads: int, /,
) -> None: ...  # fmt: skip

class Decoder:  # what forward and backward of an attention decoder share, see csrc/decoder.h
    def __init__(
        self,
        itemsize: int,
        cell: str,  # "lstm" or "gru"
        bahdanau: bool,  # the order
        sizes: Sequence[int],  # B, T, Tk, H, M, A, F
        # gates, memory, keys, lengths, h0, c0, feed0, w_hh, b_hh, w_feed, w_query, v, w_context, w_hidden; 0 = absent
        inputs: Sequence[int],
        distances: Sequence[int],  # of the rows of w_feed, w_context and w_hidden, in elements
    ) -> None: ...

def decoder_record(
    cell: str, sizes: Sequence[int], additive: bool, bahdanau: bool, /
) -> list[int]: ...  # where c, h, query, context and output of a step are kept, and the size
def decoder_forward(
    decoder: Decoder, outputs: int, weights: int, h: int, c: int, reserve: int, threads: int, /
) -> None: ...
def decoder_backward(
    decoder: Decoder,
    given: Sequence[int],  # weights, reserve, doutputs, dweights, dh, dc; 0 = zero
    found: Sequence[int],  # gradients of the inputs without lengths
    threads: int,
    /,
) -> None: ...
def decoder_generate(
    decoder: Decoder,  # without gates
    sizes: Sequence[int],  # E, V, beams, end (negative = none), top_k (0 = all), distance of the rows of w_input
    temperature: float,  # 0 = the most probable token
    seed: int,
    inputs: Sequence[int],  # embedding, w_input, b_ih, w_vocabulary, b_vocabulary, first
    found: Sequence[int],  # tokens, parents, scores, weights, steps, ends, end_steps, end_rows, end_scores
    threads: int,
    /,
) -> None: ...

class Stepper:
    """Layers that advance by one time step; the weights are copied, the states are kept inside."""

    def __init__(
        self,
        cell: str,
        itemsize: int,
        B: int,
        sizes: list[tuple[int, int, int]],  # (I, H, P) per layer
        weights: list[int],  # 5 per layer, as in rnn_forward
        zoneout: tuple[float, float],  # expectation of zoneout of h, c
        /,
    ) -> None: ...
    def step(self, x: int, y: int, /) -> None: ...  # x [B, I], y [B, P or H], contiguous
    # step(x) of a tensor, read through exchange = torch.Tensor.__dlpack_c_exchange_api__, or of an array, for None. False,
    # with nothing done, unless x is [B, I], C-contiguous, aligned, not to be negated and of the stepper's dtype.
    def bind(self, y: int, exchange: object | None, /) -> Callable[[object], bool]: ...
    def get_states(self, into: list[int], /) -> None: ...  # h [L, B, P or H], those beyond it [L, B, S-1, H]; 0 = skip
    def set_states(self, states: list[int], /) -> None: ...
    def reset(self, mask: int, /) -> None: ...  # bool [B], or 0 for every row
