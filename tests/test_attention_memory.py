"""No tensor of size Tq*Tk*D on the way through attention, forward or backward, whichever normaliser follows the scores;
and large results are in memory that nobody else holds."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from fastrnn import functional, nn  # noqa: E402

B, TQ, TK, D = 2, 30, 40, 16
PAIRS = B * TQ * TK


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation has made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for t in tree_leaves(made):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return made


def largest(call, *inputs) -> int:
    with Largest() as mode:
        sum(t.sum() for t in call(*inputs)).backward()
    return mode.elements


def data():
    return [torch.randn(B, T, D, requires_grad=True) for T in (TQ, TK)]


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "entmax15", "sigmoid", "hardmax"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_memory_is_linear_in_the_pairs(activation, normalizer):
    module = nn.AdditiveAttention(D, D, D, activation=activation, normalizer=normalizer, temperature=0.7)
    mask = torch.rand(B, TQ, TK) < 0.8
    assert largest(lambda q, m: module(q, m, lengths=[TK, 7], mask=mask), *data()) <= PAIRS


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.AdditiveAttention(D, D, D, dropout=0.3),
        lambda: nn.AdditiveAttention(D, D, D, num_heads=2, activation="relu", normalizer="sparsemax"),
        lambda: nn.LuongAttention(D, D, score="concat", normalizer="entmax15"),
        lambda: nn.LocalAttention(D, D, score="additive", window=3, predictive=True),
        lambda: nn.MonotonicAttention(D, D, D, mode="parallel"),
    ],
    ids=["dropout", "heads", "concat", "local", "monotonic"],
)
def test_memory_of_other_modules_is_linear_in_the_pairs(make):
    module = make()
    heads = getattr(module, "num_heads", 1)  # each has weights of its own
    assert largest(module, *data()) <= heads * PAIRS


def test_the_formula_written_out_is_noticed():
    v = torch.randn(D)

    def eager(query, memory):
        weights = ((query.unsqueeze(2) + memory.unsqueeze(1)).tanh() @ v).softmax(-1)
        return weights @ memory, weights

    assert largest(eager, *data()) == PAIRS * D


def test_memory_of_large_results_comes_back_when_nobody_holds_them():
    query = torch.randn(2, 300, 600)  # 1.4 MB, as the gradients
    with torch.no_grad():
        first, _ = functional.dot_attention(query, query, query)
        held, before = first[0], first.clone()
        place = first.data_ptr()
        del first
        second, _ = functional.dot_attention(query, query, -query)  # a view holds the first
        assert second.data_ptr() != place and torch.equal(held, before[0])
        del held
        third, _ = functional.dot_attention(query, query, query)
    assert third.data_ptr() == place and torch.equal(third, before) and torch.equal(second, -before)
