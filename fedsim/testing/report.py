"""What came of checking something: a line for every law, and a sentence for every failure."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedsim.resolve import line, nearest
from fedsim.testing.stage import Stage
from fedsim.testing.states import Broken, Inapplicable


class Outcome(NamedTuple):
    """What came of one law."""

    law: str
    result: Literal["holds", "fails", "waived", "says nothing"]
    text: str = ""  # the failure as a sentence, or the reason


class Report(NamedTuple):
    """What came of all laws."""

    what: str  # what was checked
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> list[str]:
        """One sentence for each law that does not hold."""
        return [outcome.text for outcome in self.outcomes if outcome.result == "fails"]

    def insist(self) -> None:
        """Raises AssertionError with all failures, one a line."""
        if self.failures:
            count = f"{len(self.failures)} of {len(self.outcomes)} laws"
            raise AssertionError("\n".join([f"{self.what} breaks {count}:", *(f"- {text}" for text in self.failures)]))


def plain(law: str) -> str:
    """A law's name in words."""
    return law.replace("_", " ")


def settle(law: str, error: Exception | None, world: str, waived: Mapping[str, str], own: bool = False) -> Outcome:
    """The outcome of a law that raised `error`, or nothing, in a world of that size; `own`: the waivers are fedsim's,
    and not everything waived has to fail."""
    why = waived.get(law)
    if error is None and own:
        return Outcome(law, "holds")
    if isinstance(error, Inapplicable):
        return Outcome(law, "says nothing", str(error))
    if error is None and why is not None:
        return Outcome(law, "fails", f"{plain(law)}: this law is waived ({why}), but it holds; take the waiver away")
    if error is None:
        return Outcome(law, "holds")
    if why is not None:
        return Outcome(law, "waived", why)
    return Outcome(law, "fails", sentence(law, error, world))


def sentence(law: str, error: Exception, world: str) -> str:
    """A failure as one sentence: the law, what is wrong, and in how small a world."""
    if isinstance(error, Broken):
        text = error.text
        if error.t is not None:
            text = f"{text}, in round {error.t}"
            text += "" if error.who is None else f" with {present(error.who)} present"
    else:
        text = f"it raises {line(error)}{_place(error)}"
    text = f"{text} ({world})"
    return f"{plain(law)}: {' '.join(text.split())}"


def present(who: Iterable[int]) -> str:
    """Clients in words."""
    who = list(who)
    if not who:
        return "nobody"
    return f"{_many('client', len(who))} {', '.join(map(str, who))}"


def size(stage: Stage) -> str:
    """How small the world is."""
    return f"{stage.n} {_many('client', stage.n)}, {stage.size} {_many('parameter', stage.size)}"


def _many(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _place(error: Exception) -> str:
    """Where the user's own code stands in an exception's traceback."""
    ours = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not Path(f.filename).is_relative_to(ours) and "site-packages" not in f.filename]
    own = [f for f in own if Path(f.filename).suffix == ".py"]
    return f" at {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises ValueError for the name of a law that there is not."""
    known = list(known)
    for name in given:
        if name not in known:
            raise ValueError(f"there is no law {name!r} of a {what}{nearest(name, known)}")


def attempt(check: Any, *arguments: Any) -> Exception | None:
    """What a law raised, if anything; the user's code may raise anything at all."""
    try:
        check(*arguments)
    except Exception as error:
        return error
    return None
