"""Each example to be forgotten, with what a loss sets beside it.

Many losses look at several things in one step: the true answer and a template answer of the same
question, an example to be kept, what the original model thought of them. `paired_epochs` makes
batches of such rows as the TOFU and FLAT authors do: every example to be forgotten comes once in an
epoch, with a template answer and a retain example that are drawn anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import ForgetSplit, Task, batch_of, batches, redrawn
from ..models import TrainConfig, device_of, evaluating, shuffled_epochs, to, train
from ..seeding import derive_seed, generator

__all__ = [
    "Beside",
    "Paired",
    "frozen_copy",
    "log_probs_before",
    "paired_epochs",
    "template_answers",
]


class Beside(Dataset):
    """Data sets of equal length, read side by side: a batch maps each name to a batch of its own.

    A part may be a tensor, of a number (or a row) an example.
    """

    def __init__(self, **parts: Dataset | Tensor) -> None:
        if len({len(p) for p in parts.values()}) != 1:
            raise ValueError(f"unequal lengths: { {k: len(p) for k, p in parts.items()} }")
        self.parts = parts

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def batch_of(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of each part, by its name."""
        out = {}
        for name, part in self.parts.items():
            tensor = isinstance(part, Tensor)
            out[name] = part[list(indices)] if tensor else batch_of(part, indices)
        return out

    def augmented(self, names: tuple[str, ...], draw: int = 0) -> Beside:
        """Each part with draws of its own."""
        can = {k: p for k, p in self.parts.items() if hasattr(p, "augmented")}
        done = {k: p.augmented(names, derive_seed(draw, k)) for k, p in can.items()}
        return Beside(**self.parts | done)

    def redrawn(self, draw: int) -> Beside:
        """Each part with draws of its own."""
        return Beside(**{k: redrawn(p, derive_seed(draw, k)) for k, p in self.parts.items()})


def template_answers(split: ForgetSplit, seed: int, epoch: int) -> Dataset:
    """The forget set under the template answers of one epoch."""
    return split.task.relabel(split.forget, generator(seed, "templates", epoch))


def paired_epochs(
    split: ForgetSplit,
    config: TrainConfig,
    seed: int,
    *,
    retain: bool = False,
    template: Callable[[int], Dataset] | None = None,
    before: Callable[[int], dict[str, Tensor]] | None = None,
    decouple: Literal["retain", "forget"] | None = None,
) -> Callable[[int], Iterable[dict[str, Any]]]:
    """Epoch -> its batches, each of "forget" and, where asked for, the other parts.

    Parameters
    ----------
    retain : set an example of the retain set beside each, drawn with replacement
    template : epoch -> the forget set under other answers
    before : epoch -> numbers of the original model, one an example, under their names
    decouple : set an example of the decoupling set beside each, at the index of its retain example
        (drawn, whether or not "retain" is asked for) or at its own
    """

    def batches_of(epoch: int) -> Iterable[dict[str, Any]]:
        parts: dict[str, Any] = {"forget": split.forget}
        if retain or decouple == "retain":
            g = generator(seed, "retain", epoch)
            among = len(split.retain if retain else split.decouple)
            chosen = torch.randint(among, (len(split.forget),), generator=g)
        if retain:
            parts["retain"] = split.retain.subset(chosen)
        if decouple is not None:
            at_own = decouple == "forget"
            parts["decouple"] = split.decouple if at_own else split.decouple.subset(chosen)
        if template is not None:
            parts["template"] = template(epoch)
        if before is not None:
            parts |= before(epoch)
        return shuffled_epochs(Beside(**parts), config, derive_seed(seed, "pairs"))(epoch)

    return batches_of


@torch.no_grad()
def log_probs_before(model: nn.Module, task: Task, data: Dataset, batch_size: int) -> Tensor:
    """What the model, before it changes, gives each answer: (n,) summed log-probabilities."""
    with evaluating(model):
        found = [task.log_probs(model, to(b, device_of(model))) for b in batches(data, batch_size)]
    return torch.cat(found).cpu()


def frozen_copy(model: nn.Module) -> nn.Module:
    """The model as it is now, to compare with while it changes."""
    return copy.deepcopy(model).eval().requires_grad_(False)


class Paired:
    """What methods that train on pairs have in common; it comes before `Method` among the bases.

    Such a method has a field ``train``, and a function ``loss(task, model, batch)`` of batches that
    hold "forget" and, as it ``needs`` them, "retain" and "template": see `paired_epochs`. One whose
    loss looks at something else defines `objective`, and one whose batches hold something else
    `epochs`. `PromptDecouple` works around every such method.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    train: TrainConfig
    loss: Callable[..., Tensor]

    def objective(self, task: Task, model: nn.Module) -> Callable[[nn.Module, Any], Tensor]:
        """What is minimised: a function of (model, batch) to a scalar.

        Parameters
        ----------
        task : of the split
        model : the original, before it changes
        """
        return partial(self.loss, task)

    def epochs(
        self, model: nn.Module, split: ForgetSplit, seed: int, **beside: Any
    ) -> Callable[[int], Iterable[dict[str, Any]]]:
        """Epoch -> its batches, in which every example of the forget set comes once.

        Parameters
        ----------
        model : the original, before it changes
        beside : arguments of `paired_epochs`, instead of what follows from ``needs``
        """
        parts: dict[str, Any] = {"retain": "retain" in self.needs}
        if "templates" in self.needs:
            parts["template"] = lambda epoch: template_answers(split, seed, epoch)
        return paired_epochs(split, self.train, seed, **parts | beside)

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        """Minimise the objective; ``model`` changes in place, and is returned."""
        loss = self.objective(split.task, model)
        epochs = self.epochs(model, split, seed)
        return train(model, epochs, loss, self.train, seed=seed, name=self.name)
