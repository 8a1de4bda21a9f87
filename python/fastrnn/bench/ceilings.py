"""What this machine can do at most, and the least time a recurrent layer can take on it (a roofline)."""

from __future__ import annotations

import os
import timeit
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .cases import GATES

_ITEM_BYTES = 4  # float32
_GATE_FUNCTIONS = {"lstm": {"sigmoid": 3, "tanh": 2}, "gru": {"sigmoid": 2, "tanh": 1}, "rnn": {"tanh": 1}}  # of a unit
_CACHE_DIR = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Level:
    """A memory level: bytes that one thread can call its own, and the read rate of all threads together."""

    name: str
    bytes_per_thread: float
    gbytes_per_s: float


@dataclass(frozen=True)
class Ceiling:
    """The measured limits for one thread count; levels fastest first, the last one is memory."""

    threads: int
    fma_gflops: float
    levels: tuple[Level, ...]
    call_us: dict[str, float] = field(default_factory=dict)  # mode -> a call that computes nothing
    gate_ns: dict[str, float] = field(default_factory=dict)  # function -> one value in one thread
    barrier_us: float = 0.0  # all threads waiting for each other once


def cache_sizes() -> dict[str, tuple[int, int]]:
    """Data cache name -> (bytes, number of CPUs that share it), from the kernel; empty where it does not say."""
    sizes = {}
    for index in sorted(_CACHE_DIR.glob("index*")):
        try:
            kind, level, size = ((index / f).read_text().strip() for f in ("type", "level", "size"))
            shared = (index / "shared_cpu_list").read_text().strip()
        except OSError:
            continue
        if kind in ("Data", "Unified"):
            unit = {"K": 2**10, "M": 2**20}.get(size[-1])
            sizes[f"L{level}"] = (int(size[:-1]) * unit if unit else int(size), _count_cpus(shared))
    return sizes


def _count_cpus(cpu_list: str) -> int:
    spans = (part.split("-") for part in cpu_list.split(","))
    return sum(int(s[-1]) - int(s[0]) + 1 for s in spans)


def measure(threads: int) -> Ceiling | None:
    """Measure the FMA rate and the read rate of each cache level; None if this build cannot measure them."""
    try:
        from fastrnn import _core
    except ImportError:
        return None
    caches = cache_sizes()
    if not (hasattr(_core, "measure_fma") and hasattr(_core, "measure_read") and caches):
        return None
    levels = []
    for name, (size, shared) in caches.items():
        own = size / min(threads, shared)
        # Half of a private cache is surely resident; a shared one is also used by whatever else the host runs.
        buffer = int(own / 2) if shared == 1 else int(own / 8)
        levels.append(Level(name, own, _core.measure_read(buffer, threads)))
    beyond = min(4 * max(size for size, _ in caches.values()), 2**28)
    levels.append(Level("memory", float("inf"), _core.measure_read(beyond, threads)))
    barrier_us = _core.measure_barrier(threads) if threads > 1 else 0.0
    return Ceiling(threads, _core.measure_fma(threads), tuple(levels), empty_call_us(), gate_ns(), barrier_us)


def gate_ns() -> dict[str, float]:
    """What one value of a gate function costs in one thread, in nanoseconds, where its argument lies in the first cache."""
    import numpy as np

    from fastrnn import _core

    n = 1024
    x, y = np.random.default_rng(0).standard_normal(n, np.float32), np.empty(n, np.float32)
    calls = {f: partial(_core.activation, f, n, x.ctypes.data, y.ctypes.data) for f in ("sigmoid", "tanh")}
    return {f: min(timeit.repeat(call, number=200, repeat=20)) / 200 / n * 1e9 for f, call in calls.items()}


