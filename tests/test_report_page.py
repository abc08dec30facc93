"""report.html: whole, true, safe, self-contained, and small."""

from __future__ import annotations

import csv
import html.parser
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import command
from report_folders import height, made

from fedsim.paired import differences, standings
from fedsim.report.page import page, tell, words, write_page
from fedsim.report.page.measures import finals
from fedsim.report.page.svg import POINTS, Line, Pen, Scale, plain, plot, scale, thinned
from fedsim.report.style import COLOURS

EVIL = "<script>alert('x')</script> & \"co\""
VOID = {"meta", "link", "br", "img", "input", "hr", "circle", "path", "rect", "image"}


class Tree(html.parser.HTMLParser):
    """A page taken apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []  # open elements
        self.texts: list[tuple[str, str]] = []  # element, what it says
        self.feed(text)
        self.close()
        assert self.inside == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> says something twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.inside[-1] if self.inside else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = made(tmp_path_factory.mktemp("page") / "run", lost={("FedAU", 3): "it blew up", ("gossip", 3): ""})
    tune = {"budget": {"trials": 4}, "warnings": ["FedAU: lr lies on the edge"], "strategies": [
        {"label": "FedAU", "trials": [{"lr": 0.1, "value": 0.5}, {"lr": 1.0, "value": 0.25}], "winner": {"lr": 0.1},
         "value": 0.25, "edge": ["lr"]}]}  # fmt: skip
    (path / "tune.json").write_text(json.dumps(tune))
    (path / "absences.csv").write_text(
        "strategy,seed,round,client,reason\nFedAvg,1,2,7,no answer\nFedAvg,1,3,7,no answer\n"
    )
    return path


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return write_page(folder).read_text()


@pytest.fixture(scope="module")
def tree(text: str) -> Tree:
    return Tree(text)


# The whole page ------------------------------------------------------------------------------------------------------


def test_the_page_has_its_sections_in_order(tree: Tree) -> None:
    assert [said for tag, said in tree.texts if tag == "h2"] == [
        "The question", "The answer", "Over the rounds", "Differences over time", "Paired comparison",
        "Who wins and who loses", "Effective weights", "Who was there when", "The network", "Communication and time",
        "Tuning", "Speed", "Failures and absences", "Provenance", "How to reproduce",
    ]  # fmt: skip
    levels = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), "a heading skips a level"


def test_what_there_is_no_data_for_is_left_out(tmp_path: Path) -> None:
    alone = Tree(write_page(made(tmp_path / "run", ["FedAvg"], [1], clients=False)).read_text())
    titles = [said for tag, said in alone.texts if tag == "h2"]
    for gone in ("Paired comparison", "Differences over time", "Who wins and who loses", "The network", "Tuning",
                 "Failures and absences"):  # fmt: skip
        assert gone not in titles
    assert "The answer" in titles


def test_every_link_leads_somewhere_and_ids_are_unique(tree: Tree) -> None:
    ids = [attrs["id"] for _, attrs in tree.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] or "" for attrs in tree.all("a")]
    assert len(links) > 10
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_the_page_needs_nothing_else(text: str, tree: Tree) -> None:
    assert not tree.all("script")
    assert not [tag for tag, _ in tree.tags if tag in ("iframe", "object", "embed", "base", "form", "use")]
    for tag, attrs in tree.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert re.match(r"#|data:", value or ""), (tag, name, value)
            assert "url(" not in (value or "")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import|@font-face|//", style[1])
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)


def test_every_table_has_heads_and_full_rows(text: str) -> None:
    tables = re.findall(r"<table>(.*?)</table>", text, re.DOTALL)
    assert len(tables) >= 7
    for table in tables:
        assert re.search(r"<caption>.+?</caption>", table)
        head, body = table.split("<tbody>")
        columns = len(re.findall(r'<th scope="col"', head))
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
            assert row.count('<th scope="row"') == 1
            assert 1 + row.count("<td") == columns > 1


def test_every_drawing_says_what_it_shows(text: str) -> None:
    drawings = re.findall(r"<svg (.*?)</svg>", text, re.DOTALL)
    assert len(drawings) > 12
    for drawing in drawings:
        names = re.search(r'role="img" aria-labelledby="(\S+) (\S+)"', drawing)
        assert names
        assert re.search(rf'<title id="{names[1]}">[^<]+</title>', drawing)
        said = re.search(rf'<desc id="{names[2]}">([^<]+)</desc>', drawing)
        assert said
        assert re.search(r"\d", said[1]), "a description without a number"
        assert "nan" not in drawing.lower().replace("alternan", "")
        assert "inf" not in re.sub(r"<(title|desc).*?</\1>", "", drawing)


def test_the_page_suits_a_phone_the_night_and_paper(text: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert '<html lang="en">' in text
    for rule in (
        "prefers-color-scheme: dark",
        "@media print",
        "color-scheme: light dark",
        ".scroll { overflow-x: auto",
    ):
        assert rule in text
    for i, colour in enumerate(COLOURS):
        assert f"--s{i}: {colour};" in text
    assert not re.search(r'(?:fill|stroke|color)="#', text), "a colour that light and dark cannot change"


def test_a_strategy_has_one_pen_everywhere(text: str) -> None:
    pens = dict(re.findall(r'<li><span class="swatch (s\d d\d)"></span>(\w+)</li>', text))
    assert list(pens.values()) == ["FedAvg", "FedAU", "gossip"]
    assert list(pens) == ["s0 d0", "s1 d1", "s2 d2"]
    by_label = {label: pen for pen, label in pens.items()}
    beside = re.findall(r'<span class="swatch (s\d d\d)"></span>(\w+)', text)
    lines = re.findall(r'<path class="lead (s\d d\d)"[^>]*/><text class="name"[^>]*>(\w+)<', text)
    rows = re.findall(
        r'<text class="name"[^>]*>(\w+)</text><text class="soft"[^>]*>[^<]*</text><path class="bar (s\d d\d)"', text
    )
    assert len(beside) > 15
    assert len(lines) > 15
    assert len(rows) > 4
    assert all(by_label[label] == pen for pen, label in [*beside, *lines, *((pen, label) for label, pen in rows)])


def test_the_same_folder_gives_the_same_bytes(folder: Path, text: str) -> None:
    assert page(tell([folder])) == text


# What it says --------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_folder(tmp_path: Path) -> None:
    """The pair's difference and interval, worked out here from the curves that were written."""
    text = write_page(made(tmp_path / "run", ["A", "B"], [1, 2, 3, 4])).read_text()
    late = [t for t in range(0, 41, 4) if t > 32]
    values = {
        place: np.array([np.mean([height(place, seed, t / 40) for t in late]) for seed in (1, 2, 3, 4)])
        for place in (0, 1)
    }
    gap = 100 * (values[0] - values[1])
    half = 3.182446 * gap.std(ddof=1) / 2  # Student t, 3 degrees of freedom
    row = re.search(r'<th scope="row" class="text">A − B</th><td>\+([\d.]+) \[\+([\d.]+), \+([\d.]+)\]</td>', text)
    assert row
    decimals = len(row[1].partition(".")[2])
    assert [float(part) for part in row.groups()] == pytest.approx(
        [gap.mean(), gap.mean() - half, gap.mean() + half], abs=0.51 * 10**-decimals
    )
    assert f">{100 * values[0].mean():.1f} %</text>" in text
    assert "A is clearly ahead of B by test accuracy with 4 seeds." in text


