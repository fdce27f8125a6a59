"""The reference: what each subpackage and module offers, under the path that it is imported from."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from sphinx.pycode import ModuleAnalyzer

__all__ = ["api_pages"]

PACKAGES = ("data", "models", "methods", "metrics", "replication")
MODULES = ("fields", "registry", "seeding", "extras")


def api_pages() -> dict[str, str]:
    """One page a subpackage, or module that belongs to none, from its docstrings."""
    import unlearn_core

    pages = {}
    for name in (*PACKAGES, *MODULES):
        package = importlib.import_module(f"unlearn_core.{name}")
        path = getattr(package, "__path__", ())  # a module has none
        modules = [m.name for m in pkgutil.walk_packages(path, package.__name__ + ".")]
        lines = [f"# `unlearn_core.{name}`", "", (package.__doc__ or "").strip(), ""]
        for module in [package.__name__, *sorted(modules)]:
            if not module.endswith("__main__") and (block := [*described(package, module)]):
                if module != package.__name__:
                    file = module.removeprefix("unlearn_core.").replace(".", "/")
                    lines += [f"## `{file}.py`", ""]
                lines += ["```{eval-rst}", *block, "```", ""]
        pages[f"api/{name}"] = "\n".join(lines)
    index = [
        "# API reference",
        "",
        f"Version {unlearn_core.__version__}. " + (unlearn_core.__doc__ or "").split("\n\n")[0],
        "",
        "Every name stands under the path to import it from; a heading is the file that defines it.",
    ]
    pages["api/index"] = "\n".join(index)
    return pages


def described(package: ModuleType, module: str) -> Iterator[str]:
    """reStructuredText about a module and the public names that it defines."""
    source = importlib.import_module(module)
    analyzer = ModuleAnalyzer.for_module(module)
    comments = analyzer.find_attr_docs()

    def defined_here(name: str) -> bool:
        thing = getattr(source, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            return thing.__module__ == module
        return ("", name) in comments

    own = [name for name in getattr(source, "__all__", ()) if defined_here(name)]
    if not own:
        return
    yield from (f".. py:currentmodule:: {package.__name__}", "")
    if source is not package:
        yield from (inspect.cleandoc(source.__doc__ or ""), "")
    for name in sorted(own, key=analyzer.tagorder.__getitem__):
        thing = getattr(source, name)
        exported = getattr(package, name, None) is thing
        place = package.__name__ if exported else module
        if inspect.isclass(thing):
            kind = "exception" if issubclass(thing, BaseException) else "class"
            yield f".. auto{kind}:: {place}.{name}"
            yield from (
                "   :members:",
                "   :member-order: bysource",
                "   :special-members: __call__",
            )
        elif inspect.isroutine(thing):
            yield f".. autofunction:: {place}.{name}"
        else:  # autodoc would look for the comment where it is imported from
            yield from (f".. py:data:: {name}", f"   :module: {place}", "")
            yield from (f"   {line}" for line in comments["", name])
        yield ""
