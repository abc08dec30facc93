"""What goes together: combinations that obey the laws of their parts, that are refused, and that are warned of."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import F64, Honest, close, everyone, last, models
from torch import Tensor

from fedsim import LocalSGD, Strategy, federate, simulate
from fedsim.cli import main
from fedsim.experiment import parse
from fedsim.participation import Cyclic, Everyone, PartialWork, Selected, Uniform
from fedsim.strategies import (
    MIFA,
    SCAFFOLD,
    SCAFFOLDM,
    FedAdam,
    FedAU,
    FedAvg,
    FedCM,
    FedDyn,
    FedNova,
    FedProx,
    FedStale,
    MimeLite,
)
from fedsim.strategy import CombinationWarning, Round, scrutinise
from fedsim.weights import Known

A4 = torch.tensor([[1.0], [0.5], [2.0], [1.5]], dtype=F64)
B4 = torch.tensor([[0.0], [10.0], [-4.0], [7.0]], dtype=F64)
PLAIN, HEAVY = LocalSGD(steps=2), LocalSGD(steps=2, momentum=0.9)
CLIPPED = LocalSGD(steps=2, clip=1.0)
BY_SIZE = Selected(Everyone(), k=3, by="size")

# Combinations that do what their parts do ----------------------------------------------------------------------------


def cyclic(rounds: int) -> list[list[int]]:
    """Who is there when of four clients that come and go for ten rounds at a time."""
    schedule = Cyclic((0.5, 0.3, 0.6, 0.4), length=10).draw(4, rounds, 0)
    return [row.chosen.tolist() for row in schedule]


@pytest.mark.parametrize("strategy", [SCAFFOLD(lr=0.2), SCAFFOLDM(lr=0.2, beta=0.5)], ids=repr)
def test_scaffold_under_cyclic_presence_reaches_the_true_optimum(strategy: Strategy) -> None:
    """Control variates do not ask when a client was there: at 1.5 nobody moves x, however they come."""
    local = LocalSGD(lr=0.02, steps=5, batch=None)
    presence = cyclic(1500)
    assert len({tuple(who) for who in presence}) > 4
    state = last(strategy, Honest(A4, B4), presence, n=4, x=torch.zeros(1, dtype=F64), local=local)
    assert state.x.item() == pytest.approx(1.5, abs=1e-6)
    biased = last(FedAvg(0.2), Honest(A4, B4), presence, n=4, x=torch.zeros(1, dtype=F64), local=local)
    assert abs(biased.x.item() - 1.5) > 0.1


def test_fedau_weights_under_server_adam() -> None:
    """FedAdam is fed what FedAU would move by: p_i ω_i Δ_i, counted by hand."""
    strategy = FedAdam(FedAU(), lr=0.1, tau=1e-2)
    presence = [[0, 1, 2, 3], [1], [0], [], [1, 2], [3]]
    x, m, v = (torch.zeros(1, dtype=F64) for _ in range(3))
    heard: list[list[int]] = [[] for _ in range(4)]
    for t, who in enumerate(presence):
        omega = [(mine[-1] + 1) / len(mine) if mine else 1.0 for mine in heard]
        delta = torch.zeros(1, dtype=F64)
        for i in who:
            y = x.clone()
            for _ in range(3):
                y = y - 0.05 * A4[i] * (y - B4[i])
            delta = delta + omega[i] / 4 * (y - x)
            heard[i].append(t)
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        x = x + 0.1 * m / (v.sqrt() + 1e-2)
        close(models(strategy, Honest(A4, B4), presence[: t + 1], n=4, x=torch.zeros(1, dtype=F64))[-1], x, 1e-12)


def test_fedprox_stragglers_under_fedstale() -> None:
    """Dropped stragglers leave their last whole update in FedStale's memory; kept ones replace it."""
    task = federate("quadratic", clients=4, model="scalar", dtype=F64)
    schedule = PartialWork(Everyone(), stragglers=0.5, low=0.2, high=0.4).draw(4, 12, 3)
    local = LocalSGD(lr=0.05, steps=5, batch=None)
    inner = FedStale(beta=0.7, weights=Known((0.5,) * 4))
    h: dict[str, list[Tensor]] = {}
    for stragglers in ("drop", "keep"):
        strategy = FedProx(inner, mu=0.3, stragglers=stragglers)  # type: ignore[arg-type]
        h[stragglers] = []
        before = torch.zeros(4, 1, dtype=F64)
        for step in simulate(task, strategy, schedule, local):
            now, whole = step.state.inner.h.dense().clone(), schedule[step.t].effort == 1
            assert whole.sum() == 2
            assert torch.equal(now[whole], step.round.delta[whole])
            assert torch.equal(now[~whole], before[~whole] if stragglers == "drop" else step.round.delta[~whole])
            h[stragglers].append(now)
            before = now
    assert not torch.allclose(h["drop"][-1], h["keep"][-1])


