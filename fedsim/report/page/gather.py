"""What the page tells, read from run folders alone; `fedsim.report.folders` says which may be told of together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim import resolve
from fedsim.report.folders import Pooled, pooled

PAGE = "report.html"


@dataclass(frozen=True)
class Story(Pooled):
    """All that the page tells."""

    metric: str | None = None  # what to rank by; None: the first there is
    baseline: str | None = None  # what to hold the others against; None: the best
    target: float | None = None  # of the metric

    @property
    def document(self) -> Mapping[str, Any]:
        """The experiment's tables; those that all folders share, the first folder's strategies."""
        return self.folders[0].document

    @property
    def name(self) -> str:
        """What the experiments are called."""
        names = (str(folder.document.get("name", folder.path.resolve().name)) for folder in self.folders)
        return " + ".join(dict.fromkeys(names))

    @property
    def seeds(self) -> list[int]:
        """The seeds of which anything was measured, ascending."""
        return sorted({m.seed for m in self.measurements})

    @property
    def metrics(self) -> list[str]:
        """What was measured, in order of appearance."""
        return list(dict.fromkeys(m.metric for m in self.measurements))


def tell(paths: Iterable[str | Path], **wanted: Any) -> Story:
    """The story of one run folder or several; `wanted`: metric, baseline, target.

    Raises ValueError or OSError, one line, as `folders.pooled`, and for a metric or a baseline that is not there.
    """
    story = Story(**vars(pooled(paths)), **wanted)
    if story.metric is not None and story.metric not in story.metrics:
        raise ValueError(f"{story.metric} was not measured{resolve.nearest(story.metric, story.metrics)}")
    if story.baseline is not None and story.baseline not in story.labels:
        raise ValueError(f'no strategy is called "{story.baseline}"{resolve.nearest(story.baseline, story.labels)}')
    return story
