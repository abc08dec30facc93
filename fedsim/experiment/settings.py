"""Settings in TOML: how a table becomes a frozen dataclass (`writing` makes it a table again).

Everything an experiment file can name (strategies, weights, participation, data sets, models, ...) is a frozen
dataclass of plain settings, listed in a table of its module. One mechanism reads them all: keys are field names with
`-` for `_`, types are the fields' annotations, checked strictly by pydantic, ranges are the dataclass's own business.
Nothing here needs torch, so a mistake is found before it is imported. A field that may be a `Path` names a file, sought
from the experiment's folder.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import operator
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedsim import resolve
from fedsim.resolve import Family

Place = tuple[str | int, ...]  # where in the file: ("strategy", 0, "weights")

FAMILIES: dict[str, tuple[str, str]] = {  # word -> module, table of names
    "strategy": ("fedsim.strategies", "NAMES"),
    "weights": ("fedsim.weights", "NAMES"),
    "mixing": ("fedsim.mixing", "NAMES"),
    "compressor": ("fedsim.compress", "NAMES"),
    "participation": ("fedsim.participation", "NAMES"),
    "probabilities": ("fedsim.participation", "PROBABILITIES"),
    "data": ("fedsim.data", "NAMES"),
    "partition": ("fedsim.data.partition", "NAMES"),
    "model": ("fedsim.models", "NAMES"),
    "curriculum": ("fedsim.curricula", "NAMES"),
    "lr-schedule": ("fedsim.lr_schedules", "SCHEDULES"),
}


class Mistake(ValueError):
    """What a user got wrong: one line, and the place in the experiment file."""

    def __init__(self, place: Place, text: str, key: str | None = None) -> None:
        super().__init__(text)
        self.place = place
        self.text = text
        self.key = key


class Several(Mistake):
    """A list where one value goes: what `fedsim sweep` takes for values to try one after another."""


def unfit(value: Any, place: Place, text: str, key: str | None = None, lists: bool = False) -> Mistake:
    """What to raise for a value that is not of its setting's kind; `lists`: there are lists that would be."""
    if isinstance(value, list) and value and not lists:
        return Several(place, text, key)
    return Mistake(place, text, key)


@dataclass(frozen=True)
class Custom:
    """The user's own function or class, by dotted path, and the settings to call it with; for data and models."""

    path: str
    make: Any = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)


@functools.cache
def names(family: str) -> dict[str, type[Any]]:
    """What a family's members are called in a file."""
    module, table = FAMILIES[family]
    found: dict[str, type[Any]] = getattr(importlib.import_module(module), table)
    return found


def family_of(hint: object) -> str | None:
    """The family whose members an annotation asks for; None for plain values."""
    if get_origin(hint) is Annotated:
        return next((mark.word for mark in get_args(hint) if isinstance(mark, Family)), None)
    if not isinstance(hint, type) or hint in (int, float, str, bool, Path, type(None), tuple):
        return None
    return next((f for f in FAMILIES if any(issubclass(member, hint) for member in names(f).values())), None)


# ---------------------------------------------------------------------------------------------------------------------
# The settings of a class
# ---------------------------------------------------------------------------------------------------------------------


def key_of(name: str) -> str:
    """A field's name as a key."""
    return name.replace("_", "-")


@dataclass(frozen=True)
class Setting:
    """One field that a file may set."""

    name: str
    options: tuple[Any, ...]  # the annotation, unions taken apart
    families: tuple[str, ...]
    default: Any  # dataclasses.MISSING: has to be given

    @property
    def key(self) -> str:
        return key_of(self.name)

    @property
    def optional(self) -> bool:
        return type(None) in self.options

    @property
    def file(self) -> bool:
        return Path in self.options


@functools.cache
def settings_of(cls: type) -> dict[str, Setting]:
    """The fields of a dataclass that a file may set, by key.

    A field whose annotation is neither plain values nor a family (a graph, a layout) is left to the builder.
    """
    found = {}
    for f in dataclasses.fields(cls):
        options = _options(_annotation(cls, f))
        families = tuple(family for option in options if (family := family_of(option)))
        if f.init and options and all(family_of(option) or _plain(option) for option in options):
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            found[key_of(f.name)] = Setting(f.name, options, families, default)
    return found


def _annotation(cls: type, f: dataclasses.Field[Any]) -> Any:
    """A field's annotation as an object, None where it names what only a type checker imports."""
    if not isinstance(f.type, str):
        return f.type
    owner = next(base for base in cls.__mro__ if f.name in inspect.get_annotations(base))
    try:
        return eval(f.type, dict(vars(sys.modules[owner.__module__])))
    except NameError:
        return None


