r"""Learning tasks one after another, without forgetting the first: what continual methods share.

The order of things is that of SEFE (Chen et al., ICML 2025; arXiv 2505.02486). Each task starts
from the model that the former ones left,

.. math:: \theta_t = \arg\min_\theta L_t(\theta) \quad \text{from } \theta_{t-1}, \qquad
          L_t = \ell(D_t) + \text{what a method adds to it.}

A multimodal model's projector may be trained along, in whole; its vision tower is never trained.

Authors' code: github.com/jinpeng0528/SEFE, ``scripts/Train``, commit 2f61efe (built on LLaVA).

Deviations: batches are shuffled, not grouped by modality and length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import QuestionSet, Task, VisualSet
from ..fields import check_fields
from ..models import Chat, TrainConfig, require_finite, shuffled_epochs, train
from ..seeding import derive_seed
from .adapters import submodule
from .base import told

__all__ = ["ContinualMethod", "Stage"]

#: How SEFE's authors tune adapters on each of eight tasks.
SEFE_TRAIN = TrainConfig(
    epochs=1,
    lr=2e-4,
    batch_size=128,
    optimizer="adamw",
    schedule="cosine",
    warmup_epochs=0.03,
)

#: What a method keeps of the tasks that it has learned.
Memory = dict[Any, Tensor]


@dataclass(frozen=True)
class Stage:
    """One task in a sequence: ``task.loss(model, batch)`` is lowered on ``data``."""

    name: str
    task: Task
    data: Dataset


@dataclass(frozen=True)
class ContinualMethod:
    """Base of the methods that learn tasks in a sequence; subclasses implement `adapt`.

    Attributes
    ----------
    train : how to train on each task
    projector : the name, or the end of it, of a module that is trained in whole beside the language
        model; None for none
    """

    name: ClassVar[str]
    mixes: ClassVar[bool] = False  # does it train on data of several tasks at once?
    version: ClassVar[int] = 1

    train: TrainConfig = SEFE_TRAIN
    projector: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def learn(
        self, model: Chat, tasks: Sequence[Stage | tuple[str, Task, Dataset]], seed: int = 0
    ) -> Iterator[tuple[str, Chat]]:
        """Learn the tasks in their order; after each, yield its name and the model.

        A yielded model is in evaluation mode, where ``model`` is, and the caller's to keep; the
        next task is learned by a copy of it. ``model`` stays bit for bit as it was.

        Raises
        ------
        TypeError
            At once: the model is no `Chat`, or the tasks are not several of (name, task, data), the data
            being tokens.
        NotFiniteError
            At once: the model has weights that are not finite.
        ValueError
            At once: no task, a task twice, or a module to be trained that the model doesn't have.
        TrainingError
            A loss that is not finite; it names the method, the number of the task and the step.
        """
        if not isinstance(model, Chat):
            raise TypeError(
                f"{self.name}: the model is of type {type(model).__name__}, and it must be a Chat: wrap it "
                "in Chat(model, tokenizer, template) or, of images, VisionChat"
            )
        require_finite(model, f"{self.name}: the given model")
        several = isinstance(tasks, Iterable) and not isinstance(tasks, Mapping | str)
        stages = [self._stage(one) for one in (tasks if several else [tasks])]
        names = [s.name for s in stages]
        if not names:
            raise ValueError(f"{self.name}: there is no task to learn")
        if twice := [n for i, n in enumerate(names) if n in names[:i]]:
            raise ValueError(f"{self.name}: the task {twice[0]!r} comes twice in the order {names}")
        self.check(model, stages)
        return self.run(model, stages, seed)

    def _stage(self, given: Any) -> Stage:
        """One task, whatever form it was given in."""
        if isinstance(given, tuple | list) and len(given) == 3:
            given = Stage(*given)
        if not isinstance(given, Stage) or not hasattr(given.task, "loss"):
            raise TypeError(
                f"{self.name}: tasks are a list of (name, task, data), such as "
                f"[('one', VisualAnswering(), chat.encoded(questions))]; {given!r:.60} is none"
            )
        if isinstance(given.data, QuestionSet | VisualSet):
            raise TypeError(
                f"{self.name}: the data of {given.name!r} are texts, and the model reads tokens: give "
                "chat.encoded(questions)"
            )
        return given

    def check(self, model: Chat, stages: Sequence[Stage]) -> None:
        """Raise what can be known to be wrong before the first step.

        Raises
        ------
        ValueError
            A module that is to be trained is not there, or the tasks' losses differ where one is needed.
        """
        self.beside(model)
        if self.mixes and any(s.task != stages[0].task for s in stages):
            raise ValueError(f"{self.name}: data of several tasks need one loss, the same for all")

    def run(self, model: Chat, stages: Sequence[Stage], seed: int) -> Iterator[tuple[str, Chat]]:
        """As `learn`, of tasks that are checked already: after each, yield its name and the model."""
        memory: Memory = {}
        for t, stage in enumerate(stages, start=1):
            model = copy.deepcopy(model)
            self.adapt(model, stages[:t], memory, seed)
            made = told(self, seed, task=stage.name)
            model.made_by = (*getattr(model, "made_by", ()), made)
            yield stage.name, model

    def adapt(self, model: Chat, stages: Sequence[Stage], memory: Memory, seed: int) -> None:
        """Learn the last of the stages, the former ones being learned; ``model`` in place."""
        raise NotImplementedError

    def data(self, stages: Sequence[Stage], seed: int) -> Dataset:
        """What is trained on to learn the last of the stages."""
        return stages[-1].data

    def beside(self, model: Chat) -> list[nn.Parameter]:
        """What is trained in whole beside the language model."""
        if self.projector is None:
            return []
        return list(submodule(model, self.projector).parameters())

    def fit(
        self,
        model: Chat,
        stages: Sequence[Stage],
        seed: int,
        loss: Callable[[nn.Module, Any], Tensor],
        after_step: Callable[[nn.Module, int], None] | None = None,
    ) -> None:
        """Train what can be trained; every method draws the same batches for a task."""
        own = derive_seed(seed, "task", len(stages))
        epochs = shuffled_epochs(self.data(stages, seed), self.train, own)
        name = f"{self.name}, task {len(stages)}"
        train(model, epochs, loss, self.train, seed=own, name=name, after_step=after_step)
