"""Figures of merit and paired comparisons: closed forms, twins in scipy, and intervals that cover what they say."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fedsim import merit, paired
from fedsim.merit import Curve
from fedsim.record import Measurement

NAN = math.nan


def curve(*points: tuple[int, float]) -> Curve:
    return Curve(np.array([t for t, _ in points]), np.array([float(value) for _, value in points]))


RISING = curve((0, 0.1), (10, 0.5), (20, 0.7), (40, 0.6), (50, 0.65))


# --- figures of merit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("test_accuracy", True), ("worst_class_accuracy", True), ("worst_decile_accuracy", True),
        ("mean_model_test_accuracy", True), ("test_accuracy_lowest", True), ("client_accuracy_gini", False),
        ("test_loss", False), ("train_objective", False), ("consensus_distance", False), ("suboptimality", False),
        ("variance/0.weight", False), ("distance_to_optimum", False), ("bytes_up", False),
    ],
)  # fmt: skip
def test_which_way_is_better(metric: str, higher: bool) -> None:
    assert merit.higher_is_better(metric) == higher


def test_what_nobody_knows_the_better_way_of_is_refused() -> None:
    with pytest.raises(ValueError, match=r'of metric "present" nobody knows .* accuracy, gini'):
        merit.higher_is_better("present")


def test_curves_by_run_in_order_of_appearance() -> None:
    lines = [("b", 2, 10, "x", 1.0), ("b", 2, 0, "x", 3.0), ("a", 1, 0, "x", 5.0), ("c", 1, 0, "y", 0.0)]
    found = merit.curves([Measurement(*line) for line in lines], "x")
    assert list(found) == [("b", 2), ("a", 1)]
    assert found["b", 2].rounds.tolist() == [0, 10]
    assert found["b", 2].values.tolist() == [3.0, 1.0]
    with pytest.raises(ValueError, match="b, seed 2 has two values of x for round 10"):
        merit.curves([Measurement(*line) for line in [*lines, lines[0]]], "x")


def test_the_late_mean_is_what_a_run_reports() -> None:
    """Rounds past four fifths, not those at it."""
    assert merit.late_mean(RISING, 50) == pytest.approx(0.65)
    assert merit.late_mean(RISING, 49) == pytest.approx((0.6 + 0.65) / 2)
    assert merit.late_mean(RISING, 50, share=0.5) == pytest.approx((0.6 + 0.65) / 2)
    assert math.isnan(merit.late_mean(RISING, 100))  # it ended before
    assert math.isnan(merit.late_mean(curve((0, 1), (9, NAN), (10, 2)), 10))


def test_the_first_evaluation_at_the_target() -> None:
    assert merit.first_reached(RISING, 0.5, higher=True) == 10
    assert merit.first_reached(RISING, 0.51, higher=True) == 20
    assert merit.first_reached(RISING, 0.71, higher=True) is None
    assert merit.first_reached(RISING, 0.1, higher=True) == 0
    falling = curve((0, 2.0), (5, NAN), (10, 1.0), (20, 0.5))
    assert merit.first_reached(falling, 1.0, higher=False) == 10
    assert merit.first_reached(falling, 0.4, higher=False) is None


def test_what_the_target_cost() -> None:
    spent = curve((10, 1e6), (20, 2e6), (40, 4e6), (50, 5e6))
    assert merit.along(RISING, spent, 0.7, higher=True) == 2e6
    assert merit.along(RISING, spent, 0.1, higher=True) == 0.0  # the first model is free
    assert merit.along(RISING, curve((0, 0.25), (10, 1.0)), 0.1, higher=True) == 0.25
    assert merit.along(RISING, spent, 0.9, higher=True) is None
    with pytest.raises(ValueError, match="by round 20 is not known"):
        merit.along(RISING, curve((10, 1.0)), 0.7, higher=True)


def test_the_area_is_a_mean_height() -> None:
    assert merit.area(curve((0, 0), (10, 1))) == pytest.approx(0.5)
    assert merit.area(curve((0, 0), (10, 1), (30, 1))) == pytest.approx((5 + 20) / 30)  # gaps of their own width
    assert merit.area(curve((7, 0.3))) == pytest.approx(0.3)
    assert merit.area(curve((0, 2), (3, 2), (4, 2))) == pytest.approx(2)
    assert math.isnan(merit.area(curve((0, 1), (10, NAN))))
    assert math.isnan(merit.area(curve((0, math.inf), (10, -math.inf))))


def test_the_drop_is_from_the_best_to_the_last_fifth() -> None:
    assert merit.drop(RISING, higher=True) == pytest.approx(0.7 - 0.65)
    assert merit.drop(RISING, higher=False) == pytest.approx(0.65 - 0.1)
    assert merit.drop(curve((0, 1), (10, 2), (20, 3)), higher=True) == 0
    assert merit.drop(curve((0, 1)), higher=True) == 0
    assert math.isnan(merit.drop(curve((0, 1), (10, NAN)), higher=True))


def test_the_middle_of_curves_is_where_all_were_evaluated() -> None:
    found = merit.middle([RISING, curve((0, 0.3), (20, 0.9), (50, 0.75))])
    assert found.rounds.tolist() == [0, 20, 50]
    assert found.values == pytest.approx([0.2, 0.8, 0.7])
    with pytest.raises(ValueError, match="no curve"):
        merit.middle([])


# --- a pair -----------------------------------------------------------------------------------------------------------


def pairs(m: int, shared: float = 3.0, key: int = 0, gap: float = 0.5) -> tuple[dict[int, float], dict[int, float]]:
    """Values by seed of two strategies that have luck in common."""
    draw = np.random.default_rng([m, key])
    luck = shared * draw.standard_normal(m)
    a, b = gap + luck + draw.standard_normal(m), luck + draw.standard_normal(m)
    return dict(enumerate(a.tolist())), dict(enumerate(b.tolist()))


@pytest.mark.parametrize("m", [2, 3, 5, 30])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_t_interval_is_scipys(m: int, level: float) -> None:
    a, b = pairs(m)
    found = paired.difference("A", "B", "x", a, b, level)
    theirs = stats.ttest_rel(list(a.values()), list(b.values()))
    bounds = theirs.confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.mean == pytest.approx(np.mean(list(a.values())) - np.mean(list(b.values())))
    assert found.clear == (found.low > 0 or found.high < 0) == (theirs.pvalue < 1 - level)
    assert found.seeds == tuple(range(m))
    if m > 2:
        assert found.correlation == pytest.approx(stats.pearsonr(list(a.values()), list(b.values())).statistic)


def test_the_bootstrap_interval_is_scipys() -> None:
    """To the resamples' own luck, and the same for the same differences."""
    a, b = pairs(12)
    found = paired.difference("A", "B", "x", a, b)
    gap = np.array(list(a.values())) - np.array(list(b.values()))
    theirs = stats.bootstrap((gap,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    width = found.boot_high - found.boot_low
    assert found.boot_low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert found.boot_high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    paired._resamples.cache_clear()
    assert paired.difference("C", "D", "y", a, b)[4:9] == found[4:9]


def test_intervals_cover_what_they_say() -> None:
    """Of 4,000 experiments with normal differences: Student's t in 95 % whatever the number of seeds, the bootstrap
    only with many, as its docstring says."""
    draws, said = 4000, {5: 0.84, 10: 0.90, 40: 0.94}
    for m, share in said.items():
        gap = 1.0 + np.random.default_rng(m).standard_normal((draws, m))
        _, low, high = paired.interval(gap)
        assert np.mean((low <= 1) & (high >= 1)) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors
        covered = []
        for part in np.split(gap, 8):
            low, high = paired.bootstrap(part)
            covered.append((low <= 1) & (high >= 1))
        assert np.mean(covered) == pytest.approx(share, abs=0.015)


def test_worth_is_how_many_independent_seeds_have_as_narrow_an_interval() -> None:
    """With many seeds: the spread of the mean difference over experiments, with a world in common and without."""
    m, draw = 400, np.random.default_rng(5)
    luck, own = 2.0, 1.0
    a, b = pairs(m, shared=luck)
    worth = paired.difference("A", "B", "x", a, b).worth
    assert worth == pytest.approx(m * (luck**2 + own**2) / own**2, rel=0.2)
    few = 10  # experiments of ten paired seeds, against others of as many independent ones as those are worth
    each = round(few * (luck**2 + own**2) / own**2)
    common = draw.standard_normal((20_000, few, 1)) * luck + draw.standard_normal((20_000, few, 2))
    paired_spread = (common[..., 0] - common[..., 1]).mean(1).std()
    apart = math.hypot(luck, own) * draw.standard_normal((5_000, each, 2))
    assert (apart[..., 0] - apart[..., 1]).mean(1).std() == pytest.approx(paired_spread, rel=0.05)


def test_seeds_without_a_pair_are_left_out() -> None:
    a, b = {1: 1.0, 2: 2.0, 3: NAN, 4: 4.0, 6: math.inf, 7: 1.0}, {7: NAN, 4: 3.5, 2: 1.0, 3: 1.0, 5: 9.0, 6: 1.0}
    found = paired.difference("A", "B", "x", a, b)
    assert found.seeds == (2, 4)
    assert found.mean == pytest.approx(0.75)
    assert found.low < 0.75 < found.high
    assert math.isnan(found.correlation)
    assert math.isnan(found.worth)


@pytest.mark.parametrize(("a", "mean"), [({1: 2.0}, 1.0), ({2: 5.0}, NAN), ({}, NAN), ({1: NAN}, NAN)])
def test_one_seed_or_none_says_nothing(a: dict[int, float], mean: float) -> None:
    found = paired.difference("A", "B", "x", a, {1: 1.0})
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert all(map(math.isnan, (*found[5:9], found.correlation, found.worth, found.p)))
    assert found.clear is False


def test_differences_that_do_not_vary() -> None:
    a = {1: 1.0, 2: 2.0, 3: 3.0}
    same = paired.difference("A", "B", "x", a, a)
    assert (same.mean, same.low, same.high, same.clear, same.p) == (0, 0, 0, False, 1)
    assert same.worth == math.inf
    assert same.correlation == pytest.approx(1)
    shifted = paired.difference("A", "B", "x", a, {seed: value - 0.5 for seed, value in a.items()})
    assert (shifted.low, shifted.high, shifted.clear, shifted.p) == (0.5, 0.5, True, 0)
    flat = paired.difference("A", "B", "x", dict.fromkeys(a, 1.0), dict.fromkeys(a, 2.0))
    assert flat.clear
    assert math.isnan(flat.correlation)
    assert math.isnan(flat.worth)  # nothing varies: there is nothing to be worth


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, NAN])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(ValueError, match=r"level must lie between 0 and 1, such as 0\.95"):
        paired.difference("A", "B", "x", {1: 1.0}, {1: 1.0}, level)


