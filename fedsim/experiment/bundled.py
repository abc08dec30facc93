"""Flower's strategies, and a user's own Flower strategies, as entries of an experiment file.

    [[strategy]]
    name = "flwr:FedAdam"     # or "mine.py:MyStrategy", derived from flwr.serverapp.strategy.Strategy
    eta = 0.03                # the constructor's settings, with - for _

Names, keys and kinds of values are checked here, without importing flwr. The ranges are the constructors' own business
and are checked when the first world is made, before anything is written. Left out, fraction-evaluate is 0 where
Flower's default is 1: the experiment evaluates the model itself. Strategies that wrap another take it as a table:
strategy = {name = "flwr:FedAvg"}.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedsim import resolve
from fedsim.experiment.settings import Mistake, Place, key_of, member, settings_of, show, unfit
from fedsim.local import LocalSGD

PREFIX = "flwr:"
ENTRY_KEYS = ("name", "label", "local", "tune")
INNER = "strategy"  # what wrappers call the strategy they wrap


class Needed(NamedTuple):
    """In place of a default: has to be given."""

    kind: type


class Optional(NamedTuple):
    """In place of a default of None."""

    kind: type


class Known(NamedTuple):
    """A strategy that flwr brings along."""

    line: str  # for `fedsim list`
    settings: Mapping[str, Any]  # parameter -> default, Needed or Optional; what is a function cannot be set


_SAMPLING: dict[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 0.0,
    "min_train_nodes": 2,
    "min_evaluate_nodes": 2,
    "min_available_nodes": 2,
    "weighted_by_key": "num-examples",
    "arrayrecord_key": "arrays",
    "configrecord_key": "config",
}
_ADAPTIVE = {"eta": 0.1, "eta_l": 0.1, "tau": 1e-3}
_WRAPPER: dict[str, Any] = {
    INNER: Needed(dict),
    "noise_multiplier": Needed(float),
    "num_sampled_clients": Needed(int),
}
_FIXED = {**_WRAPPER, "clipping_norm": Needed(float)}
_MOVING = {
    **_WRAPPER,
    "initial_clipping_norm": 0.1,
    "target_clipped_quantile": 0.5,
    "clip_norm_lr": 0.2,
    "clipped_count_stddev": Optional(float),
}

BUNDLED: dict[str, Known] = {
    "Bulyan": Known(
        "Flower's: Multi-Krum, then a trimmed mean. El Mhamdi et al., 2018 (1802.07927)",
        {**_SAMPLING, "num_malicious_nodes": 0},
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": Known(
        "Flower's: clients clip to a norm that adapts, the server adds noise. Andrew et al., 2019 (1905.03871)", _MOVING
    ),
    "DifferentialPrivacyClientSideFixedClipping": Known(
        "Flower's: clients clip to a fixed norm, the server adds noise. McMahan et al., 2017 (1710.06963)", _FIXED
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": Known(
        "Flower's: the server clips to a norm that adapts and adds noise. Andrew et al., 2019 (1905.03871)", _MOVING
    ),
    "DifferentialPrivacyServerSideFixedClipping": Known(
        "Flower's: the server clips to a fixed norm and adds noise. McMahan et al., 2017 (1710.06963)", _FIXED
    ),
    "FedAdagrad": Known("Flower's: Adagrad on the server. Reddi et al., 2020 (2003.00295)", {**_SAMPLING, **_ADAPTIVE}),
    "FedAdam": Known(
        "Flower's: Adam on the server. Reddi et al., 2020 (2003.00295)",
        {**_SAMPLING, **_ADAPTIVE, "beta_1": 0.9, "beta_2": 0.99},
    ),
    "FedAvg": Known("Flower's: averaging of those present. McMahan et al., 2016 (1602.05629)", _SAMPLING),
    "FedAvgM": Known(
        "Flower's: momentum on the server. Hsu et al., 2019 (1909.06335)",
        {**_SAMPLING, "server_learning_rate": 1.0, "server_momentum": 0.0},
    ),
    "FedMedian": Known("Flower's: coordinate-wise median. Yin et al., 2018 (1803.01498)", _SAMPLING),
    "FedProx": Known(
        "Flower's: clients are pulled to where they began. Li et al., 2018 (1812.06127)",
        {**_SAMPLING, "proximal_mu": 0.0},
    ),
    "FedTrimmedAvg": Known(
        "Flower's: coordinate-wise trimmed mean. Yin et al., 2018 (1803.01498)", {**_SAMPLING, "beta": 0.2}
    ),
    "FedYogi": Known(
        "Flower's: Yogi on the server. Reddi et al., 2020 (2003.00295)",
        {**_SAMPLING, "eta": 0.01, "eta_l": 0.0316, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    ),
    "Krum": Known(
        "Flower's: the model closest to its neighbours. Blanchard et al., 2017 (1703.02757)",
        {**_SAMPLING, "num_malicious_nodes": 0},
    ),
    "MultiKrum": Known(
        "Flower's: the mean of several such models. Blanchard et al., 2017 (1703.02757)",
        {**_SAMPLING, "num_malicious_nodes": 0, "num_nodes_to_select": 1},
    ),
    "QFedAvg": Known(
        "Flower's: clients with high losses count more. Li et al., ICLR 2020 (1905.10497)",
        {**_SAMPLING, "client_learning_rate": Needed(float), "q": 0.1, "train_loss_key": "train_loss"},
    ),
}

_TREES = "its model is a set of XGBoost trees, which no gradient steps can train; run it with Flower"
LEFT_OUT = {"FedXgbBagging": _TREES, "FedXgbCyclic": _TREES}


@dataclass(frozen=True)
class Bundled:
    """A strategy of Flower and its settings; fedsim.flower.stock makes it."""

    name: str  # as the file says it
    settings: Mapping[str, Any]  # parameter -> value; a strategy inside is a Bundled
    cls: type | None = field(default=None, repr=False)  # the user's own class; None: one that flwr brings along

    def dump(self) -> dict[str, Any]:
        """As a table of the file."""
        table: dict[str, Any] = {"name": self.name}
        for parameter, value in self.settings.items():
            if value is not None:
                table[key_of(parameter)] = value.dump() if isinstance(value, Bundled) else value
        return table


def is_flower(name: str, base: Path, place: Place) -> bool:
    """Whether a strategy's name is one of Flower's, or the dotted path of a class derived from Flower's Strategy."""
    if name.startswith(PREFIX):
        return True
    return resolve.is_dotted(name) and _derived(member("strategy", name, place, base))


