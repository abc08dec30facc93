"""Where an experiment's clients live: in Flower's simulation runtime, or on a federation of SuperNodes.

events(experiment, "flower-simulation")                        as `compare.compare`, one Ray actor per CPU
events(experiment, "flower", superlink="127.0.0.1:18000")      as a run of Flower's, submitted to a SuperLink
with simulation(client_app, n) as grid: ...                    a Grid on the simulation runtime, for `over`
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

import fedsim
from fedsim.flower import private, wire
from fedsim.flower.client import hosting

if TYPE_CHECKING:
    from fedsim.compare import Event
    from fedsim.experiment import Experiment

PATIENCE = 120.0  # seconds for Ray to start, or for all SuperNodes to come


def events(experiment: Experiment, on: str, **settings: Any) -> Iterator[Event]:
    """What `compare.compare` says of the experiment, with the clients on a runtime of Flower's.

    Raises ValueError where the runtime is not there or fails, TimeoutError where its nodes do not come.
    """
    if on == "flower-simulation":
        return on_simulation(experiment, **settings)
    if on == "flower":
        return on_superlink(experiment, **settings)
    raise ValueError(f'on must be "flower-simulation" or "flower", got {on!r}')


def on_simulation(experiment: Experiment, nodes: int | None = None, **settings: Any) -> Iterator[Event]:
    """On Flower's simulation runtime, which starts when all that can be wrong with the experiment has been found.

    With `nodes` the clients are divided evenly over so many nodes, each trained by the experiment's own engine: one
    message per node and round. As many as there are actors is best. Left out, every client is a node.
    """
    from fedsim import compare
    from fedsim.flower import app

    need_ray()
    if nodes is not None and not 1 <= nodes <= experiment.task.clients:
        raise ValueError(f"nodes must be from 1 to the {experiment.task.clients} clients, got {nodes}")
    experiment = compare.settle(experiment)
    with contextlib.ExitStack() as stack:
        grids: list[Grid] = []

        def grid() -> Grid:
            if not grids:
                cpus, gpus = shares(experiment)
                n = experiment.task.clients
                client = app.client if nodes is None else hosting(app.client, n)
                runtime = simulation(client, nodes or n, cpus=cpus, gpus=gpus)
                grids.append(stack.enter_context(runtime))
            return grids[0]

        yield from app.played(experiment, grid, **{"patience": PATIENCE, **settings})


def need_ray() -> None:
    """Raises ValueError without Ray."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("Flower's simulation runtime needs Ray; install it: pip install 'fedsim[ray]'")


