from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from unlearn_core.data import ForgetSplit, ImageData, ImageSet
from unlearn_core.methods.forget_pairs import Beside
from unlearn_core.models import (
    Checkpoint,
    CheckpointWarning,
    NotFiniteError,
    Recipe,
    TrainConfig,
    TrainingError,
    predict,
    shuffled_epochs,
    to,
    train,
)
from unlearn_core.registry import describe
from unlearn_core.seeding import seeded

Batches = list[tuple[Tensor, Tensor]]


class Stop(Exception):  # noqa: N818
    """Stands for a kill."""


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def slope_one(model: nn.Module, batch: object) -> Tensor:
    """A loss whose gradient is 1 in every weight, so that SGD's steps show the learning rate."""
    return model.weight.sum()


def linear(size: int = 3) -> nn.Linear:
    model = nn.Linear(size, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 0.5)
    return model


def problem(n: int, batch: int, size: int = 3) -> Batches:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, size, generator=generator, dtype=torch.float64)
    y = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return list(zip(x.split(batch), y.split(batch), strict=True))


def forever(batches: Batches) -> Callable[[int], Batches]:
    return lambda epoch: batches


def weights(model: nn.Module) -> list[Tensor]:
    return [v.clone() for v in model.state_dict().values()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


class TestTrainConfig:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epochs": 0}, "at least 1"),
            ({"batch_size": 0}, "at least 1"),
            ({"accumulate": 0}, "at least 1"),
            ({"lr": 0.0}, "lr must be positive, not 0.0"),
            ({"lr": math.nan}, "lr must be a finite number, not nan"),
            ({"lr": "1e-1"}, "lr must be a finite number, not '1e-1'"),
            ({"lr": True}, "lr must be a finite number, not True"),
            ({"epochs": True}, "epochs must be a whole number, not True"),
            ({"epochs": 6.0}, "epochs must be a whole number, not 6.0"),
            ({"clip": -1}, "clip must be positive or None, not -1"),
            ({"clip": 0}, "clip must be positive or None, not 0"),
            ({"gamma": -1}, "gamma must be positive, not -1"),
            ({"momentum": "9e-1"}, "momentum must be a finite number, not '9e-1'"),
            ({"momentum": 1}, r"momentum must be in \[0, 1\), not 1"),
            ({"weight_decay": -1}, "weight_decay must be at least 0, not -1"),
            ({"weight_decay": "5e-4"}, "weight_decay must be a finite number, not '5e-4'"),
            ({"workers": -1}, "workers must be at least 0, not -1"),
            ({"warmup_epochs": -3}, "warmup_epochs must be at least 0, not -3"),
            ({"warmup_epochs": 100}, "a warm-up of 100 of 1 epochs"),
            ({"schedule": "multistep"}, "milestones"),
            ({"milestones": (1,)}, "milestones"),
            ({"schedule": "multistep", "milestones": (2,)}, "a milestone after 2 of 1 epochs"),
            ({"schedule": "multistep", "milestones": (0.5,)}, "whole numbers of epochs, not 0.5"),
            ({"milestones": 3}, "milestones must be of type tuple, not 3"),
            ({"augment": "flip"}, "augment must be of type tuple, not 'flip'"),
            ({"optimizer": "sdg"}, "optimizer must be 'sgd' or 'adam' or 'adamw', not 'sdg'"),
            ({"optimizer": "adam", "momentum": 0.9}, "momentum belongs to sgd"),
            ({"schedule": "step"}, "schedule must be .*'cosine' or 'linear', not 'step'"),
            ({"precision": "fp8"}, "precision must be 'no' or 'fp16' or 'bf16', not 'fp8'"),
            ({"max_steps": 0}, "max_steps must be at least 1 or None, not 0"),
            ({"max_steps": math.nan}, "max_steps must be a whole number or None, not nan"),
            ({"patience": 0}, "patience must be at least 1 or None, not 0"),
            ({"patience": -1}, "patience must be at least 1 or None, not -1"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, change: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TrainConfig(**{"epochs": 1, "lr": 0.1, **change})

    def test_an_unknown_field_is_refused(self) -> None:
        with pytest.raises(TypeError, match="learning_rate"):
            TrainConfig(epochs=1, learning_rate=0.1)

    def test_lists_become_tuples(self) -> None:
        config = TrainConfig(1, 0.1, schedule="multistep", milestones=[1], augment=["flip"])
        assert (config.milestones, config.augment) == ((1,), ("flip",))
        assert hash(config)

    def test_what_is_augmented_has_another_identity_than_it_had(self) -> None:
        """Fails if rows that were trained on other draws are taken for these, or all rows are stale."""
        assert "version" not in describe(TrainConfig(1, 0.1))
        assert describe(TrainConfig(1, 0.1, augment=("flip",)))["version"] == 2

    @pytest.mark.parametrize(
        ("optimizer", "cls"),
        [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
    )
    def test_the_optimizer_gets_its_settings(self, optimizer: str, cls: type) -> None:
        config = TrainConfig(1, 0.3, optimizer=optimizer, weight_decay=0.2)
        made = config.make_optimizer(linear().parameters())
        assert type(made) is cls
        assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.3, 0.2)


class TestFactor:
    def test_constant(self) -> None:
        assert TrainConfig(5, 1.0).factor(3.7) == 1

    @pytest.mark.parametrize(
        ("epoch", "expected"), [(0, 1), (1.99, 1), (2, 0.2), (3.5, 0.2), (4, 0.04), (9, 0.04)]
    )
    def test_multistep(self, epoch: float, expected: float) -> None:
        config = TrainConfig(6, 1.0, schedule="multistep", milestones=(2, 4), gamma=0.2)
        assert config.factor(epoch) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("epoch", "expected"), [(0, 1), (1, (2 + math.sqrt(2)) / 4), (2, 0.5), (4, 0), (5, 0)]
    )
    def test_cosine(self, epoch: float, expected: float) -> None:
        assert TrainConfig(4, 1.0, schedule="cosine").factor(epoch) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("epoch", "expected"), [(0, 0), (0.5, 0.25), (1.5, 0.75), (2, 1), (4, 0.5), (6, 0)]
    )
    def test_warmup_and_then_a_cosine_over_the_rest(self, epoch: float, expected: float) -> None:
        config = TrainConfig(6, 1.0, schedule="cosine", warmup_epochs=2)
        assert config.factor(epoch) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("epoch", "expected"), [(0, 0), (0.5, 0.5), (1, 1), (2, 0.75), (5, 0), (6, 0)]
    )
    def test_warmup_and_then_a_line_to_zero(self, epoch: float, expected: float) -> None:
        config = TrainConfig(5, 1.0, schedule="linear", warmup_epochs=1)
        assert config.factor(epoch) == pytest.approx(expected)

    def test_the_loop_applies_it_at_every_step(self) -> None:
        """Fails if the rate is set once an epoch, or lags a step behind."""
        config = TrainConfig(3, 0.1, schedule="multistep", milestones=(2,), warmup_epochs=1)
        model, seen = linear(1), [0.5]
        train(
            model,
            forever(problem(2, 1, 1)),
            slope_one,
            config,
            after_step=lambda m, _: seen.append(m.weight.item()),
        )
        steps = [a - b for a, b in itertools.pairwise(seen)]
        assert steps == pytest.approx([0, 0.05, 0.1, 0.1, 0.01, 0.01])


