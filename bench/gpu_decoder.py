"""The attention decoder on a GPU against the same loop in eager torch; bench/gpu.py runs this and writes its table.

What is measured, and how it is checked first, is bench/decoder.py's. Times are of whole calls by CUDA events, in turns,
medians; `graph` is the same replayed from a CUDA graph, without what Python costs. A generation looks whether all rows
have ended, so it cannot be captured.
"""

from __future__ import annotations

import sys

import torch
from decoder import D, points
from gpu_timing import captured, race

BUDGET_MS = 200


def measure_all(quick: bool) -> list[dict]:
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = []
    for label, make in points(quick, "cuda"):
        calls = make()
        found = race(calls, BUDGET_MS)
        if label.startswith("decode"):
            graphs = {f"{name} graph": replay for name, call in calls.items() if (replay := captured(call))}
            found |= race(graphs, BUDGET_MS) if graphs else {}
        rows.append({"work": label, "us": {name: 1e3 * ms for name, ms in found.items()}})
        print(f"  {label}: {rows[-1]['us']['fastrnn']:.0f} us", file=sys.stderr)
    return rows


def table(rows: list[dict], heading: str) -> str:
    lines = [heading, "", f"us of whole calls, float32, all widths {D}; ratio is eager torch's time over fastrnn's", ""]
    lines += ["| work | fastrnn | eager | ratio | graph: fastrnn | eager | ratio |", "|---" * 7 + "|"]
    for r in rows:
        cells = []
        for suffix in ("", " graph"):
            own, peer = (r["us"].get(name + suffix) for name in ("fastrnn", "eager"))
            cells += [f"{t:.0f}" if t else "" for t in (own, peer)] + [f"{peer / own:.2f}x" if own and peer else ""]
        lines.append(f"| {r['work']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
