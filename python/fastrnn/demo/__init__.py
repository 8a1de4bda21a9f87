"""`python -m fastrnn demo`: trains a character-level language model on real text, torch.nn and fastrnn.nn side by side.

Same initial weights, same batches, same threads, turns taken step by step; then the loss curves, the times, bits per
character on text that neither has seen, a sample, and a picture.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

_CELLS = ("gru", "lstm", "rnn")
_SAMPLE_CHARACTERS = 400
_FIRST_STEP_TOLERANCE = 1e-4  # bits per character; equal weights and batches leave only rounding


def _positive(kind):
    def parse(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"got {text}, expected a positive number")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message about text that is no number
    return parse


def parser() -> argparse.ArgumentParser:
    """The command line of the demo."""
    out = argparse.ArgumentParser(prog="python -m fastrnn demo", description=__doc__.splitlines()[0])
    count = _positive(int)
    out.add_argument("--cell", choices=_CELLS, default="gru", help="recurrent cell (default gru)")
    out.add_argument("--hidden", type=count, default=128, help="hidden units, also of the embedding (default 128)")
    out.add_argument("--layers", type=count, default=1, help="recurrent layers (default 1)")
    out.add_argument("--batch", type=count, default=8, help="rows per step (default 8)")
    out.add_argument("--seq", type=count, default=64, help="characters per row and step (default 64)")
    out.add_argument("--steps", type=count, default=2000, help="training steps (default 2000)")
    out.add_argument("--seconds", type=_positive(float), default=90, help="stop training after this (default 90)")
    out.add_argument("--threads", type=count, help="threads of both libraries (default: what fastrnn would use)")
    out.add_argument(
        "--control", action="store_true", help="also torch.nn from weights one rounding away, see the output"
    )
    out.add_argument("--seed", type=int, default=1, help="of the initial weights and of the sample (default 1)")
    out.add_argument("--output", type=Path, default=Path("fastrnn_demo.png"), help="picture (default fastrnn_demo.png)")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit status (1 when the two sides disagree from the start)."""
    command = parser()
    options = command.parse_args(argv)
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
        import torch
        import tqdm  # noqa: F401
    except ImportError as error:
        command.exit(2, f"demo: {error.name} is not installed, expected: pip install fastrnn[torch,demo]\n")
    import fastrnn

    from . import text, training

    corpus = text.load()
    data = training.Text.of(corpus.text)
    if (len(data.train) - 1) // options.batch < options.seq:
        most = (len(data.train) - 1) // options.batch
        command.error(f"argument --seq: got {options.seq}, expected at most {most} with --batch {options.batch}")
    threads = options.threads or fastrnn.get_num_threads()
    torch.set_num_threads(threads)
    fastrnn.set_num_threads(threads)
    return _run(options, corpus, data, threads)


