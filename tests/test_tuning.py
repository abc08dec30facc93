"""Equal tuning: the budget's arithmetic, trials that go on, what is judged by and what is never seen."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import command

from fedsim import compare, experiment, measure, tuning
from fedsim.engine import Stacked
from fedsim.experiment import Experiment, Mistake
from fedsim.participation import Schedule
from fedsim.record import read_metrics
from fedsim.simulation import prepare, simulate
from fedsim.tuning import Tuned, budget
from fedsim.tuning.judging import Court, court, without
from fedsim.tuning.trials import engine_for

TABLES: dict[str, Any] = {
    "task": {
        "data": {"name": "clusters", "classes": 3, "dimension": 4, "examples": 90, "test-examples": 30},
        "clients": 6,
        "model": "logistic",
        "partition": {"name": "dirichlet", "alpha": 0.5},
        "objective": "uniform",
    },
    "participation": {"name": "bernoulli", "probabilities": {"name": "label-correlated", "mean": 0.6}},
    "local": {"lr": 0.1, "steps": 2, "batch": 4},
    "strategy": [{"name": "FedAvg"}],
    "run": {"rounds": 8, "seeds": [3], "device": "cpu", "threads": 1},
    "tune": {"trials": 4, "grid": {"local": {"lr": [0.03, 0.1, 0.3]}, "lr": [0.5, 1.0, 2.0]}},
}
BOWLS: dict[str, Any] = {  # four clients with F_i(x) = (x - 3)²/2, one whole-batch step: x - 3 shrinks by 1 - η lr
    "task": {"data": {"name": "quadratic", "a": [1.0] * 4, "b": [3.0] * 4}, "clients": 4, "model": "scalar",
             "partition": "natural"},
    "local": {"lr": 1.0, "steps": 1, "batch": "all"},
    "strategy": [{"name": "FedAvg"}],
    "run": {"rounds": 4, "seeds": [1], "device": "cpu", "threads": 1, "dtype": "float64"},
    "tune": {"on": "clients", "share": 0.25, "trials": 4},
}  # fmt: skip


def made(tables: dict[str, Any], **changed: Any) -> Experiment:
    """The experiment of these tables; tables changed by name, lists and what is no table replaced."""
    for key, value in changed.items():
        tables = {**tables, key: {**tables.get(key, {}), **value} if isinstance(value, dict) else value}
    return experiment.parse(tables)


def tuned(from_: Experiment) -> list[Tuned]:
    return [event for event in tuning.tune(from_) if isinstance(event, Tuned)]


def best(found: Tuned) -> dict[str, Any]:
    assert found.winner is not None
    return found.trials[found.winner].settings


def judge(from_: Experiment, seed: int = 101) -> Court:
    assert from_.tuning is not None
    return court(from_, from_.tuning.table, compare.load_data(from_), from_.tuning.rounds, seed)


# The budget ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trials", "rounds", "eta", "rungs", "allowed"),
    [
        (8, 200, 2, [(50, 8), (100, 4), (200, 2)], 800),
        (9, 27, 3, [(9, 9), (27, 3)], 135),
        (5, 10, 2, [(2, 5), (5, 3), (10, 2)], 29),
        (2, 7, 2, [(7, 2)], 14),
        (3, 100, 4, [(100, 3)], 300),
    ],
)
def test_rungs(trials: int, rounds: int, eta: int, rungs: list[tuple[int, int]], allowed: int) -> None:
    found = budget.rungs(trials, rounds, eta)
    assert [tuple(rung) for rung in found] == rungs
    assert budget.allowance(found) == allowed
    assert sum(budget.lengths(found)) == rounds


@pytest.mark.parametrize(
    ("rounds", "looks"),
    [(1, [1]), (4, [4]), (5, [5]), (8, [7, 8]), (10, [9, 10]), (25, [21, 22, 23, 24, 25]), (60, [52, 54, 56, 58, 60]),
     (100, [84, 88, 92, 96, 100]), (1000, [840, 880, 920, 960, 1000])],
)  # fmt: skip
def test_looks_are_in_the_last_fifth(rounds: int, looks: list[int]) -> None:
    """Those rounds of which `final_mean` is the mean, at most five of them."""
    assert budget.looks(rounds) == looks
    assert all(0.8 * rounds < t <= rounds for t in looks)


def test_too_few_rounds_for_the_rungs() -> None:
    assert budget.rungs(8, 4, 2)[0].rounds == 1
    with pytest.raises(ValueError, match=r"rounds must be at least 4 for 8 trials in 3 rungs \(eta = 2\), got 3"):
        budget.rungs(8, 3, 2)


@pytest.mark.parametrize(("rounds", "eta", "seeds"), [(64, 2, 1), (64, 2, 3), (90, 3, 2), (37, 2, 1)])
def test_nobody_spends_more_than_the_allowance_and_small_grids_what_they_can(rounds: int, eta: int, seeds: int) -> None:
    """Whatever the size of the grid; a full one spends all of it, and ends with as many trials as there are slots."""
    for trials in range(2, 20):
        rungs = budget.rungs(trials, rounds, eta)
        allowed = seeds * budget.allowance(rungs)
        for points in range(2, trials + 1):
            alive, spent = points, 0
            for k, length in enumerate(budget.lengths(rungs)):
                alive = min(alive, budget.room(rungs, k, spent, seeds))
                assert alive >= min(points, rungs[k].slots)
                spent += alive * length * seeds
            assert spent <= allowed
            if points == trials:
                assert spent == allowed
                assert alive == rungs[-1].slots
            else:  # all it could, but for what the next trial would not fit into
                assert spent == seeds * points * rounds or allowed - spent < seeds * max(budget.lengths(rungs))


# Finding what is best ------------------------------------------------------------------------------------------------


def test_the_best_learning_rate_of_a_quadratic() -> None:
    """After t rounds the loss is 4.5 (1 - η lr)^2t; the product 1 goes there in one step."""
    made_ = made(BOWLS, tune={"trials": 6, "grid": {"local": {"lr": [0.5, 1.0, 1.25]}, "lr": [0.6, 2.0]}})
    (found,) = tuned(made_)
    assert best(found) == {"local.lr": 0.5, "lr": 2.0}
    for trial in found.trials:
        shrink = 1 - trial.settings["local.lr"] * trial.settings["lr"]
        for rounds, value in trial.values.items():
            late = [4.5 * shrink ** (2 * t) for t in budget.looks(rounds)]
            assert value == pytest.approx(sum(late) / len(late), rel=1e-6, abs=1e-12)
    assert [(trial.settings["local.lr"], trial.settings["lr"]) for trial in found.trials] == list(
        itertools.product([0.5, 1.0, 1.25], [0.6, 2.0])
    )
    # rungs: 6 to round 1, 3 to round 2, 2 to round 4, in the order of |1 - η lr| = 0, 0.25, 0.4, 0.7, 1, 1.5
    assert [trial.out_at for trial in found.trials] == [1, None, 2, 1, None, 1]
    assert [trial.rounds for trial in found.trials] == [1, 4, 2, 1, 4, 1]
    assert found.used == found.allowed == 6 + 3 + 2 * 2


def test_a_tie_goes_to_the_first() -> None:
    """FedAU's cutoff changes nothing in fewer rounds."""
    (found,) = tuned(made(BOWLS, strategy=[{"name": "FedAU"}], tune={"grid": {"cutoff": [300, 100, 200]}}))
    assert len({trial.value for trial in found.trials}) == 1
    assert best(found) == {"cutoff": 300}


