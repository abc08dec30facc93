"""Blocks -> one HTML file that needs nothing else: style and drawings inside, no script, no font, no network."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from fedsim.report.page.blocks import Page
from fedsim.report.style import COLOURS

if TYPE_CHECKING:
    from jinja2 import Template

# the same hues on a dark ground: blue and black have to be lighter to be seen there
DARK = {"#0072B2": "#2F8FD6", "#000000": "#F2F2F2", "#D55E00": "#E8742A", "#009E73": "#1FB58A"}
DASHES = ("none", "7 3", "2 2.5", "8 3 2 3")  # of lines

STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #dfe3e8; --panel: #f6f7f9;
  --link: #0b5cad; --node: #0072B2; --edge: #8c96a1; --t0: #D55E00; --t1: #0072B2; --t2: #8c8c8c; LIGHT }
@media (prefers-color-scheme: dark) { :root { --bg: #14171b; --ink: #e8eaed; --soft: #a3acb7; --line: #2f353d;
  --panel: #1c2026; --link: #7ab7f5; --node: #4aa3e6; --edge: #66707c; --t0: #E8742A; --t1: #2F8FD6; --t2: #9a9a9a;
  DARK } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1.25rem 4rem; background: var(--bg); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0.5rem 0 0.3rem; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 0.8rem; padding-top: 0.8rem;
  border-top: 1px solid var(--line); }
p { margin: 0.7rem 0; max-width: 46rem; }
a { color: var(--link); }
.under, .soft, caption, figcaption, footer { color: var(--soft); }
.soft, figcaption, footer { font-size: 0.88rem; line-height: 1.45; }
.lead { font-size: 1.15rem; line-height: 1.5; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; padding: 0; margin: 1.1rem 0 0;
  font-size: 0.92rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.names { list-style: none; display: flex; flex-wrap: wrap; gap: 0.25rem 1.2rem; padding: 0; margin: 1rem 0 0; }
.swatch { display: inline-block; width: 22px; height: 3px; margin-right: 0.45em; vertical-align: 0.24em;
  background: repeating-linear-gradient(90deg, var(--stops)); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.35rem 1.2rem; margin: 1rem 0; }
dt { font-weight: 600; }
dd { margin: 0; max-width: 44rem; }
.scroll { overflow-x: auto; margin: 1rem 0 0.4rem; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 0.4rem; font-size: 0.88rem; }
th, td { padding: 0.32rem 0.65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; font-weight: 600; white-space: normal; min-width: 5rem; }
th:first-child, .text { text-align: left; }
tbody th:not(.strong) { font-weight: 400; }
tbody th { padding-left: 0; }
thead th:first-child { padding-left: 0; }
tbody th { white-space: nowrap; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--bg); }
.strong { font-weight: 650; }
td.long { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.4rem 2rem;
  margin: 1rem 0; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure.alone { max-width: 34rem; margin: 1rem 0; }
figure h3 { font-size: 0.98rem; font-weight: 600; margin: 0 0 0.3rem; }
figcaption { margin-top: 0.2rem; }
svg { display: block; width: 100%; height: auto; overflow: visible;
  font: 11.5px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
svg text { fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .soft { fill: var(--soft); font-size: 0.96em; }
svg .tiny { font-size: 8px; fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg .zero { stroke: var(--soft); stroke-width: 1.2; fill: none; }
svg .frame { stroke: var(--line); fill: none; }
svg .line { stroke: var(--pen); stroke-width: 2; fill: none; stroke-dasharray: var(--dashes); stroke-linejoin: round; }
svg .band { fill: var(--pen); opacity: 0.14; stroke: none; }
svg .faint { opacity: 0.08; }
svg .lead { stroke: var(--pen); stroke-width: 1.3; fill: none; opacity: 0.85; }
svg .bar { stroke: var(--pen); stroke-width: 2; fill: none; }
svg .dot { fill: var(--pen); }
svg .each { opacity: 0.55; }
svg .fill { fill: var(--pen); }
svg .edge { stroke: var(--edge); fill: none; opacity: 0.75; }
svg .node { fill: var(--node); stroke: var(--bg); stroke-width: 0.7; }
svg image { image-rendering: pixelated; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 0.8rem 1rem;
  overflow-x: auto; font: 0.84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--link); margin: 0.8rem 0; }
.s-none { --pen: var(--soft); }
.t0 { --pen: var(--t0); } .t1 { --pen: var(--t1); } .t2 { --pen: var(--t2); }
PENS
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 0.8rem; }
@media (max-width: 40rem) {
  body { padding: 1rem 0.9rem 3rem; }
  h1 { font-size: 1.5rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0.1rem; }
  dd { margin-bottom: 0.6rem; }
  th, td { padding: 0.32rem 0.55rem; }
  svg { font-size: 13px; }
}
@media print {
  :root { --bg: #ffffff; --ink: #000000; --soft: #444444; --line: #cccccc; --panel: #ffffff; --link: #000000;
    --node: #0072B2; --edge: #8c96a1; --t0: #D55E00; --t1: #0072B2; --t2: #8c8c8c; LIGHT }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2 { break-after: avoid; margin-top: 1.6rem; }
  figure, tr, dl > * { break-inside: avoid; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
  table { font-size: 8pt; }
  thead th, td { white-space: normal; }
  th, td { padding: 0.2rem 0.4rem; }
  svg, .swatch { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""

TEMPLATE = """\
{%- macro name(one) -%}
<span class="swatch {{ one.pen.css }}"></span>{{ one.label }}
{%- endmacro -%}
{%- macro cell(value) -%}{% if value is string %}{{ value }}{% else %}{{ name(value) }}{% endif %}{%- endmacro -%}
{%- macro figure(one, alone) -%}
<figure class="{{ 'alone' if alone }}"><h3>{{ one.title }}</h3>{{ one.svg | safe }}
{%- if one.caption %}<figcaption>{{ one.caption }}</figcaption>{% endif %}</figure>
{%- endmacro -%}
{%- macro render(block) -%}
{%- if block.kind == "words" -%}
<p{% if block.lead %} class="lead"{% elif block.soft %} class="soft"{% endif %}>{{ block.text }}</p>
{%- elif block.kind == "facts" -%}
<dl>{% for key, text in block.rows %}<dt>{{ key }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
{%- elif block.kind == "grid" -%}
<div class="scroll" tabindex="0" role="region" aria-label="{{ block.caption }}"><table><caption>{{ block.caption }}</caption>
<thead><tr>{% for title in block.columns %}<th scope="col"{% if loop.index0 in block.texts %} class="text"{% endif %}>{{ title }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in block.rows %}{% set i = loop.index0 %}
<tr>{% for value in row %}{% set css = "text" if loop.index0 in block.texts else "" %}
{%- set css = css ~ " strong" if (i, loop.index0) in block.strong else css -%}
{%- set css = css ~ " long" if value is string and value | length > 40 else css -%}
{%- if loop.first %}<th scope="row"{% if css %} class="{{ css }}"{% endif %}>{{ cell(value) }}</th>
{%- else %}<td{% if css %} class="{{ css }}"{% endif %}>{{ cell(value) }}</td>{% endif %}{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{%- for note in block.notes %}<p class="soft">{{ note }}</p>{% endfor %}
{%- elif block.kind == "figure" -%}{{ figure(block, true) }}
{%- elif block.kind == "figures" -%}
<div class="figures{{ ' small' if block.small }}">{% for one in block.each %}{{ figure(one, false) }}{% endfor %}</div>
{%- elif block.kind == "code" -%}
{% if block.title %}<details><summary>{{ block.title }}</summary><pre>{{ block.text }}</pre></details>
{%- else %}<pre>{{ block.text }}</pre>{% endif %}
{%- elif block.kind == "fold" -%}
<details><summary>{{ block.title }}</summary>{% for one in block.blocks %}{{ render(one) }}{% endfor %}</details>
{%- endif -%}
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{{ page.title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ page.title }}</h1>
<p class="under">{{ page.under }}</p>
<ul class="names">{% for one in page.names %}<li>{{ name(one) }}</li>{% endfor %}</ul>
<nav aria-label="Contents"><ul>
{%- for section in page.sections %}<li><a href="#{{ section.name }}">{{ section.title }}</a></li>{% endfor -%}
</ul></nav>
</header>
<main>
{% for section in page.sections %}
<section id="{{ section.name }}">
<h2>{{ section.title }}</h2>
{% for block in section.blocks %}{{ render(block) }}
{% endfor %}</section>
{% endfor %}
</main>
<footer>{{ page.made }}</footer>
</body>
</html>
"""  # noqa: E501


def style() -> str:
    """The page's style, with the colours of `report.style`, and lighter ones for dark."""
    light = " ".join(f"--s{i}: {colour};" for i, colour in enumerate(COLOURS))
    dark = " ".join(f"--s{i}: {DARK.get(colour, colour)};" for i, colour in enumerate(COLOURS))
    pens = [f".s{i} {{ --pen: var(--s{i}); }}" for i in range(len(COLOURS))]
    pens += [f".d{i} {{ --dashes: {dash}; --stops: {_stops(dash)}; }}" for i, dash in enumerate(DASHES)]
    return STYLE.replace("LIGHT", light).replace("DARK", dark).replace("PENS", "\n".join(pens))


def _stops(dash: str) -> str:
    """A line's dashes as the stops of a gradient, for a swatch beside a name."""
    lengths = [float(part) for part in dash.split()] if dash != "none" else [22.0]
    stops, at = [], 0.0
    for i, length in enumerate(lengths):
        stops.append(f"{'transparent' if i % 2 else 'var(--pen)'} {at:g}px {at + length:g}px")
        at += length
    return ", ".join(stops)


@cache
def _template() -> Template:
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(TEMPLATE)


def html(page: Page) -> str:
    """The page as text."""
    return _template().render(page=page, style=style())
