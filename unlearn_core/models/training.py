"""The one training loop, its configuration, and the recipe that made a model."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

from ..data import Classification, Task, labelled, redrawn
from ..data import batches as make_batches
from ..data.checks import check_numbers
from ..fields import Count, Fraction, Natural, NotNegative, Positive, check_fields
from ..registry import ADDED
from ..seeding import derive_seed, generator, seeded
from .checkpoints import Checkpoint
from .classifiers import ModelSpec

__all__ = [
    "NotFiniteError",
    "PrecisionWarning",
    "Recipe",
    "TrainConfig",
    "TrainingError",
    "default_device",
    "device_of",
    "frozen_norms",
    "learning",
    "require_finite",
    "shuffled_epochs",
    "single_precision",
    "tell_what_rounds_away",
    "to",
    "train",
]


class TrainingError(RuntimeError):
    """Training that cannot go on: a loss that is not finite, or no data."""


class NotFiniteError(TrainingError):
    """A loss that is not finite, the weights being those of the step before; or such weights."""


class PrecisionWarning(UserWarning):
    """Weights are trained, or kept, in a precision in which what was learned rounds away."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Every learning rate, epoch and batch size of a method lives in one of these.

    Attributes
    ----------
    milestones, gamma : the "multistep" schedule multiplies lr by gamma at these epochs; one before
        the first epoch is passed already
    warmup_epochs : the learning rate rises linearly from 0 during this many epochs
    augment : random operations on training images ("crop", "flip", "rotate")
    clip : largest gradient norm (2-norm over all parameters); None for no clipping
    accumulate : batches per optimizer step
    max_steps : stop after this many optimizer steps (rehearsals); None for all epochs
    patience : early stopping: end after this many epochs below the best validation score, and
        keep the best epoch's weights (of equals the last); None for no early stopping
    """

    epochs: Count
    lr: Positive
    batch_size: Count = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Fraction = 0.0
    weight_decay: NotNegative = 0.0
    schedule: Literal["constant", "multistep", "cosine", "linear"] = "constant"
    milestones: tuple[int, ...] = ()
    gamma: Positive = 0.1
    warmup_epochs: NotNegative = 0.0
    augment: tuple[str, ...] = ()
    clip: Positive | None = None
    accumulate: Count = 1
    precision: Literal["no", "fp16", "bf16"] = "no"
    workers: Natural = 0
    max_steps: Count | None = None
    patience: Count | None = field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        for name in ("milestones", "augment"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self)
        if bool(self.milestones) != (self.schedule == "multistep"):
            raise ValueError("milestones belong to the multistep schedule, which needs them")
        for milestone in self.milestones:
            if isinstance(milestone, bool) or not isinstance(milestone, int):
                raise ValueError(f"milestones are whole numbers of epochs, not {milestone!r}")
            if milestone > self.epochs:
                raise ValueError(f"a milestone after {milestone} of {self.epochs} epochs")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"a warm-up of {self.warmup_epochs} of {self.epochs} epochs")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum belongs to sgd")

    @property
    def version(self) -> int | None:
        """Raised where behaviour changed: with 2 augmentation is drawn by seed, epoch and position."""
        return 2 if self.augment else None

    def make_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """A PyTorch optimizer of these parameters, as ``optimizer`` names it."""
        parameters = list(parameters)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay
            )
        cls = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        # On a GPU the default makes lists as large as all weights at every step.
        fused = {"fused": True} if parameters and all(p.is_cuda for p in parameters) else {}
        return cls(parameters, self.lr, weight_decay=self.weight_decay, **fused)

    def factor(self, epoch: float) -> float:
        """The learning rate at a (fractional) epoch, as a multiple of ``lr``."""
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        if self.schedule == "multistep":
            return self.gamma ** sum(epoch >= m for m in self.milestones)
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if self.schedule == "linear":
            return max(1.0 - done, 0.0)
        return 1.0


def default_device() -> torch.device:
    """The first GPU, or the CPU where PyTorch finds none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where the first of a model's parameters is."""
    return next(model.parameters()).device