def test_accuracy_is_better_high() -> None:
    (found,) = tuned(made(TABLES, tune={"metric": "accuracy", "trials": 9}))
    last = [trial for trial in found.trials if trial.out_at is None]
    assert found.winner is not None
    assert found.trials[found.winner].value == max(trial.value or 0 for trial in last)
    assert len({trial.value for trial in last}) > 1 or len(last) == 1
    with pytest.raises(ValueError, match='metric = "accuracy" needs classes, and quadratic has none'):
        tuned(made(BOWLS, tune={"metric": "accuracy", "grid": {"lr": [0.5, 1.0]}}))


@pytest.mark.parametrize("strategy", [
    {"name": "SCAFFOLD"}, {"name": "FedStale"}, {"name": "FedAdam", "inner": "MIFA"},
    {"name": "DPSGD", "topology": "ring"},
])  # fmt: skip
def test_a_trial_that_goes_on_is_the_uninterrupted_run(strategy: dict[str, Any]) -> None:
    """Bit for bit, memories and all: what each was judged at is what one run from the start gives at that round, alone,
    mean over two seeds."""
    grid = {"local": {"lr": [0.05, 0.2, 0.4, 0.8]}}
    made_ = made(TABLES, strategy=[strategy], tune={"grid": grid, "seeds": [5, 6]})
    (found,) = tuned(made_)
    courts = [judge(made_, 5), judge(made_, 6)]
    assert made_.tuning is not None
    assert {trial.rounds for trial in found.trials} == {4, 8}
    engine = engine_for(made_, made_.tuning.grids[0], courts)
    for trial, point in zip(found.trials, made_.tuning.grids[0].points, strict=True):
        assert trial.settings == point.settings
        values: dict[int, list[float]] = {}
        for where in courts:
            local, world = point.entry.local, where.world
            rule = prepare(point.entry.ready(6, world.seed), world.task, world.schedule)
            for step in simulate(world.task, rule, world.schedule, local, seed=world.seed, p=world.p, engine=engine):
                values.setdefault(step.t + 1, []).append(where.value(step.model))
        late = {rounds: [sum(values[t]) / 2 for t in budget.looks(rounds)] for rounds in trial.values}
        assert trial.values == {rounds: sum(each) / len(each) for rounds, each in late.items()}
        assert values[4] != values[8]


