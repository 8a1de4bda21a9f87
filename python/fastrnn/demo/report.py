"""What the demo shows: a table on the terminal and a picture. Every number in them was measured in the same run."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path

from ..bench.timing import paired_ratio
from .training import Side

_COLOURS = {"torch.nn": "#d9730d", "fastrnn.nn": "#1f5fa8"}


@dataclass
class Result:
    """One side after training."""

    side: Side
    held_out: float  # bits per character
    sample_s: float  # recurrent layers, per generated character

    def recurrent_s(self) -> list[float]:
        """Forward and backward of the recurrent layers in each training step."""
        return [f + b for f, b in zip(self.side.forward_s, self.side.backward_s)]

    def last_loss(self) -> float:
        """Mean training loss over the last twentieth of the steps."""
        return statistics.fmean(self.side.loss[-max(1, len(self.side.loss) // 20) :])


def ratios(torch_nn: Result, ours: Result) -> dict[str, float]:
    """How many times longer torch.nn took: medians over pairs of steps on the same batch."""
    return {
        "step": paired_ratio(torch_nn.side.step_s, ours.side.step_s).median,
        "recurrent": paired_ratio(torch_nn.recurrent_s(), ours.recurrent_s()).median,
        "total": sum(torch_nn.side.step_s) / sum(ours.side.step_s),
        "sample": torch_nn.sample_s / ours.sample_s,
    }


def table(torch_nn: Result, ours: Result, cell: str):
    """A rich table: quantities down, sides across, and the ratio."""
    from rich.table import Table

    ratio = ratios(torch_nn, ours)
    rows = [
        ("whole training step, median", "step_ms", "ms", ratio["step"]),
        (f"of it the {cell} layers, forward and backward", "recurrent_ms", "ms", ratio["recurrent"]),
        ("all training steps", "total_s", "s", ratio["total"]),
        (f"{cell} layers, one character at a time", "sample_us", "us", ratio["sample"]),
        ("training loss at the end", "loss", "bits/char", None),
        ("loss on held-out text", "held_out", "bits/char", None),
    ]
    columns = [_numbers(torch_nn), _numbers(ours)]
    out = Table(caption="2.0x: torch.nn took twice as long", caption_justify="right")
    out.add_column("")
    for heading in (torch_nn.side.name, ours.side.name, "ratio"):
        out.add_column(heading, justify="right")
    for label, key, unit, times in rows:
        cells = [f"{c[key]:.4f} {unit}" if unit == "bits/char" else f"{c[key]:.3g} {unit}" for c in columns]
        out.add_row(label, *cells, "" if times is None else f"[bold]{times:.2f}x[/]")
    return out


def _numbers(result: Result) -> dict[str, float]:
    return {
        "step_ms": 1e3 * statistics.median(result.side.step_s),
        "recurrent_ms": 1e3 * statistics.median(result.recurrent_s()),
        "total_s": sum(result.side.step_s),
        "sample_us": 1e6 * result.sample_s,
        "loss": result.last_loss(),
        "held_out": result.held_out,
    }


def loss_difference(one: Side, other: Side) -> tuple[float, float]:
    """Largest difference of the two losses in the first 100 steps, and in all of them."""
    gaps = [abs(a - b) for a, b in zip(one.loss, other.loss)]
    return max(gaps[:100]), max(gaps)


def smoothed(values: list[float]) -> list[float]:
    """Means over a window that ends at each step and spans a fiftieth of the steps."""
    window = max(1, len(values) // 50)
    return [statistics.fmean(values[max(0, k + 1 - window) : k + 1]) for k in range(len(values))]


def picture(path: Path, torch_nn: Result, ours: Result, title: str, cell: str) -> None:
    """Loss against steps (both curves on each other), loss against time, and what a step's time consists of."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), width_ratios=(1.2, 1.2, 1), layout="constrained")
    _loss_by_step(axes[0], torch_nn, ours)
    _loss_by_time(axes[1], torch_nn, ours)
    _step_bars(axes[2], torch_nn, ours, cell)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(axis.get_title(), fontsize=10.5)
    figure.suptitle(title, fontsize=9.5, color="#444444")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _loss_by_step(axis, torch_nn: Result, ours: Result) -> None:
    _, worst = loss_difference(torch_nn.side, ours.side)
    for result, width, alpha in ((torch_nn, 6, 0.45), (ours, 1.4, 1)):
        name, curve = result.side.name, smoothed(result.side.loss)
        axis.plot(range(1, len(curve) + 1), curve, color=_COLOURS[name], linewidth=width, alpha=alpha, label=name)
    axis.set_title(f"Loss by step: largest difference {worst:.1g}")
    axis.set_xlabel("training step")
    axis.set_ylabel("training loss, bits per character")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)


