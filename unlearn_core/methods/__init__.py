"""Unlearning methods, and continual ones: one file a paper, and the baselines that papers share.

Every `Method` in a module of this package is found by itself, exported here under its class
name and listed in `METHODS` under its ``name``; so is every `ContinualMethod`, in `CONTINUAL`.
"""

import importlib
import pkgutil

from .base import NEEDS, Method
from .continual import ContinualMethod, Stage
from .contract import ContractError, check_method

METHODS: dict[str, type[Method]] = {}
CONTINUAL: dict[str, type[ContinualMethod]] = {}
for _module in pkgutil.walk_packages(__path__, __name__ + "."):
    for _cls in vars(importlib.import_module(_module.name)).values():
        for _base, _table in ((Method, METHODS), (ContinualMethod, CONTINUAL)):
            if not (isinstance(_cls, type) and issubclass(_cls, _base)) or _cls is _base:
                continue
            if _cls.__module__ != _module.name:
                continue
            if _table.setdefault(_cls.name, _cls) is not _cls:
                raise TypeError(f"two methods are called {_cls.name!r}")
            globals()[_cls.__name__] = _cls

__all__ = [
    "CONTINUAL",
    "METHODS",
    "NEEDS",
    "ContinualMethod",
    "ContractError",
    "Method",
    "Stage",
    "check_method",
    *(c.__name__ for c in (*METHODS.values(), *CONTINUAL.values())),
]
