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
from .muse import cut_answer, holdout_auc, knowmem_prompt, min_k, privleak
from .questions import Answers, ask, evaluate_chat, evaluation_sets
from .relearn import relearned_accuracy, relearned_probability
from .shadow import ShadowAttack, gradient_norms
from .text import (
    bleu,
    distinct_tokens,
    leak_rate,
    perplexity,
    refusal_rate,
    rouge_l,
    secret_words,
)
from .tofu import (
    AnswerLosses,
    ForgetQuality,
    answer_losses,
    choice_probability,
    deviation_score,
    forget_quality,
    model_utility,
    truth_ratio,
    truth_ratio_score,
)
from .zrf import jensen_shannon, zrf, zrf_as_published

__all__ = [
    "METRICS",
    "VERSION",
    "AnswerLosses",
    "Answers",
    "Cost",
    "Estimate",
    "ForgetQuality",
    "Metric",
    "ShadowAttack",
    "accuracies_on_test",
    "accuracy",
    "answer_losses",
    "ask",
    "attack_features",
    "bleu",
    "changed_weights",
    "choice_probability",
    "confidence_attack",
    "cut_answer",
    "deviation_score",
    "distinct_tokens",
    "entropy",
    "entropy_attack",
    "evaluate_chat",
    "evaluate_classifier",
    "evaluation_sets",
    "fit_entropy_attack",
    "forget_quality",
    "gap_to_retrained",
    "gradient_norms",
    "holdout_auc",
    "jensen_shannon",
    "knowmem_prompt",
    "leak_rate",
    "mean",
    "measure",
    "min_k",
    "model_utility",
    "perplexity",
    "privleak",
    "refusal_rate",
    "relearned_accuracy",
    "relearned_probability",
    "rouge_l",
    "secret_words",
    "share",
    "svc_attack",
    "truth_ratio",
    "truth_ratio_score",
    "zrf",
    "zrf_as_published",
]