class TestSteps:
    def test_sgd_with_momentum_and_weight_decay_by_hand(self) -> None:
        """Fails if decay is left out of the momentum buffer, or gradients are not zeroed."""
        lr, mu, decay, batches = 0.1, 0.9, 0.01, problem(8, 2)
        w, v = torch.full((3,), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for x, y in batches * 3:
            gradient = 2 * x.T @ (x @ w - y[:, 0]) / len(y) + decay * w
            v = mu * v + gradient
            w = w - lr * v
        config = TrainConfig(3, lr, momentum=mu, weight_decay=decay)
        trained = train(linear(), forever(batches), squared_error, config)
        torch.testing.assert_close(trained.weight[0], w)

    @pytest.mark.parametrize("optimizer", ["adam", "adamw"])
    def test_the_first_adam_step_has_the_length_of_the_rate(self, optimizer: str) -> None:
        config = TrainConfig(1, 0.01, optimizer=optimizer)
        trained = train(linear(), forever(problem(2, 2)), slope_one, config)
        assert trained.weight.flatten().tolist() == pytest.approx([0.49] * 3)

    def test_accumulating_two_batches_is_one_double_batch(self) -> None:
        """Fails if accumulated gradients are summed where the double batch has their mean."""
        halves = train(
            linear(),
            forever(problem(8, 2)),
            squared_error,
            TrainConfig(2, 0.1, momentum=0.9, accumulate=2),
        )
        whole = train(
            linear(), forever(problem(8, 4)), squared_error, TrainConfig(2, 0.1, momentum=0.9)
        )
        torch.testing.assert_close(halves.weight, whole.weight)

    def test_accumulation_counts_optimizer_steps(self) -> None:
        counts = []
        train(
            linear(),
            forever(problem(6, 1)),
            squared_error,
            TrainConfig(2, 0.1, accumulate=3),
            after_step=lambda _, step: counts.append(step),
        )
        assert counts == [1, 2, 3, 4]

    def test_fewer_batches_than_one_step_takes_is_an_error(self) -> None:
        with pytest.raises(TrainingError):
            train(
                linear(),
                forever(problem(2, 1)),
                squared_error,
                TrainConfig(1, 0.1, accumulate=3),
            )

    def test_clipping_bounds_the_gradient_norm(self) -> None:
        clipped = train(linear(), forever(problem(1, 1)), slope_one, TrainConfig(1, 1.0, clip=0.3))
        moved = 0.5 - clipped.weight.detach()
        assert moved.norm().item() == pytest.approx(0.3, rel=1e-5)
        assert moved.std().item() == pytest.approx(0)

    def test_a_small_gradient_is_not_clipped(self) -> None:
        plain = train(linear(), forever(problem(1, 1)), slope_one, TrainConfig(1, 1.0, clip=2.0))
        assert plain.weight.tolist() == [[-0.5] * 3]

    def test_the_clipped_gradient_is_the_accumulated_one(self) -> None:
        """Fails if what has come in is clipped before the rest: 1 - 1.5 is not 2 - 1.5."""
        batches = [torch.full((1, 1), slope, dtype=torch.float64) for slope in (4.0, -3.0)]
        config = TrainConfig(1, 1.0, clip=1.0, accumulate=2)
        model = train(linear(1), forever(batches), lambda m, x: m(x).sum(), config)
        assert model.weight.item() == pytest.approx(0.5 - 0.5)

    @pytest.mark.parametrize("max_steps", [1, 3, 4, 100])
    def test_max_steps(self, max_steps: int) -> None:
        counts = []
        config = TrainConfig(2, 0.1, max_steps=max_steps)
        train(
            linear(),
            forever(problem(3, 1)),
            squared_error,
            config,
            after_step=lambda _, step: counts.append(step),
        )
        assert counts == list(range(1, min(max_steps, 6) + 1))

    def test_frozen_parameters_stay(self) -> None:
        model = nn.Sequential(linear(3), nn.Linear(1, 1).double())
        model[0].weight.requires_grad_(False)
        before = model[1].weight.clone()
        train(model, forever(problem(4, 2)), squared_error, TrainConfig(1, 0.1, weight_decay=0.1))
        assert model[0].weight.tolist() == [[0.5] * 3]
        assert not torch.equal(model[1].weight, before)

    def test_precision_holds_for_its_own_run_only(self) -> None:
        """Fails if the accelerator's shared state carries the first precision to later runs."""
        seen = []

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            seen.append(model(batch[0]).dtype)
            return squared_error(model, batch)

        for precision in ("no", "bf16", "no"):
            batches = [tuple(t.float() for t in batch) for batch in problem(1, 1)]
            config = TrainConfig(1, 0.1, precision=precision)
            train(linear().float(), forever(batches), loss, config)
        assert seen == [torch.float32, torch.bfloat16, torch.float32]


class TestErrors:
    def test_a_loss_that_is_not_finite_names_the_run_and_the_step(self) -> None:
        """Fails if NaN is trained through: every weight would be NaN and no one told."""
        batches = problem(3, 1)
        batches[1][1].fill_(math.nan)
        model = linear()
        first_step = train(linear(), forever(batches[:1]), squared_error, TrainConfig(1, 0.1))
        with pytest.raises(TrainingError, match="my run: the loss is nan at step 2"):
            train(model, forever(batches), squared_error, TrainConfig(1, 0.1), name="my run")
        assert same(model, first_step)
        assert model.weight.grad is None
        assert not model.training

    def test_a_half_accumulated_gradient_is_not_left_behind(self) -> None:
        batches = problem(2, 1)
        batches[1][1].fill_(math.nan)
        model = linear()
        with pytest.raises(TrainingError):
            train(model, forever(batches), squared_error, TrainConfig(1, 0.1, accumulate=2))
        assert model.weight.grad is None

    def test_infinity_counts_too(self) -> None:
        with pytest.raises(TrainingError, match="the loss is inf at step 1"):
            train(
                linear(),
                forever(problem(1, 1)),
                lambda m, b: squared_error(m, b) * math.inf,
                TrainConfig(1, 0.1),
            )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_weights_that_are_not_finite_after_the_last_step(self, dtype: torch.dtype) -> None:
        """A finite loss whose gradient is NaN; or, rounded to half precision, infinite weights."""

        def loss(model: nn.Module, batch: object) -> Tensor:
            w = model.weight.float()
            return (w.min() - w.min()).sqrt() if dtype == torch.float32 else w.sum()

        model = nn.Linear(2, 1, bias=False, dtype=dtype)
        with pytest.raises(
            NotFiniteError, match=r"someone: the trained model is not finite: weight"
        ):
            train(model, lambda _: [()], loss, TrainConfig(1, 1e6), name="someone")

    def test_an_empty_epoch(self) -> None:
        with pytest.raises(TrainingError, match="my run: an epoch has no batch"):
            train(linear(), forever([]), squared_error, TrainConfig(1, 0.1), name="my run")


class TestEnvironment:
    @pytest.mark.parametrize(
        "variable",
        [
            ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
            ("ACCELERATE_MIXED_PRECISION", "bf16"),
            ("ACCELERATE_USE_FSDP", "true"),
            ("ACCELERATE_USE_DEEPSPEED", "true"),
            ("ACCELERATE_USE_MEGATRON_LM", "true"),
            ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
            ("ACCELERATE_TORCH_DEVICE", "meta"),
            ("LOCAL_RANK", "0"),
        ],
    )
    def test_no_variable_changes_a_training(
        self, variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where accelerate lets one win over what the configuration says."""
        from accelerate.state import PartialState

        data, config = problem(16, 2), TrainConfig(1, 0.1, momentum=0.9)
        expected = train(linear(), forever(data), squared_error, config)
        PartialState._reset_state()  # as in a process that has trained nothing yet
        monkeypatch.setenv(*variable)
        steps = []
        found = train(
            linear(), forever(data), squared_error, config, after_step=lambda _, i: steps.append(i)
        )
        assert steps == [*range(1, 9)]
        assert same(found, expected)
        assert os.environ[variable[0]] == variable[1]


class TestLeavesNoTrace:
    def test_the_model_is_in_evaluation_mode_without_gradients(self) -> None:
        model = linear()
        trained = train(model, forever(problem(2, 1)), squared_error, TrainConfig(1, 0.1))
        assert trained is model
        assert not model.training
        assert model.weight.grad is None

    def test_the_model_trains_in_training_mode(self) -> None:
        modes = []

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            modes.append(model.training)
            return squared_error(model, batch)

        train(linear().eval(), forever(problem(2, 1)), loss, TrainConfig(1, 0.1))
        assert modes == [True, True]

    def test_the_global_random_state_is_untouched(
        self, recipe: Recipe, tiny_data: ImageData
    ) -> None:
        before = torch.get_rng_state()
        recipe.fit(tiny_data.train, 0)
        assert torch.equal(torch.get_rng_state(), before)


class Dropping(nn.Module):
    """Draws (dropout) and keeps statistics (BatchNorm), as a resumed run must too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TestSeeds:
    def fit(self, split: ForgetSplit, seed: int, batch_seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Dropping()
        config = TrainConfig(1, 0.1, batch_size=16)
        epochs = shuffled_epochs(split.retain, config, batch_seed)
        return train(model, epochs, split.task.loss, config, seed=seed)

    def test_the_same_seed_gives_the_same_weights(self, tiny_split: ForgetSplit) -> None:
        first = self.fit(tiny_split, 0)
        torch.rand(1)
        assert same(first, self.fit(tiny_split, 0))

    def test_the_seed_is_what_the_model_draws_from(self, tiny_split: ForgetSplit) -> None:
        assert not same(self.fit(tiny_split, 0), self.fit(tiny_split, 1))

    def test_every_epoch_draws_anew(self) -> None:
        drawn = []

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            drawn.append(torch.rand(1).item())
            return squared_error(model, batch)

        train(linear(), forever(problem(2, 1)), loss, TrainConfig(3, 0.1))
        assert len(set(drawn)) == 6

    def test_the_batches_have_their_own(self, tiny_split: ForgetSplit) -> None:
        assert not same(self.fit(tiny_split, 0), self.fit(tiny_split, 0, batch_seed=1))


class TestCheckpoint:
    config = TrainConfig(
        3, 0.1, momentum=0.9, batch_size=16, schedule="cosine", augment=("crop", "flip")
    )

    def run(
        self,
        split: ForgetSplit,
        init: int,
        checkpoint: Checkpoint | None = None,
        after_step: Callable[[nn.Module, int], None] | None = None,
        config: TrainConfig | None = None,
    ) -> nn.Module:
        config = config or self.config
        with torch.random.fork_rng():
            torch.manual_seed(init)
            model = Dropping()
        return train(
            model,
            shuffled_epochs(split.retain, config, 0),
            split.task.loss,
            config,
            seed=0,
            checkpoint=checkpoint,
            after_step=after_step,
        )

    def interrupted(
        self, split: ForgetSplit, folder: Path, at: int, config: TrainConfig | None = None
    ) -> Checkpoint:
        """The checkpoint of a training that was killed at step ``at``."""

        def kill(_: nn.Module, step: int) -> None:
            if step == at:
                raise Stop

        checkpoint = Checkpoint(folder / "run.pt")
        with pytest.raises(Stop):
            self.run(split, 0, checkpoint, kill, config)
        assert checkpoint.file.exists()
        return checkpoint

    def resumed(
        self, split: ForgetSplit, folder: Path, at: int, config: TrainConfig | None = None
    ) -> tuple[nn.Module, list[int]]:
        """Killed at step ``at``, then run again from another initialisation."""
        checkpoint = self.interrupted(split, folder, at, config)
        steps = []
        model = self.run(split, 1, checkpoint, lambda _, step: steps.append(step), config)
        return model, steps

    def test_a_resumed_run_is_bit_identical(self, tiny_split: ForgetSplit, tmp_path: Path) -> None:
        """Fails if the optimizer's momentum, the step, the order or the draws are not resumed."""
        model, steps = self.resumed(tiny_split, tmp_path, at=6)
        assert steps == list(range(6, 16))
        assert same(model, self.run(tiny_split, 0))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "config",
        [
            # An accumulation across the epochs: an epoch here has 5 batches, a step 2.
            TrainConfig(4, 0.1, batch_size=16, accumulate=2),
            TrainConfig(3, 0.01, batch_size=16, optimizer="adamw", precision="bf16"),
        ],
        ids=["accumulation", "adamw and bf16"],
    )
    def test_with_other_things_to_keep_too(
        self, tiny_split: ForgetSplit, tmp_path: Path, config: TrainConfig
    ) -> None:
        """Fails if a half-accumulated step is lost, or Adam's moments or its count."""
        model, _ = self.resumed(tiny_split, tmp_path, at=6, config=config)
        assert same(model, self.run(tiny_split, 0, config=config))

    def test_a_loss_scaler_goes_on_where_it_was(
        self, tiny_split: ForgetSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails if it starts again: its scale doubles every four steps, of which there are 15.

        On a CPU accelerate has no scaler for float16, so it is given one.
        """
        made, init = [], Accelerator.__init__

        def with_scaler(self: Accelerator, *args: Any, **options: Any) -> None:
            init(self, *args, **options)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=4)
            made.append(self.scaler)

        monkeypatch.setattr(Accelerator, "__init__", with_scaler)
        model, _ = self.resumed(tiny_split, tmp_path, at=6)
        assert same(model, self.run(tiny_split, 0))
        _, resumed, whole = made
        assert resumed.get_scale() == whole.get_scale() == 8

    def test_what_lay_behind_it_is_known(self, tiny_split: ForgetSplit, tmp_path: Path) -> None:
        """Fails if the cost of a resumed training is that of its last part."""
        checkpoint = self.interrupted(tiny_split, tmp_path, at=12)
        spent = checkpoint.load()["seconds"]
        self.run(tiny_split, 0, again := Checkpoint(checkpoint.file))
        assert (again.seconds, again.step) == (spent, 10)
        self.run(tiny_split, 0, again := Checkpoint(checkpoint.file))
        assert (again.seconds, again.step) == (0.0, 0)

    def test_a_checkpoint_changes_nothing(self, tiny_split: ForgetSplit, tmp_path: Path) -> None:
        checkpoint = Checkpoint(tmp_path / "run.pt")
        assert same(self.run(tiny_split, 0, checkpoint), self.run(tiny_split, 0))
        assert list(tmp_path.iterdir()) == []

    def test_a_kill_while_writing_leaves_the_former_one(
        self, tiny_split: ForgetSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails if the file is written in place: half a checkpoint can't be resumed from."""
        checkpoint, save = Checkpoint(tmp_path / "run.pt"), torch.save

        def killed_after_epoch_2(state: dict, handle: BinaryIO) -> None:
            if state["epoch"] == 2:
                handle.write(b"half")
                raise Stop
            save(state, handle)

        monkeypatch.setattr(torch, "save", killed_after_epoch_2)
        with pytest.raises(Stop):
            self.run(tiny_split, 0, checkpoint)
        assert checkpoint.load()["epoch"] == 1

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda s: s.pop("model"), "it lacks what a training needs"),
            (lambda s: s.pop("gradients"), "it lacks what a training needs"),
            (lambda s: s.update(epoch=99), "after epoch 99 of 3"),
            (lambda s: s.update(epoch=0), "after epoch 0 of 3"),
            (lambda s: s.update(epoch="2"), "after epoch 2 of 3"),
            (lambda s: s["model"].popitem(), "a model of another shape"),
            (lambda s: s["model"].update(more=torch.zeros(1)), "a model of another shape"),
            (lambda s: s["optimizer"]["param_groups"][0]["params"].pop(), "other weights"),
            (lambda s: next(iter(s["model"].values())).fill_(math.nan), "not finite"),
            (
                lambda s: s["optimizer"]["state"][0]["momentum_buffer"].fill_(math.inf),
                "not finite",
            ),
        ],
    )
    def test_what_it_can_not_go_on_from_is_said_and_it_starts_again(
        self,
        tiny_split: ForgetSplit,
        tmp_path: Path,
        change: Callable[[dict[str, Any]], object],
        why: str,
    ) -> None:
        """Fails where an epoch out of range ends the training there and then, or where what is
        not finite, or not there, ends this run and every later one."""
        checkpoint = self.interrupted(tiny_split, tmp_path, at=11)
        state = checkpoint.load()
        change(state)
        checkpoint.save(state)
        steps = []
        with pytest.warns(
            CheckpointWarning, match=rf"run\.pt is of no use \(.*{why}.*starts again"
        ):
            model = self.run(tiny_split, 0, checkpoint, lambda _, step: steps.append(step))
        assert steps == list(range(1, 16))
        assert same(model, self.run(tiny_split, 0))
        assert list(tmp_path.iterdir()) == []


