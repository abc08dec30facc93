"""Weights: who counts how much, by hand and by law."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import F64, bernoulli, chance, close, round_of, subsets
from torch import Tensor

from fedsim.strategy import complete
from fedsim.weights import NAMES, All, Equal, Interval, Known, Present, Weights, total

P = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
PI = (0.9, 0.2, 0.5, 1.0)


def weigh(rule: Weights, who: list[int], state: Any = None, t: int = 0) -> tuple[Tensor, Any]:
    state = rule.init(P) if state is None else state
    return rule.step(state, round_of(t, who, torch.zeros(len(who), 2)))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Present(), [0.2 / 0.6, 0.4 / 0.6]),
        (Equal(), [0.5, 0.5]),
        (All(), [0.2, 0.4]),
        (Known(PI), [0.2 / 0.2, 0.4 / 1.0]),
        (Known(0.5), [0.4, 0.8]),
        (Interval(), [0.2, 0.4]),
    ],
    ids=repr,
)
def test_first_round(rule: Weights, expected: list[float]) -> None:
    w, _ = weigh(rule, [1, 3])
    close(w, torch.tensor(expected, dtype=F64), 1e-15)


def by_name(name: str) -> Weights:
    return complete(NAMES[name](), probabilities=PI)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_laws_of_all_weights(name: str) -> None:
    """Float64 whatever p is, one for each present, none negative, nothing for nobody, and p is left alone."""
    rule, p = by_name(name), P.clone()
    assert rule == by_name(name)
    state = rule.init(p)
    for t, who in enumerate([[], [0, 3], [1], [], [0, 1, 2, 3], [2]]):
        w, state = weigh(rule, who, state, t)
        assert w.shape == (len(who),)
        assert w.dtype == F64
        assert (w > 0).all()
    assert torch.equal(p, P)
    single, _ = rule.step(rule.init(P.float()), round_of(0, [1, 2], torch.zeros(2, 1)))
    assert single.dtype == F64
    assert total(w, torch.ones(1, 3)).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_weights_do_not_write_into_the_state_they_are_given(name: str) -> None:
    """Unlike a strategy's step they may be asked twice."""
    rule = by_name(name)
    _, state = weigh(rule, [0, 2])
    kept = [value.clone() for value in state]
    once, after = weigh(rule, [1, 2], state, 1)
    twice, again = weigh(rule, [1, 2], state, 1)
    assert torch.equal(once, twice)
    for one, other, old, now in zip(after, again, kept, state, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(old, now)


def test_known_is_unbiased_and_all_is_known_with_certainty() -> None:
    expectation = torch.zeros(4, dtype=F64)
    for s in subsets(4):
        w, _ = weigh(Known(PI), list(s))
        expectation[list(s)] += chance(s, PI) * w
    close(expectation, P, 1e-15)
    close(weigh(Known(1.0), [0, 2])[0], weigh(All(), [0, 2])[0], 0.0)


def test_present_sums_to_one_and_with_equal_shares_is_equal() -> None:
    for s in subsets(4)[1:]:
        assert weigh(Present(), list(s))[0].sum().item() == pytest.approx(1.0, abs=1e-15)
        even = Present().init(torch.full((4,), 0.25, dtype=F64))
        w, _ = Present().step(even, round_of(0, s, torch.zeros(len(s), 1)))
        close(w, weigh(Equal(), list(s))[0], 1e-15)


def intervals(rule: Interval, presence: list[list[int]], n: int) -> tuple[list[list[float]], Any]:
    """ω before every round and at the end, and the last state."""
    state = rule.init(torch.full((n,), 1 / n, dtype=F64))
    omegas = [state.omega.tolist()]
    for t, who in enumerate(presence):
        _, state = rule.step(state, round_of(t, who, torch.zeros(len(who), 1)))
        omegas.append(state.omega.tolist())
    return omegas, state


@pytest.mark.parametrize("cutoff", [None, 1, 2, 3, 5])
def test_interval_is_the_mean_of_finished_intervals(cutoff: int | None) -> None:
    """Against lists that grow, as the authors' code keeps them."""
    presence = bernoulli((0.1, 0.4, 0.9, 0.0), 4, 120, seed=2)
    found, state = intervals(Interval(cutoff), presence, 4)
    for i in range(4):
        finished: list[int] = []
        running = 0
        for t, who in enumerate(presence):
            expected = sum(finished) / len(finished) if finished else 1.0
            assert found[t][i] == pytest.approx(expected, rel=1e-13)
            running += 1
            if i in who or running == cutoff:
                finished.append(running)
                running = 0
        assert state.M[i] == len(finished)
        assert state.S[i] == running


def test_an_interval_that_ends_by_both_is_counted_once() -> None:
    """S = K in the round in which the client is there: one interval of length K."""
    omegas, state = intervals(Interval(3), [[], [], [0]], 1)
    assert [o[0] for o in omegas] == [1, 1, 1, 3]
    assert state.M.tolist() == [1]
    assert state.S.tolist() == [0]


def test_weight_used_in_a_round_knows_only_the_rounds_before() -> None:
    rule = Interval()
    state = rule.init(P)
    for t in range(9):
        _, state = weigh(rule, [], state, t)
    w, state = weigh(rule, [2], state, 9)
    assert w.item() == pytest.approx(0.3)
    w, state = weigh(rule, [2], state, 10)
    assert w.item() == pytest.approx(0.3 * 10)
    w, _ = weigh(rule, [2], state, 11)
    assert w.item() == pytest.approx(0.3 * (10 + 1) / 2)


def test_impossible_settings_are_refused_in_one_line() -> None:
    for make, word in (
        (lambda: Interval(0), "cutoff"),
        (lambda: Interval(math.inf), "cutoff"),  # type: ignore[arg-type]
        (lambda: Known((0.5, 0.0)), "probabilities"),
        (lambda: Known(1.5), "probabilities"),
        (lambda: Known(math.nan), "probabilities"),
        (lambda: Known().init(P), "probabilities"),
        (lambda: Known((0.5, 0.5)).init(P), "2 probabilities for 4 clients"),
    ):
        with pytest.raises(ValueError, match=word) as error:
            make()
        assert "\n" not in str(error.value)


def test_total_of_nobody_is_zero() -> None:
    assert total(torch.empty(0, dtype=F64), torch.empty(0, 3)).tolist() == [0, 0, 0]
