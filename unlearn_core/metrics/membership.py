"""Membership inference: does the model still treat the forget set as training data?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..data import evenly_spaced
from .catalogue import Estimate, share
from .checks import finite, told_apart

__all__ = [
    "attack_features",
    "confidence_attack",
    "confident_non_members",
    "entropy",
    "entropy_attack",
    "entropy_members",
    "fit_entropy_attack",
    "svc_attack",
]

#: The least probability whose logarithm is taken in a modified entropy.
LEAST = 1e-30


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of ``logits`` (n, classes), in nats: (n,) float64."""
    log_p = finite("logits", logits).double().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def _parties(members: Tensor, non_members: Tensor, target: Tensor | None = None) -> None:
    sides = {"members": members, "non-members": non_members, "targets": target}
    for name, side in sides.items():
        if side is not None and not len(side):
            raise ValueError(f"an attack needs {name}, and there are none")


def fit_entropy_attack(members: Tensor, non_members: Tensor, C: float = 2.0):
    """scikit-learn's logistic regression on the entropies of ``members`` and ``non_members``.

    Source: the SSD authors' ``src/metrics.py``, ``get_membership_attack_prob``: balanced class
    weights. Their ``multi_class="multinomial"`` fits a softmax with two penalised rows, which is
    the binary model with C = 2; C = 1 is their call without the keyword, which scikit-learn has
    since removed.
    """
    from sklearn.linear_model import LogisticRegression

    _parties(members, non_members)
    x = torch.cat([entropy(members), entropy(non_members)])[:, None].numpy()
    y = [1] * len(members) + [0] * len(non_members)
    return LogisticRegression(C=C, class_weight="balanced").fit(x, y)


def entropy_members(retain: Tensor, test: Tensor, forget: Tensor, C: float = 2.0) -> Tensor:
    """Which images of the forget set the entropy attack calls members: (n,) bool.

    ``retain``, ``test`` and ``forget`` are logits (n, classes): the members and non-members that
    the attack is fitted on, and the images that it judges.
    """
    attack = fit_entropy_attack(retain, test, C)
    return torch.from_numpy(attack.predict(entropy(forget)[:, None].numpy()) == 1)


def entropy_attack(retain: Tensor, test: Tensor, forget: Tensor, C: float = 2.0) -> Estimate:
    """The share of `entropy_members`, in per cent."""
    return share(entropy_members(retain, test, forget, C))


def attack_features(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    r"""What an attack can see of outputs: each (n, 1), but "prob" (n, classes); float64.

    With the softmax p of ``logits`` (n, classes) and ``labels`` y (n,): "correctness", whether y
    is the most probable class; "confidence", :math:`p_y`; "entropy"; "modified_entropy",
    :math:`-(1-p_y)\ln p_y - \sum_{c\ne y} p_c\ln(1-p_c)` (Song and Mittal, 2021; the SalUn
    authors' ``MIA.py``, whose ``SVC_MIA.py`` computes something else); "prob", p itself. Logarithms
    of the modified entropy are those of 1e-30 at least, as there, so that it is at most 138.2. (No
    metric of a row uses it: the attack that is published takes the confidence.)
    """
    told_apart(logits, labels)
    y = labels[:, None]
    log_p = finite("logits", logits).double().log_softmax(dim=1)
    p = log_p.exp()
    others = p * (1 - p).clamp(min=LEAST).log()  # a probability of 1 has a finite entropy
    own = (1 - p.gather(1, y)) * log_p.gather(1, y).clamp(min=math.log(LEAST))
    return {
        "correctness": (p.argmax(dim=1, keepdim=True) == y).double(),
        "confidence": p.gather(1, y),
        "entropy": entropy(logits)[:, None],
        "modified_entropy": -own - others.scatter(1, y, 0.0).sum(dim=1, keepdim=True),
        "prob": p,
    }


def svc_attack(members: Tensor, non_members: Tensor, target: Tensor) -> Tensor:
    """Which of ``target`` a support vector machine takes for non-members: (n,) bool.

    All three are features (n, features). As the SalUn authors' ``evaluation/SVC_MIA.py``: RBF
    kernel, C = 3, gamma = 1 / features.
    """
    from sklearn.svm import SVC

    _parties(members, non_members, target)
    for features in (members, non_members, target):
        finite("features", features)
    x = torch.cat([members, non_members]).numpy()
    y = [1] * len(members) + [0] * len(non_members)
    attack = SVC(C=3, gamma="auto", kernel="rbf").fit(x, y)
    return torch.from_numpy(attack.predict(target.numpy()) == 0)


Labelled = tuple[Tensor, Tensor]


def confident_non_members(members: Labelled, non_members: Labelled, forget: Labelled) -> Tensor:
    """Which images of the forget set an attack by confidence calls *non*-members: (n,) bool.

    The attack is `svc_attack` on the probability of the true class, fitted on retain and test
    images. Each argument is a pair of logits (n, classes) and labels (n,). Of the members no more
    are used than there are non-members, at equal distances. (The SalUn authors' ``SVC_MIA.py``
    takes the first ones, of a training set in random order.)
    """
    some = evenly_spaced(len(members[1]), len(non_members[1]))
    pairs = ((members[0][some], members[1][some]), non_members, forget)
    return svc_attack(*(attack_features(*pair)["confidence"] for pair in pairs))


def confidence_attack(members: Labelled, non_members: Labelled, forget: Labelled) -> Estimate:
    """MIA efficacy: the share of `confident_non_members`, in per cent."""
    return share(confident_non_members(members, non_members, forget))
