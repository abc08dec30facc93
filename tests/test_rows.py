"""Rows: a table that holds what was written and nothing else, and knows its weighted mean."""

from __future__ import annotations

import copy
import mmap
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import F64, Frozen, bernoulli, close, copied, models, same, uniform
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fedsim.rows
from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.rows import Rows, allocate, reserve, room
from fedsim.strategies import FedVARP


def table(n: int = 50, size: int = 4, dtype: torch.dtype = F64, seed: int = 0) -> tuple[Rows, Tensor, torch.Generator]:
    """An empty table with uneven weights p [n]."""
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(n, dtype=F64, generator=g)
    p = p / p.sum()
    return Rows(p, torch.zeros(size, dtype=dtype)), p, g


def cohort(n: int, k: int, g: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=g)[:k].sort().values


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
def test_against_a_plain_table_over_a_long_random_history(dtype: torch.dtype) -> None:
    rows, p, g = table(dtype=dtype)
    plain, written = torch.zeros(50, 4, dtype=dtype), torch.zeros(50, dtype=torch.bool)
    for t in range(3000):
        who = cohort(50, int(torch.randint(0, 9, (), generator=g)), g)
        # sizes from 1e-3 to 1e3, so that a sum that drifts would show
        values = (torch.randn(len(who), 4, dtype=F64, generator=g) * 10 ** (3 * torch.rand(1, generator=g) - 1.5)).to(
            dtype
        )
        rows[who] = values
        plain[who], written[who] = values, True
        if t % 100 == 0 or t == 2999:
            assert torch.equal(rows.dense(), plain)
            assert torch.equal(rows.seen(), written)
            assert torch.equal(rows[who], plain[who])
            close(rows.total, p @ plain.to(F64), 1e-12)
            close(rows.mean, (p @ plain.to(F64)).to(dtype), 1e-12)
            assert rows.mean.dtype == dtype


def test_the_running_mean_is_relatively_exact_over_a_long_history() -> None:
    rows, p, g = table(n=20, size=100)
    for _ in range(20_000):
        rows[cohort(20, 3, g)] = torch.randn(3, 100, dtype=F64, generator=g)
    exact = p @ rows.dense()
    assert ((rows.mean - exact).norm() / exact.norm()).item() < 1e-12


def test_absent_rows_are_untouched_bit_for_bit() -> None:
    rows, _, g = table()
    rows[torch.arange(50)] = torch.randn(50, 4, dtype=F64, generator=g)
    for _ in range(50):
        before, who = rows.dense(), cohort(50, 7, g)
        rows[who] = torch.randn(7, 4, dtype=F64, generator=g)
        gone = torch.tensor([i for i in range(50) if i not in who])
        assert torch.equal(rows[gone], before[gone])


def test_storage_grows_with_those_who_appeared() -> None:
    """A million clients of whom thirty appear cost thirty rows, or not many more."""
    rows = Rows(uniform(1_000_000), torch.zeros(8))
    assert rows.data.numel() == 0
    assert torch.equal(rows[torch.tensor([3, 999_999])], torch.zeros(2, 8))
    g = torch.Generator().manual_seed(0)
    who = cohort(1_000_000, 30, g)
    for _ in range(200):
        few = who[cohort(30, 5, g)]
        rows[few] = torch.randn(5, 8, generator=g)
    assert rows.seen().sum() <= 30
    assert len(rows.data) <= 60
    assert len(rows.tensors()["data"]) == int(rows.used) == int(rows.seen().sum())


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_in_host_memory_a_table_grows_where_it_is() -> None:
    """Ten thousand rows of 400 kB are set aside, of which those written are taken: growing copies nothing."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    rows, values = Rows(uniform(10_000), torch.zeros(100_000)), torch.ones(8, 100_000)
    rows[torch.arange(8)] = values
    place, before = rows.data.data_ptr(), resident()
    for first in range(8, 168, 8):
        rows[torch.arange(first, first + 8)] = values
    taken = resident() - before
    assert rows.data.data_ptr() == place
    assert 160 * 400_000 <= taken < 1.2 * 160 * 400_000 + 2**23


def test_without_address_space_it_grows_by_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than there are addresses; and a system that gives none."""
    assert reserve(2**62) is None
    assert reserve(0) is None
    here = torch.device("cpu")
    assert allocate(2, 2**40, 2**20, torch.float32, here).shape == (2, 2**20)
    assert allocate(2, 50, 8, torch.float32, here).shape == (50, 8)
    monkeypatch.setattr("fedsim.rows.reserve", lambda size: None)
    rows, _, _ = table(n=1000)
    stored = []
    for first in range(0, 100, 10):
        rows[torch.arange(first, first + 10)] = torch.ones(10, 4, dtype=F64)
        stored.append(len(rows._whole) - 1)
    assert stored == [10, 20, 30, 45, 60, 60, 90, 90, 90, 135]