class TestEarlyStopping:
    """On `slope_one` the weight falls by 0.2 in an epoch, so it tells the epoch that was kept."""

    #: Scores of the epochs, patience, epochs that must run, and the one that must be kept. The
    #: last score of each list is the highest: whoever goes on takes it.
    CASES = (
        ([2, 1, 9], 1, 2, 1),
        ([3, 2, 1, 9], 2, 3, 1),
        ([1, 2, 1, 1, 9], 2, 4, 2),
        # An epoch that is as good as the best is the best, and the count begins again.
        ([1, 2, 1, 2, 1, 1, 9], 2, 6, 4),
        ([2, 2, 2, 1, 9], 1, 4, 3),
        # So it does after a better one.
        ([1, 5, 2, 6, 3, 3, 9], 2, 6, 4),
        # A rise after the fall does not count unless it reaches the best.
        ([5, 1, 2, 3, 9], 3, 4, 1),
        ([-3, -1, -2, 9], 1, 3, 2),
    )

    def run(
        self,
        scores: list[float],
        patience: int,
        epochs: int = 10,
        checkpoint: Checkpoint | None = None,
        start: float = 0.5,
    ) -> tuple[int, float]:
        """How many epochs ran, and the epoch whose weight was kept."""
        modes, validated = set(), []

        def epoch_of(model: nn.Module) -> float:
            return (0.5 - model.weight.item()) / 0.2

        def validate(model: nn.Module) -> float:
            assert not model.training
            validated.append(round(epoch_of(model)))
            return scores[validated[-1] - 1]

        def loss(model: nn.Module, batch: object) -> Tensor:
            modes.add(model.training)
            return slope_one(model, batch)

        model = linear(1)
        nn.init.constant_(model.weight, start)
        config = TrainConfig(epochs, 0.1, patience=patience)
        batches = forever(problem(2, 1, 1))
        train(model, batches, loss, config, validate=validate, checkpoint=checkpoint)
        assert modes <= {True}, "an epoch after a validation was trained in evaluation mode"
        assert not model.training
        return len(validated), pytest.approx(epoch_of(model), abs=1e-9)

    @pytest.mark.parametrize(("scores", "patience", "ran", "kept"), CASES)
    def test_it_stops_after_exactly_that_many_epochs_below_the_best(
        self, scores: list[float], patience: int, ran: int, kept: int
    ) -> None:
        """Fails if it stops an epoch early or late, counts a tie as worse, or keeps the last
        weights, or the first of equals."""
        assert self.run(scores, patience) == (ran, kept)

    @pytest.mark.parametrize(("scores", "kept"), [([1, 2, 3], 3), ([1, 3, 2], 2), ([3, 2, 1], 1)])
    def test_the_best_is_kept_where_the_epochs_end_first(
        self, scores: list[float], kept: int
    ) -> None:
        assert self.run(scores, 5, epochs=3) == (3, kept)

    def test_statistics_of_the_best_epoch_are_kept_with_its_weights(
        self, tiny_split: ForgetSplit
    ) -> None:
        """Fails if only parameters are kept: BatchNorm's statistics would be of a later epoch."""

        def fit(epochs: int, **options: object) -> nn.Module:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = Dropping()
            config = TrainConfig(epochs, 0.1, batch_size=16, patience=2 if options else None)
            epochs_of = shuffled_epochs(tiny_split.retain, config, 0)
            return train(model, epochs_of, tiny_split.task.loss, config, **options)

        scores = iter([1, 3, 2, 2, 9])
        assert same(fit(9, validate=lambda _: next(scores)), fit(2))
        assert list(scores) == [9]

    @pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
    def test_a_resumed_run_stops_where_the_whole_one_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
    ) -> None:
        """Fails if a kill makes it forget the best weights, their score, or how many epochs have
        been below them; at 6, the stop itself."""
        scores, checkpoint = [1, 2, 1, 2, 1, 1, 9], Checkpoint(tmp_path / "run.pt")
        save = Checkpoint.save

        def killed(checkpoint: Checkpoint, state: dict[str, Any]) -> None:
            save(checkpoint, state)
            if state["epoch"] == at:
                raise Stop

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", killed)
            with pytest.raises(Stop):
                self.run(scores, 2, checkpoint=checkpoint)
        assert self.run(scores, 2, checkpoint=checkpoint, start=77.0) == (6 - at, 4)
        assert not checkpoint.file.exists()

    @pytest.mark.parametrize(
        ("patience", "validate"), [(2, None), (None, lambda _: 1.0)], ids=["alone", "without"]
    )
    def test_patience_and_validation_belong_together(
        self, patience: int | None, validate: Callable[[nn.Module], float] | None
    ) -> None:
        """Fails if a patience without scores is ignored: all epochs would run, and no one told."""
        config = TrainConfig(1, 0.1, patience=patience)
        with pytest.raises(ValueError, match="my run: early stopping needs both patience and"):
            train(
                linear(),
                forever(problem(2, 1)),
                squared_error,
                config,
                name="my run",
                validate=validate,
            )