def to(batch: Any, device: torch.device) -> Any:
    """A batch (tensors, texts, or tuples, lists and dicts of them) on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, str):
        return batch
    if isinstance(batch, dict):
        return {k: to(v, device) for k, v in batch.items()}
    return type(batch)(to(v, device) for v in batch)


@torch.no_grad()
def require_finite(model: nn.Module, whose: str) -> None:
    """Raise where a model computes nothing but NaN.

    A buffer may hold minus infinity, as masks of attention do.

    Raises
    ------
    NotFiniteError
        Names ``whose`` model it is, and the weight or buffer.
    """
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_meta or not t.is_floating_point():
            continue
        sound = t.isfinite() if isinstance(t, nn.Parameter) else t.isfinite() | t.isneginf()
        if not sound.all():
            raise NotFiniteError(f"{whose} is not finite: {name}")


#: The precision that a parameter came with, by its id, while it is in single precision.
_CAME_AS: dict[int, torch.dtype] = {}


@contextlib.contextmanager
def single_precision(parameters: Iterable[nn.Parameter], name: str = "training") -> Iterator[None]:
    """Inside the block parameters of half precision are float32; at its end they are rounded, once.

    In half precision a step of less than half a spacing leaves a weight where it is. `train` does
    so itself, and computes with a model as it came all the same; this is for what several
    trainings, or what stands around one, should not round in between.

    Parameters
    ----------
    name : who moves the weights, for the warning

    Warns
    -----
    PrecisionWarning
        As of `tell_what_rounds_away`.
    """
    own = [p for p in parameters if p.is_floating_point() and p.dtype.itemsize < 4]
    before = [_some(p) for p in own]
    for p in own:
        _CAME_AS[id(p)] = p.dtype
        p.data = p.data.float()
    try:
        yield
        exact = [(a, _some(p)) for a, p in zip(before, own, strict=True) if id(p) in _CAME_AS]
        tell_what_rounds_away(name, ((a, b, b.to(a.dtype)) for a, b in exact))
    finally:
        for p in own:
            p.grad = None
            p.data = p.data.to(_CAME_AS.pop(id(p), p.dtype))


def _some(p: Tensor) -> Tensor:
    """A copy of some thousand weights, evenly spaced, which stand for all."""
    flat = p.detach().flatten()
    return flat[:: max(1, len(flat) // 4096)].clone()


def tell_what_rounds_away(name: str, moves: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Warn where weights that were moved in float32 are, once rounded, nearer to where they were.

    Parameters
    ----------
    moves : weights before, as they were moved, and rounded; of one shape, and of half precision but for
        the second

    Warns
    -----
    PrecisionWarning
        Less than half of the way is left. It names ``name``, the share and the precision.
    """
    kinds, whole, left = set(), 0.0, 0.0
    for before, exact, rounded in moves:
        way = (exact.float() - before.float()).flatten()
        kinds.add(str(before.dtype).removeprefix("torch."))
        whole += (way @ way).item()
        left += (way @ (rounded.float() - before.float()).flatten()).item()
    if left < 0.5 * whole:
        own = " and ".join(sorted(kinds))
        warnings.warn(
            f"{name}: {left / whole:.0%} of the way that the weights were moved is left in {own}, in "
            "which the model came; smaller moves round back. Give it in float32, model.float(): a "
            "TrainConfig's precision alone says what is computed in",
            PrecisionWarning,
            stacklevel=4,
        )


class _AsItCame(nn.Module):
    """A model for functions of it that see every weight in the precision that it came with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.ran = model, False

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        return function(self.model)

    def run(self, function: Callable[[nn.Module], Any], name: str) -> Any:
        """What it gives for the model; a gradient that it computes is of the weights themselves."""
        if not _CAME_AS:
            return function(self.model)
        named = dict(self.named_parameters())
        cast = {n: p.to(_CAME_AS[id(p)]) for n, p in named.items() if id(p) in _CAME_AS}
        if not cast:
            return function(self.model)
        try:
            found = functional_call(self, cast, (function,))
        except (TrainingError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            if self.ran:
                raise
            for p in named.values():
                p.grad = None
                p.data = p.data.to(_CAME_AS.pop(id(p), p.dtype))
            found = function(self.model)
            # It holds its weights in a second place, say.
            kinds = {str(t.dtype).removeprefix("torch.") for t in cast.values()}
            own = " and ".join(sorted(kinds))
            warnings.warn(
                f"{name}: this model can't compute in {own} with weights that are kept in float32 "
                f"({error}); they are trained in {own}, in which small steps round away",
                PrecisionWarning,
                stacklevel=4,
            )
        self.ran = True
        return found


#: What accelerate lets win over its arguments, and what makes it one of several processes.
_ACCELERATES = ("ACCELERATE_", "LOCAL_RANK", "FORK_LAUNCHED")


@contextlib.contextmanager
def _plain_environment() -> Iterator[None]:
    """No variable of the environment decides how a model is trained."""
    hidden = {k: os.environ.pop(k) for k in [*os.environ] if k.startswith(_ACCELERATES)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def shuffled_epochs(
    dataset: Dataset, config: TrainConfig, seed: int
) -> Callable[[int], Iterable[Any]]:
    """A factory of shuffled epochs, each with its own seed, so that a resumed run sees the same.

    Order and augmentation are matters of the seed and the epoch, not of how many workers load.
    """

    def batches_of(epoch: int) -> Iterable[Any]:
        own = derive_seed(seed, "augment", epoch)
        data = dataset.augmented(config.augment, own) if config.augment else redrawn(dataset, own)
        return make_batches(
            data,
            config.batch_size,
            shuffle=True,
            generator=generator(seed, "batches", epoch),
            workers=config.workers,
        )

    return batches_of


def clock(device: torch.device) -> Callable[[], float]:
    """What tells the seconds of work on a device: the wall's clock or, where one thread computes on a
    CPU, the processor's, which nothing else that runs there lengthens.

    The processor's counts all of this process and the workers that it has waited for.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return _processor if alone else time.perf_counter


