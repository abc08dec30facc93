"""What all tests share. Warnings are errors (pyproject.toml)."""

from __future__ import annotations

import os
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

# one thread, here and in every process a test starts: results depend on the number, and machines are shared
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Operators of our own are compiled before the first test, once: not in each worker, nor within a test's time."""
    if not hasattr(config, "workerinput"):
        from fedsim import native

        native.operators()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data sets (mnist/, fashion-mnist/, ...), for the tests that need them."""
    folder = os.environ.get("FEDSIM_DATA")
    if not folder:
        pytest.skip("needs real data: set FEDSIM_DATA to the folder that holds mnist/ and fashion-mnist/")
    if not Path(folder).is_dir():
        pytest.skip(f"needs real data, but FEDSIM_DATA names {folder}, which is no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar10_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cifar10/data_batch_1.bin and test_batch.bin, as published, for data with batches = 1.

    They are where they were published, or decoded (about 2 s a batch) from cifar10/*.med.xz with the codec beside them.
    """
    source = data_dir / "cifar10"
    if (source / "data_batch_1.bin").is_file() and (source / "test_batch.bin").is_file():
        return data_dir
    if not (source / "codec.py").is_file():
        pytest.skip(f"needs CIFAR-10: {source} has neither the published .bin files nor codec.py to make them")
    codec = runpy.run_path(str(source / "codec.py"))
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10").mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / "cifar10" / f"{name}.bin").write_bytes(codec["to_bin"](name, str(source)))
    return folder


@pytest.fixture(scope="module")
def undrawn() -> Iterator[list[Path]]:
    """Figures are no matter here, and take their time: the folders they were asked of."""
    asked: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.report.write_figures", asked.append)
        patch.setattr("fedsim.report.page.write_page", lambda folder: (folder / "report.html").write_text(""))
        yield asked
