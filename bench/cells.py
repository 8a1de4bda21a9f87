"""Every cell, forward and backward, against the same equations as a loop of torch operations; regularisers and
checkpoints against the layer without them.

    python bench/cells.py                       about eight minutes; run it on a quiet machine
    python bench/cells.py --compile lstm_norm   also against torch.compile of the loop, which compiles for a quarter of
    a minute

The loop is fastrnn.reference.layer: one product for the inputs of all steps, then step by step. torch.compile
(inductor) gets it ten steps at a time: for a GRU (B=8, H=256) one step at a time took twice as long; with 25 and 50
steps (2.0 and 2.2 times fastrnn's time, beside 2.2 to 2.6 with ten) it compiled 9 and 17 times as long. One thread, one layer, I = H, float32, T = 100;
results are compared before they are timed, turns are taken, medians of paired ratios. Writes cells.md to
bench/results/<cpu>/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import layer_norm

from fastrnn import _core, nn, ops, reference
from fastrnn.bench import ceilings, report, runner
from fastrnn.bench.timing import interleave, paired_ratio, pinned

LONG, EVERY = (4096, 16, 256), 128  # T, B, H; steps between checkpoints
UNROLL = 10  # steps in a call of the compiled loop
STEPS, SHAPES = 100, [(1, 128), (8, 128), (1, 256), (8, 256)]
OPTIONS = {
    "lstm, layer_norm": (nn.LSTM, {"layer_norm": True}),
    "lstm, peepholes": (nn.LSTM, {"peepholes": True}),
    "lstm, zoneout": (nn.LSTM, {"zoneout": (0.1, 0.1)}),
    "lstm, recurrent_dropout": (nn.LSTM, {"recurrent_dropout": 0.2}),
    "lstm, weight_dropout": (nn.LSTM, {"weight_dropout": 0.2}),
    "gru, layer_norm": (nn.GRU, {"layer_norm": True}),
    "gru, zoneout": (nn.GRU, {"zoneout": 0.1}),
    "gru, recurrent_dropout": (nn.GRU, {"recurrent_dropout": 0.2}),
    "lstm, candidate_dropout": (nn.LSTM, {"candidate_dropout": 0.2}),
    "gru, candidate_dropout": (nn.GRU, {"candidate_dropout": 0.2}),
    "lstm, num_heads=4": (nn.LSTM, {"num_heads": 4}),
}


def against_loop(cell: str, B: int, H: int, budget_s: float, compiled: bool, gflops: float) -> tuple[float, float]:
    """Time of the loop over that of the layer, and over that of the layer's products alone at the multiply-add rate:
    inputs' and recurrent product, both gradients of each."""
    info, bound = _core.CELLS[cell], H**-0.5
    G, V = info["gates"], info["vectors"]
    shapes = [(G * H, H), (G * H, H if info["product"] else 0), (G * H,), ((G + V) * H,)]
    torch.manual_seed(0)  # a unit of relu that rounding puts on either side of zero would change a gradient
    inputs = [torch.randn(STEPS, B, H), *(torch.empty(s).uniform_(-bound, bound) for s in shapes)]
    inputs = [t.requires_grad_() for t in inputs]
    loop = compiled_loop() if compiled else reference.layer

    def run(layer):
        return torch.autograd.grad(layer(cell, inputs[0], inputs[1:])[0].sum(), inputs, materialize_grads=True)

    for got, want in zip(run(ops.rnn_layer), run(loop)):
        if want.numel() and not (got - want).abs().max() <= 1e-2 * (1 + want.abs().max()):
            raise SystemExit(f"{cell}: gradients differ by {(got - want).abs().max():.2g}")
    runs = {"fastrnn": lambda: run(ops.rnn_layer), "loop": lambda: run(loop)}
    seconds = interleave(runs, budget_s=budget_s, slice_s=0.02).seconds
    products = 3 * 2 * STEPS * B * G * H * (H + H * info["product"]) / (gflops * 1e9)
    return paired_ratio(seconds["loop"], seconds["fastrnn"]).median, statistics.median(seconds["loop"]) / products


def use_fused_layer_norm() -> None:
    """Gives the loop torch's layer_norm, which the reference avoids for the sake of derivatives that are not taken here."""
    for module in (reference.cells, reference.layers):
        module.layer_norm = lambda x, gain, shift: layer_norm(x, gain.shape, gain, shift)


def compiled_loop() -> Callable[..., tuple]:
    """reference.layer from the zero state, compiled for UNROLL steps and called for each so many."""
    torch._dynamo.reset()  # each cell and shape is a graph of its own
    block = torch.compile(reference.layer, dynamic=False, fullgraph=True)

    def loop(cell: str, x: torch.Tensor, weights: list[torch.Tensor]) -> tuple:
        H = weights[0].shape[0] // _core.CELLS[cell]["gates"]
        states, ys = (x.new_zeros(1, x.shape[1], H),) * _core.CELLS[cell]["states"], []
        for part in x.split(UNROLL):
            y, states = block(cell, part, weights, states)
            ys.append(y)
        return torch.cat(ys), states

    return loop


