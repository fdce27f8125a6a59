r"""SalUn (Fan, Liu, Zhang, Wong, Wei and Liu, ICLR 2024; arXiv 2310.12508), for classifiers.

Only the weights that matter most to the forget set may change; all others keep their original
values :math:`\theta_o`. With the training loss :math:`\ell`,

.. math::

    m = \mathbf 1\big(|\nabla_\theta\,\ell(\theta; D_f)|_{\theta=\theta_o} \ge \gamma\big),
    \qquad
    \theta_u = m \odot \theta + (1 - m) \odot \theta_o,

where :math:`\gamma` is the median, so that half of the weights are kept in play, and
:math:`\theta` is trained by random labelling:

.. math::

    \min_\theta\; \mathbb{E}_{x\sim D_f,\,y'}\big[\ell(\theta_u; x, y')\big]
    + \mathbb{E}_{(x,y)\sim D_r}\big[\ell(\theta_u; x, y)\big].

Steps: (1) the gradient on the forget set, one pass (`saliency_mask`); (2) random labelling
(`RandomLabel`) in which the masked-out weights are `frozen`. ``keep=1`` is plain random labelling.

Authors' code: github.com/OPTML-Group/Unlearn-Saliency, ``Classification/`` (``generate_mask.py``,
``unlearn/RL.py``, ``unlearn/RL_pro.py``), commit a6e89fd.

Where the code and the text differ, this follows the code: there is no weight between the two
terms; the mask's gradient is a sum over batches, in which a short last batch weighs as much as a
full one; a random label may be the true one (``wrong=True`` gives the formula's); BatchNorm's
running statistics are not masked. That code changed after the tables were published, in two
ways. Until February 2026 it masked only the gradients, so that weight decay went on moving the
masked-out weights: ``freeze="gradient"`` is that version. And until January 2024 it shuffled
forget and retain images together, as here; ``order="forget_first"`` is the later one (see
`RandomLabel`). One deviation: a parameter without a gradient, on which the authors' mask fails,
has saliency 0.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..data import ForgetSplit, batches
from ..fields import Share
from ..models import TrainingError, device_of, evaluating, shuffled_epochs, to, train
from ..seeding import derive_seed, generator, seeded
from .base import Method
from .baselines.random_label import RandomLabel

__all__ = ["Masked", "SalUn", "SalUnSoft", "frozen", "random_mask", "saliency_mask", "shrink"]

Mask = dict[str, Tensor]
MASK_BATCH = 256


def saliency_mask(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    keep: float,
    clip: float | None = None,
) -> Mask:
    """Which weights may change: the share ``keep`` with the largest absolute gradient.

    The gradient is the signed sum, over ``batches`` of the forget set, of the gradient of each
    batch's mean loss, in evaluation mode; all parameters that are not frozen are ranked together.
    Exactly ``int(N * keep)`` of their N weights are kept (floating-point as the authors compute it),
    of equals at the threshold any.

    Parameters
    ----------
    loss : (model, batch) -> scalar, a mean over the batch
    keep : in (0, 1]
    clip : the largest norm (over all parameters) with which a batch's gradient enters the sum; None
        for no limit

    Returns
    -------
    name -> bool tensor of the parameter's shape, on its device: True where it may change, nowhere in
        a frozen one

    Raises
    ------
    ValueError
        A share outside (0, 1], or one of so few weights that none is left.
    TrainingError
        A loss that is not finite, or no batch at all.
    """
    kept = _count(model, keep)
    parameters = _trained(model)
    total = [  # in half precision, what is added to a large sum rounds away
        torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters
    ]
    device, step = device_of(model), 0
    with evaluating(model):
        for step, batch in enumerate(batches, 1):
            value = loss(model, to(batch, device))
            if not torch.isfinite(value):
                raise TrainingError(f"SalUn mask: the loss is {value.item()} at batch {step}")
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            if clip is not None:
                share = clip / (nn.utils.get_total_norm(gradients) + 1e-6)  # as `clip_grad_norm_`
                gradients = [g * share.clamp(max=1) for g in gradients]
            for t, g in zip(total, gradients, strict=True):
                t += g
    if step == 0:
        raise TrainingError("SalUn mask: there is no batch")
    saliency = torch.cat([t.flatten() for t in total]).abs()
    return _mask(model, saliency.topk(kept, sorted=False).indices)


def random_mask(model: nn.Module, keep: float, generator: torch.Generator) -> Mask:
    """A mask of the same size whose weights are chosen uniformly at random: the control."""
    n = sum(p.numel() for p in _trained(model))
    return _mask(model, torch.randperm(n, generator=generator)[: _count(model, keep)])


def _count(model: nn.Module, keep: float) -> int:
    """How many weights the share ``keep`` is; at least one."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1], not {keep}")
    n = sum(p.numel() for p in _trained(model))
    if int(n * keep) == 0:
        raise ValueError(f"keep is {keep}, which is no weight of {n} that can be trained")
    return int(n * keep)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _mask(model: nn.Module, chosen: Tensor) -> Mask:
    """The mask that is True at the positions ``chosen`` of what is trained, concatenated."""
    sizes = [p.numel() for p in _trained(model)]
    flat = torch.zeros(sum(sizes), dtype=torch.bool, device=device_of(model))
    flat[chosen.to(flat.device)] = True
    # In the memory layout of the parameters, in which they are combined with them quickly.
    mask = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    for name, piece in zip(names, flat.split(sizes), strict=True):
        mask[name].copy_(piece.view(mask[name].shape))
    return mask


