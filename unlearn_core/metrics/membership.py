"""Membership inference: does the model still treat the forget set as training data?"""

from __future__ import annotations

import torch
from torch import Tensor

from .catalogue import Estimate, share

__all__ = ["entropy", "entropy_attack", "fit_entropy_attack"]


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of ``logits`` (n, classes), in nats: (n,) float64."""
    log_p = logits.double().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def fit_entropy_attack(members: Tensor, non_members: Tensor, C: float = 2.0):
    """scikit-learn's logistic regression on the entropies of ``members`` and ``non_members``.

    Source: the SSD authors' ``src/metrics.py``, ``get_membership_attack_prob``: balanced class
    weights. Their ``multi_class="multinomial"`` fits a softmax with two penalised rows, which is
    the binary model with C = 2; C = 1 is their call without the keyword, which scikit-learn has
    since removed.
    """
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([entropy(members), entropy(non_members)])[:, None].numpy()
    y = [1] * len(members) + [0] * len(non_members)
    return LogisticRegression(C=C, class_weight="balanced").fit(x, y)


def entropy_attack(retain: Tensor, test: Tensor, forget: Tensor, C: float = 2.0) -> Estimate:
    """Share of the forget set that the entropy attack calls members, in per cent.

    ``retain``, ``test`` and ``forget`` are logits (n, classes): the members and non-members that
    the attack is fitted on, and the images that it judges.
    """
    attack = fit_entropy_attack(retain, test, C)
    return share(torch.from_numpy(attack.predict(entropy(forget)[:, None].numpy()) == 1))
