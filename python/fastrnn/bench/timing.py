"""Interleaved timing: every round runs every contestant once, in rotated order, so that drift hits all of them alike.

Ratios are formed inside a round and the median over rounds is reported; the spread is the interquartile range.
Idle thread pools are the trap: libgomp, onnxruntime and TBB workers keep spinning after a call, some for 40 ms, and on
a machine with few cores they slow whoever runs next. All of them keep their default policy, which is their fastest;
`settle` waits between contestants until the process uses no CPU time any more, so that spinners have parked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_QUIET_SECONDS = 0.01  # not less: kernels may account CPU time only at their ticks, 1 to 10 ms apart
_SETTLE_LIMIT_SECONDS = 0.25
DISTURBED = 0.05  # a measurement in which other processes took a larger share of the CPU time is not trusted


@dataclass
class Stat:
    """Median and quartiles of a sample."""

    median: float
    q1: float
    q3: float

    def scaled(self, factor: float) -> Stat:
        return Stat(self.median * factor, self.q1 * factor, self.q3 * factor)


@dataclass
class Samples:
    """Seconds per run, one value per round and contestant, and how quiet it was."""

    seconds: dict[str, list[float]]
    settle_s: float  # longest wait for an idle pool
    others: float | None  # share of all CPU time used by other processes, None where the system does not say

    @property
    def disturbed(self) -> bool:
        return self.others is not None and self.others > DISTURBED


def summarize(values: list[float]) -> Stat:
    """Median and inclusive quartiles of at least one value."""
    if len(values) == 1:
        return Stat(values[0], values[0], values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Stat(median, q1, q3)


def paired_ratio(peer: list[float], ours: list[float]) -> Stat:
    """How many times longer the peer took than ours, compared round by round."""
    if len(peer) != len(ours):
        raise ValueError(f"paired_ratio: peer has {len(peer)} rounds, expected {len(ours)} as ours")
    return summarize([p / o for p, o in zip(peer, ours)])


def allowed_cpus() -> list[int]:
    """The CPUs this process may run on (all of them where the system cannot say)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Confine every thread of the process to as many CPUs as the case has threads; undone on exit."""
    before = allowed_cpus()
    cpus = before[:threads]
    _pin_all(cpus)
    try:
        yield cpus
    finally:
        _pin_all(before)


def _pin_all(cpus: list[int]) -> None:
    """Pools created earlier keep the mask they were born with, so each thread is moved, not only the caller."""
    if not hasattr(os, "sched_setaffinity"):
        return
    tids = [int(t) for t in os.listdir("/proc/self/task")] if os.path.isdir("/proc/self/task") else [0]
    for tid in tids:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(tid, cpus)


def settle() -> float:
    """Wait until no thread of this process is busy; returns the seconds waited."""
    start = time.perf_counter()
    while time.perf_counter() - start < _SETTLE_LIMIT_SECONDS:
        wall, cpu = time.perf_counter(), time.process_time()
        time.sleep(_QUIET_SECONDS)
        if (time.process_time() - cpu) / (time.perf_counter() - wall) < 0.2:
            break
    return time.perf_counter() - start


def _machine_cpu() -> tuple[float, float] | None:
    """Seconds of CPU time that the machine has been busy (or robbed by its host) and has had in all, since boot."""
    try:
        with open("/proc/stat") as stat:
            user, nice, system, idle, wait, irq, softirq, steal = map(float, stat.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq + steal
    return busy / ticks, (busy + idle + wait) / ticks


def interleave(
    runs: dict[str, Callable[[], object]],
    activate: dict[str, Callable[[], None]] | None = None,
    budget_s: float = 0.25,
    slice_s: float = 0.008,
    min_rounds: int = 5,
    max_rounds: int = 60,
    attempts: int = 3,
) -> Samples:
    """Time contestants round robin; a disturbed measurement is repeated and the quietest one counts.

    Args:
        runs: name -> callable that does the whole work of one run. Each must have been run before (warm).
        activate: name -> callable that sets thread counts, run untimed before that contestant's turn.
        budget_s: seconds spent on each contestant in all.
        slice_s: seconds of one turn; a turn is one untimed call (it warms caches and wakes the pool), then timed calls,
            of which the median counts.
        min_rounds, max_rounds: bounds on the number of rounds; three suffice where a run takes longer than the budget.
        attempts: at most so many measurements.

    Returns:
        Samples with one value per round for each name.
    """
    best = _interleave_once(runs, activate, budget_s, slice_s, min_rounds, max_rounds)
    for _ in range(attempts - 1):
        if not best.disturbed:
            break
        again = _interleave_once(runs, activate, budget_s, slice_s, min_rounds, max_rounds)
        best = min(best, again, key=lambda samples: samples.others or 0.0)
    return best


def _interleave_once(
    runs: dict[str, Callable[[], object]],
    activate: dict[str, Callable[[], None]] | None,
    budget_s: float,
    slice_s: float,
    min_rounds: int,
    max_rounds: int,
) -> Samples:
    names = list(runs)
    activate = activate or {}

    def turn(name: str, calls: int) -> float:
        activate.get(name, lambda: None)()
        run = runs[name]
        if calls > 1:
            run()
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    once = {name: min(turn(name, 1), turn(name, 1)) if len(names) else 0.0 for name in names}
    slowest = max(once.values())
    if slowest > budget_s:
        min_rounds = min(min_rounds, 3)
    rounds = max(min_rounds, min(max_rounds, int(budget_s / max(slice_s, slowest))))
    calls = {name: 1 if t > 0.1 else max(2, min(1000, round(slice_s / max(t, 1e-9)))) for name, t in once.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    longest = 0.0
    machine, own = _machine_cpu(), time.process_time()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for r in range(rounds):
            for name in names[r % len(names) :] + names[: r % len(names)]:
                longest = max(longest, settle())
                seconds[name].append(turn(name, calls[name]))
    finally:
        if collecting:
            gc.enable()
    now, own = _machine_cpu(), time.process_time() - own
    others = None
    if machine and now and now[1] > machine[1]:
        others = max(0.0, (now[0] - machine[0] - own) / (now[1] - machine[1]))
    return Samples(seconds, longest, others)
