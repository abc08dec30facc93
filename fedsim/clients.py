"""Who wins and who loses: pure functions of one number per client, as numpy arrays [n].

A decile is a tenth of the clients in some order. Inside deciles and groups every client counts the same, whatever its
size; only `metrics`' client_accuracy and client_loss weigh clients by the objective. Clients without an example to be
measured on (where examples are held out) are left out and counted, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.measure import PerClient
    from fedsim.participation import Schedule
    from fedsim.task import Task

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]
Table = dict[str, NDArray[Any]]

DISTINCT = 6  # so many different probabilities make groups of clients; more are no groups
LISTED = 100_000  # clients; more are not listed one by one in a run folder, or told of by a run elsewhere
LABELS = ("client", "group")  # columns of a table that name, and have no mean
MEASURED = ("loss", "accuracy", "tuned_loss", "tuned_accuracy")  # columns that only those measured have


# Parts of the clients ------------------------------------------------------------------------------------------------


def deciles(values: ArrayLike, parts: int = 10) -> list[Indices]:
    """The clients in ascending order of values [n], cut into tenths that are equally large to within one.

    The larger tenths come first; equal values are ordered by index. Fewer than ten clients give one part each.
    """
    order = np.argsort(np.asarray(values), kind="stable")
    return [part.astype(np.int64) for part in np.array_split(order, min(parts, len(order)))] if len(order) else []


def groups(labels: ArrayLike) -> dict[Any, Indices]:
    """The clients [n] of every label, labels ascending."""
    array = np.asarray(labels)
    return {label.item(): np.flatnonzero(array == label) for label in np.unique(array)}


def dominating(histogram: ArrayLike) -> Indices:
    """[n] the class that each client holds most of, the lowest of equals, from how often it holds each [n, C]."""
    found: Indices = np.asarray(histogram).argmax(1).astype(np.int64)
    return found


# Numbers that say how unequal it is ----------------------------------------------------------------------------------


def lowest(values: ArrayLike, part: float = 0.1) -> float:
    """The mean of the lowest tenth of values [n], rounded up to whole clients: the worst decile's accuracy. NaN without
    values, and where one of them is NaN."""
    array = np.sort(np.asarray(values, dtype=np.float64))
    if not len(array) or np.isnan(array[-1]):  # sorted, NaN is last
        return float("nan")
    return float(array[: int(np.ceil(part * len(array) - 1e-9))].mean())


def highest(values: ArrayLike, part: float = 0.1) -> float:
    """The mean of the highest tenth of values [n]: the worst decile's loss."""
    return -lowest(-np.asarray(values, dtype=np.float64), part)


def gini(values: ArrayLike) -> float:
    """Gini coefficient of values [n] >= 0: the mean difference of two clients as a share of twice the mean,
    sum_ij |v_i - v_j| / (2 n sum_i v_i).

    0: all have the same (also where all have nothing); 1 - 1/n: one has everything. NaN without values. Raises
    ValueError for a negative one.
    """
    array = np.sort(np.asarray(values, dtype=np.float64))
    if not len(array) or np.isnan(array[-1]):
        return float("nan")
    if array[0] < 0:
        raise ValueError(f"a Gini coefficient is of values of at least 0, got {array[0]:g}")
    n, total = len(array), array.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ array / (n * total)) if total > 0 else 0.0


