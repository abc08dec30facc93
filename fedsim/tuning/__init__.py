"""Equal tuning: the same budget for every strategy, judged on examples that are neither trained on nor tested with.

    experiment = fedsim.experiment.load("experiment.toml")     # with a table [tune], see fedsim.experiment.tuning
    chosen = [event for event in fedsim.tuning.tune(experiment) if isinstance(event, fedsim.tuning.Tuned)]
    for event in compare(fedsim.tuning.winners(experiment, chosen)): ...

The test set is not there while strategies are tuned, and neither is what [task] holds out. All trials of a tuning seed
have the same data, first model, presence and minibatches.
"""

from fedsim.tuning.results import document, warnings, winners
from fedsim.tuning.trials import Played, Tried, Tuned, tune

__all__ = ["Played", "Tried", "Tuned", "document", "tune", "warnings", "winners"]