def test_side_by_side_or_one_by_one_is_the_same() -> None:
    """With one chunk. The loop engine agrees to rounding."""
    strategies = [{"name": "FedAvg"}, {"name": "SCAFFOLD"}]
    runs = [{"chunk": 4}, {"chunk": 4, "together": 1}, {"chunk": 4, "together": 3}, {"engine": "loop"}]
    every, *rest, loop = (tuned(made(TABLES, strategy=strategies, run=run, tune={"seeds": [5, 6]})) for run in runs)
    assert rest == [every, every]
    for one, other in zip(every, loop, strict=True):
        assert one.winner == other.winner
        assert [trial.value for trial in one.trials] == pytest.approx([trial.value for trial in other.trials], rel=1e-5)


def test_tuning_again_gives_the_same_and_company_does_not_matter() -> None:
    made_ = made(TABLES, strategy=[{"name": "FedAvg"}, {"name": "MIFA"}])
    once = tuned(made_)
    assert tuned(made_) == once
    assert tuned(made(TABLES, strategy=[{"name": "MIFA"}])) == [once[1]]
    assert tuned(made(TABLES, tune={"seeds": [102]})) != [once[0]]


def test_of_a_large_grid_a_random_part_is_tried() -> None:
    """As many points as there are trials, in the grid's order, the same for grids of a size."""
    tables = made(TABLES, strategy=[{"name": "FedAvg"}, {"name": "MIFA"}]), made(TABLES, tune={"seeds": [102]})
    (first, second), (other,) = (each.tuning.grids for each in tables if each.tuning is not None)
    every = [dict(zip(first.axes, values, strict=True)) for values in itertools.product(*first.axes.values())]
    places = [every.index(dict(point.settings)) for point in first.points]
    assert len(places) == 4 < first.size == 9
    assert places == sorted(set(places))
    assert [point.settings for point in first.points] == [point.settings for point in second.points]
    assert [point.settings for point in first.points] != [point.settings for point in other.points]
    points = Counter()
    for seed in range(300):
        grids = made(TABLES, tune={"seeds": [seed + 1000]}).tuning
        assert grids is not None
        points.update(every.index(dict(point.settings)) for point in grids.grids[0].points)
    assert min(points.values()) > 90  # 300 · 4/9 = 133 expected, σ = 8.6


# The budget is equal -------------------------------------------------------------------------------------------------


def test_every_strategy_trains_as_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at the engine: a round is one job of it, whatever the size of the grid, over two seeds."""
    calls: list[int] = []
    train = Stacked.together

    def counted(self: Stacked, jobs: Any) -> Any:
        calls.extend(len(job.who) for job in jobs)
        return train(self, jobs)

    monkeypatch.setattr(Stacked, "together", counted)
    strategies = [
        {"name": "FedAvg"},
        {"name": "FedStale", "tune": {"beta": [0.1, 0.5, 0.9]}},
        {"name": "DPSGD", "topology": "ring"},
        {"name": "MIFA", "tune": {"lr": [1.0], "local.lr": [0.1, 0.2]}},
        {"name": "FedVARP", "tune": {"lr": [1.0], "local.lr": [0.1]}},
    ]
    made_ = made(TABLES, strategy=strategies, participation="everyone", tune={"seeds": [7, 8]})
    used, played = {}, Counter()
    for event in tuning.tune(made_):
        if isinstance(event, Tuned):
            used[event.strategy] = (len(calls), sum(calls))
            assert (event.used, event.trainings) == (len(calls), sum(calls))
            assert event.allowed == 2 * (4 * 4 + 2 * 4)
            calls.clear()
        else:
            played[event.strategy] += 1
    assert used["FedAvg"] == used["FedStale"] == (48, 48 * 6)
    assert used["DPSGD"] == (48, 48 * 6)  # three points: all to round 4, all to round 8
    assert used["MIFA"] == (32, 32 * 6)  # two points have nothing left to spend it on
    assert used["FedVARP"] == (0, 0)
    assert played == {label: rounds for label, (rounds, _) in used.items() if rounds}


# What is judged by ---------------------------------------------------------------------------------------------------


def test_the_test_set_is_never_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not in the task, and a poisoned one changes nothing."""
    made_ = made(TABLES, strategy=[{"name": "FedAvg"}, {"name": "DPSGD", "topology": "ring"}])
    clean = tuned(made_)
    dataset = compare.load_data(made_)
    poisoned = dataset._replace(test_inputs=1e3 * dataset.test_inputs.flip(1), test_targets=0 * dataset.test_targets)
    monkeypatch.setattr(compare, "load_data", lambda _: poisoned)
    assert tuned(made_) == clean
    found = judge(made_).world.task
    assert len(found.test_inputs) == len(found.test_targets) == 0
    training = dataset._replace(inputs=1e3 * dataset.inputs)
    monkeypatch.setattr(compare, "load_data", lambda _: training)
    assert tuned(made_) != clean  # and other training examples change it