def _loss_by_time(axis, torch_nn: Result, ours: Result) -> None:
    highest = max(max(smoothed(result.side.loss)) for result in (torch_nn, ours))
    lowest = min(min(smoothed(result.side.loss)) for result in (torch_nn, ours))
    room = 0.2 * (highest - lowest)  # below the curves, for the annotations
    axis.set_ylim(lowest - room, highest + 0.1 * room)
    for result, height in ((torch_nn, 0.05), (ours, 0.45)):
        name, curve, colour = result.side.name, smoothed(result.side.loss), _COLOURS[result.side.name]
        times = list(itertools.accumulate(result.side.step_s))
        axis.plot(times, curve, color=colour, linewidth=1.6)
        axis.plot(times[-1], curve[-1], "o", color=colour, markersize=5)
        axis.vlines(times[-1], lowest - room, curve[-1], color=colour, linewidth=1, linestyle=":")
        side = "right" if times[-1] > 0.4 * sum(torch_nn.side.step_s) else "left"  # where the label has room
        where = (times[-1], lowest - room * (1 - height))
        axis.text(*where, f" {name}: {times[-1]:.3g} s ", color=colour, ha=side, va="bottom", fontsize=9)
    axis.set_xlim(left=0)
    axis.set_title("Loss by time spent in training steps")
    axis.set_xlabel("seconds")
    axis.grid(alpha=0.25)


def _step_bars(axis, torch_nn: Result, ours: Result, cell: str) -> None:
    """Stacked medians; the last part is what is left of the median step."""
    highest = 1e3 * max(statistics.median(result.side.step_s) for result in (torch_nn, ours))
    beside = False
    for x, result in enumerate((torch_nn, ours)):
        side, colour = result.side, _COLOURS[result.side.name]
        parts = [1e3 * statistics.median(values) for values in (side.forward_s, side.backward_s)]
        step = 1e3 * statistics.median(side.step_s)
        parts.append(max(0.0, step - sum(parts)))
        names = (f"{cell} forward", f"{cell} backward", "everything else")
        bottom, free = 0.0, 0.0  # free: height above which no label stands beside the bar
        for part, name, shade in zip(parts, names, (1.0, 0.7, 0.3)):
            axis.bar(x, part, 0.7, bottom=bottom, color=colour, alpha=shade, linewidth=0)
            middle, label = bottom + part / 2, f"{name}\n{part:.3g} ms"
            if part > 0.1 * highest:
                ink = "white" if shade > 0.5 else "#333333"
                axis.text(x, middle, label, ha="center", va="center", fontsize=8, color=ink)
            else:  # too flat to write in
                free = max(middle, free)
                axis.text(x + 0.37, free, label.replace("\n", ", "), va="center", fontsize=8, color=colour)
                free += 0.05 * highest
                beside = True
            bottom += part
        axis.text(x, bottom, f"{step:.3g} ms", ha="center", va="bottom", fontsize=10, color=colour)
    ratio = ratios(torch_nn, ours)
    axis.set_title(f"Time of a step: whole {ratio['step']:.2f}x, {cell} layers {ratio['recurrent']:.2f}x")
    axis.set_xticks((0, 1), (torch_nn.side.name, ours.side.name))
    axis.set_xlim(-0.5, 1.5 + 0.8 * beside)
    axis.set_ylim(0, 1.1 * highest)
    axis.set_ylabel("milliseconds, median")
