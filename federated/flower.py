"""The way to the sites through Flower: two byte strings there, two back, and what Flower says where nothing comes.

The one idea: Flower is a post office. It may lose, delay or repeat a letter, and read what is on it; it cannot write one.
"""

import time
from collections.abc import Mapping

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from clinical_ser.errors import FederationError
from federated.secure_sums import Letter

RECORD = "clinical-ser"
POLL_S = 0.3
"""How often it is looked whether an answer is there; Flower's own loop sleeps for 3 s."""
LARGEST_POLL_S = 3.0
FINAL = (1, 2, 7)
"""Flower's codes for an app that cannot be loaded, that raised, and a bundle that is refused: asking again gives the same."""
LONGEST_REASON = 300


class GridChannel:
    """A channel over a Flower grid.

    Parameters
    ----------
    grid
        Flower's.
    nodes
        The node of every site, as the SuperLink numbered it when the site's key was registered.
    poll_s
        How often to look for answers at first, in seconds; it grows while nothing comes.
    """

    def __init__(self, grid: Grid, nodes: Mapping[str, int], *, poll_s: float = POLL_S):
        if len(set(nodes.values())) != len(nodes):
            raise FederationError("Two sites have the same Flower node.")
        self._grid, self._nodes, self._poll_s = grid, dict(nodes), poll_s

    def exchange(self, messages: Mapping[str, Letter], timeout_s: float) -> Mapping[str, Letter]:
        """See `secure_sums.Channel.exchange`.

        Raises
        ------
        FederationError
            A site's machine answers that it will not run this app: its name and Flower's reason are in the text.
        """
        if unknown := sorted(set(messages) - set(self._nodes)):
            raise FederationError(f"These sites have no Flower node: {unknown}.")
        # Nobody is asked to whom nothing can be delivered: Flower would take the letter, and answer after a while that it cannot.
        online = set(self._grid.get_node_ids())
        names = [name for name in messages if self._nodes[name] in online]
        letters = [_letter(self._nodes[name], *messages[name], ttl=timeout_s) for name in names]
        sent = dict(zip(self._grid.push_messages(letters), names, strict=False)) if letters else {}
        waiting = {number for number in sent if number}
        found: dict[str, Letter] = {}
        end, pause = time.monotonic() + timeout_s, self._poll_s
        while waiting:
            for reply in self._grid.pull_messages(waiting):
                number = reply.metadata.reply_to_message_id
                if number not in waiting:
                    continue
                waiting.discard(number)
                pause = self._poll_s
                if (answer := _answer(sent[number], reply)) is not None:
                    found[sent[number]] = answer
            left = end - time.monotonic()
            if not waiting or left <= 0:
                break
            time.sleep(min(pause, left))
            pause = min(pause * 1.2, LARGEST_POLL_S)
        return found


def _letter(node: int, body: bytes, signature: bytes, *, ttl: float) -> Message:
    return Message(_packed(body, signature), dst_node_id=node, message_type=MessageType.QUERY, ttl=ttl)


def _packed(body: bytes, signature: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({"body": body, "signature": signature})})


def _answer(site: str, reply: Message) -> Letter | None:
    if reply.has_error():
        if reply.error.code in FINAL:
            reason = "".join(c for c in str(reply.error.reason or "no reason given") if c.isprintable())[:LONGEST_REASON]
            raise FederationError(f"The machine of site {site!r} does not run the app: {reason}")
        return None
    try:
        return _unpacked(reply.content)
    except FederationError:
        # Not signed, so nobody knows whose it is; the same as nothing.
        return None


def _unpacked(content: RecordDict) -> Letter:
    record = content.config_records.get(RECORD)
    if record is None or set(record) != {"body", "signature"}:
        raise FederationError("A Flower message is not one of ours.")
    body, signature = record["body"], record["signature"]
    if not isinstance(body, bytes) or not isinstance(signature, bytes):
        raise FederationError("A Flower message is not one of ours.")
    return body, signature


def request_in(message: Message) -> Letter:
    """Return body and signature of what a site was sent; FederationError where it is no letter of ours."""
    return _unpacked(message.content)


def answer_of(message: Message, body: bytes, signature: bytes) -> Message:
    """Return the Flower message that carries a site's answer."""
    return Message(_packed(body, signature), reply_to=message)
