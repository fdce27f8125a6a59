"""Random labelling, gradient ascent, l1-sparse, boundary and influence unlearning."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unlearn_core.data import Classification, ForgetSplit, ImageData, ImageSet, forget_random
from unlearn_core.methods import (
    BoundaryExpand,
    BoundaryShrink,
    GradientAscent,
    InfluenceUnlearning,
    L1Sparse,
    Method,
    RandomLabel,
)
from unlearn_core.methods.baselines.boundary import adversarial, output_layer
from unlearn_core.methods.baselines.influence import woodfisher
from unlearn_core.models import (
    LeNet,
    Recipe,
    ResNet18,
    SmallCNN,
    TrainConfig,
    TrainingError,
    shuffled_epochs,
)
from unlearn_core.models.classifiers import ViTClassifier
from unlearn_core.seeding import seeded

SGD = TrainConfig(epochs=2, lr=0.01, batch_size=3, momentum=0.9, weight_decay=5e-4)


def same(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def sgd_by_hand(
    model: nn.Module,
    data: ImageSet,
    objective: Callable[[nn.Module, Tensor, Tensor, int], Tensor],
    seed: int,
) -> nn.Module:
    """Plain PyTorch: what a method that trains by `SGD` on one set should come to."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), SGD.lr, momentum=0.9, weight_decay=5e-4)
    epochs = shuffled_epochs(data, SGD, seed)
    for epoch in range(SGD.epochs):
        for x, y in epochs(epoch):
            optimizer.zero_grad()
            objective(model, x, y, epoch).backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tiny_data: ImageData) -> nn.Module:
    return recipe.fit(tiny_data.train, 0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def parts(tiny_data: ImageData) -> ForgetSplit:
    """10 images to forget and 26 to retain, of several classes, as in the goldens."""
    few = tiny_data.train.subset(torch.arange(0, 72, 2))
    return forget_random(replace(tiny_data, train=replace(few, index=None)), count=10)


def image_keys(data: ImageSet) -> dict[bytes, int]:
    """Image -> its position: which one a batch holds."""
    x, _ = data.batch_of(range(len(data)))
    return {image.numpy().tobytes(): int(i) for image, i in zip(x, data.index, strict=True)}


class TestRandomLabel:
    config = TrainConfig(epochs=2, lr=0.1, batch_size=8)

    def visits(self, method: RandomLabel, split: ForgetSplit, epoch: int, seed: int = 0) -> list:
        """The epoch's batches, each a list of (image, label)."""
        where = image_keys(split.forget) | image_keys(split.retain)
        loader = method.epochs(split, seed)(epoch)
        found = [
            [(where[i.numpy().tobytes()], int(t)) for i, t in zip(x, y, strict=True)]
            for x, y in loader
        ]
        assert len(found) == len(loader)
        return found

    @pytest.mark.parametrize("order", ["forget_first", "mixed"])
    def test_an_epoch_visits_every_image_once_under_its_label_or_a_random_one(
        self, parts: ForgetSplit, order: str
    ) -> None:
        """Fails if a retain label is drawn, or an image is left out or comes twice."""
        visits = [v for b in self.visits(RandomLabel(self.config, order), parts, 0) for v in b]
        assert sorted(i for i, _ in visits) == list(range(36))
        true = dict(zip(parts.retain.index.tolist(), parts.retain.labels.tolist(), strict=True))
        assert {i: y for i, y in visits if i in true} == true
        assert len({y for i, y in visits if i not in true}) > 2

    def test_the_forget_set_may_come_first(self, parts: ForgetSplit) -> None:
        """The authors' later CIFAR-10 branch: 8 + 2 images to forget, 8 + 8 + 8 + 2 retained."""
        forget = set(parts.forget.index.tolist())
        visits = self.visits(RandomLabel(self.config, "forget_first"), parts, 0)
        assert [(len(b), sum(i in forget for i, _ in b)) for b in visits] == [
            *[(8, 8), (2, 2)],
            *[(8, 0), (8, 0), (8, 0), (2, 0)],
        ]

    def test_both_are_mixed_unless_it_says_otherwise(self, parts: ForgetSplit) -> None:
        """The order of the published tables: 36 images in five batches, in each of which both may
        be. Fails if the forget set comes first by default."""
        forget = set(parts.forget.index.tolist())
        visits = self.visits(RandomLabel(self.config), parts, 0)
        assert [len(b) for b in visits] == [8, 8, 8, 8, 4]
        assert sum(0 < sum(i in forget for i, _ in b) < len(b) for b in visits) >= 3

    @pytest.mark.parametrize("order", ["forget_first", "mixed"])
    def test_labels_and_orders_are_drawn_anew_in_every_epoch(
        self, parts: ForgetSplit, order: str
    ) -> None:
        """Fails if labels are drawn once, as in amnesiac unlearning, or without the seed."""
        method, forget = RandomLabel(self.config, order), set(parts.forget.index.tolist())
        runs = [
            [v for batch in self.visits(method, parts, epoch, seed) for v in batch]
            for epoch, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
        ]
        labels = [{i: y for i, y in run if i in forget} for run in runs]
        orders = [[i for i, _ in run] for run in runs]
        retained = [[i for i in o if i not in forget] for o in orders]
        for kind in (labels, orders, retained):
            assert kind[0] == kind[1]
            assert kind[0] != kind[2]
            assert kind[0] != kind[3]

    @pytest.mark.parametrize(("wrong", "share"), [(False, 0.1), (True, 0.0)])
    def test_a_label_is_right_by_chance_or_never(
        self, parts: ForgetSplit, wrong: bool, share: float
    ) -> None:
        """Fails if the authors' draw excludes the true label, or the formula's does not."""
        draws = RandomLabel(self.config, "forget_first", wrong).epochs(parts, 0)
        true = dict(zip(image_keys(parts.forget), parts.forget.labels.tolist(), strict=True))
        right, counts = 0, torch.zeros(10)
        for epoch in range(150):
            for x, y in draws(epoch).loaders[0]:
                right += sum(true[i.numpy().tobytes()] == t for i, t in zip(x, y, strict=True))
                counts += y.bincount(minlength=10)
        assert right / 1500 == pytest.approx(share, abs=0.03)
        assert (counts / 1500 - 0.1).abs().max() < 0.05

    def test_training_is_sgd_on_the_task_s_loss(
        self, trained: nn.Module, parts: ForgetSplit
    ) -> None:
        """Fails if the optimizer restarts between the sets, or one of them is weighted."""
        method = RandomLabel(SGD)
        model = copy.deepcopy(trained).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        for epoch in range(2):
            for x, y in method.epochs(parts, 3)(epoch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        assert same(method(trained, parts, 3), model)

    def test_an_unknown_order_is_refused(self) -> None:
        with pytest.raises(ValueError, match="order must be 'mixed' or 'forget_first', not 'last'"):
            RandomLabel(order="last")


def test_gradient_ascent_is_sgd_on_minus_the_loss(
    trained: nn.Module, tiny_split: ForgetSplit
) -> None:
    """Fails if the loss falls, or decay is reversed with it."""
    by_hand = sgd_by_hand(
        trained,
        tiny_split.forget,
        lambda model, x, y, _: -nn.functional.cross_entropy(model(x), y),
        3,
    )
    found = GradientAscent(SGD)(trained, tiny_split, 3)
    assert same(found, by_hand)
    batch = tiny_split.forget.batch_of(range(8))
    loss = tiny_split.task.loss
    assert loss(found, batch) > loss(trained, batch)


class TestL1Sparse:
    def test_it_is_fine_tuning_with_a_penalty_that_falls_by_epochs(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the penalty is constant, skips a parameter or falls within an epoch."""

        def objective(model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> Tensor:
            norm = torch.linalg.norm(torch.cat([p.flatten() for p in model.parameters()]), ord=1)
            return nn.functional.cross_entropy(model(x), y) + (0.01, 0.005)[epoch] * norm

        by_hand = sgd_by_hand(trained, tiny_split.retain, objective, 3)
        found = L1Sparse(SGD, a=0.01)(trained, tiny_split, 3)
        for a, b in zip(found.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        plain = L1Sparse(SGD, a=0.0)(trained, tiny_split, 3)
        assert flat(found).abs().sum() < 0.9 * flat(plain).abs().sum()

    def test_a_negative_penalty_is_refused(self) -> None:
        with pytest.raises(ValueError, match="a must be at least 0, not -1"):
            L1Sparse(a=-1.0)


def gray(values: list[int], labels: list[int], mean: float, std: float) -> ImageSet:
    """Images of one pixel."""
    pixels, y = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels)
    return ImageSet(pixels, y, y, (mean,), (std,))


def one_pixel_classifier(mean: float, std: float) -> nn.Module:
    """Two classes: 0 for a pixel above 0.5, else 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[std], [-std]]))
        model[1].bias.copy_(torch.tensor([mean - 0.5, 0.5 - mean]))
    return model


