r"""Worst-case forget sets (Fan, Liu, Hero and Liu, ECCV 2024; arXiv 2403.07362).

Not a method but an adversary of methods: of all forget sets of $m$ examples it looks for the one
that is hardest to erase. With selection weights $w$ ($w_i = 1$: example $i$ is to be forgotten),

.. math::

    \min_{w \in S} \sum_i w_i\,\ell_i(\theta_u(w)) + \gamma\lVert w\rVert_2^2, \quad
    \theta_u(w) = \arg\min_\theta \sum_i (1 - w_i)\,\ell_i(\theta), \quad
    S = \{0 \le w \le 1,\ \mathbf{1}^\top w = m\}.

The lower level unlearns by *sign* steps, whose derivative is zero almost everywhere. So is that
of $\theta_u$ in $w$, and the upper gradient is no more than $\ell_i(\theta_u) + 2\gamma w_i$: one
forward pass. In every iteration: (1) unlearn from the original model, with the weights as they
are; (2) the losses of all examples; (3) a projected gradient step on the weights. At the end the
$m$ largest weights are the set. With a weight a class, whole classes are selected.

Authors' code: github.com/OPTML-Group/Unlearn-WorstCase, ``data-wise/`` and ``class-wise/``,
commit fc727ce.

Deviations. (1) The defaults are a uniform start and :math:`\alpha = 100`. The authors start from
0/1 weights with :math:`\alpha = 10^{-3}`, where 20 steps are too short to change the order of the
weights: the random set that they begin with comes back (``initial="random"``; see the log's
``overlap_initial``). From a uniform start a small :math:`\alpha` keeps all weights near
:math:`m/N`, so that the lower level never unlearns anything in particular; see ``binary_share``.
(2) They re-seed in every outer iteration, so that the batch order, and the initialisation of
``lower="retrain"``, repeat; here each iteration and epoch draws its own. (3) They take the upper
losses in training mode, on augmented images, which also moves BatchNorm's statistics; here they
are those of the model in evaluation mode on the images themselves. (4) Weights are float64: they
add the gradient into float32 weights, which at a large :math:`\alpha` loses the budget. (5) Their
class gradient divides by the class's count twice, batch by batch, with label smoothing; here it is
the class's mean loss. Their class-wise optimizer moves a weight of zero gradient by a random sign;
here sign(0) = 0, as in their data-wise one. (6) ``lower="retrain"`` begins from the recipe's own
initialisation; theirs is Xavier's, with BatchNorm left as it was.

A sign step moves *every* weight whose computed gradient is not zero. A convolution's bias before
BatchNorm has a gradient of rounding noise and would walk at random; this package's networks have
no such bias.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import Classification, labelled, logits_by
from ..fields import Count, NotNegative, Positive, Share, check_fields
from ..models import Recipe, TrainConfig, device_of, predict, shuffled_epochs, train
from ..registry import ADDED
from ..seeding import derive_seed, generator

__all__ = [
    "SELECTORS",
    "ByLoss",
    "Selection",
    "SignSGD",
    "SignSteps",
    "WorstCase",
    "class_losses",
    "example_losses",
    "lower_level",
    "outer_loop",
    "project_capped_simplex",
    "upper_step",
]


def project_capped_simplex(a: Tensor, budget: float) -> Tensor:
    r"""The point of :math:`\{0 \le w \le 1,\ \mathbf{1}^\top w = \text{budget}\}` nearest to ``a``.

    It is :math:`w_i = \mathrm{clip}(a_i - \mu, 0, 1)`, the sum of which falls as :math:`\mu` grows;
    :math:`\mu` is found by bisection, to float64's precision (``data-wise/utils.py`` stops when the
    bracket is 1e-5 wide). Where the ``budget`` largest entries stand apart by 1 or more, the weights
    are 0 and 1 exactly: a sign step looks at no more than the sign of 1 - w. (At first those of 1
    were 1 - 1e-16 there. No other point has changed, so that published sets of images, whose searches
    met no such point, are what they were.)

    Parameters
    ----------
    a : (N,), of any floating type
    budget : in [0, N]

    Returns
    -------
    (N,) float64

    Raises
    ------
    ValueError
        ``a`` is not finite, or no point has that sum.
    """
    # In float32, neighbours of a large entry are further apart than the weights' precision.
    a = a.double()
    if not a.isfinite().all():
        raise ValueError("cannot project a vector with entries that are not finite")
    if not 0 <= budget <= len(a):
        raise ValueError(f"the budget must lie in [0, {len(a)}], not be {budget}")
    # At the k-th largest entry, k = ceil(budget), at most k - 1 weights are above 0; 1 below it, at
    # least k are 1. So mu lies between, and with entries counted from there the bracket is narrow.
    a = a - a.topk(max(1, math.ceil(budget))).values[-1]
    low = mu = -1.0  # first, because a point of 0 and 1 alone lies there, which halving never meets
    high = 0.0
    for _ in range(61):
        w = (a - mu).clamp(0, 1)
        total = w.sum().item()
        if total == budget:
            break
        low, high = (mu, high) if total > budget else (low, mu)
        mu = (low + high) / 2
    return w


class SignSGD(torch.optim.Optimizer):
    """``theta <- theta - lr * sign(gradient)``, with sign(0) = 0 and nothing else."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient by the learning rate, against its sign."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])


