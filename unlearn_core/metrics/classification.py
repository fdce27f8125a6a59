"""Accuracies on the four sides of a split, and how far a model is from the retrained one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..data import Classification, ForgetSplit, evenly_spaced
from ..models import Outputs, predict
from .catalogue import Estimate, mean, share
from .checks import told_apart
from .membership import confident_non_members, entropy_members
from .shadow import ShadowAttack
from .zrf import zrf

__all__ = [
    "SideOutputs",
    "accuracy",
    "changed_weights",
    "evaluate_classifier",
    "gap_to_retrained",
    "membership_calls",
    "outputs_of",
    "accuracies_on_test",
]


def accuracy(logits: Tensor, labels: Tensor) -> Estimate:
    """Exact accuracy in per cent; ``logits`` (n, classes), ``labels`` (n,).

    (The SSD authors average the accuracies of batches, which over-weights a short last one.)
    """
    told_apart(logits, labels)
    return share(logits.argmax(dim=1) == labels)


def changed_weights(before: nn.Module, after: nn.Module) -> Estimate:
    """Share of the parameters' entries that differ between two models of one architecture, %.

    Raises
    ------
    ValueError
        Their parameters differ in name or shape.
    """
    shapes = [[tuple(p.shape) for p in m.parameters()] for m in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the two models are not of one architecture: their weights differ in shape"
        )
    pairs = list(zip(before.parameters(), after.parameters(), strict=True))
    changed = sum(int((a.detach() != b.detach()).sum()) for a, b in pairs)
    total = sum(a.numel() for a, _ in pairs)
    return Estimate(100 * changed / total, total)


class SideOutputs(NamedTuple):
    """A classifier's outputs on the three parts of a split."""

    retain: Outputs
    forget: Outputs
    test: Outputs


def outputs_of(
    model: nn.Module, split: ForgetSplit, retain_images: int | None = None
) -> SideOutputs:
    """One forward pass over each part of a split.

    Of the retain set ``retain_images`` are looked at, at equal distances; None for all.

    Raises
    ------
    TypeError
        The split is none of a classifier, or the model no module; they may be swapped.
    ValueError
        A part that is missing or empty.
    """
    if not isinstance(split, ForgetSplit) or not isinstance(split.task, Classification):
        raise TypeError(
            "a classifier is measured on the ForgetSplit of one, which comes after the model, not on "
            f"something of type {type(split).__name__}"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"a torch.nn.Module is measured, not something of type {type(model).__name__}"
        )
    for part in SideOutputs._fields:
        data = getattr(split, part)
        if data is None or not len(data):
            state = "missing" if data is None else "empty"
            raise ValueError(
                f"a classifier is measured on the split's {part} set, which is {state}"
            )
    kept = split.retain
    if retain_images is not None:
        kept = kept.subset(evenly_spaced(len(kept), retain_images))
    sides = (kept, split.forget, split.test)
    return SideOutputs(*(predict(model, d, task=split.task) for d in sides))


def membership_calls(
    outputs: SideOutputs, attack: Literal["entropy", "confidence"] | ShadowAttack
) -> Tensor:
    """Which forget images count for a membership attack: (n,) bool.

    Those that the entropy or the fitted shadow attack call members, those that the confidence attack
    calls non-members: the share of them is the attack's metric.
    """
    retain, forget, test = outputs
    if isinstance(attack, ShadowAttack):
        return attack.members(forget.logits, forget.labels)
    if attack == "entropy":
        return entropy_members(retain.logits, test.logits, forget.logits)
    return confident_non_members(*((o.logits, o.labels) for o in (retain, test, forget)))


def evaluate_classifier(
    model: nn.Module,
    split: ForgetSplit,
    *,
    random_model: nn.Module | None = None,
    shadow: ShadowAttack | None = None,
    outputs: SideOutputs | None = None,
    calls: Tensor | None = None,
) -> dict[str, Estimate]:
    """The quality metrics of a classifier on a split, from one forward pass over each part.

    Which membership attack is measured depends on what is given: with ``random_model``, freshly
    initialised, the entropy attack and ZRF, which compares with that model (the SSD paper's
    metrics); with ``shadow``, a fitted attack, that one (IAU's), on retain and test images too; else
    the confidence attack (SalUn's). The latter two come with the mean loss on the forget set.
    ``outputs`` are those of `outputs_of`, ``calls`` those of `membership_calls` for that attack, where
    they are at hand.
    """
    outputs = outputs or outputs_of(model, split)
    retain, forget, test = outputs
    if calls is None:
        calls = membership_calls(outputs, shadow or ("entropy" if random_model else "confidence"))
    out = {
        "retain_accuracy": accuracy(retain.logits, retain.labels),
        "forget_accuracy": accuracy(forget.logits, forget.labels),
    }
    if random_model is not None:
        out["entropy_mia"] = share(calls)
        fresh = predict(random_model, split.forget, task=split.task)
        out["zrf"] = zrf(forget.logits, fresh.logits)
        return out | accuracies_on_test(test, split)
    losses = nn.functional.cross_entropy(forget.logits.double(), forget.labels, reduction="none")
    out["forget_loss"] = mean(losses)
    if shadow is not None:
        out["shadow_mia"] = share(calls)
        out["shadow_true_positives"] = shadow.member_rate(retain.logits, retain.labels)
        out["shadow_false_positives"] = shadow.member_rate(test.logits, test.labels)
    else:
        out["confidence_mia"] = share(calls)
    return out | accuracies_on_test(test, split)


def accuracies_on_test(test: Outputs, split: ForgetSplit) -> dict[str, Estimate]:
    """Accuracy on the test set and, where the request names a class, on its two sides.

    ``test`` are the outputs on ``split.test``, from which both sides are cut.
    """
    out = {"test_accuracy": accuracy(test.logits, test.labels)}
    if split.test_forget is not None:
        forgotten = torch.isin(split.test.index, split.test_forget.index)
        for name, side in (("test_retain", ~forgotten), ("test_forget", forgotten)):
            out[f"{name}_accuracy"] = accuracy(test.logits[side], test.labels[side])
    return out


def gap_to_retrained(values: Mapping[str, Estimate], retrained: Mapping[str, Estimate]) -> Estimate:
    """Mean absolute difference to the retrained model, in points, over four metrics.

    These are the retain, forget and test accuracies and the membership attack that was measured.
    The standard error takes the eight values for independent: they share their images, so it is
    rather too large.

    Raises
    ------
    ValueError
        An accuracy is missing, or the two were not measured with the same attack.
    """
    sides = {"the model": values, "the retrained one": retrained}
    accuracies = ("retain_accuracy", "forget_accuracy", "test_accuracy")
    for whose, side in sides.items():
        if missing := [n for n in accuracies if n not in side]:
            raise ValueError(f"no gap without the {missing[0]} of {whose}")
    attacks = [n for n in ("entropy_mia", "confidence_mia", "shadow_mia") if n in retrained]
    attack = next((n for n in attacks if n in values), None)
    if attack is None:
        ours, theirs = (
            ", ".join(n for n in side if n.endswith("_mia")) or "none" for side in sides.values()
        )
        raise ValueError(
            f"no gap without one attack on both: the model's is {ours}, the retrained one's is {theirs}"
        )
    names = (*accuracies, attack)
    gaps = [abs(values[n].value - retrained[n].value) for n in names]
    errors = [side[n].stderr for n in names for side in (values, retrained)]
    known = all(e is not None for e in errors)
    stderr = math.sqrt(sum(e**2 for e in errors)) / len(names) if known else None
    return Estimate(sum(gaps) / len(gaps), stderr=stderr)
