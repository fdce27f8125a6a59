from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from recorded import cross_entropy, network, part
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from unlearn_core.data import (
    Classification,
    ForgetSplit,
    ImageData,
    batches,
    forget_class,
    forget_subclass,
    shapes,
)
from unlearn_core.methods import SSD
from unlearn_core.methods.ssd import Importances, dampen, importances, selected
from unlearn_core.models import Recipe, TrainingError

Golden = Callable[[str], dict[str, Tensor]]
CASES = ["mlp_class", "convbn_shuffled"]


def recorded_network(case: dict[str, Tensor]) -> nn.Module:
    return network(part(case, "theta0."), part(case, "buf.")).eval()


def loader(case: dict[str, Tensor], side: str, batch_size: int | None = None) -> object:
    data = TensorDataset(case[f"X_{side}"], case[f"y_{side}"])
    return batches(data, batch_size or int(case["hp.batch_size"]))


def recorded(case: dict[str, Tensor]) -> tuple[Importances, Importances]:
    return part(case, "imp_f."), part(case, "imp_D.")


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def single(values: list[float]) -> nn.Module:
    """A model that is one parameter, ``theta``."""
    model = nn.Module()
    model.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    return model


def one(values: list[float]) -> Importances:
    return {"theta": torch.tensor(values, dtype=torch.float64)}


class TestGoldens:
    @pytest.mark.parametrize("side", ["f", "D"])
    @pytest.mark.parametrize("name", CASES)
    def test_importances(self, golden: Golden, name: str, side: str) -> None:
        """Fails if the mean of squares replaces the square of the batch mean, if samples are
        averaged instead of batches, or if BatchNorm runs in training mode."""
        case = golden(f"ssd/{name}")
        model = recorded_network(case).train()
        found = importances(model, loader(case, side), cross_entropy)
        assert_close(found, part(case, f"imp_{side}."), rtol=1e-9, atol=1e-12)
        assert model.training

    @pytest.mark.parametrize(
        ("name", "row"),
        [("mlp_class", r) for r in range(6)] + [("convbn_shuffled", r) for r in range(4)],
    )
    def test_dampened_weights_of_every_row(self, golden: Golden, name: str, row: int) -> None:
        """Fails with >= for >, alpha or lambda on the wrong side, or no cap at 1 (row 4 of mlp)."""
        case = golden(f"ssd/{name}")
        model = recorded_network(case)
        alpha, lam = case["alpha_lambda"][row].tolist()
        found = (importances(model, loader(case, side), cross_entropy) for side in "fD")
        masks = dampen(model, *found, alpha, lam)
        assert sum(int(m.sum()) for m in masks.values()) == case["n_selected"][row]
        parameters = {n: p.detach() for n, p in model.named_parameters()}
        assert_close(parameters, part(case, f"theta1.{row}."), rtol=0, atol=1e-9)
        for key, buffer in part(case, "buf.").items():
            assert torch.equal(model.state_dict()[key], buffer)

    @pytest.mark.parametrize("name", CASES)
    def test_unselected_weights_are_bit_equal(self, golden: Golden, name: str) -> None:
        """Fails if every weight is multiplied, by a 1 that may be rounded."""
        case = golden(f"ssd/{name}")
        model = recorded_network(case)
        masks = dampen(model, *recorded(case), 1.0, 1.0)
        for key, theta in model.named_parameters():
            before = case[f"theta0.{key}"]
            assert torch.equal(theta[~masks[key]], before[~masks[key]])
            assert (theta[masks[key]] != before[masks[key]]).any() == masks[key].any()

    def test_dampening_on_given_importances(self, golden: Golden) -> None:
        """Fails if a weight's sign matters, or the factor is not lambda I_D / I_f."""
        case = golden("ssd/dampening_synthetic")
        rows = [i for i, s in enumerate(case["settings"]) if s[2:].tolist() == [1, 1]]
        assert len(rows) == 6
        for row in rows:
            model = single(case["theta0"].tolist())
            alpha, lam = case["settings"][row, :2].tolist()
            imp_f, imp_D = {"theta": case["imp_f"]}, {"theta": case["imp_D"]}
            masks = dampen(model, imp_f, imp_D, alpha, lam)
            assert torch.equal(masks["theta"], case[f"selected.{row}"])
            torch.testing.assert_close(
                model.theta.detach(), case[f"theta1.{row}"], rtol=0, atol=1e-12
            )


