"""Drawings for the page as inline SVG: a few kilobytes each, in the page's own type and colours, light or dark.

The figures in PNG and SVG beside the page are matplotlib's (`fedsim.report.figures`). A page is also read on a phone
and at night, so here every panel is a drawing of its own, text stays text, and colours are classes of the page's style:
`s0` ... `s6` for strategies (in the order of `style.COLOURS`), `d0` ... `d3` for dashes. Ticks are matplotlib's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from fedsim.report.style import spread

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 430.0, 275.0  # of a drawing, in the units of its viewBox: about a phone's pixels
POINTS = 240  # of a curve; more are thinned out to what can be seen
LETTER = 6.7  # how wide a letter is, about
FEW = 4  # bands above which each is drawn fainter
SHOWN = 17  # letters of a name beside a line


class Pen(NamedTuple):
    """How a strategy is drawn: the number of its colour and of its dash."""

    colour: int
    dash: int

    @property
    def css(self) -> str:
        """The classes of the page's style."""
        return f"s{self.colour} d{self.dash}"


class Line(NamedTuple):
    """A curve [m] with a band around it [m], where there is one."""

    label: str
    pen: Pen
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Scale:
    """From numbers low..high to places start..end of a drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a number; of one outside the nearer end."""
        return float(np.clip(self.place(value), min(self.start, self.end), max(self.start, self.end)))

    def place(self, value: float) -> float:
        """The place of a number, also outside."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, low * 1e-9))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self, many: int) -> list[float]:
        """Round numbers inside, about so many."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        if self.log:
            subs = (1.0, 2.0, 5.0) if self.high < 500 * self.low else (1.0,)
            found = LogLocator(subs=subs, numticks=many + 2).tick_values(self.low, self.high)
        else:
            found = MaxNLocator(many, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(value) for value in found if self.low - slack <= value <= self.high + slack]


def scale(values: Sequence[float], start: float, end: float, log: bool = False, pad: float = 0.04) -> Scale:
    """A scale that holds all finite values and a little room; logarithmic only if they are positive and far apart."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if log and low > 0 and high > 5 * low:
        room = (high / low) ** pad
        return Scale(low / room, high * room, start, end, True)
    room = pad * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - room, high + room, start, end)


def drawing(name: str, title: str, says: str, parts: Sequence[str], width: float, height: float) -> str:
    """The parts as one picture, with what a reader who cannot see it is told. `name` is its own on the page."""
    name = quote(name, safe="")  # a metric may be called anything
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(says)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def text(x: float, y: float, said: str, css: str = "soft", anchor: str = "middle") -> str:
    """Words at a place."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'


