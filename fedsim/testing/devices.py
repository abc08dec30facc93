"""Whether a strategy stays on the device of the model: tried on one that is not there."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedsim.strategy import Round, Strategy
from fedsim.testing.stage import Stage
from fedsim.testing.states import Broken, Inapplicable, contents

ELSEWHERE = "lazy:0"  # a device that torch knows and no machine has
UNSEEN = "it asks the device for values, so this needs a machine with a GPU"


class _Apart(TorchDispatchMode):
    """Fails where a tensor of the host meets one of the device, other than in a copy made on purpose."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim]
        kinds = {x.device.type for x in tensors}
        if len(kinds) > 1 and "copy" not in func.__name__:
            raise Broken(f"{func} is given a tensor of the host beside one of the device; make it on x.device")
        return func(*args, **(kwargs or {}))


def stays_on_its_device(strategy: Strategy, stage: Stage) -> None:
    """Every tensor it makes is where the model is, not on the host; on a machine without a GPU no values are asked."""
    if torch.cuda.is_available():
        return _on_gpu(strategy, stage)
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
        UnsupportedOperatorException,
    )

    asks = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = stage.start(strategy).to(ELSEWHERE)
        p = stage.p.to(ELSEWHERE)
        whos = [torch.tensor(who, dtype=torch.int64).to(ELSEWHERE) for who in stage.presence]
        every = torch.arange(stage.n, device=ELSEWHERE)
    try:
        with mode, _Apart():  # type: ignore[no-untyped-call]
            state = strategy.init(x, p, 7)
            for t, who in enumerate(whos):
                picked = strategy.pick(state, every, who)
                work = strategy.send(state, picked)
                k = len(picked)
                delta, number = work.start.new_ones((k, stage.size)), work.start.new_ones(k)
                told = {
                    name: number if name == "loss-at-start" else delta
                    for name in work.ask
                    if name != "gradient-at-start"
                }
                round = Round(t, picked, work.start, delta, number, number, every, 0.05, None, told)
                state = strategy.step(state, round)
                for name, value in {**contents(state), "model(state)": strategy.model(state)}.items():
                    if isinstance(value, Tensor) and value.device.type == "cpu" and value.ndim:
                        raise Broken(f"{name.removeprefix('.')} is on the {value.device.type}, not on x.device", t)
    except asks as error:
        raise Inapplicable(UNSEEN) from error
    except RuntimeError as error:
        if "tensor subclasses" in str(error):  # .numpy()
            raise Inapplicable(UNSEEN) from error
        if "same device" in str(error):
            raise Broken("a tensor of the host meets one of the device; make it on x.device") from error
        raise


def _on_gpu(strategy: Strategy, stage: Stage) -> None:
    """The same on a real device, with real values."""
    from fedsim.testing.loop import drive

    clients = dataclasses.replace(stage.clients, a=stage.clients.a.cuda(), b=stage.clients.b.cuda())
    run = stage.settings(strategy, local=stage.training(strategy))
    run |= {"x": run["x"].cuda(), "p": stage.p.cuda(), "device": "cuda"}
    for state, round in drive(strategy, clients, stage.presence, **run):
        for name, value in {**contents(state), "model(state)": strategy.model(state)}.items():
            if isinstance(value, Tensor) and value.device.type == "cpu" and value.ndim:
                raise Broken(f"{name.removeprefix('.')} is on the {value.device.type}, not on x.device", round.t)
