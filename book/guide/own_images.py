"""Images, a classifier and an unlearning method that all come from elsewhere."""

import copy
from collections.abc import Iterable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchvision.transforms import v2
from transformers import ResNetConfig, ResNetForImageClassification

from unlearn_core.data import Classification, forget_class, forget_indices, forget_random
from unlearn_core.methods import SSD, Retrain, SalUn, WorstCase
from unlearn_core.metrics import evaluate_classifier, gap_to_retrained
from unlearn_core.models import Recipe, TrainConfig

# Your images: any data set of PyTorch's form.
raw = load_digits()
pixels = v2.Resize((24, 24))(torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16)
images = TensorDataset(pixels, torch.tensor(raw.target))
train, test = random_split(images, [1400, 397], torch.Generator().manual_seed(0))

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
split = forget_class(train, "three", classes=NAMES, test=test)


# Your classifier: a function that makes a new one.
def build() -> nn.Module:
    config = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        num_labels=10,
    )
    return ResNetForImageClassification(config)


task = Classification(classes=10)
recipe = Recipe(build, task, TrainConfig(epochs=6, lr=0.05, batch_size=32, momentum=0.9))
original = recipe.fit(train, seed=0)


# A method of another library: it takes a network and a loader, and changes the network in place.
def ascend(network: nn.Module, forget: Iterable[tuple[Tensor, Tensor]]) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    for _ in range(3):
        for x, y in forget:
            optimizer.zero_grad()
            (-nn.functional.cross_entropy(network(x).logits, y)).backward()
            optimizer.step()


theirs = copy.deepcopy(original)
ascend(theirs, DataLoader(split.forget, batch_size=32))

short = TrainConfig(epochs=2, lr=0.01, batch_size=32, momentum=0.9)
models = {
    "original": original,
    "retrained": Retrain(recipe)(original, split),
    "SSD": SSD(alpha=5)(original, split),
    "SalUn": SalUn(short)(original, split),
    "theirs": theirs,
}
found = {name: evaluate_classifier(model, split) for name, model in models.items()}
print(f"{'Forget a class':22}{'test, kept':>11}{'forgotten':>11}{'gap':>7}")
for name, values in found.items():
    kept, gone = values["test_retain_accuracy"], values["test_forget_accuracy"]
    gap = gap_to_retrained(values, found["retrained"])
    print(f"{name:22}{kept.value:10.1f}%{gone.value:10.1f}%{gap.value:7.1f}")

# The hundred images that are hardest to forget, beside a hundred at random.
search = WorstCase(iterations=5, train=TrainConfig(epochs=2, lr=2e-3, batch_size=128))
worst = search.select(original, train, task, budget=100, seed=0)
requests = {
    "random": forget_random(train, count=100, classes=10, test=test),
    "worst case": forget_indices(train, worst.index, classes=10, test=test),
}
print(f"\n{'Forget 100 images':22}{'retrained':>11}{'SalUn':>11}")
for name, request in requests.items():
    row = [m(original, request) for m in (Retrain(recipe), SalUn(short))]
    known = [evaluate_classifier(model, request)["forget_accuracy"].value for model in row]
    print(f"{name:22}" + "".join(f"{accuracy:10.1f}%" for accuracy in known))
