"""What all tests share. Warnings are errors (pyproject.toml)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# one thread, here and in every process a test starts: results depend on the number, and machines are shared
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data sets (mnist/, fashion-mnist/, ...), for the tests that need them."""
    folder = os.environ.get("FEDSIM_DATA")
    if not folder:
        pytest.skip("needs real data: set FEDSIM_DATA to the folder that holds mnist/ and fashion-mnist/")
    if not Path(folder).is_dir():
        pytest.skip(f"needs real data, but FEDSIM_DATA names {folder}, which is no folder")
    return Path(folder)
