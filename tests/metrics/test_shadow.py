from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from unlearn_core.data import Classification, ImageData, ImageSet, shapes
from unlearn_core.metrics.shadow import (
    ATTACK_TRAINING,
    ShadowAttack,
    attack_network,
    gradient_norms,
    shadow_features,
)
from unlearn_core.models import Recipe, SmallCNN, TrainConfig, TrainingError, predict

Golden = Callable[[str], dict[str, Tensor]]
CPU = torch.device("cpu")


class TestRecordedAttack:
    def attack(self, case: dict[str, Tensor]) -> ShadowAttack:
        network = attack_network(10).double()
        layers = [m for m in network if isinstance(m, nn.Linear)]
        for layer, name in zip(layers, ("fc1", "fc2", "fc4", "fc3"), strict=True):
            for part in ("weight", "bias"):
                weight = case[f"w8.{name}.{part}"].double() / case["hp.weight_scale"]
                getattr(layer, part).data.copy_(weight)
        return ShadowAttack(network)

    def test_features(self, golden: Golden) -> None:
        """Fails without the label, with the halves swapped, or with the softmax alone."""
        case = golden("iau/attack_features")
        found = shadow_features(case["logits"], case["y"])
        torch.testing.assert_close(found, case["features"], rtol=0, atol=1e-10)

    def test_probabilities(self, golden: Golden) -> None:
        """Fails with dropout at work, or layers in the order of their names."""
        case = golden("iau/attack_features")
        found = self.attack(case).probability(case["logits"], case["y"])
        torch.testing.assert_close(found, case["attack_probability"], rtol=0, atol=1e-10)

    def test_rates(self, golden: Golden) -> None:
        case = golden("iau/attack_features")
        attack = self.attack(case)
        found = attack.member_rate(case["logits"], case["y"])
        assert found.value == pytest.approx(100 * case["member_rate"].item())
        assert found.n == 40
        calls = attack.probability(case["logits"], case["y"]) > 0.5
        accuracy = (calls == case["labels_mixed"]).double().mean()
        assert accuracy == case["accuracy_mixed"]


def test_a_probability_of_one_half_is_no_member() -> None:
    network = attack_network(3)
    nn.init.zeros_(network[9].weight)
    nn.init.zeros_(network[9].bias)
    assert ShadowAttack(network).member_rate(torch.randn(5, 3), torch.zeros(5).long()).value == 0


def test_the_network_s_layers() -> None:
    layers = [(m.in_features, m.out_features) for m in attack_network(7) if hasattr(m, "bias")]
    assert layers == [(14, 256), (256, 128), (128, 32), (32, 1)]
    dropout = [m.p for m in attack_network(7) if isinstance(m, nn.Dropout)]
    assert dropout == [0.5] * 3


@pytest.fixture(scope="module")
def pool() -> ImageSet:
    """Eighty images with random labels: what a model says of them is memory or chance."""
    data = shapes(per_class=8, test_per_class=1, fills=1, size=12).train
    labels = torch.randint(10, (80,), generator=torch.Generator().manual_seed(0))
    return data.with_labels(labels)


