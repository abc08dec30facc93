"""A workload from start to end: contenders in turns, and what came of it.

A contender is tried in all its settings, each as it comes and tuned (`rivals.TUNED`), and counts in its best. Ours
stay throughout a workload; rivals come one after the other, and meet ours in turns of a few rounds each, as a
simulation plays them (`Workload.stint`), in an order that shifts. The first rounds warm up and are told apart.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.bench import rivals, world
from fedsim.bench.turns import Gone, Player

if TYPE_CHECKING:
    from fedsim.bench.rivals import Rival
    from fedsim.bench.workloads import Workload
    from fedsim.data import Dataset

Say = Callable[[str], None]
Entry = dict[str, Any]


class Case(NamedTuple):
    """A contender in one of its settings."""

    rival: Rival
    setting: str
    player: Player


Begun = tuple["Rival", str, Callable[[], Player]]  # a contender, its setting, what starts it


def machine() -> Entry:
    """Where the numbers come from."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = (names or [model])[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model, "cores": rivals.cores(), "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(), "python": platform.python_version(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def measure(
    workloads: Sequence[Workload],
    contenders: Sequence[Rival],
    dataset: Dataset,
    envs: Path,
    say: Say,
    *,
    rounds: int | None = None,
    brief: bool = False,
) -> Iterator[list[Entry]]:
    """Yields what `fedsim bench --json` holds, so far, after every rival of every workload.

    `rounds` replaces the number that each workload times; `brief` tries one memory setting and no more threads than
    one. A rival that cannot be installed or fails has an entry with the reason.
    """
    pythons: dict[str, list[str]] = {}
    broken: dict[str, str] = {}
    for rival in contenders:
        if any(workload.gossip in rival.gossip for workload in workloads):
            try:
                pythons[rival.name] = rivals.environments(rival, envs, say)
            except RuntimeError as error:
                broken[rival.name] = str(error)
    found: list[Entry] = []
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        world.save_images(dataset, folder / "images.npz")
        for workload in workloads:
            world.save(workload, dataset, folder / "images.npz", folder / workload.name)
            race = Race(workload, dataset, folder / workload.name, say, rounds, brief)
            with race:
                for rival in contenders:
                    if workload.gossip not in rival.gossip:
                        continue
                    reason = broken.get(rival.name)
                    found.append(race.refused(rival, reason) if reason else race.against(rival, pythons[rival.name]))
                    yield found


class Race:
    """A workload, with our own processes at work on it until it is over."""

    def __init__(
        self, workload: Workload, dataset: Dataset, folder: Path, say: Say, rounds: int | None, brief: bool
    ) -> None:
        self.workload, self.dataset, self.folder, self.say, self.brief = workload, dataset, folder, say, brief
        self.rounds = workload.rounds if rounds is None else rounds
        self.ours: list[Case] = []
        self.began: dict[str, Entry] = {}  # of our settings, the rounds that warm up: once a workload
        self.accuracy: dict[str, float] = {}
        self.told: dict[str, Entry] = {}

    def __enter__(self) -> Race:
        self.say(f"{self.workload.name}: {self.workload.line()}")
        return self

    def __exit__(self, *error: object) -> None:
        for case in self.ours:
            case.player.close()

    def cases(self, rival: Rival, pythons: Sequence[str]) -> list[Begun]:
        """A contender in all its settings, ready to be started."""
        memories = {"": rivals.memories()[""]} if self.brief else rivals.memories()
        settings = rival.settings(rivals.cores())

        def begin(setting: rivals.Setting, memory: dict[str, str]) -> Player:
            python = pythons[setting.get("environment", 0)]
            return rivals.start(rival, python, self.folder, setting, memory)

        return [
            (rival, rivals.label(rival, setting, name), partial(begin, setting, memory))
            for setting in (settings[:1] if self.brief else settings)
            for name, memory in memories.items()
        ]

    def against(self, rival: Rival, pythons: Sequence[str]) -> Entry:
        """One entry: the rival's best setting beside our best, and all settings of both."""
        results: dict[str, Entry] = {}
        failed: dict[str, str] = {}
        todo = self.cases(rival, pythons)
        heats = [todo[i : i + 1] for i in range(len(todo))] if rival.alone else [todo]
        loads = [os.getloadavg()[0]]
        for heat in heats:
            try:
                self._heat(heat, results, failed)
            except Gone as error:
                return self.refused(rival, f"fedsim itself: {error}")
            loads.append(os.getloadavg()[0])
        if not results:
            return self.refused(rival, next(iter(failed.values())))
        return self._entry(rival, results, failed, loads)

    def refused(self, rival: Rival, reason: str | None) -> Entry:
        """The entry of a rival that did not run."""
        self.say(f"{self.workload.name}, {rival.title}: {reason}")
        return {
            "workload": self.workload.name, "engine": self._engine(), "rival": rival.name, "ratio": None,
            "seconds": None, "rival_seconds": None, "compile_seconds": None, "versions": {}, "failed": reason,
            "machine": machine(),
        }  # fmt: skip

    def _engine(self) -> str:
        return str(next((told["engine"] for told in self.told.values() if "engine" in told), ""))

    # A heat: some of a rival's settings beside ours ------------------------------------------------------------------

    def _heat(self, heat: Sequence[Begun], results: dict[str, Entry], failed: dict[str, str]) -> None:
        started = [Case(rival, setting, begin()) for rival, setting, begin in heat]
        fresh = not self.ours
        if fresh:
            self.ours = [
                Case(rival, setting, begin()) for rival, setting, begin in self.cases(rivals.OURS, [sys.executable])
            ]
        players: list[Case] = []
        try:
            for case in [*started, *(self.ours if fresh else [])]:
                try:
                    case.player.answer()
                    began = time.perf_counter() - case.player.began
                except Gone as error:
                    if case in self.ours:
                        raise
                    failed[case.setting] = str(error)
                    continue
                self.began.setdefault(_key(case), {"start_seconds": began})
                if case in started:
                    players.append(case)
            if players:
                self._rounds(players, fresh, results, failed)
        finally:
            for case in started:
                case.player.close()

    def _rounds(self, players: list[Case], fresh: bool, results: dict[str, Entry], failed: dict[str, str]) -> None:
        workload, everybody = self.workload, [*self.ours, *players]
        warm: dict[str, list[Entry]] = {_key(case): [] for case in everybody}
        timed: dict[str, list[Entry]] = {_key(case): [] for case in everybody}
        stints = [range(t, t + 1) for t in range(workload.warm)]
        over = workload.warm + self.rounds
        stints += [range(t, min(t + workload.stint, over)) for t in range(workload.warm, over, workload.stint)]
        for many, stint in enumerate(stints):
            # ours are warm after the first rival: one round more, to be awake
            turn = players if 0 < stint[0] < workload.warm and not fresh else everybody
            shift = many % len(turn)
            for case in turn[shift:] + turn[:shift]:
                if case.setting in failed and case in players:
                    continue
                try:
                    took = case.player.tell(f"rounds {len(stint)}")
                except Gone as error:
                    if case in self.ours:
                        raise
                    these = f"round {stint[0] + 1}" if len(stint) == 1 else f"rounds {stint[0] + 1} to {stint[-1] + 1}"
                    failed[case.setting] = f"{these}: {error}"
                    continue
                each = [{"seconds": seconds, "cpu_seconds": took["cpu_seconds"]} for seconds in took["seconds"]]
                (timed if stint[0] >= workload.warm else warm)[_key(case)] += each
        for case in everybody:
            steady, early = timed[_key(case)], warm[_key(case)]
            if case in players and case.setting in failed:
                continue
            ours = case in self.ours
            if not ours or fresh:
                self._look(case, early, steady)
            entry = self._summary(case, steady)
            if not ours:
                results[case.setting] = {**entry, "beside": {one.setting: timed[_key(one)] for one in self.ours}}
            self.say(f"  {case.rival.title}, {case.setting}: {entry['seconds']:.4f} s a round")

    def _look(self, case: Case, early: list[Entry], steady: list[Entry]) -> None:
        """After as many rounds as all play: how good the model is, what warming up took, what it says of itself."""
        file = self.folder / "model.npy"
        case.player.tell(f"model {file}")
        self.accuracy[_key(case)] = world.accuracy(self.workload, self.dataset, np.load(file))
        usual = statistics.median(one["seconds"] for one in steady)
        extra = sum(one["seconds"] for one in early) - usual * len(early)
        self.began[_key(case)]["compile_seconds"] = max(extra, 0.0)
        self.told[_key(case)] = case.player.tell("tell")

    def _summary(self, case: Case, steady: list[Entry]) -> Entry:
        return {
            "seconds": statistics.median(one["seconds"] for one in steady),
            "cpu_seconds": statistics.median(one["cpu_seconds"] for one in steady),
            **self.began[_key(case)],
            "accuracy": self.accuracy[_key(case)],
            **{name: value for name, value in self.told[_key(case)].items() if name != "versions"},
            "each": [one["seconds"] for one in steady],
        }

    # What came of it --------------------------------------------------------------------------------------------------

    def _entry(self, rival: Rival, results: dict[str, Entry], failed: dict[str, str], loads: list[float]) -> Entry:
        workload = self.workload
        best = min(results, key=lambda setting: results[setting]["seconds"])
        theirs = results[best]
        beside = theirs["beside"]
        results = {setting: {k: v for k, v in one.items() if k != "beside"} for setting, one in results.items()}
        cases = {case.setting: case for case in self.ours}
        ours = {setting: self._summary(cases[setting], rounds) for setting, rounds in beside.items()}
        own = min(ours, key=lambda setting: ours[setting]["seconds"])
        us = ours[own]
        apart = abs(us["accuracy"] - theirs["accuracy"])
        mark = f"{rivals.OURS.name}: {own}"
        versions = {
            rivals.OURS.name: self.told[mark].get("versions", {}),
            rival.name: self.told[f"{rival.name}: {best}"].get("versions", {}),
        }
        entry = {
            "workload": workload.name, "engine": str(us.get("engine", "")), "rival": rival.name,
            "ratio": theirs["seconds"] / us["seconds"], "seconds": us["seconds"], "rival_seconds": theirs["seconds"],
            "compile_seconds": us["compile_seconds"], "versions": versions,
            "rival_compile_seconds": theirs["compile_seconds"],
            "ratio_of_neighbours": statistics.median(b / a for a, b in zip(us["each"], theirs["each"], strict=True)),
            "cpu_seconds": us["cpu_seconds"], "rival_cpu_seconds": theirs["cpu_seconds"],
            "peak_mb": us["peak_mb"], "rival_peak_mb": theirs["peak_mb"],
            "setting": own, "rival_setting": best,
            "accuracy": us["accuracy"], "rival_accuracy": theirs["accuracy"],
            "same_quality": apart <= workload.tolerance, "tolerance": workload.tolerance,
            "rounds": self.rounds, "warm_rounds": workload.warm, "load": loads,
            "settings": {rivals.OURS.name: ours, rival.name: results}, "settings_failed": failed,
            "workload_is": workload.line(), "machine": machine(), "failed": None,
        }  # fmt: skip
        if rival.differs:
            entry["differs"] = rival.differs
        return entry


def _key(case: Case) -> str:
    return f"{case.rival.name}: {case.setting}"


def write(file: Path, text: str) -> None:
    """The whole file or nothing: what was found is written again after every rival."""
    with tempfile.NamedTemporaryFile("w", dir=file.absolute().parent, delete=False, encoding="utf-8") as out:
        out.write(text)
    os.chmod(out.name, 0o644)
    os.replace(out.name, file)