def test_momentum_and_server_adam_leave_scaffolds_optimum_where_it_is() -> None:
    strategy = FedAdam(SCAFFOLDM(beta=0.5), lr=0.05, beta1=0.5)
    local = LocalSGD(lr=0.05, steps=5, batch=None)
    state = last(strategy, Honest(A4, B4), everyone(4, 800), n=4, x=torch.zeros(1, dtype=F64), local=local)
    assert state.x.item() == pytest.approx(1.5, abs=1e-4)


# What is refused, and what is warned of ------------------------------------------------------------------------------

REFUSED: list[tuple[Strategy, LocalSGD, str]] = [
    (SCAFFOLD(), CLIPPED, "SCAFFOLD, option II, needs delta = .* leave out clip"),
    (SCAFFOLDM(), CLIPPED, "SCAFFOLDM needs delta"),
    (FedCM(), CLIPPED, "FedCM needs delta"),
    (FedNova(), CLIPPED, "FedNova needs delta"),
    (FedProx(FedAdam(SCAFFOLD())), CLIPPED, "SCAFFOLD, option II, needs delta"),
]
WARNED: list[tuple[Strategy, LocalSGD, Any, str]] = [
    (SCAFFOLD(), HEAVY, None, "SCAFFOLD's theorem is of plain local steps.* set momentum = 0, or use SCAFFOLDM"),
    (SCAFFOLD(option="I"), HEAVY, None, "SCAFFOLD's theorem"),
    (FedAdam(FedProx(SCAFFOLD())), HEAVY, None, "SCAFFOLD's theorem"),
    (SCAFFOLDM(), HEAVY, None, "SCAFFOLDM has momentum already"),
    (FedCM(), HEAVY, None, "FedCM has momentum already"),
    (MimeLite(), HEAVY, None, "MimeLite has momentum already"),
    (FedProx(FedDyn()), PLAIN, None, "FedDyn learns its gradients from its own pull alone"),
    (FedProx(FedAdam(FedDyn())), PLAIN, None, "FedDyn learns its gradients from its own pull alone"),
    (
        FedProx(scheme="paper"),
        PLAIN,
        Uniform(3),
        'scheme "paper" counts everyone alike because the server picks by size',
    ),
    (FedProx(scheme="code"), PLAIN, PartialWork(BY_SIZE), "weighs by size who was picked by size already"),
]
FINE: list[tuple[Strategy, LocalSGD, Any]] = [
    (SCAFFOLD(), PLAIN, None),
    (SCAFFOLD(option="I"), CLIPPED, None),
    (FedNova(), HEAVY, None),  # ‖a_i‖₁ knows of it
    (MimeLite(), CLIPPED, None),
    (FedDyn(), PLAIN, None),
    (FedProx(FedDyn(), mu=0.0, stragglers="drop"), PLAIN, None),
    (FedProx(scheme="paper"), PLAIN, PartialWork(BY_SIZE)),
    (FedProx(scheme="code"), PLAIN, Uniform(3)),
    (FedProx(), PLAIN, BY_SIZE),
    (FedAdam(MIFA()), HEAVY, None),
]


