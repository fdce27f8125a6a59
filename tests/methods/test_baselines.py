from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unlearn_core.data import (
    Classification,
    ForgetSplit,
    ImageData,
    ImageSet,
    forget_class,
    forget_random,
    image_folder,
    shapes,
)
from unlearn_core.methods import (
    SSD,
    UNSIR,
    AbsoluteSelection,
    Amnesiac,
    BadTeacher,
    FineTune,
    RandomSelection,
    Retrain,
)
from unlearn_core.methods.baselines.retrain import retrain_seed
from unlearn_core.methods.ssd import Importances, dampen
from unlearn_core.models import Recipe, SmallCNN, TrainConfig, TrainingError, shuffled_epochs

BASELINES = "unlearn_core.methods.baselines"


def same(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Spy:
    """Stands in for the training loop: keeps what it is called with, and trains nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.calls: list[dict[str, Any]] = []
        self.datasets: list[Any] = []
        monkeypatch.setattr(f"{BASELINES}.{module}.train", self.train)
        monkeypatch.setattr(f"{BASELINES}.{module}.shuffled_epochs", self.shuffled_epochs)

    def shuffled_epochs(self, data: Any, config: TrainConfig, seed: int) -> Any:
        self.datasets.append(data)
        return shuffled_epochs(data, config, seed)

    def train(
        self, model: nn.Module, batches: Any, loss: Any, config: TrainConfig, **options: Any
    ) -> nn.Module:
        self.calls.append({"model": model, "loss": loss, "config": config, **options})
        return model


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tiny_data: ImageData) -> nn.Module:
    return recipe.fit(tiny_data.train, 0, device=torch.device("cpu"))


class TestRetrain:
    def test_in_full_it_is_the_recipe_on_the_retain_set(
        self, recipe: Recipe, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if it starts from the given model, from the original's initialisation, or sees an
        image of the forget set."""
        by_hand = recipe.fit(tiny_split.retain, retrain_seed(5), device=torch.device("cpu"))
        assert retrain_seed(5) != 5
        assert same(Retrain(recipe)(trained, tiny_split, 5), by_hand)

    def test_the_given_model_plays_no_part(
        self, recipe: Recipe, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        method = Retrain(recipe)
        assert same(method(trained, tiny_split, 0), method(recipe.build(9), tiny_split, 0))

    def test_a_head_reset_renews_only_direct_children(
        self,
        recipe: Recipe,
        trained: nn.Module,
        tiny_split: ForgetSplit,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails if every layer is reset: that would be the full retraining, not the authors'."""
        spy = Spy(monkeypatch, "retrain")
        first = Retrain(recipe, mode="head_reset")(trained, tiny_split, 0)
        other = Retrain(recipe, mode="head_reset")(trained, tiny_split, 1)
        for key, before in trained.state_dict().items():
            assert torch.equal(first.state_dict()[key], before) == (not key.startswith("head"))
        assert not torch.equal(first.head.weight, other.head.weight)
        assert spy.datasets[0] is tiny_split.retain
        assert spy.calls[0]["config"] == TrainConfig(2, 0.01, momentum=0.9, batch_size=16)

    def test_then_it_trains_on_all_layers(
        self, recipe: Recipe, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        result = Retrain(recipe, mode="head_reset")(trained, tiny_split, 0)
        for a, b in zip(result.parameters(), trained.parameters(), strict=True):
            assert not torch.equal(a, b)

    def test_an_unknown_mode_is_refused(self, recipe: Recipe) -> None:
        with pytest.raises(ValueError, match="mode must be 'full' or 'head_reset', not 'half'"):
            Retrain(recipe, mode="half")


def test_fine_tuning_is_sgd_on_the_retain_set(trained: nn.Module, tiny_split: ForgetSplit) -> None:
    """Fails if it sees the forget set, restarts the model, or draws its batches otherwise."""
    config = TrainConfig(epochs=2, lr=0.02, momentum=0.9, weight_decay=5e-4, batch_size=16)
    model = copy.deepcopy(trained).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)
    epochs = shuffled_epochs(tiny_split.retain, config, 3)
    for epoch in range(2):
        for x, y in epochs(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert same(FineTune(config)(trained, tiny_split, 3), model)


class TestAmnesiac:
    def test_the_forget_labels_are_wrong_and_the_retain_labels_right(
        self,
        trained: nn.Module,
        tiny_data: ImageData,
        tiny_split: ForgetSplit,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails if a forget image keeps its label, is left out, or a retain label is drawn."""
        spy = Spy(monkeypatch, "amnesiac")
        Amnesiac()(trained, tiny_split, 0)
        (data,) = spy.datasets
        right = data.labels == tiny_data.train.labels[data.index]
        forgotten = torch.isin(data.index, tiny_split.forget.index)
        assert sorted(data.index.tolist()) == list(range(80))
        assert torch.equal(right, ~forgotten)
        assert data.labels[forgotten].unique().numel() > 1
        assert spy.calls[0]["loss"] == tiny_split.task.loss

    def test_the_seed_draws_the_labels(
        self, trained: nn.Module, tiny_split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spy = Spy(monkeypatch, "amnesiac")
        for seed in (0, 0, 1):
            Amnesiac()(trained, tiny_split, seed)
        a, b, c = (d.labels for d in spy.datasets)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    def test_it_makes_the_model_unsure_of_the_forget_set(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        config = TrainConfig(epochs=10, lr=1e-2, batch_size=16, optimizer="adam")
        unlearned = Amnesiac(config)(trained, tiny_split, 0)
        batch = tiny_split.forget.batch_of(range(8))
        assert tiny_split.task.loss(unlearned, batch) > tiny_split.task.loss(trained, batch)


class TestBadTeacher:
    @pytest.mark.filterwarnings("ignore:reduction")
    def test_the_loss_is_the_divergence_from_each_image_s_teacher(
        self,
        recipe: Recipe,
        trained: nn.Module,
        tiny_split: ForgetSplit,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails if the KL is reversed, averaged over samples only, or the teachers are swapped."""
        built = []
        build = SmallCNN.build
        monkeypatch.setattr(
            SmallCNN, "build", lambda self, seed: built.append(build(self, seed)) or built[-1]
        )
        spy = Spy(monkeypatch, "bad_teacher")
        student = BadTeacher(recipe)(trained, tiny_split, 0)
        with torch.no_grad():
            for p in student.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        x, _ = tiny_split.test.batch_of([0, 7, 20])
        forget = torch.tensor([1, 0, 1])
        value = spy.calls[0]["loss"](student, (x, forget))
        (random,) = built
        p = torch.stack([m(x)[i] for i, m in enumerate((random, trained, random))]).softmax(1)
        q = student(x).softmax(1)
        by_hand = (p * (p / q).log()).sum() / (3 * 10)
        torch.testing.assert_close(value, by_hand, rtol=1e-4, atol=1e-7)
        as_published = nn.functional.kl_div(q.log(), p, reduction="mean")
        torch.testing.assert_close(value, as_published, rtol=1e-4, atol=1e-7)
        assert value.item() > 1e-3
        gradients = torch.autograd.grad(value, list(student.parameters()))
        assert all(g.any() for g in gradients)

    def test_it_follows_the_random_teacher_on_forget_and_the_original_on_a_share(
        self,
        recipe: Recipe,
        trained: nn.Module,
        tiny_split: ForgetSplit,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        spy = Spy(monkeypatch, "bad_teacher")
        for seed in (0, 0, 1):
            BadTeacher(recipe, retain_share=0.25)(trained, tiny_split, seed)
        for data in spy.datasets:
            assert torch.equal(data.index[data.labels == 1], tiny_split.forget.index)
            kept = data.index[data.labels == 0]
            assert len(kept) == len(kept.unique()) == 72 // 4
            assert torch.isin(kept, tiny_split.retain.index).all()
        a, b, c = (d.index[8:] for d in spy.datasets)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
    def test_the_share_is_checked(self, recipe: Recipe, share: float) -> None:
        with pytest.raises(ValueError, match=r"retain_share must be in \(0, 1\]"):
            BadTeacher(recipe, retain_share=share)


class TestUNSIR:
    def error(self, model: nn.Module, x: Tensor) -> float:
        return nn.functional.cross_entropy(model(x), torch.full((len(x),), 3)).item()

    def test_the_noise_raises_the_class_s_error(self, trained: nn.Module) -> None:
        """Fails if the error is minimised: the impair step would teach the class again."""
        start, noise = (
            UNSIR(steps=s, noise_batch=8, penalty=0.0).make_noise(trained, 3, (1, 12, 12), 0)
            for s in (0, 25)
        )
        assert self.error(trained, noise) > self.error(trained, start) + 0.1

    def test_the_penalty_pulls_the_noise_to_zero(self, trained: nn.Module) -> None:
        weak, strong = (
            UNSIR(penalty=p, noise_batch=8).make_noise(trained, 3, (1, 12, 12), 0)
            for p in (0.0, 10.0)
        )
        assert strong.square().mean() < 0.1 * weak.square().mean()

    def test_the_first_step_follows_the_objective_s_gradient(self, trained: nn.Module) -> None:
        """Fails with a sum for a mean over images (or pixels) or another weight of the penalty."""
        method = UNSIR(steps=0, noise_batch=4, penalty=0.1)
        start = method.make_noise(trained, 3, (1, 12, 12), 7)
        moved = UNSIR(steps=1, noise_batch=4, penalty=0.1).make_noise(trained, 3, (1, 12, 12), 7)
        n = start.clone().requires_grad_()
        log_p = trained(n).log_softmax(1)[:, 3]
        objective = log_p.mean() + 0.1 * (n**2).sum() / 4
        (gradient,) = torch.autograd.grad(objective, n)
        clear = gradient.abs() > 1e-5
        assert clear.float().mean() > 0.9
        torch.testing.assert_close(
            (moved - start)[clear], -0.1 * gradient.sign()[clear], rtol=1e-2, atol=0
        )

    def test_the_noise_is_drawn_by_the_seed(self, trained: nn.Module) -> None:
        a, b, c = (
            UNSIR(steps=0, noise_batch=4).make_noise(trained, 3, (1, 12, 12), s) for s in (0, 0, 1)
        )
        assert a.shape == (4, 1, 12, 12)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    def test_impair_mixes_noise_and_images_and_repair_has_images_only(
        self,
        trained: nn.Module,
        tiny_data: ImageData,
        tiny_split: ForgetSplit,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fails if a forget image is used, or noise gets another label than the class's."""
        spy = Spy(monkeypatch, "unsir")
        method = UNSIR(steps=1, noise_batch=4, copies=3, per_class=2)
        method(trained, tiny_split, 0)
        mixed, images = spy.datasets
        first = [i for c in range(10) if c != 3 for i in (8 * c, 8 * c + 1)]
        assert images.index.tolist() == first
        assert [c["name"] for c in spy.calls] == ["unsir, impair", "unsir, repair"]
        assert [c["config"] for c in spy.calls] == [method.impair, method.repair]
        assert len(mixed) == 18 + 3 * 4
        x, y = mixed.batch_of(range(30))
        real_x, real_y = images.batch_of(range(18))
        noise = method.make_noise(trained, 3, (1, 12, 12), 0)
        assert torch.equal(x, torch.cat([real_x, noise, noise, noise]))
        assert y.tolist() == [*real_y.tolist(), *[3] * 12]
        assert tiny_data.train.labels[images.index].tolist() == real_y.tolist()

    def test_images_are_kept_by_fine_class(
        self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = shapes(3, 1, fills=2, size=12, coarse=True)
        split = forget_class(data, 0)
        spy = Spy(monkeypatch, "unsir")
        UNSIR(steps=1, noise_batch=2, copies=1, per_class=2)(recipe.build(0), split, 0)
        assert Counter(spy.datasets[1].subclasses.tolist()) == dict.fromkeys(range(2, 20), 2)

    def test_a_forget_set_with_several_labels_is_refused(
        self, trained: nn.Module, tiny_data: ImageData
    ) -> None:
        split = forget_random(tiny_data, count=20)
        with pytest.raises(ValueError, match=r"UNSIR forgets one class, but .* several labels"):
            UNSIR()(trained, split, 0)

    def test_a_loss_that_is_not_finite_names_the_step(self, model: nn.Module) -> None:
        model.head.bias.data[0] = math.nan
        with pytest.raises(TrainingError, match="unsir, noise: the loss is nan at step 1"):
            UNSIR(noise_batch=2).make_noise(model, 3, (1, 12, 12), 0)

    def test_training_may_augment(self, trained: nn.Module, tiny_split: ForgetSplit) -> None:
        """Fails if the noisy set does not know augmentation: the configuration allows it."""
        config = TrainConfig(1, 1e-4, augment=("flip",))
        method = UNSIR(steps=1, noise_batch=2, copies=1, impair=config, repair=config)
        assert not same(method(trained, tiny_split, 0), trained)

    def test_batches_of_noise_alone_work_on_a_folder(self, tmp_path: Path) -> None:
        """Fails if a batch without an image can't be made: 2,560 noise images come with few."""
        for name in "ab":
            (tmp_path / name).mkdir()
            for i in range(2):
                pixels = np.full((8, 8, 3), 50 * i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        data = image_folder(str(tmp_path), size=8, test_fraction=0.5)
        config = TrainConfig(1, 1e-4, batch_size=2)
        model = SmallCNN(2, 3, width=2).build(0)
        method = UNSIR(steps=1, noise_batch=4, copies=2, impair=config)
        assert not same(method(model, forget_class(data, "a"), 0), model)


class Ones(nn.Module):
    """Two parameters of ones, so that dampening leaves the factors themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(20, 5, dtype=torch.float64))
        self.b = nn.Parameter(torch.ones(60, dtype=torch.float64))

    def flat(self) -> Tensor:
        return torch.cat([self.a.detach().flatten(), self.b.detach()])


def random_pair() -> tuple[Importances, Importances]:
    g = torch.Generator().manual_seed(0)
    return tuple(
        {
            k: torch.rand(p.shape, generator=g, dtype=torch.float64)
            for k, p in Ones().named_parameters()
        }
        for _ in range(2)
    )


class TestSelection:
    alpha, lam = 1.5, 0.7

    def factors(self, cls: type[RandomSelection], seed: int = 0) -> Tensor:
        model = Ones()
        cls(self.alpha, self.lam).dampen_elsewhere(model, *random_pair(), seed)
        return model.flat()

    def ssd(self) -> Tensor:
        model = Ones()
        dampen(model, *random_pair(), self.alpha, self.lam)
        return model.flat()

    @pytest.mark.parametrize("cls", [RandomSelection, AbsoluteSelection])
    def test_as_many_weights_by_the_same_factors_but_not_the_same_ones(
        self, cls: type[RandomSelection]
    ) -> None:
        """Fails if the ablation also dampens more, or harder: it should differ in the choice."""
        ours, ssd = self.factors(cls), self.ssd()
        assert 20 < (ssd < 1).sum() < 100
        assert torch.equal(ours.sort().values, ssd.sort().values)
        assert not torch.equal(ours, ssd)

    def test_absolute_selection_takes_the_largest_importances_strongest_first(self) -> None:
        """Fails if the choice is by relative importance, or the factors are in another order."""
        imp_f = torch.cat([i.flatten() for i in random_pair()[0].values()])
        factors = self.factors(AbsoluteSelection)
        n = int((factors < 1).sum())
        assert imp_f[factors < 1].min() >= imp_f.sort().values[-n]
        by_importance = factors[imp_f.argsort(descending=True)]
        assert torch.equal(by_importance, factors.sort().values)

    def test_random_selection_draws_by_the_seed_and_favours_nothing(self) -> None:
        assert torch.equal(self.factors(RandomSelection, 1), self.factors(RandomSelection, 1))
        n, hits = int((self.ssd() < 1).sum()), torch.zeros(160)
        for seed in range(200):
            hits += self.factors(RandomSelection, seed) < 1
        p = n / 160
        assert (hits / 200 - p).abs().max() < 5 * (p * (1 - p) / 200) ** 0.5

    @pytest.mark.parametrize("cls", [RandomSelection, AbsoluteSelection])
    def test_a_call_uses_ssd_s_importances(
        self, cls: type[RandomSelection], trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        def changed(method: SSD) -> int:
            pairs = zip(method(trained, tiny_split).parameters(), trained.parameters(), strict=True)
            return sum(int((a != b).sum()) for a, b in pairs)

        assert changed(SSD(2.0, 0.5)) == changed(cls(2.0, 0.5)) > 10


def test_relabelling_is_the_task_s(
    trained: nn.Module, tiny_split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_zero(self: Classification, data: ImageSet, generator: torch.Generator) -> ImageSet:
        return data.with_labels(torch.zeros_like(data.labels))

    monkeypatch.setattr(Classification, "relabel", to_zero)
    spy = Spy(monkeypatch, "amnesiac")
    Amnesiac()(trained, tiny_split, 0)
    assert spy.datasets[0].labels[-8:].tolist() == [0] * 8
