"""Measures attention against the same in eager torch and under torch.compile, interleaved, on this machine.

    python bench/attention.py                   all shapes, a few minutes (torch.compile needs a C++ compiler)
    python bench/attention.py --quick           the smallest shape of each score, without torch.compile
    python bench/attention.py --only dot

Writes attention.md and attention.json to bench/results/<cpu>/. float32, random data and gradients, everyone's result
checked against float64 before it is timed. For the dot score the table says as well how much of the machine's
multiply-add rate its products reach: two of B*Tq*Tk*D multiply-adds forward, four more backward. Where torch's two
products alone take 1/1.5 of its time at that rate, nothing can be 1.5 times as fast.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from fastrnn import _core, functional, reference
from fastrnn.bench import report, runner
from fastrnn.bench.timing import interleave, paired_ratio, pinned, summarize

# B, Tq, Tk, D, Dv. Eager torch keeps several arrays of B*Tq*Tk*D for the additive score: at B = 32 the second shape would
# need 20 GB.
SHAPES = {
    "additive": {"A": (64, 50, 50, 512, 512), "B": (8, 200, 400, 512, 512)},
    "dot": {
        "step": (1, 1, 50, 512, 512),
        "steps": (16, 1, 50, 512, 512),
        "short": (8, 20, 20, 512, 512),
        "A": (64, 50, 50, 512, 512),
        "A 1024": (64, 50, 50, 1024, 1024),
        "B": (32, 200, 400, 512, 512),
    },
}
FUSED = {"additive": functional.additive_attention, "dot": functional.dot_attention}
LIMIT = 1e-4  # of 1 + the largest value


def eager_additive(query, key, value, v):
    weights = ((query.unsqueeze(2) + key.unsqueeze(1)).tanh() @ v).softmax(-1)
    return weights @ value, weights


def eager_dot(query, key, value):
    weights = torch.bmm(query, key.transpose(1, 2)).softmax(-1)
    return torch.bmm(weights, value), weights


EAGER = {"additive": eager_additive, "dot": eager_dot}


def data(score: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    B, Tq, Tk, D, Dv = shape
    g = torch.Generator().manual_seed(0)
    sizes = ((B, Tq, D), (B, Tk, D), (B, Tk, Dv), (D,))[: 4 if score == "additive" else 3]
    tensors = [torch.randn(size, generator=g, dtype=torch.float64) for size in sizes]
    if score == "dot":
        tensors[0] /= D**0.5
    return [t.to(dtype) for t in tensors]


def call_of(function, score: str, shape: tuple[int, ...], mode: str):
    inputs = data(score, shape, torch.float32)
    if mode == "forward":

        def forward():
            with torch.inference_mode():
                return function(*inputs)[:1]

        return forward
    inputs = [t.requires_grad_() for t in inputs]
    up = torch.randn(shape[0], shape[1], shape[4], generator=torch.Generator().manual_seed(1))

    def both():
        context = function(*inputs)[0]
        return (context, *torch.autograd.grad(context, inputs, up))

    return both


def check(name: str, score: str, shape: tuple[int, ...], function) -> None:
    """Two rows of the batch against float64."""
    own, exact = ([t[:2].requires_grad_() if t.ndim > 1 else t.requires_grad_() for t in data(score, shape, d)]
                  for d in (torch.float32, torch.float64))  # fmt: skip
    got, want = function(*own)[0], reference.attention(score, *exact)[0]
    up = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = [(got, want), *zip(torch.autograd.grad(got, own, up.float()), torch.autograd.grad(want, exact, up))]
    worst = max(((g.double() - w).abs().max() / (1 + w.abs().max())).item() for g, w in pairs)
    if not worst <= LIMIT:
        raise SystemExit(f"{name}: differs from float64 by {worst:.2g}, expected at most {LIMIT:g}")


def measure(score: str, label: str, functions: dict, threads: int, budget_s: float, ceiling: float) -> list[dict]:
    """Both modes of one shape."""
    shape, rows = SHAPES[score][label], []
    for name, function in functions.items():
        check(name, score, shape, function)
    for mode in ("forward", "forward + backward"):
        with pinned(threads):
            calls = {name: call_of(function, score, shape, mode) for name, function in functions.items()}
            for call in calls.values():
                call()
            samples = interleave(calls, budget_s=budget_s, min_rounds=3)
        ms = {name: summarize(values).scaled(1e3).median for name, values in samples.seconds.items()}
        ours = samples.seconds["fastrnn"]
        ratio = {name: paired_ratio(values, ours).median for name, values in samples.seconds.items()}
        row = {"score": score, "shape": label, "sizes": shape, "mode": mode, "ms": ms, "ratio": ratio}
        if score == "dot":
            B, Tq, Tk, D, Dv = shape
            gflop = 2e-9 * B * Tq * Tk * (D + Dv) * (1 if mode == "forward" else 3)
            row["of_ceiling"] = {name: gflop / (t * 1e-3) / (ceiling * threads) for name, t in ms.items()}
        rows.append(row | {"others": samples.others})
        print(f"  {score} {label} {mode}: {ms}", file=sys.stderr)
    return rows


def table(rows: list[dict], names: list[str]) -> list[str]:
    lines = ["| score | shape | sizes B, Tq, Tk, D, Dv | work | fastrnn | " + " | ".join(f"{n} / fastrnn" for n in names)
             + " | of the multiply-add rate: fastrnn, eager |", "|---" * (6 + len(names)) + "|"]  # fmt: skip
    for r in rows:
        cells = " | ".join(f"{r['ratio'][n]:.1f}x" if n in r["ratio"] else "" for n in names)
        part = r.get("of_ceiling")
        part = f"{part['fastrnn']:.0%}, {part['eager']:.0%}" if part else ""
        ms = r["ms"]["fastrnn"]
        lines.append(f"| {r['score']} | {r['shape']} | {r['sizes']} | {r['mode']} | {ms:.3g} ms | {cells} | {part} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--quick", action="store_true", help="the smallest shapes, without torch.compile")
    command.add_argument("--only", choices=SHAPES, help="one score")
    command.add_argument("--budget", type=float, default=1.0, help="seconds of timing per contestant and point")
    command.add_argument("--out", type=Path, help="directory for the results")
    options = command.parse_args(argv)
    machine, rows, threads = runner.machine_info(), [], torch.get_num_threads()
    with pinned(threads):
        ceiling = max(_core.measure_fma(1) for _ in range(5))
    for score, shapes in SHAPES.items():
        if options.only and options.only != score:
            continue
        functions = {"fastrnn": FUSED[score], "eager": EAGER[score]}
        for label in list(shapes)[: 1 if options.quick else None]:
            if not options.quick and label in ("A", "B"):
                torch._dynamo.reset()  # or the second shape would be compiled for any shape
                functions = functions | {"compile": torch.compile(EAGER[score])}
            rows += measure(score, label, functions, threads, options.budget, ceiling)
            functions.pop("compile", None)
    names = [n for n in ("eager", "compile") if any(n in r["ratio"] for r in rows)]
    lines = [f"{machine['cpu']}, {threads} threads, {machine['date'][:10]}, commit {machine['commit']}, torch "
             f"{machine['versions']['torch']}, {ceiling:.0f} GFLOP/s a core", "", *table(rows, names)]  # fmt: skip
    if warning := report.disturbed([r["others"] for r in rows]):
        lines += ["", warning]
    text = "\n".join(lines) + "\n"
    out = report.results_folder(__file__, machine["cpu"], options.out)
    (out / "attention.md").write_text(text)
    (out / "attention.json").write_text(json.dumps({"machine": machine, "points": rows}, indent=1) + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