def harm(own: Mapping[str, Any], alone: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What a client has of taking part, against training alone: of every measure, the share of the clients that are
    worse off by it ("worse"; as good is not worse) and the mean difference, ours minus alone ("difference").

    Both are tables of the same clients; accuracy is worse where it is lower, loss where it is higher.
    """
    found = {}
    there = measured(own) & measured(alone)
    for name, sign in (("accuracy", 1.0), ("loss", -1.0)):
        if name in own and name in alone and there.any():
            with np.errstate(invalid="ignore"):  # two infinite losses differ by NaN
                difference = np.asarray(own[name])[there] - np.asarray(alone[name])[there]
            worse = np.mean(sign * difference < 0) if not np.isnan(difference).any() else np.nan
            found[name] = {"worse": float(worse), "difference": float(difference.mean())}
    return found


# What a run tells ----------------------------------------------------------------------------------------------------


def metrics(figures: PerClient, p: ArrayLike, rates: ArrayLike) -> dict[str, float]:
    """The figures of one evaluation, from the objective's weights p [n] and the schedule's participation rates [n].

    client_accuracy and client_loss are means weighed by p; the worst decile is the worst tenth by that measure, the
    least decile the tenth that takes part least. Without classes there are losses only; a figure that nobody can be
    measured for is left out.
    """
    there = figures.measured.cpu().numpy()
    if not there.any():
        return {}
    weight = np.asarray(p, dtype=np.float64)[there]
    loss = figures.loss.cpu().numpy()[there]
    out = {"client_loss": float(weight @ loss / weight.sum()), "worst_decile_loss": highest(loss)}
    if figures.accuracy is not None:
        every = figures.accuracy.cpu().numpy()
        accuracy, least = every[there], deciles(rates)[0]
        out["client_accuracy"] = float(weight @ accuracy / weight.sum())
        out["worst_decile_accuracy"] = lowest(accuracy)
        out["client_accuracy_gini"] = gini(accuracy)
        if there[least].any():
            out["least_decile_accuracy"] = float(every[least][there[least]].mean())
    return out


def table(
    task: Task, schedule: Schedule, figures: PerClient, p: Tensor | None = None, shares: Tensor | None = None,
    tuned: PerClient | None = None,
) -> Table:  # fmt: skip
    """One line per client, as columns [n]: client, examples (trained on), held_out, rate (share of the schedule's
    rounds it took part in), probability (nominal, where the schedule has one), weight (the objective's, p [n] if it is
    given), effective_weight (from the bias ledger, shares [n] if they are given), group (its dominating class, where
    there are classes), loss, accuracy (where there are classes), and the last two once more of fine-tuned models, where
    these were measured: tuned_loss, tuned_accuracy.

    More columns may be added: numbers are averaged by `summary`.
    """
    held = np.zeros(task.n, dtype=np.int64) if task.held is None else task.held.size.cpu().numpy()
    out: Table = {
        "client": np.arange(task.n),
        "examples": task.size.cpu().numpy(),
        "held_out": held,
        "rate": np.asarray(schedule.rates(), dtype=np.float64),
    }
    if schedule.probabilities is not None:
        out["probability"] = np.asarray(schedule.probabilities, dtype=np.float64)
    if p is not None:
        out["weight"] = p.cpu().numpy()
    if shares is not None:
        out["effective_weight"] = shares.cpu().numpy()
    if task.classes:
        out["group"] = dominating(task.histogram())
    out["loss"] = figures.loss.cpu().numpy()
    if figures.accuracy is not None:
        out["accuracy"] = figures.accuracy.cpu().numpy()
    if tuned is not None:
        out["tuned_loss"] = tuned.loss.cpu().numpy()
        if tuned.accuracy is not None:
            out["tuned_accuracy"] = tuned.accuracy.cpu().numpy()
    return out


def measured(table: Mapping[str, Any]) -> NDArray[np.bool_]:
    """[n] whether a client has examples to be measured on."""
    held = np.asarray(table["held_out"])
    return held > 0 if held.any() else np.ones(len(held), dtype=bool)


def summary(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table in short: how unequal it is, and the means of all columns by decile of participation rate, by decile of
    size (held-out examples included), by group, and by nominal probability where that takes at most six values."""
    there, n = measured(table), len(table["client"])
    examples = np.asarray(table["examples"]) + np.asarray(table["held_out"])
    out: dict[str, Any] = {
        "on": "held-out" if np.any(table["held_out"]) else "training",
        "clients": n,
        "unmeasured": int((~there).sum()),
        "listed": n <= LISTED,
    }
    loss = np.asarray(table["loss"])[there]
    out |= {"loss_mean": _mean(loss), "loss_std": _std(loss), "worst_decile_loss": highest(loss)}
    by_rate = deciles(table["rate"])
    if "accuracy" in table:
        accuracy = np.asarray(table["accuracy"])
        out |= {
            "accuracy_mean": _mean(accuracy[there]),
            "accuracy_std": _std(accuracy[there]),
            "accuracy_gini": gini(accuracy[there]),
            "worst_decile_accuracy": lowest(accuracy[there]),
            "least_decile_accuracy": _mean(accuracy[by_rate[0]][there[by_rate[0]]]),
        }
    out["by_participation"] = _means(table, there, by_rate)
    out["by_size"] = _means(table, there, deciles(examples))
    if "group" in table:
        out["by_group"] = _labelled("group", table, there, groups(table["group"]))
    if "probability" in table and len(np.unique(table["probability"])) <= DISTINCT:
        out["by_probability"] = _labelled("probability", table, there, groups(table["probability"]))
    return out


def _means(table: Mapping[str, Any], there: NDArray[np.bool_], parts: Sequence[Indices]) -> list[dict[str, Any]]:
    """For each part of the clients: how many, how many of them measured, and the means of the columns. What is measured
    is averaged over those who are, the rest over all."""
    found = []
    for part in parts:
        line: dict[str, Any] = {"clients": len(part), "measured": int(there[part].sum())}
        for name, column in table.items():
            if name not in LABELS:
                who = part[there[part]] if name in MEASURED else part
                line[name] = _mean(np.asarray(column)[who])
        found.append(line)
    return found


def _labelled(
    name: str, table: Mapping[str, Any], there: NDArray[np.bool_], parts: Mapping[Any, Indices]
) -> list[dict[str, Any]]:
    lines = _means({key: column for key, column in table.items() if key != name}, there, list(parts.values()))
    return [{name: label, **line} for label, line in zip(parts, lines, strict=True)]


def _mean(values: Numbers) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _std(values: Numbers) -> float:
    """Population standard deviation: these are all the clients there are. NaN where one of them is not finite."""
    return float(np.std(values)) if len(values) and np.isfinite(values).all() else float("nan")
