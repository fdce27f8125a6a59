"""Forget one class of scikit-learn's digits, and compare with a model that never saw it."""

from unlearn_core.data import Classification, digits, forget_class
from unlearn_core.methods import SSD, Retrain
from unlearn_core.metrics import evaluate_classifier, gap_to_retrained
from unlearn_core.models import Recipe, SmallCNN, TrainConfig

data = digits()
split = forget_class(data, "3")  # forget and retain: disjoint and complete, or it raises

recipe = Recipe(
    model=SmallCNN(classes=10),
    task=Classification(classes=10),
    train=TrainConfig(epochs=8, lr=0.1, batch_size=32, momentum=0.9, schedule="cosine"),
)
original = recipe.fit(data.train, seed=0)
fresh = recipe.build(seed=1)  # untrained: what the ZRF score compares with

methods = {
    "retrained": Retrain(recipe),
    "SSD, alpha 10": SSD(alpha=10),  # |D|/|D_f| is 10: hardly anything can be selected
    "SSD, alpha 5": SSD(alpha=5),
}
found = {"original": evaluate_classifier(original, split, random_model=fresh)}
for name, method in methods.items():
    unlearned = method(original, split, seed=0)  # a new model; `original` stays as it is
    found[name] = evaluate_classifier(unlearned, split, random_model=fresh)

print(f"{'':14}{'retain':>9}{'forget':>9}{'gap':>9}")
for name, metrics in found.items():
    retain, forget = metrics["test_retain_accuracy"], metrics["test_forget_accuracy"]
    gap = gap_to_retrained(metrics, found["retrained"])
    print(f"{name:14}{retain.value:8.1f}%{forget.value:8.1f}%{gap.value:9.1f}")