class TestFit:
    def spied(self, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, pool: ImageSet, **o: Any):
        fits, trainings = [], []

        def fit(self: Recipe, data: ImageSet, seed: int, **options: Any) -> nn.Module:
            fits.append((data, seed, options))
            return self.build(seed)

        def train(network: nn.Module, epochs: Any, loss: Any, config: Any, **_: Any) -> nn.Module:
            trainings.append((list(epochs(0)), loss, config))
            return network

        monkeypatch.setattr(Recipe, "fit", fit)
        monkeypatch.setattr("unlearn_core.metrics.shadow.train", train)
        ShadowAttack.fit(pool, recipe, validation=pool, device=CPU, **o)
        return fits, trainings

    def test_each_shadow_model_is_trained_on_its_own_half(
        self, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, pool: ImageSet
    ) -> None:
        """Fails if halves overlap or repeat, or shadow models start alike."""
        fits, _ = self.spied(monkeypatch, recipe, pool)
        halves = [data.index.tolist() for data, _, _ in fits]
        assert [len(set(h)) for h in halves] == [40, 40, 40]
        assert len({tuple(sorted(h)) for h in halves}) == 3
        assert len({seed for _, seed, _ in fits}) == 3
        assert all(options["device"] == CPU for _, _, options in fits)
        assert all(options["validation"] is pool for _, _, options in fits)
        again, _ = self.spied(monkeypatch, recipe, pool)
        assert [data.index.tolist() for data, _, _ in again] == halves
        other, _ = self.spied(monkeypatch, recipe, pool, seed=1)
        assert other[0][0].index.tolist() != halves[0]

    def test_what_the_attack_learns_from(
        self, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, pool: ImageSet
    ) -> None:
        """Fails if members and non-members are mixed up, or of one odd image both are made."""
        odd = pool.subset(torch.arange(79))
        fits, ((batches, loss, config),) = self.spied(
            monkeypatch, recipe, odd, shadows=2, epochs=3, batch_size=32
        )
        assert config == replace(ATTACK_TRAINING, epochs=3, batch_size=32)
        assert [len(b[1]) for b in batches] == [32, 32, 32, 32, 28]
        x, member = (torch.cat(columns) for columns in zip(*batches, strict=True))
        assert member.sum() == 2 * 39
        expected = []
        for data, seed, _ in fits:
            out = predict(recipe.build(seed), data)
            expected.append(shadow_features(out.logits, out.labels))
        rows = torch.cat(expected)
        distance = torch.cdist(rows, x[member == 1]).min(dim=1).values
        assert distance.max() < 1e-3
        assert torch.cdist(rows, x[member == 0]).min(dim=1).values.median() > 1e-3
        value = loss(lambda x: torch.full((len(x),), 2.0), (x[:2], torch.tensor([1.0, 0.0])))
        by_hand = -torch.sigmoid(torch.tensor([2.0, -2.0])).log().mean()
        torch.testing.assert_close(value, by_hand)

    def test_the_defaults_are_the_code_s(self) -> None:
        assert TrainConfig(50, 0.01, 8192, optimizer="adam") == ATTACK_TRAINING

    def test_it_tells_members_of_a_model_that_memorises(self, pool: ImageSet) -> None:
        """Fails if the fitted attack has nothing to do with membership."""
        config = TrainConfig(epochs=30, lr=0.01, batch_size=20, optimizer="adam")
        recipe = Recipe(SmallCNN(10, width=8), Classification(10), config)
        before = torch.get_rng_state()
        attack = ShadowAttack.fit(pool, recipe, shadows=2, device=CPU, epochs=60)
        assert torch.equal(torch.get_rng_state(), before)
        assert not attack.network.training
        seen, unseen = pool.subset(torch.arange(0, 80, 2)), pool.subset(torch.arange(1, 80, 2))
        victim = recipe.fit(seen, 99, device=CPU)
        rates = []
        for data in (seen, unseen):
            out = predict(victim, data)
            rates.append(attack.member_rate(out.logits, out.labels).value)
        assert rates[0] > 90
        assert rates[1] < 30

    def test_what_it_refuses(self, recipe: Recipe, pool: ImageSet) -> None:
        with pytest.raises(ValueError, match="needs a shadow model and two images"):
            ShadowAttack.fit(pool, recipe, shadows=0)
        with pytest.raises(ValueError, match="needs a shadow model and two images"):
            ShadowAttack.fit(pool.subset(torch.arange(1)), recipe)
        with pytest.raises(TypeError, match="epoch"):
            ShadowAttack.fit(pool, recipe, epoch=3)
        early = replace(recipe, train=replace(recipe.train, patience=2))
        with pytest.raises(TrainingError, match="shadow model: early stopping needs validation"):
            ShadowAttack.fit(pool, early, device=CPU)


class Rows(TensorDataset):
    def subset(self, positions: Tensor) -> Rows:
        return Rows(*(t[positions] for t in self.tensors))


class TestGradientNorms:
    def test_recorded_norms(self, golden: Golden) -> None:
        """Fails if the norm of a batch's mean gradient, or a sum of tensor norms, is taken."""
        case = golden("iau/gr_loss_mlp")
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).double()
        names = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        for p, name in zip(model.parameters(), names, strict=True):
            p.data.copy_(case[f"theta.{name}"])
        found = gradient_norms(model, Classification(4).loss, Rows(case["X"], case["y"]), 99)
        torch.testing.assert_close(found, case["sample_grad_norms"], rtol=0, atol=1e-10)

    def test_each_is_that_of_one_image_in_evaluation_mode(
        self, recipe: Recipe, model: nn.Module, tiny_data: ImageData
    ) -> None:
        """Fails if BatchNorm sees the batch, or only the first images (one class) are taken."""
        model.head.bias.requires_grad_(False)
        model.unused = nn.Parameter(torch.ones(2))
        parameters = [p for n, p in model.named_parameters() if n not in ("head.bias", "unused")]
        expected = []
        for i in range(0, 80, 8):
            loss = recipe.task.loss(model, tiny_data.train.batch_of([i]))
            gradients = torch.autograd.grad(loss, parameters)
            expected.append(torch.cat([g.flatten() for g in gradients]).norm())
        found = gradient_norms(model.train(), recipe.task.loss, tiny_data.train, 10)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)
        assert model.training
        assert all(p.grad is None for p in model.parameters())
