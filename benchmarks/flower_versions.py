"""Claim: fedsim's Flower doors work with the oldest and the newest flwr of the range that pyproject.toml states.

For each version a virtual environment in a temporary directory gets that flwr with all that it requires, as pip
resolves it today (the lower protobuf, typer, grpcio and so on of an old flwr included). What fedsim needs besides
(torch, numpy, pytest, fedsim itself from this checkout) is not installed again: a .pth file appends the packages of
the environment that runs this script, so they are found after the new ones. Then the tests of doors 1 to 4 run in it.
Ray, SuperLinks and SuperNodes are left out: they take minutes per version. A version whose requirements pip does not
find is said to be refused and tested alone, over the packages of this checkout; the next one takes its place.

    python benchmarks/flower_versions.py                       # results go to benchmarks/results/flower_versions.json
    python benchmarks/flower_versions.py --versions 1.40.0
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS = ["test_flower.py", "test_flower_over.py", "test_flower_hosts.py", "test_flower_cohort.py"]
SHOWN = ("flwr", "torch", "numpy", "protobuf", "grpcio", "typer", "click")
LOOK = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="*", help="default: the oldest and the newest of the supported range")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/flower_versions.json")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    if options.versions:
        found = [check(version) for version in options.versions]
    else:
        inside = available(supported())
        for order in (inside, inside[::-1]):  # from the oldest on, and from the newest back, to one that installs
            for version in order:
                found.append(check(version))
                if found[-1]["whole"]:
                    break
    found.sort(key=lambda one: [int(part) for part in one["packages"]["flwr"].split(".")])
    result = {"range": supported(), "python": platform.python_version(), "tests": TESTS, "versions": found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(any(one["failed"] or not one["passed"] for one in found))


def supported() -> str:
    """The range of flwr in pyproject.toml, such as ">=1.38,<1.43"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (found,) = [need.removeprefix("flwr") for need in project["dependencies"] if re.match(r"flwr[<>=~]", need)]
    return str(found)


def available(given: str) -> list[str]:
    """The versions in the range that pip finds, ascending."""
    said = pip(sys.executable, "index", "versions", "flwr")
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    (line,) = [line for line in said.splitlines() if line.startswith("Available versions:")]
    return sorted(SpecifierSet(given).filter(line.partition(":")[2].replace(",", " ").split()), key=Version)


def check(version: str) -> dict[str, Any]:
    """How the tests do with that flwr."""
    with tempfile.TemporaryDirectory(prefix="fedsim-flwr-") as temporary:
        folder = Path(temporary)
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv/bin/python")
        print(f"flwr {version}: installing", flush=True)
        refused = None
        try:
            pip(python, "install", "-qqq", f"flwr=={version}")
        except subprocess.CalledProcessError:
            said = pip(python, "install", "--quiet", f"flwr=={version}", check=False)
            refused = next(line for line in said.splitlines() if line.startswith("ERROR:")).partition(
                " (from versions"
            )[0]
            pip(python, "install", "-qqq", "--no-deps", f"flwr=={version}")
        paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        (Path(sysconfig.get_path("purelib", vars=paths)) / "beside.pth").write_text(
            f"{sysconfig.get_path('purelib')}\n{ROOT}\n"
        )
        said = subprocess.run([python, "-c", LOOK % (SHOWN,)], capture_output=True, text=True, check=True).stdout
        report = folder / "report.xml"
        environment = {
            **os.environ, "FLWR_HOME": str(folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        arguments = [
            *(f"tests/{name}" for name in TESTS),
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not runtimes",
            f"--junitxml={report}",
        ]
        done = subprocess.run(
            [python, "-m", "pytest", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        (suite,) = ET.parse(report).getroot().iter("testsuite")
        counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        failed = counts["failures"] + counts["errors"]
        names = [
            f"{case.attrib['classname']}::{case.attrib['name']}"
            for case in suite.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None
        ]
        print(f"flwr {version}: {done.stdout.strip().splitlines()[-1]}", flush=True)
        return {
            "packages": json.loads(said),
            "whole": refused is None,  # with all that it requires; otherwise alone, over the packages of this checkout
            "refused": refused,
            "passed": counts["tests"] - failed - counts["skipped"],
            "failed": failed,
            "skipped": counts["skipped"],
            "failures": names,
        }


def pip(python: str, *arguments: str, check: bool = True) -> str:
    """What pip says. Raises CalledProcessError where it fails."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if check:
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    main()