def _said(values: dict[str, list[float]]) -> str:
    by_seed = {label: dict(enumerate(each)) for label, each in values.items()}
    return " ".join(
        words.answer(
            "test_accuracy", True, standings(by_seed, "test_accuracy", True), differences(by_seed, "test_accuracy")
        )
    )


def test_the_answer_claims_no_more_than_the_intervals() -> None:
    noise = np.array([0.01, -0.02, 0.015, 0.0])
    a = list(0.9 + noise)
    assert "With one seed nothing can be told apart" in _said({"A": [0.9], "B": [0.5]})
    assert "nothing to compare it with" in _said({"A": a})
    assert _said({"A": a, "B": list(0.899 - noise)}).startswith("A and B cannot be told apart with 4 seeds: every")
    clear = _said({"A": a, "B": list(0.8 + noise + [0.001, 0, 0, 0.002]), "C": list(0.7 + noise + [0, 0.001, 0, 0])})
    assert clear.startswith("A is clearly ahead of every other strategy by test accuracy with 4 seeds, by 9.9")
    mixed = _said({"A": a, "B": list(0.899 - noise), "C": list(0.5 + noise)})
    assert "A and B cannot be told apart with 4 seeds, and nothing is clearly ahead of them" in mixed
    assert "Both clearly beat C." in mixed
    # C is behind A, with which it shares its luck, but not clearly behind B, which is all over the place
    partly = _said({"A": a, "B": [0.95, 0.4, 0.99, 0.95], "C": list(0.8 + noise + [0.001, 0.0, 0.0, 0.002])})
    assert "C is clearly behind A only." in partly


