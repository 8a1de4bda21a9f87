"""Measures the speed and accuracy targets of the CPU engine and says which are met.

    python bench/targets.py                 every row, about ten minutes on two cores; run it on a quiet machine
    python bench/targets.py --only stepper  one row (--list names them)

Writes targets.md, targets.json and a picture per mode to bench/results/<cpu>/. All rows: one layer, I = H, float32,
T = 100, everyone's results checked against float64, contestants interleaved, medians of paired ratios.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from fastrnn.bench import ceilings, peers, report, runner
from fastrnn.bench.cases import Case, make_data
from fastrnn.bench.timing import allowed_cpus, interleave, paired_ratio, pinned

HIDDEN, BATCH, CELLS = (64, 128, 256, 512), (1, 8, 32, 128), ("lstm", "gru", "rnn")


@dataclass
class Result:
    """One figure beside its target; `worst` names the point that gave it."""

    row: str
    work: str
    against: str
    target: float
    value: float
    at_least: bool = True
    worst: str = ""
    fraction: float | None = None  # of the measured ceiling at the worst point, None where the model says nothing
    limit: float | None = None  # what `value` would be if every point were at its ceiling

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass
class Bench:
    """Measures points once and remembers them; thread counts that this machine lacks are left out."""

    peers: list[str]
    steps: int = 100
    budget_s: float = 0.25
    points: dict[Case, runner.Point] = field(default_factory=dict)
    others: list[float | None] = field(default_factory=list)  # CPU time taken by other processes, per measurement
    _exact: tuple = (None, None)

    def __post_init__(self):
        self.threads = tuple(n for n in (1, 2) if n <= len(allowed_cpus()))
        self.ceilings = {n: ceilings.measure(n) for n in self.threads}

    def case(self, cell, mode, hidden, batch, threads=1, **more) -> Case:
        return Case(cell, mode, hidden, batch, self.steps, threads, **more)

    def exact(self, case: Case) -> dict:
        """The float64 result, kept while only the thread count changes."""
        key = replace(case, threads=1)
        if self._exact[0] != key:
            self._exact = (key, peers.reference(case, make_data(case)))
        return self._exact[1]

    def point(self, case: Case, any_threads: tuple[int, ...] = ()) -> runner.Point:
        if any_threads or case not in self.points:
            ceiling = self.ceilings[case.threads]
            point = runner.measure(case, self.peers, ceiling, self.budget_s, any_threads, self.exact(case))
            print(f"  {case}: {point.us_per_step['fastrnn'].median:.2f} us/step", file=sys.stderr)
            for note in point.notes:
                print(f"  {note}", file=sys.stderr)
            self.others.append(point.others)
            if any_threads:
                return point
            self.points[case] = point
        return self.points[case]

    def race(self, case: Case, ours: dict[str, tuple[Case, int]]) -> dict[str, list[float]]:
        """fastrnn against itself: name -> (case, threads), pinned to the threads of `case`; seconds per round.

        Resets are checked against float64 and everyone else against the first (the grid rows check that one).
        """
        with pinned(case.threads):
            built = {name: peers.build(peers.OURS, c, make_data(c), n) for name, (c, n) in ours.items()}
            first = None
            for name, contestant in built.items():
                contestant.activate()
                result = contestant.result(contestant.run())
                first = first or result
                exact = self.exact(ours[name][0]) if ours[name][0].variant == "reset" else first
                if peers.worst_difference(result, exact) > runner.LIMIT:
                    raise runner.WrongResult(f"fastrnn: {ours[name][0]}: '{name}' differs from the exact result")
            activate = {name: contestant.activate for name, contestant in built.items()}
            samples = interleave({name: c.run for name, c in built.items()}, activate, self.budget_s)
        self.others.append(samples.others)
        return samples.seconds


def lowest(row, work, against, target, points, peer=None, mean=None) -> list[Result]:
    """The lowest ratio to `peer` (default: each point's best), and the geometric mean where `mean` is its target."""
    rated = [(r.median, p) for p in points if (r := p.ratio.get(peer or p.best_peer))]
    if not rated:
        return []
    value, worst = min(rated, key=lambda pair: pair[0])
    best = "" if peer else f" ({worst.best_peer})"
    limits = [ratio / p.fraction for ratio, p in rated if p.fraction]
    limit = min(limits) if limits else None
    found = [Result(row, work, against, target, value, True, f"{worst.case}{best}", worst.fraction, limit)]
    if mean is not None:
        average = report.geometric_mean(ratio for ratio, _ in rated)
        limit = report.geometric_mean(limits) if limits else None
        text = f"{work}, geometric mean"
        found.append(Result(row, text, against, mean, average, True, f"{len(rated)} points", None, limit))
    return found


def infer_small(b: Bench) -> list[Result]:
    points = [b.point(b.case(c, "infer", h, 1)) for c in ("lstm", "gru") for h in (64, 128)]
    return lowest("infer-small", "LSTM, GRU inference, B=1, H 64/128, 1 thread", "best peer", 1.5, points)


def infer_256(b: Bench) -> list[Result]:
    n = b.threads[-1]
    points = [b.point(b.case(c, "infer", 256, 1, n), any_threads=b.threads) for c in ("lstm", "gru")]
    work = f"LSTM, GRU inference, B=1, H=256, {n} threads"
    return lowest("infer-256", work, "best peer at any thread count", 1.8, points)


def _grid(b: Bench, mode: str, cells, hidden, batch, n: int) -> list[runner.Point]:
    return [b.point(b.case(c, mode, h, k, n)) for c in cells for h in hidden for k in batch]


def infer_grid(b: Bench) -> list[Result]:
    found = []
    for n in b.threads:
        points, work = _grid(b, "infer", CELLS, HIDDEN, BATCH, n), f"inference, H 64..512, B 1..128, {n} thr"
        found += lowest("infer-grid", work, "best peer", 1.0, points, mean=1.3)
    return found


def infer_torch(b: Bench) -> list[Result]:
    points = [p for n in b.threads for p in _grid(b, "infer", ("gru", "rnn"), (64, 128), (1,), n)]
    return lowest("infer-torch", "GRU, RNN inference, B=1, H <= 128", "torch", 7.0, points, "torch")


def train_small(b: Bench) -> list[Result]:
    found = []
    for k, target in ((1, 8.0), (8, 4.0)):
        points = [p for n in b.threads for p in _grid(b, "train", ("gru", "rnn"), (64, 128), (k,), n)]
        found += lowest("train-small", f"GRU, RNN training, H <= 128, B={k}", "torch", target, points, "torch")
    return found


def train_large(b: Bench) -> list[Result]:
    found = []
    for n in b.threads:
        points = _grid(b, "train", ("gru", "rnn"), HIDDEN, (32, 128), n)
        work = f"GRU, RNN training, H 64..512, B 32..128, {n} thr"
        found += lowest("train-large", work, "torch", 1.1, points, "torch", mean=2.0)
    return found


def train_lstm(b: Bench) -> list[Result]:
    found = []
    for n in b.threads:
        points = _grid(b, "train", ("lstm",), HIDDEN, BATCH, n)
        work = f"LSTM training, H 64..512, B 1..128, {n} thr"
        found += lowest("train-lstm", work, "torch", 1.0, points, "torch", mean=1.4)
    return found


def stepper(b: Bench) -> list[Result]:
    points = [b.point(b.case("lstm", "step", 64, 1))]
    work = "stepper, LSTM H=64, B=1, from Python"
    return lowest("stepper", work, "torch.nn.LSTMCell, no grad", 12.0, points, "torch") + lowest(
        "stepper", work, "onnxruntime, T=1", 3.0, points, "onnxruntime"
    )


def ragged(b: Bench) -> list[Result]:
    """Own ragged time over (own dense time x fraction of steps inside a sequence); torch on a batch already packed."""
    found, costs = [], []
    for mode in ("infer", "train"):
        points = {c: [b.point(b.case(c, mode, 128, 32, n, variant="ragged")) for n in b.threads] for c in CELLS}
        for p in (p for group in points.values() for p in group):
            costs.append((1 / (p.ratio["own dense"].median * make_data(p.case).active), p))
        found += lowest(
            "ragged", f"ragged GRU, {mode}, B=32, H=128", "torch PackedSequence", 8.0, points["gru"], "torch"
        )
    cost, worst = max(costs, key=lambda pair: pair[0])
    work, against = "ragged batch, B=32, H=128", "own dense time x active fraction"
    return [Result("ragged", work, against, 1.15, cost, False, str(worst.case), worst.fraction)] + found


def resets(b: Bench) -> list[Result]:
    worst = (0.0, "")
    for mode in ("infer", "train"):
        for cell, batch, n in ((c, k, n) for c in CELLS for k in (1, 32) for n in b.threads):
            plain = b.case(cell, mode, 128, batch, n)
            ours = {"plain": (plain, n)}
            for density in (0.0, 0.01, 0.5, 1.0):
                ours[f"{density:.0%}"] = (replace(plain, variant="reset", density=density), n)
            seconds = b.race(plain, ours)
            for name in list(ours)[1:]:
                ratio = paired_ratio(seconds[name], seconds["plain"]).median
                worst = max(worst, (ratio, f"{plain}, {name} of the steps"))
    return [Result("reset", "reset_mask, 0 to 100% of the steps", "own time without", 1.03, worst[0], False, worst[1])]


def threads(b: Bench) -> list[Result]:
    """Two threads over one, on every point of both grids; both contestants may use both CPUs."""
    if len(b.threads) < 2:
        return []
    ratios: dict[Case, float] = {}
    for mode in ("infer", "train"):
        for case in (b.case(c, mode, h, k, 2) for c in CELLS for h in HIDDEN for k in BATCH):
            seconds = b.race(case, {"one": (case, 1), "two": (case, 2)})
            ratios[case] = paired_ratio(seconds["one"], seconds["two"]).median
            print(f"  {case}: {ratios[case]:.2f}x one thread", file=sys.stderr)
    worst = min(ratios, key=ratios.get)
    found = [Result("threads", "2 threads, both grids", "own 1 thread", 0.97, ratios[worst], True, str(worst))]
    for cell in CELLS:
        case = b.case(cell, "infer", 256, 1, 2)
        text = f"2 threads, {cell} inference, H=256, B=1"
        found.append(Result("threads", text, "own 1 thread", 2.0, ratios[case], True, str(case)))
    return found


def accuracy(b: Bench) -> list[Result]:
    """RMS error against float64, ours over torch's own; every array relative to its RMS, averaged over three draws."""
    worst = {"forward": (0.0, ""), "gradient": (0.0, "")}
    lengths = (100, 1000, 10000) if b.steps == 100 else (b.steps,)
    for cell, steps in ((c, t) for c in CELLS for t in lengths):
        case = Case(cell, "train", 64, 4, steps, b.threads[-1])
        squares: dict[tuple[str, str], float] = {}
        for seed in range(3):
            data = make_data(case, seed)
            exact = peers.reference(case, data)
            for name in (peers.OURS, "torch"):
                contestant = peers.build(name, case, data)
                contestant.activate()
                got = contestant.result(contestant.run())
                for key, want in exact.items():
                    kind = "gradient" if key.startswith("d") else "forward"
                    error = ((got[key] - want) ** 2).mean() / (want**2).mean()
                    squares[kind, name] = squares.get((kind, name), 0.0) + float(error)
        for kind in worst:
            ratio = (squares[kind, peers.OURS] / squares[kind, "torch"]) ** 0.5
            print(f"  {cell} T={steps} {kind}: RMS error {ratio:.2f} of torch's", file=sys.stderr)
            worst[kind] = max(worst[kind], (ratio, f"{cell} T={steps}"))
    text = "RMS error, H=64, B=4, T up to 10,000"
    return [Result("accuracy", f"{kind} {text}", "torch's own", 1.0, *v[:1], False, v[1]) for kind, v in worst.items()]


ROWS = {
    "infer-small": infer_small,
    "infer-256": infer_256,
    "infer-grid": infer_grid,
    "infer-torch": infer_torch,
    "train-small": train_small,
    "train-large": train_large,
    "train-lstm": train_lstm,
    "stepper": stepper,
    "ragged": ragged,
    "reset": resets,
    "threads": threads,
    "accuracy": accuracy,
}


def markdown(results: list[Result], machine: dict, limits: dict, warning: str | None) -> str:
    """The table, with the machine above it and the measured ceilings below."""
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, isa {machine['isa']}, {machine['kernel']}, {machine['date'][:10]}, "
        f"commit {machine['commit']}; " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v),
        "",
        "| row | work | against | target | measured | met | at | of ceiling | at the ceiling |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        target = f"{'>=' if r.at_least else '<='} {r.target:g}x"
        ceiling = "" if r.fraction is None else f"{r.fraction:.0%}"
        limit = "" if r.limit is None else f"{r.limit:.2f}x"
        met = "yes" if r.met else "**no**"
        lines.append(
            f"| {r.row} | {r.work} | {r.against} | {target} | {r.value:.2f}x | {met} | {r.worst} | {ceiling} | {limit} |"
        )
    if warning:
        lines += ["", warning]
    for c in filter(None, limits.values()):
        rates = ", ".join(f"{level.name} {level.gbytes_per_s:.0f} GB/s" for level in c.levels)
        calls = ", ".join(f"{mode} {us:.2g} us" for mode, us in c.call_us.items())
        gates = ", ".join(f"{name} {ns:.2f} ns" for name, ns in c.gate_ns.items())
        barrier = f"; barrier {c.barrier_us:.2f} us" if c.barrier_us else ""
        lines += [
            "",
            f"Ceilings, {c.threads} thread(s): {c.fma_gflops:.0f} GFLOP/s; read {rates}; empty call: {calls}; "
            f"one value, one thread: {gates}{barrier}.",
        ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    command.add_argument("--list", action="store_true", help="print the names of the rows")
    command.add_argument("--budget", type=float, default=0.25, help="seconds of timing per contestant and point")
    command.add_argument("--steps", type=int, default=100, help="sequence length T (targets are stated for 100)")
    command.add_argument("--out", type=Path, help="directory for the results")
    options = command.parse_args(argv)
    if options.list:
        print("\n".join(ROWS))
        return 0
    chosen = options.only.split(",")
    for name in chosen:
        if name not in ROWS:
            command.error(f"argument --only: got {name}, expected some of {','.join(ROWS)}")
    machine = runner.machine_info()
    missing = [name for name in peers.PEERS if not machine["versions"][name]]
    for name in missing:
        print(f"{name} is not installed: rows against it, and 'best peer', lack it", file=sys.stderr)
    bench = Bench([name for name in peers.PEERS if name not in missing], options.steps, options.budget)
    results, start = [], time.monotonic()
    for name in chosen:
        print(f"{name} ({time.monotonic() - start:.0f} s)", file=sys.stderr)
        results += ROWS[name](bench)
    points = list(bench.points.values())
    text = markdown(results, machine, bench.ceilings, report.disturbed(bench.others))
    print(text)
    out = report.results_folder(__file__, machine["cpu"], options.out)
    tables = [{**asdict(r), "met": r.met} for r in results]
    settings = {"rows": chosen, "steps": options.steps, "budget_s": options.budget, "threads": torch.get_num_threads()}
    report.save_json(out / "targets.json", points, machine, bench.ceilings, {**settings, "targets": tables})
    (out / "targets.md").write_text(text)
    for mode in ("infer", "train"):
        drawn = [p for p in points if p.case.mode == mode and p.case.variant == "dense"]
        if len(drawn) > 4:
            report.plot(out / f"{mode}.png", drawn, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
