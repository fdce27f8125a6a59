"""The zero-retrain-forgetting score (Chundawat et al., AAAI 2023), and the SSD code's variant."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .catalogue import Estimate
from .checks import finite

__all__ = ["jensen_shannon", "zrf", "zrf_as_published"]


def jensen_shannon(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two softmax outputs (n, classes), in nats: (n,) float64.

    Raises
    ------
    ValueError
        The outputs differ in shape.
    """
    if p_logits.shape != q_logits.shape:
        raise ValueError(f"outputs of {tuple(p_logits.shape)} and of {tuple(q_logits.shape)}")
    log_p, log_q = (finite("logits", x).double().log_softmax(dim=1) for x in (p_logits, q_logits))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    kl_p = (log_p.exp() * (log_p - log_m)).sum(dim=1)
    kl_q = (log_q.exp() * (log_q - log_m)).sum(dim=1)
    return (kl_p + kl_q) / 2


def zrf(logits: Tensor, random_logits: Tensor) -> Estimate:
    """1 minus the mean JS divergence to a randomly initialised model, on the forget set."""
    values = 1 - jensen_shannon(logits, random_logits)
    n = len(values)
    stderr = (values.std() / n**0.5).item() if n > 1 else None
    return Estimate(values.mean().item(), n, stderr)


def zrf_as_published(logits: Tensor, random_logits: Tensor) -> float:
    """The value that ``UnLearningScore`` in the SSD authors' ``src/metrics.py`` computes.

    Its divergences run from the mixture to the two outputs, and are averaged over classes too;
    it is minus infinity where a softmax output underflows to 0.
    """
    p, q = (finite("logits", x).softmax(dim=1) for x in (logits, random_logits))
    m = (p + q) / 2
    return (1 - ((m * (m / p).log()).mean() + (m * (m / q).log()).mean()) / 2).item()