# --- who stands where -------------------------------------------------------------------------------------------------


def places(values: dict[str, dict[int, float]], higher: bool = True) -> dict[str, tuple[int, int]]:
    return {one.strategy: (one.best, one.worst) for one in paired.standings(values, "x", higher)}


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values, 1))


def test_standings() -> None:
    """a and b cannot be told apart, c is clearly worse than both: one pair by pairing alone."""
    values = {
        "c": by_seed(0.1, 1.1, 2.1, 3.1),
        "a": by_seed(1.0, 2.1, 3.0, 4.1),
        "b": by_seed(1.1, 2.0, 3.1, 3.9),
    }
    assert places(values) == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}
    assert list(places(values)) == ["a", "b", "c"]
    assert list(places(values, higher=False).items()) == [("c", (1, 1)), ("b", (2, 3)), ("a", (2, 3))]
    first = paired.standings(values, "x", True)[0]
    low, high = stats.t.interval(0.95, 3, first.mean, stats.sem(list(values["a"].values())))
    assert first[1:5] == (4, pytest.approx(2.55), pytest.approx(low), pytest.approx(high))
    assert first.low < 1 < first.high  # its own interval is wide: the differences' are not


def test_a_middle_that_is_like_both_ends() -> None:
    """Ties need not be transitive: the middle one shares a place with either, the ends do not with each other."""
    values = {"top": by_seed(3.0, 3.1, 3.0), "middle": by_seed(0.0, 2.5, 5.0), "low": by_seed(1.0, 1.0, 1.1)}
    assert places(values) == {"top": (1, 2), "middle": (1, 3), "low": (2, 3)}


