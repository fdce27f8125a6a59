from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearn_core.data import ForgetSplit, ImageData
from unlearn_core.methods import CFk, EUk, Scrub
from unlearn_core.methods.baselines import scrub
from unlearn_core.methods.baselines.last_layers import last_layers
from unlearn_core.models import (
    LeNet,
    Recipe,
    ResNet18,
    SmallCNN,
    TrainConfig,
    TrainingError,
    shuffled_epochs,
)
from unlearn_core.seeding import derive_seed, seeded


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tiny_data: ImageData) -> nn.Module:
    return recipe.fit(tiny_data.train, 0, device=torch.device("cpu"))


def assert_same(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


class TestScrub:
    config = TrainConfig(
        epochs=5,
        lr=0.05,
        batch_size=16,
        momentum=0.9,
        weight_decay=1e-3,
        schedule="multistep",
        milestones=(1, 3),
    )

    def test_it_is_the_definition(self, trained: nn.Module, tiny_split: ForgetSplit) -> None:
        """Written out. Fails if the teacher trains or has batch statistics, if the divergence is
        reversed, averaged over classes or without T squared, if a part sees the other's data, or
        if the learning rate's epochs start again in the second part."""
        method = Scrub(self.config, m_steps=1, temperature=3.0, ce_weight=0.7, kl_weight=0.4)
        student, teacher = copy.deepcopy(trained).train(), copy.deepcopy(trained).eval()

        def divergence(x: Tensor, logits: Tensor) -> Tensor:
            p, q = (teacher(x).detach() / 3).softmax(1), (logits / 3).softmax(1)
            return 9 * (p * (p / q).log()).sum() / len(x)

        rates = [0.05, 0.005, 0.005, 0.0005, 0.0005]
        for part, data, epochs in (
            ("forget", tiny_split.forget, range(0, 2)),
            ("retain", tiny_split.retain, range(2, 5)),
        ):
            optimizer = torch.optim.SGD(student.parameters(), momentum=0.9, weight_decay=1e-3)
            batches = shuffled_epochs(data, self.config, derive_seed(3, part))
            for epoch in epochs:
                optimizer.param_groups[0]["lr"] = rates[epoch]
                for x, y in batches(epoch - epochs[0]):
                    logits = student(x)
                    if part == "forget":
                        loss = -divergence(x, logits)
                    else:
                        loss = 0.7 * nn.functional.cross_entropy(logits, y)
                        loss = loss + 0.4 * divergence(x, logits)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        assert_same(method(trained, tiny_split, 3), student, rtol=1e-4, atol=1e-5)

    def test_the_parts_share_one_schedule(
        self, trained: nn.Module, tiny_split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The defaults: tenfold less after epochs 3, 5 and 9, counted from 0."""
        calls: list[tuple[str, TrainConfig]] = []

        def note(model: nn.Module, epochs: Any, loss: Any, config: TrainConfig, **options: Any):
            calls.append((options["name"], config))

        monkeypatch.setattr(scrub, "train", note)
        method = Scrub(replace(Scrub().train, epochs=12))
        method(trained, tiny_split, 0)
        assert [name for name, _ in calls] == ["scrub, forget", "scrub, retain"]
        assert [config.epochs for _, config in calls] == [2, 10]
        factors = [config.factor(e) for _, config in calls for e in range(config.epochs)]
        assert factors == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 4 + [0.001] * 2)
        assert (method.m_steps, method.temperature) == (1, 4)
        assert (method.ce_weight, method.kl_weight) == (0.99, 0.001)

    def test_a_milestone_of_the_past_still_counts(
        self, trained: nn.Module, tiny_split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[TrainConfig] = []
        monkeypatch.setattr(scrub, "train", lambda *args, **options: calls.append(args[3]))
        Scrub(self.config, m_steps=2)(trained, tiny_split, 0)
        factors = [config.factor(e) for config in calls for e in range(config.epochs)]
        assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])

    def test_the_authors_milestones_are_of_both_parts_together(
        self, trained: nn.Module, tiny_split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a part refuses milestones that come after its own end."""
        calls: list[TrainConfig] = []
        monkeypatch.setattr(scrub, "train", lambda *args, **options: calls.append(args[3]))
        Scrub()(trained, tiny_split, 0)
        factors = [config.factor(e) for config in calls for e in range(config.epochs)]
        assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])

    def test_it_drives_the_forget_set_from_the_teacher_alone(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the first part goes down the divergence, or the second does not repair."""
        config = TrainConfig(epochs=22, lr=0.02, batch_size=16, momentum=0.9)
        unlearned = Scrub(config, m_steps=3)(trained, tiny_split, 0)

        def loss(model: nn.Module, side: str) -> float:
            data = getattr(tiny_split, side)
            return tiny_split.task.loss(model, data.batch_of(range(len(data)))).item()

        assert loss(unlearned, "forget") > loss(trained, "forget") + 0.5
        assert loss(unlearned, "retain") < loss(trained, "retain")

    @pytest.mark.parametrize("m_steps", [-1, 4, 5])
    def test_both_parts_have_epochs(self, m_steps: int) -> None:
        with pytest.raises(ValueError, match=r"m_steps must (lie in \[0, 3\]|be at least 0)"):
            Scrub(self.config, m_steps=m_steps)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
    def test_the_temperature_is_checked(self, temperature: float) -> None:
        with pytest.raises(ValueError, match=r"temperature must be (positive|a finite number)"):
            Scrub(self.config, temperature=temperature)

    @pytest.mark.parametrize("other", [{"schedule": "cosine"}, {"warmup_epochs": 1.0}])
    def test_a_schedule_that_cannot_be_cut_in_two(self, other: dict) -> None:
        with pytest.raises(ValueError, match="constant or multistep, without warm-up"):
            Scrub(TrainConfig(5, 0.1, **other))


class TestLastLayers:
    def test_they_are_counted_from_the_output(self) -> None:
        model = SmallCNN(10, 1, width=4).build(0)
        blocks = model.blocks
        assert last_layers(model, 1) == [model.head]
        assert last_layers(model, 3) == [blocks[6], blocks[7], model.head]
        assert last_layers(model, 7) == [*(blocks[i] for i in (0, 1, 3, 4, 6, 7)), model.head]

    @pytest.mark.parametrize("spec", [ResNet18(10, 3, width=4), SmallCNN(10), LeNet(10)])
    def test_the_last_one_is_the_linear_layer(self, spec: Any) -> None:
        model = spec.build(0)
        assert last_layers(model, 1) == [model.head]
        assert isinstance(model.head, nn.Linear)

    def test_there_must_be_as_many(self, model: nn.Module) -> None:
        with pytest.raises(ValueError, match="k = 8, but the model has 7 layers with parameters"):
            last_layers(model, 8)


CONFIG = TrainConfig(epochs=3, lr=0.05, batch_size=16, momentum=0.9, weight_decay=1e-2)


def by_hand(model: nn.Module, split: ForgetSplit, names: list[str], seed: int) -> nn.Module:
    """Train the parameters of these names on the retain set, in training mode."""
    model = copy.deepcopy(model).train()
    chosen = [p for n, p in model.named_parameters() if n in names]
    optimizer = torch.optim.SGD(chosen, 0.05, momentum=0.9, weight_decay=1e-2)
    epochs = shuffled_epochs(split.retain, CONFIG, seed)
    for epoch in range(3):
        for x, y in epochs(epoch):
            loss = nn.functional.cross_entropy(model(x), y)
            gradients = torch.autograd.grad(loss, chosen)
            for p, g in zip(chosen, gradients, strict=True):
                p.grad = g
            optimizer.step()
    return model


class TestCFk:
    @pytest.mark.parametrize(
        ("k", "names"),
        [
            (1, ["head.weight", "head.bias"]),
            (
                3,
                ["blocks.6.weight", "blocks.7.weight", "blocks.7.bias", "head.weight", "head.bias"],
            ),
        ],
    )
    def test_only_the_last_layers_train(
        self, trained: nn.Module, tiny_split: ForgetSplit, k: int, names: list[str]
    ) -> None:
        """Fails if another layer moves (by weight decay, too), or the forget set is seen."""
        unlearned = CFk(CONFIG, k)(trained, tiny_split, 4)
        moved = [
            n
            for (n, a), b in zip(unlearned.named_parameters(), trained.parameters(), strict=True)
            if not torch.equal(a, b)
        ]
        assert moved == names
        assert_same(unlearned, by_hand(trained, tiny_split, names, 4), rtol=1e-4, atol=1e-6)

    def test_the_statistics_of_the_frozen_part_move(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """As where the whole model is in training mode: the first BatchNorm's too."""
        unlearned = CFk(CONFIG)(trained, tiny_split, 0)
        assert not torch.equal(unlearned.blocks[1].running_mean, trained.blocks[1].running_mean)

    def test_what_was_frozen_stays_so_and_nothing_else(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if flags are left switched off, or a parameter frozen by hand is trained."""
        model = copy.deepcopy(trained)
        model.head.bias.requires_grad_(False)
        model.blocks[0].weight.requires_grad_(False)
        flags = [p.requires_grad for p in model.parameters()]
        unlearned = CFk(CONFIG)(model, tiny_split, 0)
        assert [p.requires_grad for p in unlearned.parameters()] == flags
        assert torch.equal(unlearned.head.bias, model.head.bias)
        assert not torch.equal(unlearned.head.weight, model.head.weight)

    def test_an_error_gives_the_flags_back(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        model = copy.deepcopy(trained)
        model.head.bias.data[0] = math.nan
        with pytest.raises(TrainingError, match="cf_k: the loss is nan at step 1"):
            CFk(CONFIG).unlearn(model, tiny_split, 0)
        assert all(p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize("cls", [CFk, EUk])
    def test_k_is_checked(
        self, cls: type[CFk], trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        with pytest.raises(ValueError, match="k must be at least 1, not 0"):
            cls(CONFIG, 0)
        with pytest.raises(ValueError, match="k = 9, but the model has 7 layers"):
            cls(CONFIG, 9)(trained, tiny_split, 0)


class TestEUk:
    def test_it_is_cf_k_after_one_reset(self, trained: nn.Module, tiny_split: ForgetSplit) -> None:
        """Fails if each epoch resets the layers again, as the authors' code does."""
        reset = copy.deepcopy(trained)
        with seeded(2, "reset"):
            reset.blocks[7].reset_parameters()
            reset.head.reset_parameters()
        unlearned = EUk(CONFIG, k=2)(trained, tiny_split, 2)
        assert equal(unlearned, CFk(CONFIG, k=2)(reset, tiny_split, 2))
        assert not equal(unlearned, CFk(CONFIG, k=2)(trained, tiny_split, 2))

    def test_nothing_of_the_old_layer_is_left(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        other = copy.deepcopy(trained)
        nn.init.normal_(other.head.weight, generator=torch.Generator().manual_seed(9))
        method = EUk(CONFIG)
        assert equal(method(trained, tiny_split, 0), method(other, tiny_split, 0))
        assert not equal(method(trained, tiny_split, 0), method(trained, tiny_split, 1))

    def test_a_layer_that_cannot_be_reset(self, tiny_split: ForgetSplit) -> None:
        """Fails if it is skipped: the layer would keep what it knows."""

        class Scale(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.factor = nn.Parameter(torch.ones(10))

            def forward(self, x: Tensor) -> Tensor:
                return self.factor * x

        model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10), Scale())
        with pytest.raises(ValueError, match="Scale has no reset_parameters"):
            EUk(CONFIG)(model, tiny_split, 0)
        assert not equal(CFk(CONFIG)(model, tiny_split, 0), model)


def test_the_defaults_are_the_worst_case_paper_s() -> None:
    for method in (Scrub(), CFk(), EUk()):
        config = method.train
        assert (config.epochs, config.batch_size) == (10, 256)
        assert (config.optimizer, config.momentum, config.weight_decay) == ("sgd", 0.9, 5e-4)
    assert CFk().k == EUk().k == 1
