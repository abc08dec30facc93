"""Experiments as TOML files: read and checked in full before torch is imported, and written back with every default.

experiment = fedsim.experiment.load("experiment.toml", ["run.rounds=50"])
for event in fedsim.compare.compare(experiment): ...
"""

from fedsim.experiment.reading import load, parse
from fedsim.experiment.settings import FAMILIES, Mistake, names, summary
from fedsim.experiment.tables import Entry, Experiment, RunTable, TaskTable, Topology, check_device

__all__ = [
    "FAMILIES",
    "Entry",
    "Experiment",
    "Mistake",
    "RunTable",
    "TaskTable",
    "Topology",
    "check_device",
    "load",
    "names",
    "parse",
    "summary",
]
