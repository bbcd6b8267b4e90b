"""What Flower calls at a site."""

from federated.client_app import app

__all__ = ["app"]
