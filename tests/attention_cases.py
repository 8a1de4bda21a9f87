"""Inputs and expectations that the tests of attention share, on CPUs and CUDA."""

from __future__ import annotations

import torch

from fastrnn import reference
from fastrnn.functional import additive_attention, dot_attention


def additive_relu(*args, **options):
    return additive_attention(*args, activation="relu", **options)


FUNCTIONS = {"additive": additive_attention, "additive_relu": additive_relu, "dot": dot_attention}


def make(score, shape, dtype, size=1.0, seed=0):
    """query, key, value and, where the score has one, v; dot products are kept near one by small queries."""
    B, Tq, Tk, D, Dv = shape
    g = torch.Generator().manual_seed(seed)
    sizes = ((B, Tq, D), (B, Tk, D), (B, Tk, Dv), (D,))[: 3 if score == "dot" else 4]
    factors = (size / max(D, 1) ** 0.5, 1, 1) if score == "dot" else (size, size, 1, 1)
    tensors = [torch.randn(n, generator=g, dtype=torch.float64) * f for n, f in zip(sizes, factors)]
    return [t.to(dtype).requires_grad_() for t in tensors]


def options_of(name, shape, dtype, seed=0):
    """The options that `name` lists, as keywords of the functions."""
    B, Tq, Tk, _, _ = shape
    g = torch.Generator().manual_seed(seed)
    made = {
        "lengths": lambda: torch.randint(0, Tk + 1, (B,), generator=g),
        "mask": lambda: torch.rand(B, Tq, Tk, generator=g) < 0.6,
        "causal": lambda: torch.ones(Tq, Tk, dtype=torch.bool).tril(),
        "scale": lambda: 0.37,
        "bias": lambda: torch.randn(B, Tq, Tk, generator=g, dtype=torch.float64).to(dtype).requires_grad_(),
        "row": lambda: torch.randn(Tk, generator=g, dtype=torch.float64).to(dtype).requires_grad_(),
    }
    keywords = {"causal": "mask", "row": "bias"}
    return {keywords.get(word, word): made[word]() for word in name.split()}


def results(function, tensors, bias=None, kind=None):
    """Outputs and all gradients, of the weights' too; `kind` is the dtype that gradients from above are rounded to."""
    context, weights = function(*tensors)
    g = torch.Generator().manual_seed(1)
    ups = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(kind or t.dtype).to(t) for t in (context, weights)]
    inputs = dict(zip(("dquery", "dkey", "dvalue", "dv"), tensors)) | ({} if bias is None else {"dbias": bias})
    found = torch.autograd.grad([context, weights], list(inputs.values()), ups)
    return {"context": context, "weights": weights} | dict(zip(inputs, found))


def expected(score, tensors, options):
    """The same by the oracle in float64."""
    exact = [t.detach().double().requires_grad_() for t in tensors]
    wide = {name: o.detach().double().requires_grad_() if name == "bias" else o for name, o in options.items()}
    return results(lambda *t: reference.attention(score, *t, **wide), exact, wide.get("bias"), tensors[0].dtype)


def both(score, tensors, options):
    """What the kernels give and what the oracle gives in float64."""
    got = results(lambda *t: FUNCTIONS[score](*t, **options), tensors, options.get("bias"))
    return got, expected(score, tensors, options)


SMALL = (2, 3, 4, 5, 6)


def check_operator_and_compile(score, tensors, options):
    """The operator keeps torch's rules, and the function compiles to what it is."""
    rows = (options["lengths"], options["mask"], options["bias"])
    v = None if score == "dot" else tensors[3]
    operator = torch.ops.fastrnn.attention.default
    torch.library.opcheck(operator, (score, *tensors[:3], v, *rows, 0.5))
    torch.library.opcheck(operator, (score, *tensors[:2], None, v, None, None, None, 1.0))
    compiled = torch.compile(FUNCTIONS[score], fullgraph=True, backend="aot_eager")
    found = []
    for function in (FUNCTIONS[score], compiled):
        context, weights = function(*tensors, scale=0.5, **options)
        found.append([context, weights, *torch.autograd.grad(context.sum() + weights[:, :, 0].sum(), tensors)])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)
