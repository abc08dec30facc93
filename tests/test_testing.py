"""fedsim.testing on strategies of a user's: right ones pass, near misses are told in one sentence, small."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from helpers import command
from test_laws import WAIVED, Plain, Simple
from torch import Tensor

import fedsim
from fedsim import strategies, weights
from fedsim.mixing import Metropolis
from fedsim.participation import Bernoulli, Participation, Schedule
from fedsim.strategies import DPSGD, MIFA, FedAdam, FedAvg, FedProx, FedStale
from fedsim.strategy import Strategy
from fedsim.testing import check_mixing, check_participation, check_strategy, check_task, examine
from fedsim.testing.devices import stays_on_its_device
from fedsim.testing.known import OWN
from fedsim.testing.laws import STRATEGY_LAWS, the_ledger_is_exact
from fedsim.testing.parity import flower_gives_the_same
from fedsim.testing.stage import Stage
from fedsim.testing.strategies import LAWS


@dataclasses.dataclass(frozen=True)
class Halfway(Simple):
    """Goes a share of the way."""

    share: float = 0.5
    reduces: ClassVar[Any] = (FedAvg(weights=weights.Equal()), {"share": 1.0})

    def step(self, s: Any, r: Any) -> Any:
        return Plain(s.x + self.share * r.delta.sum(0) / max(len(r.who), 1))


@dataclasses.dataclass(frozen=True)
class AfterThree(Halfway):
    """Right for two rounds; from then on an empty one divides by nothing."""

    reduces: ClassVar[Any] = ()

    def step(self, s: Any, r: Any) -> Any:
        return Plain(s.x + r.delta.sum(0) / (len(r.who) if r.t > 2 else max(len(r.who), 1)))


@dataclasses.dataclass(frozen=True)
class ByNumber(Halfway):
    """Counts client 1 twice."""

    reduces: ClassVar[Any] = ()

    def step(self, s: Any, r: Any) -> Any:
        w = torch.where(r.who == 1, 2.0, 1.0).to(s.x)
        return Plain(s.x + (w[:, None] * r.delta).sum(0))


@dataclasses.dataclass(frozen=True)
class Host(Halfway):
    """Makes a tensor on the host, whatever the model is on."""

    reduces: ClassVar[Any] = ()

    def step(self, s: Any, r: Any) -> Any:
        return Plain(s.x + r.delta.sum(0) * torch.full((s.x.shape[-1],), 0.5, dtype=s.x.dtype))


@dataclasses.dataclass(frozen=True)
class Divides(Halfway):
    """Raises where nobody is there."""

    reduces: ClassVar[Any] = ()

    def step(self, s: Any, r: Any) -> Any:
        return Plain(s.x + r.delta.sum(0) * (1 / len(r.who)))


@dataclasses.dataclass(frozen=True)
class Strange(Halfway):
    """Keeps something that no checkpoint holds."""

    reduces: ClassVar[Any] = ()

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        return Odd(x, {1, 2})

    def step(self, s: Any, r: Any) -> Any:
        return s._replace(x=s.x + r.delta.sum(0))


class Odd(NamedTuple):
    x: Tensor
    bag: Any


@dataclasses.dataclass(frozen=True)
class InItself(Halfway):
    """Keeps the last move in itself."""

    reduces: ClassVar[Any] = ()
    cache: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def step(self, s: Any, r: Any) -> Any:
        move = r.delta.sum(0) + 0.5 * self.cache.get("move", 0.0)
        self.cache["move"] = move
        return Plain(s.x + move)


def law_of(name: str) -> Any:
    return next(law for law in LAWS if law.__name__ == name)


def told(strategy: Any, **more: Any) -> list[str]:
    """The failures that check_strategy tells of."""
    with pytest.raises(AssertionError) as caught:
        check_strategy(strategy, **more)
    head, *rest = str(caught.value).splitlines()
    assert re.fullmatch(rf".* breaks {len(rest)} of \d+ laws:", head)
    return [line.removeprefix("- ") for line in rest]


def test_a_right_strategy_passes() -> None:
    check_strategy(Halfway(share=0.3))
    check_strategy(DPSGD())
    check_strategy(FedProx(MIFA(), mu=0.1))
    check_strategy(strategies.RelaySGD())  # which wants a tree


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        (AfterThree(), "an empty round survives: x[0] is nan, in round 3 with nobody present (1 client, 2 parameters)"),
        (
            ByNumber(),
            "relabelling clients relabels the state: x[0] is X where clients numbered otherwise give X, "
            "in round 0 with client 0 present (2 clients, 1 parameter)",
        ),
        (
            Host(),
            "stays on its device: aten.mul.Tensor is given a tensor of the host beside one of the device; make it on "
            "x.device (1 client, 2 parameters)",
        ),
        (
            Divides(),
            "an empty round survives: it raises ZeroDivisionError: division by zero at test_testing.py, line N "
            "(1 client, 2 parameters)",
        ),
        (
            Strange(),
            "state serialises and resumes: its state cannot be saved and loaded: state.bag is a set: a state holds "
            "tensors, Rows, numbers, text and tuples of them (1 client, 2 parameters)",
        ),
        (
            InItself(),
            "all memory is in the state: .x[0] is X in one of two runs by turns on one object, where by itself it is "
            "X, in round 0 with client 0 present (1 client, 2 parameters)",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Strategy) else "",
)
def test_a_near_miss_is_one_sentence_with_a_small_example(strategy: Strategy, sentence: str) -> None:
    found = [re.sub(r"line \d+", "line N", re.sub(r"-?\d+\.\d+(e-\d+)?", "X", text)) for text in told(strategy)]
    assert sentence.replace(": .x", ": x") in found
    assert all("\n" not in text and len(text) < 300 for text in found)


def test_the_smallest_example_breaks_and_nothing_smaller_does() -> None:
    """Round 3 is the first that divides by nothing: four rounds, nobody in the last."""
    from fedsim.testing.laws import an_empty_round_survives
    from fedsim.testing.report import attempt
    from fedsim.testing.shrinking import smallest

    law = an_empty_round_survives
    error = attempt(law, AfterThree(), Stage())
    assert error is not None
    stage, found = smallest(lambda stage: law(AfterThree(), stage), Stage(), error)
    assert (stage.n, stage.size, len(stage.presence)) == (1, 2, 4)
    assert not any(stage.presence)
    assert type(found) is type(error)
    assert attempt(law, AfterThree(), dataclasses.replace(stage, presence=stage.presence[:3])) is None


def test_reductions() -> None:
    pair = (FedAvg(weights=weights.Equal()), {"share": 1.0})
    check_strategy(FedStale(), reduces_to=[(FedAvg(weights=FedStale().weights), {"beta": 0.0})])
    check_strategy(DPSGD(fedsim.mixing.Complete(), order="atc"), reduces_to=(FedAvg(weights=weights.Equal()), {}, True))
    with pytest.raises(AssertionError, match=r"with share = 0\.9 it is FedAvg\(weights = Equal\(\)\): x\[0\] is "):
        check_strategy(Halfway(), reduces_to=[pair, (pair[0], {"share": 0.9})])
    with pytest.raises(AssertionError, match=r"it is FedAvg\(weights = Equal\(\)\): .* \(1 client, "):
        check_strategy(dataclasses.make_dataclass("Bare", [], bases=(Halfway,), frozen=True)(), reduces_to=(pair[0],))
    with pytest.raises(ValueError, match=r"Halfway has no setting 'shre'; did you mean 'share'\?"):
        check_strategy(Halfway(), reduces_to=[(pair[0], {"shre": 1.0})])
    with pytest.raises(ValueError, match="a reduction is a pair such as"):
        check_strategy(Halfway(), reduces_to=[{"share": 1.0}])


def test_waivers() -> None:
    why = "client 1 is the chair"
    waived = {"relabelling_clients_relabels_the_state": why}
    check_strategy(ByNumber(), waived=waived)
    report = examine(ByNumber(), waived=waived)
    assert [o.text for o in report.outcomes if o.result == "waived"] == [why]
    (left,) = told(Halfway(), waived=waived)
    assert (
        left
        == f"relabelling clients relabels the state: this law is waived ({why}), but it holds; take the waiver away"
    )
    with pytest.raises(ValueError, match="there is no law 'relabeling'"):
        check_strategy(Halfway(), waived={"relabeling": why})
    stating = dataclasses.make_dataclass("Stating", [], bases=(ByNumber,), frozen=True, namespace={"waives": waived})
    check_strategy(stating())


def test_what_is_no_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Halfway is no strategy; give an object, Halfway\(\)"):
        check_strategy(Halfway)
    with pytest.raises(ValueError, match="dict is no strategy: derive it from"):
        check_strategy({})
    with pytest.raises(ValueError, match="a dict is nothing that fedsim has laws for"):
        examine({})


def test_our_own_waivers_are_those_of_the_law_table() -> None:
    found: dict[str, dict[str, str]] = {}
    for law, pattern, why in WAIVED:
        if law in STRATEGY_LAWS and law is not the_ledger_is_exact:  # which says nothing of what is not linear
            for name in fnmatch.filter(strategies.__all__, pattern):
                found.setdefault(name, {}).setdefault(law.__name__, why)
    assert {name: set(laws) for name, laws in found.items()} == {name: set(laws) for name, laws in OWN.items()}


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(), DPSGD(), fedsim.strategies.GossipPGA()], ids=repr)
def test_ours_stay_on_a_device_that_is_not_there(strategy: Strategy) -> None:
    stays_on_its_device(Stage().ready(strategy), Stage())


@pytest.mark.parametrize("strategy", [MIFA(), fedsim.strategies.SCAFFOLD(), FedStale(beta=0.3)], ids=repr)
def test_through_flower_ours_are_the_same(strategy: Strategy) -> None:
    flower_gives_the_same(Stage().ready(strategy), Stage())


def test_flower_parity_can_fail() -> None:
    with pytest.raises(AssertionError, match="through Flower, where the loop ends with"):
        flower_gives_the_same(InItself(), Stage())


# Mixing, presence, tasks ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spoilt(Metropolis):
    """Metropolis, with something done to its edges."""

    spoil: Callable[..., Any] = dataclasses.field(default=lambda edges, t, who: edges)

    def __call__(self, t: int, who: Tensor, key: int = 0) -> Any:
        return self.spoil(super().__call__(t, who, key), t, who)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda e, t, who: e._replace(diagonal=e.diagonal * 0.5), "its sums are 1: row 0 sums to 0.5 where it is"),
        (
            lambda e, t, who: e._replace(diagonal=e.diagonal * float("nan")),
            r"its sums are 1: W\[0, 0\] is nan, in round",
        ),
        (
            lambda e, t, who: Metropolis(Stage(n=len(e.diagonal)).graph)(t, torch.arange(len(e.diagonal))),
            r"an absent node keeps its model: W\[0, 0\] is 0.5 though node 0 is absent, in round 1 with nobody present "
            r"\(2 nodes\)",
        ),
        (
            lambda e, t, who: e._replace(diagonal=e.diagonal + torch.rand(()).double()),
            r"a draw follows round and key: W\[0, 0\] is .* drawn again, where it was",
        ),
        (
            lambda e, t, who: fedsim.mixing.Complete(len(e.diagonal))(t, who),
            r"it keeps to its graph: W\[0, 2\] is 0.166667 though the graph has no edge 2-0, in round 0 with",
        ),
        (lambda e, t, who: (torch.rand(()), e)[1], "a draw follows round and key: it draws from torch's own generator"),
        (lambda e, t, who: e.dense(), "it gives a Tensor where fedsim.mixing.Edges are wanted"),
    ],
)
def test_a_mixing_that_is_wrong_is_told(spoil: Any, sentence: str) -> None:
    check_mixing(Metropolis())
    with pytest.raises(AssertionError, match=sentence):
        check_mixing(Spoilt(spoil=spoil))
    with pytest.raises(ValueError, match="Halfway is no mixing"):
        check_mixing(Halfway())


def test_a_mixing_says_what_it_is() -> None:
    class Loose(Metropolis):
        averaging: ClassVar[str] = "well"

    with pytest.raises(AssertionError, match="averaging is 'well' where one of doubly stochastic, row-stochastic, "):
        check_mixing(Loose())


@dataclasses.dataclass(frozen=True)
class Drawn(Participation):
    """Bernoulli, with something done to its schedules."""

    spoil: Any

    def draw(self, n: int, rounds: int, seed: int, *, histogram: Any = None, sizes: Any = None) -> Any:
        return self.spoil(n, rounds, seed)


def coin(n: int, rounds: int, seed: int, p: float = 0.5) -> Schedule:
    return Bernoulli(p).draw(n, rounds, seed)


def by_global(n: int, rounds: int, seed: int) -> Schedule:
    import numpy as np

    return Schedule.from_matrix(np.random.random((rounds, n)) < 0.5)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda n, rounds, seed: None, r"it draws what it is asked: draw gives a NoneType .*\(1 client, 0 rounds\)"),
        (
            lambda n, rounds, seed: coin(n, rounds + 1, seed),
            "it draws what it is asked: it draws 1 clients and 1 rounds",
        ),
        (by_global, "a seed decides: (it draws from a global generator|seed 1 gives another schedule)"),
        (
            lambda n, rounds, seed: coin(n, rounds, seed + rounds),
            r"a longer schedule begins with the shorter: \[.*\] are chosen, and \[.*\] where \d+ rounds are drawn",
        ),
        (
            lambda n, rounds, seed: dataclasses.replace(coin(n, rounds, seed), probabilities=[0.8] * n),
            r"its probabilities are its rates: client 0 is said to take part with probability 0.8, and does in 0.5",
        ),
    ],
)
def test_a_process_that_is_wrong_is_told(spoil: Any, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_participation(Drawn(spoil))


def test_processes_that_are_right_pass() -> None:
    check_participation(Drawn(coin))
    check_participation(Bernoulli((0.1, 0.5, 0.9)))
    check_participation(Bernoulli((0.1, 0.5, 0.9, 0.4)), clients=4)
    with pytest.raises(ValueError, match="refuses 1, 2, 3, 6, 20, 100 clients; say how many"):
        check_participation(Bernoulli((0.1, 0.5, 0.9, 0.4)))
    with pytest.raises(ValueError, match="Schedule is no participation"):
        check_participation(coin(3, 3, 1))


def small(**change: Any) -> Any:
    task = fedsim.federate("clusters", clients=3, model="logistic", seed=1)
    return dataclasses.replace(task, **change)


def test_tasks() -> None:
    check_task(small())
    check_task(fedsim.data.load("clusters"))
    task = small()
    rows = task.rows.clone()
    rows[int(task.first[1])] = rows[0]
    with pytest.raises(AssertionError, match=r"one owner: example \d+ is listed 2 times, by clients \[0, 1\]"):
        check_task(small(rows=rows))
    with pytest.raises(AssertionError, match=r"a loss is of its own example: the loss of example .* where alone it is"):
        check_task(small(outputs_of=lambda params, x, key: task.outputs_of(params, x - x.mean(0), key)))
    with pytest.raises(AssertionError, match=r"a key decides the losses: the loss\[0\] is .* drawn again"):
        check_task(small(outputs_of=lambda p, x, key: task.outputs_of(p, x, key) * torch.rand(len(x), 1)))
    first = task.first_of(3)
    with pytest.raises(AssertionError, match=r"a seed decides the first model: fresh\(3\)\[0\]"):
        check_task(small(first_of=lambda seed: {k: torch.randn_like(v) for k, v in first.items()}))
    with pytest.raises(AssertionError, match="training stays finite: the move of client 0 is not finite"):
        check_task(small(criterion=lambda out, y: (out.sum(1) * 0).sqrt()))
    with pytest.raises(ValueError, match="Halfway is no task"):
        check_task(Halfway())


# The command ---------------------------------------------------------------------------------------------------------

MINE = '''
from dataclasses import dataclass
from typing import NamedTuple, Any
from fedsim import ServerStrategy

class State(NamedTuple):
    x: Any

@dataclass(frozen=True)
class Right(ServerStrategy):
    """Adds up."""
    lr: float = 1.0
    def init(self, x, p, key=0):
        return State(x)
    def step(self, s, r):
        return State(s.x + self.lr * r.delta.sum(0))

@dataclass(frozen=True)
class Wrong(Right):
    """Divides by nobody."""
    def step(self, s, r):
        return State(s.x + r.delta.mean(0))

ready = Right(lr=0.5)

def task(clients=3):
    import fedsim
    return fedsim.federate("clusters", clients=clients, model="logistic")

def broken():
    return 1 / 0
'''


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = command("check", *arguments)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    code, out, err = ran(capsys, "mine.py:Right", "--set", "lr=0.5")
    assert (code, err) == (0, "")
    assert out.startswith("Right(lr = 0.5)\n")
    assert out.endswith("16 laws: 16 hold\n")
    assert ran(capsys, "mine.py:ready")[1] == out
    code, out, err = ran(capsys, "mine.py:Wrong")
    assert (code, err) == (1, "")
    assert "\n- an empty round survives: x[0] is nan, in round 0 with nobody present (1 client, 2 parameters)\n" in out
    code, out, err = ran(capsys, "mine.py:Wrong", "--json")
    assert code == 1
    assert json.loads(out)["failures"] == 2
    waivers = ("--waive", "an empty round survives=never empty", "--waive", "flower_gives_the_same=never empty")
    assert ran(capsys, "mine.py:Wrong", *waivers)[0] == 0
    assert ran(capsys, "mine.py:task", "--set", "clients=2")[0] == 0
    assert ran(capsys, "uniform", "--set", "k=2")[0] == 0
    assert ran(capsys, "pairwise")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["Fedavg"], "there is nothing called 'Fedavg' to check; did you mean 'FedAvg'?"),
        (["uniform"], 'uniform: missing key "k"'),
        (["mine.py:Right", "--set", "rl=1"], 'mine.py:Right: unknown key "rl"; known: lr'),
        (["mine.py:Right", "--set", "lr=fast"], 'mine.py:Right: lr must be a finite number, got "fast"'),
        (["mine.py:State"], "mine.py:State is not a dataclass; a strategy is a frozen dataclass of its settings"),
        (["mine.py:broken"], "mine.py:broken failed with ZeroDivisionError: division by zero"),
        (["mine.py:task", "--set", "n=2"], "mine.py:task has no setting 'n'"),
        (["mine.py:Nobody"], "has no 'Nobody'"),
        (["nowhere.py:Nobody"], "there is no file"),
        (["mine.py:Right", "--waive", "x"], "write LAW=REASON"),
        (["mine.py:Right", "--waive", "x=y"], "there is no law 'x' of a strategy"),
        (["mine.py:Right", "--clients", "3"], "--clients goes with a participation"),
        (["flwr:FedAvg"], "is a strategy of Flower"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    arguments: list[str], text: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    code, out, err = ran(capsys, *arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1
