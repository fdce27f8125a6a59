"""Models in folders: weights as each library keeps them, and one file that says what they belong to.

``unlearn.json`` names the class of the model and what its constructor takes; a part that transformers,
diffusers or peft can load by itself stands in a folder of its own, and its `save_pretrained` wrote it.
Beside that the file says which methods made the model: name, version, hyper-parameters and seed.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import json
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

__all__ = ["Saved", "load_pretrained", "save_pretrained"]

#: The file that says what a folder holds, and the one with what is in no part's own.
FILE, TENSORS = "unlearn.json", "unlearn.safetensors"

#: Of these packages a folder may name any model; of others, those that are imported already.
PACKAGES = ("diffusers", "peft", "transformers", "unlearn_core")


class Saved:
    """What can be saved: every argument of its constructor is an attribute of the same name.

    These are plain values, tuples of them, tensors, dataclasses, others that can be saved, and what has
    a ``save_pretrained`` and a ``from_pretrained`` of its own.
    """

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all that is needed to have it again: see `unlearn_core.models.save_pretrained`."""
        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """What was saved in a folder: see `unlearn_core.models.load_pretrained`.

        Raises
        ------
        TypeError
            Something else was saved there.
        """
        found = load_pretrained(folder)
        if not isinstance(found, cls):
            raise TypeError(f"{folder} holds a {type(found).__name__}, and no {cls.__name__}")
        return found

    def __getstate__(self) -> dict[str, Any]:
        # What transformers hangs on layers to look inside can't be pickled; it is hung there anew.
        for module in self.modules() if isinstance(self, nn.Module) else ():
            if vars(module).pop("_output_capturing_hooks_installed", False):
                for layer in module.modules():
                    for key, hook in list(layer._forward_hooks.items()):
                        if hook.__module__ == "transformers.utils.output_capturing":
                            del layer._forward_hooks[key]
        return self.__dict__