def _processor() -> float:
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system


def train(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[nn.Module, Any], Tensor],
    config: TrainConfig,
    *,
    seed: int = 0,
    name: str = "train",
    after_step: Callable[[nn.Module, int], None] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    still: Collection[nn.Module] | None = None,
) -> nn.Module:
    """Train ``model`` in place, where it is, and leave it in evaluation mode.

    What is trained is float32 while it is trained (weights, gradients that are summed, moments),
    whatever the model computes in; then it is rounded, once, to the precision that it came with.

    Parameters
    ----------
    batches : epoch -> the batches of that epoch (sized)
    loss : (model, batch) -> scalar
    seed : of what the model itself draws (dropout, augmentation)
    name : who is training, for errors and the progress bar
    after_step : called with the model, its weights in float32, and the number of optimizer steps
        taken
    validate : the score that early stopping goes by, higher is better; with ``patience`` only
    checkpoint : saved after each epoch, resumed from, and removed at the end
    still : layers that are in evaluation mode meanwhile; where None `frozen_norms`

    Raises
    ------
    NotFiniteError
        The loss is not finite (names ``name`` and the step), or the trained weights are not.
    TrainingError
        An epoch has no batch, or all epochs have too few for a step.
    CheckpointError
        The checkpoint can't be read or written.
    ValueError
        ``patience`` without ``validate``, or the other way round.

    Warns
    -----
    PrecisionWarning
        A model of half precision that can't compute with weights that are float32 elsewhere; or in
        which most of what was learned rounds away at the end.
    """
    if (config.patience is None) != (validate is None):
        raise ValueError(f"{name}: early stopping needs both patience and validation data")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin
    from tqdm.auto import tqdm

    parameters = [p for p in model.parameters() if p.requires_grad]
    still = frozen_norms(model) if still is None else still
    with _in_training(model, parameters, name):
        # The state is shared in a process and would hold on to the first precision asked for.
        AcceleratorState._reset_state()
        with _plain_environment():
            accelerator = Accelerator(
                mixed_precision=config.precision,
                gradient_accumulation_plugin=GradientAccumulationPlugin(
                    num_steps=config.accumulate
                ),
                device_placement=False,  # the model stays where it is
            )
        device = device_of(model)
        as_it_came = _AsItCame(model)

        def gradient(model: nn.Module, batch: Any) -> None:
            with accelerator.autocast():
                value = loss(model, batch)
            if not torch.isfinite(value):
                raise NotFiniteError(f"{name}: the loss is {value.item()} at step {step + 1}")
            accelerator.backward(value)

        optimizer = accelerator.prepare_optimizer(config.make_optimizer(parameters))
        per_epoch = len(batches(0))
        if per_epoch == 0:
            raise TrainingError(f"{name}: an epoch has no batch")
        now = clock(device)
        first, step, began = 0, 0, now()
        best: dict[str, Any] = {"score": -math.inf, "below": 0, "model": None}
        state = None if checkpoint is None else checkpoint.load()
        if state is not None and (fault := _unfit(state, model, optimizer, config)):
            checkpoint.discard(fault)
            state = None
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            first, step, best = state["epoch"], state["step"], state["best"]
            checkpoint.seconds, checkpoint.step = state["seconds"], step
            began -= state["seconds"]
        total = min(config.epochs * per_epoch // config.accumulate, config.max_steps or math.inf)
        if total == 0:
            raise TrainingError(
                f"{name}: {per_epoch} batches an epoch make no step of {config.accumulate}"
            )
        learning(model, still)
        optimizer.zero_grad()
        if first:  # go on in the middle of an accumulation
            accelerator.step = first * per_epoch
            for p, g in zip(parameters, state["gradients"], strict=True):
                p.grad = None if g is None else g.to(p.device)
        with tqdm(total=total, initial=step, desc=name, disable=not progress) as bar:
            for epoch in range(first, config.epochs):
                if step >= total:
                    break  # max_steps: no more epochs, each of which would start its workers
                if config.patience is not None and best["below"] >= config.patience:
                    break
                with seeded(seed, "train", epoch):
                    for i, batch in enumerate(batches(epoch)):
                        if step >= total:
                            break
                        for group in optimizer.param_groups:
                            group["lr"] = config.lr * config.factor(epoch + i / per_epoch)
                        with accelerator.accumulate(model):
                            as_it_came.run(partial(gradient, batch=to(batch, device)), name)
                            if accelerator.sync_gradients and config.clip is not None:
                                accelerator.clip_grad_norm_(parameters, config.clip)
                            optimizer.step()
                            optimizer.zero_grad()
                        if accelerator.sync_gradients:
                            step += 1
                            bar.update()
                            if after_step is not None:
                                after_step(model, step)
                if validate is not None:
                    model.eval()
                    score = as_it_came.run(validate, name)
                    learning(model, still)
                    if score >= best["score"]:
                        kept = copy.deepcopy(model.state_dict())
                        best = {"score": score, "below": 0, "model": kept}
                    else:
                        best["below"] += 1
                if checkpoint is not None:
                    state = {
                        "epoch": epoch + 1,
                        "step": step,
                        "seconds": now() - began,
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "gradients": [p.grad for p in parameters],
                        "best": best,
                    }
                    if accelerator.scaler is not None:
                        state["scaler"] = accelerator.scaler.state_dict()
                    checkpoint.save(state)
        if best["model"] is not None:
            model.load_state_dict(best["model"])
        if checkpoint is not None:
            checkpoint.remove()
    require_finite(model, f"{name}: the trained model")
    return model


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """The layers with running statistics, as BatchNorm, in parts of a model that are frozen.

    Nothing is learned there: while the rest is trained they are to give what they gave before.
    """
    found: list[nn.Module] = []

    def visit(module: nn.Module, frozen: bool) -> None:
        own = [p.requires_grad for p in module.parameters()]
        frozen = not any(own) if own else frozen  # without parameters, as what it is part of
        if frozen and getattr(module, "running_mean", None) is not None:
            found.append(module)
        for child in module.children():
            visit(child, frozen)

    visit(model, False)
    return found


def learning(model: nn.Module, still: Collection[nn.Module] | None = None) -> None:
    """Put a model in training mode, but for the layers ``still``, or `frozen_norms`."""
    model.train()
    for layer in frozen_norms(model) if still is None else still:
        layer.eval()


@contextlib.contextmanager
def _in_training(model: nn.Module, parameters: list[nn.Parameter], name: str) -> Iterator[None]:
    """At the end of the block no gradient is left, and the model is in evaluation mode."""
    try:
        # A caller may have switched gradients off.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            single_precision(parameters, name),
        ):
            yield
    finally:
        model.eval()
        for p in parameters:
            p.grad = None


