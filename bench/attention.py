"""Measures additive attention against the same in eager torch and under torch.compile, interleaved, on this machine.

    python bench/attention.py            two shapes, about two minutes (torch.compile needs a C++ compiler)
    python bench/attention.py --quick    the small shape, without torch.compile

Writes attention.md and attention.json to bench/results/<cpu>/. float32, random data, everyone's result checked against
float64 before it is timed; memory is what one forward and backward adds to the peak.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch

from fastrnn import reference
from fastrnn.bench import report, runner
from fastrnn.bench.timing import interleave, paired_ratio, pinned, summarize
from fastrnn.functional import additive_attention

# B, Tq, Tk, D, Dv. Eager torch keeps several arrays of B*Tq*Tk*D: at B = 32 the second shape would need 20 GB.
SHAPES = {"A": (64, 50, 50, 512, 512), "B": (8, 200, 400, 512, 512)}
LIMIT = 1e-4  # of 1 + the largest value


def eager(query, key, value, v):
    weights = ((query.unsqueeze(2) + key.unsqueeze(1)).tanh() @ v).softmax(-1)
    return weights @ value, weights


def data(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    B, Tq, Tk, D, Dv = shape
    g = torch.Generator().manual_seed(0)
    sizes = ((B, Tq, D), (B, Tk, D), (B, Tk, Dv), (D,))
    return [torch.randn(size, generator=g, dtype=torch.float64).to(dtype) for size in sizes]


def call_of(function, shape: tuple[int, ...], mode: str):
    inputs = data(shape, torch.float32)
    if mode == "forward":

        def forward():
            with torch.inference_mode():
                return function(*inputs)[:1]

        return forward
    inputs = [t.requires_grad_() for t in inputs]

    def both():
        context = function(*inputs)[0]
        return (context, *torch.autograd.grad(context, inputs, torch.ones_like(context)))

    return both


def check(name: str, shape: tuple[int, ...], function) -> None:
    """Two rows of the batch against float64."""
    own, exact = ([t[:2].requires_grad_() if t.ndim > 1 else t.requires_grad_() for t in data(shape, d)]
                  for d in (torch.float32, torch.float64))  # fmt: skip
    got, want = function(*own)[0], reference.additive_attention(*exact)[0]
    pairs = [(got, want), *zip(torch.autograd.grad(got.sum(), own), torch.autograd.grad(want.sum(), exact))]
    worst = max(((g.double() - w).abs().max() / (1 + w.abs().max())).item() for g, w in pairs)
    if not worst <= LIMIT:
        raise SystemExit(f"{name}: differs from float64 by {worst:.2g}, expected at most {LIMIT:g}")


def main(argv: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--quick", action="store_true", help="the small shape, without torch.compile")
    command.add_argument("--budget", type=float, default=1.0, help="seconds of timing per contestant and point")
    command.add_argument("--out", type=Path, help="directory for the results")
    options = command.parse_args(argv)
    functions = {"fastrnn": additive_attention, "eager": eager}
    if not options.quick:
        functions["compile"] = torch.compile(eager)
    machine, others, rows = runner.machine_info(), [], []
    threads = torch.get_num_threads()
    for label, shape in list(SHAPES.items())[: 1 if options.quick else None]:
        for name, function in functions.items():
            check(name, shape, function)
        for mode in ("forward", "forward + backward"):
            with pinned(threads):
                calls = {name: call_of(function, shape, mode) for name, function in functions.items()}
                for call in calls.values():
                    call()
                samples = interleave(calls, budget_s=options.budget, min_rounds=3)
            others.append(samples.others)
            ms = {name: summarize(values).scaled(1e3).median for name, values in samples.seconds.items()}
            ratio = {
                name: paired_ratio(values, samples.seconds["fastrnn"]).median
                for name, values in samples.seconds.items()
            }
            rows.append({"shape": label, "sizes": shape, "mode": mode, "ms": ms, "ratio": ratio})
            print(f"  {label} {mode}: {ms}", file=sys.stderr)
    names = list(functions)[1:]
    lines = [f"{machine['cpu']}, {threads} threads, {machine['date'][:10]}, commit {machine['commit']}, torch "
             f"{machine['versions']['torch']}", "", "| shape | sizes B, Tq, Tk, D, Dv | work | fastrnn | "
             + " | ".join(f"{n} / fastrnn" for n in names) + " |", "|---" * (4 + len(names)) + "|"]  # fmt: skip
    for r in rows:
        cells = " | ".join(f"{r['ratio'][n]:.1f}x" for n in names)
        lines.append(f"| {r['shape']} | {r['sizes']} | {r['mode']} | {r['ms']['fastrnn']:.2f} ms | {cells} |")
    if warning := report.disturbed(others):
        lines += ["", warning]
    text = "\n".join(lines) + "\n"
    here = Path(__file__).resolve().parent
    out = options.out or here / "results" / re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    (out / "attention.md").write_text(text)
    (out / "attention.json").write_text(json.dumps({"machine": machine, "points": rows}, indent=1) + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
