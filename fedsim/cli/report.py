"""fedsim report"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.base import app

if TYPE_CHECKING:
    from fedsim.report.page import Story


@app.command(
    "report",
    help="Write the report of a run folder again, from its files alone, or one report of several folders: the same "
    "experiment with other seeds or other strategies. Folders go together where everything that the runs of a seed "
    "share is the same; where something differs it is said, and nothing is written. A label that stands for different "
    "settings gets its folder's name; a run that is in two folders counts once, and is refused if its numbers differ.",
    short_help="Write the report again, of one run folder or of several together.",
)
def report_(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html|FOLDER",
            help="Where to. Default: report.html in the one run folder; of several, in runs/NAME-report-DATE-TIME.",
        ),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Beside it the tables as CSV, in full precision.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Beside it the tables for LaTeX (booktabs).")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Beside it the tables in Markdown.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Beside it a folder for TensorBoard (needs the extra tensorboard).")
    ] = False,
    baseline: Annotated[
        str | None, typer.Option(metavar="LABEL", help="The strategy to compare the others with. Default: the best.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to rank by. Default: test_accuracy, else a loss.")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(metavar="VALUE", help="The level of the metric to be reached. Default: one that most reach."),
    ] = None,
) -> None:
    import math

    from fedsim.files import write_atomically, writing
    from fedsim.record import default_folder
    from fedsim.report import page

    if target is not None and not math.isfinite(target):
        raise ValueError(f"--target must be a finite number, got {target:g}")
    if out is not None and out.is_file() and out.suffix != ".html":
        raise ValueError(f"--out {out} is a file; give a name that ends in .html, or a folder")
    story = page.tell(runs, metric=metric, baseline=baseline, target=target)
    text = page.page(story)
    forms = [form for form, wanted in (("csv", csv), ("tex", latex), ("md", markdown)) if wanted]
    made = _tables(story, forms)
    if out is None:
        folder = story.folders[0].path if len(story.folders) == 1 else default_folder(f"{story.name}-report")
        out = folder / page.PAGE
    elif out.suffix != ".html":
        out = out / page.PAGE
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    board = _tensorboard(story, out.parent / "tensorboard") if tensorboard else None
    files = {out: text, **{out.parent / name: table for name, table in made.items()}}
    for path, content in files.items():
        write_atomically(path, content.encode())
        typer.echo(f"{'report' if path == out else 'table'}: {path}")
    if board is not None:
        typer.echo(f"tensorboard: {board}")


def _tables(story: Story, forms: list[str]) -> dict[str, str]:
    """The tables in each form, by file name. Raises ValueError where nothing can be ranked."""
    from fedsim.report import tables
    from fedsim.report.page import tabled

    if not forms:
        return {}
    found = tabled(story)
    targets = None if story.target is None else [story.target]
    made = {
        "rank": tables.rank_table(found, metric=story.metric, target=story.target),
        "paired": tables.paired_table(
            found, metric=story.metric, against=story.baseline, every=story.baseline is None
        ),
        "targets": tables.targets_table(found, metric=story.metric, targets=targets),
    }  # fmt: skip
    write = {"csv": tables.as_csv, "tex": tables.as_latex, "md": tables.as_markdown}
    return {f"{name}.{form}": write[form](table) for form in forms for name, table in made.items()}


def _tensorboard(story: Story, to: Path) -> Path:
    """The metrics of every run folder, of several in a folder each."""
    from fedsim.report.page.gather import called
    from fedsim.report.tensorboard import write

    for folder, name in zip(story.folders, called(story.folders), strict=True):
        write(folder.path, to if len(story.folders) == 1 else to / name)
    return to
