"""Products in another precision: torch is told, and what it does to a gradient is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import LocalSGD, cli, compare, experiment, federate
from fedsim.engine import precision

TABLES: dict[str, Any] = {
    "task": {"data": "clusters", "clients": 4, "model": "mlp"},
    "participation": "everyone",
    "local": {"lr": 0.1, "steps": 1, "batch": 4},
    "strategy": [{"name": "FedAvg"}],
    "run": {"rounds": 1, "device": "cpu"},
}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    precision.use("float32")


def told() -> set[str]:
    """What torch's parts are told."""
    mkldnn, cuda = torch.backends.mkldnn, (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    return {part.fp32_precision for part in (mkldnn.matmul, mkldnn.conv, *cuda)}


def test_torch_is_told() -> None:
    for products, words in (("tf32", {"tf32"}), ("bfloat16", {"bf16", "tf32"}), ("float32", {"ieee"})):
        precision.use(products)
        assert told() == words


def test_how_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing where the machine multiplies in float32 all the same; else what rounding its factors does."""
    task, local = federate("clusters", clients=4, model="mlp"), LocalSGD(lr=0.1, steps=1, batch=4)
    assert precision.off(task, [local], "float32") == 0.0
    use, outputs = precision.use, type(task.outputs_of).__call__

    def coarse(products: str) -> None:
        use(products)
        short = products == "bfloat16"

        def rounded(self: Any, params: Any, inputs: torch.Tensor, key: Any) -> torch.Tensor:
            if short:
                params = {
                    name: value + (value.bfloat16().to(value.dtype) - value).detach() for name, value in params.items()
                }
            found: torch.Tensor = outputs(self, params, inputs, key)
            return found

        monkeypatch.setattr(type(task.outputs_of), "__call__", rounded)

    monkeypatch.setattr(precision, "use", coarse)
    assert 1e-5 < precision.off(task, [local, LocalSGD(lr=0.1, epochs=1, batch=2)], "bfloat16") < 0.05
    assert told() == {"bf16", "tf32"}


def test_a_run_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In an event, on the screen and in the environment that is kept; nothing of float32's or float64's."""
    planned = next(iter(compare.compare(experiment.parse(TABLES))))
    assert isinstance(planned, compare.Planned)
    assert planned.rounding is None
    for run, said in (({"products": "tf32"}, True), ({"products": "tf32", "dtype": "float64"}, False)):
        planned = next(iter(compare.compare(experiment.parse({**TABLES, "run": {**TABLES["run"], **run}}))))
        assert isinstance(planned, compare.Planned)
        assert (planned.rounding is not None) == said
    file = tmp_path / "coarse.toml"
    file.write_text(experiment.parse({**TABLES, "run": {**TABLES["run"], "products": "bfloat16"}}).toml())
    with pytest.raises(SystemExit) as exit:
        cli.main(["run", str(file), "--out", str(tmp_path / "run")])
    assert exit.value.code == 0
    assert "products in bfloat16: a gradient is" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["rounding"] >= 0