def shares(experiment: Experiment) -> tuple[int, float]:
    """CPUs and GPUs of one actor: as many CPUs as an experiment's threads, and an equal part of the GPUs."""
    import torch

    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpus = max(1, min(experiment.run.threads or 1, here))
    if not experiment.run.device.startswith("cuda"):
        return cpus, 0.0
    return cpus, min(1.0, torch.cuda.device_count() / (here // cpus))


@contextlib.contextmanager
def simulation(client: ClientApp, n: int, *, cpus: int = 1, gpus: float = 0.0) -> Iterator[Grid]:
    """A Grid whose n nodes are a ClientApp in Flower's simulation runtime: actors of Ray, each with so many CPUs and
    GPUs, in processes of their own. They are gone when the block ends. One at a time in a process.

    Raises ValueError without Ray, and where the runtime fails.
    """
    need_ray()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of what it will do one day
    ready: queue.Queue[Grid | None] = queue.Queue()
    over, failures, server = threading.Event(), list[BaseException](), ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        ready.put(grid)
        over.wait()

    def runtime() -> None:
        try:
            backend: dict[str, Any] = {"client_resources": {"num_cpus": cpus, "num_gpus": gpus}}
            backend["init_args"] = {"log_to_driver": False, "logging_level": logging.ERROR}
            private.simulate(server, client, n, backend)
        except BaseException as error:  # told where it is waited for, SystemExit too
            failures.append(error)
        finally:
            ready.put(None)

    thread = threading.Thread(target=runtime, name="flower-simulation", daemon=True)
    with quiet():
        thread.start()
        try:
            grid = ready.get()
            if grid is not None:
                yield grid
        except TimeoutError:
            if not failures:
                raise
        finally:
            over.set()
            thread.join()
        if failures:
            reason = wire.first_line(failures[0].__cause__ or failures[0])
            raise ValueError(f"Flower's simulation runtime failed: {reason}") from failures[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Only what has gone wrong from Flower's loggers, and from ours among them: who was absent comes as an event."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


# A federation --------------------------------------------------------------------------------------------------------


def on_superlink(
    experiment: Experiment, superlink: str, *, timeout: float = 600.0, on_failure: str = "absent",
    patience: float = PATIENCE,
) -> Iterator[Event]:  # fmt: skip
    """On SuperNodes, as a run submitted to their SuperLink with Flower's own `flwr run`.

    `superlink` is HOST:PORT of one that speaks without TLS, or the name of a connection in Flower's configuration.
    fedsim must be installed where the SuperLink and the SuperNodes run. When the caller stops, so does the run.
    """
    from fedsim import compare
    from fedsim.flower import app, new

    experiment = compare.settle(experiment)
    with tempfile.TemporaryDirectory(prefix="fedsim-") as temporary:
        folder, flwr = Path(temporary), Flwr(superlink, Path(temporary))
        config: dict[str, str | float | bool] = {
            "on-failure": on_failure,
            "timeout": timeout,
            "patience": patience,
            "tell": True,
        }
        new.write(folder / "app", "fedsim-run", experiment.toml(), **config)
        with flwr.running("run", str(folder / "app"), flwr.connection, "--stream") as lines:
            last, run_id, over = deque[str](maxlen=20), None, False
            try:
                for line in lines:
                    if found := re.search(r"Successfully started run (\d+)", line):
                        run_id = found[1]
                    if not line.startswith(app.MARK):
                        last.append(line.strip())
                    over = over or line.startswith(f'{app.MARK}["e')  # "end" or "error"
                    if (event := app.told(line)) is not None:
                        yield event
                if not over:
                    raise ValueError(f"the run on the SuperLink {superlink} ended without a result: {complaint(last)}")
            finally:
                if run_id is not None and not over:
                    flwr.call("stop", run_id, flwr.connection)


def complaint(lines: Iterable[str]) -> str:
    """What the end of a log complains of, in one line: the last box that says Error, else the last line."""
    said: list[str] = []
    for line in lines:
        said = [] if "─ Error ─" in line else [*said, line.strip(" │╭╮╰╯─\n")]
    said = [line for line in said if line]
    return " ".join(said if len(said) < 20 and any("Error" in line for line in lines) else said[-1:]) or "no word"


class Flwr:
    """Flower's command, with a configuration that knows the SuperLink."""

    def __init__(self, superlink: str, folder: Path) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = shutil.which("flwr", path=path)
        if command is None:
            raise ValueError("there is no command flwr; install Flower: pip install flwr")
        self.command, self.environment, self.connection = command, dict(os.environ), superlink
        here = [str(Path(fedsim.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]  # it looks for our app
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, here))
        if re.fullmatch(r"\S+:\d+", superlink):
            home = folder / "flwr"
            home.mkdir()
            said = f'address = "{superlink}"\ninsecure = true\n'
            (home / "config.toml").write_text(f'[superlink]\ndefault = "it"\n\n[superlink.it]\n{said}')
            self.environment["FLWR_HOME"], self.connection = str(home), "it"

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[Iterator[str]]:
        """The lines of a command as they come; it is ended with the block."""
        process = subprocess.Popen(
            [self.command, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield iter(process.stdout)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
            process.stdout.close()

    def call(self, *arguments: str) -> str:
        """What a command says."""
        done = subprocess.run(
            [self.command, *arguments], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        return done.stdout
