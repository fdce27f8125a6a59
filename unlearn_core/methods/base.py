"""What every unlearning method is: a frozen dataclass of hyperparameters that you call."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Set
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, ClassVar, Self

import torch
from torch import nn

from ..data import ForgetSplit, QuestionSet, VisualSet
from ..extras import needing
from ..fields import check_fields
from ..models import Chat, Diffusion, TrainConfig, VisionChat, require_finite
from ..registry import describe, did_you_mean

__all__ = [
    "ANY",
    "DIFFUSION",
    "FORGET_TEXT",
    "IMAGES",
    "MULTIMODAL",
    "NEEDS",
    "TEXT",
    "Method",
    "told",
]

#: What a method can work on, by the ``modality`` of a split's task.
IMAGES, TEXT, DIFFUSION = frozenset({"images"}), frozenset({"text"}), frozenset({"diffusion"})
#: Images with text.
MULTIMODAL = frozenset({"multimodal"})
#: All four modalities.
ANY = IMAGES | TEXT | DIFFUSION | MULTIMODAL

#: How TOFU's and FLAT's authors unlearn with every method (``config/forget.yaml``).
FORGET_TEXT = TrainConfig(
    epochs=5,
    lr=1e-5,
    batch_size=32,
    optimizer="adamw",
    weight_decay=0.01,
    schedule="linear",
    warmup_epochs=1,
)

#: What a method can require. Data (the first four) is withheld from a method unless declared.
NEEDS = {
    "forget": "the data to forget",
    "retain": "the rest of the training data",
    "decouple": "prompts that separate what to forget from what to keep",
    "unrelated": "data that has nothing to do with either",
    "templates": "template answers",
    "concepts": "the names of what to forget, and of what takes their place",
    "keep": "prompts that are to be drawn as before",
    "reference": "the original model, beside the one that changes",
    "fresh_model": "the recipe that made the model, to build a new one",
}


#: The parts of a split that a method can need.
PARTS = ("forget", "retain", "decouple", "unrelated")

#: What a model is, by the modality of the split, and how one of another kind becomes one.
MODELS: dict[str, tuple[type[nn.Module], str]] = {
    "images": (nn.Module, "a torch.nn.Module from images to logits"),
    "text": (Chat, "a Chat: wrap it in Chat(model, tokenizer, template)"),
    "multimodal": (VisionChat, "a VisionChat: wrap it in VisionChat(model, tokenizer, ...)"),
    "diffusion": (Diffusion, "a Diffusion: make one by TextConditional.from_pipeline(pipeline)"),
}


def _read_alike(one: Chat, other: Chat) -> bool:
    """Whether two models take the same tokens for the same words."""
    ours, theirs = one.tokenizer, other.tokenizer
    return ours is theirs or ours.get_vocab() == theirs.get_vocab()


#: The extra of the installation that a modality needs.
EXTRA = {"images": "vit", "text": "llm", "multimodal": "llm", "diffusion": "diffusion"}


def told(method: Any, seed: int, **more: Any) -> dict[str, Any]:
    """Plain data that say what made a model: a method's name, class, version and fields, and the seed.

    A field that has no plain form is there as Python writes it.
    """

    def plain(value: Any) -> Any:
        try:
            return describe(value)
        except TypeError:
            return repr(value)

    cls = type(method)
    return {
        "method": method.name,
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "version": method.version,
        "seed": int(seed),
        **more,
        "fields": {f.name: plain(getattr(method, f.name)) for f in fields(method)},
    }


class _Signature:
    """The signature of a class, which is that of its ``__init__``, whatever ``__new__`` takes."""

    def __get__(self, instance: object, cls: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("an instance has the signature of its __call__")
        _, *own = inspect.signature(cls.__init__).parameters.values()
        return inspect.Signature(own)


@dataclass(frozen=True)
class Method:
    """Base of the methods; subclasses implement `unlearn` and declare ``name`` and ``needs``.

    ``works_on`` holds the modalities that a method can be called on, images where it says nothing;
    ``trains`` says whether it changes, or asks the gradients of, what can be trained in the given
    model. ``version`` is raised by hand when the method's behaviour changes: cached results of the
    former version are then computed again.

    Hyper-parameters are held to their annotations (`unlearn_core.fields`) when a method is made; a
    subclass with a ``__post_init__`` of its own calls this one.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    draws: ClassVar[bool]  # does the seed matter?
    works_on: ClassVar[frozenset[str]] = IMAGES
    trains: ClassVar[bool] = True
    version: ClassVar[int] = 1

    __signature__ = _Signature()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if missing := [n for n in ("name", "needs", "draws") if not hasattr(cls, n)]:
            raise TypeError(f"{cls.__name__} doesn't declare {' and '.join(missing)}")
        if not isinstance(cls.needs, Set):
            raise TypeError(f"{cls.__name__}.needs is a set of names, not {cls.needs!r}")
        unknown = cls.needs - set(NEEDS)
        if unknown:
            raise TypeError(f"{cls.__name__}.needs: unknown {sorted(unknown)}; known: {[*NEEDS]}")

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Say what is meant instead, where a method is made as it can't be."""
        name, known = cls.__name__, {f.name for f in fields(cls)}
        if bare := cls._annotated_in_vain():
            raise TypeError(
                f"{name}: {' and '.join(bare)} can't be given or searched, as the class is no dataclass "
                "of its own: decorate it with @dataclass(frozen=True)"
            )
        if any(isinstance(a, nn.Module | ForgetSplit) for a in (*args, *kwargs.values())):
            raise TypeError(
                f"{name} is made of hyper-parameters alone, and what is made is called with the "
                f"model and the split: {name}(...)(model, split)"
            )
        if wrong := sorted(kwargs.keys() - known):
            cure = did_you_mean(wrong[0], sorted(known)) if known else "it has none"
            configs = [f.name for f in fields(cls) if isinstance(f.default, TrainConfig)]
            if configs and wrong[0] in {f.name for f in fields(TrainConfig)}:
                cure = f"it is part of {configs[0]}=TrainConfig(...)"
            raise TypeError(f"{name} has no hyper-parameter {wrong[0]!r}; {cure}")
        return super().__new__(cls)

    @classmethod
    def _annotated_in_vain(cls) -> list[str]:
        """What reads as a hyper-parameter in a class that nobody made a dataclass."""
        own = [
            c
            for c in cls.__mro__
            if issubclass(c, Method) and "__dataclass_fields__" not in vars(c)
        ]
        found = {n: str(a) for c in own for n, a in inspect.get_annotations(c).items()}
        known = {f.name for f in fields(cls)} | set(inspect.get_annotations(Method))
        return sorted(n for n, a in found.items() if n not in known and "ClassVar" not in a)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        """Return an unlearned model, in evaluation mode, where ``model`` is.

        Its ``made_by`` says which methods made it, this one last: `told` of each.
        ``model`` stays bit for bit as it was, unless ``inplace`` says that it may be used up (for
        models too big to copy).

        Parameters
        ----------
        model : of the split's modality: a network for images, a `Chat` for text and for images with
            text, a `Diffusion` for what is drawn
        split : what is to be forgotten and what is kept, with the task
        seed : at least 0; of everything that the method draws

        Raises
        ------
        TypeError, ValueError
            As of `check`, before any work.
        NotFiniteError
            The model that is given, or the one that was made, has weights that are not finite.
        TrainingError
            Training can't go on.
        """
        if not torch.is_grad_enabled():  # a caller has switched gradients off
            with torch.inference_mode(False), torch.enable_grad():
                return self(model, split, seed, inplace=inplace)
        self.check(model, split, seed)
        former = getattr(model, "made_by", ())
        work = model if inplace else copy.deepcopy(model)
        with needing(EXTRA.get(split.task.modality, "llm")):
            unlearned = self.unlearn(work, split.only(self.needs, type(self).__name__), seed)
        if not isinstance(unlearned, nn.Module):
            raise TypeError(f"{self.name}: unlearn returns a model, not {unlearned!r}")
        require_finite(unlearned, f"{self.name}: the unlearned model")
        unlearned.made_by = (*former, told(self, seed))
        return unlearned.eval()

    def check(self, model: nn.Module, split: ForgetSplit, seed: int = 0) -> None:
        """Raise what can be known to be wrong before any work.

        Raises
        ------
        TypeError
            The model is none of the split's modality, or the method works on another; what is given
            as a split, or as a seed, is none.
        ValueError
            A part of the split that the method needs is missing or empty, or its task has no template
            answers or no concept where they are needed; nothing in the model can be trained; or the seed is negative.
        NotFiniteError
            The model has weights that are not finite.
        """
        name = type(self).__name__
        if isinstance(model, ForgetSplit):
            raise TypeError(f"{name}: the model comes first, then the split")
        if not isinstance(split, ForgetSplit):
            raise TypeError(
                f"{name}: the split is a ForgetSplit, as forget_class and its like make them, not "
                f"of type {type(split).__name__}"
            )
        modality = split.task.modality
        if modality not in self.works_on:
            raise TypeError(
                f"{name} works on {' and '.join(sorted(self.works_on))}, not on {modality}"
            )
        kind, cure = MODELS.get(modality, MODELS["images"])
        other = modality == "images" and isinstance(model, Chat | Diffusion)
        if other or not isinstance(model, kind):
            raise TypeError(
                f"{name}: the model is of type {type(model).__name__}, and it must be {cure}"
            )
        if isinstance(seed, bool) or not isinstance(seed, Integral):
            raise TypeError(f"{name}: the seed is a whole number, not {seed!r}")
        if seed < 0:
            raise ValueError(f"{name}: the seed is at least 0, not {seed}")
        for part in PARTS:
            if part not in self.needs:
                continue
            data = getattr(split, part)
            if data is None or not len(data):
                state = "missing" if data is None else "empty"
                raise ValueError(f"{name} needs the split's {part} set, which is {state}")
            if isinstance(data, QuestionSet | VisualSet):
                raise TypeError(
                    f"{name}: the split's {part} set holds texts, and the model reads tokens: give "
                    "chat.encoded(questions)"
                )
            reader = getattr(getattr(data, "encode", None), "__self__", None)
            if (
                isinstance(model, Chat)
                and isinstance(reader, Chat)
                and not _read_alike(model, reader)
            ):
                raise TypeError(
                    f"{name}: the split's {part} set holds the tokens of another model's tokenizer: give "
                    "chat.encoded(questions) of the chat that is to forget"
                )
        if "templates" in self.needs and not getattr(split.task, "templates", ()):
            raise ValueError(
                f"{name} needs template answers, and the split's task has none: IDK of "
                "unlearn_core.data, say, as third argument of forget_questions or in "
                f"{type(split.task).__name__}(IDK)"
            )
        if "concepts" in self.needs and not getattr(split.task, "concepts", True):
            raise ValueError(
                f"{name} is told by name what to erase, and the split's task names nothing: "
                "Denoising(Concepts(((concept, what takes its place),)))"
            )
        if self.trains and not any(p.requires_grad for p in model.parameters()):
            raise ValueError(
                f"{name}: all weights of the model are frozen; thaw those that may change with "
                "requires_grad_(True)"
            )
        require_finite(model, f"{self.name}: the given model")

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        """Change ``model`` in place, or make a new one, and return it."""
        raise NotImplementedError
