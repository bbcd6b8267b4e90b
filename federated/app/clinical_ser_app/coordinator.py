"""What Flower calls at the coordinator."""

from federated.server_app import app

__all__ = ["app"]
