"""Layer normalisation of W x in a CUDA layer, and its gradient, by torch; that of R h and of c is the kernels'.

W x of all steps is there before the first step, so its norm needs no serial part. Backward computes W x again instead
of keeping it: it is as large as the gates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from . import _cuda_products as products
from ._cuda_products import Direction
from ._cuda_projection import Rows
from ._noise import Noise

_EPS = 1e-5  # as csrc/cells/cell.h


def normalised_input(x: Tensor, ways: Sequence[Direction]) -> Tensor:
    """LN(W_ih x) of all directions, with the first two dimensions of x."""
    raw = _projected(x, ways)
    found = [layer_norm(own, way.b_ih.shape, _gain(way), way.b_ih, _EPS) for way, own in zip(ways, raw)]
    return (found[0] if len(found) == 1 else torch.cat(found, 1)).unflatten(0, x.shape[:2])


def project_again(
    reserve: Tensor,
    x: Tensor,
    h0: Tensor | None,
    y: Tensor,
    rows: Rows,
    ways: Sequence[Direction],
    noise: Noise | None,
    dgx: Tensor,
    dgr: Tensor,
    h_prev: Tensor,
) -> Tensor:
    """As _cuda_products.project_again(): LN(W_ih x) into dgx; normalised without gain and shift, R h into dgr and c of
    every step, with which the reserve begins, into h_prev; returns the 1/deviations of both, [T, B, D, S]."""
    products.project_again(x, h0, y, rows, [way._replace(b_ih=None, b_hh=None) for way in ways], noise, dgx, dgr)
    D, T, B, slots, H = reserve.shape
    deviations = dgx.new_empty(T, B, D, 2 if slots else 1)
    c = reserve.view(-1)[: D * T * B * H].view(D, T, B, H) if slots else None
    for d, (way, of_x, of_h) in enumerate(zip(ways, dgx.chunk(D, dim=-1), dgr.chunk(D, dim=-1))):
        of_x.copy_(layer_norm(of_x, way.b_ih.shape, _gain(way), way.b_ih, _EPS))
        _normalise(of_h, of_h, deviations[:, :, d, :1])
        if c is not None:
            _normalise(c[d], h_prev.chunk(D, dim=-1)[d], deviations[:, :, d, 1:])
    return deviations


def _normalise(v: Tensor, into: Tensor, deviation: Tensor) -> None:
    n, _, rstd = torch.native_layer_norm(v, v.shape[-1:], None, None, _EPS)
    into.copy_(n)
    deviation.copy_(rstd)


def gradients(
    x: Tensor,
    ways: Sequence[Direction],
    lengths: Tensor | None,
    dgx: Tensor,
    dgr: Tensor,
    h_prev: Tensor,
    dvectors: Tensor,
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """The gradient of W_ih x [T, B, D*G*H], and of each direction's w_ih, w_hh, b_ih and b_hh.

    x: [T, B, I]. dgx: that of LN(W_ih x). dvectors: [B, D*V*H], of the shift of R h and of what comes after it in b_hh,
        but for the gains of W x.
    """
    x, D = products.without_padding(x, lengths), len(ways)
    found, vectors = [], []
    for d, (way, raw) in enumerate(zip(ways, _projected(x, ways))):
        gain, shift, shape = _gain(way), way.b_ih, way.b_ih.shape
        _, mean, rstd = torch.native_layer_norm(raw, shape, gain, shift, _EPS)
        own = dgx.flatten(0, 1).chunk(D, dim=1)[d].contiguous()
        d_raw, dgain, dshift = torch.ops.aten.native_layer_norm_backward(
            own, raw, shape, mean, rstd, gain, shift, [True, True, True]
        )
        found.append(d_raw)
        of_h = dvectors.chunk(D, dim=1)[d].sum(0).to(gain)
        vectors.append((dshift, torch.cat((of_h, dgain))))
    dgx = (found[0] if D == 1 else torch.cat(found, 1)).view_as(dgx)
    bare = [way._replace(b_ih=None, b_hh=None) for way in ways]
    sums = products.weight_gradients(x, bare, None, dgx, dgr, h_prev, None, None)
    return dgx, [(*own[:2], *biases) for own, biases in zip(sums, vectors)]


def _projected(x: Tensor, ways: Sequence[Direction]) -> list[Tensor]:
    """W_ih x of each direction [T*B, G*H]."""
    return [torch.mm(x.flatten(0, 1), way.w_ih.t()) for way in ways]


def _gain(way: Direction) -> Tensor:
    """The gains of W x: the end of b_hh."""
    return way.b_hh[-len(way.b_ih) :]