@dataclass(frozen=True)
class SignSteps(TrainConfig):
    """A training configuration whose steps are sign steps."""

    def make_optimizer(self, parameters: Iterable[Tensor]) -> SignSGD:
        """An optimizer of sign steps with this learning rate."""
        return SignSGD(parameters, self.lr)


def lower_level(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    labels: Tensor,
    weights: Tensor,
    config: TrainConfig,
    *,
    seed: int = 0,
    name: str = "worst_case",
    task: Classification | None = None,
) -> nn.Module:
    r"""Unlearn in place, by sign steps on :math:`\sum_{i \in B}(1 - w_i)\,\ell_i`, in training mode.

    Parameters
    ----------
    batches : epoch -> its batches ``(x, positions)``: the place of a label is taken by the
        example's position
    labels, weights : (N,), of the example at each position
    config : ``lr`` is :math:`\beta`
    task : has the logits of the model; without one they are what the model returns

    Raises
    ------
    TrainingError
        The loss is not finite (names ``name`` and the step).
    """
    device = device_of(model)
    logits = logits_by(task)
    labels, kept = labels.to(device), (1 - weights).to(next(model.parameters()))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, i = batch
        y = labels[i]
        each = nn.functional.cross_entropy(logits(model, (x, y)), y, reduction="none")
        return (kept[i] * each).sum()

    return train(model, batches, loss, SignSteps(**vars(config)), seed=seed, name=name)


def example_losses(model: nn.Module, data: Dataset, task: Classification | None = None) -> Tensor:
    """Cross-entropy of every example, (N,) float64, in evaluation mode: one forward pass."""
    out = predict(model, data, task=task)
    # In float64: float32 gives the best-fitted examples, which are looked for, a loss of 0 alike.
    return nn.functional.cross_entropy(out.logits.double(), out.labels, reduction="none")