class TestDampen:
    def test_a_negative_weight_is_dampened_too(self) -> None:
        """Fails if Algorithm 1 is taken as printed, min(beta theta, theta): -2 would stay."""
        model = single([-2.0, 2.0])
        dampen(model, one([1, 1]), one([0.25, 0.25]), 1.0, 1.0)
        assert model.theta.tolist() == [-0.5, 0.5]

    def test_the_selection_is_strict(self) -> None:
        model = single([1.0, 1.0, 1.0])
        masks = dampen(model, one([2, 2.001, 1.999]), one([1, 1, 1]), 2.0, 1.0)
        assert masks["theta"].tolist() == [False, True, False]
        assert selected(torch.tensor(2.0), torch.tensor(1.0), 2.0).item() is False

    @pytest.mark.parametrize("lam", [0.1, 1.0, 100.0])
    def test_no_weight_ever_grows_or_turns_its_sign(self, lam: float) -> None:
        """Fails without the cap at 1: a large lambda would amplify what is to be forgotten."""
        g = torch.Generator().manual_seed(0)
        theta, imp_f, imp_D = (torch.randn(500, generator=g, dtype=torch.float64) for _ in range(3))
        model = single(theta.tolist())
        dampen(model, {"theta": imp_f.square()}, {"theta": imp_D.square()}, 0.5, lam)
        after = model.theta.detach()
        assert (after.abs() <= theta.abs()).all()
        assert (after * theta >= 0).all()
        assert (after != theta).any()

    def test_zero_over_zero_never_enters(self) -> None:
        """Fails if 0/0 = NaN gets into a weight, as it does with >= for >."""
        model = single([1.0, 1.0, 1.0])
        masks = dampen(model, one([0, 1, 0]), one([0, 0, 1]), 1.0, 1.0)
        assert model.theta.tolist() == [1, 0, 1]
        assert masks["theta"].tolist() == [False, True, False]

    def test_lambda_scales_and_alpha_selects(self) -> None:
        model = single([8.0, 8.0])
        dampen(model, one([16, 4]), one([1, 1]), 5.0, 2.0)
        assert model.theta.tolist() == [1.0, 8.0]

    def test_no_graph_is_built(self) -> None:
        model = single([1.0])
        dampen(model, one([1]), one([0.5]), 1.0, 1.0)
        assert model.theta.is_leaf
        assert model.theta.requires_grad