def test_a_deep_copy_is_of_the_rows_in_use() -> None:
    """And not of all the memory set aside, here 40 GB."""
    rows = Rows(uniform(10_000), torch.zeros(1_000_000))
    rows[torch.tensor([7])] = torch.ones(1, 1_000_000)
    twin = copy.deepcopy(rows)
    rows[torch.tensor([7])] = torch.zeros(1, 1_000_000)
    assert twin[torch.tensor([7])].sum() == 1_000_000


def test_a_table_that_is_small_beside_the_room_has_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where growing copies: 50 rows of 16 bytes are a quarter of 3200."""
    monkeypatch.setattr("fedsim.rows.reserve", lambda size: None)
    for free, stored in ((3200, 50), (3199, 10)):
        monkeypatch.setattr("fedsim.rows.room", lambda device, free=free: free)
        rows, _, _ = table(dtype=torch.float32)
        rows[torch.arange(10)] = torch.ones(10, 4)
        assert (len(rows._whole) - 1, rows.host) == (stored, False)


@pytest.mark.parametrize("host", [False, True])
def test_an_exchange_writes_and_tells_what_was_there(host: bool) -> None:
    """In one pass the same as by reading, adding up and writing."""
    (rows, _, g), (plain, _, _) = table(n=20, size=23), table(n=20, size=23)
    rows.host = plain.host = host
    for k in (3, 0, 7, 20, 1):
        who, w = cohort(20, k, g), torch.randn(k, dtype=F64, generator=g)
        values = torch.randn(k, 23, dtype=F64, generator=g)
        expected = (w @ values, w @ plain[who])
        plain[who] = values
        for told, sums in zip(rows.exchange(who, values, w), expected, strict=True):
            assert told.dtype == F64
            close(told, sums, 1e-14)
        close(rows, plain, 1e-14)
        same(rows.dense(), plain.dense())


def test_growth_in_steps_of_every_kind() -> None:
    """One by one, all at once, overlapping, and until the table is full."""
    rows, _, g = table(n=23)
    plain = torch.zeros(23, 4, dtype=F64)
    plan = [
        [22],
        [0],
        [0, 22],
        [1, 2, 3],
        [],
        [3, 4],
        list(range(5, 15)),
        [14, 15],
        list(range(23)),
        [7],
        list(range(23)),
    ]
    for listed in plan:
        who = torch.tensor(listed, dtype=torch.int64)
        values = torch.randn(len(listed), 4, dtype=F64, generator=g)
        rows[who], plain[who] = values, values
        assert torch.equal(rows.dense(), plain)
    assert len(rows.data) == 23


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("wide", [1, 6, 23])
def test_written_by_pieces_it_holds_the_same(host: bool, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole, _, g), (pieces, _, _) = table(n=20, size=23), table(n=20, size=23)
    for _ in range(30):
        who = cohort(20, int(torch.randint(1, 9, (), generator=g)), g)
        values = torch.randn(len(who), 23, dtype=F64, generator=g)
        whole[who] = values
        monkeypatch.setitem(fedsim.rows.PIECE, "cpu", 20)  # of few columns and few rows, the last ones smaller
        monkeypatch.setattr(fedsim.rows, "WIDE", wide)
        pieces.host = host
        pieces[who] = values
        monkeypatch.undo()
    assert torch.equal(pieces.dense(), whole.dense())
    close(pieces.total, whole.total, 1e-14)


def test_reading_gives_copies_and_writing_takes_copies() -> None:
    rows, _, _ = table()
    values, who = torch.ones(2, 4, dtype=F64), torch.tensor([1, 2])
    rows[who] = values
    values += 1
    read = rows[who]
    read += 5
    mean = rows.mean
    kept = mean.clone()
    assert torch.equal(rows[who], torch.ones(2, 4, dtype=F64))
    rows[torch.tensor([3])] = torch.ones(1, 4, dtype=F64)
    assert torch.equal(mean, kept), "a mean that was read changes when the table is written"


def test_an_absent_client_counts_as_zero_in_the_mean() -> None:
    rows = Rows(torch.tensor([0.5, 0.25, 0.25], dtype=F64), torch.zeros(1, dtype=F64))
    assert rows.mean.tolist() == [0]
    rows[torch.tensor([1])] = torch.tensor([[8.0]], dtype=F64)
    assert rows.mean.tolist() == [2]
    assert rows.seen().tolist() == [False, True, False]
    assert rows.seen(torch.tensor([2, 1])).tolist() == [False, True]


def test_copies_and_checkpoints_hold_the_same_and_share_nothing() -> None:
    rows, _, g = table()
    for k in (3, 5, 8):
        rows[cohort(50, k, g)] = torch.randn(k, 4, dtype=F64, generator=g)
    twin, back = copied(rows), Rows(uniform(50), torch.zeros(4, dtype=F64)).restored(rows.tensors())
    same(rows, twin)
    same(rows, back)
    for _ in range(30):
        who, values = cohort(50, 6, g), torch.randn(6, 4, dtype=F64, generator=g)
        rows[who] = values
        back[who] = values
    same(rows, back)
    with pytest.raises(AssertionError):
        same(rows, twin)
    assert torch.equal(back.p, rows.p)


def test_a_float32_table_keeps_its_mean_in_float64() -> None:
    """So that 10⁵ small changes do not wander off."""
    rows = Rows(uniform(2), torch.zeros(1))
    who = torch.tensor([0])
    for i in range(20_001):
        rows[who] = torch.tensor([[0.1 if i % 2 else 1000.1]])
    exact = torch.tensor(1000.1).double() / 2
    assert rows.total.item() == pytest.approx(exact.item(), rel=1e-12)


def test_an_empty_cohort_reads_and_writes_nothing() -> None:
    rows, _, g = table()
    nobody = torch.empty(0, dtype=torch.int64)
    assert rows[nobody].shape == (0, 4)
    rows[nobody] = torch.empty(0, 4, dtype=F64)
    assert len(rows.data) == 0
    rows[torch.tensor([4])] = torch.randn(1, 4, dtype=F64, generator=g)
    assert rows[nobody].shape == (0, 4)
    assert len(rows) == 50
    assert "n=50" in repr(rows)


# Rows that do not fit where training runs ----------------------------------------------------------------------------


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is there or not: none can be set aside for later."""
    monkeypatch.setattr("fedsim.rows.reserve", lambda size: None)


