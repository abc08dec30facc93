"""Sweeps: an experiment file crossed over lists and ranges of its keys, a run folder for every cell.

sweep = fedsim.sweep.load("experiment.toml", over=["strategy.FedStale.beta=[0.0, 0.5, 1.0]"])
for cell in sweep.cells: experiment = sweep.experiment(cell)
"""

from fedsim.sweep.axes import Axis
from fedsim.sweep.plan import Cell, Sweep, load

__all__ = ["Axis", "Cell", "Sweep", "load"]
