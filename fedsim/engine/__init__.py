"""How a cohort runs. An engine is any callable

    train(task, who [k], work, keys [k], local, t=0, effort=None) -> Answer

`who` is on the host (it steers loops), everything else on the task's device. A client's minibatches and dropout follow
from its key alone: not from who else is present, the order, the device or the engine.
"""

from fedsim.engine.loop import Loop
from fedsim.engine.plan import Answer, Engine
from fedsim.engine.stacked import Stacked, choose, common
from fedsim.engine.trial import fastest

__all__ = ["Answer", "Engine", "Loop", "Stacked", "choose", "common", "fastest"]
