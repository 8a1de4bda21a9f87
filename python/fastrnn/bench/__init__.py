"""`python -m fastrnn bench`: measures this package against the recurrent layers of other libraries.

Every point builds the same weights in each library, checks each result against float64, then times them interleaved.
"""

from __future__ import annotations

import argparse
import sys

_CELLS = ("lstm", "gru", "rnn")


def _numbers(text: str) -> list[int]:
    values = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected positive integers separated by commas")
    return values


def _words(*allowed: str):
    def parse(text: str) -> list[str]:
        values = [part for part in text.split(",") if part]
        for value in values:
            if value not in allowed:
                raise argparse.ArgumentTypeError(f"got {value}, expected some of {','.join(allowed)}")
        return values

    return parse


def parser() -> argparse.ArgumentParser:
    """The command line of the benchmark."""
    out = argparse.ArgumentParser(prog="python -m fastrnn bench", description=__doc__.splitlines()[0])
    out.add_argument("--cells", type=_words(*_CELLS), default=list(_CELLS), help="lstm,gru,rnn (default all)")
    out.add_argument("--hidden", type=_numbers, help="hidden sizes (default 64,128,256,512)")
    out.add_argument("--batch", type=_numbers, help="batch sizes (default 1,8,32,128)")
    out.add_argument("--steps", type=int, default=100, help="sequence length T (default 100)")
    out.add_argument("--threads", type=_numbers, default=[1], help="thread counts (default 1)")
    out.add_argument("--mode", type=_words("infer", "train", "step"), default=["infer"], help="infer,train,step")
    peers = _words("torch", "onnxruntime", "openvino")
    out.add_argument("--peers", type=peers, help='default: those installed; "" for none')
    out.add_argument("--ragged", action="store_true", help="also batches with random lengths")
    out.add_argument("--reset", action="store_true", help="also resets at 1%% of the steps")
    out.add_argument("--quick", action="store_true", help="small grid and short timing, to see that it works")
    out.add_argument("--budget", type=float, help="seconds of timing per contestant and point (default 0.25)")
    out.add_argument("--json", metavar="FILE", help="save everything measured")
    out.add_argument("--plot", metavar="FILE", help="save a picture (PNG) of the ratio to the best peer")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status (1 when fastrnn gave a wrong result)."""
    command = parser()
    options = command.parse_args(argv)
    try:
        import rich  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        command.exit(2, f"bench: {error.name} is not installed, expected: pip install fastrnn[torch,bench]\n")
    from . import peers, report
    from .timing import allowed_cpus

    if options.steps < 1:
        command.error(f"argument --steps: got {options.steps}, expected at least 1")
    if max(options.threads) > len(allowed_cpus()):
        command.error(f"argument --threads: got {max(options.threads)}, expected at most {len(allowed_cpus())} here")
    installed = {name for name, version in peers.versions().items() if version}
    missing = [name for name in options.peers or [] if name not in installed]
    if missing:
        command.error(f"argument --peers: {missing[0]} is not usable here (pip install {missing[0]} onnx)")
    if options.peers is None:
        options.peers = [name for name in peers.PEERS if name in installed]
    points, machine, ceilings, wrong = _measure(options)
    if points:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:  # a file or a pipe has no width to fit
            console = Console(width=150)
        console.print(report.table(points, machine))
        ratios = [p.ratio[p.best_peer].median for p in points if p.best_peer]
        if ratios:
            mean = report.geometric_mean(ratios)
            console.print(f"against the best peer: geometric mean {mean:.2f}x, lowest {min(ratios):.2f}x")
        if warning := report.disturbed([p.others for p in points]):
            console.print(warning)
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k not in ("json", "plot")}
        report.save_json(options.json, points, machine, ceilings, settings)
    if options.plot:
        report.plot(options.plot, points, machine)
    return 1 if wrong else 0


def _measure(options):
    """Measure every point of the grid; an interrupt keeps what is done."""
    from . import cases, ceilings, runner

    hidden = options.hidden or ([64, 128] if options.quick else [64, 128, 256, 512])
    batch = options.batch or ([1, 8] if options.quick else [1, 8, 32, 128])
    budget = options.budget or (0.03 if options.quick else 0.25)
    grid = cases.grid(
        options.cells, hidden, batch, options.steps, options.threads, options.mode, options.ragged, options.reset
    )
    limits = {n: ceilings.measure(n) for n in sorted(set(options.threads))}
    points, wrong = [], False
    try:
        for i, case in enumerate(grid):
            try:
                point = runner.measure(case, options.peers, limits[case.threads], budget)
            except runner.WrongResult as error:
                wrong = True
                print(f"bench: {error}", file=sys.stderr)
                continue
            points.append(point)
            best = f", {point.ratio[point.best_peer].median:.2f}x {point.best_peer}" if point.best_peer else ""
            own = point.us_per_step["fastrnn"].median
            print(f"[{i + 1}/{len(grid)}] {case}: {own:.2f} us/step{best}", file=sys.stderr)
            for note in point.notes:
                print(f"bench: {note}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"bench: interrupted after {len(points)} of {len(grid)} points", file=sys.stderr)
    return points, runner.machine_info(), limits, wrong
