"""The Flower app at a site: it hands what came to the node, and sends back what the node answers.

The one idea: Flower carries two opaque byte strings. What they mean, who may ask and what may leave is the node's to decide (federated/node.py).
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from federated.flower import answer_of, request_in
from federated.node import Node

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator]
def answer(message: Message, context: Context) -> Message:
    """Answer one request; a refusal is an answer too, signed like any other."""
    body, signature = request_in(message)
    return answer_of(message, *Node.open(Path(str(context.node_config["folder"]))).answer(body, signature))
