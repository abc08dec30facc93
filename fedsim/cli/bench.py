"""fedsim bench"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.base import app


@app.command(
    help="Measure fedsim beside other simulators on this machine: the same rounds of FedAvg (W1 to W4) and of gossip "
    "(G1 to G3) on Fashion-MNIST, in turns, every contender in its best setting and held to the same accuracy. Rivals "
    "beyond plain PyTorch (flower, pfl, fedlab, fedjax, gossipy) are installed with pip, each in an environment of its "
    "own, when they are named.",
    short_help="Measure the speed beside other simulators on this machine.",
)
def bench(
    workloads: Annotated[
        str | None, typer.Option(metavar="W1,W2,...", help="Which workloads; default: all seven (--quick: W1 and G1).")
    ] = None,
    rivals: Annotated[
        str, typer.Option(metavar="NAME,...", help="Beside whom: plain, flower, pfl, fedlab, fedjax, gossipy; or all.")
    ] = "plain",
    quick: Annotated[
        bool, typer.Option("--quick", help="A few rounds with one setting each: a look, not a measurement.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many rounds are timed; default: as each workload says.")
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all that was found there.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table there, as Markdown.")] = None,
    envs: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep the rivals' environments there; default: made anew, then removed."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where data files are sought. Default: FEDSIM_DATA, else ./data."),
    ] = None,
) -> None:
    import json
    import tempfile

    from fedsim.bench import race, tables, world
    from fedsim.bench.rivals import RIVALS
    from fedsim.bench.rivals import chosen as chosen_rivals
    from fedsim.bench.workloads import QUICK, WORKLOADS
    from fedsim.bench.workloads import chosen as chosen_workloads
    from fedsim.report.table import as_markdown

    names = _names(workloads) if workloads is not None else list(QUICK if quick else WORKLOADS)
    todo, contenders = chosen_workloads(names), chosen_rivals(list(RIVALS) if rivals == "all" else _names(rivals))
    if not todo or not contenders:
        raise ValueError("name at least one workload and one rival: --workloads W1 --rivals plain")
    kinds = {workload.gossip for workload in todo}
    for rival in contenders:
        if rivals != "all" and not kinds & set(rival.gossip):
            raise ValueError(
                f"{rival.name} runs {'gossip' if True in rival.gossip else 'a server'} only, and none of "
                f"{', '.join(workload.name for workload in todo)} is that"
            )
    for file in (json_, markdown):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{file} cannot be written: there is no folder {file.absolute().parent}")
    dataset = world.load(data_dir)
    if quick and rounds is None:
        rounds = 3
    found: list[race.Entry] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) if envs is None else envs.absolute()

        def say(text: str) -> None:
            typer.echo(text, err=True)

        for found in race.measure(todo, contenders, dataset, place, say, rounds=rounds, brief=quick):
            if json_ is not None:
                race.write(json_, json.dumps(found, indent=1) + "\n")
            if markdown is not None:
                race.write(markdown, as_markdown(tables.table(found)))
    for line in tables.lines(found):
        typer.echo(line)
    if all(entry["failed"] for entry in found):
        raise typer.Exit(2)


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]