@pytest.mark.parametrize("on", ["held-out", "clients"])
def test_what_the_task_holds_out_stays_unseen(on: str) -> None:
    made_ = made(TABLES, task={"holdout": 0.3}, tune={"on": on})
    final = compare.make_world(made_, compare.load_data(made_), 101).task
    assert final.held is not None
    where = judge(made_)
    found = where.world.task
    assert found.held is not None
    seen = set(found.rows.tolist()) | set(found.held.rows.tolist())
    assert seen == set(final.rows.tolist())
    assert not seen & set(final.held.rows.tolist())
    if on == "held-out":
        assert not set(found.rows.tolist()) & set(found.held.rows.tolist())
        assert (found.held.size + found.size == final.size).all()
        assert len(found.held.rows) / len(final.rows) == pytest.approx(0.2, abs=0.05)


def test_clients_that_judge_never_train() -> None:
    """They are in no row, weigh nothing in training, and validate with all their examples; the rest is as it was."""
    made_ = made(TABLES, task={"objective": "examples"}, tune={"on": "clients", "share": 0.34})
    where, before = judge(made_), compare.make_world(made_, compare.load_data(made_), 101)
    world = where.world
    judges = where.p.nonzero().flatten().tolist()
    assert len(judges) == 2
    assert where.p.sum() == pytest.approx(float(before.p[judges].sum()))
    assert world.p[judges].tolist() == [0, 0]
    assert world.p.sum() == pytest.approx(1)
    rest = [i for i in range(6) if i not in judges]
    np.testing.assert_allclose(world.p[rest] / world.p[rest[0]], before.p[rest] / before.p[rest[0]])
    for now, then in zip(world.schedule, before.schedule, strict=True):
        assert now.chosen.tolist() == [i for i in then.chosen.tolist() if i not in judges]
    held = world.task.held
    assert held is not None
    for i in range(6):
        rows = held.rows[held.first[i] : held.first[i] + held.size[i]].tolist()
        task = before.task
        own = task.rows[task.first[i] : task.first[i] + task.size[i]].tolist()
        assert rows == (own if i in judges else [])
    x = torch.randn(world.task.layout.size, generator=torch.Generator().manual_seed(1))
    losses = measure.training_losses(before.task, x)
    want = float(where.p @ losses / where.p.sum())
    assert where.value(x) == pytest.approx(want, rel=1e-6)


