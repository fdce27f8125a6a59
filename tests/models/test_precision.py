"""What is trained is float32, whatever the model computes in."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from unlearn_core.data import (
    Answering,
    Classification,
    Denoising,
    VisualAnswering,
    VisualSet,
    fictional_authors,
)
from unlearn_core.models import (
    Checkpoint,
    ClassToImage,
    NotFiniteError,
    PrecisionWarning,
    SmallCNN,
    TinyLlama,
    TinyLlava,
    TrainConfig,
    shuffled_epochs,
    single_precision,
    tell_what_rounds_away,
    train,
)

HALF = torch.bfloat16


def slope_one(model: nn.Module, batch: object) -> Tensor:
    """A loss whose gradient is 1 in every weight."""
    return sum(p.sum() for p in model.parameters())


def ones(dtype: torch.dtype = HALF) -> nn.Linear:
    """Weights of 1, below which the next number of bfloat16 is 1 - 1/256."""
    model = nn.Linear(3, 2, bias=False, dtype=dtype)
    nn.init.ones_(model.weight)
    return model


def many(epoch: int) -> list[tuple[()]]:
    return [()] * 100


class TestSteps:
    @pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_small_ones_add_up(self, optimizer: str, dtype: torch.dtype) -> None:
        """A hundred of 1e-4, each a small part of a spacing, are 0.01; fails where they are nothing."""
        model = train(ones(dtype), many, slope_one, TrainConfig(1, 1e-4, optimizer=optimizer))
        expected = torch.tensor(0.99).to(dtype)
        assert model.weight.dtype == dtype
        assert (model.weight == expected).all()

    def test_a_model_computes_as_it_came_and_is_kept_in_float32(self) -> None:
        model = nn.Sequential(ones(), ones().requires_grad_(False))
        inside, after, moments = set(), set(), set()

        def loss(model: nn.Module, batch: object) -> Tensor:
            inside.update(p.dtype for p in model.parameters())
            return slope_one(model, batch)

        hook = register_optimizer_step_post_hook(
            lambda o, *_: moments.update(v.dtype for s in o.state.values() for v in s.values())
        )
        train(
            model,
            many,
            loss,
            TrainConfig(1, 1e-4, optimizer="adamw"),
            after_step=lambda m, _: after.update((n, p.dtype) for n, p in m.named_parameters()),
        )
        hook.remove()
        assert (inside, moments) == ({HALF}, {torch.float32})
        assert after == {("0.weight", torch.float32), ("1.weight", HALF)}
        assert {p.dtype for p in model.parameters()} == {HALF}
        assert (model[1].weight == 1).all()

    def test_sums_of_gradients_do_not_round_away(self) -> None:
        """256 + 1 is 256 in bfloat16; fails where gradients of half precision are added up."""
        model = ones()

        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            return batch * model.weight.sum()

        batches = torch.tensor([256.0, *[1.0] * 8]).to(HALF)
        train(model, lambda _: batches, loss, TrainConfig(1, 2**-9, accumulate=9))
        # The mean of nine gradients is 264 / 9, and a step of it ends at 1 - 264 / 9 / 512.
        assert (model.weight == torch.tensor(1 - 264 / 9 / 512).to(HALF)).all()

    def test_early_stopping_judges_the_model_as_it_came(self) -> None:
        seen = []

        def validate(model: nn.Module) -> float:
            seen.append(model.weight.dtype)
            return model(torch.ones(1, 3, dtype=HALF)).sum().item()

        config = TrainConfig(2, 1e-4, patience=1)
        model = train(ones(), many, slope_one, config, validate=validate)
        assert seen == [HALF, HALF]
        assert (model.weight == torch.tensor(0.99).to(HALF)).all()  # the first epoch's

    def test_a_resumed_run_is_bit_identical(self, tmp_path: Path) -> None:
        config = TrainConfig(2, 1e-4, optimizer="adamw")
        whole = train(ones(), many, slope_one, config)
        checkpoint = Checkpoint(tmp_path / "c")

        def stop(epoch: int) -> list[tuple[()]]:
            if epoch:
                raise KeyboardInterrupt
            return many(epoch)

        with pytest.raises(KeyboardInterrupt):
            train(ones(), stop, slope_one, config, checkpoint=checkpoint)
        resumed = train(ones(), many, slope_one, config, checkpoint=checkpoint)
        assert torch.equal(whole.weight, resumed.weight)

    def test_an_error_leaves_the_model_as_it_came(self) -> None:
        model = ones()
        with pytest.raises(NotFiniteError):
            train(model, many, lambda m, b: m.weight.sum() / 0, TrainConfig(1, 1e-4))
        assert model.weight.dtype == HALF
        assert model.weight.grad is None

    def test_several_trainings_round_once(self) -> None:
        """Ten steps of 1e-4 are less than half a spacing, and ten times ten are not."""
        model = ones()
        with single_precision(model.parameters()):
            for _ in range(10):
                train(model, lambda _: [()] * 10, slope_one, TrainConfig(1, 1e-4))
                assert model.weight.dtype == torch.float32
        assert (model.weight == torch.tensor(0.99).to(HALF)).all()

    @pytest.mark.parametrize("steps", [10, 100])
    def test_what_rounds_back_is_told(self, steps: int) -> None:
        """Of 0.001 nothing is left, as the next number below 1 is 1 - 1/256; of 0.01, 3/256 is."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = TrainConfig(1, 1e-4, max_steps=steps)
            model = train(ones(), many, slope_one, config, name="someone")
            train(ones(torch.float32), many, slope_one, config)
        said = [str(w.message) for w in caught if w.category is PrecisionWarning]
        left = (model.weight == 1 - 3 / 256).all()
        assert left == (steps == 100)
        if left:
            assert said == []
        else:
            (one,) = said
            assert one.startswith(
                "someone: 0% of the way that the weights were moved is left in bfl"
            )
            assert (model.weight == 1).all()

    def test_several_trainings_are_told_once(self) -> None:
        model = ones()

        def twice() -> None:
            with single_precision(model.parameters(), "both"):
                for _ in range(2):
                    train(model, lambda _: [()] * 5, slope_one, TrainConfig(1, 1e-4))

        with pytest.warns(PrecisionWarning, match="both: 0% of the way") as caught:
            twice()
        assert len(caught) == 1

    @pytest.mark.parametrize(("lost", "says"), [(7, None), (8, "47% of the way"), (16, "31%")])
    def test_the_share_is_of_the_way(self, lost: int, says: str | None) -> None:
        """Above 1 a spacing is 8/1024: a move of 8 is kept, of 3 none; 64 of 64 + 9 each are left."""
        before = torch.ones(1 + lost, dtype=HALF)
        exact = 1 + torch.tensor([8.0] + [3.0] * lost) / 1024
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tell_what_rounds_away("someone", [(before, exact, exact.to(HALF))])
        said = [str(w.message) for w in caught]
        assert len(said) == (says is not None)
        assert all(f"someone: {says}" in text and "left in bfloat16" in text for text in said)

    def test_single_precision_is_left_alone(self) -> None:
        model = ones(torch.float64)
        train(model, many, slope_one, TrainConfig(1, 1e-4))
        torch.testing.assert_close(model.weight, torch.full((2, 3), 0.99, dtype=torch.float64))

    def test_a_model_that_makes_it_impossible(self) -> None:
        """It holds its weights in a second place: one warning that names who trains, and its steps."""

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = ones()
                self.held = [self.layer.weight]

            def forward(self, x: Tensor) -> Tensor:
                return x @ self.held[0].T

        def loss(model: nn.Module, batch: object) -> Tensor:
            return model(torch.ones(1, 3, dtype=HALF)).sum()

        model = Twice()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(model, many, loss, TrainConfig(1, 2**-7), name="someone")
        (warning,) = (w for w in caught if w.category is PrecisionWarning)
        assert "someone: this model can't compute in bfloat16" in str(warning.message)
        assert model.layer.weight.dtype == HALF
        assert (model.layer.weight == 1 - 100 / 128).all()

    def test_an_error_of_the_model_s_own_stays_what_it_is(self) -> None:
        def loss(model: nn.Module, batch: object) -> Tensor:
            return model(torch.ones(1, 5)).sum()

        with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|same dtype"):
            train(ones(), many, loss, TrainConfig(1, 1e-4))


