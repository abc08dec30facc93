"""The question: is the strategy that is best under uniform sampling the best when presence follows the clock and data?

Logistic regression on Fashion-MNIST, 100 clients with Dirichlet(0.1) labels who all count the same, 5 local steps of 16
examples, 480 rounds (rank_reversal.toml). Two settings that differ in nothing but who is there when:

    uniform   the server picks 10 of the 100 clients, all equally likely, afresh every round
    diurnal   clients come by day and not by night: client i is there in round t with probability
              p_i (1 + sin(2πt/48))/2, where p_i follows the popularity of the labels it holds (Wang & Ji's,
              ICLR 2024), floor 0.02; `mean` is such that 10 clients are there in a round, over rounds and seeds
              (it came to 10.07, by seed 8.5 to 11.9)

Strategies: FedAvg and FedAdam, which take those present for all; FedAU, which weighs by how rarely a client comes;
FedStale, FedVARP and MIFA, which remember the absent; FedAWE, which echoes the moves of the rounds missed. Not
GeneralizedFedAvg: it moves by jumps once a cycle, and when it is measured would decide.

In each setting each strategy is tuned with the same budget ([tune]: 20 points, 5 local learning rates x 4 values of a
setting of its own, all to round 21, the best 5 to 84, the best 2 to 336, judged on held-out training examples with
seeds 103 and 104); the winners meet ten fresh seeds, 11 to 20. Compared is test accuracy, the mean over the evaluations
of the last fifth of the rounds; differences are paired by seed, with 95 % intervals (Student t; bootstrap beside it).
Sizes were chosen with seeds 901 to 905, used for nothing else. The claims and their rules stood before any other seed
was run:

    1  the best changes     the best mean under uniform sampling is clearly ahead of the best mean under diurnal
                            presence there, and clearly behind it here (clearly: the interval leaves 0 out). "does not
                            hold" if one strategy has the best mean in both settings, else "not clear"
    2  ranks do not carry   Kendall's τ between the two settings' means lies below 0.5, its whole interval (seeds
       over                 resampled); "does not hold" if all of it lies above, else "not clear"
    3  pairing is worth it  in both settings the median pair would need twice as many independent seeds, or more, for as
                            narrow an interval (`paired.Difference.worth`)

Beside claim 1 all pairs are listed that change sides with both intervals clear, and those that do when Holm's method
is applied to all 42 comparisons.

What came out:

| strategy | uniform: accuracy, % | place | diurnal: accuracy, % | place |
| --- | --- | --- | --- | --- |
| MIFA | 82.7 [82.4, 83.0] | 1 | 81.5 [80.8, 82.1] | 1–2 |
| FedStale | 82.2 [82.1, 82.3] | 2–3 | 77.7 [76.5, 78.9] | 4–5 |
| FedVARP | 81.8 [81.4, 82.3] | 2–5 | 80.7 [80.1, 81.2] | 1–2 |
| FedAvg | 81.4 [81.1, 81.8] | 3–5 | 75.9 [75.0, 76.8] | 5–7 |
| FedAU | 81.3 [81.0, 81.7] | 3–5 | 79.2 [78.2, 80.3] | 3 |
| FedAdam | 81.0 [80.7, 81.4] | 6 | 77.0 [75.8, 78.3] | 4–6 |
| FedAWE | 78.6 [78.3, 78.9] | 7 | 75.7 [74.5, 76.9] | 6–7 |

1 does not hold: MIFA has the best mean in both settings. Under diurnal presence FedVARP comes so close that it is not
clear (0.8 points, [-0.03, 1.64]). Behind them places change: FedStale is ahead of FedAU under uniform sampling by 0.8
[0.5, 1.2] and behind it by 1.5 [0.8, 2.2] under diurnal presence, by Holm too; no other pair changes sides clearly.
2 is not clear: τ = 0.62 [0.43, 0.71]. 3 does not hold: the median pair's ten seeds are worth 14.4 and 13.5 independent
ones (from 7 to 344): here strategies are seldom unlucky together.

This is the second run. The first (tuned with seeds 101 and 102, compared with 1 to 10) had grids of 15 points, and
seven of its 14 winners lay at an edge of theirs; so the grids were widened and all was run again, once, with seeds that
nothing had been seen of. One winner is at an edge now (MIFA's server learning rate under diurnal presence), but the
20 points take a rung more, so each strategy had 2478 rounds to be tuned in, not 4536. The first said: 1 does not hold,
MIFA led both settings, clearly ahead of all others; one pair changed sides, FedAdam > FedAU, by Holm too. 2 not clear,
τ = 0.43 [0.33, 0.71]. 3 does not hold: the median pair was worth 13.5 and 12.3. So the three verdicts are the same
twice; which pair changes sides is not (FedStale and FedAdam were tuned to other settings).

    python benchmarks/rank_reversal.py --runs FOLDER    # tunes and runs both settings (about 17 minutes)
    python benchmarks/rank_reversal.py table            # table, verdicts and figure from the numbers there are

Fashion-MNIST is sought in FEDSIM_DATA. Numbers: benchmarks/results/rank_reversal.json (the first run's:
rank_reversal_first.json); the diurnal run's report: benchmarks/results/rank_reversal/report.html.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import keyed, merit, paired, record
from fedsim.files import write_json
from fedsim.report import style

FILE = Path(__file__).with_name("rank_reversal.toml")
RESULTS = Path(__file__).parent / "results"
CHANGES = {"uniform": ['participation={name="uniform", k=10}'], "diurnal": []}  # what is set, by setting
SETTINGS = tuple(CHANGES)
METRICS = ("test_accuracy", "worst_class_accuracy", "test_loss")  # the claims are about the first
RESAMPLES = 10_000
Values = dict[str, dict[int, float]]  # strategy -> seed -> value
Late = dict[str, Values]  # setting -> values


def run(setting: str, folder: Path, changes: Sequence[str] = ()) -> float:
    """`fedsim run` of a setting into a folder that is not there yet; the seconds it took."""
    from fedsim.cli import main

    began = time.perf_counter()
    said = [each for change in (*CHANGES[setting], *changes) for each in ("--set", change)]
    try:
        main(["run", str(FILE), *said, "--out", str(folder), "--quiet"])
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"{setting}: fedsim run ended with code {end.code}") from end
    return time.perf_counter() - began


def gathered(folder: Path) -> dict[str, Any]:
    """What a run folder says: late means by seed, how the strategies were tuned, how many clients were there."""
    from fedsim.participation import Schedule

    measured = record.read_metrics(folder)
    rounds = max(one.round for one in measured)
    late: dict[str, Values] = {}
    for metric in METRICS:
        for (label, seed), curve in merit.curves(measured, metric).items():
            late.setdefault(metric, {}).setdefault(label, {})[seed] = round(merit.late_mean(curve, rounds), 6)
    tuned = record.read_tuning(folder)
    assert tuned is not None  # the experiment has a table [tune]
    present = [Schedule.load(path).rates().sum() for path in sorted(folder.glob("schedule-seed*.npz"))]
    return {
        "clients a round": {"mean": rounded(np.mean(present)), "least": rounded(min(present)),
                            "most": rounded(max(present))},
        "tuning": {
            each["label"]: {key: each[key] for key in ("winner", "value", "edge", "used", "allowed")}
            for each in tuned["strategies"]
        },
        "warnings": tuned["warnings"],
        "late": late,
    }  # fmt: skip


# What the numbers say ------------------------------------------------------------------------------------------------


def best(values: Values, higher: bool = True) -> str:
    """The strategy with the best mean."""
    means = {label: statistics.mean(each.values()) for label, each in values.items()}
    return max(means, key=lambda label: means[label] if higher else -means[label])


def difference(values: Values, first: str, second: str) -> paired.Difference:
    """First minus second, paired by seed."""
    return paired.difference(first, second, METRICS[0], values[first], values[second])


def changed(late: Late) -> dict[str, Any]:
    """Claim 1."""
    leaders = {setting: best(late[setting]) for setting in SETTINGS}
    here, there = (leaders[setting] for setting in SETTINGS)
    if here == there:
        return {"verdict": "does not hold", "best": leaders}
    found = {setting: difference(late[setting], here, there) for setting in SETTINGS}
    ahead, behind = (found[setting] for setting in SETTINGS)
    verdict = "holds" if ahead.low > 0 and behind.high < 0 else "not clear"
    return {"verdict": verdict, "best": leaders, f"{here} − {there}": {s: shown(d) for s, d in found.items()}}


def sides(late: Late) -> dict[str, list[str]]:
    """Which pairs change sides with both intervals clear, which keep them, which are open in a setting; and which
    change sides clearly after Holm's correction for all pairs of both settings."""
    pairs = {setting: paired.differences(late[setting], METRICS[0]) for setting in SETTINGS}
    p = iter(paired.holm([one.p for found in pairs.values() for one in found]))
    sure = {setting: [next(p) < 0.05 for _ in found] for setting, found in pairs.items()}
    out: dict[str, list[str]] = {"changed": [], "changed, by Holm": [], "kept": [], "open": []}
    here, there = SETTINGS
    for i, (a, b) in enumerate(zip(pairs[here], pairs[there], strict=True)):
        ahead, other = (a.first, a.second) if a.mean > 0 else (a.second, a.first)
        name = f"{ahead} > {other}"  # under uniform sampling
        if not (a.clear and b.clear):
            out["open"].append(name)
        elif (a.mean > 0) == (b.mean > 0):
            out["kept"].append(name)
        else:
            out["changed"].append(name)
            if sure[here][i] and sure[there][i]:
                out["changed, by Holm"].append(name)
    return out


