"""Machine-unlearning methods, metrics and replication records.

The subpackages, in the only direction in which imports run:
`data` -> `models` -> `methods` -> `metrics` -> `replication`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("unlearn-core")
except PackageNotFoundError:  # imported from a checkout that was never installed
    __version__ = "0+unknown"
