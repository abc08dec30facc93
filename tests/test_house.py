"""The house itself: light to enter, true to its README, clean of what does not belong in it."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedsim
from fedsim import strategies

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
PACKAGE = ROOT / "fedsim"

HEAVY = ("torch", "flwr", "matplotlib", "sklearn", "networkx", "safetensors", "ray")


def tracked() -> list[Path]:
    """The repository's files."""
    try:
        out = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so there is no list of files")
    return [ROOT / name for name in out.stdout.decode().splitlines() if (ROOT / name).is_file()]


def blocks(language: str) -> list[str]:
    """The README's fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("module", [
    "fedsim", "fedsim.strategies", "fedsim.weights", "fedsim.mixing", "fedsim.participation", "fedsim.topology",
    "fedsim.local", "fedsim.data", "fedsim.models", "fedsim.experiment", "fedsim.cli",
])  # fmt: skip
def test_entering_is_light(module: str) -> None:
    """Settings are validated before anything heavy is imported."""
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_only_one_room_knows_flower() -> None:
    for path in PACKAGE.rglob("*.py"):
        if (
            "flower" not in path.relative_to(PACKAGE).parts and path.name != "with_flower.py"
        ):  # that one drives Flower as a rival
            assert not re.search(r"^\s*(import|from) flwr", path.read_text(), flags=re.MULTILINE), path


def test_every_public_name_is_there_and_explained() -> None:
    for name in fedsim.__all__:
        assert getattr(fedsim, name).__doc__, name
    for info in pkgutil.walk_packages([str(PACKAGE)], "fedsim."):
        module = importlib.import_module(info.name)
        assert module.__doc__, info.name
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name or ".cli" in info.name:
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                assert value.__doc__, f"{info.name}.{name} has no docstring"


@pytest.mark.parametrize("name", strategies.__all__)
def test_a_strategy_is_one_short_file_that_names_its_paper(name: str) -> None:
    cls = getattr(strategies, name)
    path = Path(inspect.getsourcefile(cls) or "")
    text = path.read_text()
    assert "https://arxiv.org/abs/" in inspect.getmodule(cls).__doc__, path  # type: ignore[operator,union-attr]
    assert re.search(r"\(\d{4}\.\d{5}\)$", cls.__doc__.splitlines()[0]), f"{name}: first line ends with its arXiv id"
    assert len(text.splitlines()) < 160
    assert isinstance(cls(), cls)


def test_the_strategy_table_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\[(\w+\.py)\]\((\S+)\)", README, flags=re.MULTILINE)
    assert [row[0] for row in rows] == sorted(strategies.__all__, key=str.lower)
    for name, label, link in rows:
        path = ROOT / link
        assert path.name == label
        assert path == Path(inspect.getsourcefile(getattr(strategies, name)) or "")


def test_the_tree_shows_every_file() -> None:
    """Names every module of the package, and nothing that is not there."""
    tree = next(block for block in blocks("text") if block.startswith("fedsim/"))
    shown = set(re.findall(r"[\w./-]+\.(?:py|toml|json|txt|md)|[\w-]+/", tree))
    for path in PACKAGE.rglob("*.py"):
        room = path.parent.name + "/" if path.parent != PACKAGE else ""
        assert path.name == "__init__.py" or path.name in shown or room in ("strategies/",), path
    for name in shown:
        assert list(ROOT.rglob(name.rstrip("/"))), f"the README's tree shows {name}, which is not there"


def test_tables_and_pictures_stand_by_themselves() -> None:
    """Without an empty line a page shows the text after a table as its last row, and a picture inside a paragraph."""
    text = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    for before, line in itertools.pairwise(text.splitlines()):
        for mark in ("|", "!["):
            if line.startswith(mark) != before.startswith(mark):
                assert not (line and before), f"an empty line is missing between {before[:60]!r} and {line[:60]!r}"


def test_links_lead_somewhere() -> None:
    for text, link in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", README):
        if "://" not in link and not link.startswith("#"):
            assert (ROOT / link.split("#")[0]).exists(), f"[{text}]({link})"


def test_the_readmes_program_prints_what_it_says(tmp_path: Path) -> None:
    program = blocks("python")[0]
    assert len(program.splitlines()) <= 14
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    said = [line.split() for line in blocks("text")[0].splitlines()]
    found = [line.split() for line in out.stdout.splitlines()]
    assert len(said) == len(found) > 1
    for a, b in zip(said, found, strict=True):  # numbers to 0.02: other processors round otherwise
        for x, y in zip(a, b, strict=True):
            assert x == y or abs(float(x) - float(y)) <= 0.02, (a, b)


def test_no_file_names_a_machine_or_a_host() -> None:
    """No absolute path of a machine, and no package registry."""
    unwanted = re.compile("/" "work/|/" "root/|/" r"home/\w|pypi\." "org|python" r"hosted|download\." "pytorch")
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".yml", "") and path.name != "LICENSE":
            found = unwanted.search(path.read_text(errors="ignore"))
            assert not found, f"{path.relative_to(ROOT)} names {found.group() if found else ''}"


def test_the_readmes_own_strategy_runs(tmp_path: Path) -> None:
    """Its file beside an experiment that names it, through the command line."""
    (tmp_path / "halfway.py").write_text(blocks("python")[1])
    (tmp_path / "experiment.toml").write_text(
        '[task]\nclients = 10\n[local]\nsteps = 1\n[[strategy]]\nname = "halfway.py:Halfway"\nshare = 0.3\n'
        "[run]\nrounds = 2\nthreads = 1\n"
    )
    command = [sys.executable, "-m", "fedsim.cli", "run", "experiment.toml", "--out", "run", "--quiet"]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "Halfway" in (tmp_path / "run" / "result.json").read_text()


def test_the_readmes_experiment_is_valid() -> None:
    """Read and checked, not run: it wants Fashion-MNIST."""
    from fedsim import experiment

    assert [entry.label for entry in experiment.parse(tomllib.loads(blocks("toml")[0])).entries] == [
        "FedAU",
        "FedStale",
        "DPSGD",
    ]


@pytest.mark.parametrize("door", ["FlowerStrategy", "CohortGrid"])
def test_the_readmes_flower_programs_run(door: str, tmp_path: Path) -> None:
    """The one over `simulation` starts Ray and is tested in test_flower_runtimes.py."""
    program = next(block for block in blocks("python") if f"import {door}" in block)
    if door == "FlowerStrategy":
        program += "\nfrom fedsim.flower import InProcessGrid\nmain(InProcessGrid(client, 10), None)\n"
        program = program.replace("@server.main()\n", "")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "Final Global Arrays" in out.stdout or "Result" in out.stdout or "Metrics" in out.stdout
