"""Convolutions with a weight gradient of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsflow.training import fast_ops
from dmsflow.training.fast_ops import convolve


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(3, 6), st.integers(3, 6)),
    filters=st.tuples(st.integers(1, 5), st.sampled_from((1, 3))),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_gradients_are_those_of_torch(
    shape: tuple[int, ...], filters: tuple[int, int], stride: int, padding: int, last: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    # Whole numbers this small are exact in bfloat16, and so are all their sums.
    x = torch.randint(-2, 3, shape, generator=draw).bfloat16()
    c_out, kernel = filters
    weight = torch.randint(-1, 2, (c_out, shape[1], kernel, kernel), generator=draw).bfloat16()
    if last:
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
    x.requires_grad_(), weight.requires_grad_()
    expected = F.conv2d(x, weight, stride=stride, padding=padding)
    probe = torch.randint(-1, 2, expected.shape, generator=draw).bfloat16()
    result = fast_ops._Convolve.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
    assert torch.equal(result, expected)
    reference = torch.autograd.grad(expected, (x, weight), probe)
    for gradient, each in zip(torch.autograd.grad(result, (x, weight), probe), reference, strict=True):
        assert torch.equal(gradient, each)


@pytest.mark.parametrize(
    ("side", "dtype", "quick"), [(4, torch.bfloat16, True), (5, torch.bfloat16, False), (4, torch.float32, False)]
)
def test_only_small_outputs_in_bfloat16_have_it(side: int, dtype: torch.dtype, quick: bool) -> None:
    x, weight = torch.zeros(2, 3, side, side, dtype=dtype), torch.zeros(4, 3, 3, 3, dtype=dtype, requires_grad=True)
    function = convolve(x, weight, stride=1, padding=1).grad_fn
    assert function is not None and ("_Convolve" in function.name()) == quick


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("c_in", "c_out"), [(5, 7), (3, 8), (8, 8)])
def test_a_strided_1x1_convolution_leaves_memory_alone(c_in: int, c_out: int, layout: torch.memory_format) -> None:
    """torch's own gradient of its weights ended the process on processors with AVX2 alone."""
    kept = []
    for index in range(100):
        x = torch.randn(6, c_in, 32, 31).to(memory_format=layout).requires_grad_()
        weight = torch.randn(c_out, c_in, 1, 1, requires_grad=True)
        found = convolve(x, weight, 2, 0)
        expected = torch.einsum("nihw,oi->nohw", x[:, :, ::2, ::2].double(), weight[:, :, 0, 0].double())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
        g = torch.randn_like(found)
        gradients = torch.autograd.grad(found, (x, weight), g)
        for got, wanted in zip(gradients, torch.autograd.grad(expected, (x, weight), g.double()), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-2)
        kept = [*kept[-40:], torch.randn(1 + index % 50)]  # small blocks beside it, which an overflow damages