def empty_call_us() -> dict[str, float]:
    """What a call costs that any torch module has to make, in microseconds: new outputs, one node in the graph, new
    gradients for its input and four weights, the shortest call into an extension for a step. Nothing is computed."""
    import torch

    from fastrnn import _core

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *weights):
            y, h, reserve = x.new_empty(1, 1, 8), x.new_empty(1, 1, 8), x.new_empty(1, 1, 8)
            ctx.save_for_backward(x, y, reserve, *weights)
            ctx.set_materialize_grads(False)
            return y, h

        @staticmethod
        def backward(ctx, dy, dh):
            x, _, _, *weights = ctx.saved_tensors
            return tuple(torch.empty_like(t) for t in (x, *weights))

    class Module(torch.nn.Module):
        def forward(self, x):
            return x.new_empty(1, 1, 8), x.new_empty(1, 1, 8)

    module, x = Module(), torch.zeros(1, 1, 8)
    leaves = [torch.zeros(8).requires_grad_() for _ in range(5)]

    def infer():
        with torch.inference_mode():
            module(x)

    def train():
        for leaf in leaves:
            leaf.grad = None
        Empty.apply(*leaves)[0].sum().backward()

    def step():
        _core.num_threads()
        x.data_ptr()

    calls = {"infer": infer, "train": train, "step": step}
    return {mode: min(timeit.repeat(call, number=100, repeat=20)) * 1e4 for mode, call in calls.items()}


def stream_seconds(total_bytes: float, ceiling: Ceiling) -> float:
    """Least time to read `total_bytes`, spread evenly over the threads, once per time step.

    What is read again every step can at best be kept in the fastest levels up to their size and comes from the next
    level beyond that: sum over levels of (bytes held there) / (read rate of that level).
    """
    seconds, left = 0.0, total_bytes
    for level in ceiling.levels:
        here = min(left, level.bytes_per_thread * ceiling.threads)
        seconds += here / (level.gbytes_per_s * 1e9)
        left -= here
        if left <= 0:
            break
    return seconds


def floor_us_per_step(
    cell: str,
    mode: str,
    hidden: int,
    batch: int,
    ceiling: Ceiling,
    inputs: int | None = None,
    active: float = 1.0,
    steps: int = 1,
) -> float:
    """Least time per step in microseconds that the rates measured on this machine allow.

    With G gates, P = 2 G H B `active` multiply-add operations per input or hidden column, R = FMA rate and
    S(bytes) = stream_seconds:

        infer  P I / R  +  max(P H / R, S(4 G H H))  +  A  +  W
        step   max(P (I + H) / R, S(4 G H (I + H)))  +  A
        train  infer  +  max(P H / R, S(4 G H H))  +  P (2 I + H) / R  +  W

    The input projection of a whole sequence is one matrix product, so its weights are read once and only its arithmetic
    counts; the recurrent weights are needed anew at each step, so the larger of arithmetic and traffic counts. A single
    step needs both matrices from cache. Backward has the recurrent product again (dG R, serial) and then dx, dW and dU.
    A is the time of the gate functions of forward, B `active` H values of each, divided among the threads; W is one
    barrier, where there are more threads than rows, so that they share every row. To that comes an empty call, shared
    by the `steps` of a sequence. The arithmetic between gates, traffic of activations and packing are left out: this is
    a bound, not a prediction.
    """
    gates, inputs = GATES[cell], inputs or hidden
    column = 2.0 * gates * hidden * batch * active / (ceiling.fma_gflops * 1e9)
    weight_row_bytes = _ITEM_BYTES * gates * hidden
    of_unit = sum(n * ceiling.gate_ns.get(f, 0.0) for f, n in _GATE_FUNCTIONS[cell].items())
    functions = 1e-9 * of_unit * batch * active * hidden / ceiling.threads
    wait = 1e-6 * ceiling.barrier_us if batch < ceiling.threads else 0.0
    if mode == "step":
        floor = max(column * (inputs + hidden), stream_seconds(weight_row_bytes * (inputs + hidden), ceiling))
        return 1e6 * (floor + functions) + ceiling.call_us.get(mode, 0.0)
    recurrent = max(column * hidden, stream_seconds(weight_row_bytes * hidden, ceiling)) + wait
    floor = column * inputs + recurrent + functions
    if mode == "train":
        floor += recurrent + column * (2 * inputs + hidden)
    return 1e6 * floor + ceiling.call_us.get(mode, 0.0) / steps


def cpu_name() -> str:
    """CPU model with family and model numbers, since virtual machines often hide the marketing name."""
    fields = {}
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    name = fields.get("model name", "unknown CPU")
    return f"{name} (family {fields['cpu family']} model {fields['model']})" if "cpu family" in fields else name
