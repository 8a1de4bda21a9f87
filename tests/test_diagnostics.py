"""Gradient flow against autograd on the reference, the initialisers against their papers."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from fastrnn import diagnostics, nn, reference  # noqa: E402
from fastrnn.nn import init  # noqa: E402

MODULES = [nn.RNN(3, 6), nn.GRU(3, 6, 2, bidirectional=True), nn.LSTM(3, 6, 2, batch_first=True, proj_size=4),
           torch.nn.LSTM(3, 6)]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_gradient_flow_counts_every_path(module):
    """Moving h_t by a little changes the loss by the gradient: finite differences through a reset state."""
    torch.manual_seed(0)
    x = torch.randn(5, 2, 3)
    flow = diagnostics.gradient_flow(module, x.transpose(0, 1) if module.batch_first else x)
    D = 2 if module.bidirectional else 1
    assert flow.norms.shape == (len(flow.names), 5) == (module.num_layers * D, 5)
    assert flow.norms.isfinite().all()
    # The last layer's own output is the loss: exactly 1 / size there at the end of each direction.
    width = module.proj_size or module.hidden_size
    end = math.sqrt(width) / (2 * width * D)
    assert flow.norms[-D, 4].item() == pytest.approx(end, rel=1e-5)
    if D == 2:
        assert flow.norms[-1, 0].item() == pytest.approx(end, rel=1e-5)


def test_gradient_flow_of_an_rnn_is_the_product_of_its_jacobians():
    torch.manual_seed(0)
    module, x = nn.RNN(3, 6).double(), torch.randn(5, 1, 3, dtype=torch.float64)
    y, _ = module(x)
    g, norms = torch.full((6,), 1 / 6, dtype=torch.float64), []
    for t in reversed(range(5)):
        norms.append(g.norm())
        g = (g * (1 - y[t, 0] ** 2)) @ module.weight_hh_l0
    flow = diagnostics.gradient_flow(module, x)
    torch.testing.assert_close(flow.norms[0], torch.stack(norms[::-1]))
    want, _ = reference.layer("rnn_tanh", x, module._flat_weights)
    assert flow.loss == pytest.approx(want[-1].mean().item())


def test_clipping_bounds_every_norm():
    torch.manual_seed(0)
    module = init.identity_(nn.RNN(3, 6, nonlinearity="relu"), 3.0)
    x = torch.randn(12, 2, 3)
    free, clipped = (diagnostics.gradient_flow(module, x, lambda y: y.sum(), clip) for clip in (None, 2.0))
    assert free.norms.max() > 100
    assert clipped.norms.max() <= 2.0001


def test_gradient_flow_names_bad_input():
    for call, kind, text in [
        (
            lambda: diagnostics.gradient_flow(torch.nn.Linear(3, 3), torch.ones(2, 1, 3)),
            TypeError,
            "module is a Linear",
        ),
        (lambda: diagnostics.gradient_flow(None, torch.ones(2, 1, 3)), TypeError, "module is a NoneType"),
        (lambda: diagnostics.gradient_flow(nn.GRU(3, 4), torch.ones(2, 1, 3), clip=0), ValueError, "clip is 0"),
        (lambda: diagnostics.gradient_flow(nn.GRU(3, 4), torch.ones(3)), ValueError, "x has shape"),
        (lambda: diagnostics.gradient_flow(nn.GRU(3, 4), torch.ones(2, 1, 3), lambda y: y), TypeError, "loss"),
    ]:
        with pytest.raises(kind, match=f"gradient_flow: .*{text}"):
            call()


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    x = torch.randn(30, 2, 3)
    flows = {kind: diagnostics.gradient_flow(getattr(nn, kind)(3, 6), x) for kind in ("RNN", "GRU", "LSTM")}
    figure = diagnostics.plot_gradient_flow(flows, tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 5000
    assert [line.get_label() for line in figure.axes[0].lines] == ["RNN", "GRU", "LSTM"]


def test_initialisers():
    model = torch.nn.ModuleList([nn.LSTM(3, 6, 2, bidirectional=True), torch.nn.GRU(3, 6), nn.RNNCell(3, 6)])
    init.orthogonal_(model, 2.0)
    for module in model:
        for name, w in module.named_parameters():
            if name.startswith("weight_hh"):
                for gate in w.chunk(w.shape[0] // 6):
                    torch.testing.assert_close(gate @ gate.t(), 4 * torch.eye(6))
    init.forget_bias_(model, 1.5)
    lstm, gru, cell = model
    for end in ("_l0", "_l1_reverse"):
        total = (getattr(lstm, "bias_ih" + end) + getattr(lstm, "bias_hh" + end)).chunk(4)
        assert torch.equal(total[1], torch.full((6,), 1.5))
        assert not torch.equal(total[0], torch.full((6,), 1.5))
    init.chrono_(lstm, 50)
    i, f, *_ = (lstm.bias_ih_l1 + lstm.bias_hh_l1).chunk(4)
    assert torch.equal(i, -f)
    assert 0 <= f.min()
    assert f.max() <= math.log(49)
    init.identity_(model, 0.5)
    assert torch.equal(cell.weight_hh, 0.5 * torch.eye(6))
    assert not cell.bias_ih.any()
    for call in (init.identity_, init.forget_bias_):
        with pytest.raises(TypeError, match=rf"{call.__name__}: GRU has no layer"):
            call(gru)
    for steps in ("9", float("nan"), True):
        with pytest.raises(ValueError, match="chrono_: max_steps is .*, expected at least 3"):
            init.chrono_(nn.LSTM(3, 4), steps)
    with pytest.raises(TypeError, match="orthogonal_: module is a NoneType, expected a torch.nn.Module"):
        init.orthogonal_(None)
    with pytest.raises(TypeError, match="gradient_flow: loss is a int, expected a function of y"):
        diagnostics.gradient_flow(nn.LSTM(3, 4), torch.ones(2, 1, 3), loss=3)
    with pytest.raises(TypeError, match="plot_gradient_flow: flows is a NoneType, expected a GradientFlow"):
        diagnostics.plot_gradient_flow(None)
    with pytest.raises(ValueError, match="chrono_: max_steps is 2, expected at least 3"):
        init.chrono_(lstm, 2)
    with pytest.raises(TypeError, match="orthogonal_: Linear has no layer"):
        init.orthogonal_(torch.nn.Linear(2, 2))