class TestBoundaryShrink:
    mean, std = 0.3, 0.2

    def split(self, values: list[int], labels: list[int]) -> ForgetSplit:
        forget = gray(values, labels, self.mean, self.std)
        return ForgetSplit("two classes", Classification(2), forget, retain=None)

    def test_labels_by_hand(self) -> None:
        """Fails if the step is taken in normalised units (0.1 of them are 5 levels), downhill, or
        not at all. It is of 25.5 levels, away from the true class."""
        values = [150, 154, 140, 100, 104, 115, 250, 5]
        labels = [0, 0, 0, 1, 1, 1, 0, 1]
        split = self.split(values, labels)
        found = BoundaryShrink().labels(
            one_pixel_classifier(self.mean, self.std), split, split.forget.batch_of(range(8))
        )
        #       124.5   128.5  114.5     125.5  129.5     140.5      224.5  30.5
        assert found.tolist() == [1, 0, 1, 1, 0, 0, 0, 1]

    def test_a_wrong_label_is_left_by_its_own_gradient(self) -> None:
        """Fails if the attack goes against the predicted class instead of the label."""
        split = self.split([140, 140], [0, 1])
        model = one_pixel_classifier(self.mean, self.std)
        batch = split.forget.batch_of(range(2))
        assert BoundaryShrink().labels(model, split, batch).tolist() == [1, 0]

    def test_the_adversarial_image_is_an_8_bit_one(self) -> None:
        """Fails without the clamp, the rounding, or each channel's own mean and deviation."""
        mean, std = (0.1, 0.5), (0.2, 0.4)
        pixels = torch.tensor([0, 10, 128, 250, 255, 77])
        shape = (1, -1, 1, 1)
        scale = torch.tensor(std).view(shape), torch.tensor(mean).view(shape)
        x = (pixels.expand(1, 2, 1, 6) / 255 - scale[1]) / scale[0]
        sign = torch.tensor([-1.0, -3.0, 5.0, 1.0, 2.0, 0.0]).expand(1, 2, 1, 6)
        found = (adversarial(x, sign, mean, std, 0.1) * scale[0] + scale[1]) * 255
        # 128 + 25.5 falls between two levels; the authors' float arithmetic decides between them.
        up = round((np.float32(128) / np.float32(255) + np.float32(0.1)) * np.float32(255))
        torch.testing.assert_close(
            found[0, 0, 0], torch.tensor([0.0, 0, up, 255, 255, 77]), rtol=0, atol=1e-3
        )
        assert torch.equal(found[0, 0].round(), found[0, 1].round())

    def test_every_level_rounds_as_it_does_without_normalisation(self) -> None:
        """Fails if the noise of normalising decides the rounding of the half levels."""
        pixels = torch.arange(256) / 255
        x = ((pixels - 0.4914) / 0.2470).view(1, 1, 16, 16)
        for sign in (1, -1):
            wanted = ((pixels + sign * 0.1).clamp(0, 1) * 255).round()
            found = adversarial(x, torch.full_like(x, sign), (0.4914,), (0.2470,), 0.1)
            torch.testing.assert_close(
                (found.flatten() * 0.2470 + 0.4914) * 255, wanted, rtol=0, atol=1e-3
            )

    def test_training_is_sgd_towards_the_original_s_labels(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the changing model gives the labels, or the original runs in training mode."""
        original = copy.deepcopy(trained).eval()
        method = BoundaryShrink(SGD, step=0.5)

        def objective(model: nn.Module, x: Tensor, y: Tensor, _: int) -> Tensor:
            return nn.functional.cross_entropy(
                model(x), method.labels(original, tiny_split, (x, y))
            )

        by_hand = sgd_by_hand(trained, tiny_split.forget, objective, 3)
        found = method(trained, tiny_split, 3)
        assert same(found, by_hand)
        whole = tiny_split.forget.batch_of(range(8))
        before, after = (method.labels(m, tiny_split, whole) for m in (original, found))
        assert not torch.equal(before, after)

    @pytest.mark.parametrize("step", [0.0, 1.5, float("nan")])
    def test_the_step_is_checked(self, step: float) -> None:
        with pytest.raises(ValueError, match=r"step must be (in \(0, 1\]|a finite number)"):
            BoundaryShrink(step=step)


class WithAuxiliary(nn.Module):
    """Its last linear layer, in the order of definition, does not make the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3, bias=False)
        self.auxiliary = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.auxiliary(x)
        return self.out(x)


