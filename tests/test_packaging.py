"""What is shipped: the wheel, and the versions it is tested with."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedsim

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout, with the hatchling that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_recipes_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"fedsim-{fedsim.__version__}.dist-info"
        assert "fedsim = fedsim.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    recipes = {path.name for path in (ROOT / "topologies").iterdir()}
    assert {f"fedsim/topologies/{name}" for name in recipes} <= names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fedsim").rglob("*.py")}
    assert modules <= names
    assert {name.partition("/")[0] for name in names} == {"fedsim", info}


def test_recipes_are_found_in_an_installed_package(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import fedsim.topology as t; print(t.__file__); print(*t.recipes())"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    place, recipes = ran.stdout.splitlines()
    assert place == str(tmp_path / "fedsim" / "topology.py")
    assert set(recipes.split()) == {path.stem for path in (ROOT / "topologies").glob("*.toml")}


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert list(pins) == sorted(pins)
    assert not [name for name in pins if name != canonicalize_name(name)]
    assert not [version for version in pins.values() if "+" in version]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    for requirement in map(Requirement, asked):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} does not admit the tested {pin}"
