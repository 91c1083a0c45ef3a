"""Backward operators written with operators every ONNX runtime has.

Each rule is the transpose of its forward map, so no runtime needs a training package. Groups,
strides, padding and dilation are honoured.
"""

# ruff: noqa: FBT001  the signatures are ATen's

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def rules() -> dict[Any, Callable[..., Any]]:
    """Decompositions for make_fx: PyTorch's own core set and the ones below."""
    table = dict(torch._decomp.core_aten_decompositions())
    table[aten.convolution_backward.default] = _convolution
    table[aten.max_pool2d_with_indices_backward.default] = _max_pool
    table[aten.avg_pool2d_backward.default] = _avg_pool
    table[aten.empty_like.default] = lambda x, **_: torch.zeros_like(x)  # which is filled next, as for SiLU
    return table


def _convolution(
    g: Tensor, x: Tensor, w: Tensor, _bias: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, _output: Any, groups: int, wanted: Sequence[bool],
) -> Any:  # fmt: skip
    axes, there = [*range(2, g.dim())], (stride, padding, dilation)
    if transposed:  # of which the plain one is the backward
        to_x = aten.convolution(g, w, None, *there, False, [0] * len(axes), groups) if wanted[0] else None
        to_w = _to_weight(x, g, w, *there, groups) if wanted[1] else None
    else:
        to_x = _to_input(g, x, w, *there, groups) if wanted[0] else None
        to_w = _to_weight(g, x, w, *there, groups) if wanted[1] else None
    return to_x, to_w, g.sum([0, *axes]) if wanted[2] else None


def _to_input(
    g: Tensor,
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    sizes = zip(x.shape[2:], g.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    rest = [
        n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in sizes
    ]  # rows no window reached
    return aten.convolution(g, w, None, stride, padding, dilation, True, rest, groups)  # type: ignore[no-any-return]


def _to_weight(
    g: Tensor,
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Correlate inputs with gradients: rows become channels, and stride and dilation change places."""
    n, c = x.shape[0], x.shape[1] // groups
    axes = [3 + i for i in range(x.dim() - 2)]
    xs = x.reshape(n, groups, c, *x.shape[2:]).permute(2, 1, 0, *axes).reshape(c, groups * n, *x.shape[2:])
    whole = aten.convolution(
        xs, g.transpose(0, 1), None, dilation, padding, stride, False, [0] * len(stride), groups
    )  # fmt: skip
    for axis, k in enumerate(w.shape[2:], start=2):
        whole = whole.narrow(axis, 0, k)
    return whole.transpose(0, 1)  # type: ignore[no-any-return]


def _max_pool(
    g: Tensor,
    x: Tensor,
    _kernel: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    _ceil: Any,
    places: Tensor,
) -> Tensor:
    """Every gradient goes back to the place its maximum came from."""
    flat = (x - x).flatten(2)  # zeros; as a constant they would be stored in the graph
    return flat.scatter_add(2, places.flatten(2), g.flatten(2)).reshape(x.shape)


def _avg_pool(
    g: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None,
) -> Any:  # fmt: skip
    padded = any(padding) and not count_include_pad
    if ceil_mode or padded:
        return NotImplemented
    size, stride = list(kernel), list(stride or kernel)
    channels = x.shape[1]
    w = torch.full((channels, 1, *size), 1 / (divisor or size[0] * size[1]), dtype=x.dtype)
    return _to_input(g, x, w, stride, padding, [1, 1], channels)
