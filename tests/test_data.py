"""Data sets: what is in them, where they are sought, what is refused; and names that lead to the user's own code."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim import data, resolve
from fedsim.data import idx


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def tiny(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """mnist/ with 30 and 20 images, each file in another spelling."""
    (tmp_path / "mnist").mkdir()
    contents = [idx_bytes(array) for array in (*tiny(30, 0), *tiny(20, 1))]
    spellings = ["", ".gz", ".gz", ""]
    for i, (name, content, suffix) in enumerate(zip(idx.FILES, contents, spellings, strict=True)):
        name = name.replace("-idx", ".idx") if i % 2 else name
        (tmp_path / "mnist" / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    return tmp_path


# --- IDX --------------------------------------------------------------------------------------------------------------


def test_idx_files(folder):
    d = data.load("mnist", folder)
    assert torch.equal(d.inputs[:, 0], torch.from_numpy(tiny(30, 0)[0]))
    assert torch.equal(d.test_inputs[:, 0], torch.from_numpy(tiny(20, 1)[0]))
    assert d.targets.tolist() == [i % 10 for i in range(30)]
    assert (d.inputs.dtype, d.targets.dtype) == (torch.uint8, torch.int64)
    assert (d.inputs.shape, d.test_inputs.shape) == ((30, 1, 28, 28), (20, 1, 28, 28))
    assert (d.name, d.classes, d.mean, d.std, d.natural) == ("mnist", 10, 0.1307, 0.3081, None)
    d.inputs[0] += 1  # writable, not a view of the file


def test_where_files_are_sought(folder, tmp_path, monkeypatch):
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    assert data.directory() == Path("data")
    with pytest.raises(FileNotFoundError, match=r"^[^\n]+$") as caught:
        data.load("mnist")
    for part in (str(empty / "data" / "mnist"), *idx.FILES, "--data-dir", "FEDSIM_DATA", "data mnist is not in"):
        assert part in str(caught.value)
    (empty / "data").symlink_to(folder)
    assert len(data.load("mnist").targets) == 30
    monkeypatch.setenv("FEDSIM_DATA", str(empty / "nothing"))
    with pytest.raises(FileNotFoundError, match="nothing"):
        data.load("mnist")
    assert len(data.load("mnist", folder).targets) == 30  # the argument wins
    monkeypatch.setenv("FEDSIM_DATA", "")
    assert len(data.load("mnist").targets) == 30


def test_one_file_missing(folder):
    (folder / "mnist" / "train-labels.idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no train-labels-idx1-ubyte \\("):
        data.load("mnist", folder)
    with pytest.raises(FileNotFoundError, match="zalandoresearch"):
        data.load("fashion-mnist", folder)


def replaced(name: str, content: bytes):
    return lambda folder: (folder / "mnist" / name).write_bytes(content)


IMAGES, LABELS = tiny(30, 0)
PLAIN, ZIPPED = "train-images-idx3-ubyte", "train-labels.idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (replaced(PLAIN, b""), "is not an IDX file: it begins with nothing"),
        (replaced(PLAIN, b"<html>not found</html>"), "is not an IDX file: it begins with 3c 68 74 6d"),
        (replaced(PLAIN, b"\0\0\x08\0"), "is not an IDX file"),
        (replaced(PLAIN, b"\0\0\x08\x03\0\0"), "ends within its header"),
        (replaced(PLAIN, idx_bytes(IMAGES)[:-1]), "is truncated: its header promises 23520 bytes"),
        (replaced(PLAIN, idx_bytes(IMAGES) + b"x"), "has bytes left over"),
        (replaced(PLAIN, idx_bytes(IMAGES, kind=0x0D)), "IDX type 0x0d"),
        (replaced(PLAIN, idx_bytes(IMAGES[:, :14])), "holds an array [30, 14, 28]"),
        (replaced(PLAIN, idx_bytes(LABELS)), "holds an array [30]"),
        (replaced(PLAIN, idx_bytes(IMAGES[:29])), "29 images but train-labels.idx1-ubyte.gz has 30 labels"),
        (replaced(PLAIN, gzip.compress(idx_bytes(IMAGES))[:-9]), "is damaged: gzip says"),
        (replaced(ZIPPED, b"\x1f\x8bnonsense"), "is damaged: gzip says"),
        (replaced(ZIPPED, gzip.compress(idx_bytes(LABELS))[:20] + b"\xff" * 30), "is damaged: gzip says"),
        (replaced(ZIPPED, idx_bytes(LABELS + 3)), "holds the label 12 at 9; labels are 0 to 9"),
        (replaced(ZIPPED, idx_bytes(IMAGES)), "labels [N] were expected"),
        (
            lambda f: (replaced(PLAIN, idx_bytes(IMAGES[:0]))(f), replaced(ZIPPED, idx_bytes(LABELS[:0]))(f)),
            "has no images",
        ),
    ],
)
def test_damaged_files(folder, break_it, text):
    break_it(folder)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        data.load("mnist", folder)
    assert text in str(caught.value)
    assert str(folder / "mnist" / "train-") in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(folder):
    (folder / "mnist" / PLAIN).chmod(0)
    with pytest.raises(ValueError, match="cannot be read"):
        data.load("mnist", folder)


@pytest.mark.parametrize(
    ("name", "counts", "total"),
    [("mnist", [5923, 6742], 1_567_298_545), ("fashion-mnist", [6000, 6000], 3_431_114_169)],
)
def test_the_real_files(name, counts, total):
    if not os.environ.get("FEDSIM_DATA"):
        pytest.skip("needs FEDSIM_DATA, the folder that holds mnist/ and fashion-mnist/")
    d = data.load(name)
    assert (d.inputs.shape, d.test_inputs.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert d.targets.bincount()[:2].tolist() == counts
    assert int(d.inputs.sum(dtype=torch.int64)) == total
    assert (d.mean, d.std) == (0.1307, 0.3081)
    if name == "mnist":  # whose own statistics these are
        x = d.inputs.double() / 255
        assert (x.mean().item(), x.std().item()) == (pytest.approx(0.1307, abs=1e-4), pytest.approx(0.3081, abs=1e-4))


# --- embedded and synthetic -------------------------------------------------------------------------------------------


def test_digits():
    from sklearn.datasets import load_digits

    d = data.load("digits")
    assert (d.inputs.shape, d.test_inputs.shape) == ((1442, 1, 8, 8), (355, 1, 8, 8))
    every = torch.cat([d.targets, d.test_targets]).bincount()
    share = d.test_targets.bincount() / every
    assert ((share > 0.19) & (share <= 0.2)).all()
    rows = sorted(torch.cat([d.inputs, d.test_inputs]).flatten(1).tolist())
    assert rows == sorted(load_digits().data.astype(np.float32).tolist())
    x = torch.cat([d.inputs, d.test_inputs])
    assert (x.min(), x.max()) == (0, 16)
    assert (d.mean, d.std) == (pytest.approx(x.mean().item(), abs=1e-3), pytest.approx(x.std().item(), abs=1e-3))
    again = data.load("digits")
    assert torch.equal(d.inputs, again.inputs)
    digest = hashlib.sha256(d.targets.numpy().tobytes()).hexdigest()
    assert digest == hashlib.sha256(again.targets.numpy().tobytes()).hexdigest()


def test_digits_are_learned():
    """Labels and pixels belong together: nearest class mean, in one line of algebra."""
    d = data.load("digits")
    means = torch.stack([d.inputs[d.targets == c].mean(0) for c in range(10)]).flatten(1)
    guess = torch.cdist(d.test_inputs.flatten(1), means).argmin(1)
    assert (guess == d.test_targets).double().mean() > 0.85


def test_quadratic():
    d = data.load("quadratic")
    a, b = d.inputs.double().unbind(1)
    assert (a * b).sum() / a.sum() == 1.5
    kappa = 1 - (1 - 0.05 * a) ** 5
    assert ((kappa * b).sum() / kappa.sum()).item() == pytest.approx(1.680542, abs=1e-6)
    assert (d.classes, d.targets.tolist()) == (0, [0] * 4)
    assert [rows.tolist() for rows in d.natural or ()] == [[0], [1], [2], [3]]
    assert data.load("quadratic", a=(1.0,), b=(3.0,)).inputs.tolist() == [[1.0, 3.0]]


def test_clusters():
    d = data.load("clusters", classes=4, dimension=3, examples=4001, test_examples=401, spread=0.1)
    assert (d.inputs.shape, d.test_inputs.shape, d.inputs.dtype) == ((4001, 3), (401, 3), torch.float32)
    assert sorted(d.targets.bincount().tolist()) == [1000, 1000, 1000, 1001]
    assert d.targets[:20].diff().remainder(4).unique().numel() > 1  # neither sorted nor in turn
    for c in range(4):
        train, test = d.inputs[d.targets == c], d.test_inputs[d.test_targets == c]
        assert (train.std(0) - 0.1).abs().max() < 0.01
        assert (train.mean(0) - test.mean(0)).abs().max() < 5 * 0.1 / 10  # the same centres
    again, other = data.load("clusters"), data.load("clusters", seed=1)
    assert torch.equal(again.inputs, data.load("clusters").inputs)
    assert not torch.equal(again.inputs, other.inputs)


def test_no_global_generator_moves(folder):
    before = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()
    for name in data.NAMES:
        if name not in ("fashion-mnist", "cifar10", "shakespeare"):
            data.load(name, folder)
    assert (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()) == before


@pytest.mark.parametrize("name", data.NAMES)
def test_summaries(name):
    first = data.NAMES[name].__doc__.partition("\n")[0]
    assert 20 < len(first) < 117
    assert not first.startswith(data.NAMES[name].__name__ + "(")


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("minst", {}, "did you mean 'mnist'"),
        ("imagenet", {}, "known: cifar10, clusters, digits"),
        ("clusters", {"dim": 3}, "did you mean 'dimension'"),
        ("digits", {"seed": 3}, "no setting 'seed'; it has none"),
        ("clusters", {"classes": 1}, "classes must be at least 2"),
        ("clusters", {"dimension": 0}, "dimension must be"),
        ("clusters", {"examples": 5}, "at least the 10 classes"),
        ("clusters", {"spread": NAN}, "spread must be"),
        ("quadratic", {"a": (1.0,)}, "one number per client"),
        ("quadratic", {"a": (), "b": ()}, "one number per client"),
        ("quadratic", {"a": (0.0,), "b": (1.0,)}, "a must be positive, got 0.0"),
        ("quadratic", {"a": (1.0,), "b": (NAN,)}, "b must be finite"),
        (data.Digits(), {"seed": 3}, "made already"),
        (3, {}, "class or function"),
        (lambda: 3, {}, "gave a int"),
    ],
)
def test_load_refuses(name, settings, text):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        data.load(name, **settings)
    assert text in str(caught.value)


# --- the user's own ---------------------------------------------------------------------------------------------------


def test_load_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import torch\n"
        "from fedsim.data import Dataset\n"
        "def both(count=2, folder=None):\n"
        "    x = torch.ones(count, 3)\n"
        "    return Dataset(str(folder), x, torch.zeros(count).long(), x, torch.zeros(count).long(), 2)\n"
        "@dataclass(frozen=True)\n"
        "class Own:\n"
        "    count: int = 5\n"
        "    def load(self, folder=None):\n"
        "        return both(self.count, folder)\n"
    )
    assert data.load("mine.py:both", "there", count=4).inputs.shape == (4, 3)
    assert data.load("mine.py:both", "there").name == "there"
    assert len(data.load("mine.py:Own", count=3).targets) == 3
    assert len(data.load(resolve.dotted("mine.py:Own")()).targets) == 5  # type: ignore[operator]
    with pytest.raises(ValueError, match="did you mean 'count'"):
        data.load("mine.py:Own", coutn=3)


def sound() -> data.Dataset:
    x, y = torch.ones(4, 2, 3), torch.tensor([0, 1, 2, 0])
    return data.Dataset("mine", x, y, x.clone(), y.clone(), 3)


def with_value(value: float) -> torch.Tensor:
    x = torch.ones(4, 2, 3)
    x[2, 1, 0] = value
    return x


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": with_value(NAN)}, "training example 2 of 4 holds NaN or infinity"),
        ({"test_inputs": with_value(float("inf"))}, "test example 2 of 4 holds NaN or infinity"),
        ({"inputs": torch.ones(4)}, "inputs must be [N, ...]"),
        ({"inputs": torch.ones(0, 2)}, "inputs must be [N, ...]"),
        ({"inputs": np.ones((4, 2))}, "must be tensors"),
        ({"inputs": torch.ones(4, 2, 3).bool()}, "cannot be torch.bool"),
        ({"targets": torch.zeros(3).long()}, "4 training inputs but targets [3]"),
        ({"targets": torch.zeros(4)}, "must be int64"),
        ({"targets": torch.tensor([0, 1, 2, 3])}, "training labels are 0 to 3, outside 0 to 2"),
        ({"test_targets": torch.tensor([0, -1, 2, 1])}, "test labels are -1 to 2, outside 0 to 2"),
        ({"test_inputs": torch.ones(4, 2, 4)}, "training examples are [2, 3] but test examples [2, 4]"),
        ({"classes": -1}, "classes must be"),
        ({"mean": 1.0}, "given together"),
        ({"mean": 1.0, "std": 0.0}, "std must be positive"),
        ({"mean": (1.0, 1.0), "std": (1.0, NAN)}, "must be finite"),
        ({"mean": (1.0,), "std": (1.0,)}, "each of 2 channels"),
        ({"natural": (np.array([0, 1]), np.array([1, 2, 3]))}, "each of the 4 examples once"),
        ({"natural": (np.array([0, 1]), np.array([2]))}, "each of the 4 examples once"),
    ],
)
def test_check_refuses(change, text):
    with pytest.raises(ValueError, match=r"^data mine: [^\n]+$") as caught:
        data.check(sound()._replace(**change))
    assert text in str(caught.value)


def test_check_accepts():
    for change in ({}, {"mean": (0.0, 1.0), "std": (1.0, 2.0)}, {"natural": (np.array([3, 1]), np.array([2, 0]))}):
        good = sound()._replace(**change)
        assert data.check(good) is good


# --- resolve ----------------------------------------------------------------------------------------------------------


def test_dotted(tmp_path):
    assert resolve.dotted("fedsim.data:Digits") is data.Digits
    assert resolve.dotted("fedsim.data:Digits.load") is data.Digits.load
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "helper.py").write_text("VALUE = 3")
    (tmp_path / "sub" / "one.py").write_text(
        "from __future__ import annotations\nimport helper\nfrom dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass A:\n    x: int = helper.VALUE\n"
    )
    path = list(sys.path)
    a = resolve.dotted("sub/one.py:A", tmp_path)
    assert a().x == 3  # type: ignore[operator]
    assert a is resolve.dotted("one.py:A", tmp_path / "sub") is resolve.dotted(f"{tmp_path}/sub/one.py:A")
    assert resolve.dotted("sub.one:A", tmp_path) is not None
    assert sys.path == path
    (tmp_path / "sub" / "one.py").write_text("A = 'something else'")
    assert resolve.dotted("sub/one.py:A", tmp_path) == "something else"
    sys.modules.pop("sub.one"), sys.modules.pop("sub"), sys.modules.pop("helper")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fedsim.data", "is not a dotted path"),
        ("fedsim.data:", "is not a dotted path"),
        (":Digits", "is not a dotted path"),
        ("fedsim.data:Digits()", "is not a dotted path"),
        ("fedsim.data:Digit", "has no 'Digit'; did you mean 'Digits'"),
        ("fedsim.data:Digits.lood", "has no 'Digits.lood'; did you mean 'load'"),
        ("no_such.module:A", "there is no module 'no_such'"),
        ("fedsim.no_such:A", "there is no module 'fedsim.no_such'"),
        ("some/file:A", "neither a module name nor a file"),
        ("broken.py:A", "failed with ZeroDivisionError: division by zero"),
        ("syntax.py:A", "failed with SyntaxError"),
        ("leaves.py:A", "failed with SystemExit: 3"),
        ("needs.py:A", "failed with ModuleNotFoundError: No module named 'no_such_thing'"),
        ("needs:A", "failed with ModuleNotFoundError: No module named 'no_such_thing'"),
        ("broken:A", "failed with ZeroDivisionError"),
    ],
)
def test_dotted_refuses(name, text, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "syntax.py").write_text("def def")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    (tmp_path / "needs.py").write_text("import no_such_thing")
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        resolve.dotted(name, tmp_path)
    assert text in str(caught.value)
    assert name in str(caught.value)
    assert not {m for m in set(sys.modules) - before if m.startswith("fedsim_user")}


def test_dotted_file_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no file {tmp_path}/a/b.py; "):
        resolve.dotted("a/b.py:A", tmp_path)


def test_is_dotted():
    assert resolve.is_dotted("a.b:C")
    assert resolve.is_dotted("a.py:C")
    assert not resolve.is_dotted("fashion-mnist")


def test_nearest():
    names = ["FedAvg", "FedAU", "label-swap"]
    assert resolve.nearest("fedau", names) == "; did you mean 'FedAU'?"
    assert resolve.nearest("label_swap", names) == "; did you mean 'label-swap'?"
    assert resolve.nearest("zzz", names) == "; known: FedAU, FedAvg, label-swap"
    assert resolve.nearest("swap", names) == "; did you mean 'label-swap'?"
    assert resolve.nearest("f", ["FedAvg", "FedAU"]) == "; known: FedAU, FedAvg"
    assert resolve.nearest("", names) == "; known: FedAU, FedAvg, label-swap"
    assert resolve.nearest("zzz", []) == ""


def test_call():
    def make(shape, width=3, *, deep):
        return shape, width, deep

    assert resolve.call("it", make, {"shape": 1, "classes": 2}, {"deep": 5}) == (1, 3, 5)
    with pytest.raises(ValueError, match="it needs the setting 'deep'"):
        resolve.call("it", make, {"shape": 1}, {})
    with pytest.raises(ValueError, match="it has no setting 'classes'"):
        resolve.call("it", make, {"shape": 1, "classes": 2}, {"deep": 5, "classes": 2})
    assert resolve.call("it", lambda **rest: rest, {"shape": 1}, {"deep": 5}) == {"deep": 5}