def test_lower_is_better_where_it_is(folder: Path) -> None:
    story = tell([folder], metric="test_loss")
    assert list(finals(story, "test_loss")) == ["FedAvg", "FedAU", "gossip"]
    text = page(story)
    assert "FedAvg is clearly ahead of every other strategy by test loss with 2 seeds" in text
    assert text.index("Test loss, mean of the last fifth") < text.index("Test accuracy, mean of the last fifth")


def test_failures_and_absences_are_told(text: str) -> None:
    part = text[text.index('<section id="trouble">') : text.index('<section id="provenance">')]
    assert "failed after 20 rounds: it blew up" in part
    assert "not finished" in part
    assert "2 times a client was asked and did not answer" in part


def test_tuning_is_told_as_it_is_found(text: str) -> None:
    part = text[text.index('<section id="tuning">') : text.index('<section id="speed">')]
    for said in (
        "trials 4",
        "FedAU: lr lies on the edge",
        '<td class="text">lr 0.1</td>',
        '<td class="text">lr</td>',
        "0.25",
    ):
        assert said in part
    trials = part[part.index("What was tried for FedAU") :]
    assert trials.index("0.25") < trials.index("0.5"), "the best trial comes first"


def test_speed_and_its_shares(text: str) -> None:
    part = text[text.index('<section id="speed">') : text.index('<section id="trouble">')]
    assert re.search(r"FedAvg</th><td>2</td><td>100</td><td>50</td><td>25</td><td>25</td>", part)
    assert "x86_64, 1 thread" in part


def test_provenance_has_every_file_with_its_hash(folder: Path, text: str) -> None:
    import hashlib

    for name in ("metrics.csv", "result.json", "experiment.toml", "schedule-seed2.npz"):
        assert re.search(
            rf"{name}</th><td class=\"text long\">{hashlib.sha256((folder / name).read_bytes()).hexdigest()}", text
        )
    assert "fedsim run run/experiment.toml --out run-again" in text
    assert "seeds = [" in text


def test_what_a_second_buys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "run", ["A", "B"], [1])
    assert "against seconds" not in write_page(path).read_text()
    times = {(label, 1, t): 0.5 * t for label in "AB" for t in range(0, 41, 4)}
    monkeypatch.setattr("fedsim.record.read_times", lambda folder: times, raising=False)
    text = write_page(path).read_text()
    said = re.search(r'<desc id="against-seconds-desc">A: (.*?) at (.*?) 0, (.*?) at seconds of the run 20;', text)
    assert said
    assert said[3] == f"{100 * height(0, 1, 1.0):.1f} %"