def _unfit(
    state: Any, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> str | None:
    """Why this training can't go on from a checkpoint's state, if it can't."""
    keys = {"epoch", "step", "seconds", "model", "optimizer", "gradients", "best"}
    keys |= {"scaler"} if config.precision == "fp16" else set()
    if not isinstance(state, dict) or keys - state.keys():
        return "it lacks what a training needs to go on"
    if state["epoch"] not in range(1, config.epochs + 1):
        return f"it was made after epoch {state['epoch']} of {config.epochs}"
    then, now = (
        {k: getattr(v, "shape", None) for k, v in w.items()}
        for w in (state["model"], model.state_dict())
    )
    if then != now:
        return "it is of a model of another shape"
    then, now = (
        [g["params"] for g in o["param_groups"]]
        for o in (state["optimizer"], optimizer.state_dict())
    )
    if then != now:
        return "other weights were trained in it"
    slots = (v for kept in state["optimizer"]["state"].values() for v in kept.values())
    names = (k for k, p in model.named_parameters() if p.requires_grad)
    tensors = [*(state["model"][k] for k in names), *(v for v in slots if isinstance(v, Tensor))]
    if not all(torch.isfinite(t).all() for t in tensors):
        return "its weights or its optimizer's state are not finite"
    return None


#: Models that functions in recipes have made, while they live.
_MADE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class Recipe:
    """What made a model: its architecture, the task and how it was trained.

    Methods that rebuild a model (retraining, a bad teacher) take the recipe. ``version`` is raised when
    training changes behaviour.

    Parameters
    ----------
    model : a spec, or a function without arguments that makes a new model whenever it is called, such
        as ``lambda: torchvision.models.resnet18(num_classes=3)``
    task : what the model is trained to do
    train : how; None of a model that was trained elsewhere

    Raises
    ------
    TypeError
        The model is a network that is there already, or ``train`` no `TrainConfig`.
    """

    version: ClassVar[int] = 1

    model: ModelSpec | Callable[[], nn.Module]
    task: Task
    train: TrainConfig | None

    def __post_init__(self) -> None:
        if isinstance(self.model, nn.Module) or not (
            isinstance(self.model, ModelSpec) or callable(self.model)
        ):
            raise TypeError(
                f"a recipe makes new models: give a spec or a function, lambda: {type(self.model).__name__}"
                "(...), not what it makes"
            )
        if not isinstance(self.train, TrainConfig | None):
            raise TypeError(f"a recipe's train is a TrainConfig, not {self.train!r}")

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised model in evaluation mode, on the CPU; the same seed gives the same.

        Parameters
        ----------
        seed : of what the initialisation draws from torch

        Raises
        ------
        TypeError
            The function makes no network, or one that it has given before.
        """
        if isinstance(self.model, ModelSpec):
            return self.model.build(seed)
        with seeded(seed, "init"):
            made = self.model()
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"the recipe's function makes a {type(made).__name__}, not a torch.nn.Module"
            )
        if made in _MADE:
            raise TypeError(
                "the recipe's function gave the same network twice: let it make a new one"
            )
        _MADE.add(made)
        return made.eval()

    def start(self, data: Dataset, seed: int, device: torch.device) -> nn.Module:
        """The model that training begins with."""
        return self.build(seed).to(device)

    def fit(
        self,
        data: Dataset,
        seed: int,
        *,
        validation: Dataset | None = None,
        device: torch.device | None = None,
        name: str = "base model",
        checkpoint: Checkpoint | None = None,
        progress: bool = False,
    ) -> nn.Module:
        """A new model, trained on ``data`` as the recipe says; in evaluation mode.

        The same seed and data give the same model on the same machine.

        Parameters
        ----------
        data : training examples of the task's kind; of a classifier any data set that `LabelledSet` takes
        seed : of the initial weights, the order of the batches and augmentations
        validation : held-out examples; needed where the training stops early (``patience``)
        device : None for `default_device`
        name : the word for the training in errors and progress
        checkpoint : as of `train`

        Raises
        ------
        TrainingError
            A loss or weights that are not finite, or data that can't be trained on; it names the step.
        ValueError
            A label that is none of the task's classes.
        """
        if self.train is None:
            raise TrainingError(f"{name}: this model was trained elsewhere; how is not known here")
        with torch.inference_mode(False):
            model = self.start(data, seed, device or default_device())
        if self.train.patience is not None and validation is None:
            raise TrainingError(f"{name}: early stopping needs validation data")
        stop_by = self.train.patience is not None
        if isinstance(self.task, Classification):
            data = labelled(data)
            validation = None if validation is None else labelled(validation)
            for part in (data, validation):
                if part is not None:
                    check_numbers(part.labels, f"{name}: the labels", self.task.classes)
        return train(
            model,
            shuffled_epochs(data, self.train, derive_seed(seed, "fit")),
            self.task.loss,
            self.train,
            seed=seed,
            name=name,
            validate=(lambda m: _accuracy(m, validation, self.task)) if stop_by else None,
            checkpoint=checkpoint,
            progress=progress,
        )


def _accuracy(model: nn.Module, data: Dataset, task: Classification) -> float:
    """Share of right answers of a model in evaluation mode."""
    device, right = device_of(model), 0
    with torch.no_grad():
        for batch in make_batches(data, 256):
            x, y = to(batch, device)
            right += int((task.logits(model, (x, y)).argmax(dim=1) == y).sum())
    return right / len(data)