class Encoder(nn.Module):
    """What a `ViTClassifier` is built on, as far as it is used: tokens, and a pooler aside."""

    config = SimpleNamespace(hidden_size=8, image_size=8)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pooler = nn.Linear(64, 8), nn.Linear(8, 8)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        tokens = self.embed(pixel_values.flatten(2))
        return SimpleNamespace(last_hidden_state=tokens, pooler_output=self.pooler(tokens[:, 0]))


class TestBoundaryExpand:
    def test_it_is_sgd_on_a_longer_last_layer_that_is_cut_again(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the additional logit is no part of the softmax, another class is the target,
        or the rest of the network is held."""
        longer = copy.deepcopy(trained)
        longer.head = nn.Linear(trained.head.in_features, 11)
        with seeded(3, "expand"):
            extra = nn.Linear(trained.head.in_features, 1)
        with torch.no_grad():
            longer.head.weight.copy_(torch.cat([trained.head.weight, extra.weight]))
            longer.head.bias.copy_(torch.cat([trained.head.bias, extra.bias]))

        def objective(model: nn.Module, x: Tensor, y: Tensor, _: int) -> Tensor:
            return nn.functional.cross_entropy(model(x), torch.full_like(y, 10))

        by_hand = sgd_by_hand(longer, tiny_split.forget, objective, 3)
        found = BoundaryExpand(SGD)(trained, tiny_split, 3)
        for name, tensor in found.state_dict().items():
            wanted = by_hand.state_dict()[name]
            wanted = wanted[:10] if name.startswith("head") else wanted
            torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-6)
        assert (flat(found) - flat(trained)).abs().max() > 1e-3

    def test_the_result_has_the_original_classes(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the model is evaluated with the additional logit, or keeps its hook."""
        found = BoundaryExpand(SGD)(trained, tiny_split)
        assert found(tiny_split.forget.batch_of(range(4))[0]).shape == (4, 10)
        assert found.state_dict().keys() == trained.state_dict().keys()
        assert found.head.out_features == 10

    def test_an_error_leaves_no_hook(self, trained: nn.Module, tiny_split: ForgetSplit) -> None:
        model = copy.deepcopy(trained)
        with pytest.raises(TrainingError, match="boundary_expand: the loss is"):
            BoundaryExpand(replace(SGD, lr=1e30))(model, tiny_split, inplace=True)
        assert model(tiny_split.forget.batch_of([0])[0]).shape == (1, 10)

    @pytest.mark.parametrize(
        "model", [SmallCNN(7, 3, width=2), LeNet(7, 3, 16), ResNet18(7, 3, width=2)]
    )
    def test_the_output_layer_of_every_classifier(self, model: Any) -> None:
        built = model.build(0).train()
        before = copy.deepcopy(built.state_dict())
        assert output_layer(built, torch.rand(2, 3, 16, 16)) is built.head
        assert built.training
        assert all(torch.equal(before[k], v) for k, v in built.state_dict().items())

    def test_and_of_a_vit(self) -> None:
        model = ViTClassifier(5, Encoder()).eval()
        assert output_layer(model, torch.rand(2, 3, 16, 16)) is model.head

    def test_the_layer_is_found_by_what_it_returns(self) -> None:
        model = WithAuxiliary()
        assert output_layer(model, torch.rand(2, 4)) is model.out

    def test_a_model_that_ends_otherwise_is_refused(self, tiny_split: ForgetSplit) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10), nn.Softmax(dim=1))
        with pytest.raises(
            ValueError, match="the output of Sequential does not come from a linear"
        ):
            BoundaryExpand(SGD)(model, tiny_split)

    def test_a_last_layer_without_bias_grows_by_weights_only(self, tiny_split: ForgetSplit) -> None:
        """Fails if the additional logit alone has a bias."""
        with seeded(0):
            model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10, bias=False)).eval()
            longer = nn.Sequential(nn.Flatten(), nn.Linear(144, 11, bias=False))
        with seeded(3, "expand"):
            extra = nn.Linear(144, 1, bias=False)
        with torch.no_grad():
            longer[1].weight.copy_(torch.cat([model[1].weight, extra.weight]))

        def objective(model: nn.Module, x: Tensor, y: Tensor, _: int) -> Tensor:
            return nn.functional.cross_entropy(model(x), torch.full_like(y, 10))

        by_hand = sgd_by_hand(longer, tiny_split.forget, objective, 3)
        found = BoundaryExpand(SGD)(model, tiny_split, 3)
        assert found[1].bias is None
        torch.testing.assert_close(found[1].weight, by_hand[1].weight[:10], rtol=1e-4, atol=1e-7)


