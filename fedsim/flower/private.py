"""The names of flwr that it does not document and we cannot do without, all of them, each guarded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.app import Message

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

try:
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:  # flwr before 1.35 has none, and needs none
    TaskIdentity: Any = None  # type: ignore[no-redef]

# error codes of a message that never reached the app, or whose reply never came back; wire constants
UNREACHED = frozenset({3, 4, 5})


def introduce(run_id: int = 1, node_id: int = 1) -> None:
    """Lets this process make messages outside a run of Flower. Inside one nothing changes."""
    if TaskIdentity is None:
        return
    for name, value in (("run_id", run_id), ("node_id", node_id), ("task_id", run_id)):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:  # not set
            setattr(TaskIdentity, name, value)


def stamp(message: Message, message_id: str) -> None:
    """Numbers a message, as the SuperLink does, so that its reply can say what it replies to."""
    message.metadata.__dict__["_message_id"] = message_id


def simulate(server: ServerApp, client: ClientApp, nodes: int, backend: dict[str, Any]) -> None:
    """Runs an app on Flower's simulation runtime (Ray), until the ServerApp returns: public, but on its way out."""
    from flwr.simulation import run_simulation

    run_simulation(server, client, nodes, backend_config=backend)
