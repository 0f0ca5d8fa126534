"""Isotonic regression: the closest line or table that never falls.

[1, 3, 2, 4]  ->  [1, 2.5, 2.5, 4]       what falls is replaced by its mean, weighted; SciPy does it for a line
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PROJECTIONS = 50  # on the tables whose rows rise, and as many on those whose columns do


def fit_rising_table(ms: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest table, in weighted squares, that falls along no row and no column, and nowhere below zero.

    Rows and columns are fitted by turns (Dykstra's projections). To raise whatever falls would be simpler,
    and biased: of noisy times the largest would stay. Weights are above zero.
    """
    from scipy.optimize import isotonic_regression

    table, corrections = ms, [np.zeros_like(ms), np.zeros_like(ms)]
    for index in range(2 * PROJECTIONS):
        axis = index % 2
        offered = table + corrections[axis]
        lines = zip(np.moveaxis(offered, axis, -1), np.moveaxis(weights, axis, -1), strict=True)
        table = np.moveaxis(np.array([isotonic_regression(line, weights=weight).x for line, weight in lines]), -1, axis)
        corrections[axis] = offered - table
    # What is left to the last projections is less than a rounding.
    return np.maximum.accumulate(np.maximum.accumulate(np.maximum(table, 0), 0), 1)
