"""Measures the attention decoder against the same loop in eager torch, interleaved, on this machine.

    python bench/decoder.py            teacher-forced decodes and greedy generation, about two minutes
    python bench/decoder.py --quick    one point of each
    python bench/decoder.py --threads 1 --cpu-time    CPU time of the process: for a machine where others are busy

Writes decoder.md and decoder.json to bench/results/<cpu>/. float32, random weights, additive attention in Luong's order
with input feeding, every width 256. Results are compared before they are timed: outputs and gradients of a decode
within 1e-4, tokens of a generation exactly.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from fastrnn.bench import report, runner
from fastrnn.bench.timing import interleave, paired_ratio, pinned, summarize
from fastrnn.nn import AttentionDecoder

D = 256
DECODES = [("lstm", 16, 30), ("lstm", 32, 50), ("gru", 16, 30), ("gru", 32, 50)]  # cell, B, T = Tk
GENERATIONS = [(B, V) for V in (1000, 10000) for B in (1, 4, 16)]
STEPS = KEYS = 50
LIMIT = 1e-4  # of 1 + the largest value


class Eager(torch.nn.Module):
    """The loop as it is written in torch, on the parameters of an AttentionDecoder."""

    def __init__(self, decoder: AttentionDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.cell = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[decoder.cell](2 * D, D)
        for name, _ in list(self.cell.named_parameters()):
            setattr(self.cell, name, getattr(decoder, name))

    def start(self, memory: torch.Tensor):
        zeros = memory.new_zeros(memory.shape[0], D)
        return self.decoder.memory_layer(memory), (zeros, zeros) if self.decoder.cell == "lstm" else zeros, zeros

    def step(self, x, memory, keys, state, feed):
        d = self.decoder
        state = self.cell(torch.cat([x, feed], 1), state)
        h = state[0] if d.cell == "lstm" else state
        weights = ((d.query_layer(h).unsqueeze(1) + keys).tanh() @ d.v).softmax(-1)
        context = (weights.unsqueeze(1) @ memory).squeeze(1)
        return state, d.output_layer(torch.cat([context, h], 1)).tanh(), weights

    def forward(self, tokens, memory):
        embedded, (keys, state, feed), outputs, shares = self.decoder.embedding(tokens), self.start(memory), [], []
        for t in range(tokens.shape[1]):
            state, feed, weights = self.step(embedded[:, t], memory, keys, state, feed)
            outputs.append(feed)
            shares.append(weights)
        return torch.stack(outputs, 1), torch.stack(shares, 1)

    def generate(self, memory):
        (keys, state, feed), found, shares, probs = self.start(memory), [], [], []
        token = torch.ones(memory.shape[0], dtype=torch.int64, device=memory.device)
        for _ in range(STEPS):
            state, feed, weights = self.step(self.decoder.embedding(token), memory, keys, state, feed)
            best, token = self.decoder.vocabulary_layer(feed).log_softmax(-1).max(-1)
            found.append(token)
            shares.append(weights)
            probs.append(best)
        return torch.stack(found, 1), torch.stack(shares, 1), torch.stack(probs, 1)


def decode_calls(cell: str, B: int, T: int, backward: bool, device: str = "cpu"):
    torch.manual_seed(0)
    decoder = AttentionDecoder(D, D, D, vocabulary_size=1000, cell=cell).to(device)
    tokens, memory = torch.randint(0, 1000, (B, T)).to(device), torch.randn(B, T, D).to(device)
    eager = Eager(decoder)
    parameters = [p for name, p in decoder.named_parameters() if not name.startswith("vocabulary")]
    inputs = [memory.requires_grad_(backward), *parameters]

    def call_of(function):
        def forward():
            with torch.no_grad():
                return function(tokens, memory)[:2]

        def both():
            outputs, weights = function(tokens, memory)[:2]
            return (outputs, weights, *torch.autograd.grad(outputs.sum(), inputs))

        return both if backward else forward

    calls = {"fastrnn": call_of(decoder), "eager": call_of(eager)}
    for got, want in zip(calls["fastrnn"](), calls["eager"]()):
        worst = ((got - want).abs().max() / (1 + want.abs().max())).item()
        if not worst <= LIMIT:
            raise SystemExit(f"{cell} B={B} T={T}: differs by {worst:.2g}, expected at most {LIMIT:g}")
    return calls


def generation_calls(B: int, V: int, device: str = "cpu"):
    torch.manual_seed(0)
    decoder = AttentionDecoder(D, D, D, vocabulary_size=V).to(device)
    eager, memory = Eager(decoder), torch.randn(B, KEYS, D).to(device)

    def loop():
        with torch.no_grad():
            return eager.generate(memory)

    calls = {"fastrnn": lambda: decoder.generate(memory, start=1, end=None, max_length=STEPS), "eager": loop}
    if not torch.equal(calls["fastrnn"]().tokens, loop()[0]):
        raise SystemExit(f"generation B={B} V={V}: the tokens differ")
    return calls


def points(quick: bool, device: str = "cpu"):
    """What is measured: labels, and a function that makes the contestants' calls."""
    for cell, B, T in DECODES[: 1 if quick else None]:
        for backward in (False, True):
            label = f"decode, {cell}, B={B}, T=Tk={T}, {'forward + backward' if backward else 'forward'}"
            yield label, lambda cell=cell, B=B, T=T, backward=backward: decode_calls(cell, B, T, backward, device)
    for B, V in GENERATIONS[: 1 if quick else None]:
        yield f"greedy, lstm, B={B}, V={V}, {STEPS} steps, Tk={KEYS}", lambda B=B, V=V: generation_calls(B, V, device)


