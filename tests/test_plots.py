"""Pictures of attention: what is drawn, in which order, with which labels."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fastrnn import ShapeError, plots  # noqa: E402

SOURCE, TARGET = ["the", "<b>", "$x_1$", " "], ["das", "a&b"]
WEIGHTS = np.array([[0.7, 0.1, 0.2, 0.0], [0.0, 0.001, 0.004, 0.995]])


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_alignment_has_targets_down_and_sources_across(tmp_path):
    path = tmp_path / "picture.png"
    figure = plots.plot_attention(WEIGHTS, SOURCE, TARGET, title="a $ b", annotate=True, path=path)
    axes = figure.axes[0]
    assert labels(axes.xaxis) == ["the", "<b>", "$x_1$", "\u2423"]
    assert labels(axes.yaxis) == TARGET
    np.testing.assert_array_equal(axes.images[0].get_array(), WEIGHTS)
    assert axes.images[0].get_clim() == (0, 1)
    assert [t.get_text() for t in axes.texts] == [".70", ".10", ".20", "1"]
    assert axes.get_title() == "a $ b"
    assert path.read_bytes().startswith(b"\x89PNG") and len(path.read_bytes()) > 2000


def test_padding_is_left_out_and_numbers_are_the_default():
    torch = pytest.importorskip("torch")
    weights = torch.tensor(WEIGHTS, requires_grad=True)
    axes = plots.plot_attention(weights, SOURCE[:3], TARGET[:1]).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), WEIGHTS[:1, :3])
    axes = plots.plot_attention(weights.bfloat16()).axes[0]
    assert labels(axes.xaxis) == ["0", "1", "2", "3"]


def test_into_axes_that_exist():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 2)
    assert plots.plot_attention(WEIGHTS, SOURCE, TARGET, ax=axes[1]) is figure
    assert len(figure.axes) == 2 and not axes[0].images and len(axes[1].images) == 1


def test_characters_without_a_font(tmp_path):
    """Warnings are errors here, and matplotlib warns about a glyph that is missing."""
    tokens = ["\u0441\u043b\u043e\u0432\u043e", "\u5e74", "\U000f0000", "\n", "a b", "\u202f"]
    figure = plots.plot_attention(np.eye(6), tokens, tokens, title="\u5e74 x", path=tmp_path / "p.png")
    shown = labels(figure.axes[0].xaxis)
    assert shown[0] == tokens[0] and shown[1] in ("\u5e74", "<5E74>")
    assert shown[2:] == ["\\U000f0000", "\\n", "a b", "\u2423"]


def test_long_sequences_have_fewer_labels(tmp_path):
    axes = plots.plot_attention(np.zeros((3, 500)), path=tmp_path / "p.png").axes[0]
    assert labels(axes.xaxis)[:3] == ["0", "9", "18"]


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_heads(heads, tmp_path):
    weights = np.random.default_rng(0).random((heads, 2, 4))
    figure = plots.plot_attention_heads(weights, SOURCE, TARGET, path=tmp_path / "p.png")
    drawn = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in drawn] == [f"head {k}" for k in range(heads)]
    for k, ax in enumerate(drawn):
        np.testing.assert_array_equal(ax.images[0].get_array(), weights[k])
    figure = plots.plot_attention_heads(weights, names=["n"] * heads, columns=1)
    assert [ax.get_title() for ax in figure.axes] == ["n"] * heads


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 1), (40, 60, 3), (40, 60, 4)], ids=str)
def test_image(shape, smooth, tmp_path):
    image = np.full(shape, 255, np.uint8)
    weights = np.zeros((2, 4, 6))
    weights[0, 1, 2] = weights[1, 3, 5] = 0.25
    figure = plots.overlay_image_attention(
        image, weights, words=["a", "b"], smooth=smooth, strength=1.0, path=tmp_path / "p.png"
    )
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    for ax, (y, x) in zip(figure.axes, ((15, 25), (35, 55))):
        shown = np.asarray(ax.images[0].get_array())
        assert shown.shape == (40, 60, 3)
        assert shown[y, x].min() > 0.85 and shown[2, 2].max() == 0
        outside = 1 - (shown[..., 0] > 0).mean()
        assert 0.8 < outside < 0.95 if smooth else np.isclose(outside, 1 - 1 / 24)


def test_image_keeps_its_colours():
    image = np.random.default_rng(0).random((8, 8, 3))
    shown = plots.overlay_image_attention(image, np.ones((2, 2))).axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(shown), image)


def test_html():
    text = plots.attention_to_html(WEIGHTS, SOURCE, TARGET)
    assert "a&amp;b" in text and "&lt;b&gt;" in text and "<b>" not in text
    assert text.count("<tr>") == 2 and text.count("<span") == 8
    assert re.findall(r'title="([^"]+)"', text)[:4] == ["0.700", "0.100", "0.200", "0.000"]
    assert "rgba(31,95,168,0.700)" in text
    assert plots.attention_to_html(WEIGHTS, SOURCE[:1], TARGET[:1]).count("<span") == 1


BAD = [
    (lambda: plots.plot_attention(WEIGHTS[0]), r"plot_attention: weights has shape \(4,\), expected \(Tq, Tk\)"),
    (lambda: plots.plot_attention(WEIGHTS, [*SOURCE, "x"]), "source_tokens has 5 entries, expected 1 to 4"),
    (lambda: plots.plot_attention(WEIGHTS, SOURCE, []), "plot_attention: target_tokens has 0 entries"),
    (lambda: plots.plot_attention_heads(WEIGHTS), r"weights has shape \(2, 4\), expected \(heads, Tq, Tk\)"),
    (
        lambda: plots.plot_attention_heads(WEIGHTS[None], names=[]),
        r"names has shape \(0,\), expected \(heads,\) = \(1,\)",
    ),
    (lambda: plots.overlay_image_attention(np.ones(3), WEIGHTS), r"image has shape \(3,\), expected \(height, width\)"),
    (lambda: plots.overlay_image_attention(np.ones((3, 3)), np.ones(9)), r"weights has shape \(9,\), expected \(rows"),
    (lambda: plots.overlay_image_attention(np.ones((3, 3)), WEIGHTS, words=[]), r"words has shape \(0,\), expected"),
    (lambda: plots.attention_to_html(WEIGHTS, SOURCE, ["a"] * 3), "attention_to_html: target_tokens has 3 entries"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[b[1][:40] for b in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(ShapeError, match=message):
        call()