def _run(options: argparse.Namespace, corpus, data, threads: int) -> int:
    import torch
    from rich.console import Console

    import fastrnn

    from ..bench.runner import cpu_name
    from . import report, sampling, training

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    cell = options.cell.upper()
    shape = f"{cell} {options.hidden} x {options.layers}, batch {options.batch}, T {options.seq}, float32"
    machine = f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}, fastrnn isa {fastrnn.isa()}"
    size = f"{len(corpus.text):,} characters, {len(data.vocabulary)} different; a tenth is held out"
    console.print(f"[bold]Text[/]     {corpus.source}")
    console.print(f"         {corpus.licence}")
    console.print(f"         {size}")
    console.print(f"[bold]Model[/]    next character: embedding, {shape}, linear; Adam, {options.steps} steps")
    console.print(f"[bold]Machine[/]  {machine}, torch {torch.__version__}")
    libraries = {"torch.nn": torch.nn, "fastrnn.nn": fastrnn.nn}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        contestants = training.sides(libraries, cell, len(data.vocabulary), options.hidden, options.layers)
    if options.control:
        contestants.append(training.one_rounding_away(contestants[0]))
    done, others = _train(options, data, contestants)
    if done == 0:
        return 130
    if done < options.steps:
        console.print(f"stopped after {done} of {options.steps} steps: the learning rate had not reached zero")

    theirs, ours, *_ = contestants
    step = ours.model.recurrent.stepper(1)
    sample = sampling.generate(ours.model, step, data.vocabulary, _SAMPLE_CHARACTERS, options.seed)
    calls = sampling.one_step_calls(theirs.model)
    replay = sampling.generate(theirs.model, calls, data.vocabulary, _SAMPLE_CHARACTERS, options.seed)
    results = [
        report.Result(side, training.bits_per_character(side.model, data.held_out), seconds)
        for side, seconds in ((theirs, replay.seconds), (ours, sample.seconds))
    ]
    console.print(report.table(*results, cell))
    if others is not None and others > 0.05:
        console.print(f"Disturbed:   other processes took {others:.0%} of the CPU time during training.")
    _print_checks(console, report, sampling, contestants, sample, data)
    characters = "".join(data.vocabulary[i] for i in sample.ids)
    console.print(f"\n[bold]Sample[/] of fastrnn.nn after '{sampling.PROMPT}', written by module.stepper(1):\n")
    console.print(sampling.PROMPT + characters, markup=False, style="italic", soft_wrap=True)
    report.picture(options.output, *results, f"Next character of the {corpus.source}; {shape}\n{machine}", cell)
    console.print(f"\n[bold]Picture[/]  {options.output}", soft_wrap=True)
    gap = abs(theirs.loss[0] - ours.loss[0])
    if not gap <= _FIRST_STEP_TOLERANCE:  # also when it is NaN
        print(
            f"demo: the losses of the first step differ by {gap:.3g}, expected at most {_FIRST_STEP_TOLERANCE}",
            file=sys.stderr,
        )
        return 1
    return 0


def _train(options: argparse.Namespace, data, contestants: list) -> tuple[int, float | None]:
    """Train with a progress bar.

    Returns:
        The steps done, fewer than asked for after Ctrl-C or when the time is up; and the share of all CPU time that
        other processes took, None where the system does not say.
    """
    from tqdm import tqdm

    from . import training

    disturbance = training.Disturbance()

    seldom = 0.1 if sys.stderr.isatty() else 10  # seconds: a log should not fill with bars
    with tqdm(total=options.steps, unit="step", desc="training", leave=False, mininterval=seldom) as bar:

        def progress(steps: int) -> None:
            bar.set_postfix({side.name: f"{side.loss[-1]:.3f}" for side in contestants}, refresh=False)
            bar.update(steps)

        try:
            training.race(contestants, data, options.batch, options.seq, options.steps, options.seconds, progress)
        except KeyboardInterrupt:
            print("demo: interrupted, showing what is done", file=sys.stderr)
    done = min(len(side.loss) for side in contestants)
    for side in contestants:
        side.keep(done)
    return done, disturbance.share()


def _print_checks(console, report, sampling, contestants: list, sample, data) -> None:
    """The comparisons that belong beside the table: how equal the two are, and what the loss is worth."""
    theirs, ours, *control = contestants
    steps = min(100, len(theirs.loss))
    early, worst = report.loss_difference(theirs, ours)
    console.print(f"Loss curves: largest difference {early:.1e} in the first {steps} steps, {worst:.1e} in all;")
    if control:
        early, worst = report.loss_difference(theirs, control[0])
        console.print(f"             torch.nn from weights one rounding away: {early:.1e} and {worst:.1e}.")
    else:
        console.print("             rounding differs and training amplifies it: --control shows by how much.")
    whole = sampling.whole_sequence(ours.model, sample, data.vocabulary)
    gap = (whole - sample.y).abs().max().item()
    console.print(f"Stepper:     largest difference from the same text in one call {gap:.1e}.")
    uniform = math.log2(len(data.vocabulary))
    console.print(
        f"For scale:   guessing costs {uniform:.2f} bits per character, letter frequencies {data.letters_alone():.2f}."
    )