def test_what_owns_its_loop_is_said(tmp_path: Path) -> None:
    path = made(tmp_path / "run", ["A", "B"], [1])
    result = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps({**result, "apart": ["B"], "together": 4}))
    text = write_page(path).read_text()
    assert "B owns its loop and ran by itself." in text
    assert "Up to 4 runs advanced side by side" in text


def test_labels_and_names_are_text(tmp_path: Path) -> None:
    path = made(tmp_path / "run", [EVIL, "B", "C"], [1, 2], name="a & b", gossip=False, more=[EVIL])
    (path / "tune.json").write_text(
        json.dumps({"warnings": [EVIL], "strategies": [{"label": EVIL, "trials": [{EVIL: 1}]}]})
    )
    (path / "absences.csv").write_text(f"strategy,seed,round,client,reason\nB,1,2,7,{EVIL.replace(chr(34), '')}\n")
    text = write_page(path).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    assert not Tree(text).all("script")
    assert "<title>a &amp; b</title>" in text


def test_values_that_are_no_numbers_do_not_spoil_the_page(tmp_path: Path) -> None:
    def value(place: int, seed: int, share: float) -> float:
        return (
            float("nan")
            if place == 1 and share > 0.5
            else float("inf")
            if place == 2 and share > 0.2
            else height(place, seed, share)
        )

    text = write_page(made(tmp_path / "run", value=value)).read_text()
    for drawing in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        assert "nan" not in re.sub(r"<(title|desc).*?</\1>", "", drawing)
        assert "inf" not in re.sub(r"<(title|desc).*?</\1>", "", drawing)
    Tree(text)


def test_a_folder_without_a_finished_run(tmp_path: Path) -> None:
    path = made(tmp_path / "run", ["A", "B"], [1], lost={("A", 1): "no", ("B", 1): "no"})
    assert "No run was finished that could be ranked." in write_page(path).read_text()


def test_a_network_too_large_is_not_drawn(tmp_path: Path) -> None:
    text = write_page(made(tmp_path / "run", task={"clients": 401}, clients=False, seeds=[1])).read_text()
    assert "ring (gossip) is not drawn" in text
    assert 'id="network-0-title"' not in text


# Drawings ------------------------------------------------------------------------------------------------------------


def test_a_curve_is_where_its_numbers_are() -> None:
    y = np.array([0.0, 1.0, 0.25])
    line = Line("A", Pen(0, 0), np.array([0.0, 1.0, 4.0]), y, y - 0.1, y + 0.1)
    drawn = plot("a", "t", "s", [line], span=(0.0, 2.0))
    path = re.search(r'class="line s0 d0" d="M([\d.]+),([\d.]+)L([\d.]+),([\d.]+)L([\d.]+),([\d.]+)"', drawn)
    assert path
    x0, y0, x1, y1, x2, y2 = map(float, path.groups())
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=1e-3)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(4.0, abs=0.02)
    assert y1 < y2 < y0, "higher numbers are drawn higher"
    assert drawn.count("band") == 1


def test_a_gap_stays_a_gap() -> None:
    line = Line("A", Pen(0, 0), np.arange(5.0), np.array([1.0, 2.0, np.nan, 2.0, 1.0]))
    path = re.search(r'class="line s0 d0" d="([^"]+)"', plot("a", "t", "s", [line]))
    assert path
    assert path[1].count("M") == 2


def test_thinning_keeps_the_extremes() -> None:
    m = 10_000
    y = np.zeros(m)
    low, high = y - 1, y + 1
    low[4321], high[8765] = -9.0, 7.0
    line = Line("A", Pen(0, 0), np.arange(float(m)), y, low, high)
    assert len(plot("a", "t", "s", [line])) < 15_000
    shown = thinned(line)
    assert len(shown.x) <= POINTS + 1
    assert (shown.x[0], shown.x[-1]) == (0.0, m - 1.0)
    assert shown.low is not None
    assert shown.high is not None
    assert (shown.low.min(), shown.high.max()) == (-9.0, 7.0)


