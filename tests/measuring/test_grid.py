"""Tables and steps fitted to times that are made up; whole profiles are in test_profiling.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.isotonic import isotonic_regression

from dmsflow.measuring import grid
from dmsflow.network.profile import Granularity, round_up
from dmsflow.settings import ProfileSettings

NUMBERS = st.floats(-10, 10, allow_subnormal=False)
WEIGHTS = st.floats(0.1, 10)


@st.composite
def weighted(draw: st.DrawFn, most: int) -> Any:
    shape = draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    return draw(arrays(np.float64, shape, elements=NUMBERS)), draw(arrays(np.float64, shape, elements=WEIGHTS))


@given(weighted(6), st.data())
def test_tables_are_evened_out_so_that_none_falls(drawn: Any, data: st.DataObject) -> None:
    ms, weights = drawn
    table = grid.fit_rising_table(ms, weights)
    assert (table >= 0).all() and (np.diff(table, axis=0) >= 0).all() and (np.diff(table, axis=1) >= 0).all()
    other = np.sort(np.sort(abs(data.draw(arrays(np.float64, ms.shape, elements=NUMBERS))), 0), 1)
    np.testing.assert_allclose(grid.fit_rising_table(other, weights), other, atol=1e-9)
    if (ms >= 0).all():  # then nothing that rises is nearer
        nearest, further = ((weights * np.square(rising - ms)).sum() for rising in (table, other))
        assert nearest <= further + 1e-2


@given(weighted(9))
def test_a_line_is_evened_out_as_isotonic_regression_does(drawn: Any) -> None:
    (line, *_), (weights, *_) = drawn
    (found,) = grid.fit_rising_table(line[None], weights[None])
    expected = np.maximum(isotonic_regression(line, sample_weight=weights), 0)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("step", [1, *grid.STEPS])
def test_the_step_of_kernels_is_told_from_times(step: int) -> None:
    first, last = grid.STEP_WIDTHS
    widths = [first, *(first + each - 2 for each in grid.STEPS), last]
    assert grid.find_step([1 + 0.01 * round_up(width, step) for width in widths]) == step


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 8), (64, 4), (1, 1)])
def test_a_plane_reaches_as_far_as_is_asked_in_the_middle_of_steps(inputs: int, outputs: int) -> None:
    settings = ProfileSettings(networks=("vgg11",), max_ratio=2.0, points=4)
    steps = {"binary_conv": Granularity(inputs=inputs, outputs=outputs)}
    asked = grid.find_missing(settings, None)
    for (block, bases), plane in zip(asked, grid.lay_out(asked, settings, steps, None), strict=True):
        if block.op != "binary_conv":
            continue
        for widths, base, step in ((plane.inputs, bases[0], inputs), (plane.outputs, bases[1], outputs)):
            assert widths and list(widths) == sorted(set(widths))
            assert all(width % 2 for width in widths)
            assert round_up(widths[-1], step) >= 2 * base
            if step > 2:
                assert all(abs(width % step - step / 2) <= 1 for width in widths)


@pytest.mark.parametrize("channels", [1, 57, 58, 516])
def test_steps_are_looked_for_in_stems_of_any_image_that_may_have_8_bits(channels: int) -> None:
    for (kind, _), line in grid.isolate_steps(channels).items():
        for terms in line:
            bits = {layer.bits for benchmark in terms for layer in benchmark.network.layers}
            assert (8 in bits) == (kind == "int8_conv")
