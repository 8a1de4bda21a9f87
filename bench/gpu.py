"""Measures the CUDA engine on the GPU of this machine: layers against torch's cuDNN, attention and decoders
against eager torch.

    python bench/gpu.py                     the whole grid, about four minutes, attention and decoders
    python bench/gpu.py --quick             a corner of it, to see that it works
    python bench/gpu.py --only attention    or layers, or decoder

Writes gpu.md, gpu.json and gpu.png to bench/results/<gpu>/, and tables and numbers of gpu_attention.py and
gpu_decoder.py, which explain theirs. Of the layers: one layer, one direction, I = H, random data, the same weights in
both, results compared before anything is timed. Times are of whole calls, input projection included, by CUDA events, in
turns, medians; `graph` is the same call replayed from a CUDA graph, without what Python costs. cuDNN gets its best
settings: flattened weights, and for float32 both TF32 off (the precision that fastrnn has) and on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gpu_attention
import gpu_decoder
import torch
from gpu_timing import captured, difference, race

import fastrnn
from fastrnn import _cuda_kernels

PARTS = ("layers", "attention", "decoder")
KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of 1 + |expected|, between two results that were both rounded: a wrong gate or index shows as 1e-1 and more.
LIMIT = {"float32": 2e-4, "bfloat16": 1e-1, "float16": 2e-2}


def build(kind: str, hidden: int, dtype: torch.dtype):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, KINDS[kind])(hidden, hidden).to("cuda", dtype)
    ours = getattr(fastrnn.nn, KINDS[kind])(hidden, hidden).to("cuda", dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def call_of(module, x: torch.Tensor, dy: torch.Tensor, mode: str):
    """One whole call: inference, or forward and backward with all gradients."""
    if mode == "infer":

        def infer():
            with torch.no_grad():
                return (module(x)[0],)

        return infer
    wanted = [x, *module.parameters()]

    def train():
        y = module(x)[0]
        return (y, *torch.autograd.grad(y, wanted, dy))

    return train


def measure(kind: str, dtype: str, hidden: int, batch: int, mode: str, steps: int, budget_ms: float) -> dict:
    ours, theirs = build(kind, hidden, DTYPES[dtype])
    x = torch.randn(steps, batch, hidden, device="cuda", dtype=DTYPES[dtype], requires_grad=mode == "train")
    dy = torch.randn_like(x) / steps
    own, peer = call_of(ours, x, dy, mode), call_of(theirs, x, dy, mode)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    worst = difference(own(), peer())
    if not worst <= LIMIT[dtype]:
        raise SystemExit(f"{kind} {dtype} H={hidden} B={batch} {mode}: differs from cuDNN by {worst:.2g}")
    calls = {"fastrnn": own, "cudnn": peer}
    if dtype == "float32":

        def tf32():
            torch.backends.cudnn.allow_tf32 = True
            try:
                return peer()
            finally:
                torch.backends.cudnn.allow_tf32 = False

        calls["cudnn tf32"] = tf32
    found = race(calls, budget_ms)
    graphs = {f"{name} graph": replay for name, call in list(calls.items())[:2] if (replay := captured(call))}
    found |= race(graphs, budget_ms) if graphs else {}
    cell = "rnn_tanh" if kind == "rnn" else kind
    plan = _cuda_kernels._plan(cell, DTYPES[dtype], batch, hidden, 1, False, "", 0)
    return {
        "cell": kind, "dtype": dtype, "hidden": hidden, "batch": batch, "mode": mode, "steps": steps,
        "us_per_step": {name: 1e3 * ms / steps for name, ms in found.items()},
        "difference": worst, "schedule": plan.schedule, "plan": repr(plan),
    }  # fmt: skip


def geometric_mean(values: list[float]) -> float:
    return statistics.geometric_mean(values) if values else float("nan")


def table(points: list[dict], heading: str) -> str:
    lines = [heading, ""]
    lines += ["us per step of whole calls; ratio is cuDNN's time over fastrnn's", ""]
    lines += ["| cell | dtype | mode | H | B | schedule | fastrnn | cudnn | ratio | graph: fastrnn | cudnn | ratio |"]
    lines += ["|---" * 12 + "|"]
    for p in points:
        us = p["us_per_step"]
        graph = [us.get("fastrnn graph"), us.get("cudnn graph")]
        cells = [f"{us['fastrnn']:.2f}", f"{us['cudnn']:.2f}", f"{us['cudnn'] / us['fastrnn']:.2f}x"]
        cells += [f"{g:.2f}" if g else "" for g in graph] + [f"{graph[1] / graph[0]:.2f}x" if all(graph) else ""]
        lines.append(
            f"| {p['cell']} | {p['dtype']} | {p['mode']} | {p['hidden']} | {p['batch']} | {p['schedule']} | "
            + " | ".join(cells) + " |"
        )  # fmt: skip
    lines += ["", "| dtype | mode | points | lowest ratio | geometric mean |", "|---|---|---|---|---|"]
    for dtype, mode in itertools.product(DTYPES, ("infer", "train")):
        ratios = [
            p["us_per_step"]["cudnn"] / p["us_per_step"]["fastrnn"]
            for p in points
            if (p["dtype"], p["mode"]) == (dtype, mode)
        ]
        if ratios:
            lines.append(f"| {dtype} | {mode} | {len(ratios)} | {min(ratios):.2f}x | {geometric_mean(ratios):.2f}x |")
    return "\n".join(lines) + "\n"


def plot(path: Path, points: list[dict], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    modes, dtypes = ("infer", "train"), list(DTYPES)
    figure, axes = pyplot.subplots(len(modes), len(dtypes), figsize=(13, 7), layout="constrained", squeeze=False)
    for (row, mode), (column, dtype) in itertools.product(enumerate(modes), enumerate(dtypes)):
        axis = axes[row][column]
        for kind, style in zip(KINDS, ("-", "--", ":")):
            for index, batch in enumerate(sorted({p["batch"] for p in points})):
                chosen = [
                    p for p in points if (p["cell"], p["dtype"], p["mode"], p["batch"]) == (kind, dtype, mode, batch)
                ]
                xs = [p["hidden"] for p in chosen]
                ys = [p["us_per_step"]["cudnn"] / p["us_per_step"]["fastrnn"] for p in chosen]
                axis.plot(xs, ys, style, color=f"C{index}", marker="o", markersize=3, label=f"{kind} B={batch}")
        axis.axhline(1, color="black", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_title(f"{dtype}, {mode}")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("cuDNN time / fastrnn time")
    axes[0][-1].legend(fontsize=6, ncols=3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def machine_info() -> dict:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(0), "driver": driver, "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda, "fastrnn": fastrnn.__version__,
        "commit": commit or "unknown", "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip


def measure_layers(options: argparse.Namespace) -> list[dict]:
    hidden, batch = ((64, 512), (8,)) if options.quick else ((64, 128, 256, 512, 1024, 2048), (1, 8, 32, 128))
    grid = list(itertools.product(hidden, batch, DTYPES, KINDS, ("infer", "train")))
    points, start = [], time.monotonic()
    for h, b, dtype, kind, mode in grid:
        if time.monotonic() - start > options.seconds:
            print(f"time is up: {len(points)} of {len(grid)} points", file=sys.stderr)
            break
        points.append(measure(kind, dtype, h, b, mode, options.steps, 30))
        us = points[-1]["us_per_step"]
        print(f"  {kind} {dtype} {mode} H={h} B={b}: {us['fastrnn']:.2f} us, cuDNN {us['cudnn']:.2f}", file=sys.stderr)
    return points


def main(argv: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--quick", action="store_true", help="a corner of the grid")
    command.add_argument("--only", choices=PARTS, help="one of the parts")
    command.add_argument("--primitives", type=Path, help="the program of gpu_primitives.cu, which is run first")
    command.add_argument("--steps", type=int, default=512, help="sequence length T")
    command.add_argument("--seconds", type=float, default=240, help="stop adding points after this time")
    command.add_argument("--out", type=Path, help="directory for the results")
    options = command.parse_args(argv)
    if not torch.cuda.is_available():
        command.error("no CUDA device found")
    machine = machine_info()
    name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    out = options.out or Path(__file__).resolve().parent / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    heading = ", ".join(f"{k} {v}" for k, v in machine.items())
    if options.primitives:
        found = subprocess.run([options.primitives.resolve()], check=True, capture_output=True, text=True, timeout=60)
        measured = json.dumps({"machine": machine, **json.loads(found.stdout)}, indent=1)
        (out / "primitives.json").write_text(measured + "\n")
        print(measured)
    if options.only in (None, "layers"):
        points = measure_layers(options)
        text = table(points, heading)
        (out / "gpu.md").write_text(text)
        (out / "gpu.json").write_text(json.dumps({"schema": 1, "machine": machine, "points": points}, indent=1) + "\n")
        plot(out / "gpu.png", points, f"fastrnn against cuDNN, {machine['gpu']}, {machine['date']}")
        print(text)
    for part, bench in (("attention", gpu_attention), ("decoder", gpu_decoder)):
        if options.only not in (None, part):
            continue
        rows = bench.measure_all(options.quick)
        text = bench.table(rows, heading)
        (out / f"gpu_{part}.md").write_text(text)
        (out / f"gpu_{part}.json").write_text(json.dumps({"machine": machine, "points": rows}, indent=1) + "\n")
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
