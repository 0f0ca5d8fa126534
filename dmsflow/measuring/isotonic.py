"""Isotonic regression: the closest line or table that never falls.

[1, 3, 2, 4]  ->  [1, 2.5, 2.5, 4]       what falls is replaced by its mean, weighted
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
    table, corrections = ms, [np.zeros_like(ms), np.zeros_like(ms)]
    for index in range(2 * PROJECTIONS):
        axis = index % 2
        offered = table + corrections[axis]
        lines = zip(np.moveaxis(offered, axis, -1), np.moveaxis(weights, axis, -1), strict=True)
        table = np.moveaxis(np.array([fit_rising_line(*line) for line in lines]), -1, axis)
        corrections[axis] = offered - table
    # What is left to the last projections is less than a rounding.
    return np.maximum.accumulate(np.maximum.accumulate(np.maximum(table, 0), 0), 1)


def fit_rising_line(line: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Isotonic regression by its formula: of the means from j to k around i, the largest over j of the least over k."""
    sums, weight = (np.concatenate([[0.0], values.cumsum()]) for values in (line * weights, weights))
    first, last = np.indices((len(line), len(line)))
    inside = first <= last
    means = np.full(inside.shape, np.inf)
    begin, end = first[inside], last[inside] + 1
    means[inside] = (sums[end] - sums[begin]) / (weight[end] - weight[begin])
    least = np.minimum.accumulate(means[:, ::-1], 1)[:, ::-1]  # over k from i on
    fitted: NDArray[np.float64] = np.maximum.accumulate(np.where(inside, least, -np.inf), 0).diagonal()
    return fitted