class TestShuffledEpochs:
    def test_every_epoch_is_complete_in_an_order_of_its_own(self) -> None:
        data = TensorDataset(torch.arange(20))
        epochs = shuffled_epochs(data, TrainConfig(2, 0.1, batch_size=6), 0)
        orders = [torch.cat([x for (x,) in epochs(e)]).tolist() for e in (0, 1, 0)]
        assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
        assert orders[0] == orders[2] != orders[1]
        assert [len(x) for (x,) in epochs(0)] == [6, 6, 6, 2]

    def test_the_seed_decides(self) -> None:
        data = TensorDataset(torch.arange(20))
        config = TrainConfig(1, 0.1, batch_size=20)
        a, b = (next(iter(shuffled_epochs(data, config, s)(0)))[0].tolist() for s in (0, 1))
        assert a != b

    def test_augmentation_is_the_configuration_s(self, tiny_data: ImageData) -> None:
        plain, drawn = (
            next(iter(shuffled_epochs(tiny_data.train, TrainConfig(1, 0.1, augment=names), 0)(0)))
            for names in ((), ("flip",))
        )
        assert torch.equal(plain[1], drawn[1])
        assert not torch.equal(plain[0], drawn[0])
        assert tiny_data.train.augment == ()

    @pytest.mark.parametrize("parts", [("x",), ("x", "y")])
    def test_workers_and_cores_leave_a_training_alone(
        self, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...]
    ) -> None:
        """Fails if each worker draws a stream of its own: another machine would train another model."""
        data = Beside(**{name: tiny_data.train for name in parts})
        found = []
        for workers, cores in ((0, 1), (1, 1), (8, 1), (8, 2), (2, 8)):
            monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
            config = TrainConfig(
                2, 0.1, batch_size=16, augment=("crop", "flip", "rotate"), workers=workers
            )
            with seeded(0):
                model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10), nn.Dropout(0.2))

            def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
                return sum(nn.functional.cross_entropy(model(x), y) for x, y in batch.values())

            train(model, shuffled_epochs(data, config, 0), loss, config)
            found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert all(torch.equal(found[0], other) for other in found[1:])

    def test_epochs_seeds_and_parts_are_augmented_apart(self, tiny_data: ImageData) -> None:
        """Fails if an image is turned alike in every epoch, or alike in both parts of a batch."""
        config = TrainConfig(2, 0.1, batch_size=80, augment=("crop",))
        numbered = tiny_data.train.with_labels(torch.arange(80))
        both = Beside(one=numbered, other=numbered)

        def images(seed: int, epoch: int, part: str = "one") -> Tensor:
            """In the order of their numbers."""
            (batch,) = shuffled_epochs(both, config, seed)(epoch)
            x, y = batch[part]
            return x[y.argsort()]

        assert torch.equal(images(0, 0), images(0, 0))
        others = (images(0, 0, "other"), images(0, 1), images(1, 0))
        for other in others:
            alike = (images(0, 0) == other).flatten(1).all(dim=1)
            assert alike.float().mean() < 0.2


