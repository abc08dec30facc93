"""FedJAX: federated averaging, clients one after the other as one compiled program ("jit") or spread over as many
devices of the host as there are cores ("pmap"). Its last release calls `jax.tree_map`, which JAX has removed since: the
same function stands in under that name. `pmap` runs with the JAX of its time only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.bench.drivers.child import Array, Turns, World


def drive(world: World, turns: Turns) -> None:
    """Rounds, one by one."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    if not hasattr(jax, "tree_map"):
        jax.__dict__["tree_map"] = jax.tree_util.tree_map
    import fedjax

    work = world.workload
    fedjax.set_for_each_client_backend(str(world.setting["backend"]))
    inputs = world.normalised()
    first = params_of(world)

    def loss(params: Any, batch: Any, rng: Any) -> Any:
        chances = jax.nn.log_softmax(forward(str(work["model"]), params, batch["x"]))
        return -jnp.mean(jnp.take_along_axis(chances, batch["y"][:, None], axis=1))

    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        jax.grad(loss), fedjax.optimizers.sgd(work["lr"]), fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=work["batch"], num_epochs=None, num_steps=work["steps"]),
    )  # fmt: skip
    data = [fedjax.ClientDataset({"x": inputs[rows], "y": world.targets[rows].astype(np.int32)}) for rows in world.rows]
    state = algorithm.init(first)

    def model() -> Array:
        return np.concatenate([np.asarray(value).reshape(-1) for value in state.params])

    turns.model = model
    turns.versions("fedjax", "jax", "jaxlib", "numpy")
    for t, cohort in enumerate(world.cohorts):
        turns.lap()
        keys = jax.random.split(jax.random.PRNGKey(t), len(cohort))
        clients = [(str(i).encode(), data[i], key) for i, key in zip(cohort, keys, strict=True)]
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)


def params_of(world: World) -> list[Any]:
    """The first parameters in torch's order and shapes."""
    import jax.numpy as jnp

    shapes = {
        "logistic": [(10, 784), (10,)],
        "mlp": [(200, 784), (200,), (10, 200), (10,)],
        "lenet5": [(6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,), (84, 120), (84,), (10, 84), (10,)],
        "mcmahan-cnn": [(32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (512, 3136), (512,), (10, 512), (10,)],
    }[str(world.workload["model"])]
    params, at = [], 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        params.append(jnp.asarray(world.first[at : at + size].reshape(shape)))
        at += size
    return params


def forward(model: str, params: list[Any], x: Any) -> Any:
    """The workloads' models: scores [b, 10] of images [b, 1, 28, 28], as child.py's in PyTorch."""
    import jax
    from jax import lax

    def convolve(x: Any, w: Any, b: Any, padding: int) -> Any:
        out = lax.conv_general_dilated(
            x, w, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        out = jax.nn.relu(out + b[:, None, None])
        return lax.reduce_window(out, -float("inf"), lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    paddings = {"lenet5": (2, 0), "mcmahan-cnn": (2, 2)}.get(model, ())
    for i, padding in enumerate(paddings):
        x = convolve(x, params[2 * i], params[2 * i + 1], padding)
    x = x.reshape(len(x), -1)
    dense = params[2 * len(paddings) :]
    for i in range(0, len(dense), 2):
        x = x @ dense[i].T + dense[i + 1]
        if i + 2 < len(dense):
            x = jax.nn.relu(x)
    return x
