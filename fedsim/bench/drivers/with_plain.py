"""Plain PyTorch: fedsim.bench.plain."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.bench.drivers.child import Turns, World


def drive(world: World, turns: Turns) -> None:
    """Rounds, one by one."""
    from fedsim.bench.plain import Team

    team = Team(world, int(world.setting.get("processes", 1)), int(world.setting.get("threads", 1)))
    turns.model = team.model
    turns.versions("torch", "numpy")
    turns.notes["update"] = team.update
    while True:
        turns.lap()
        team.play()