class TestRecipe:
    def test_fit_trains_a_model_built_from_the_seed(
        self, recipe: Recipe, tiny_split: ForgetSplit
    ) -> None:
        a, b, c = (
            recipe.fit(tiny_split.retain, seed, device=torch.device("cpu")) for seed in (0, 0, 1)
        )
        assert same(a, b)
        assert not same(a, c)
        assert not same(a, recipe.build(0))

    def test_the_order_of_the_batches_has_a_seed_of_its_own(
        self, recipe: Recipe, tiny_split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails if every model sees the same order, or the order shares the initialiser's stream."""
        seeds = []

        def spy(data: object, config: TrainConfig, seed: int) -> object:
            seeds.append(seed)
            return shuffled_epochs(data, config, seed)

        monkeypatch.setattr("unlearn_core.models.training.shuffled_epochs", spy)
        for seed in (0, 1):
            recipe.fit(tiny_split.forget, seed)
        assert len({0, 1, *seeds}) == 4

    def test_fit_learns(self, recipe: Recipe, tiny_data: ImageData) -> None:
        batch = tiny_data.train.batch_of(range(len(tiny_data.train)))
        before, after = (
            recipe.task.loss(model.train(), batch).item()
            for model in (
                recipe.build(0),
                recipe.fit(tiny_data.train, 0, device=torch.device("cpu")),
            )
        )
        assert after < 0.95 * before

    def test_fit_keeps_the_epoch_that_is_best_on_the_validation_data(
        self, recipe: Recipe, tiny_data: ImageData
    ) -> None:
        """Fails if it goes by the loss, by the training data, or by outputs in training mode. What
        each epoch ends with is known from trainings that end there."""

        def fit(epochs: int, patience: int | None = None, **data: ImageSet) -> nn.Module:
            config = replace(recipe.train, epochs=epochs, lr=0.2, patience=patience)
            made = replace(recipe, train=config)
            return made.fit(tiny_data.train, 4, device=torch.device("cpu"), **data)

        def right(model: nn.Module) -> int:
            out = predict(model, tiny_data.test)
            return int((out.logits.argmax(dim=1) == out.labels).sum())

        ends = [fit(epochs) for epochs in range(1, 7)]
        scores = [right(model) for model in ends]
        best = max(range(6), key=lambda i: (scores[i], i))
        assert 0 < best < 5, scores
        assert same(fit(6, patience=9, validation=tiny_data.test), ends[best])
        first_fall = next(i for i in range(1, 6) if scores[i] < max(scores[:i]))
        before = max(range(first_fall), key=lambda i: (scores[i], i))
        assert same(fit(6, patience=1, validation=tiny_data.test), ends[before])
        # Without patience there is nothing to validate for.
        assert same(fit(2, validation=tiny_data.test), ends[1])

    def test_early_stopping_without_validation_data_is_refused(
        self, recipe: Recipe, tiny_data: ImageData
    ) -> None:
        early = replace(recipe, train=replace(recipe.train, patience=1))
        with pytest.raises(TrainingError, match="my model: early stopping needs validation data"):
            early.fit(tiny_data.train, 0, name="my model")

    def test_the_recipe_is_plain_data(self, recipe: Recipe) -> None:
        assert copy.deepcopy(recipe) == recipe
        assert hash(copy.deepcopy(recipe)) == hash(recipe)


def test_to_moves_every_tensor_of_a_nested_batch() -> None:
    x = torch.ones(1)
    moved = to({"a": (x, [x]), "b": x}, torch.device("meta"))
    assert moved["b"].device == moved["a"][0].device == moved["a"][1][0].device
    assert moved["b"].device.type == "meta"
    assert isinstance(moved["a"], tuple)
    assert isinstance(moved["a"][1], list)
