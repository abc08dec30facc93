"""A run folder's metrics for TensorBoard: `tensorboard --logdir OUT`. Needs the extra `tensorboard`.

Each strategy with each seed is a run of its own, `LABEL/seed1`, with every metric against the round; the wall time is
that of the evaluation where the folder tells it, so TensorBoard's relative time is the run's own.

The records are those of TensorBoard's own writer. Its files are not: one under a fixed name is replaced as a whole, so
that writing again does not show every point twice, and a full disk leaves what was there.
"""

from __future__ import annotations

import datetime
import io
import re
from collections.abc import Iterable
from pathlib import Path

from fedsim import files, record, reread
from fedsim.record import Measurement
from fedsim.record.contents import read_environment

NAME = "events.out.tfevents.0000000000.fedsim"  # TensorBoard looks for the part up to the number


def write(folder: str | Path, out: str | Path) -> int:
    """Write all that was measured in a run folder, of runs that did not finish too, below `out`; how many scalars.

    The same folder gives the same bytes. Raises ValueError where TensorBoard is not installed or the folder holds no
    run, OSError where it cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise ValueError(
            f"TensorBoard's files need its package: pip install 'fedsim[tensorboard]' ({error})"
        ) from error

    folder, out = Path(folder), Path(out)
    if not (folder / "metrics.csv").is_file():
        raise ValueError(f"{folder} is no run folder: there is no metrics.csv in it")
    started, seconds = _started(folder), record.read_times(folder)
    runs: dict[tuple[str, int], list[Measurement]] = {}
    for m in record.read_metrics(folder):
        runs.setdefault((m.strategy, m.seed), []).append(m)
    names = _names(label for label, _ in runs)
    for (label, seed), measured in runs.items():
        data = io.BytesIO()
        records = RecordWriter(data)
        records.write(Event(wall_time=started, file_version="brain.Event:2").SerializeToString())
        for m in measured:
            value = Summary(value=[Summary.Value(tag=m.metric, simple_value=m.value)])
            when = started + seconds.get((label, seed, m.round), 0.0)
            records.write(Event(wall_time=when, step=m.round, summary=value).SerializeToString())
        path = out / names[label] / f"seed{seed}"
        with files.writing(path):
            path.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path / NAME, data.getvalue())
    return sum(map(len, runs.values()))


def _started(folder: Path) -> float:
    """When the run began, in seconds since 1970; 0 where the folder does not tell."""
    told = read_environment(folder).get("started")
    try:
        return datetime.datetime.fromisoformat(told).timestamp() if told else 0.0
    except (ValueError, OverflowError):
        raise reread.spoilt(folder / "environment.json", f'it started at "{told}"') from None


def _names(labels: Iterable[str]) -> dict[str, str]:
    """A folder name for every label: what no file system minds, and no two the same."""
    found: dict[str, str] = {}
    for label in labels:
        if label in found:
            continue
        plain = name = re.sub(r"[^\w ,.=()+-]", "_", label).strip(" .") or "_"
        number = 1
        while name.casefold() in (other.casefold() for other in found.values()):
            number += 1
            name = f"{plain}-{number}"
        found[label] = name
    return found
