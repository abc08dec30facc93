"""From names to objects: the user's own code by dotted path, and what to say when a name is not known.

resolve.dotted("package.module:Name")     an importable module; looked for beside the experiment file too
resolve.dotted("mine.py:Name", base)      a file, relative to `base` (the folder of the experiment file)
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Family:
    """Marks a field for a family of `fedsim.experiment.settings` whose members share no base class:
    Annotated[Any, Family("data")]."""

    word: str


def is_dotted(name: str) -> bool:
    """Whether a name is a path to the user's own code rather than one of ours: it has a colon."""
    return ":" in name


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error line about an unknown name: the closest choice where one is close, else all of them."""
    names = sorted(choices)
    word = name.lower().replace("_", "-")
    folded = {choice.lower().replace("_", "-"): choice for choice in names}
    close = difflib.get_close_matches(word, folded, n=1, cutoff=0.6) or [
        each for each in folded if word and word in each
    ]
    if len(close) == 1:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def line(error: BaseException) -> str:
    """An exception as one line: its type and its text without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def dotted(name: str, base: Path | None = None) -> object:
    """The object that "package.module:Name" or "path/file.py:Name" names; Name may have dots.

    A relative file is sought in `base` (default: the working directory), and so are packages that Python's own path
    does not have. A file is run once, however many names are taken from it.

    Raises FileNotFoundError when the file is not there, ValueError for everything else, each one line.
    """
    where, colon, attribute = name.rpartition(":")
    if not (colon and where and all(part.isidentifier() for part in attribute.split("."))):
        raise ValueError(f"{name!r} is not a dotted path; write 'package.module:Name' or 'path/file.py:Name'")
    folder = Path.cwd() if base is None else Path(base)
    module = _file(name, folder / where) if where.endswith(".py") else _module(name, where, folder)
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [key for key in vars(found) if not key.startswith("_")] if hasattr(found, "__dict__") else []
            raise ValueError(f"{name!r}: {where} has no {attribute!r}{nearest(part, public)}")
        found = getattr(found, part)
    return found


def call(
    label: str, factory: Callable[..., object], offered: Mapping[str, object], settings: Mapping[str, object]
) -> object:
    """factory(**settings), and what is `offered` where the signature has a parameter of that name.

    Raises ValueError, one line that begins with the label, for a setting that is unknown or missing.
    """
    signature = inspect.signature(factory).parameters
    named = {n: p for n, p in signature.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in signature.values()):
        check_settings(label, settings, [name for name in named if name not in offered])
    arguments = {name: value for name, value in offered.items() if name in named} | dict(settings)
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise ValueError(f"{label} needs the setting {name!r}")
    return factory(**arguments)


def check_settings(label: str, settings: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for the first setting that is not known."""
    known = list(known)
    for name in settings:
        if name not in known:
            raise ValueError(f"{label} has no setting {name!r}{nearest(name, known) or '; it has none'}")


def _module(name: str, where: str, folder: Path) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        raise ValueError(f"{name!r}: {where!r} is neither a module name nor a file ending in .py")
    try:
        with _path(folder):
            return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise ValueError(
                f"{name!r}: there is no module {error.name!r} on Python's path or in {folder.absolute()};"
                " install it, or name a file as 'path/file.py:Name'"
            ) from None
        raise ValueError(f"{name!r}: importing {where} failed with {line(error)}") from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything at all
        raise ValueError(f"{name!r}: importing {where} failed with {line(error)}") from error


def _file(name: str, path: Path) -> ModuleType:
    path = path.absolute()
    if not path.is_file():
        raise FileNotFoundError(f"{name!r}: there is no file {path}; the part before the colon is a path to a .py file")
    try:
        stat = path.stat()
        return _run(path, stat.st_mtime_ns, stat.st_size)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name!r}: running {path} failed with {line(error)}") from error


@functools.cache
def _run(path: Path, changed: int, size: int) -> ModuleType:
    """The module a file makes; once per version of the file, so that a class taken twice is one class."""
    key = hashlib.blake2b(f"{path}|{changed}|{size}".encode(), digest_size=6).hexdigest()
    spec = importlib.util.spec_from_file_location(f"fedsim_user_{path.stem}_{key}", path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up by name
    try:
        with _path(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@contextlib.contextmanager
def _path(folder: Path) -> Iterator[None]:
    """Let imports find a folder, after everything that is installed."""
    entry = str(folder.absolute())
    if entry in sys.path:
        yield
        return
    sys.path.append(entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the imported code may have edited the path
            sys.path.remove(entry)
