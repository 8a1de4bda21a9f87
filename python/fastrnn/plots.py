"""Pictures of attention: alignments of two sequences, heads side by side, weights over an image, and HTML.

Weights are NumPy arrays or torch tensors; matplotlib is imported by the functions that draw. Tokens are shown as they
are: no markup is read from them, a blank is drawn as an open box, and a character that no installed font has as its
code point.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ._checks import ShapeError, check_shape
from ._numpy_stack import as_array

__all__ = ["attention_to_html", "overlay_image_attention", "plot_attention", "plot_attention_heads"]

_CELL, _LABELS = 0.32, 60  # inches of a cell; tokens on an axis, above which some are left out


def plot_attention(
    weights: Any,
    source_tokens: Sequence[str] | None = None,
    target_tokens: Sequence[str] | None = None,
    *,
    ax: Any = None,
    title: str = "",
    annotate: bool = False,
    cmap: str = "Blues",
    path: Any = None,
) -> Any:
    """Draws an alignment: a row for each target token, a column for each source token.

    Args:
        weights: [Tq, Tk].
        source_tokens: of the columns; fewer than Tk leave the rest (padding) out. None numbers them.
        target_tokens: of the rows, likewise.
        ax: matplotlib axes to draw into; None makes a figure.
        title: above the picture.
        annotate: whether to write each weight of at least 0.005 into its cell.
        cmap: a matplotlib colour map; zero is its first colour, one its last.
        path: where to save the picture; None does not save.

    Returns:
        The matplotlib figure.

    Raises:
        ShapeError: weights is not a matrix, or has fewer rows or columns than there are tokens.

    Example:
        >>> figure = plot_attention([[0.9, 0.1], [0.2, 0.8]], ["ein", "Haus"], ["a", "house"])
    """
    w, source, target = _cropped("plot_attention", _array("plot_attention", weights, 2), source_tokens, target_tokens)
    figure = _figure(w.shape, source, target) if ax is None else ax.figure
    axes = figure.subplots() if ax is None else ax
    image = _draw(axes, w, source, target, cmap)
    if annotate:
        for (i, j), value in np.ndenumerate(w):
            if value >= 0.005:
                ink = "white" if value > 0.6 else "#333333"
                text = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color=ink)
    if title:
        _text(axes.set_title(_drawable(title), fontsize=11, pad=8), title)
    if ax is None:
        bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3 / figure.get_figheight()), aspect=14, pad=0.02)
        bar.outline.set_visible(False)
    return _saved(figure, path)


def plot_attention_heads(
    weights: Any,
    source_tokens: Sequence[str] | None = None,
    target_tokens: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    columns: int | None = None,
    cmap: str = "Blues",
    path: Any = None,
) -> Any:
    """Draws several alignments of the same two sequences in a grid.

    Args:
        weights: [heads, Tq, Tk]; heads, layers, or rows of anything.
        source_tokens, target_tokens, cmap, path: as in plot_attention.
        names: title of each; None for "head 0", "head 1", ...
        columns: of the grid; None for one that is about as wide as high.

    Returns:
        The matplotlib figure.

    Example:
        >>> figure = plot_attention_heads([[[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]]], names=["first", "second"])
    """
    function = "plot_attention_heads"
    w = _array(function, weights, 3)
    heads = len(w)
    if not heads:
        raise ShapeError(f"{function}: weights has shape {w.shape}, expected at least one head")
    names = [f"head {k}" for k in range(heads)] if names is None else list(names)
    check_shape(function, "names", (len(names),), "(heads,)", (heads,))
    drawn = [_cropped(function, head, source_tokens, target_tokens) for head in w]
    (rows, keys), source, target = drawn[0][0].shape, *drawn[0][1:]
    columns = columns or min(heads, max(1, round(math.sqrt(heads * max(rows, 1) / max(keys, 1)))))
    lines = math.ceil(heads / columns)
    figure = _figure((rows, keys), source, target, columns, lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    for k, ax in enumerate(axes.flat):
        if k >= heads:
            ax.set_axis_off()
            continue
        _draw(ax, drawn[k][0], source if k < columns else None, target if k % columns == 0 else None, cmap)
        _text(ax.set_title(_drawable(names[k]), fontsize=10), names[k])
        ax.tick_params(labeltop=k < columns, labelleft=k % columns == 0)
    return _saved(figure, path)


def overlay_image_attention(
    image: Any,
    weights: Any,
    *,
    words: Sequence[str] | None = None,
    columns: int | None = None,
    smooth: bool = True,
    strength: float = 0.6,
    path: Any = None,
) -> Any:
    """Lights up the parts of an image that got attention, for one word or several (as in Xu et al. 2015, arXiv
    1502.03044).

    Args:
        image: [height, width] or [height, width, 3 or 4]; bytes, or floats between 0 and 1.
        weights: [rows, columns] of the grid over the image, or [words, rows, columns].
        words: title of each map; None for no titles.
        columns: of the grid of pictures; None for up to five.
        smooth: True interpolates between the cells of the grid, False shows them.
        strength: between 0 (nothing to see) and 1 (black where there is no weight).
        path: where to save the picture; None does not save.

    Returns:
        The matplotlib figure.

    Example:
        >>> figure = overlay_image_attention(np.ones((20, 30, 3)), np.eye(4), words=["diagonal"])
    """
    from matplotlib.figure import Figure

    function = "overlay_image_attention"
    picture, maps = _picture(function, image), np.asarray(as_array_of(function, "weights", weights), np.float64)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or not maps.size:
        raise ShapeError(
            f"{function}: weights has shape {maps.shape}, expected (rows, columns) or (words, rows, columns)"
        )
    if words is not None:
        check_shape(function, "words", (len(words),), "(words,)", (len(maps),))
    columns = columns or min(len(maps), 5)
    lines = math.ceil(len(maps) / columns)
    height, width = picture.shape[:2]
    title = 0.35 if words is not None else 0
    figure = Figure(figsize=(2.6 * columns, (2.6 * height / width + title) * lines), layout="constrained")
    for k, ax in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        ax.set_axis_off()
        if k >= len(maps):
            continue
        shade = _stretched(maps[k], height, width, smooth)
        shade = shade / (shade.max() or 1)
        factor = (1 - strength + strength * shade)[..., None]
        ax.imshow(np.clip(picture * factor, 0, 1), interpolation="antialiased")
        if words is not None:
            _text(ax.set_title(_drawable(words[k]), fontsize=11), words[k])
    return _saved(figure, path)


def attention_to_html(
    weights: Any,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    *,
    colour: tuple[int, int, int] = (31, 95, 168),
) -> str:
    """A table: each target token, and beside it the source with every token shaded by its weight (shown when pointed
    at).

    Args:
        weights: [Tq, Tk].
        source_tokens, target_tokens: as in plot_attention; escaped.
        colour: red, green and blue of a weight of one.

    Returns:
        An HTML fragment that needs no style sheet and no script.

    Example:
        >>> attention_to_html([[1.0, 0.0]], ["<a>", "b"], ["x"]).count("&lt;a&gt;")
        1
    """
    function = "attention_to_html"
    w, source, target = _cropped(function, _array(function, weights, 2), source_tokens, target_tokens)
    red, green, blue = colour
    lines = []
    for row, name in zip(w, target):
        spans = []
        for value, token in zip(row, source):
            share = min(max(float(value), 0.0), 1.0)
            ink = "#fff" if share > 0.55 else "inherit"
            style = (
                f"background:rgba({red},{green},{blue},{share:.3f});color:{ink};padding:0.1em 0.15em;white-space:pre"
            )
            spans.append(f'<span style="{style}" title="{value:.3f}">{html.escape(token)}</span>')
        head = f'<th style="text-align:right;padding-right:1em;white-space:pre">{html.escape(name)}</th>'
        lines.append(f"<tr>{head}<td>{''.join(spans)}</td></tr>")
    return '<table style="border-collapse:collapse;font-family:monospace">\n' + "\n".join(lines) + "\n</table>"


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def as_array_of(function: str, name: str, value: Any) -> np.ndarray:
    """An array of a list, an array or a tensor."""
    return np.asarray(value) if isinstance(value, (list, tuple)) else as_array(function, name, value)


def _array(function: str, weights: Any, rank: int) -> np.ndarray:
    w = np.asarray(as_array_of(function, "weights", weights), np.float64)
    if w.ndim != rank or 0 in w.shape[-2:]:
        symbols = "(heads, Tq, Tk)" if rank == 3 else "(Tq, Tk)"
        raise ShapeError(f"{function}: weights has shape {w.shape}, expected {symbols} with none of them 0")
    return w


def _cropped(
    function: str, w: np.ndarray, source: Sequence[str] | None, target: Sequence[str] | None
) -> tuple[np.ndarray, list[str], list[str]]:
    """Weights of the tokens alone, and the tokens as text."""
    names = []
    for name, tokens, size in (("target_tokens", target, w.shape[0]), ("source_tokens", source, w.shape[1])):
        tokens = range(size) if tokens is None else tokens
        if not 0 < len(tokens) <= size:
            raise ShapeError(f"{function}: {name} has {len(tokens)} entries, expected 1 to {size}, the weights' size")
        names.append([str(t) for t in tokens])
    target, source = names
    return w[: len(target), : len(source)], source, target


def _picture(function: str, image: Any) -> np.ndarray:
    """[height, width, 1 or 3] floats between 0 and 1."""
    array = as_array_of(function, "image", image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        shape = "(height, width) or (height, width, 3 or 4)"
        raise ShapeError(f"{function}: image has shape {np.shape(image)}, expected {shape}")
    scale = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
    array = np.asarray(array, np.float64)[..., :3] / scale
    return np.repeat(array, 3, 2) if array.shape[2] == 1 else array


def _stretched(grid: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    """The grid over the whole image: each cell flat, or linear between the middles of the cells."""
    for axis, size in ((0, height), (1, width)):
        cells = grid.shape[axis]
        place = (np.arange(size) + 0.5) * cells / size - 0.5
        if smooth:
            low = np.clip(np.floor(place).astype(int), 0, cells - 1)
            high = np.minimum(low + 1, cells - 1)
            share = np.clip(place - low, 0, 1).reshape((-1, 1) if axis == 0 else (1, -1))
            grid = grid.take(low, axis) * (1 - share) + grid.take(high, axis) * share
        else:
            grid = grid.take(np.clip(np.rint(place).astype(int), 0, cells - 1), axis)
    return grid


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def _figure(shape: tuple[int, int], source: list[str], target: list[str], columns: int = 1, lines: int = 1) -> Any:
    """A figure in which a cell is about _CELL wide and high, with room for the labels."""
    from matplotlib.figure import Figure

    cell = min(_CELL, 12 / (columns * shape[1]), 12 / (lines * shape[0]))
    beside, above = (0.09 * max(len(_drawable(t)) for t in tokens) for tokens in (target, source))
    beside, above = beside + (1.0 if columns == 1 else 0.4), above + 0.6
    width = max(2.6, columns * (cell * shape[1] + 0.2) + beside)
    height = max(1.8, lines * (cell * shape[0] + 0.4) + above)
    return Figure(figsize=(width, height), layout="constrained")


def _draw(ax: Any, w: np.ndarray, source: list[str] | None, target: list[str] | None, cmap: str) -> Any:
    image = ax.imshow(w, cmap=cmap, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
    ax.xaxis.tick_top()
    for axis, tokens in ((ax.xaxis, source), (ax.yaxis, target)):
        if tokens is None:
            continue
        step = math.ceil(len(tokens) / _LABELS)
        upright = axis is ax.yaxis or max(len(_drawable(t)) for t in tokens) <= 2
        places, shown = range(0, len(tokens), step), tokens[::step]
        axis.set_ticks(places, [_drawable(t) for t in shown], fontsize=9, rotation=0 if upright else 90)
        for label, token in zip(axis.get_ticklabels(), shown):
            _text(label, token)
    if max(w.shape) <= _LABELS:
        ax.set_xticks(np.arange(0.5, w.shape[1] - 1), minor=True)
        ax.set_yticks(np.arange(0.5, w.shape[0] - 1), minor=True)
        ax.grid(which="minor", color="#e4e4e4", linewidth=0.6)
    ax.tick_params(which="both", length=0)
    for spine in ax.spines.values():
        spine.set_color("#bbbbbb")
    return image


def _text(text: Any, content: str) -> None:
    """Fonts that have the characters, and no mathematics between dollar signs."""
    text.set_parse_math(False)
    others = sorted({font for c in content if (font := _font_of(c))})
    if others:
        text.set_fontfamily([*_default_families(), *others])


def _default_families() -> list[str]:
    from matplotlib import rcParams

    family = rcParams["font.family"]
    return list(family) if isinstance(family, (list, tuple)) else [family]


@lru_cache(maxsize=4096)
def _drawable(text: str) -> str:
    """The text with something to see for a lone blank, control characters and characters that no font has."""
    blanks = [unicodedata.category(c) == "Zs" for c in text]
    if text and all(blanks):
        return len(text) * "\u2423"
    shown = []
    for c, blank in zip(text, blanks):
        if blank:
            shown.append(" ")
        elif not c.isprintable():
            shown.append("" if c in "\u200e\u200f" else c.encode("unicode_escape").decode())
        else:
            shown.append(c if _font_of(c) is not None else f"<{ord(c):X}>")
    return "".join(shown)


@lru_cache(maxsize=4096)
def _font_of(c: str) -> str | None:
    """The family of a font with this character: empty for the default one, None if there is none."""
    from matplotlib import font_manager

    if font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_char_index(ord(c)):
        return ""
    for entry in font_manager.fontManager.ttflist:
        try:
            found = font_manager.get_font(entry.fname).get_char_index(ord(c))
        except (OSError, RuntimeError):  # a font that was removed, or that FreeType cannot read
            continue
        if found and "Last Resort" not in entry.name:  # matplotlib brings one that draws the name of the script
            return entry.name
    return None


def _saved(figure: Any, path: Any) -> Any:
    if path is not None:
        figure.savefig(path, dpi=140)
    return figure
