"""Attention on a GPU against the same in eager torch; bench/gpu.py runs this and writes its table.

Random data and gradients, the first two rows of each result checked against float64 before anything is timed. Times are
of whole calls by CUDA events, in turns, medians; `graph` is the same replayed from a CUDA graph, without what Python
costs. Memory is what a call takes at its peak beyond its arguments. Eager additive attention keeps several arrays of
B*Tq*Tk*D, 5 GB each at B in float32: where they do not fit, there is no ratio.
"""

from __future__ import annotations

import itertools
import sys

import torch
from attention import EAGER, FUSED, data
from gpu_timing import captured, race

from fastrnn import reference

# B, Tq, Tk, D, Dv
SHAPES = {"A": (64, 50, 50, 512, 512), "B": (32, 200, 400, 512, 512)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ("forward", "forward + backward")
# Of 1 + the largest value. Weights are rounded to the type, then multiplied and summed.
LIMIT = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
BUDGET_MS = 100


def inputs(score: str, shape: tuple[int, ...], dtype: torch.dtype, rows: int | None = None) -> list[torch.Tensor]:
    tensors = [t if t.ndim == 1 else t[:rows] for t in data(score, shape, dtype)]
    return [t.to("cuda").requires_grad_() for t in tensors]


def gradient_from_above(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    B, Tq, _, _, Dv = shape
    up = torch.randn(B, Tq, Dv, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return up.to("cuda", dtype)


def call_of(function, score: str, shape: tuple[int, ...], dtype: torch.dtype, mode: str):
    tensors = inputs(score, shape, dtype)
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return function(*tensors)[:1]

        return forward
    up = gradient_from_above(shape, dtype)

    def both():
        context = function(*tensors)[0]
        return (context, *torch.autograd.grad(context, tensors, up))

    return both


def check(score: str, shape: tuple[int, ...], dtype: str) -> float:
    """The largest difference of two rows of the batch from float64."""
    own = inputs(score, shape, DTYPES[dtype], 2)
    exact = [t.detach().double().requires_grad_() for t in own]
    up = gradient_from_above(shape, DTYPES[dtype])[:2]
    got, want = FUSED[score](*own)[0], reference.attention(score, *exact)[0]
    pairs = [(got, want), *zip(torch.autograd.grad(got, own, up), torch.autograd.grad(want, exact, up.double()))]
    worst = max(((g.double() - w).abs().max() / (1 + w.abs().max())).item() for g, w in pairs)
    if not worst <= LIMIT[dtype]:
        raise SystemExit(
            f"{score} attention, {dtype}: differs from float64 by {worst:.2g}, expected at most {LIMIT[dtype]:g}"
        )
    return worst


def peak_megabytes(call) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(score: str, label: str, dtype: str, mode: str) -> dict:
    shape, calls, memory = SHAPES[label], {}, {}
    for name, function in (("fastrnn", FUSED[score]), ("eager", EAGER[score])):
        call = call_of(function, score, shape, DTYPES[dtype], mode)
        try:
            call()
            memory[name] = peak_megabytes(call)
            calls[name] = call
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
    found = race(calls, BUDGET_MS)
    graphs = {f"{name} graph": replay for name, call in calls.items() if (replay := captured(call))}
    found |= race(graphs, BUDGET_MS) if graphs else {}
    return {
        "score": score, "shape": label, "sizes": "x".join(map(str, shape)), "dtype": dtype, "mode": mode,
        "us": {name: 1e3 * ms for name, ms in found.items()}, "peak_mb": memory,
    }  # fmt: skip


def measure_all(quick: bool) -> list[dict]:
    rows = []
    torch.backends.cuda.matmul.allow_tf32 = False
    for score, label, dtype in itertools.product(FUSED, list(SHAPES)[: 1 if quick else None], DTYPES):
        worst = check(score, SHAPES[label], dtype)
        for mode in MODES:
            rows.append(measure(score, label, dtype, mode) | {"difference": worst})
            print(f"  {score} {label} {dtype} {mode}: {rows[-1]['us']['fastrnn']:.1f} us", file=sys.stderr)
            torch.cuda.empty_cache()
    return rows


def table(rows: list[dict], heading: str) -> str:
    lines = [heading, "", "us of whole calls; ratio is eager torch's time over fastrnn's", ""]
    lines += [
        "| score | shape | dtype | mode | fastrnn | eager | ratio | graph: fastrnn | eager | ratio | MB | eager |"
    ]
    lines += ["|---" * 12 + "|"]
    for r in rows:
        us, memory = r["us"], r["peak_mb"]
        cells = []
        for suffix in ("", " graph"):
            own, peer = us.get(f"fastrnn{suffix}"), us.get(f"eager{suffix}")
            cells += [f"{t:.1f}" if t else "" for t in (own, peer)] + [f"{peer / own:.2f}x" if own and peer else ""]
        cells += [f"{memory[name]:.0f}" if name in memory else "does not fit" for name in ("fastrnn", "eager")]
        lines.append(
            f"| {r['score']} | {r['shape']} {r['sizes']} | {r['dtype']} | {r['mode']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"