def interleave_cpu(calls: dict, budget_s: float, min_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of the process per call; the contestants take turns, in rotated order."""
    seconds, names = {name: [] for name in calls}, list(calls)
    while len(seconds[names[0]]) < min_rounds or min(map(sum, seconds.values())) < budget_s:
        for name in names:
            start = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - start)
        names.append(names.pop(0))
    return seconds


def main(argv: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--quick", action="store_true", help="one point of each kind")
    command.add_argument("--threads", type=int, default=torch.get_num_threads())
    command.add_argument("--cpu-time", action="store_true", help="CPU time instead of wall time, with --threads 1")
    command.add_argument("--budget", type=float, default=1.0, help="seconds of timing per contestant and point")
    command.add_argument("--out", type=Path, help="directory for the results")
    options = command.parse_args(argv)
    if options.cpu_time and options.threads != 1:
        command.error(f"--cpu-time counts every thread's waiting as work: --threads is {options.threads}, expected 1")
    torch.set_num_threads(options.threads)
    machine, others, rows = runner.machine_info(), [], []
    for label, make in points(options.quick):
        with pinned(options.threads):
            if options.cpu_time:
                seconds = interleave_cpu(make(), options.budget, min_rounds=5)
            else:
                samples = interleave(make(), budget_s=options.budget, min_rounds=5)
                others.append(samples.others)
                seconds = samples.seconds
        ms = {name: summarize(values).scaled(1e3).median for name, values in seconds.items()}
        ratio = paired_ratio(seconds["eager"], seconds["fastrnn"])
        rows.append({"work": label, "ms": ms, "ratio": ratio.median, "quartiles": [ratio.q1, ratio.q3]})
        print(f"  {label}: {ms} {ratio.median:.2f}", file=sys.stderr)
    lines = [
        f"{machine['cpu']}, {options.threads} thread{'s' if options.threads > 1 else ''}, "
        f"{'CPU time, ' if options.cpu_time else ''}{machine['date'][:10]}, commit {machine['commit']}, torch "
        f"{machine['versions']['torch']}; additive attention, Luong's order with input feeding, all widths {D}",
        "",
        "| work | fastrnn | eager torch | ratio (quartiles) |",
        "|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["quartiles"]
        times = f"{r['ms']['fastrnn']:.2f} ms | {r['ms']['eager']:.1f} ms"
        lines.append(f"| {r['work']} | {times} | {r['ratio']:.1f}x ({low:.1f} to {high:.1f}) |")
    if others and (warning := report.disturbed(others)):
        lines += ["", warning]
    text = "\n".join(lines) + "\n"
    out = report.results_folder(__file__, machine["cpu"], options.out)
    (out / "decoder.md").write_text(text)
    (out / "decoder.json").write_text(json.dumps({"machine": machine, "points": rows}, indent=1) + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
