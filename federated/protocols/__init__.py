"""One file a statistic, or a model, that is trained across sites."""

from importlib import import_module
from pkgutil import iter_modules


def load_all() -> None:
    """Import every protocol, so that its statistics are registered."""
    for module in iter_modules(__path__, f"{__name__}."):
        import_module(module.name)