def _derived(cls: object) -> bool:
    """Without importing flwr: who derives from it has done so."""
    parents = cls.__mro__ if isinstance(cls, type) else ()
    return any(p.__name__ == "Strategy" and p.__module__.startswith("flwr.serverapp.") for p in parents)


def read(name: str, table: Mapping[str, Any], place: Place, base: Path) -> Bundled:
    """The strategy that a table describes. Raises Mistake."""
    if not name.startswith(PREFIX):
        return _own(name, table, place, base)
    word = name.removeprefix(PREFIX)
    if word in LEFT_OUT:
        raise Mistake(place, f"{name} cannot run here: {LEFT_OUT[word]}", "name")
    if word not in BUNDLED:
        near = resolve.nearest(word, BUNDLED).replace("mean '", f"mean '{PREFIX}")
        raise Mistake(place, f"unknown strategy of Flower {show(name)}{near}", "name")
    known = BUNDLED[word].settings
    by_key = {key_of(parameter): parameter for parameter in known}
    _check_keys(table, by_key, [k for k, p in by_key.items() if isinstance(known[p], Needed)], place)
    settings: dict[str, Any] = {}
    for key, parameter in by_key.items():
        default = known[parameter]
        if key not in table:
            settings[parameter] = None if isinstance(default, Optional) else default
        elif parameter == INNER:
            settings[parameter] = _inner(table[key], (*place, key), base)
        else:
            kind = default.kind if isinstance(default, (Needed, Optional)) else type(default)
            settings[parameter] = _value(key, table[key], kind, place)
    return Bundled(name, settings)


def _own(name: str, table: Mapping[str, Any], place: Place, base: Path) -> Bundled:
    """A class of the user's; the kinds of its settings are its own business."""
    cls = member("strategy", name, place, base)
    signature = inspect.signature(cls).parameters
    named = {p: s for p, s in signature.items() if s.kind in (s.POSITIONAL_OR_KEYWORD, s.KEYWORD_ONLY)}
    by_key = {key_of(parameter): parameter for parameter in named}
    if any(s.kind is s.VAR_KEYWORD for s in signature.values()):
        by_key |= {key: key.replace("-", "_") for key in table if key not in by_key}
    _check_keys(table, by_key, [key for key, p in by_key.items() if p in named and named[p].default is named[p].empty],
                place)  # fmt: skip
    settings = {
        by_key[key]: _inner(value, (*place, key), base) if by_key[key] == INNER else value
        for key, value in table.items()
    }
    return Bundled(name, settings, cls)


def _check_keys(table: Mapping[str, Any], known: Mapping[str, str], needed: list[str], place: Place) -> None:
    for key in table:
        if key not in known and key in settings_of(LocalSGD):
            raise Mistake(place, f"unknown key {show(key)}; local training is set in local = {{{key} = ...}}", key)
        if key not in known:
            raise Mistake(place, f"unknown key {show(key)}{resolve.nearest(key, (*known, *ENTRY_KEYS))}", key)
    for key in needed:
        if key not in table:
            raise Mistake(place, f"missing key {show(key)}", key)


def _inner(value: Any, place: Place, base: Path) -> Bundled:
    table = dict(value) if isinstance(value, dict) else {"name": value}
    name = table.pop("name", None)
    if not isinstance(name, str) or not is_flower(name, base, place):
        raise Mistake(place, f'must be a strategy of Flower such as {{name = "flwr:FedAvg"}}, got {show(value)}')
    return read(name, table, place, base)


def _value(key: str, value: Any, kind: type, place: Place) -> Any:
    """A TOML value, if it is of the parameter's kind; whole numbers do for numbers."""
    words = {float: "a finite number", int: "a whole number", str: "text"}
    right = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not right or (kind is float and not math.isfinite(value)):
        raise unfit(value, place, f"{key} must be {words[kind]}, got {show(value)}", key)
    return kind(value)


def lines() -> dict[str, str]:
    """What `fedsim list strategies` says of them."""
    return {f"{PREFIX}{name}": known.line for name, known in BUNDLED.items()}
