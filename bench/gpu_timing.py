"""Timing on a GPU: CUDA events, contestants in turns, CUDA graphs. What the benchmarks of bench/gpu.py share."""

from __future__ import annotations

import statistics
import sys

import torch

ROUNDS = 7


def captured(call):
    """The call as a CUDA graph; None where it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        print(f"  not captured: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return graph.replay


def milliseconds(call, repeats: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def race(calls: dict[str, object], budget_ms: float) -> dict[str, float]:
    """Median milliseconds of each, taken in turns."""
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, min(50, int(budget_ms / ROUNDS / max(milliseconds(call, 1), 1e-3))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(ROUNDS):
        names = list(calls)
        for name in names[k % len(names) :] + names[: k % len(names)]:
            samples[name].append(milliseconds(calls[name], repeats[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def difference(got, want) -> float:
    return max(((g.float() - w.float()).abs() / (1 + w.float().abs())).max().item() for g, w in zip(got, want))
