"""The C++ part of training against torch's operations, which stay where it cannot be."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmsflow import native
from dmsflow.training import fast_ops
from dmsflow.training.binary import binarise, quantise, sign
from dmsflow.training.fast_ops import max_pool

Run = Callable[[], Tensor]

SIDES = st.integers(1, 9)
SEEDS = st.integers(0, 2**31)
DTYPES = st.sampled_from((torch.float32, torch.bfloat16))
LAYOUTS = st.sampled_from(("first", "last", "narrow"))
# Channels around the lanes of a sum (32), and filters of more values than a thread is started for.
CHANNELS = st.sampled_from((1, 2, 3, 7, 16, 31, 32, 33, 70))


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def random(seed: int, *shape: int, last: bool = False) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last) if last else values


def with_gradients(run: Run, inputs: list[Tensor], seed: int) -> list[Tensor]:
    out = run()
    probe = random(seed + 1, *out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, probe)]


def in_torch(run: Run, inputs: list[Tensor], seed: int) -> list[Tensor]:
    with mock.patch.object(fast_ops, "library", lambda: None):
        return with_gradients(run, inputs, seed)


def test_it_is_part_of_this_installation_and_finds_torchs_threads() -> None:
    assert fast_ops.library() is not None
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        assert all(hasattr(ctypes.CDLL(None), name) for name in fast_ops.THREADS)


@settings(deadline=None)
@given(st.integers(1, 40), CHANNELS, st.sampled_from((1, 3)), DTYPES, st.booleans(), SEEDS, st.data())
def test_binarising_is_torchs(
    filters: int, channels: int, kernel: int, dtype: torch.dtype, last: bool, seed: int, data: st.DataObject
) -> None:
    active = data.draw(st.none() | st.integers(1, channels))
    weight = random(seed, filters, channels, kernel, kernel, last=last).requires_grad_()
    run = lambda: binarise(weight, active, dtype)  # noqa: E731
    (out, grad), (expected, expected_grad) = (each(run, [weight], seed) for each in (with_gradients, in_torch))
    assert out.dtype == dtype and grad.dtype == torch.float32
    assert torch.equal(out > 0, expected > 0) or channels * kernel == 1  # of one weight both are ±0
    assert torch.allclose(out.float(), expected.float(), rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    counted = (active or channels) * kernel**2
    if counted > 2:  # two standardised weights are ±1 whatever they were: their gradient is what rounding leaves
        assert torch.allclose(grad, expected_grad, rtol=1e-3, atol=1e-3 * float(expected_grad.abs().max()))


@settings(deadline=None)
@given(st.integers(1, 5), CHANNELS, SIDES, SIDES, DTYPES, LAYOUTS, SEEDS)
def test_quantising_is_torchs(
    images: int, channels: int, rows: int, columns: int, dtype: torch.dtype, layout: str, seed: int
) -> None:
    x = random(seed, images, channels + 2, rows, columns, last=layout != "first").to(dtype)
    x = x[:, :channels] if layout == "narrow" else x
    x = x.detach().requires_grad_()
    alpha = torch.tensor(0.37, requires_grad=True)
    results = (each(lambda: quantise(x, alpha), [x, alpha], seed) for each in (with_gradients, in_torch))
    (out, grad_x, grad_alpha), (expected, expected_x, expected_alpha) = results
    assert torch.equal(out, expected) and torch.equal(grad_x, expected_x)
    exact = {torch.float32: 1e-4, torch.bfloat16: 0.02}[dtype] * max(1, x.numel()) ** 0.5
    assert abs(float(grad_alpha - expected_alpha)) < exact


@settings(deadline=None)
@given(st.integers(1, 5), CHANNELS, SIDES, SIDES, DTYPES, LAYOUTS, SEEDS, st.booleans())
def test_signs_are_torchs(
    images: int, channels: int, rows: int, columns: int, dtype: torch.dtype, layout: str, seed: int, broken: bool
) -> None:
    x = random(seed, images, channels + 2, rows, columns, last=layout != "first").to(dtype)
    x = x[:, :channels] if layout == "narrow" else x
    shift = random(seed + 2, channels + 2).mul(0.3)[: x.shape[1]].requires_grad_()
    x[0, 0, 0, 0] = float("nan") if broken else shift[0].detach()
    x.requires_grad_()
    probe = random(seed + 1, *x.shape).to(dtype)
    out = sign(x, shift)
    grad_x, grad_shift = torch.autograd.grad(out, [x, shift], probe)
    exact = shift.detach().to(dtype).float().requires_grad_()  # torch's in float32, where nothing is rounded on the way
    with mock.patch.object(fast_ops, "library", lambda: None):
        assert torch.equal(out, sign(x, shift)) and out.dtype == dtype
        expected = sign(x.float(), exact)
        expected_x, _ = torch.autograd.grad(expected, [x, exact], probe.float())
    assert torch.equal(out.float(), expected) and out[0, 0, 0, 0] == -1
    assert torch.equal(grad_x.isnan(), expected_x.isnan()) and int(grad_x.isnan().sum()) == broken
    assert torch.equal(grad_x.nan_to_num(), expected_x.nan_to_num())
    slope = (2 - 2 * (x - exact.view(-1, 1, 1)).detach().float().abs()).clamp(min=0)
    sums = (-(probe * slope).double()).sum((0, 2, 3))
    assert grad_shift.dtype == torch.float32
    assert torch.allclose(grad_shift.double(), sums, rtol=1e-6, atol=2e-5, equal_nan=True)


def test_the_gradient_of_a_shift_is_rounded_at_its_end_only() -> None:
    """300,000 gradients of one sign, of which a sum in float32 would lose digits and one in bfloat16 nearly all."""
    x = torch.full((3, 1, 1000, 100), 0.5).bfloat16().requires_grad_()
    shift = torch.zeros(1, requires_grad=True)
    (grad,) = torch.autograd.grad(sign(x, shift), shift, torch.full_like(x, 0.1))
    assert float(grad) == pytest.approx(-3e5 * float(torch.tensor(0.1).bfloat16()), rel=1e-6)


@settings(deadline=None)
@given(st.integers(1, 5), CHANNELS, st.integers(2, 9), st.integers(2, 9), DTYPES, st.booleans(), SEEDS, st.booleans())
def test_pooling_is_torchs_to_the_last_bit(
    images: int, channels: int, rows: int, columns: int, dtype: torch.dtype, last: bool, seed: int, broken: bool
) -> None:
    x = random(seed, images, channels, rows, columns, last=last).mul(2).round().to(dtype)  # with many equals
    if broken:
        x[random(seed, *x.shape) > 1] = float("nan")
    x.requires_grad_()
    both = (each(lambda: max_pool(x, 2, 2, 0), [x], seed) for each in (with_gradients, in_torch))
    for mine, torchs in zip(*both, strict=True):
        assert torch.equal(mine.isnan(), torchs.isnan()) and torch.equal(mine.nan_to_num(), torchs.nan_to_num())


def test_other_windows_are_torchs() -> None:
    x = random(0, 2, 3, 9, 9)
    assert torch.equal(max_pool(x, 3, 2, 1), F.max_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    weight = random(0, 96, 70, 3, 3, last=True).requires_grad_()
    x = random(1, 16, 48, 17, 17, last=True).to(dtype).requires_grad_()
    alpha, shift = torch.tensor(0.6, requires_grad=True), random(6, 48).requires_grad_()

    def results() -> list[Tensor]:
        found = with_gradients(lambda: binarise(weight, 65, dtype), [weight], 2)
        found += with_gradients(lambda: quantise(x, alpha), [x, alpha], 3)
        found += with_gradients(lambda: sign(x, shift), [x, shift], 5)
        return found + with_gradients(lambda: max_pool(x, 2, 2, 0), [x], 4)

    several = results()
    torch.set_num_threads(1)
    alone = results()
    torch.set_num_threads(3)
    assert all(torch.equal(a, b) for a, b in zip(several, alone, strict=True))


def test_a_gradient_of_another_type_or_layout_is_taken() -> None:
    x = random(0, 4, 6, 8, 8, last=True).bfloat16().requires_grad_()
    alpha = torch.tensor(0.5, requires_grad=True)
    run = lambda: F.avg_pool2d(max_pool(quantise(x, alpha), 2, 2, 0).float().contiguous(), 4)  # noqa: E731
    for mine, torchs in zip(*(each(run, [x, alpha], 1) for each in (with_gradients, in_torch)), strict=True):
        assert torch.allclose(mine.float(), torchs.float(), rtol=0.02, atol=1e-3)


def test_training_resumes_where_the_library_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / native.TRAINING
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native, "training", lambda: broken)
    fast_ops.library.cache_clear()
    try:
        assert fast_ops.library() is None
        assert quantise(torch.ones(1, 1, 1, 1), torch.tensor(1.0)) == 1
    finally:
        fast_ops.library.cache_clear()


def test_it_gives_the_same_where_torch_has_no_threads_to_lend() -> None:
    """As on macOS: in a process of its own, since the library keeps the threads that it was given."""
    program = """
import torch
from dmsflow.training import fast_ops as cpp
x = torch.randn(1 << 18)
several, alone = torch.empty_like(x), torch.empty_like(x)
torch.set_num_threads(2)
cpp.call_library("dmsflow_quantise", x.numel(), False, x, 0.5, several)
cpp.library().dmsflow_use_threads(None, None, None)
cpp.call_library("dmsflow_quantise", x.numel(), False, x, 0.5, alone)
assert torch.equal(several, alone) and torch.equal(alone, (x > 0.25) * 0.5)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