class TestImportances:
    def test_a_short_last_batch_weighs_as_much_as_a_full_one(self) -> None:
        """Fails if batches are weighted by their size."""
        model = single([0.0])
        steps = [torch.tensor([1.0, 3.0]), torch.tensor([5.0])]
        found = importances(model, steps, lambda m, x: (m.theta * x).mean())
        assert found["theta"].item() == (2.0**2 + 5.0**2) / 2

    @pytest.mark.parametrize("batch_size", [1, 4, 35])
    def test_per_sample_is_the_loop_over_single_samples(
        self, golden: Golden, batch_size: int
    ) -> None:
        """Fails if per_sample squares a batch mean, or depends on the batches."""
        case = golden("ssd/convbn_shuffled")
        model = recorded_network(case)
        by_hand = importances(model, loader(case, "D", 1), cross_entropy)
        found = importances(model, loader(case, "D", batch_size), cross_entropy, per_sample=True)
        assert_close(found, by_hand, rtol=1e-9, atol=1e-12)

    def test_batches_of_one_are_not_batches_of_four(self, golden: Golden) -> None:
        case = golden("ssd/convbn_shuffled")
        model = recorded_network(case)
        a, b = (importances(model, loader(case, "D", n), cross_entropy)["fc.bias"] for n in (1, 4))
        assert ((a - b).abs() > 1e-3 * a).all()

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_a_parameter_without_gradient_has_importance_0(
        self, golden: Golden, per_sample: bool
    ) -> None:
        """Fails if an unused or frozen parameter raises, or is left out of the result."""
        case = golden("ssd/convbn_shuffled")
        model = recorded_network(case)
        model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        model.conv1.weight.requires_grad_(False)
        found = importances(model, loader(case, "f"), cross_entropy, per_sample=per_sample)
        assert found.keys() == dict(model.named_parameters()).keys()
        assert {n for n, i in found.items() if not i.any()} == {"unused", "conv1.weight"}

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_the_model_is_left_alone(self, golden: Golden, per_sample: bool) -> None:
        case = golden("ssd/convbn_shuffled")
        model = recorded_network(case).train()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        importances(model, loader(case, "f"), cross_entropy, per_sample=per_sample)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert model.training

    def test_a_loss_that_is_not_finite_names_the_batch(self, golden: Golden) -> None:
        case = golden("ssd/mlp_class")
        case["X_D"][7] = float("nan")
        with pytest.raises(TrainingError, match="the loss is nan at batch 2"):
            importances(recorded_network(case), loader(case, "D"), cross_entropy)

    def test_so_does_a_gradient_of_one_sample(self, golden: Golden) -> None:
        case = golden("ssd/mlp_class")
        case["X_D"][7] = float("nan")
        with pytest.raises(TrainingError, match=r"the gradient of fc\d\.\w+ is not finite"):
            importances(recorded_network(case), loader(case, "D"), cross_entropy, per_sample=True)

    def test_an_error_restores_the_mode(self, golden: Golden) -> None:
        case = golden("ssd/mlp_class")
        model = recorded_network(case).train()
        with pytest.raises(TrainingError, match="there is no batch"):
            importances(model, [], cross_entropy)
        assert model.training