IMAGES = torch.randint(256, (8, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte()
COLOURS = TinyLlava(
    ("what", "red", "blue"),
    size=8,
    patch=4,
    vision_hidden=16,
    vision_layers=1,
    vision_heads=2,
    hidden=16,
    layers=1,
    heads=2,
)


def classifier() -> tuple[nn.Module, Any, Callable[[int], Any]]:
    class Cast(nn.Module):
        """Images come in single precision."""

        def __init__(self) -> None:
            super().__init__()
            self.model = SmallCNN(classes=4).build(0)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x.to(next(self.parameters()).dtype))

    batch = torch.rand(16, 1, 28, 28), torch.arange(16) % 4
    return Cast(), Classification(4), lambda _: [batch] * 8


def language() -> tuple[nn.Module, Any, Callable[[int], Any]]:
    chat = TinyLlama(hidden=16, layers=1, heads=2, vocabulary=400).build(0)
    data = chat.encoded(fictional_authors(3, 1, 1).train)
    return chat, Answering(), shuffled_epochs(data, TrainConfig(1, 1, 4), 0)


def seeing() -> tuple[nn.Module, Any, Callable[[int], Any]]:
    chat = COLOURS.build(0)
    data = VisualSet(IMAGES, torch.arange(8), ("what",) * 8, ("red", "blue") * 4)
    return chat, VisualAnswering(), shuffled_epochs(chat.encoded(data), TrainConfig(1, 1, 1), 0)


def drawing() -> tuple[nn.Module, Any, Callable[[int], Any]]:
    model = ClassToImage(classes=2, size=8, widths=(16, 16)).build(0)
    model.precision = "bf16"
    batch = torch.rand(4, 1, 8, 8) * 2 - 1, torch.tensor([0, 1, 0, 1])
    return model, Denoising(), lambda _: [batch] * 8


@pytest.mark.parametrize("modality", [classifier, language, seeing, drawing])
def test_a_training_in_bf16_computes_in_bf16(modality: Callable[[], Any]) -> None:
    """Fails where a model that asks for nothing switches off what its training asks for."""
    model, task, epochs = modality()
    if hasattr(model, "precision"):
        model.precision = "no"
    kinds = set()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: kinds.add(out.dtype))
    train(model, epochs, task.loss, TrainConfig(1, 1e-3, max_steps=1, precision="bf16"))
    assert kinds == {HALF}


@pytest.mark.parametrize("modality", [classifier, language, seeing, drawing])
def test_what_moves_is_what_moves_in_float32(modality: Callable[[], Any]) -> None:
    """Steps of a hundredth of a spacing: fails where what is trained is bfloat16."""
    model, task, epochs = modality()
    half = copy.deepcopy(model).to(HALF)
    config = TrainConfig(1, 1e-5, optimizer="adamw")
    steps = []
    for m in (half, copy.deepcopy(half).float()):
        before = [p.detach().float().clone() for p in m.parameters()]
        sums: list[Tensor] = []

        def look(trained: nn.Module, step: int, sums: list[Tensor] = sums) -> None:
            sums[:] = [p.detach().float().clone() for p in trained.parameters()]

        train(m, epochs, task.loss, config, after_step=look)
        steps.append(torch.cat([(a - b).flatten() for a, b in zip(sums, before, strict=True)]))
    rough, exact = steps
    assert (rough[exact.abs() > 1e-6] != 0).float().mean() > 0.99
    assert torch.cosine_similarity(rough, exact, dim=0) > 0.9