def test_ticks_are_round_inside_and_told_apart() -> None:
    for low, high in ((0.0, 1.0), (0.123, 0.127), (-75.0, 3.0), (1e6, 5e6), (0.0, 1e-5)):
        ticks = Scale(low, high, 0.0, 100.0).ticks(5)
        texts = [plain(ticks)(value) for value in ticks]
        assert 2 <= len(ticks) <= 7
        assert low <= min(ticks) <= max(ticks) <= high
        assert len(set(texts)) == len(texts)
        for value, said in zip(ticks, texts, strict=True):
            assert float(said.replace("−", "-").replace(",", "")) == pytest.approx(value, abs=1e-3 * (high - low))


def test_a_logarithmic_scale_only_where_it_helps() -> None:
    assert scale([0.1, 10.0], 0, 1, log=True).log
    assert not scale([1.0, 2.0], 0, 1, log=True).log
    assert not scale([0.0, 10.0], 0, 1, log=True).log
    found = scale([0.1, 10.0], 0, 1, log=True, pad=0.0)
    assert found(1.0) == pytest.approx(0.5)
    assert found(0.0) == 0.0


# Several folders -----------------------------------------------------------------------------------------------------


def test_other_seeds_are_put_together(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", seeds=[1, 2]), made(tmp_path / "b", seeds=[3])
    whole = made(tmp_path / "c", seeds=[1, 2, 3])
    together, at_once = tell([first, second]), tell([whole])
    assert together.labels == at_once.labels == ["FedAvg", "FedAU", "gossip"]
    assert together.seeds == [1, 2, 3]
    assert finals(together, "test_accuracy") == finals(at_once, "test_accuracy")


def test_other_strategies_stand_side_by_side(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", ["A", "B"]), made(tmp_path / "b", ["C"])
    text = page(tell([first, second]))
    assert re.search(r"A − C</th><td>", text)
    assert "SHA-256 of the files of b" in text
    assert "fedsim report a b" in text


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"task": {"clients": 21}}, r"\[task\] differs in clients 20 and 21"),
        ({"task": {"partition": {"name": "iid"}}}, r"\[task\] differs in partition.name \"dirichlet\" and \"iid\""),
        ({"participation": {"probabilities": {"name": "equal", "p": 0.5}}}, r"differs in probabilities.p 0.3 and 0.5"),
        ({"local": {"lr": 0.2}}, r"\[local\] differs in lr 0.1 and 0.2"),
        ({"rounds": 44}, r"\[run\] differs in rounds 40 and 44"),
        ({"every": 8}, r"\[run\] differs in eval-every 4 and 8"),
        ({"run": {"dtype": "float64"}}, r"\[run\] differs in dtype"),
    ],
)  # fmt: skip
def test_what_is_not_comparable_is_refused(tmp_path: Path, table: dict[str, Any], said: str) -> None:
    first, second = made(tmp_path / "a", ["A"], [1]), made(tmp_path / "b", ["B"], [1], **table)
    with pytest.raises(ValueError, match=said) as refused:
        tell([first, second])
    assert "\n" not in str(refused.value)


def test_where_it_ran_does_not_matter(tmp_path: Path) -> None:
    first = made(tmp_path / "a", ["A"], [1])
    second = made(
        tmp_path / "b", ["B"], [1], run={"threads": 2, "device": "cpu", "memory": "2GiB"}, task={"data-dir": "d"}
    )
    assert tell([first, second]).labels == ["A", "B"]


