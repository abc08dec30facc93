"""Drawings that are no curves: numbers one above another, bars in parts, a heat map, a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.report.page.svg import LETTER, WIDTH, Floats, Pen, Scale, drawing, plain, scale, short, text


class Dot(NamedTuple):
    """A number with an interval and the numbers it was made of."""

    label: str
    pen: Pen | None
    mean: float
    low: float = math.nan
    high: float = math.nan
    each: Sequence[float] = ()
    text: str = ""


def dots(
    name: str,
    title: str,
    says: str,
    rows: Sequence[Dot],
    *,
    zero: float | None = None,
    x_title: str = "",
    within: tuple[float, float] = (-math.inf, math.inf),
) -> str:
    """Numbers one above another: a dot with its interval, a small dot for each of those it was made of, and in words at
    the right (`Dot.text`). `within`: what the numbers can be; intervals end there."""
    step = 30.0
    left = min(max(len(row.label) for row in rows), 22) * LETTER + 14
    right = WIDTH - max(len(row.text) for row in rows) * LETTER - 12
    bottom = 14 + step * len(rows)
    every = [value for row in rows for value in (row.mean, row.low, row.high, *row.each)]
    every = [min(max(value, within[0]), within[1]) for value in every if math.isfinite(value)]
    x = scale(every + ([] if zero is None else [zero]), left, right)
    x = replace(x, low=max(x.low, within[0]), high=min(x.high, within[1]))
    ticks = x.ticks(max(int((right - left) / 58), 2))
    form = plain(ticks)
    parts = [f'<path class="grid" d="{"".join(f"M{x(value):.1f},8V{bottom:g}" for value in ticks)}"/>']
    parts += [text(x(value), bottom + 16, form(value)) for value in ticks]
    if x_title:
        parts.append(text((left + right) / 2, bottom + 34, x_title))
    if zero is not None:
        parts.append(f'<path class="zero" d="M{x(zero):.1f},8V{bottom:g}"/>')
    for i, row in enumerate(rows):
        y, css = 8 + step * (i + 0.5), "s-none d0" if row.pen is None else row.pen.css
        parts.append(text(left - 10, y + 4, short(row.label, 22), "name", "end"))
        parts.append(text(right + 10, y + 4, row.text, "soft", "start"))
        if math.isfinite(row.low) and math.isfinite(row.high):
            low, high = x(row.low), x(row.high)
            caps = f"M{low:.1f},{y - 4:.1f}v8M{high:.1f},{y - 4:.1f}v8"
            parts.append(f'<path class="bar {css}" d="M{low:.1f},{y:.1f}H{high:.1f}{caps}"/>')
        parts += [
            f'<circle class="dot each {css}" cx="{x(value):.1f}" cy="{y + 9:.1f}" r="2"/>'
            for value in row.each
            if math.isfinite(value)
        ]
        if math.isfinite(row.mean):
            parts.append(f'<circle class="dot {css}" cx="{x(row.mean):.1f}" cy="{y:.1f}" r="4.5"/>')
    return drawing(name, title, says, parts, WIDTH, bottom + (42 if x_title else 24))


def stacks(
    name: str, title: str, says: str, rows: Sequence[tuple[str, Sequence[float], str]], css: Sequence[str]
) -> str:
    """Bars made of parts laid end to end, a negative part going back; one colour class for each part, and in words at
    the right what a row comes to."""
    step = 32.0
    left = min(max(len(label) for label, _, _ in rows), 22) * LETTER + 14
    right = WIDTH - max(len(total) for _, _, total in rows) * LETTER - 12
    bottom = 10 + step * len(rows)
    reach = [value for _, values, _ in rows for value in np.cumsum([0.0, *values])]
    x = Scale(min(0.0, *reach), max(max(reach), 1e-12), left, right)
    ticks = x.ticks(4)
    parts = [f'<path class="grid" d="{"".join(f"M{x(value):.1f},6V{bottom:g}" for value in ticks)}"/>']
    parts += [text(x(v), bottom + 16, plain(ticks)(v)) for v in ticks]
    for i, (label, values, total) in enumerate(rows):
        y, at = 6 + step * i, 0.0
        middle = y + step / 2 + 4
        parts.append(text(left - 10, middle, short(label, 22), "name", "end"))
        parts.append(text(right + 10, middle, total, "soft", "start"))
        thick = (step - 8) / (len(values) if any(value < 0 for value in values) else 1)
        for j, value in enumerate(values):
            a, b = sorted((x(at), x(at + value)))
            top = y + 4 + (j * thick if thick < step - 8 else 0.0)
            size = f'width="{max(b - a, 0.3):.1f}" height="{thick:.1f}"'
            parts.append(f'<rect class="fill {css[j]}" x="{a:.1f}" y="{top:.1f}" {size}/>')
            at += value
    parts.append(f'<path class="zero" d="M{x(0.0):.1f},6V{bottom:g}"/>')
    return drawing(name, title, says, parts, WIDTH, bottom + 24)


def heat(name: str, title: str, says: str, shares: Floats, x_span: float, y_span: float, y_title: str) -> str:
    """Shares [rows, columns] in 0..1 as a picture, the first row at the bottom: none is see-through, all is solid, so
    that it suits any background. x runs over 0..x_span, y over 0..y_span."""
    import base64
    import io

    from matplotlib.image import imsave

    cells = np.empty((*shares.shape, 4), dtype=np.uint8)
    cells[..., :3] = (40, 130, 205)
    top = float(shares.max(initial=0.0)) or 1.0
    cells[..., 3] = np.rint(255 * np.clip(shares / top, 0.0, 1.0))
    file = io.BytesIO()
    imsave(file, cells[::-1], format="png", metadata={"Software": ""}, pil_kwargs={"optimize": True})
    picture = base64.b64encode(file.getvalue()).decode()
    wide, left, right, bottom = WIDTH, 52.0, WIDTH - 8, 220.0
    x, y = Scale(0.0, max(x_span, 1.0), left, right), Scale(0.0, max(y_span, 1.0), bottom, 8.0)
    parts = [
        f'<image href="data:image/png;base64,{picture}" x="{left:g}" y="8" width="{right - left:g}" '
        f'height="{bottom - 8:g}" preserveAspectRatio="none"/>'
        f'<rect class="frame" x="{left:g}" y="8" width="{right - left:g}" height="{bottom - 8:g}"/>'
    ]
    for value in x.ticks(6):
        parts.append(text(x(value), bottom + 16, f"{value:,.0f}"))
    for value in y.ticks(5):
        parts.append(text(left - 6, y(value) + 4, f"{value:,.0f}", "soft", "end"))
    parts.append(text((left + right) / 2, bottom + 34, "Round"))
    parts.append(f'<g transform="translate(12,{bottom / 2:g}) rotate(-90)">{text(0, 0, y_title)}</g>')
    return drawing(name, title, says, parts, wide, bottom + 42)


def network(name: str, title: str, says: str, places: Floats, edges: NDArray[np.int64], labels: Sequence[str]) -> str:
    """Nodes at places [n, 2] joined by edges [m, 2], larger where they have more neighbours, with names
    where there are some."""
    n, size, room = len(places), 400.0, 18.0
    low, high = places.min(0), places.max(0)
    wide = float(max((high - low).max(), 1e-9))
    at = room + (places - (low + high) / 2 + wide / 2) / wide * (size - 2 * room)
    at[:, 1] = size - at[:, 1]
    at = np.round(at, 1 if len(edges) < 3000 else 0)
    drawn = "".join(f"M{at[a, 0]:g},{at[a, 1]:g}L{at[b, 0]:g},{at[b, 1]:g}" for a, b in edges)
    thin = float(np.clip(14 / math.sqrt(len(edges) + 1), 0.25, 1.2))
    degree = np.bincount(edges.ravel(), minlength=n)
    radius = np.clip(34 / math.sqrt(n), 1.6, 7.0) * np.sqrt(np.maximum(degree, 0.5) / max(degree.mean(), 0.5))
    parts = [f'<path class="edge" stroke-width="{thin:.2f}" d="{drawn}"/>']
    parts += [f'<circle class="node" cx="{x:g}" cy="{y:g}" r="{r:.1f}"/>' for (x, y), r in zip(at, radius, strict=True)]
    for label, (x, y) in zip(labels, at, strict=False):
        parts.append(text(x + 6, y - 5, short(label, 12), "tiny", "start"))
    return drawing(name, title, says, parts, size, size)
