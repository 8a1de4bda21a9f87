"""Shows measured points: a table on the terminal, JSON for machines, a picture for people."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

from .runner import Point
from .timing import DISTURBED

SCHEMA = 1
_CAPTION = (
    "1.5x: that peer took 1.5 times as long (median of paired rounds); best: the fastest peer; IQR of our own time"
)


def geometric_mean(values) -> float:
    """Geometric mean of positive numbers."""
    values = list(values)
    return math.exp(sum(math.log(v) for v in values) / len(values))


def table(points: list[Point], machine: dict):
    """A rich table, one row per point; columns for peers that took part somewhere."""
    from rich.table import Table

    names = list(dict.fromkeys(name for p in points for name in p.ratio))
    title = f"{machine['cpu']}, {machine['cpus']} CPUs, isa {machine['isa']}, float32, I = H"
    out = Table(title=title, caption=_CAPTION, pad_edge=False)
    ceiling = any(p.fraction is not None for p in points)
    out.add_column("cell")
    out.add_column("mode")
    headings = ["H", "B", "T", "thr", "us/step", "IQR", *names, "best", "GFLOP/s", *["of ceiling"][:ceiling]]
    for heading in headings:
        out.add_column(heading, justify="right")
    for p in points:
        own, c = p.us_per_step["fastrnn"], p.case
        mode = c.mode if c.variant == "dense" else f"{c.mode} {c.variant}"
        row = [c.cell, mode, *map(str, (c.hidden, c.batch, c.steps, c.threads)), _short(own.median)]
        row.append(f"{(own.q3 - own.q1) / own.median:.0%}")
        row += [_ratio(p.ratio[name].median) if name in p.ratio else "-" for name in names]
        row.append(_ratio(p.ratio[p.best_peer].median) if p.best_peer else "-")
        row.append(_short(p.gflops))
        if ceiling:
            row.append("-" if p.fraction is None else f"{p.fraction:.0%}")
        out.add_row(*row)
    return out


def disturbed(others: list[float | None]) -> str | None:
    """A warning when other processes took a noticeable share of the CPU time during some measurements."""
    busy = [share for share in others if share is not None and share > DISTURBED]
    if not busy:
        return None
    share = f"other processes took up to {max(busy):.0%} of the CPU time"
    return f"{len(busy)} of {len(others)} points were disturbed ({share}); measure again on a quiet machine"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ratio(value: float) -> str:
    return f"[{'green' if value >= 1 else 'red'}]{_short(value)}x[/]"


def results_folder(script: str, machine: str, out: Path | None = None) -> Path:
    """Where a script keeps its results: `out`, or results/<machine> beside the script; made if it is not there."""
    name = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    folder = out or Path(script).resolve().parent / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_json(path: str | Path, points: list[Point], machine: dict, ceilings: dict, settings: dict) -> None:
    """Write everything measured; ceilings is threads -> Ceiling or None."""
    data = {
        "schema": SCHEMA,
        "machine": machine,
        "settings": settings,
        "ceilings": [asdict(c) for c in ceilings.values() if c is not None],
        "points": [p.to_json() for p in points],
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(_finite(data), indent=1) + "\n")


def _finite(value):
    """JSON has no infinity: the size of main memory becomes null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plot(path: str | Path, points: list[Point], machine: dict) -> None:
    """Ratio to the best peer over H, a line per batch size; columns are cells, rows are modes and thread counts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [p for p in points if p.best_peer]
    cells = list(dict.fromkeys(p.case.cell for p in drawn)) or ["no peer"]
    rows = list(dict.fromkeys(map(_row, drawn))) or [("", "dense", 1)]
    size = (4.2 * len(cells), 3.0 * len(rows) + 0.6)
    figure, axes = pyplot.subplots(
        len(rows), len(cells), figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    batches = sorted({p.case.batch for p in drawn})
    sizes = sorted({p.case.hidden for p in drawn})
    for i, (mode, variant, threads) in enumerate(rows):
        for j, cell in enumerate(cells):
            axis = axes[i][j]
            group = [p for p in drawn if (cell, *rows[i]) == (p.case.cell, *_row(p))]
            _panel(axis, group, batches, sizes)
            kind = mode if variant == "dense" else f"{mode} {variant}"
            axis.set_title(f"{cell} {kind}, {threads} thread{'s' if threads > 1 else ''}", fontsize=10)
            if j == 0:
                _scale(axis, [p for p in drawn if _row(p) == rows[i]])
                axis.set_ylabel("best peer time / fastrnn time")
            if i == len(rows) - 1:
                axis.set_xlabel("hidden size H (= input size)")
    figure.suptitle(f"fastrnn against the best peer, {machine['cpu']}, {machine['date'][:10]}", fontsize=11)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _row(point: Point) -> tuple[str, str, int]:
    return point.case.mode, point.case.variant, point.case.threads


def _scale(axis, group: list[Point]) -> None:
    """A row shares its vertical axis: from zero, or logarithmic where the ratios span more than a factor of four."""
    from matplotlib import ticker

    ratios = [p.ratio[p.best_peer].median for p in group] or [1.0]
    if max(ratios) > 4 * min(ratios):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set_ylim(0, 1.1 * max(1.0, *ratios))


def _panel(axis, group: list[Point], batches: list[int], sizes: list[int]) -> None:
    """One panel; colours follow the batch size in every panel, whiskers are quartiles."""
    for k, b in enumerate(batches):
        line = sorted((p for p in group if p.case.batch == b), key=lambda p: p.case.hidden)
        if not line:
            continue
        best = [p.ratio[p.best_peer] for p in line]
        spread = [[s.median - s.q1 for s in best], [s.q3 - s.median for s in best]]
        label = {"label": f"B={b}", "color": f"C{k}", "marker": "o", "markersize": 4, "capsize": 2}
        axis.errorbar([p.case.hidden for p in line], [s.median for s in best], yerr=spread, **label)
    axis.axhline(1.0, color="black", linewidth=1, linestyle="--")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(s) for s in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3, which="both")
    if group:
        axis.legend(fontsize=8)