def plot(
    name: str,
    title: str,
    says: str,
    lines: Sequence[Line],
    *,
    x_title: str = "Round",
    log: bool = False,
    zero: float | None = None,
    span: tuple[float, float] | None = None,
    form: Callable[[float], str] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    named: bool = True,
    log_x: bool = False,
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> str:
    """Curves with bands against x, each named at its end. `zero` is a level drawn across, `span` the range of y where
    that is known, `marks` ticks of x where they are no numbers, `form` how a tick of y is written."""
    wide, high = size
    right = wide - (min(max(len(line.label) for line in lines), SHOWN) * LETTER + 24 if named else 12)
    every = [value for line in lines for each in (line.y, line.low, line.high) if each is not None for value in each]
    every += [] if zero is None else [zero]
    y = scale(every if span is None else span, high - 44, 12, log, 0.04 if span is None else 0.0)
    at = [value for line in lines for value in (line.x[0], line.x[-1])]
    few = len(marks) > 0
    x = scale(at, 52, right, log_x, 0.03 if few else 0.0)
    form = form or plain(y.ticks(5))
    parts = [_across(y, form, 52, right)]
    if few:
        wide_mark = LETTER * max(len(said) for _, said in marks) + 6
        every_nth = math.ceil(wide_mark * (len(marks) - 1) / max(right - 52, 1.0)) or 1
        parts += [_tick(x(place), said, high) for place, said in marks[::every_nth]]
    else:
        ticks = x.ticks(max(int((right - 52) / 62), 2))
        parts += [_tick(x(value), plain(ticks)(value), high) for value in ticks]
    parts.append(text(max((52 + right) / 2, 3.3 * len(x_title)), high - 6, x_title))
    if zero is not None:
        parts.append(f'<path class="zero" d="M52,{y(zero):.1f}H{right:.1f}"/>')
    for line in lines:
        if line.low is not None and line.high is not None:
            parts.append(_band(line, x, y, len(lines) > FEW))
    parts += [_curve(line, x, y, few) for line in lines]
    if named:
        parts += _ends(lines, x, y, right, high)
    return drawing(name, title, says, parts, wide, high)


def plain(ticks: Sequence[float]) -> Callable[[float], str]:
    """How to write ticks: with as many decimals as it takes to tell them apart, in short where they are many digits."""
    gaps = [b - a for a, b in itertools.pairwise(ticks) if b > a]
    places = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 3
    if gaps and any(abs(round(value, places) - value) > 1e-6 * min(gaps) for value in ticks):
        places += 1  # steps of 2.5

    def written(value: float) -> str:
        value = 0.0 if abs(value) < 1e-12 * max(map(abs, ticks), default=1.0) else value
        even = bool(gaps) and max(gaps) < 1.01 * min(gaps)
        text = (
            f"{value:.3g}"
            if abs(value) >= 1e6 or 0 < abs(value) < 1e-4
            else f"{value:,.{places}f}"
            if even
            else f"{value:g}"
        )
        return text.replace("-", "−")

    return written


def _across(y: Scale, form: Callable[[float], str], left: float, right: float) -> str:
    """Level lines with their numbers."""
    ticks = y.ticks(5)
    lines = "".join(f"M{left:g},{y(value):.1f}H{right:.1f}" for value in ticks)
    texts = (text(left - 6, y(value) + 4, form(value), "soft", "end") for value in ticks)
    return f'<path class="grid" d="{lines}"/>{"".join(texts)}'


def _tick(at: float, said: str, high: float) -> str:
    return text(at, high - 26, said)


def thinned(line: Line) -> Line:
    """At most POINTS points: of each stretch the last value, the lowest of the band and the highest."""
    m = len(line.x)
    if m <= POINTS:
        return line
    cuts = np.unique(np.linspace(0, m, POINTS + 1).astype(np.int64))
    last = np.concatenate([[0], cuts[1:] - 1])

    def held(values: Floats | None, way: Callable[[Floats], float]) -> Floats | None:
        if values is None:
            return None
        return np.array([values[0], *(way(values[a:b]) for a, b in itertools.pairwise(cuts))])

    return line._replace(x=line.x[last], y=line.y[last], low=held(line.low, np.nanmin), high=held(line.high, np.nanmax))


def _path(x: Floats, y: Floats, across: Scale, up: Scale) -> str:
    """Points as a path, broken where one is missing."""
    out, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if not math.isfinite(b):
            pen = "M"
            continue
        out.append(f"{pen}{across(a):.1f},{up(b):.1f}")
        pen = "L"
    return "".join(out)


def _curve(line: Line, x: Scale, y: Scale, dots: bool) -> str:
    shown = thinned(line)
    drawn = f'<path class="line {line.pen.css}" d="{_path(shown.x, shown.y, x, y)}"/>'
    if dots or len(line.x) == 1:
        for a, b in zip(shown.x, shown.y, strict=True):
            if math.isfinite(b):
                drawn += f'<circle class="dot {line.pen.css}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6"/>'
    return drawn


def _band(line: Line, x: Scale, y: Scale, faint: bool) -> str:
    shown = thinned(line)
    assert shown.low is not None
    assert shown.high is not None
    keep = np.isfinite(shown.low) & np.isfinite(shown.high)
    if not keep.any():
        return ""
    there = _path(shown.x[keep], shown.high[keep], x, y)
    back = _path(shown.x[keep][::-1], shown.low[keep][::-1], x, y)
    return f'<path class="band{" faint" if faint else ""} {line.pen.css}" d="{there}L{back[1:]}Z"/>'


def _ends(lines: Sequence[Line], x: Scale, y: Scale, right: float, high: float) -> list[str]:
    """Each line's name beside its end, moved apart where they would overlap."""
    ends = []
    for line in lines:
        seen = np.flatnonzero(np.isfinite(line.y))
        if len(seen):
            ends.append((y(float(line.y[seen[-1]])), x(float(line.x[seen[-1]])), line))
    ends.sort(key=lambda end: end[0])
    gap = min(14.0, (high - 24) / max(len(ends), 1))
    places = spread([at for at, _, _ in ends], gap)
    shift = max(0.0, 8 - places[0]) - max(0.0, places[-1] - (high - 16)) if ends else 0.0
    return [
        f'<path class="lead {line.pen.css}" d="M{at_x:.1f},{at:.1f}L{right + 4:.1f},{place + shift:.1f}h9"/>'
        + text(right + 17, place + shift + 4, short(line.label), "name", "start")
        for (at, at_x, line), place in zip(ends, places, strict=True)
    ]


def short(label: str, letters: int = SHOWN) -> str:
    """A name cut to what there is room for."""
    return label if len(label) <= letters else label[: letters - 1] + "…"
