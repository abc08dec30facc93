"""Shakespeare's next character: every speaking role is a client. Caldas et al. 2018, LEAF (1812.01097)

Read from text, in one of two forms: `roles`, a file of JSON lines, one for each role, with the role's `text`; or
`tiny`, speeches under their speaker's name and a colon, with empty lines between.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedsim import resolve
from fedsim.data.dataset import Dataset
from fedsim.guarded import unpacked

# LEAF's alphabet of 80 characters (models/utils/language_utils.py); what is not in it counts as the last one, as there
LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
TRAIN = 0.9  # the share of a role's examples to train on, LEAF's default

Form = Literal["roles", "tiny"]
FILES: dict[str, tuple[str, ...]] = {
    "roles": ("roles.jsonl", "roles.jsonl.xz"),
    "tiny": ("tinyshakespeare.txt", "input.txt"),
}
ORIGIN = {
    "roles": 'write one line of JSON for each role, {"text": "..."}, into it',
    "tiny": "get input.txt from github.com/karpathy/char-rnn (data/tinyshakespeare) and put it there",
}


@dataclass(frozen=True)
class Shakespeare:
    """The next character of Shakespeare's plays, speaking roles as clients. Caldas et al. 2018 (1812.01097)

    As in LEAF: an example is `length` characters and the one that follows, of an alphabet of 80; spaces stand before a
    role's first words; the model is to read tokens, such as `transformer`. One example every `stride` characters (LEAF:
    each). A role's examples are divided 9 to 1 into training and test examples; LEAF draws the latter, here they are
    the last ones, so that no character is foretold in both. Each role's words are one text, line breaks included;
    LEAF starts anew with every speech. Roles with fewer than `least` examples are left out; `roles` keeps only so many,
    those with most to say. `text` is the form of the file.
    """

    text: Form = "roles"
    length: int = 80
    stride: int = 1
    least: int = 2
    roles: int | None = None

    def __post_init__(self) -> None:
        if self.text not in get_args(Form):
            raise ValueError(f"text {self.text!r} is not known{resolve.nearest(str(self.text), get_args(Form))}")
        for name, low in (("length", 1), ("stride", 1), ("least", 2), ("roles", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")

    def load(self, folder: Path | None = None) -> Dataset:
        """inputs [N, length] int8 tokens, targets the next one; FileNotFoundError says where the file was sought."""
        import torch

        from fedsim.data import directory

        path = find((directory(folder) / "shakespeare").absolute(), self.text)
        said = [coded(text) for text in (by_role(path) if self.text == "roles" else by_speaker(path))]
        said = [codes for codes in said if -(-len(codes) // self.stride) >= self.least]
        if self.roles is not None and self.roles > len(said):
            raise ValueError(f"data shakespeare: roles must be at most the {len(said)} there are, got {self.roles}")
        most = sorted(sorted(range(len(said)), key=lambda i: -len(said[i]))[: self.roles])
        if not most:
            raise ValueError(f"data shakespeare: {path} has no role with {self.least} examples")
        pairs = [windows(said[i], self.length, self.stride) for i in most]
        cuts = [max(1, int(TRAIN * len(targets))) for _, targets in pairs]
        ends = np.cumsum(cuts)

        def joined(parts: list[NDArray[np.int8]], dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(parts)).to(dtype)

        return Dataset(
            "shakespeare",
            joined([inputs[:cut] for (inputs, _), cut in zip(pairs, cuts, strict=True)], torch.int8),
            joined([targets[:cut] for (_, targets), cut in zip(pairs, cuts, strict=True)], torch.int64),
            joined([inputs[cut:] for (inputs, _), cut in zip(pairs, cuts, strict=True)], torch.int8),
            joined([targets[cut:] for (_, targets), cut in zip(pairs, cuts, strict=True)], torch.int64),
            classes=len(LETTERS),
            natural=tuple(np.arange(end - cut, end) for cut, end in zip(cuts, ends, strict=True)),
        )


def find(place: Path, form: str) -> Path:
    """The file of a form in a folder."""
    for name in FILES[form]:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(
        f"data shakespeare is not in {place}: no {' or '.join(FILES[form])}; {ORIGIN[form]}, or name the folder that"
        " holds shakespeare/ with --data-dir or FEDSIM_DATA"
    )


def by_role(path: Path) -> list[str]:
    """What each role says, from JSON lines. Raises ValueError, one line, for anything else."""
    try:
        content = unpacked(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        lines = content.decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {resolve.line(error).removeprefix('ValueError: ')}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f'{path}, line {number}: not a JSON object with a "text"')
        found.append(text)
    return found


def by_speaker(path: Path) -> list[str]:
    """What each speaker says, from speeches under names. Raises ValueError, one line, for anything else."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {resolve.line(error)}") from error
    found: dict[str, list[str]] = {}
    for speech in re.split(r"\n{2,}", content.strip("\n")):
        name, _, words = speech.partition("\n")
        if not name.endswith(":"):
            raise ValueError(f'{path}: a speech must begin with "NAME:", got {name[:60]!r}')
        found.setdefault(name, []).append(words)
    return ["\n".join(speeches) for speeches in found.values()]


def coded(text: str) -> NDArray[np.int8]:
    """The tokens of a text [l], spaces in a row as one."""
    table = np.full(128, len(LETTERS) - 1, dtype=np.int8)
    table[[ord(letter) for letter in LETTERS]] = np.arange(len(LETTERS), dtype=np.int8)
    points = np.frombuffer(re.sub("  +", " ", text).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    codes: NDArray[np.int8] = table[np.minimum(points, 127)]
    return codes


def windows(codes: NDArray[np.int8], length: int, stride: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Inputs [m, length] and what follows each [m], every `stride` characters of a text [l], m = ceil(l / stride)."""
    padded = np.concatenate([np.full(length, LETTERS.index(" "), dtype=np.int8), codes])
    views = np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::stride]
    return views[:, :-1], views[:, -1]