def test_other_presence_is_refused(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", ["A"], [1]), made(tmp_path / "b", ["B"], [1])
    other = made(tmp_path / "c", ["B"], [2])
    (second / "schedule-seed1.npz").write_bytes((other / "schedule-seed2.npz").read_bytes())
    with pytest.raises(ValueError, match="with seed 1 other clients were present"):
        tell([first, second])


def test_a_label_for_two_settings_gets_its_folders_name(tmp_path: Path) -> None:
    first = made(tmp_path / "one" / "run", ["A", "B"], gossip=False)
    second = made(tmp_path / "two" / "run", ["A"], strategy=[{"name": "FedAvg", "label": "A", "lr": 0.5}])
    story = tell([first, second])
    assert story.labels == ["A (one/run)", "B", "A (two/run)"]
    assert {m.strategy for m in story.measurements} == set(story.labels)
    assert {run["strategy"] for run in story.runs} == set(story.labels)


def test_a_run_that_is_in_two_folders_counts_once(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", seeds=[1, 2]), made(tmp_path / "b", seeds=[2, 3])
    story = tell([first, second])
    assert len(story.runs) == 9
    assert finals(story, "test_accuracy") == finals(tell([made(tmp_path / "c")]), "test_accuracy")
    assert len(tell([first, first]).folders) == 1


def test_a_run_with_other_numbers_is_refused(tmp_path: Path) -> None:
    first = made(tmp_path / "a", ["A"], [1, 2])
    second = made(tmp_path / "b", ["A"], [2], value=lambda place, seed, share: height(place, seed, share) + 1e-9)
    with pytest.raises(
        ValueError, match=r"A with seed 2 is in .*a and in .*b with other numbers: leave one of them out"
    ):
        tell([first, second])


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path / "run", ["A", "B"])
    assert command("report", path) == 0
    assert capsys.readouterr().out == f"report: {path / 'report.html'}\n"
    first = (path / "report.html").read_text()
    assert command("report", path, "--out", tmp_path / "new" / "other.html") == 0
    assert (tmp_path / "new" / "other.html").read_text() == first


def test_the_command_puts_folders_together_with_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = made(tmp_path / "a", ["A", "B"]), made(tmp_path / "b", ["C"])
    assert command("report", *folders, "--csv", "--latex", "--markdown", "--baseline", "B", "--target", "0.5") == 0
    (out,) = tmp_path.glob("runs/made-report-*")
    names = [f"{name}.{form}" for name in ("paired", "rank", "targets") for form in ("csv", "md", "tex")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "report.html"])
    with open(out / "paired.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["first"], line["second"]) for line in lines] == [("A", "B"), ("C", "B")]
    with open(out / "targets.csv", newline="") as file:
        assert {float(line["target"]) for line in csv.DictReader(file)} == {0.5}
    text = (out / "report.html").read_text()
    assert "minus that of B" in text
    assert "fedsim report a b --baseline B --target 0.5" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metric", "test_acuracy"], "test_acuracy was not measured; did you mean 'test_accuracy'?"),
        (["--metric", "present"], "whether it is better high or low"),
        (["--baseline", "AA"], 'no strategy is called "AA"'),
        (["--target", "nan"], "--target must be a finite number"),
        (["--out", "run/metrics.csv"], "give a name that ends in .html"),
        (["nothing"], "there is no folder nothing; give the one that"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "run", ["A", "B"], [1])
    assert command("report", "run", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["result.json", "experiment.toml", "metrics.csv", "tune.json"])
def test_a_broken_file_is_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path / "run", ["A"], [1])
    (path / name).write_text('{"a": [}\nx\n')
    assert command("report", path) == 2
    assert name in capsys.readouterr().err


def test_the_page_stays_small(tmp_path: Path) -> None:
    """8 strategies, 5 seeds, 200 evaluations."""
    labels = [f"strategy {i}" for i in range(8)]
    more = ("train_objective", "worst_class_accuracy", "client_accuracy", "client_loss", "local_loss")
    path = made(tmp_path / "run", labels, range(1, 6), rounds=1000, every=5, more=more, task={"clients": 100})
    size = write_page(path).stat().st_size
    assert 200_000 < size < 2_000_000
