"""Shakespeare's next character: LEAF's examples and alphabet, the two forms of the text, what is refused."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import torch

from fedsim import LocalSGD, Stacked, data, federate, models, simulate
from fedsim.data.shakespeare import LETTERS, Shakespeare
from fedsim.participation import Everyone
from fedsim.strategies import FedAvg

ROLES = ["To be, or not  to be", "Ay\nme!", "O", "Who's there? \u00c9$"]
SPEECHES = "First Citizen:\nBefore we proceed.\n\nAll:\nSpeak,\nspeak.\n\nFirst Citizen:\nResolved.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """shakespeare/ with both forms."""
    place = tmp_path / "shakespeare"
    place.mkdir()
    lines = "".join(json.dumps({"client": str(i), "text": text}) + "\n" for i, text in enumerate(ROLES))
    (place / "roles.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    (place / "tinyshakespeare.txt").write_text(SPEECHES)
    return tmp_path


def words(tokens: torch.Tensor) -> str:
    return "".join(LETTERS[i] for i in tokens.tolist())


def test_examples(folder: Path) -> None:
    d = data.load("shakespeare", folder, length=4)
    assert (d.inputs.dtype, d.targets.dtype, d.classes, d.mean, len(LETTERS)) == (
        torch.int8, torch.int64, 80, None, 80,
    )  # fmt: skip
    assert d.natural is not None
    sizes = [19, 6, 15]  # two spaces count as one; "O" has but one example
    assert [len(rows) for rows in d.natural] == [int(0.9 * size) for size in sizes]
    assert len(d.test_inputs) == sum(sizes) - sum(map(len, d.natural))
    assert [words(row) for row in d.inputs[:6]] == ["    ", "   T", "  To", " To ", "To b", "o be"]
    assert words(d.targets[:17]) == "To be, or not to "
    assert words(d.test_targets[:2]) == "be"
    assert words(d.inputs[d.natural[1][3]]) == " Ay\n"
    assert words(d.test_targets[-2:]) == "}}"  # not in the alphabet


def test_stride_and_roles(folder: Path) -> None:
    d = data.load("shakespeare", folder, length=4, stride=3, roles=2)
    assert d.natural is not None
    assert [len(rows) for rows in d.natural] == [6, 4]  # ceil(19/3) = 7, ceil(15/3) = 5
    assert [words(row) for row in d.inputs[:3]] == ["    ", " To ", " be,"]
    assert words(d.targets[:6]) == "Tb  to"
    assert words(d.targets[6:]) == "W'tr"


def test_speeches(folder: Path) -> None:
    d = data.load("shakespeare", folder, text="tiny", length=5)
    assert d.natural is not None
    first, second = (words(d.targets[torch.from_numpy(rows)]) for rows in d.natural)
    assert first == "Before we proceed.\nResolved."[: int(0.9 * 28)]
    assert second == "Speak,\nspeak."[: int(0.9 * 13)]
    (folder / "shakespeare" / "tinyshakespeare.txt").rename(folder / "shakespeare" / "input.txt")
    assert torch.equal(data.load("shakespeare", folder, text="tiny", length=5).inputs, d.inputs)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"text": "tinny"}, "did you mean 'tiny'"),
        ({"length": 0}, "length must be at least 1"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"least": 1}, "least must be at least 2"),
        ({"roles": 4}, "roles must be at most the 3 there are, got 4"),
        ({"least": 100}, "has no role with 100 examples"),
        ({"lenght": 3}, "did you mean 'length'"),
    ],
)
def test_impossible_settings(folder: Path, settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        data.load("shakespeare", folder, **settings)
    assert text in str(caught.value)


def test_files_that_are_not_there_or_damaged(folder: Path) -> None:
    place = folder / "shakespeare"
    (place / "roles.jsonl.xz").write_bytes(b"\xfd7zXZ\x00damaged")
    with pytest.raises(ValueError, match=r"^[^\n]+roles\.jsonl\.xz cannot be read: Corrupt input data$"):
        data.load("shakespeare", folder)
    (place / "roles.jsonl").write_text('{"text": "To be"}\n["text"]\n')  # plain comes first
    with pytest.raises(ValueError, match=r'^[^\n]+roles\.jsonl, line 2: not a JSON object with a "text"$'):
        data.load("shakespeare", folder)
    (place / "tinyshakespeare.txt").write_text("All:\nSpeak\n\nEnter a ghost\n")
    with pytest.raises(ValueError, match=r"^[^\n]+ must begin with \"NAME:\", got 'Enter a ghost'$"):
        data.load("shakespeare", folder, text="tiny")
    for path in place.iterdir():
        path.unlink()
    for form, hint in (("roles", "one line of JSON for each role"), ("tiny", "karpathy/char-rnn")):
        with pytest.raises(FileNotFoundError, match=rf"^data shakespeare is not in [^\n]+{hint}[^\n]+--data-dir"):
            data.load("shakespeare", folder, text=form)


def test_a_federation_learns_to_speak(folder: Path) -> None:
    dataset = data.load("shakespeare", folder, length=6)
    task = federate(dataset, clients=3, model=lambda: models.build(models.Transformer(dim=16, depth=1), (6,), 80))
    schedule = Everyone().draw(3, 6, 1)
    losses = [
        step.round.loss.mean().item()
        for step in simulate(task, FedAvg(), schedule, LocalSGD(lr=0.5, steps=5, batch=8), seed=1, engine=Stacked(3))
    ]
    assert losses[-1] < 0.75 * losses[0]


def test_the_real_text(data_dir: Path) -> None:
    if not (data_dir / "shakespeare" / "roles.jsonl.xz").is_file():
        pytest.skip("FEDSIM_DATA names no folder with shakespeare")
    d = data.load(Shakespeare(stride=40, roles=100), data_dir)
    assert d.natural is not None
    assert len(d.natural) == 100
    assert min(map(len, d.natural)) > 100
    assert (d.targets == 79).float().mean() < 1e-3  # next to nothing outside the alphabet
