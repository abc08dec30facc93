"""Tensors written down piece by piece: what safetensors reads is what they were, and no second copy is made of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim import tensors
from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.events import Stand
from fedsim.rows import Rows
from fedsim.standing import Progress, save

G = torch.Generator().manual_seed(1)


def every_kind() -> dict[str, Tensor]:
    """Tensors of all kinds of numbers and shapes, some sharing memory, some in another order than it lies in."""
    kinds = [getattr(torch, name) for name in tensors.KINDS]
    found = {str(kind): (torch.rand(5, 3, generator=G) * 7).to(kind) for kind in kinds}
    x = torch.rand(6, 4, 2, generator=G)
    return found | {
        "number": torch.tensor(2.5), "nothing": torch.zeros(0, 3), "x": x, "its part": x[1:3], "é": torch.tensor(True),
        "turned": x.permute(2, 0, 1), "spread": torch.rand(3, generator=G).expand(4, 3), "one": torch.ones(1),
        "every other": torch.arange(9)[::2], "the first": torch.arange(2)[::2], "again": torch.tensor(3).expand(5),
    }  # fmt: skip


@pytest.mark.parametrize("piece", [1, 40, tensors.PIECE])
def test_safetensors_reads_them(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PIECE", piece)
    put = every_kind()
    data = b"".join(tensors.written(put, {"note": "é"}))
    (tmp_path / "t.safetensors").write_bytes(data)
    for got in (load(data), load_file(tmp_path / "t.safetensors")):
        assert sorted(got) == sorted(put)
        for name, tensor in put.items():
            assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
            assert torch.equal(got[name], tensor), name
    assert load(b"".join(tensors.written({}))) == {}


def test_what_a_file_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"state\.x is of torch\.complex64, which a checkpoint does not hold"):
        save_checkpoint(tmp_path / "c", Plain(torch.zeros(3, dtype=torch.complex64)), 0)
    assert list(tmp_path.iterdir()) == []


class Plain(NamedTuple):
    x: Tensor


class Large(NamedTuple):
    """About 1.5 MB, 0.5 MB of them a table of clients."""

    x: Tensor
    turned: Tensor
    h: Rows
    same: Tensor


def large() -> Large:
    x = torch.rand(1000, 64, generator=G)
    h = Rows(torch.full((4000,), 1 / 4000), x[0])
    h[torch.arange(2000)] = torch.rand(2000, 64, generator=G)
    return Large(x, torch.rand(64, 2000, generator=G).T, h, x)


class Watch(TorchDispatchMode):
    """The most bytes that an operation has taken for what it gives, in `most`."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {part.untyped_storage().data_ptr() for part in args if isinstance(part, Tensor)}
        for part in [out] if isinstance(out, Tensor) else []:
            if part.untyped_storage().data_ptr() not in given:
                self.most = max(self.most, part.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("how", ["a run's", "a state's"])
def test_no_copy_is_made_of_a_state(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large a state is, writing it down takes a few pieces: what a run takes does not grow with checkpoints."""
    monkeypatch.setattr(tensors, "PIECE", 2**14)
    state = large()

    def once() -> None:
        if how == "a run's":
            save(tmp_path, Stand({("here", 1): Progress(state, done=3)}, [], {}, {}))
        else:
            save_checkpoint(tmp_path / "c", state, 3)

    with Watch():
        once()  # what is imported for it is there now
    with Watch() as watch:
        tracemalloc.start()
        try:
            once()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert 0 < watch.most <= 2**15, "a tensor was copied as a whole"
    assert peak < 2**18, "the bytes of the file were there as a whole"


def test_what_shares_memory_does_not_when_it_is_read(tmp_path: Path) -> None:
    state = large()
    save_checkpoint(tmp_path / "c", state, 3)
    read, _, _ = load_checkpoint(tmp_path / "c", Large(*(torch.zeros_like(part) if isinstance(part, Tensor) else
        Rows(torch.full((4000,), 1 / 4000), torch.zeros(64)) for part in state)))  # fmt: skip
    assert torch.equal(read.x, state.x)
    assert torch.equal(read.turned, state.turned)
    assert torch.equal(read.h.dense(), state.h.dense())
    read.same.zero_()
    assert torch.equal(read.x, state.x)
