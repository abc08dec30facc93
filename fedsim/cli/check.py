"""fedsim check"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.base import app

if TYPE_CHECKING:
    from fedsim.testing.report import Report

FAMILIES = ("strategy", "mixing", "participation", "data")


@app.command(
    help="Try the laws that fedsim's own strategies obey on yours: shapes, precision, device, empty rounds, NaN, "
    "writing where it must not, relabelled clients, absent clients' data, state that is saved, loaded and gone on "
    "from, Flower's messages, and what it says that it becomes (reduces). Also for a mixing, a participation, a "
    "function that gives a task, and a data set. A law that breaks is one sentence with the smallest example found. "
    "Exit code 1 if one does.",
    short_help="Try the laws of strategies on yours, and say where one breaks.",
)
def check(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="package.module:Name, path/file.py:Name, or a name of fedsim list."),
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of it: share=0.3. Repeatable.")
    ] = None,
    waive: Annotated[
        list[str] | None,
        typer.Option(metavar="LAW=REASON", help="A law that does not hold, by design, and why. Repeatable."),
    ] = None,
    clients: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of a participation: how many clients it is for.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where data files are sought. Default: FEDSIM_DATA, else ./data."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome of every law as JSON.")] = False,
) -> None:
    import json

    from fedsim import testing
    from fedsim.experiment.overrides import override
    from fedsim.experiment.settings import Mistake

    settings: dict[str, Any] = {}
    try:
        for change in set_ or ():
            override(settings, change)
        thing = found(name, settings, data_dir)
    except Mistake as mistake:
        raise ValueError(mistake.text if name in mistake.text else f"{name}: {mistake.text}") from mistake
    if clients is not None and not hasattr(thing, "draw"):
        raise ValueError("--clients goes with a participation")
    for variable, value in (("FLWR_TELEMETRY_ENABLED", "0"), ("FLWR_DISABLE_UPDATE_CHECK", "1")):
        os.environ.setdefault(variable, value)  # read when flwr is imported
    report = testing.examine(thing, clients=clients, waived=waivers(waive or ()))
    if json_:
        laws = [outcome._asdict() for outcome in report.outcomes]
        typer.echo(json.dumps({"what": report.what, "failures": len(report.failures), "laws": laws}, indent=2))
    else:
        typer.echo("\n".join(lines(report)))
    if report.failures:
        raise typer.Exit(1)


def waivers(given: list[str] | tuple[()]) -> dict[str, str]:
    """Law -> reason. Raises ValueError where either is missing."""
    out = {}
    for text in given:
        law, _, reason = text.partition("=")
        if not law.strip() or not reason.strip():
            raise ValueError(f'--waive {text}: write LAW=REASON, such as --waive "the_ledger_is_exact=it clips"')
        out[law.strip().replace(" ", "_")] = reason.strip()
    return out


def found(name: str, settings: Mapping[str, Any], data_dir: Path | None) -> Any:
    """The strategy, mixing, participation, task or data set of that name. Raises Mistake, or ValueError."""
    from fedsim import resolve
    from fedsim.experiment import bundled
    from fedsim.experiment.settings import instance, make, member, names

    here = Path.cwd()
    if bundled.is_flower(name, here, ()):
        raise ValueError(
            f"{name} is a strategy of Flower, whose laws are Flower's; fedsim check takes fedsim's own kind"
        )
    if resolve.is_dotted(name):
        thing: Any = member("strategy", name, (), here)
        if isinstance(thing, type):
            thing = make(thing, "strategy", name, settings, (), here)
        elif settings and hasattr(thing, "__dataclass_fields__"):
            thing = instance(type(thing), settings, (), here, start=thing)
        elif callable(thing) and not hasattr(thing, "__dataclass_fields__"):
            given = {key.replace("-", "_"): value for key, value in settings.items()}
            try:
                thing = resolve.call(name, thing, {}, given)
            except ValueError:
                raise
            except Exception as error:  # the user's function may raise anything
                raise ValueError(f"{name} failed with {resolve.line(error)}") from error
    else:
        family = next((family for family in FAMILIES if name in names(family)), None)
        if family is None:
            every = [known for family in FAMILIES for known in names(family)]
            raise ValueError(f"there is nothing called {name!r} to check{resolve.nearest(name, every)}")
        thing = make(member(family, name, (), here), family, name, settings, (), here)
    return thing.load(data_dir) if hasattr(thing, "load") and not hasattr(thing, "draw") else thing


def lines(report: Report) -> list[str]:
    """The report as text: a line for every law, failures in full."""
    from fedsim.testing.report import plain

    out = [report.what]
    for outcome in report.outcomes:
        word = outcome.result.upper() if outcome.result == "fails" else outcome.result
        text = "" if outcome.result == "fails" or not outcome.text else f": {outcome.text}"
        out.append(f"  {word:<12}  {plain(outcome.law)}{text}")
    kinds = [outcome.result for outcome in report.outcomes]
    if report.failures:
        out += ["", *(f"- {text}" for text in report.failures), ""]
    counts = [(kinds.count("holds"), "hold"), (kinds.count("fails"), "fail"), (kinds.count("waived"), "waived"),
              (kinds.count("says nothing"), "say nothing")]  # fmt: skip
    out.append(f"{len(kinds)} laws: " + ", ".join(f"{count} {word}" for count, word in counts if count))
    return out
