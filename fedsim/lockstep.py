"""Many runs as one program: they advance round by round together, and one engine call trains the cohorts of all.

    runs = {name: rounds(task, strategy, schedule, local, seed=seed), ...}
    for _ in range(len(schedule)):
        for name, turn in advance(runs, Stacked(16)):  # a Turn for each run that is not over
            ...

A client's numbers depend on its key, the chunk and nothing else, so every run is bit for bit what it is alone with an
engine of the same chunk.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fedsim.engine.plan import Answer, Engine, Job, counts, width
from fedsim.engine.stacked import CACHE, Stacked
from fedsim.task import join

if TYPE_CHECKING:
    from fedsim.simulation import Step, Turns
    from fedsim.task import Task

K = TypeVar("K", bound=Hashable)


class Turn(NamedTuple):
    """A run's round."""

    step: Step | Exception  # the exception that ended the run: a ValueError, or no memory left
    training: float  # seconds of the engine's time: of a call shared with others, its share of the local steps
    own: float  # seconds of all else: what clients are told, what is made of their moves


class Together:
    """The tasks of runs with different seeds as one, where they share their examples and model."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        """For these tasks; jobs on others stay as they are."""
        self.task = join(tasks)
        begins = itertools.accumulate((task.n for task in tasks), initial=0)
        self._begin = dict(zip(map(id, tasks), begins, strict=False))
        self._tasks = tuple(tasks)  # keeps the ids taken

    def __call__(self, job: Job) -> Job:
        """The job on the joint task. Where a minibatch of all of a client's examples would be of another width there,
        it stays on its own."""
        begin = self._begin.get(id(job.task))
        if self.task is None or begin is None or width(job.task, job.local) != width(self.task, job.local):
            return job
        return job._replace(task=self.task, who=job.who + begin)


def advance(
    runs: Mapping[K, Turns], engine: Engine, together: Callable[[Job], Job] = lambda job: job, memory: int = 2**30
) -> Iterator[tuple[K, Turn]]:
    """Plays the next round of every run that is not over, and gives each run's turn as soon as it is played, in their
    order. An engine other than `Stacked` trains one cohort after the other.

    At most about `memory` bytes of clients' moves are held at a time (or those of one cohort); on a CPU no more than
    its caches, since new memory for many costs more than training them together gains. So a turn is to be let go of
    before the next is asked for.
    """
    waiting: list[tuple[K, Job | Turn, float]] = []  # those over already wait for those before them
    held = 0
    for name, run in runs.items():
        clock = time.perf_counter()
        said: Job | Step | Exception | None
        try:
            said = next(run, None)
        except ValueError as error:
            said = error
        spent = time.perf_counter() - clock
        if said is None:
            continue
        if not isinstance(said, Job):  # nobody was there, or it is over
            waiting.append((name, Turn(said, 0.0, spent), spent))
            continue
        needs = 2 * said.work.start.numel() * said.work.start.element_size()
        most = min(memory, CACHE) if said.task.device.type == "cpu" else memory
        if held and held + needs > most:
            yield from _train(runs, waiting, engine, together)
            waiting, held = [], 0
        waiting.append((name, said, spent))
        held += needs
    yield from _train(runs, waiting, engine, together)


def _train(
    runs: Mapping[K, Turns], waiting: list[tuple[K, Job | Turn, float]], engine: Engine, together: Callable[[Job], Job]
) -> Iterator[tuple[K, Turn]]:
    """Has the cohorts trained, and hands every run its answer."""
    found = answers([job for _, job, _ in waiting if isinstance(job, Job)], engine, together)
    found.reverse()
    for name, job, before in waiting:
        if isinstance(job, Turn):
            yield name, job
            continue
        answer, training = found.pop()
        clock = time.perf_counter()
        said: Step | Job | Exception
        try:
            said = answer if isinstance(answer, Exception) else runs[name].send(answer)
            while isinstance(said, Job):  # it had a question before: now it trains, by itself
                ((answer, more),) = answers([said], engine, together)
                training, clock = training + more, clock + more
                said = answer if isinstance(answer, Exception) else runs[name].send(answer)
        except ValueError as error:
            said = error
        del answer
        turn = Turn(said, training, before + time.perf_counter() - clock)
        del said
        yield name, turn
        del turn


def answers(
    jobs: Sequence[Job], engine: Engine, together: Callable[[Job], Job] = lambda job: job
) -> list[tuple[Answer | Exception, float]]:
    """An answer to each job, or what went wrong with it, and the seconds it took: all in one call where the engine can,
    one by one where it cannot, or where memory does not suffice for all at once."""

    if isinstance(engine, Stacked) and len(jobs) > 1:
        clock = time.perf_counter()
        try:
            found = engine.together([together(job) for job in jobs])
        except (ValueError, RuntimeError, MemoryError) as error:
            if not (isinstance(error, ValueError) or exhausted(error)):
                raise
            # one of them is at fault, or all are too much: one by one shows
        else:
            seconds = time.perf_counter() - clock
            steps = [sum(counts(job.task, job.who, job.local, job.effort, job.t)) for job in jobs]
            return [
                (one._replace(who=job.who), seconds * s / max(sum(steps), 1))
                for one, job, s in zip(found, jobs, steps, strict=True)
            ]
    out: list[tuple[Answer | Exception, float]] = []
    for job in jobs:
        clock = time.perf_counter()
        one: Answer | Exception
        try:
            one = engine(*job)
        except (ValueError, RuntimeError, MemoryError) as error:
            if not (isinstance(error, ValueError) or exhausted(error)):
                raise
            one = error
        out.append((one, time.perf_counter() - clock))
    return out


def exhausted(error: Exception) -> bool:
    """Whether an error says that there is no memory left: a GPU's, or the host's, of which torch says so in words."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def own_turn(steps: Iterator[Any]) -> Turn:
    """The next round of a strategy that owns its loop, which calls the engine itself."""

    clock = time.perf_counter()
    step: Any
    try:
        step = next(steps)
    except (ValueError, RuntimeError, MemoryError) as error:
        if not (isinstance(error, ValueError) or exhausted(error)):
            raise
        step = error
    return Turn(step, time.perf_counter() - clock, 0.0)
