"""Confidence intervals hold the truth about as often as they say, and are the same at every call."""

from __future__ import annotations

import numpy as np
import pytest

from operators.evaluation.bootstrap import mean_interval, paired_interval


def test_interval_holds_the_true_mean_in_about_95_of_100_samples():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = mean_interval(rng.normal(5.0, 3.0, 60), resamples=500)
        held += found.low <= 5.0 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_same_values_give_the_same_interval():
    values = np.random.default_rng(2).normal(size=40)
    assert mean_interval(values) == mean_interval(list(values))


def test_shares_near_one_have_an_interval_inside_0_to_1():
    found = mean_interval([1.0] * 98 + [0.0] * 2)
    assert 0.9 < found.low < 0.98 < found.high <= 1.0


def test_one_value_says_nothing_of_spread():
    found = mean_interval([3.0])
    assert (found.mean, found.low, found.high, found.count) == (3.0, None, None, 1)
    assert found.text() == "3.00"


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_paired_interval_is_narrower_than_either_alone():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 5, 80)  # items differ by far more than systems
    a, b = hard + 1 + rng.normal(0, 0.2, 80), hard + rng.normal(0, 0.2, 80)
    paired = paired_interval(a, b)
    assert paired.low > 0.9 and paired.high < 1.1
    assert mean_interval(a).half_width > 5 * paired.half_width
    with pytest.raises(ValueError, match="same items"):
        paired_interval(a, b[:-1])