def against_plain(name: str, B: int, H: int, budget_s: float) -> float:
    """Time of a training step with an option over that without."""
    kind, option = OPTIONS[name]
    x, modules = torch.randn(STEPS, B, H), {"plain": kind(H, H), "option": kind(H, H, **option)}

    def step(module):
        module.zero_grad(set_to_none=True)
        module(x)[0].sum().backward()

    runs = {key: lambda module=module: step(module) for key, module in modules.items()}
    for run in runs.values():
        run()
    return ratio(runs, "option", "plain", budget_s)


def with_checkpoints(name: str) -> tuple[float, float]:
    """Time of a training step with checkpoints over that without, and the memory that forward holds for backward,
    besides what the caller has anyhow."""
    T, B, H = LONG
    kind, x = getattr(nn, name), torch.randn(T, B, H)
    modules = {"plain": kind(H, H), "option": kind(H, H, checkpoint_every=EVERY)}
    held = {}

    def step(key: str) -> None:
        own = {x.data_ptr(), *(w.data_ptr() for w in modules[key].parameters())}
        kept = {}

        def keep(t: torch.Tensor) -> torch.Tensor:
            if t.data_ptr() not in own:
                kept[t.data_ptr()] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = modules[key](x)[0]
        held[key] = sum(kept.values())
        modules[key].zero_grad(set_to_none=True)
        y.sum().backward()

    runs = {key: lambda key=key: step(key) for key in modules}
    time = ratio(runs, "option", "plain", 15.0)
    return time, held["option"] / held["plain"]


def ratio(runs: dict, above: str, below: str, budget_s: float) -> float:
    seconds = interleave(runs, budget_s=budget_s, slice_s=0.02).seconds
    return paired_ratio(seconds[above], seconds[below]).median


def main(argv: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--cells", nargs="*", default=list(_core.CELLS), choices=list(_core.CELLS))
    command.add_argument(
        "--compile", nargs="*", default=[], choices=list(_core.CELLS), help="compile the loop of these"
    )
    command.add_argument("--budget", type=float, default=0.6, help="seconds of timing per contestant and point")
    command.add_argument("--out", type=Path, help="directory for the results")
    options = command.parse_args(argv)
    use_fused_layer_norm()
    torch.set_num_threads(1)
    columns = [f"B={B} H={H}" for B, H in SHAPES]
    loops = [["cell", *columns, f"torch.compile of {UNROLL} steps, B=8 H=256"]]
    plain = [["option", *columns]]
    long = [["layer", "time", "memory"]]
    with pinned(1):
        gflops = ceilings.measure(1).fma_gflops
        for cell in options.cells:
            found = [against_loop(cell, B, H, options.budget, False, gflops) for B, H in SHAPES]
            row = [cell, *(f"{ratio:.1f}x of {limit:.1f}x" for ratio, limit in found), ""]
            if cell in options.compile:
                row[-1] = f"{against_loop(cell, 8, 256, options.budget, True, gflops)[0]:.1f}x"
            loops.append(row)
            print("  " + "  ".join(row), file=sys.stderr)
        for name in OPTIONS:
            plain.append([name, *(f"{against_plain(name, B, H, options.budget):.2f}x" for B, H in SHAPES)])
            print("  " + "  ".join(plain[-1]), file=sys.stderr)
        for name in ("LSTM", "GRU"):
            time, memory = with_checkpoints(name)
            long.append([name, f"{time:.2f}x", f"{memory:.2f}x"])
            print("  " + "  ".join(long[-1]), file=sys.stderr)
    machine = runner.machine_info()
    text = (
        f"{machine['cpu']}, one thread, {machine['date'][:10]}, commit {machine['commit']}, torch "
        f"{machine['versions']['torch']}; forward and backward, T = {STEPS}\n\n"
        f"The equations as a loop of torch operations: its time over fastrnn's, of what it would be over that of the "
        f"layer's products alone at the measured multiply-add rate, {gflops:.0f} GFLOP/s.\n\n{table(loops)}\n"
        f"An option: the time with it over the plain layer's.\n\n{table(plain)}\n"
        f"checkpoint_every={EVERY} at T={LONG[0]}, B={LONG[1]}, H={LONG[2]}, over the plain layer: a training step, and the "
        f"memory that forward holds for backward besides x and the weights.\n\n{table(long)}"
    )
    out = report.results_folder(__file__, machine["cpu"], options.out)
    (out / "cells.md").write_text(text)
    print(text)
    return 0


def table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
