"""What every unlearning method is: a frozen dataclass of hyperparameters that you call."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..data import ForgetSplit
from ..models import TrainConfig

__all__ = ["ANY", "DIFFUSION", "FORGET_TEXT", "IMAGES", "MULTIMODAL", "NEEDS", "TEXT", "Method"]

#: What a method can work on, by the ``modality`` of a split's task.
IMAGES, TEXT, DIFFUSION = frozenset({"images"}), frozenset({"text"}), frozenset({"diffusion"})
MULTIMODAL = frozenset({"multimodal"})
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


@dataclass(frozen=True)
class Method:
    """Base of the methods; subclasses implement `unlearn` and declare ``name`` and ``needs``.

    ``works_on`` holds the modalities that a method can be called on, images where it says nothing.
    ``version`` is raised by hand when the method's behaviour changes: cached results of the
    former version are then computed again.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    draws: ClassVar[bool]  # does the seed matter?
    works_on: ClassVar[frozenset[str]] = IMAGES
    version: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        unknown = cls.needs - set(NEEDS)
        if unknown:
            raise TypeError(f"{cls.__name__}.needs: unknown {sorted(unknown)}; known: {[*NEEDS]}")

    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        """Return an unlearned model, in evaluation mode, where ``model`` is.

        ``model`` stays bit for bit as it was, unless ``inplace`` says that it may be used up (for
        models too big to copy).

        Raises
        ------
        TypeError
            The split is of a modality that the method doesn't work on.
        """
        if split.task.modality not in self.works_on:
            raise TypeError(
                f"{type(self).__name__} works on {' and '.join(sorted(self.works_on))}, not on "
                f"{split.task.modality}"
            )
        work = model if inplace else copy.deepcopy(model)
        return self.unlearn(work, split.only(self.needs, type(self).__name__), seed).eval()

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        """Change ``model`` in place, or make a new one, and return it."""
        raise NotImplementedError