def tau(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's τ [...] between x and y [..., m], which have no ties: pairs in the same order less pairs in opposite
    order, as a share of all."""
    i, j = np.triu_indices(x.shape[-1], 1)
    return np.asarray((np.sign(x[..., i] - x[..., j]) * np.sign(y[..., i] - y[..., j])).mean(-1))


def carried(late: Late) -> dict[str, Any]:
    """Claim 2. A resampled seed is resampled in both settings."""
    labels = list(late[SETTINGS[0]])
    seeds = sorted(late[SETTINGS[0]][labels[0]])
    x, y = (np.array([[late[setting][label][seed] for label in labels] for seed in seeds]) for setting in SETTINGS)
    generator = np.random.default_rng(keyed.seed(0, "rank reversal"))
    drawn = generator.integers(len(seeds), size=(RESAMPLES, len(seeds)))
    low, high = np.quantile(tau(x[drawn].mean(1), y[drawn].mean(1)), [0.025, 0.975])
    verdict = "holds" if high < 0.5 else "does not hold" if low > 0.5 else "not clear"
    found = {"tau": tau(x.mean(0), y.mean(0)), "low": low, "high": high}
    return {"verdict": verdict} | {name: rounded(value) for name, value in found.items()}


def worth(late: Late) -> dict[str, Any]:
    """Claim 3: how many independent seeds the paired ones are worth, over the pairs of a setting."""
    out: dict[str, Any] = {"verdict": "holds"}
    for setting in SETTINGS:
        pairs = paired.differences(late[setting], METRICS[0])
        seeds = len(pairs[0].seeds)
        found = [one.worth for one in pairs]
        quartiles = dict(zip(("lower quartile", "median", "upper quartile"), np.quantile(found, [0.25, 0.5, 0.75]),
                             strict=True))  # fmt: skip
        spread = {"least": min(found)} | quartiles | {"most": max(found)}
        out[setting] = {"seeds": seeds} | {name: rounded(value) for name, value in spread.items()}
        if spread["median"] < 2 * seeds:
            out["verdict"] = "does not hold"
    return out


def concluded(late: Late) -> dict[str, Any]:
    """What holds of the claims, from the late means of the first metric."""
    return {
        "1 the best changes": changed(late) | {"pairs": sides(late)},
        "2 ranks do not carry over": carried(late),
        "3 pairing is worth it": worth(late),
    }


def rounded(value: Any) -> float:
    """To five digits."""
    return float(f"{float(value):.5g}")


def shown(one: paired.Difference) -> dict[str, Any]:
    """A difference as the results file has it."""
    found = one._asdict() | {"seeds": len(one.seeds)}
    del found["metric"]
    return {name: rounded(value) if isinstance(value, float) else value for name, value in found.items()}


def analysed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Standings and pairs of every setting and metric, added to what was gathered."""
    out = {}
    for setting, found in settings.items():
        standings, pairs = {}, {}
        for metric, values in found["late"].items():
            standings[metric] = [
                {name: rounded(value) if isinstance(value, float) else value for name, value in one._asdict().items()}
                for one in paired.standings(values, metric, merit.higher_is_better(metric))
            ]
            pairs[metric] = [shown(one) for one in paired.differences(values, metric)]
        out[setting] = found | {"standings": standings, "pairs": pairs}
    return out


# What is made of them ------------------------------------------------------------------------------------------------


def of_first(settings: Mapping[str, Any]) -> Late:
    """The late means of the metric that the claims are about; seeds are numbers again, which JSON makes text of."""
    return {
        setting: {label: {int(seed): value for seed, value in each.items()}
                  for label, each in settings[setting]["late"][METRICS[0]].items()}
        for setting in SETTINGS
    }  # fmt: skip


def table(settings: Mapping[str, Any]) -> str:
    """The two rankings in Markdown, in the order of the first."""
    rows = {
        setting: {one["strategy"]: one for one in settings[setting]["standings"][METRICS[0]]} for setting in SETTINGS
    }
    lines = ["| strategy | uniform: accuracy, % | place | diurnal: accuracy, % | place |", "|" + " --- |" * 5]
    for label in rows[SETTINGS[0]]:
        cells = [label]
        for setting in SETTINGS:
            one = rows[setting][label]
            cells += ["{:.1f} [{:.1f}, {:.1f}]".format(*(100 * one[name] for name in ("mean", "low", "high"))),
                      place(one)]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def place(one: Mapping[str, Any]) -> str:
    """ "2" or "2–4"."""
    return f"{one['best']}" if one["best"] == one["worst"] else f"{one['best']}–{one['worst']}"


def commit() -> str:
    """The commit of the checkout, "+" if the package, this script or its experiment is not what it has."""
    here = Path(__file__)
    git = functools.partial(subprocess.run, cwd=here.parent, capture_output=True, text=True, check=False)
    changed = git(["git", "diff", "--quiet", "HEAD", "--", "../fedsim", here.name, FILE.name]).returncode
    return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + ("+" if changed else "")


def origin() -> dict[str, Any]:
    """Where the numbers are from."""
    packages = ("torch", "numpy", "scipy")
    return {
        "command": "python benchmarks/rank_reversal.py --runs FOLDER", "commit": commit(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "processor": platform.machine(), "threads": 1,
    }  # fmt: skip


def centred(values: Values) -> dict[str, tuple[float, ...]]:
    """Mean and interval of every strategy once what all have in common in a seed is taken out of it: mean (of the
    strategy), low, high."""
    labels = list(values)
    table = np.array([[values[label][seed] for seed in values[labels[0]]] for label in labels])
    apart = table - table.mean(0) + table.mean()
    return {label: tuple(map(float, found)) for label, found in zip(labels, map(paired.interval, apart), strict=True)}


def figure(late: Late, path: Path) -> None:
    """The strategies' means on either side, each side on a scale of its own, and lines between them."""
    import matplotlib as mpl

    pens = style.pens(list(late[SETTINGS[0]]))
    with mpl.rc_context(style.RC):
        drawn = style.figure(6.6, 4.6)
        left = drawn.subplots()
        sides = {"uniform": left, "diurnal": left.twinx()}
        ends: dict[str, list[tuple[float, float]]] = {label: [] for label in pens}
        for at, (setting, axes) in enumerate(sides.items()):
            found = {label: tuple(100 * v for v in each) for label, each in centred(late[setting]).items()}
            least, most = min(f[1] for f in found.values()), max(f[2] for f in found.values())
            pad = 0.06 * (most - least)
            axes.set_ylim(least - pad, most + pad)
            axes.set_ylabel("test accuracy, %")
            axes.grid(axis="y", visible=False)
            places = style.spread(
                sorted((each[0] - least + pad) / (most - least + 2 * pad) for each in found.values()), 0.042
            )
            for label, y in zip(sorted(found, key=lambda one: found[one][0]), places, strict=True):
                mean, low, high = found[label]
                colour = pens[label].colour
                share = [(value - least + pad) / (most - least + 2 * pad) for value in (mean, low, high)]
                x = at + (0.012 if at else -0.012) * (list(pens).index(label) - 3)
                left.plot([x, x], share[1:], color=colour, linewidth=2.2, alpha=0.5, transform=unit(left))
                left.plot(x, share[0], "o", color=colour, markersize=5.5, mec="white", transform=unit(left), zorder=3)
                ends[label].append((x, share[0]))
                left.annotate(
                    f"{label}  {mean:.1f}" if not at else f"{mean:.1f}  {label}",
                    xy=(x, share[0]), xycoords=unit(left), xytext=(-0.1 if not at else 1.1, y), textcoords=unit(left),
                    color=colour, ha="left" if at else "right", va="center", fontsize=8.5,
                    arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
                )  # fmt: skip
        for label, points in ends.items():
            left.plot(*zip(*points, strict=True), color=pens[label].colour, linewidth=1.4, transform=unit(left))
        left.set_xlim(-0.75, 1.75)
        left.set_xticks([0, 1], ["uniform:\n10 of 100 at random", "diurnal:\nby day, by label"])
        left.set_xlabel("bars: 95 % intervals, once what all strategies share in a seed is taken out", fontsize=8)
        left.set_title("The same strategies, two kinds of presence; each side has its own scale")
        drawn.savefig(path, dpi=150, metadata={"Software": None})


def unit(axes: Any) -> Any:
    """x in data, y as a share of the axes."""
    return axes.get_xaxis_transform()


def write(result: Mapping[str, Any]) -> None:
    """The results file and the picture."""
    write_json(RESULTS / "rank_reversal.json", result)
    figure(of_first(result["settings"]), RESULTS / "rank_reversal.png")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--runs", type=Path, help="where the two run folders go")
    given = parser.parse_args(argv)
    path = RESULTS / "rank_reversal.json"
    if given.what == "run":
        if given.runs is None:
            parser.error("--runs FOLDER says where the two run folders go")
        settings: dict[str, Any] = {}
        for setting in SETTINGS:
            seconds = run(setting, given.runs / setting)
            settings[setting] = {"seconds": round(seconds, 1)} | gathered(given.runs / setting)
        settings = analysed(settings)
        write(origin() | {"settings": settings, "verdicts": concluded(of_first(settings))})
        (RESULTS / "rank_reversal").mkdir(exist_ok=True)
        shutil.copy(given.runs / "diurnal" / "report.html", RESULTS / "rank_reversal" / "report.html")
    else:
        figure(of_first(json.loads(path.read_text())["settings"]), RESULTS / "rank_reversal.png")
    result = json.loads(path.read_text())
    print(table(result["settings"]))
    print(json.dumps(result["verdicts"], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
