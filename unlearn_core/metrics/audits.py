"""Audits by many models: what a forget set did to a model is a question about distributions.

One unlearned model beside one retrained model differs from it by chance, too. With many of both,
trained with other seeds on the same data, each example has a distribution of margins under either
kind, and the two are compared example by example.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import finite, told_apart

__all__ = ["klom", "margins", "u_lira"]

#: A standard deviation of margins below this is taken for this: models that agree to the last digit
#: would tell an attack everything by rounding.
LEAST_DEVIATION = 1e-3


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    r"""The logit of the true class minus the log-sum-exp of the others: (n,) float64, in nats.

    With ``logits`` (n, classes) and ``labels`` (n,) this is :math:`\ln p_y - \ln(1-p_y)`, the
    logit-scaled confidence of LiRA (Carlini et al., 2022), without its rounding to infinity.
    """
    told_apart(logits, labels)
    z = finite("logits", logits).double()
    own = z.gather(1, labels[:, None])
    others = z.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.logsumexp(dim=1)


def _pools(unlearned: Tensor, retrained: Tensor, least: int) -> tuple[Tensor, Tensor]:
    for name, pool in (("unlearned", unlearned), ("retrained", retrained)):
        finite(f"margins of {name} models", pool)
        if pool.ndim != 2 or len(pool) < least or not pool.shape[1]:
            raise ValueError(
                f"margins of {name} models: (models, examples), {least} models at least, "
                f"not {tuple(pool.shape)}"
            )
    if unlearned.shape[1] != retrained.shape[1]:
        raise ValueError(
            f"{unlearned.shape[1]} examples under unlearned and {retrained.shape[1]} under retrained models"
        )
    return unlearned.double(), retrained.double()


def klom(
    unlearned: Tensor,
    retrained: Tensor,
    *,
    bins: int = 20,
    least: float = 1e-5,
    limit: float = 100.0,
) -> Tensor:
    r"""KL divergence of margins, retrained from unlearned models, of every example: (n,) float64, nats.

    Both are `margins` (models, n). Per example, histograms with ``bins`` equal bins over the range
    of both together, margins beyond ``limit`` counted as that; ``least`` is added to each bin's
    share. Source: Georgiev et al., "Attribute-to-Delete" (2024); the direction is
    :math:`D_{KL}(\text{retrained}\,\|\,\text{unlearned})`. Of few models a histogram is rough: compare with
    that of two halves of the retrained ones.
    """
    pools = [p.clamp(-limit, limit) for p in _pools(unlearned, retrained, 2)]
    both = torch.cat(pools)
    low, high = both.min(dim=0).values, both.max(dim=0).values
    width = torch.where(high > low, high - low, torch.ones_like(low))
    shares = []
    for pool in pools:
        at = ((pool - low) / width * bins).long().clamp(max=bins - 1)
        counts = torch.zeros(bins, pool.shape[1], dtype=torch.float64)
        counts.scatter_add_(0, at, torch.ones_like(pool))
        share = counts / len(pool) + least
        shares.append(share / share.sum(dim=0))
    q, p = shares
    return (p * (p / q).log()).sum(dim=0)


def u_lira(unlearned: Tensor, retrained: Tensor) -> Tensor:
    """How often a likelihood-ratio attack tells an unlearned from a retrained model, in per cent.

    Both are `margins` (models, n), three models at least; the result (n,) is one accuracy an example,
    50 where nothing can be told. Each model in turn is the one in question: a normal
    distribution is fitted to the margins of the other models of its kind, and one to as many of the
    other kind (one is left out there, too, or that fit would be the better one); the kind under
    which its own margin is likelier is the call. Source: the per-example attack of Hayes et al.,
    "Inexact Unlearning Needs More Careful Evaluations" (2024), for one forget set that the attacker
    knows; theirs draws forget sets.
    """
    pools = _pools(unlearned, retrained, 3)
    right = []
    for own, other in (pools, pools[::-1]):
        mine = _log_likelihood(own, *_without_each(own))
        left_out = torch.arange(len(own)) % len(other)
        theirs = _log_likelihood(own, *(at[left_out] for at in _without_each(other)))
        # Equal likelihoods tell nothing: half of a call.
        calls = (mine > theirs).double() + (mine == theirs).double() / 2
        right.append(calls.mean(dim=0))
    return 100 * (right[0] + right[1]) / 2


def _without_each(pool: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of all other models: row k without model k, (models, n) each."""
    n = len(pool)
    apart = pool - pool.mean(dim=0)
    # What a model adds to the sum of squares about the mean (Welford).
    squares = (apart.square().sum(dim=0) - apart.square() * n / (n - 1)).clamp(min=0)
    return (pool.sum(dim=0) - pool) / (n - 1), (squares / (n - 2)).sqrt()


def _log_likelihood(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    deviation = deviation.clamp(min=LEAST_DEVIATION)
    return -deviation.log() - ((x - mean) / deviation).square() / 2