def save_pretrained(model: nn.Module | Saved, folder: str | Path) -> None:
    """Write a model and what is known of its making into a folder.

    A `Chat`, a `VisionChat` and a `Diffusion`, whatever a method put around them, and models of
    transformers, diffusers, peft and `huggingface_hub` are written whole; of any other network, the
    weights alone. An earlier model there is replaced, all its files with it, once the new one is written.

    Raises
    ------
    TypeError
        A part of the model can't be written.
    ValueError
        Adapters that are no ``PeftModel``, several in one, or merged ones; a part's folder holds files of
        others.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".saving-") as new:
        _write(model, Path(new))
        _replace(root, Path(new))


def _write(model: nn.Module | Saved, root: Path) -> None:
    """Write all into an empty folder."""
    writer = _Writer(root)
    whole = isinstance(model, Saved) or _loads_itself(model)
    tree = writer.write(model, "") if whole else writer.weights(model)
    writer.finish()
    named = model.named_parameters() if isinstance(model, nn.Module) else ()
    try:
        own = version("unlearn-core")
    except PackageNotFoundError:  # run from a folder
        own = None
    about = {
        "unlearn_core": own,
        "made_by": list(getattr(model, "made_by", ())),
        "model": tree,
        "frozen": [name for name, p in named if not p.requires_grad],
        "files": _files(root),
    }
    (root / FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def _replace(root: Path, new: Path) -> None:
    """Put what is in ``new`` in the place of what was saved in ``root``."""
    former, files = root / FILE, _files(new)
    told = json.loads(former.read_text(encoding="utf-8")) if former.is_file() else {}
    ours = set(told.get("files", ()))
    for folder in sorted({Path(f).parts[0] for f in files if "/" in f}):
        # A library reads whatever lies in the folder of its part: an adapter, say.
        if others := [f for f in _files(root / folder) if f"{folder}/{f}" not in ours]:
            raise ValueError(
                f"{root / folder} holds files that are not of a model saved there, such as "
                f"{others[0]}: empty it, or save into another folder"
            )
    former.unlink(missing_ok=True)
    for name in ours:
        if (root / name).resolve().is_relative_to(root.resolve()):
            (root / name).unlink(missing_ok=True)
    for name in (*(f for f in files if f != FILE), FILE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).replace(root / name)


def load_pretrained(folder: str | Path, model: nn.Module | None = None) -> Any:
    """The model that `save_pretrained` wrote, in evaluation mode, on the CPU.

    Parameters
    ----------
    folder : it is read and nothing else: no hub, no pickle
    model : where the folder holds weights alone, a network of the same class to load them into

    Raises
    ------
    FileNotFoundError
        Nothing was saved there.
    ValueError
        It names a class that is no model, or one of a package that is not imported; weights that are
        not the network's.
    TypeError
        A network is needed and not given, or given and not needed.
    """
    root = Path(folder)
    if not (root / FILE).is_file():
        raise FileNotFoundError(
            f"{root} has no {FILE}: nothing was saved there by save_pretrained of unlearn_core"
        )
    about = json.loads((root / FILE).read_text(encoding="utf-8"))
    tree = about["model"]
    if "weights" in tree:
        found = _Reader(root).weights(tree, model)
    elif model is not None:
        raise TypeError(f"{root} says how its model is made; give none to load into")
    else:
        found = _Reader(root).read(tree)
    if isinstance(found, nn.Module):
        frozen = set(about["frozen"])
        for name, p in found.named_parameters():
            p.requires_grad_(name not in frozen)
        found.eval()
    if about["made_by"]:
        found.made_by = tuple(about["made_by"])
    return found


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _loads_itself(value: Any) -> bool:
    return hasattr(value, "save_pretrained") and hasattr(type(value), "from_pretrained")


def _arguments(value: Any) -> list[str]:
    if dataclasses.is_dataclass(value):
        return [f.name for f in dataclasses.fields(value) if f.init]
    return list(inspect.signature(type(value)).parameters)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _precision(module: nn.Module) -> str | None:
    """Of the weights, where it is one."""
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return str(kinds.pop()).removeprefix("torch.") if len(kinds) == 1 else None


def _channels_last(module: nn.Module) -> bool:
    fours = [p for p in module.parameters() if p.ndim == 4 and not p.is_contiguous()]
    return any(p.is_contiguous(memory_format=torch.channels_last) for p in fours)


class _Writer:
    """Writes parts into a folder, and says of each what is to be read again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tensors: dict[str, Tensor] = {}
        self.written: set[int] = set()  # the ids of tensors that some part wrote

    def finish(self) -> None:
        from safetensors.torch import save_file

        if self.tensors:
            save_file(self.tensors, self.root / TENSORS)

    def write(self, value: Any, at: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return [self.write(v, f"{at}/{i}") for i, v in enumerate(value)]
        if isinstance(value, Tensor):
            self.written.add(id(value))
            self.tensors[at] = value.detach().cpu().contiguous()
            return {"tensor": at}
        if isinstance(value, Saved) or (
            dataclasses.is_dataclass(value) and not isinstance(value, type)
        ):
            parts = {k: self.write(getattr(value, k), f"{at}/{k}") for k in _arguments(value)}
            tree = {"class": _name(type(value)), "arguments": parts}
            if isinstance(value, nn.Module) and (own := self.own(value, at)):
                tree["state"] = own
            return tree
        if _loads_itself(value):
            return self.pretrained(value, at)
        raise TypeError(
            f"{at.strip('/')} is a {type(value).__qualname__} and can't be saved: make it a dataclass, "
            "or a subclass of unlearn_core.models.Saved"
        )

    def own(self, module: nn.Module, at: str) -> dict[str, Any]:
        """What of a module's weights no argument holds."""
        rest = {k: v for k, v in _tensors(module).items() if id(v) not in self.written}
        return {k: self.write(v, f"{at}/{k}") for k, v in rest.items()}

    def pretrained(self, value: Any, at: str) -> dict[str, Any]:
        folder = at.strip("/")
        tree: dict[str, Any] = {"class": _name(type(value)), "folder": folder}
        if isinstance(value, nn.Module):
            self.written |= {id(v) for v in _tensors(value).values()}
            tree |= {"dtype": _precision(value), "channels_last": _channels_last(value)}
            kernel = getattr(getattr(value, "config", None), "_attn_implementation", None)
            if kernel is not None:
                tree["attention"] = kernel
            kept = value.state_dict()
            # Tables of positions, say, are made anew by who loads it, in another precision perhaps.
            rest = {k: v for k, v in value.named_buffers() if k not in kept}
            tree["buffers"] = {k: self.write(v, f"{at}/{k}") for k, v in rest.items()}
            tree |= self.adapters(value, folder)
        value.save_pretrained(self.root / folder)
        return tree

    def adapters(self, value: nn.Module, folder: str) -> dict[str, Any]:
        """What a ``PeftModel`` is around, written as it was without its adapter."""
        if "peft" not in sys.modules:
            return {}
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        inside = value
        if isinstance(value, PeftModel):
            if list(value.peft_config) != ["default"]:
                raise ValueError(f"of the adapters {list(value.peft_config)} one can be saved")
            if any(isinstance(m, BaseTunerLayer) and m.merged for m in value.modules()):
                raise ValueError(
                    "the adapters are merged into the weights, and would count twice: take them out by "
                    "unmerge_adapter(), or keep the sum alone, by merge_and_unload()"
                )
            # A copy: what is taken off would be gone.
            inside = copy.deepcopy(value).unload()
        if any(isinstance(m, BaseTunerLayer) for m in inside.modules()):
            raise ValueError(
                f"the {type(value).__name__} has adapters inside: merge them, or put the whole model "
                "into a PeftModel"
            )
        return {} if inside is value else {"base": self.pretrained(inside, f"{folder}/base")}

    def weights(self, model: nn.Module) -> dict[str, Any]:
        from safetensors.torch import save_model

        save_model(model, str(self.root / "model.safetensors"))
        return {"class": _name(type(model)), "weights": "model.safetensors"}


class _Reader:
    """Makes again what a `_Writer` wrote."""

    def __init__(self, root: Path) -> None:
        from safetensors.torch import load_file

        self.root = root
        file = root / TENSORS
        self.tensors = load_file(file) if file.is_file() else {}

    def read(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return tuple(self.read(part) for part in tree)
        if not isinstance(tree, dict):
            return tree
        if "tensor" in tree:
            return self.tensors[tree["tensor"]]
        cls = _class(tree["class"])
        if "folder" in tree:
            return self.pretrained(cls, tree)
        made = cls(**{name: self.read(part) for name, part in tree["arguments"].items()})
        if own := tree.get("state"):
            there = dict(_tensors(made))
            with torch.no_grad():
                for name, part in own.items():
                    there[name].copy_(self.read(part))
        return made

    def pretrained(self, cls: Any, tree: dict[str, Any]) -> Any:
        package, folder = cls.__module__.partition(".")[0], self.root / tree["folder"]
        dtype = getattr(torch, tree["dtype"]) if tree.get("dtype") else None
        if "base" in tree:
            # peft makes adapters of half precision float32, unless told otherwise.
            found = cls.from_pretrained(
                self.read(tree["base"]),
                folder,
                is_trainable=True,
                autocast_adapter_dtype=dtype is None,
            )
        elif dtype is None and "dtype" not in tree:  # a tokenizer, a schedule
            return cls.from_pretrained(folder)
        elif package == "transformers":
            how = {"attn_implementation": tree["attention"]} if "attention" in tree else {}
            found = cls.from_pretrained(folder, dtype=dtype or "auto", use_safetensors=True, **how)
        elif package == "diffusers":
            found = cls.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True)
        else:
            found = cls.from_pretrained(folder)
            found = found if dtype is None else found.to(dtype)
        for name, part in tree["buffers"].items():
            module, _, own = name.rpartition(".")
            found.get_submodule(module)._buffers[own] = self.read(part)
        return found.to(memory_format=torch.channels_last) if tree["channels_last"] else found

    def weights(self, tree: dict[str, Any], model: nn.Module | None) -> nn.Module:
        from safetensors.torch import load_model

        if model is None:
            raise TypeError(
                f"{self.root} holds the weights of a {tree['class']} alone: make one, and give it "
                "with the folder: load_pretrained(folder, model)"
            )
        if _name(type(model)) != tree["class"]:
            raise ValueError(
                f"{self.root} holds the weights of a {tree['class']}, not of a {_name(type(model))}"
            )
        try:
            load_model(model, str(self.root / tree["weights"]))
        except RuntimeError as error:
            raise ValueError(f"{self.root}: the weights are not the network's: {error}") from error
        return model


def _class(name: str) -> Any:
    """The class that a folder names.

    Raises
    ------
    ValueError
        It is none that a folder may name.
    """
    module, _, path = name.partition(":")
    if module.partition(".")[0] not in PACKAGES and module not in sys.modules:
        raise ValueError(f"{name} is of a module that is not imported; import it if you trust it")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    known = isinstance(found, type) and (
        issubclass(found, nn.Module | Saved)
        or dataclasses.is_dataclass(found)
        or hasattr(found, "from_pretrained")
    )
    if not known:
        raise ValueError(f"{name} is no model and no part of one")
    return found
