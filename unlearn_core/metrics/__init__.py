"""Metrics: pure functions of outputs, and the table of what each of them means."""

from .catalogue import METRICS, VERSION, Estimate, Metric, share
from .classification import (
    accuracies_on_test,
    accuracy,
    changed_weights,
    evaluate_classifier,
    gap_to_retrained,
)
from .cost import Cost, measure
from .membership import entropy, entropy_attack, fit_entropy_attack
from .zrf import jensen_shannon, zrf, zrf_as_published

__all__ = [
    "METRICS",
    "VERSION",
    "Cost",
    "Estimate",
    "Metric",
    "accuracy",
    "changed_weights",
    "entropy",
    "entropy_attack",
    "evaluate_classifier",
    "fit_entropy_attack",
    "gap_to_retrained",
    "jensen_shannon",
    "measure",
    "share",
    "accuracies_on_test",
    "zrf",
    "zrf_as_published",
]
