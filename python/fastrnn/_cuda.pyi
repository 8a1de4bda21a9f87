"""The CUDA kernels on raw addresses; absent from a build for the CPU alone."""

from collections.abc import Sequence
from typing import TypedDict

class Device(TypedDict):
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    smem_bytes_per_block: int  # the most shared memory that one block can opt in to

class Chip(TypedDict):
    multiprocessors: int
    shared_bytes: int  # that one block can have
    largest_cluster: int  # blocks that are sure to run together; 1 without clusters
    cooperative: bool  # whether all blocks of a launch can be made to run together

class Cell(TypedDict):
    shared_gate_grad: bool
    late_gates: int
    special: bool  # whether it has kernels with regularisers and recomputation

CELLS: dict[str, Cell]
OPTIMIZED: bool  # whether the kernels were compiled to be fast, or to be compiled fast

def device_count() -> int: ...
def devices() -> list[Device]: ...
def error() -> str: ...  # why no device is usable; "" if one is
def runtime_version() -> int: ...  # 13000 for 13.0
def driver_version() -> int: ...  # 0 without a driver

class Plan:
    schedule: str  # cta, cluster, grid or stepwise
    ctas: int  # that share one slice of the batch
    units: int  # hidden units of each
    rows: int  # of a slice
    groups: int  # slices
    shared_bytes: int
    workspace_bytes: int
    us_per_step: float  # of the model that ranks schedules; not a measurement

def plan(
    cell: str, dtype: str, B: int, H: int, D: int, backward: bool, schedule: str = "", device: int = 0,
    chip: Chip | None = None,
) -> Plan: ...  # fmt: skip

# Strides in elements, addresses as ints, 0 = absent; see cuda/params.h.
class Layer:
    def __init__(
        self, cell: str, dtype: str, T: int, B: int, H: int, D: int, weights: list[int], states_in: list[int],
        lengths: int, reset_mask: int, reset_t: int, reset_b: int, y: int, y_t: int, y_b: int, reserve: int,
        workspace: int, noise: tuple[int, float, float, bool, int], recompute: bool,
    ) -> None: ...  # fmt: skip

def rnn_forward(
    layer: Layer, plan: Plan, device: int, stream: int, gx: int, gx_t: int, gx_b: int, states_out: list[int]
) -> None: ...
def rnn_backward(
    layer: Layer, plan: Plan, device: int, stream: int, dy: int, dy_t: int, dy_b: int, dstates_out: list[int], dc: int,
    dc_t: int, dc_b: int, detach_mask: int, detach_t: int, detach_b: int, grad_clip: float, dgx: int, dgr: int,
    dvectors: int, h_prev: int, dstates_in: list[int],
) -> None: ...  # fmt: skip
def check_waits() -> None: ...  # raises if a finished kernel gave up waiting for its other blocks
def set_wait_limit(seconds: float) -> None: ...

# Attention, see cuda/attention.h. sizes: B, Tq, Tk, D; activation: tanh or relu; inputs: query, key, v, lengths; mask and
# bias: address and strides.
_Pairs = tuple[int, list[int]]

def attention_softmax(
    dtype: str, device: int, stream: int, sizes: Sequence[int], lengths: int, mask: _Pairs, bias: _Pairs, scale: float,
    scores: int, weights: int, /,
) -> None: ...  # fmt: skip
def attention_softmax_gradient(
    dtype: str, device: int, stream: int, sizes: Sequence[int], scale: float, weights: int, dweights: int, gradient: int,
    dbias: int, /,
) -> None: ...  # fmt: skip
def additive_scores(
    dtype: str, device: int, stream: int, sizes: Sequence[int], activation: str, inputs: Sequence[int], scores: int, /
) -> None: ...
def additive_gradients(
    dtype: str, device: int, stream: int, sizes: Sequence[int], activation: str, inputs: Sequence[int], dscores: int,
    dquery: int, dkey: int, dquery_sums: int, dv_parts: int, /,
) -> None: ...  # fmt: skip

# The attention decoder, see cuda/decoder.h; Decoder and decoder_record() as in _core.pyi.
class Decoder:
    def __init__(
        self,
        itemsize: int,
        cell: str,
        bahdanau: bool,
        sizes: Sequence[int],
        inputs: Sequence[int],
        distances: Sequence[int],
    ) -> None: ...

def decoder_record(cell: str, sizes: Sequence[int], additive: bool, bahdanau: bool, /) -> list[int]: ...
def decoder_forward(
    decoder: Decoder, device: int, stream: int, slots: int,
    found: Sequence[int],  # outputs, weights, records, scores
    /,
) -> None: ...  # fmt: skip
def decoder_backward(
    decoder: Decoder, device: int, stream: int,
    transposed: Sequence[int],  # w_hh, w_feed, w_query, w_context, w_hidden; 0 = absent
    given: Sequence[int],  # weights, reserve, doutputs, dweights
    found: Sequence[int],  # dh, dc, dgates, drecurrent, dout, dcontext, dscores, dquery, dfeed0, dshares
    /,
) -> None: ...  # fmt: skip
def decoder_generate(
    decoder: Decoder, device: int, stream: int, first: int, last: int, sizes: Sequence[int], temperature: float,
    seed: int, inputs: Sequence[int], found: Sequence[int],
    scratch: Sequence[int],  # records, scores, outputs, logits, totals, shifts, best scores, best, done
    /,
) -> None: ...  # fmt: skip