def gradient(model: nn.Module, data: ImageSet) -> Tensor:
    """Of the summed cross-entropy over a whole set, in evaluation mode: flat, float64."""
    x, y = data.batch_of(range(len(data)))
    loss = nn.functional.cross_entropy(model.eval()(x.double()), y, reduction="sum")
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


class Double(nn.Module):
    """A small network in float64, for images in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, 3), nn.Tanh(), nn.Linear(3, 4))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())


class TestInfluence:
    @pytest.fixture
    def model(self) -> nn.Module:
        with seeded(0):
            return Double(9)

    @pytest.fixture
    def split(self) -> ForgetSplit:
        g = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (20, 3, 3, 1), dtype=torch.uint8, generator=g)
        labels = torch.randint(0, 4, (20,), generator=g)
        data = ImageSet(pixels, labels, labels, (0.5,), (0.25,))
        forget, retain = data.subset(torch.arange(6)), data.subset(torch.arange(6, 20))
        return ForgetSplit("six of twenty", Classification(4), forget, retain)

    def v(self, model: nn.Module, split: ForgetSplit) -> Tensor:
        forget, retain = gradient(model, split.forget), gradient(model, split.retain)
        return forget / 20 - 6 / (20 * 14) * retain

    def move(self, model: nn.Module, split: ForgetSplit, **options: Any) -> Tensor:
        return flat(InfluenceUnlearning(**options)(model, split)) - flat(model)

    @pytest.mark.parametrize("batch_size", [1, 4, 256])
    def test_from_one_sample_it_is_a_step_along_the_gradients(
        self, model: nn.Module, split: ForgetSplit, batch_size: int
    ) -> None:
        """Fails if the forget loss falls, a sum is weighted otherwise, or by the batches."""
        found = self.move(model, split, scale=3.0, samples=1, batch_size=batch_size)
        torch.testing.assert_close(found, 3 * self.v(model, split), rtol=1e-9, atol=1e-12)

    def test_against_a_dense_solve(self, model: nn.Module, split: ForgetSplit) -> None:
        """With equal retain images the recursion is exact: F = 1 + (m / N) g g^T, where m is one
        less than the samples (the first only starts it). Fails with another N, m or sign."""
        retain = split.retain.subset(torch.zeros(14, dtype=torch.long))
        split = replace(split, retain=retain)
        g = gradient(model, retain.subset(torch.tensor([0])))
        F = torch.eye(len(g), dtype=torch.float64) + 9 / 5.0 * torch.outer(g, g)
        found = self.move(model, split, scale=2.0, samples=10, damping=5.0)
        v = self.v(model, split)
        wanted = 2 * torch.linalg.solve(F, v)
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)
        assert (wanted - 2 * v).norm() > 0.1 * v.norm()

    def test_the_recursion_in_general(self) -> None:
        """Its direction is always the first gradient: o = s g1, so two scalars tell it all."""
        g = torch.Generator().manual_seed(0)
        v, *gradients = torch.randn(6, 7, generator=g, dtype=torch.float64)
        along, s, N = 0.0, 1.0, 4.0
        first = gradients[0]
        for each in gradients[1:]:
            a = float(each @ first)
            along += (float(each @ v) - along * a) / (N + s * a) * s
            s -= s * a / (N + s * a) * s
        found = woodfisher(v, iter(gradients), N)
        torch.testing.assert_close(found, v - along * first, rtol=1e-12, atol=1e-12)

    def test_it_visits_evenly_spaced_samples_one_by_one(
        self, model: nn.Module, split: ForgetSplit
    ) -> None:
        """Fails if the recursion sees batches, other images, or more than the set holds."""
        singles = [gradient(model, split.retain.subset(torch.tensor([i]))) for i in range(14)]
        v = self.v(model, split)
        for samples in (5, 1000):
            found = self.move(model, split, scale=1.0, samples=samples, damping=3.0)
            visited = [0, 2, 5, 8, 11] if samples == 5 else range(14)
            wanted = woodfisher(v, iter([singles[i] for i in visited]), 3.0)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)

    def test_what_is_frozen_stays(self, model: nn.Module, split: ForgetSplit) -> None:
        model.net[1].weight.requires_grad_(False)
        found = InfluenceUnlearning()(model, split)
        assert torch.equal(found.net[1].weight, model.net[1].weight)
        assert not torch.equal(found.net[1].bias, model.net[1].bias)

    def test_a_loss_that_is_not_finite_is_an_error(
        self, model: nn.Module, split: ForgetSplit
    ) -> None:
        with torch.no_grad():
            model.net[3].bias[0] = math.nan
        with pytest.raises(TrainingError, match="influence: the loss is nan"):
            InfluenceUnlearning().unlearn(model, split, 0)

    @pytest.mark.parametrize(
        "bad", [{"samples": 0}, {"batch_size": 0}, {"scale": 0.0}, {"damping": float("nan")}]
    )
    def test_hyperparameters_that_make_no_sense(self, bad: dict) -> None:
        with pytest.raises(ValueError, match=r"must be (at least 1|positive|a finite number)"):
            InfluenceUnlearning(**bad)


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (RandomLabel(), (10, 0.013)),
        (GradientAscent(), (5, 1e-4)),
        (L1Sparse(), (10, 0.01)),
        (BoundaryShrink(), (10, 1e-6)),
        (BoundaryExpand(), (10, 1e-6)),
    ],
)
def test_the_defaults_are_the_authors(method: Method, config: tuple[int, float]) -> None:
    wanted = TrainConfig(*config, batch_size=256, momentum=0.9, weight_decay=5e-4)
    assert method.train == wanted
