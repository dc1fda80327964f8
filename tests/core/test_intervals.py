"""Means and intervals of several runs."""

import json

import numpy as np
import pytest

from paradigms.core.intervals import interquartile_mean, summarise


def test_summary_of_known_numbers():
    summary = summarise({"accuracy": [1, 2, 3], "loss": [0.5], "bad": [1.0, float("nan")], "": []})
    # t(0.975, 2) = 4.30265, s = 1: from a printed table of Student's distribution.
    low, high = summary["accuracy"].pop("interval")
    assert summary["accuracy"] == {"mean": 2.0, "values": [1.0, 2.0, 3.0]}
    assert low == pytest.approx(2 - 4.30265 / 3**0.5, abs=1e-5)
    assert high == pytest.approx(2 + 4.30265 / 3**0.5, abs=1e-5)
    assert summary["loss"] == {"mean": 0.5, "interval": None, "values": [0.5]}
    assert summary["bad"] == {"mean": None, "interval": None, "values": [1.0, None]}
    assert summary[""] == {"mean": None, "interval": None, "values": []}
    json.dumps(summary, allow_nan=False)


def test_the_interval_covers_the_mean_in_95_of_100_cases():
    draws = np.random.default_rng(0).normal(3, 2, size=(4000, 4))
    summary = summarise({str(i): draw for i, draw in enumerate(draws)})
    covered = [low <= 3 <= high for low, high in (entry["interval"] for entry in summary.values())]
    # Four standard errors of a share of 0.95 over 4000 draws.
    assert abs(np.mean(covered) - 0.95) < 4 * (0.95 * 0.05 / 4000) ** 0.5


def test_the_interquartile_mean_by_hand():
    assert interquartile_mean(range(1, 9))[0] == 4.5  # of 3, 4, 5, 6
    assert interquartile_mean([-1e9, 1, 2, 3, 1e9])[0] == 2
    assert interquartile_mean([7.0] * 10) == (7.0, [7.0, 7.0])
    summary = summarise({"few": [1, 2, 3], "more": [1, 2, 3, 9]})
    assert "iqm" not in summary["few"]
    assert summary["more"]["iqm"] == 2.5 and summary["more"]["mean"] == 3.75


def test_the_interval_of_the_interquartile_mean_covers_it():
    """Of ten draws from a normal distribution it should in about 95 of 100 cases, by theory; the
    percentile bootstrap of so few is known to be somewhat narrow."""
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        low, high = interquartile_mean(draw.normal(5, 2, 10), resamples=300)[1]
        covered += low <= 5 <= high
    assert 0.84 < covered / 300 < 0.98