@contextlib.contextmanager
def frozen(
    model: nn.Module, mask: Mask, freeze: Literal["exact", "gradient"] = "exact"
) -> Iterator[None]:
    """Keep the weights outside ``mask`` as they are, whatever trains ``model`` in the block.

    "exact": they get their values back after every step of an optimizer that holds parameters of
    ``model``, and once more at the end of the block, for what changes weights without an
    optimizer; they end bit-equal whatever the momentum or the weight decay. "gradient": only
    their gradients are set to 0, so that weight decay moves them.

    Raises
    ------
    ValueError
        An unknown ``freeze``.
    """
    if freeze not in ("exact", "gradient"):
        raise ValueError(f"unknown freeze {freeze!r}; known: exact, gradient")
    parameters = dict(model.named_parameters())
    with contextlib.ExitStack() as stack:
        if freeze == "gradient":
            for name, p in parameters.items():
                if p.requires_grad:
                    stack.callback(p.register_hook(partial(torch.mul, mask[name])).remove)
        else:
            own = set(map(id, parameters.values()))
            originals = {n: p.detach().clone() for n, p in parameters.items()}

            @torch.no_grad()
            def restore() -> None:
                for name, p in parameters.items():
                    torch.where(mask[name], p, originals[name], out=p)

            def after_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
                held = (p for group in optimizer.param_groups for p in group["params"])
                if any(id(p) in own for p in held):
                    restore()

            stack.callback(restore)
            stack.callback(register_optimizer_step_post_hook(after_step).remove)
        yield


@dataclass(frozen=True)
class SalUn(RandomLabel):
    """Random labelling of the salient weights only.

    The mask sees the forget set shuffled and augmented as ``train`` says, in batches of 256.

    Attributes
    ----------
    train, order, wrong : of the random labelling, see `RandomLabel`
    keep : the share that may change of all weights that are not frozen; 0.5 in the paper
    freeze : how the others are held: "exact", or "gradient" as in the published runs
    mask : "saliency"; or "random", the control, a random mask of the same size
    """

    name: ClassVar[str] = "salun"

    keep: Share = 0.5
    freeze: Literal["exact", "gradient"] = "exact"
    mask: Literal["saliency", "random"] = "saliency"

    def mask_of(self, model: nn.Module, split: ForgetSplit, seed: int = 0) -> Mask:
        """The mask of the weights that may change."""
        if self.mask == "random":
            return random_mask(model, self.keep, generator(seed, "mask"))
        config = replace(self.train, batch_size=MASK_BATCH)
        loader = shuffled_epochs(split.forget, config, derive_seed(seed, "mask"))(0)
        with seeded(seed, "mask"):  # of what a loss draws
            return saliency_mask(model, split.task.loss, loader, self.keep)

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        with frozen(model, self.mask_of(model, split, seed), self.freeze):
            return super().unlearn(model, split, seed)