class Room:
    """Stands in for `fedsim.rows.room`: enough until it is asked for the `until`-th time, then none."""

    def __init__(self, until: float) -> None:
        self.until, self.asked = until, 0

    def __call__(self, device: torch.device) -> int | None:
        self.asked += 1
        return None if self.asked < self.until else 0


def history(rows: Rows, g: torch.Generator, rounds: int) -> list[Tensor]:
    """What can be read of a table after every write of a random history."""
    told = []
    for _ in range(rounds):
        who = cohort(len(rows), int(torch.randint(0, 6, (), generator=g)), g)
        rows[who] = torch.randn(len(who), 4, generator=g)
        told += [rows.dense(), rows[cohort(len(rows), 9, g)], rows.total.clone(), rows.mean, rows.seen()]
    return told


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("moment", [1, 2, 3, 5])
def test_moved_to_host_memory_at_any_moment_it_tells_the_same_bit_for_bit(
    moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough, short = Room(until=float("inf")), Room(until=moment)
    monkeypatch.setattr("fedsim.rows.room", enough)
    rows, _, g = table(dtype=torch.float32)
    stayed = history(rows, g, rounds=60)
    assert not rows.host
    assert "host memory" not in repr(rows)
    monkeypatch.setattr("fedsim.rows.room", short)
    rows, _, g = table(dtype=torch.float32)
    moved = history(rows, g, rounds=60)
    assert rows.host
    assert "host memory" in repr(rows)
    assert enough.asked > 5
    assert short.asked == moment, "once in host memory it asks no more"
    assert all(torch.equal(a, b) for a, b in zip(stayed, moved, strict=True))


@pytest.mark.usefixtures("like_a_gpu")
def test_it_moves_when_the_table_is_larger_than_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not before: ten rows of four numbers in float32 are 160 bytes."""
    for free, goes in ((160, False), (159, True)):
        monkeypatch.setattr("fedsim.rows.room", lambda device, free=free: free)
        rows, _, _ = table(dtype=torch.float32)
        rows[torch.arange(10)] = torch.ones(10, 4)
        assert rows.host is goes


@pytest.mark.usefixtures("like_a_gpu")
def test_it_moves_when_the_device_says_that_it_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _, g = table()
    rows[torch.arange(5)] = torch.randn(5, 4, dtype=F64, generator=g)
    before, attempts = rows.dense(), []

    def allocate(*args: Any) -> Tensor:
        attempts.append(args)
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("no more")
        return memory(*args)

    memory = fedsim.rows.allocate
    monkeypatch.setattr("fedsim.rows.allocate", allocate)
    rows[torch.arange(10, 20)] = torch.ones(10, 4, dtype=F64)
    assert rows.host
    assert len(attempts) == 2
    assert torch.equal(rows[torch.arange(5)], before[:5])
    assert torch.equal(rows[torch.arange(10, 20)], torch.ones(10, 4, dtype=F64))


@pytest.mark.usefixtures("like_a_gpu")
def test_from_host_memory_it_is_copied_saved_and_restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To where there is room, or to host memory again; and goes on bit for bit."""
    monkeypatch.setattr("fedsim.rows.room", Room(until=2))
    rows, p, g = table(dtype=torch.float32)
    history(rows, g, rounds=10)
    assert rows.host
    save_checkpoint(tmp_path / "t.safetensors", Memory(rows.mean, rows), 10)
    twins = []
    for until in (float("inf"), 1):
        monkeypatch.setattr("fedsim.rows.room", Room(until))
        fresh = Memory(torch.zeros(4), Rows(p, torch.zeros(4)))
        loaded, _, _ = load_checkpoint(tmp_path / "t.safetensors", fresh)
        twins.append(loaded.h)
    monkeypatch.setattr("fedsim.rows.room", Room(until=float("inf")))
    twins.append(rows.copy())
    assert [twin.host for twin in twins] == [False, True, True], "what had to leave does not come back"
    later = g.get_state()
    expected = history(rows, g, rounds=30)
    for twin in twins:
        g.set_state(later)
        assert all(torch.equal(a, b) for a, b in zip(expected, history(twin, g, rounds=30), strict=True))


class Memory(NamedTuple):
    """A strategy's state."""

    x: Tensor
    h: Rows


def test_in_host_memory_too_a_million_clients_cost_what_those_seen_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.rows.room", lambda device: 0)
    rows, g = Rows(uniform(1_000_000), torch.zeros(8)), torch.Generator().manual_seed(0)
    who = cohort(1_000_000, 100, g)
    for _ in range(100):
        rows[who[cohort(100, 10, g)]] = torch.randn(10, 8, generator=g)
    assert rows.host
    assert rows.seen().sum() == 100
    assert len(rows.data) <= 160
    assert len(rows.tensors()["data"]) == 100


def test_a_strategy_does_not_notice_where_its_memory_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, presence = Frozen(torch.randn(6, 3)), bernoulli(0.4, 6, 20)
    runs = []
    for until in (float("inf"), 2):
        monkeypatch.setattr("fedsim.rows.room", Room(until))
        runs.append(models(FedVARP(), engine, presence, n=6, x=torch.zeros(3)))
    assert torch.equal(*runs)


class Apart(TorchDispatchMode):
    """Fails where tensors of two devices meet, other than in a copy made on purpose."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kinds = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim}
        assert len(kinds) < 2 or "copy" in func.__name__, f"{func} mixes {kinds}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("host", [False, True])
def test_only_the_rows_leave_a_device_and_only_they_come_back(host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is not there, whose tensors cannot be asked for values and must not meet the host's."""
    monkeypatch.setattr("fedsim.rows.room", lambda device: 0 if host else 10**9)
    with FakeTensorMode(allow_non_fake_inputs=True), Apart():
        rows = Rows(torch.ones(5, dtype=F64, device="lazy"), torch.zeros(4, device="lazy"))
        everyone, some = torch.arange(5, device="lazy"), torch.arange(0, 5, 2, device="lazy")
        rows[everyone] = torch.ones(5, 4, device="lazy")
        rows[some] = 2 * rows[some]
        assert rows.host is host
        assert rows.data.device.type == ("cpu" if host else "lazy")
        kept = (rows[some], rows.mean, rows.total, rows.dense(), rows.slot, rows.used)
        assert {tensor.device.type for tensor in kept} == {"lazy"}


def test_how_much_room_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 bytes 30 are free; of the 40 that this process holds 25 were in use at the most; 8 are left alone."""
    assert room(torch.device("cpu")) is None
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (30, 80))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 40)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 25)
    assert room(torch.device("cuda")) == 30 + (40 - 25) - 8


@pytest.mark.parametrize("host", [False, True])
def test_other_weights_change_the_mean_and_nothing_else(host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.rows.room", lambda device: 0 if host else None)
    monkeypatch.setattr("fedsim.rows.BLOCK", 4)  # so that there are several, the last not full
    rows, _, g = table()
    for k in (3, 5, 6):
        rows[cohort(50, k, g)] = torch.randn(k, 4, dtype=F64, generator=g)
    before, p = rows.dense(), torch.rand(50, dtype=F64, generator=g)
    rows.reweigh(p)
    assert torch.equal(rows.dense(), before)
    close(rows.total, p @ before, 1e-13)
    assert torch.equal(rows.p, p)
    who = torch.tensor([0, 49])
    rows[who] = torch.ones(2, 4, dtype=F64)
    close(rows.mean, p @ rows.dense(), 1e-13)
