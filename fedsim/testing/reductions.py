"""What a strategy is said to become with certain settings: another strategy, round for round."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedsim.experiment.settings import key_of
from fedsim.resolve import nearest
from fedsim.strategy import Strategy
from fedsim.testing.stage import Stage, is_gossip
from fedsim.testing.states import Broken, close


class Reduction(NamedTuple):
    """With these settings the strategy is the strategy `to`; `everyone`: when everybody is present, at least."""

    to: Strategy
    settings: Mapping[str, Any] = {}
    everyone: bool = False

    @property
    def claim(self) -> str:
        """The claim in words, which is the law's name: "with beta = 0 it is FedAvg"."""
        given = ", ".join(f"{key_of(name)} = {value}" for name, value in self.settings.items())
        when = [f"with {given}"] * bool(given) + ["when everybody is present"] * self.everyone
        return " ".join([*when, f"it is {said(self.to)}"])

    def check(self, strategy: Any, stage: Stage) -> None:
        """Raises Broken where the two models part."""
        from fedsim.testing.loop import drive

        one = stage.ready(dataclasses.replace(strategy, **self.settings))
        other = stage.ready(self.to)
        everyone = tuple(range(stage.n))
        presence = tuple(everyone for _ in stage.presence) if self.everyone else stage.presence
        x = stage.start(one, shared=True)

        def first(each: Strategy) -> Any:
            return x.expand(stage.n, -1).clone() if is_gossip(each) else x.clone()

        run: dict[str, Any] = {"n": stage.n, "p": stage.p, "local": stage.local}
        left = drive(one, stage.clients, presence, x=first(one), **run)
        right = drive(other, stage.clients, presence, x=first(other), **run)
        for (a, round), (b, _) in zip(left, right, strict=True):
            got, wanted = one.model(a), other.model(b)
            if got.ndim < wanted.ndim:
                raise Broken(f"the model has the shape {list(got.shape)}, that of {said(self.to)} {list(wanted.shape)}")
            text = f"where {said(self.to)} has"
            close(got, wanted.expand_as(got), stage.tolerance, text, round.t, round.who)


def said(strategy: Any) -> str:
    """A strategy by its name and the settings that are not its defaults."""
    given: list[str] = []
    if not dataclasses.is_dataclass(strategy):
        return type(strategy).__name__
    for field in dataclasses.fields(strategy):
        value = getattr(strategy, field.name)
        if value != field.default and field.repr and field.default_factory is dataclasses.MISSING:
            given.append(f"{key_of(field.name)} = {value}")
    return type(strategy).__name__ + (f"({', '.join(given)})" if given else "")


def stated(strategy: Any, more: Any = ()) -> list[Reduction]:
    """The reductions that a strategy's class states in `reduces`, and those given; pairs will do for `Reduction`s.

    Raises ValueError for anything else.
    """
    found = []
    known = [field.name for field in dataclasses.fields(strategy)] if dataclasses.is_dataclass(strategy) else []
    for source in (getattr(type(strategy), "reduces", ()), more):
        several = (
            source if not (isinstance(source, tuple) and source and isinstance(source[0], Strategy)) else (source,)
        )
        for one in several:
            if not isinstance(one, tuple) or not one or not isinstance(one[0], Strategy) or len(one) > 3:
                raise ValueError(
                    f"a reduction is a pair such as (FedAvg(), {{'beta': 0.0}}), the strategy and the settings that "
                    f"make it so, got {one!r}"
                )
            found.append(Reduction(*one))
            for name in found[-1].settings:
                if name not in known:
                    raise ValueError(f"{type(strategy).__name__} has no setting {name!r}{nearest(name, known)}")
    return found