@torch.no_grad()
def shrink(parameters: list[Tensor], anchors: list[Tensor], count: int) -> None:
    r"""Soft-threshold what ``parameters`` moved by, in place, so that ``count`` weights go back.

    :math:`\theta \leftarrow a + \mathrm{sign}(d)\max(|d| - \tau, 0)` with :math:`d = \theta - a`
    and :math:`\tau` the ``count``-th smallest :math:`|d|` of all weights.
    """
    if count == 0:
        return
    moves = [p - a for p, a in zip(parameters, anchors, strict=True)]
    tau = torch.cat([d.flatten() for d in moves]).abs().kthvalue(count).values
    for p, a, d in zip(parameters, anchors, moves, strict=True):
        p.copy_(a + (d - d.clamp(-tau, tau)))


@dataclass(frozen=True)
class SalUnSoft(RandomLabel):
    r"""SalUn without a mask: most weights return to where they were, by soft thresholding.

    After every step the distance to the weights at the *start of the epoch* is soft-thresholded
    so that a share of the weights returns to them: ``ratio`` in the first epoch, falling
    linearly, constant within an epoch. As the authors' ``RL_pro.py`` does it for CIFAR and
    Tiny-ImageNet, with forget and retain images mixed: of N weights, in epoch e, with S the
    number of batches of the two sets and T that of all epochs, :math:`\lfloor ratio\,
    (T - eS - 1)/T\,N\rfloor`.

    Attributes
    ----------
    train, order, wrong : of the random labelling, see `RandomLabel`
    ratio : in (0, 1]; the authors publish no value
    """

    name: ClassVar[str] = "salun_soft"

    ratio: Share = 0.5

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        parameters = _trained(model)
        n = sum(p.numel() for p in parameters)
        sizes = len(split.forget), len(split.retain)
        per_epoch = sum(math.ceil(size / self.train.batch_size) for size in sizes)
        total = per_epoch * self.train.epochs
        epochs = self.epochs(split, seed)
        anchors, count = [], 0

        def anchored(epoch: int) -> Iterable[Any]:
            nonlocal anchors, count
            anchors = [p.detach().clone() for p in parameters]
            count = int(self.ratio * ((total - (epoch * per_epoch + 1)) / total * n))
            return epochs(epoch)

        return train(
            model,
            anchored,
            split.task.loss,
            self.train,
            seed=seed,
            name=self.name,
            after_step=lambda *_: shrink(parameters, anchors, count),
        )


@dataclass(frozen=True)
class Masked(Method):
    """Another method, of which only the salient weights may change.

    It works with whatever changes the parameters of the model that it is given. A method that
    makes others (retraining) ends in an error, which cannot come before it has run.

    Attributes
    ----------
    method : the other method
    keep, freeze : as of `SalUn`; the mask sees the forget set in its order, in batches of 256
    """

    name: ClassVar[str] = "masked"
    # Of the mask alone; an instance also needs what its method needs.
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})

    method: Method
    keep: Share = 0.5
    freeze: Literal["exact", "gradient"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "needs", type(self).needs | self.method.needs)

    @property
    def draws(self) -> bool:
        """Does the seed matter? As for the method inside."""
        return self.method.draws

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        loader = batches(split.forget, MASK_BATCH)
        mask = saliency_mask(model, split.task.loss, loader, self.keep)
        own = list(map(id, model.parameters()))
        view = split.only(self.method.needs, type(self.method).__name__)
        with frozen(model, mask, self.freeze):
            unlearned = self.method.unlearn(model, view, seed)
        if list(map(id, unlearned.parameters())) != own:
            raise ValueError(
                f"{self.method.name} makes parameters of its own, so it can't be masked"
            )
        return unlearned
