"""Machine-unlearning methods, metrics and replication records.

The subpackages, in the only direction in which imports run:
`data` -> `models` -> `methods` -> `metrics` -> `replication`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, methods, metrics, models, replication

    __version__: str

__all__ = ["__version__", "data", "methods", "metrics", "models", "replication"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: torch alone takes a second.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("unlearn-core")
        except PackageNotFoundError:  # imported from a checkout that was never installed
            return "0+unknown"
    if name in __all__:
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