def class_losses(losses: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean loss of each class, (classes,), from the ``losses`` and ``labels`` (N,) of examples."""
    sums = losses.new_zeros(classes).index_add(0, labels, losses)
    return sums / labels.bincount(minlength=classes)


def upper_step(
    weights: Tensor,
    losses: Tensor,
    budget: int,
    alpha: float,
    gamma: float,
    direction: Literal["worst", "easiest"] = "worst",
) -> Tensor:
    r"""Project :math:`w \mp \alpha(\ell + 2\gamma w)`: minus towards the worst, plus the easiest.

    All of shape (N,), one entry an example or a class (``data-wise/unlearn/impl.py``).
    """
    step = alpha * (losses + 2 * gamma * weights)
    moved = weights - step if direction == "worst" else weights + step
    return project_capped_simplex(moved, budget)


#: The share of weights at 0 or 1 from which a search counts as decided.
BINARY = 0.9


@dataclass(frozen=True)
class Selection:
    """The forget set that was found, and how.

    Attributes
    ----------
    index : (budget,) int64, sorted: positions in the data or, by class, numbers of classes
    weights : (N,) float64, one an example or a class: how hard it is to unlearn, in [0, 1]
    log : what each iteration ended with: ``objective``, the sum of weight times loss;
        ``binary_share``, the share of weights within 1e-6 of 0 or 1; ``overlap_previous`` and
        ``overlap_initial``, the shares of the set that were in it one iteration before, and at
        the start. A uniform start has no set: a random draw by the seed stands for it, so that
        ``overlap_initial`` is then about chance, budget / N.
    """

    index: Tensor
    weights: Tensor
    log: tuple[dict[str, float], ...]


def outer_loop(
    losses: Callable[[Tensor, int, str], Tensor],
    n: int,
    budget: int,
    seed: int,
    *,
    iterations: int,
    alpha: float,
    gamma: float,
    direction: Literal["worst", "easiest"],
    initial: Literal["uniform", "random"] = "uniform",
    settled: float | None = None,
    name: str,
) -> Selection:
    """The search of `WorstCase`, for whatever has a weight: ``budget`` of ``n``.

    Parameters
    ----------
    losses : weights (n,), a seed and a name for errors -> the losses (n,) after unlearning with
        these weights
    """
    start = torch.randperm(n, generator=generator(seed, "initial"))[:budget]
    if initial == "random":
        weights = torch.zeros(n, dtype=torch.float64)
        weights[start] = 1
    else:
        weights = torch.full((n,), budget / n, dtype=torch.float64)
    # Equal weights are taken in random order: by position the first would come first.
    ties = torch.randperm(n, generator=generator(seed, "ties"))
    chosen, log = start, []
    for iteration in range(iterations):
        own = derive_seed(seed, "iteration", iteration)
        found = losses(weights, own, f"{name}, iteration {iteration + 1}")
        weights = upper_step(weights, found, budget, alpha, gamma, direction=direction)
        previous = chosen
        chosen = ties[weights[ties].argsort(descending=True, stable=True)[:budget]]
        log.append(
            {
                "objective": (weights * found).sum().item(),
                "binary_share": ((weights - 0.5).abs() >= 0.5 - 1e-6).double().mean().item(),
                "overlap_previous": torch.isin(chosen, previous).double().mean().item(),
                "overlap_initial": torch.isin(chosen, start).double().mean().item(),
            }
        )
        if settled is not None and _is_settled(log[-1], settled):
            break
    return Selection(chosen.sort().values, weights, tuple(log))


def _is_settled(last: dict[str, float], overlap: float) -> bool:
    return last["binary_share"] >= BINARY and last["overlap_previous"] >= overlap


def _check_budget(budget: Any) -> None:
    if isinstance(budget, bool) or not isinstance(budget, Integral):
        raise TypeError(f"the budget is how many are selected, a whole number, not {budget!r}")


@dataclass(frozen=True)
class WorstCase:
    r"""The search for the forget set that is hardest, or easiest, to unlearn.

    Attributes
    ----------
    iterations : of the outer loop, at most; 20 in the paper
    alpha : :math:`\alpha`, step size of the weights (see the module on its choice)
    gamma : :math:`\gamma`, weight of the squared norm
    initial : the weights to begin with: "uniform", budget / N each, or "random", 1 for a random
        set and 0 otherwise (the authors'; it needs :math:`\alpha \gg 1`)
    train : the lower level; ``lr`` is :math:`\beta`. It augments as this says
    lower : "fine_tune" begins each iteration from the given model, "retrain" from a fresh one
    direction : "worst", the smallest losses after unlearning; "easiest", the largest
    by : whether an "example" or a whole "class" has a weight
    settled : end as soon as 90 % of the weights are 0 or 1 and at least this share of the set was
        chosen one iteration before; None for all iterations. A search whose choice never comes
        to rest has found nothing: see the last entry of its log
    """

    version: ClassVar[int] = 1

    iterations: Count = 20
    alpha: Positive = 100.0
    gamma: NotNegative = 1e-4
    initial: Literal["uniform", "random"] = "uniform"
    train: TrainConfig = TrainConfig(epochs=10, lr=1e-3, batch_size=256)
    lower: Literal["fine_tune", "retrain"] = "fine_tune"
    direction: Literal["worst", "easiest"] = "worst"
    by: Literal["example", "class"] = "example"
    settled: Share | None = field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.train.optimizer != "sgd" or self.train.momentum or self.train.weight_decay:
            raise ValueError("a sign step has no momentum, weight decay or other optimizer")

    def select(
        self,
        model: nn.Module,
        data: Dataset,
        task: Classification,
        budget: int,
        seed: int,
        recipe: Recipe | None = None,
    ) -> Selection:
        """Select ``budget`` examples (or classes) of ``data``; ``model`` stays as it is.

        Parameters
        ----------
        model : the original, trained on ``data``
        data : any data set that `LabelledSet` takes
        recipe : what makes the fresh models of ``lower="retrain"``; not used otherwise

        Raises
        ------
        TypeError
            A budget that is no whole number.
        ValueError
            A budget that leaves nothing to select or to retain, a class without an example, or
            no recipe where one is needed.
        TrainingError
            The lower level's loss is not finite.
        """
        data, by_class = labelled(data), self.by == "class"
        n = task.classes if by_class else len(data)
        _check_budget(budget)
        if not 0 < budget < n:
            raise ValueError(f"cannot select {budget} of {n} {'classes' if by_class else 'images'}")
        if by_class:
            sizes = data.labels.bincount(minlength=n)
            if not sizes.all():
                raise ValueError(f"class {int(sizes.argmin())} has no image to select")
        if self.lower == "retrain" and recipe is None:
            raise ValueError('lower="retrain" needs the recipe of a fresh model')

        numbered = data.with_labels(torch.arange(len(data)))

        def losses(weights: Tensor, own: int, name: str) -> Tensor:
            """Of all examples or classes, after unlearning with these weights."""
            if self.lower == "retrain":
                unlearned = recipe.build(own).to(device_of(model))
            else:
                unlearned = copy.deepcopy(model)
            lower_level(
                unlearned,
                shuffled_epochs(numbered, self.train, own),
                data.labels,
                weights[data.labels] if by_class else weights,
                self.train,
                seed=own,
                name=name,
                task=task,
            )
            found = example_losses(unlearned, data.augmented(()), task)
            return class_losses(found, data.labels, n) if by_class else found

        return outer_loop(
            losses,
            n,
            budget,
            seed,
            iterations=self.iterations,
            alpha=self.alpha,
            gamma=self.gamma,
            direction=self.direction,
            initial=self.initial,
            settled=self.settled,
            name="worst_case",
        )


@dataclass(frozen=True)
class ByLoss:
    """A control without a search: the examples that the original fits best, or worst.

    Attributes
    ----------
    highest : take the largest losses instead of the smallest
    """

    version: ClassVar[int] = 1

    highest: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def select(
        self,
        model: nn.Module,
        data: Dataset,
        task: Classification,
        budget: int,
        seed: int,
        recipe: Recipe | None = None,
    ) -> Selection:
        """As `WorstCase.select`; the weights are 0 and 1, and there is no iteration to log.

        Raises
        ------
        TypeError
            A budget that is no whole number.
        ValueError
            A budget that leaves nothing to select or to retain.
        """
        data = labelled(data)
        _check_budget(budget)
        if not 0 < budget < len(data):
            raise ValueError(f"cannot select {budget} of {len(data)} images")
        losses = example_losses(model, data.augmented(()), task)
        index = losses.topk(budget, largest=self.highest).indices.sort().values
        weights = torch.zeros(len(data), dtype=torch.float64)
        weights[index] = 1
        return Selection(index, weights, ())


#: What can choose a forget set, by the name in a profile's ``select``.
SELECTORS = {"worst_case": WorstCase, "by_loss": ByLoss}
