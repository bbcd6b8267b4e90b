"""Flower in one process: the real app of a site is called as Flower would call it, without a SuperLink, ports or Ray.

The one idea: every message goes through Flower's own protobuf form, both ways, so that nothing is shared between the two sides but bytes.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clinical_ser.errors import ClinicalSerError

RUN_ID = 1
COORDINATOR = 1
"""Flower's number for the node of a SuperLink."""
APP_RAISED = 2
"""Flower's code for an app that raised."""


class LocalGrid(Grid):  # type: ignore[misc, unused-ignore]
    """A grid whose nodes are in this process.

    Parameters
    ----------
    app
        Of a site; it is called for every message.
    nodes
        Node number to the node's configuration, as `flower-supernode --node-config` takes it.

    Attributes
    ----------
    away
        Nodes that are not online: a letter to one is not delivered.
    silent
        Nodes that take letters and answer none.
    raising
        Nodes at which the app ends with an error.
    received
        Every reply, as the bytes that the coordinator got.
    """

    def __init__(self, app: ClientApp, nodes: Mapping[int, Mapping[str, bool | int | float | str]]):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, COORDINATOR
        self._app = app
        self._contexts = {
            number: Context(run_id=RUN_ID, node_id=number, node_config=dict(config), state=RecordDict(), run_config={})
            for number, config in nodes.items()
        }
        self._run = Run.create_empty(RUN_ID)
        self._numbers = itertools.count(1)
        self._replies: dict[str, bytes] = {}
        self.away: set[int] = set()
        self.silent: set[int] = set()
        self.raising: set[int] = set()
        self.received: list[bytes] = []

    def set_run(self, run: Run) -> None:
        """See Flower's `Grid`."""
        self._run = run

    @property
    def run(self) -> Run:
        """See Flower's `Grid`."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """See Flower's `Grid`."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online."""
        return [number for number in self._contexts if number not in self.away]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages at once; the answers lie ready for `pull_messages`."""
        names = []
        for message in messages:
            name = f"message-{next(self._numbers)}"
            proto = message_to_proto(message)
            proto.metadata.message_id = name
            names.append(name)
            node = message.metadata.dst_node_id
            if node not in self.away and node not in self.silent:
                self._replies[name] = self._answered(proto.SerializeToString(), node)
        return names

    def _answered(self, raw: bytes, node: int) -> bytes:
        message = message_from_proto(ProtoMessage.FromString(raw))
        if node in self.raising:
            return bytes(message_to_proto(Message(Error(APP_RAISED, "OSError"), reply_to=message)).SerializeToString())
        try:
            reply = self._as_node(node, lambda: self._app(message, self._contexts[node]))
        except (ClinicalSerError, RuntimeError, ValueError, OSError, ArithmeticError, LookupError, TypeError) as error:
            reply = Message(Error(APP_RAISED, type(error).__name__), reply_to=message)
        return bytes(message_to_proto(reply).SerializeToString())

    @staticmethod
    def _as_node(node: int, call: Callable[[], Message]) -> Message:
        TaskIdentity.node_id = node
        try:
            return call()
        finally:
            TaskIdentity.node_id = COORDINATOR

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers that are there, each once."""
        ready: Collection[bytes] = [self._replies.pop(name) for name in list(message_ids) if name in self._replies]
        self.received += ready
        return [message_from_proto(ProtoMessage.FromString(raw)) for raw in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send, and return the answers that came; who is away does not hold anybody up."""
        del timeout
        return self.pull_messages(list(self.push_messages(messages)))