def test_all_clear_and_none() -> None:
    ladder = {str(i): {seed: i + seed + 0.01 * ((i * seed) % 3) for seed in range(4)} for i in range(5)}
    assert places(ladder) == {str(i): (5 - i, 5 - i) for i in range(5)}
    one_seed = {label: {1: each[1]} for label, each in ladder.items()}
    assert set(places(one_seed).values()) == {(1, 5)}
    assert list(places(one_seed)) == ["4", "3", "2", "1", "0"]


def test_those_without_a_value_come_last_and_rival_nobody() -> None:
    values = {"nan": by_seed(NAN, NAN), "b": by_seed(1.0, 1.0), "none": {}, "a": by_seed(2.0, 2.1)}
    assert places(values) == {"a": (1, 1), "b": (2, 2), "nan": (3, 4), "none": (3, 4)}
    assert [one.seeds for one in paired.standings(values, "x", True)] == [2, 2, 0, 0]
    assert math.isnan(paired.standings(values, "x", True)[-1].mean)


def test_every_pair_once_in_order() -> None:
    values = {label: by_seed(1.0, 2.0) for label in "cab"}
    assert [(d.first, d.second) for d in paired.differences(values, "x")] == [("c", "a"), ("c", "b"), ("a", "b")]


def test_places_hold_where_nothing_differs() -> None:
    """Of 5 equal strategies with 5 seeds, a pair is called clear by chance in one of twenty, one of the ten in far
    more: Holm's p keeps that to one of twenty."""
    draw = np.random.default_rng(9)
    pair, any_pair, any_holm = [], [], []
    for _ in range(400):
        table = draw.standard_normal((5, 5)) + draw.standard_normal(5)
        found = paired.differences({str(i): dict(enumerate(row)) for i, row in enumerate(table)}, "x")
        pair.append(found[0].clear)
        any_pair.append(any(d.clear for d in found))
        any_holm.append(min(paired.holm([d.p for d in found])) < 0.05)
    assert np.mean(pair) == pytest.approx(0.05, abs=0.035)
    assert np.mean(any_pair) > 0.15
    assert np.mean(any_holm) < 0.085


def test_holm_by_hand() -> None:
    assert paired.holm([0.01, 0.04, 0.03, NAN]) == pytest.approx([0.03, 0.06, 0.06, NAN], nan_ok=True)
    assert paired.holm([0.6, 0.7]) == [1, 1]
    assert paired.holm([]) == []


def test_neither_needs_torch() -> None:
    code = (
        "import sys; from fedsim import merit, paired; "
        "paired.standings({'a': {1: 1.0, 2: 2.0}, 'b': {1: 0.0, 2: 1.5}}, 'x', True); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