def test_schedules_without_some_clients() -> None:
    gone = np.array([False, True, False, True])
    everyone = without(Schedule(4, 2), gone)
    assert [row.chosen.tolist() for row in everyone] == [[0, 2]] * 2
    assert [row.available.tolist() for row in everyone] == [[0, 2]] * 2
    table = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]], dtype=bool)
    effort = np.array([[0.1, 0.2, 0, 0], [0, 0, 0.3, 0.4], [0, 0.5, 0, 0.6]])
    full = Schedule.from_matrix(table, effort, np.array([0.1, 0.2, 0.3, 0.4]))
    chance = np.array([0.11, 0.21, 0.31, 0.41, 0.22, 0.42])
    some = without(replace(full, available="everyone", chance=chance), gone)
    assert [row.chosen.tolist() for row in some] == [[0], [2], []]
    assert [row.available.tolist() for row in some] == [[0, 2]] * 3
    np.testing.assert_allclose(torch.cat([row.effort for row in some]), [0.1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(some.chance), [0.11, 0.31], rtol=1e-6)
    assert some.probabilities is not None
    assert some.probabilities.tolist() == [0.1, 0.2, 0.3, 0.4]


def test_nodes_are_judged_by_everybodys_examples() -> None:
    """The mean over the nodes of what each would be worth alone."""
    grid = {"local.lr": [0.1, 0.2]}
    made_ = made(TABLES, strategy=[{"name": "DPSGD", "topology": "ring"}], run={"eval-nodes": 3}, tune={"grid": grid})
    where = judge(made_)
    x = torch.randn((6, where.world.task.layout.size), generator=torch.Generator().manual_seed(1))
    nodes = where.world.nodes.tolist()
    assert len(nodes) == 3
    assert where.value(x) == pytest.approx(sum(where.value(x[i]) for i in nodes) / 3)
    figures = measure.per_client(where.world.task, x[0])
    assert where.value(x[0]) == pytest.approx(float(figures.loss[figures.measured].mean()))  # uniform weights


def test_nobody_has_an_example_to_spare() -> None:
    with pytest.raises(ValueError, match=r'on = "held-out" needs a client with two examples or more; use on = "clien'):
        tuned(made(BOWLS, tune={"on": "held-out", "grid": {"lr": [0.5, 1.0]}}))


# Edges, failures, what is not tuned ----------------------------------------------------------------------------------


def test_a_winner_at_the_edge_is_a_warning() -> None:
    made_ = made(BOWLS, tune={"grid": {"local.lr": [0.25, 0.125, 0.5]}})
    found = tuned(made_)
    assert best(found[0]) == {"local.lr": 0.5}
    assert found[0].edge == {"local.lr": "highest"}
    (warning,) = tuning.warnings(made_, found)
    assert warning == (
        "FedAvg: local.lr = 0.5 is the highest tried (from 0.125 to 0.5): the best may be higher; widen the grid"
    )
    assert tuning.document(made_, found)["strategies"][0]["edge"] == ["local.lr"]
    inside = made(BOWLS, tune={"grid": {"local.lr": [0.5, 1.0, 1.5]}})
    assert tuned(inside)[0].edge == {}
    assert tuning.warnings(inside, tuned(inside)) == []
    fixed = made(BOWLS, tune={"grid": {"local.lr": [0.5, 1.0, 1.5], "lr": [1.0]}})
    assert tuned(fixed)[0].edge == {}


def test_the_last_possible_value_is_no_edge() -> None:
    """FedStale's β ends at 0 and 1, and words have no order."""
    made_ = made(BOWLS, strategy=[{"name": "FedStale", "tune": {"beta": [0.0, 1.0], "weights": ["present", "all"]}}])
    (found,) = tuned(made_)
    assert best(found)["beta"] in (0.0, 1.0)
    assert (found.edge, found.limit) == ({}, ["beta"])
    (grid,) = made_.tuning.grids if made_.tuning is not None else ()
    assert grid.limits == {"beta": (True, True)}
    part = made(BOWLS, strategy=[{"name": "FedStale", "tune": {"beta": [0.2, 0.6]}}]).tuning
    assert part is not None
    assert part.grids[0].limits == {"beta": (False, True)}  # 0.2²/0.6 can be, 0.6²/0.2 cannot
    rounds = made(BOWLS, strategy=[{"name": "FedAU", "tune": {"cutoff": [1, 10]}}]).tuning
    assert rounds is not None
    assert rounds.grids[0].limits == {"cutoff": (True, False)}


def test_no_limit_is_the_last_value_there_is() -> None:
    """inf, which clip takes for no limit, is text in JSON; the values below it are no limit."""
    made_ = made(BOWLS, tune={"grid": {"local.clip": [0.5, 0.6, float("inf")]}})
    found = tuned(made_)
    assert best(found[0]) == {"local.clip": float("inf")}
    assert (found[0].edge, found[0].limit) == ({}, ["local.clip"])
    each = tuning.document(made_, found)["strategies"][0]
    assert each["winner"] == {"local.clip": "inf"}
    assert each["grid"] == {"local.clip": [0.5, 0.6, "inf"]}
    assert tuning.winners(made_, found).entries[0].local.clip is None
    two = made(BOWLS, tune={"grid": {"local.clip": [0.5, float("inf")]}}).tuning
    assert two is not None
    assert two.grids[0].limits == {"local.clip": (False, True)}


def test_a_trial_that_diverges_is_out_and_counted() -> None:
    """And what it did not spend others may."""
    made_ = made(BOWLS, run={"rounds": 8}, tune={"grid": {"lr": [1e308, 0.5, 1.0, 1.5]}})
    (found,) = tuned(made_)
    bad = found.trials[0]
    assert best(found) == {"lr": 1.0}
    assert bad.failed is not None
    assert "not finite" in bad.failed
    assert (bad.rounds, bad.out_at, bad.value) == (1, None, None)
    assert "FedAvg: 1 of 4 trials diverged, such as lr = 1e+308" in tuning.warnings(made_, [found])
    json.dumps(tuning.document(made_, [found]), allow_nan=False)
    bad_ones = [1e308, 1.1e308, 1.2e308]
    freed = made(BOWLS, run={"rounds": 8}, tune={"grid": {"lr": [*bad_ones, 0.5, 0.8, 1.1, 1.2, 1.5]}, "trials": 8})
    (found,) = tuned(freed)  # 8 slots to round 2, 4 to round 4, 2 to round 8: five go on to round 4
    assert sorted(trial.rounds for trial in found.trials) == [1, 1, 1, 4, 4, 4, 8, 8]
    assert found.used == 31
    assert found.allowed == 32
    with pytest.raises(ValueError, match=r"FedAvg: all 2 trials failed, the last with lr = 1e\+308: .*not finite"):
        tuned(made(BOWLS, tune={"grid": {"lr": [1.1e308, 1e308]}}))


def test_a_strategy_without_a_grid_is_said_to_be_untuned() -> None:
    strategies = [{"name": "FedAvg"}, {"name": "DPSGD", "topology": "ring"}, {"name": "MIFA", "tune": {"lr": [0.7]}}]
    document = {**TABLES, "strategy": strategies, "tune": {"trials": 4, "grid": {"lr": [0.5, 1.0]}}}
    made_ = experiment.parse(document)
    found = tuned(made_)
    said = tuning.warnings(made_, found)
    assert "DPSGD is not tuned: no key of the grid is one of its settings" in said
    assert "MIFA is not tuned: its grid has a single point" in said
    result = tuning.document(made_, found)["strategies"]
    assert [each["winner"] for each in result][1:] == [{}, {"lr": 0.7}]
    assert [each["used"] for each in result] == [16, 0, 0]
    after = tuning.winners(made_, found)
    assert after.entries[1] == made_.entries[1]
    assert getattr(after.entries[2].strategy, "lr", None) == 0.7


def test_more_work_in_a_round_is_said() -> None:
    made_ = made(TABLES, tune={"grid": {"local.steps": [1, 2]}})
    assert any("costs what its local.steps says" in line for line in tuning.warnings(made_, tuned(made_)))


# The experiment file -------------------------------------------------------------------------------------------------


def test_keys_with_and_without_quotes_parts_and_own_grids() -> None:
    """Dotted keys are the same either way; own grids go over the common one; parts of a strategy have keys too."""
    strategies = [
        {"name": "FedAdam", "inner": "FedStale", "tune": {"inner": {"beta": [0.1, 0.2]}, "lr": [0.01]}},
        {"name": "FedAvg", "weights": "fedau", "tune": {"weights.cutoff": [5, 6]}},
        {"name": "DPSGD", "topology": {"name": "random-regular", "degree": 2}, "tune": {"topology.degree": [2, 3]}},
    ]
    document = {**TABLES, "strategy": strategies, "tune": {"eta": 9, "grid": {"local.lr": [0.1, 0.2], "lr": [1.0]}}}
    read = experiment.parse(document).tuning
    assert read is not None
    assert [dict(grid.axes) for grid in read.grids] == [
        {"local.lr": (0.1, 0.2), "lr": (0.01,), "inner.beta": (0.1, 0.2)},
        {"local.lr": (0.1, 0.2), "lr": (1.0,), "weights.cutoff": (5, 6)},
        {"local.lr": (0.1, 0.2), "topology.degree": (2, 3)},
    ]
    entries: list[Any] = [grid.points[-1].entry for grid in read.grids]
    assert (entries[0].strategy.inner.beta, entries[0].strategy.lr, entries[0].local.lr) == (0.2, 0.01, 0.2)
    assert entries[1].strategy.weights.cutoff == 6
    assert entries[2].topology.parameters == {"degree": 3}
    assert entries[0].local.steps == 2


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"tune": {"sed": [1]}}, 'unknown key "sed"; did you mean \'seeds\''),
        ({"tune": {"seeds": [3]}}, "seeds holds 3, one of run.seeds"),
        ({"tune": {"seeds": []}}, "seeds must have at least one seed"),
        ({"tune": {"seeds": [-1]}}, "seeds must be between 0"),
        ({"tune": {"eta": 1}}, "eta must be at least 2, got 1"),
        ({"tune": {"trials": 1}}, "trials must be from 2"),
        ({"tune": {"share": 1.0}}, "share must be above 0 and below 1"),
        ({"tune": {"rounds": 0}}, "rounds must be at least 1"),
        ({"tune": {"rounds": 1}}, "rounds must be at least 2 for 4 trials in 2 rungs"),
        ({"tune": {"on": "test"}}, 'on must be "held-out" or "clients", got "test"'),
        ({"tune": {"metric": "test_loss"}}, 'metric must be "loss" or "accuracy"'),
        ({"tune": {"grid": {"lr": 0.1}}}, "lr must be a list of the values to try, got 0.1"),
        ({"tune": {"grid": {"lr": []}}}, "lr must be a list of the values to try, got []"),
        ({"tune": {"grid": {"lr": [0.1, 0.1]}}}, "lr holds 0.1 twice"),
        ({"tune": {"grid": {"local.lr": [0.1], "local": {"lr": [0.2]}}}}, "local.lr is given twice"),
        ({"tune": {"grid": [1]}}, "must be a table of lists"),
        ({"tune": {"grid": {"local.lrs": [0.1, 0.2]}}}, "key \"local.lrs\"; did you mean 'local.lr'?"),
        ({"tune": {"grid": {"beta": [0.1, 0.2]}}}, 'no strategy has the key "beta"'),
        ({"tune": {"grid": {"lr": [1.0]}}}, "there is nothing to try"),
        ({"tune": {"grid": {"local.lr": [0.1, -1.0]}}}, "local.lr = -1.0: lr must be from 0"),
        ({"tune": {"grid": {"local.lr": [0.1, "fast"]}}}, 'local.lr = "fast": lr must be a finite number'),
        ({"tune": {"grid": {"lr": [float(x) for x in range(1, 200)], "local.lr": [x / 100 for x in range(1, 200)]}}},
         "FedAvg has a grid of 39601 points; at most 10000"),
        ({"strategy": [{"name": "FedAvg", "tune": {"beta": [0.1]}}]}, 'FedAvg has no key "beta"'),
        ({"strategy": [{"name": "FedAvg", "tune": 3}]}, "must be a table of lists"),
        ({"strategy": [{"name": "FedStale", "tune": {"beta": [0.5, 1.5]}}]}, "beta = 1.5: beta must be between 0"),
        ({"strategy": [{"name": "FedStale", "tune": {"beta": [0.5, "auto"], "weights": ["all", "known"]}}]},
         'weights = "all" do not go together: beta \'auto\' needs weights'),
        ({"strategy": [{"name": "DPSGD", "topology": "ring"}], "tune": {"on": "clients", "grid": {"local.lr": [1, 2]}}},
         'on = "clients" takes nodes out of the network that DPSGD runs on'),
        ({"strategy": [{"name": "RandomWalk", "topology": "ring"}],
          "tune": {"on": "clients", "grid": {"local.lr": [1, 2]}}}, "out of the network that RandomWalk runs"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_one_line(changed: dict[str, Any], text: str) -> None:
    document = {**TABLES, **changed}
    if "tune" in changed:
        document["tune"] = {**TABLES["tune"], **changed["tune"]}
    with pytest.raises(Mistake) as caught:
        experiment.parse(document)
    assert text in caught.value.text
    assert "\n" not in caught.value.text
    assert caught.value.place


def test_tune_without_a_table_is_refused(tmp_path: Path) -> None:
    document = {key: value for key, value in TABLES.items() if key != "tune"}
    with pytest.raises(Mistake, match=r"tune needs a table \[tune\]"):
        experiment.parse({**document, "strategy": [{"name": "FedAvg", "tune": {"lr": [0.1]}}]})
    with pytest.raises(ValueError, match=r"no table \[tune\]"):
        next(tuning.tune(experiment.parse(document)))
    with pytest.raises(ValueError, match=r"has a table \[tune\]: fedsim run tunes first"):
        next(compare.compare(made(TABLES)))


def test_an_experiment_with_a_table_is_written_and_read_again() -> None:
    made_ = made(TABLES, strategy=[{"name": "FedAvg"}, {"name": "FedStale", "tune": {"beta": [0.1, 0.9]}}])
    again = experiment.parse(tomllib.loads(made_.toml()))
    assert again.toml() == made_.toml()
    assert again.tuning is not None
    assert made_.tuning is not None
    assert [grid.axes for grid in again.tuning.grids] == [grid.axes for grid in made_.tuning.grids]
    assert tuned(again) == tuned(made_)


def test_the_winners_experiment_runs_again_as_it_is() -> None:
    """From its own file, with the same numbers; and its settings are the winners'."""
    strategies = [{"name": "FedStale", "tune": {"beta": [0.1, 0.9]}}, {"name": "DPSGD", "topology": "ring"}]
    made_ = made(TABLES, strategy=strategies)
    found = tuned(made_)
    after = tuning.winners(made_, found)
    assert after.tuning is None
    document = tomllib.loads(after.toml())
    assert "tune" not in document
    for table, each in zip(document["strategy"], found, strict=True):
        assert "tune" not in table
        own = {key: value for key, value in best(each).items() if "." not in key}
        assert {key: table[key] for key in own} == own
        assert table.get("local", document["local"])["lr"] == best(each)["local.lr"]
    first, second = (
        [event for event in compare.compare(each) if isinstance(event, compare.Measured)]
        for each in (after, experiment.parse(document))
    )
    assert first == second
    assert {event.seed for event in first} == {3}


@pytest.mark.parametrize("local", [{}, {"curriculum": {"name": "curriculum", "rounds": 8, "start": 0.2}}], ids=str)
def test_flowers_strategies_are_tuned_too(local: dict[str, Any]) -> None:
    """FedAvgM without momentum: its server learning rate is FedAvg's, so the same point wins with the same value."""
    grid = [0.5, 1.0, 2.0]
    strategies = [
        {"name": "FedAvg", "tune": {"lr": grid}},
        {"name": "flwr:FedAvgM", "tune": {"server-learning-rate": grid}},
    ]
    made_ = made(TABLES, task={"objective": "examples"}, strategy=strategies, participation="everyone",
                 local=local, tune={"grid": {"local.lr": [0.2, 0.4]}, "trials": 6})  # fmt: skip
    ours, theirs = tuned(made_)
    assert list(best(ours).values()) == list(best(theirs).values())
    assert [trial.value for trial in theirs.trials] == pytest.approx([trial.value for trial in ours.trials], rel=1e-4)
    assert ours.used == theirs.used == ours.allowed
    assert f"server-learning-rate = {best(ours)['lr']}" in tuning.winners(made_, [ours, theirs]).toml()


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    import tomli_w

    path = tmp_path / "tuned.toml"
    path.write_text(tomli_w.dumps(TABLES | {"strategy": [{"name": "FedAvg"}, {"name": "FedAU", "label": "[au]"}]}))
    return path


def test_fedsim_run_tunes_first(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The winners run on run.seeds; the folder's experiment does not tune again and gives the same numbers."""
    assert command("run", file, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "24 of 24" in said
    assert "warning: " in said
    assert "[au]" in said
    found = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert found == tuning.document(experiment.load(file), tuned(experiment.load(file)))
    assert experiment.load(tmp_path / "run" / "experiment.toml").run.chunk is not None
    assert (tmp_path / "run" / "tuning.png").exists()
    measured = read_metrics(tmp_path / "run")
    assert {m.seed for m in measured} == {3}
    assert command("run", tmp_path / "run" / "experiment.toml", "--out", tmp_path / "again", "--quiet") == 0
    assert read_metrics(tmp_path / "again") == measured
    assert not (tmp_path / "again" / "tune.json").exists()


def test_fedsim_tune_prints_and_writes_the_winners(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command("tune", file, "--quiet", "--out", out, "--set", "tune.eta=4") == 0
    pasted = capsys.readouterr().out
    tables = tomllib.loads(pasted)["strategy"]
    found = json.loads((out / "tune.json").read_text())
    assert found["budget"]["eta"] == 4
    assert [{"local.lr": table["local"]["lr"], "lr": table["lr"]} for table in tables] == [
        each["winner"] for each in found["strategies"]
    ]
    assert sorted(path.name for path in out.iterdir()) == ["experiment.toml", "tune.json", "tuning.png", "tuning.svg"]
    after = experiment.load(out / "experiment.toml")
    assert after.tuning is None
    rest = file.read_text().split("[[strategy]]")[0] if "[[strategy]]" in file.read_text() else None
    assert rest is None or tomllib.loads(rest)
    assert [entry.given["lr"] for entry in after.entries] == [table["lr"] for table in tables]
    assert command("tune", file, "--out", out) == 2
    assert "already holds tune.json" in capsys.readouterr().err
    assert command("tune", out / "experiment.toml") == 2
    assert "has no table [tune]" in capsys.readouterr().err


def test_a_wrong_grid_is_refused_before_anything_is_written(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("run", file, "--out", tmp_path / "run", "--set", "tune.grid.lr=[1.0,'x']") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "tuned.toml with --set tune.grid.lr=[1.0,'x']: [tune.grid] lr = \"x\": lr must be a finite number" in said
    assert not (tmp_path / "run").exists()


def test_the_picture_needs_something_tried() -> None:
    from fedsim.report.tuning import tuning as picture

    made_ = made(TABLES, strategy=[{"name": "FedAvg"}, {"name": "MIFA", "tune": {"lr": [1.0], "local.lr": [0.1]}}])
    found = tuning.document(made_, tuned(made_))
    drawn = picture(found)
    assert drawn is not None
    labels = [axes.get_xlabel() for axes in drawn.axes]
    edge = found["strategies"][0]["edge"]
    assert labels == [key + (", best at the edge" if key in edge else "") for key in ("local.lr", "lr")]
    assert picture({**found, "strategies": found["strategies"][1:]}) is None