def _options(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(option for arm in get_args(hint) for option in _options(arm))
    return () if hint is None else (hint,)


def _plain(hint: Any) -> bool:
    if hint in (int, float, str, bool, Path, type(None)) or get_origin(hint) is Literal:
        return True
    return get_origin(hint) is tuple and all(arm is Ellipsis or _plain(arm) for arm in get_args(hint))


# ---------------------------------------------------------------------------------------------------------------------
# Tables -> objects
# ---------------------------------------------------------------------------------------------------------------------


def build(family: str, value: object, place: Place, base: Path) -> Any:
    """The member of a family that a name, or a table with a name and settings, describes."""
    if not isinstance(value, (str, dict)):
        raise unfit(value, place, f'must be a name or a table {{name = "...", ...}}, got {show(value)}')
    table = dict(value) if isinstance(value, dict) else {"name": value}
    if "name" not in table:
        raise Mistake(place, f'missing key "name"{resolve.nearest("", names(family))}')
    name = table.pop("name")
    if not isinstance(name, str):
        raise Mistake(place, f"name must be text, got {show(name)}")
    return make(member(family, name, place, base), family, name, table, place, base)


def member(family: str, name: str, place: Place, base: Path, key: str = "name") -> Any:
    """The class that a name or a dotted path stands for."""
    if name.startswith("flwr:"):
        raise Mistake(place, f"{name} is a strategy of Flower, which stands by itself: name it in a [[strategy]]", key)
    if resolve.is_dotted(name):
        try:
            return resolve.dotted(name, base)
        except (ValueError, OSError) as error:
            raise Mistake(place, str(error), key) from error
    if name not in names(family):
        raise Mistake(place, f"unknown {family} {show(name)}{resolve.nearest(name, names(family))}", key)
    return names(family)[name]


def make(cls: Any, family: str, name: str, table: Mapping[str, Any], place: Place, base: Path) -> Any:
    """An object of a class from its settings."""
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        return instance(cls, table, place, base)
    if family in ("data", "model") and callable(cls):
        return Custom(name, cls, {key.replace("-", "_"): value for key, value in table.items()})
    if family == "mixing" and callable(cls) and not isinstance(cls, type):  # a function of the round gives its graph
        from fedsim.mixing import Changing

        return instance(Changing, table, place, base, Changing(cls))
    what = "is not a dataclass" if isinstance(cls, type) else f"is a {type(cls).__name__}, not a class"
    raise Mistake(place, f"{name} {what}; a {family} is a frozen dataclass of its settings")


def instance(cls: type, table: Mapping[str, Any], place: Place, base: Path, start: Any = None) -> Any:
    """A dataclass from a table of its settings; what the table leaves out is as in `start`, else as by default."""
    known = settings_of(cls)
    for key in table:
        if key not in known:
            raise Mistake(place, f"unknown key {show(key)}{_nearest_key(key, known)}", key)
    defaults = {name: getattr(start, s.name) if start is not None else s.default for name, s in known.items()}
    for key, default in defaults.items():
        if default is dataclasses.MISSING and key not in table:
            raise Mistake(place, f"missing key {show(key)}", key)
    values = {known[k].name: convert(known[k], value, defaults[k], place, base) for k, value in table.items()}
    try:
        return cls(**values) if start is None else dataclasses.replace(start, **values)
    except (ValueError, TypeError, OverflowError) as error:
        raise Mistake(place, _in_keys(str(error), known)) from error


def _nearest_key(key: str, known: Mapping[str, Setting]) -> str:
    return resolve.nearest(key, known) or "; there are no settings here"


def _in_keys(text: str, known: Mapping[str, Setting]) -> str:
    """A dataclass's own message on one line, its fields spelt as keys."""
    text = " ".join(text.split())
    for setting in known.values():
        if setting.name != setting.key:
            text = re.sub(rf"\b{setting.name}\b", setting.key, text)
    return text


def convert(setting: Setting, value: Any, default: Any, place: Place, base: Path) -> Any:
    """A TOML value as a field wants it. `inf` is None, no limit, where the field allows None; a table without a name
    changes the settings of the default."""
    if setting.optional and isinstance(value, float) and value == math.inf:
        return None
    if setting.families and (isinstance(value, dict) or (isinstance(value, str) and str not in setting.options)):
        family = setting.families[0]
        if isinstance(value, dict) and "name" not in value and type(default) in names(family).values():
            return instance(type(default), value, (*place, setting.key), base, start=default)
        if isinstance(value, str):  # one line of the table around it, not a table of its own
            return make(member(family, value, place, base, setting.key), family, value, {}, place, base)
        return build(family, value, (*place, setting.key), base)
    if setting.file and isinstance(value, str) and value:
        return str((base / Path(value).expanduser()).absolute())
    plain = tuple(option for option in setting.options if family_of(option) is None and option is not type(None))
    if not plain:
        wanted = f'a name or a table {{name = "...", ...}} of a {setting.families[0]}'
        raise unfit(value, place, f"{setting.key} must be {wanted}, got {show(value)}", setting.key)
    try:
        return _adapter(plain).validate_python(_tuples(value))
    except ValidationError:
        lists = any(get_origin(option) is tuple for option in plain)
        text = f"{setting.key} must be {_wanted(setting)}, got {show(value)}"
        raise unfit(value, place, text, setting.key, lists) from None


@functools.cache
def _adapter(options: tuple[Any, ...]) -> TypeAdapter[Any]:
    hint: Any = functools.reduce(operator.or_, options)
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _wanted(setting: Setting) -> str:
    meant = [option for option in setting.options if option is not type(None) and not (option is str and setting.file)]
    wanted = [_name_type(option) for option in meant]
    if setting.optional and {int, float} & set(setting.options):
        wanted.append("inf (no limit)")
    return " or ".join(dict.fromkeys(wanted))


def _name_type(option: Any, many: bool = False) -> str:
    if family := family_of(option):
        return f'a table {{name = "...", ...}} of {family}'
    if get_origin(option) is Literal:
        return " or ".join(show(choice) for choice in get_args(option))
    if get_origin(option) is tuple:
        arms = get_args(option)
        if Ellipsis in arms:
            return f"a list of {_name_type(arms[0], many=True)}"
        return f"a list of {len(arms)} {_name_type(arms[0], many=True)}"
    one = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", Path: "a file"}
    several = {int: "whole numbers", float: "finite numbers", str: "texts", bool: "true or false", Path: "files"}
    return several[option] if many else one[option]


def show(value: Any, limit: int = 60) -> str:
    """A value as TOML would write it, cut short."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key} = {show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, Sequence):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def summary(cls: Any) -> str:
    """The first paragraph's first line of a docstring: what it does, and the paper."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]
