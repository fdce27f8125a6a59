"""Unlearning methods: one file a paper, and the baselines that the papers share.

Every `Method` in a module of this package is found by itself, exported here under its class
name and listed in `METHODS` under its ``name``.
"""

import importlib
import pkgutil

from .base import NEEDS, Method
from .contract import ContractError, check_method

METHODS: dict[str, type[Method]] = {}
for _module in pkgutil.walk_packages(__path__, __name__ + "."):
    for _cls in vars(importlib.import_module(_module.name)).values():
        if isinstance(_cls, type) and issubclass(_cls, Method) and _cls.__module__ == _module.name:
            if _cls is Method:
                continue
            if METHODS.setdefault(_cls.name, _cls) is not _cls:
                raise TypeError(f"two methods are called {_cls.name!r}")
            globals()[_cls.__name__] = _cls

__all__ = [
    "METHODS",
    "NEEDS",
    "ContractError",
    "Method",
    "check_method",
    *(c.__name__ for c in METHODS.values()),
]
