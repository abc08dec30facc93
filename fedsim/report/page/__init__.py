"""report.html: what a run folder holds, as one page that opens anywhere and needs no network.

The page is made from the folder's files alone, so that it can be made again at any time, and of several folders.

gather    run folders -> a story; which folders may be put together
words     the experiment and the answer in sentences
measures  the story's numbers, and how they are written
svg, shapes  drawings
figures   the story's drawings
compared, clients, about, tuned  the sections
blocks, shell             what a page is made of, and how that becomes HTML
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedsim.files import write_atomically
from fedsim.report.page import about, clients, compared, tuned
from fedsim.report.page.blocks import Name, Page
from fedsim.report.page.compared import tabled
from fedsim.report.page.gather import PAGE, Story, tell
from fedsim.report.page.measures import pen, several
from fedsim.report.page.shell import html

__all__ = ["PAGE", "Story", "page", "tabled", "tell", "write_page"]


def page(story: Story) -> str:
    """The page as HTML. The same story gives the same bytes.

    Raises ValueError for a metric that cannot rank.
    """
    found = tabled(story)
    told = compared.verdict(story, found)
    sections = [
        compared.question(story),
        compared.answer(story, found, told),
        compared.curves(story),
        compared.differences(story, told),
        compared.pairs(story, found, told),
        clients.served(story),
        clients.weights(story),
        clients.presence(story),
        clients.network(story),
        about.cost(story, found, told),
        tuned.tuning(story),
        about.speed(story),
        about.trouble(story, found),
        about.provenance(story),
        about.reproduce(story),
    ]
    names = [Name(label, pen(story, label)) for label in story.labels]
    return html(Page(story.name, _under(story), names, [one for one in sections if one is not None], _made(story)))


def write_page(folders: str | Path | Iterable[str | Path], to: str | Path | None = None, **wanted: Any) -> Path:
    """Writes the page of a run folder, or of several, and returns where: `to`, else report.html in the one folder.

    `wanted`: metric, baseline, target. Raises OSError and ValueError, one line, before anything is written.
    """
    several = [folders] if isinstance(folders, (str, Path)) else list(folders)
    path = Path(to) if to is not None else Path(several[0]) / PAGE
    text = page(tell(several, **wanted))
    write_atomically(path, text.encode())
    return path


def _under(story: Story) -> str:
    task, run = story.document.get("task", {}), story.document.get("run", {})
    data, model = (
        str(task.get(key, {}).get("name", "")) if isinstance(task.get(key), dict) else "" for key in ("data", "model")
    )
    parts = [
        several(len(story.labels), "strategy").replace("strategys", "strategies"),
        several(len(story.seeds), "seed"),
        several(run["rounds"], "round") if run.get("rounds") else "",
        several(task["clients"], "client") if task.get("clients") else "",
        ", ".join(part for part in (data, model) if part),
    ]
    return " · ".join(part for part in parts if part)


def _made(story: Story) -> str:
    from fedsim import __version__

    started = [str(folder.environment["started"])[:10] for folder in story.folders if folder.environment.get("started")]
    when = f" of runs of {min(started)}" if started else ""
    return f"Made by fedsim {__version__}{when}. Everything on this page is in this one file."