def mixed(data: ImageData, seed: int = 0) -> ImageData:
    """The same training images in a random order."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    return replace(data, train=data.train.subset(order))


class TestSSD:
    @pytest.mark.parametrize(
        "bad",
        [
            {"alpha": 0.0},
            {"alpha": -1.0},
            {"alpha": float("nan")},
            {"lam": 0.0},
            {"lam": -1.0},
            {"lam": float("inf")},
            {"fisher": "exact"},
        ],
    )
    def test_hyperparameters_that_make_no_sense(self, bad: dict) -> None:
        with pytest.raises(ValueError, match=r"(alpha|lam|fisher) must be"):
            SSD(**bad)

    def test_the_defaults_are_the_paper_s(self) -> None:
        assert (SSD().alpha, SSD().lam, SSD().fisher, SSD().batch_size) == (
            *(10, 1, "batch_sorted"),
            64,
        )

    def test_batch_sorted_goes_by_fine_class_and_ends_with_the_forget_set(
        self, recipe: Recipe
    ) -> None:
        """Fails if batches are in the file's order, sorted by superclass, or lead with forget."""
        data = mixed(shapes(4, 1, fills=2, size=12, coarse=True))
        split, model = forget_subclass(data, 5), recipe.build(0)
        rows = [
            i for c in range(20) if c != 5 for i in (data.train.subclasses == c).nonzero()[:, 0]
        ]
        rows += (data.train.subclasses == 5).nonzero()[:, 0].tolist()
        ordered = data.train.subset(torch.tensor(rows))
        imp_f, imp_D = SSD(batch_size=7).importance_pair(model, split)
        by_hand = importances(model, batches(ordered, 7), split.task.loss)
        assert_close(imp_D, by_hand, rtol=0, atol=0)
        assert_close(
            imp_f, importances(model, batches(split.forget, 7), split.task.loss), rtol=0, atol=0
        )
        in_file_order = split.retain + split.forget
        other = importances(model, batches(in_file_order, 7), split.task.loss)
        assert ((other["head.weight"] - imp_D["head.weight"]).abs() > 1e-6).any()

    def test_batch_shuffled_mixes_both_sets_by_the_seed(
        self, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the seed is ignored, or the order is the class order."""
        method = SSD(fisher="batch_shuffled", batch_size=3)
        pairs = [method.importance_pair(model, tiny_split, seed) for seed in (0, 0, 1)]
        sorted_ = replace(method, fisher="batch_sorted").importance_pair(model, tiny_split)
        for side in (0, 1):
            a, b, c, d = (p[side]["blocks.0.weight"] for p in (*pairs, sorted_))
            assert torch.equal(a, b)
            assert not torch.allclose(a, c, rtol=1e-3)
            assert not torch.allclose(a, d, rtol=1e-3)

    def test_with_batches_of_one_every_estimate_is_the_formula_s(
        self, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if an estimate loses, repeats or weighs samples."""
        exact = SSD(fisher="per_sample").importance_pair(model, tiny_split)
        for fisher in ("batch_sorted", "batch_shuffled"):
            pair = SSD(fisher=fisher, batch_size=1).importance_pair(model, tiny_split, seed=3)
            for a, b in zip(pair, exact, strict=True):
                assert_close(a, b, rtol=1e-3, atol=1e-7)

    def test_alpha_from_the_ratio_of_the_sets_on_selects_nothing(
        self, recipe: Recipe, tiny_split: ForgetSplit
    ) -> None:
        """Fails if D leaves out the forget set: I_D >= I_f |D_f|/|D| would no longer hold."""
        model = recipe.build(0).double()
        split = replace(
            tiny_split, task=InDouble(10)
        )  # in float64, so that the bound is not blurred by rounding
        pair = SSD(fisher="per_sample").importance_pair(model, split)
        ratio = 80 / 8

        def count(alpha: float) -> int:
            imp_f, imp_D = pair
            return sum(int(selected(imp_f[n], imp_D[n], alpha).sum()) for n in imp_f)

        assert count(ratio * (1 + 1e-9)) == 0
        assert count(0.5 * ratio) > 0

    def test_the_method_is_importances_then_dampening(
        self, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        method = SSD(alpha=1.5, lam=0.5, batch_size=5)
        pair = method.importance_pair(model, tiny_split)
        unlearned = method(model, tiny_split)
        masks = dampen(model, *pair, 1.5, 0.5)
        assert any(m.any() for m in masks.values())
        for a, b in zip(unlearned.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("fisher", ["batch_sorted", "per_sample"])
    def test_frozen_parameters_stay(
        self, model: nn.Module, tiny_split: ForgetSplit, fisher: str
    ) -> None:
        model.head.requires_grad_(False)
        unlearned = SSD(alpha=0.5, lam=0.1, fisher=fisher)(model, tiny_split)
        assert torch.equal(unlearned.head.weight, model.head.weight)
        assert torch.equal(unlearned.head.bias, model.head.bias)
        assert not torch.equal(unlearned.blocks[0].weight, model.blocks[0].weight)
        assert not unlearned.head.weight.requires_grad

    def test_buffers_stay(self, recipe: Recipe, tiny_data: ImageData) -> None:
        model = recipe.fit(tiny_data.train, 0, device=torch.device("cpu"))
        unlearned = SSD(alpha=0.5)(model, forget_class(tiny_data, 0))
        for a, b in zip(unlearned.buffers(), model.buffers(), strict=True):
            assert torch.equal(a, b)

    def test_only_the_shuffled_estimate_draws(self) -> None:
        drawing = [
            f for f in ("batch_sorted", "batch_shuffled", "per_sample") if SSD(fisher=f).draws
        ]
        assert drawing == ["batch_shuffled"]


class InDouble(Classification):
    """The cross-entropy of float64 inputs."""

    def loss(self, model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return super().loss(model, (x.double(), y))
