"""convert() and to_torch(): the same numbers and Parameter objects, and a refusal where there is no counterpart."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import fastrnn  # noqa: E402
from fastrnn import nn  # noqa: E402

KINDS = ["LSTM", "GRU", "RNN"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]


class Model(torch.nn.Module):
    def __init__(self, package=torch.nn):
        super().__init__()
        self.encoder = package.LSTM(3, 4, 2, bidirectional=True, batch_first=True)
        self.decoders = torch.nn.ModuleList(
            [package.GRU(8, 5), torch.nn.Sequential(package.RNN(5, 6, nonlinearity="relu"))]
        )
        self.tied = self.encoder
        self.cells = torch.nn.ModuleDict(
            {"a": package.LSTMCell(6, 2), "b": package.GRUCell(2, 2), "c": package.RNNCell(2, 2)}
        )

    def forward(self, x):
        x, _ = self.encoder(x)
        x, _ = self.decoders[0](x)
        x, _ = self.decoders[1](x)
        h, _ = self.cells["a"](x[0])
        return self.cells["c"](self.cells["b"](h))


def kinds(model):
    return {type(m) for m in model.modules() if type(m).__name__ in KINDS + CELLS}


OURS = {getattr(nn, name) for name in KINDS + CELLS}
THEIRS = {getattr(torch.nn, name) for name in KINDS + CELLS}


def test_a_whole_model_there_and_back():
    model = Model()
    x = torch.randn(2, 5, 3)
    want, keys, parameters = model(x), list(model.state_dict()), list(model.parameters())
    assert fastrnn.convert(model) is model
    assert kinds(model) == OURS and model.tied is model.encoder
    torch.testing.assert_close(model(x), want)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert fastrnn.convert(model) is model and kinds(model) == OURS  # nothing left to do
    assert fastrnn.to_torch(model) is model and kinds(model) == THEIRS
    assert torch.equal(model(x), want)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_a_copy_shares_the_parameters():
    model = Model()
    x = torch.randn(2, 5, 3)
    new = fastrnn.convert(model, inplace=False)
    assert kinds(model) == THEIRS and kinds(new) == OURS
    assert all(a is b for a, b in zip(model.parameters(), new.parameters(), strict=True))
    with torch.no_grad():
        model.encoder.weight_hh_l0.mul_(0.5)
    torch.testing.assert_close(new(x), model(x))
    back = fastrnn.to_torch(new, inplace=False)
    assert kinds(new) == OURS and kinds(back) == THEIRS
    assert torch.equal(back(x), model(x))


@pytest.mark.parametrize("name", KINDS + CELLS)
def test_the_root_itself(name):
    module = getattr(torch.nn, name)(3, 4).eval()
    new = fastrnn.convert(module)
    assert type(new) is getattr(nn, name) and not new.training and type(module) is getattr(torch.nn, name)
    x = torch.randn(5, 3)
    for a, b in zip(new(x), module(x)):
        torch.testing.assert_close(a, b)
    assert repr(fastrnn.to_torch(new)) == repr(module)


def test_an_optimizer_and_hooks_go_on_working():
    model = torch.nn.Sequential(torch.nn.LSTM(3, 4))
    calls = []
    model[0].register_forward_hook(lambda m, args, out: calls.append(type(m)))
    model[0].register_forward_pre_hook(lambda m, args: calls.append("before"))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    fastrnn.convert(model)
    x, before = torch.randn(5, 2, 3), copy.deepcopy(model.state_dict())
    model(x)[0].sum().backward()
    optimizer.step()
    assert calls == ["before", nn.LSTM]
    assert not any(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    fastrnn.to_torch(model)(x)
    assert calls[2:] == ["before", torch.nn.LSTM]


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
def test_weight_norm_by_hook_goes_on_working():
    module = torch.nn.utils.weight_norm(torch.nn.GRU(3, 4), "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    new = fastrnn.convert(module)
    new.weight_hh_l0_g.data.mul_(2)
    torch.testing.assert_close(new(x), module(x))


def test_a_converted_module_is_its_own():
    module = torch.nn.GRU(3, 4)
    new = fastrnn.convert(module)
    new.register_buffer("note", torch.zeros(1))
    new.register_forward_hook(lambda *args: None)
    assert "note" not in dict(module.named_buffers()) and not module._forward_hooks
    assert fastrnn.to_torch(fastrnn.convert(module)).weight_hh_l0 is module.weight_hh_l0


class Changed(torch.nn.LSTM):
    def forward(self, x):
        return super().forward(x * 2)


def test_what_cannot_be_converted_is_named_before_anything_changes():
    model = torch.nn.Sequential(torch.nn.GRU(3, 4), Changed(4, 5))
    with pytest.raises(TypeError, match=r"convert: 1 is a \S*Changed, expected a type of torch.nn itself"):
        fastrnn.convert(model)
    assert type(model[0]) is torch.nn.GRU
    fastrnn.convert(model, strict=False)
    assert type(model[0]) is nn.GRU and type(model[1]) is Changed
    with pytest.raises(TypeError, match="convert: model is a dict, expected a torch.nn.Module"):
        fastrnn.convert({})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused():
    scripted = torch.jit.script(torch.nn.Sequential(torch.nn.GRU(3, 4)))
    with pytest.raises(TypeError, match="convert: 0 is a scripted GRU"):
        fastrnn.convert(scripted)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.GRU(3, 4, reset_after=False), "GRU with reset_after=False"),
        (nn.GRUCell(3, 4, reset_after=False), "GRUCell with reset_after=False"),
        (nn.LSTM(3, 4, coupled=True), "LSTM with coupled=True"),
        (nn.LSTM(3, 4, peepholes=True), "LSTM with peepholes=True"),
        (nn.LSTMCell(3, 4, coupled=True), "LSTMCell with coupled=True"),
        (nn.RNN(3, 4, nonlinearity="sigmoid"), "RNN with nonlinearity='sigmoid'"),
        (nn.RNNCell(3, 4, nonlinearity="sigmoid"), "RNNCell with nonlinearity='sigmoid'"),
    ],
)
def test_what_torch_does_not_have_cannot_go_back(module, text):
    model = torch.nn.ModuleDict({"first": nn.LSTM(3, 4), "second": module})
    with pytest.raises(TypeError, match=f"to_torch: second is a {text}, which torch.nn does not have"):
        fastrnn.to_torch(model)
    assert type(model["first"]) is nn.LSTM


def test_a_half_built_quantised_or_unrelated_module_is_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv1d(1, 1, 1))
    before = list(model.modules())
    assert list(fastrnn.convert(model).modules()) == before


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning")  # of torch.nn.RNNBase
@pytest.mark.parametrize("name", KINDS)
def test_export_through_torch(name):
    module = fastrnn.to_torch(getattr(nn, name)(3, 4, 2, bidirectional=True))
    program = torch.export.export(module, (torch.randn(5, 2, 3),))
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(program.module()(x), module(x))
