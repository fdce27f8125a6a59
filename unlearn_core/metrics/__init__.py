"""Metrics: pure functions of outputs, and the table of what each of them means."""

from .catalogue import METRICS, VERSION, Estimate, Metric, mean, share
from .classification import (
    accuracies_on_test,
    accuracy,
    changed_weights,
    evaluate_classifier,
    gap_to_retrained,
)
from .cost import Cost, measure
from .membership import (
    attack_features,
    confidence_attack,
    entropy,
    entropy_attack,
    fit_entropy_attack,
    svc_attack,
)
from .relearn import relearned_accuracy
from .shadow import ShadowAttack, gradient_norms
from .zrf import jensen_shannon, zrf, zrf_as_published

__all__ = [
    "METRICS",
    "VERSION",
    "Cost",
    "Estimate",
    "Metric",
    "ShadowAttack",
    "accuracy",
    "attack_features",
    "changed_weights",
    "confidence_attack",
    "entropy",
    "entropy_attack",
    "evaluate_classifier",
    "fit_entropy_attack",
    "gap_to_retrained",
    "gradient_norms",
    "jensen_shannon",
    "mean",
    "measure",
    "relearned_accuracy",
    "share",
    "svc_attack",
    "accuracies_on_test",
    "zrf",
    "zrf_as_published",
]
