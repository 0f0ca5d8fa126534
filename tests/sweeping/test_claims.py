"""Tasks are given once, to whichever thread asks first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from dmsflow.sweeping.claims import Alone, find_claims


def test_each_number_is_given_once_a_phase() -> None:
    claims = Alone()
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda _: claims.take("make"), range(200)))
    assert sorted(taken) == list(range(200))
    assert claims.take("bench") == 0 and claims.is_first


def test_without_torchrun_a_process_is_alone() -> None:
    assert isinstance(find_claims(), Alone)