@pytest.mark.parametrize(("strategy", "local", "words"), REFUSED, ids=[repr(each[0]) for each in REFUSED])
def test_refused(strategy: Strategy, local: LocalSGD, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scrutinise(strategy, local)


@pytest.mark.parametrize(
    ("strategy", "local", "participation", "words"), WARNED, ids=[repr(each[0]) for each in WARNED]
)
def test_warned(strategy: Strategy, local: LocalSGD, participation: Any, words: str) -> None:
    with pytest.warns(CombinationWarning, match=words):
        scrutinise(strategy, local, participation)


@pytest.mark.parametrize(("strategy", "local", "participation"), FINE, ids=[repr(each[0]) for each in FINE])
def test_nothing_speaks_against_it(strategy: Strategy, local: LocalSGD, participation: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scrutinise(strategy, local, participation)


def test_simulate_says_it_before_the_first_round() -> None:
    task = federate("quadratic", clients=4, model="scalar")
    schedule = Everyone().draw(4, 3, 0)
    with pytest.raises(ValueError, match="leave out clip"):
        next(simulate(task, SCAFFOLD(), schedule, CLIPPED))
    with pytest.warns(CombinationWarning, match="theorem"):
        next(simulate(task, SCAFFOLD(), schedule, LocalSGD(steps=2, lr=0.01, momentum=0.5)))


def experiment(**changes: Any) -> dict[str, Any]:
    return {
        "task": {"clients": 4}, "local": {"steps": 1}, "run": {"rounds": 1, "threads": 1},
        "strategy": [{"name": "FedAvg"}, {"name": "SCAFFOLD", **changes}],
    }  # fmt: skip


def test_an_experiment_says_it_when_it_is_read() -> None:
    with pytest.raises(ValueError, match=r"^SCAFFOLD: SCAFFOLD, option II, needs delta .* leave out clip$") as refusal:
        parse(experiment(local={"clip": 1.0}))
    assert refusal.value.place == ("strategy", 1)  # type: ignore[attr-defined]
    with pytest.warns(CombinationWarning, match=r"^mine: SCAFFOLD's theorem"):
        parse(experiment(local={"momentum": 0.5}, label="mine"))
    table = experiment()
    table["strategy"][1] = {"name": "FedProx", "scheme": "paper"}
    with pytest.warns(CombinationWarning, match=r"^FedProx: scheme \"paper\""):
        parse(table)


@pytest.mark.parametrize("quiet", [False, True], ids=["loud", "quiet"])
def test_the_command_says_it_on_a_line_and_goes_on(
    quiet: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.report.write_figures", lambda folder: [])  # they take their time
    monkeypatch.setattr("fedsim.report.page.write_page", lambda folder: None)
    file = tmp_path / "heavy.toml"
    file.write_text(
        '[task]\nclients = 4\n[local]\nsteps = 1\nlr = 0.01\nmomentum = 0.5\n[[strategy]]\nname = "SCAFFOLD"\n'
        "[run]\nrounds = 1\nthreads = 1\n"
    )
    with pytest.raises(SystemExit) as end:
        main(["run", str(file), "--out", str(tmp_path / "run"), *["--quiet"] * quiet])
    assert end.value.code == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "theorem" in line]
    assert len(said) == (not quiet)
    assert all(
        line.startswith("fedsim: warning: SCAFFOLD: SCAFFOLD's theorem is of plain local steps;") for line in said
    )


def test_only_leaves_those_it_keeps() -> None:
    """Every number per client of a round goes with its client."""
    k = torch.arange(3)
    r = Round(
        0, who=k, start=k[:, None], delta=k[:, None] + 1.0, span=k + 2.0, loss=k + 3.0, available=torch.arange(9),
        lr=0.1, age=k + 4, told={"loss-at-start": k + 5}, chance=k / 8, effort=k / 2,
    )  # fmt: skip
    left = r.only(torch.tensor([True, False, True]))
    keep = torch.tensor([0, 2])
    for name in ("who", "start", "delta", "span", "loss", "age", "chance", "effort"):
        assert torch.equal(getattr(left, name), getattr(r, name)[keep]), name
    assert torch.equal(left.told["loss-at-start"], torch.tensor([5, 7]))
    assert (left.t, left.lr) == (0, 0.1)
    assert left.available is r.available
