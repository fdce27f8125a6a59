from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from recorded import cross_entropy, network, part
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from unlearn_core.data import (
    Classification,
    ForgetSplit,
    ImageData,
    WithheldDataError,
    batches,
    forget_random,
)
from unlearn_core.methods import (
    SSD,
    BoundaryExpand,
    FineTune,
    GradientAscent,
    InfluenceUnlearning,
    Masked,
    RandomLabel,
    Retrain,
    SalUn,
    SalUnSoft,
    check_method,
)
from unlearn_core.methods import salun as module
from unlearn_core.methods.salun import frozen, random_mask, saliency_mask, shrink
from unlearn_core.models import Recipe, ResNet18, TrainConfig, TrainingError, shuffled_epochs
from unlearn_core.registry import describe
from unlearn_core.seeding import derive_seed, generator, seeded

Golden = Callable[[str], dict[str, Tensor]]
Mask = dict[str, Tensor]
SMALL = TrainConfig(epochs=2, lr=0.02, batch_size=16, momentum=0.9, weight_decay=5e-4)


def flat(named: Mask) -> Tensor:
    return torch.cat([t.detach().flatten() for t in named.values()])


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def assert_held(model: nn.Module, original: dict[str, Tensor], mask: Mask) -> None:
    """Masked-out weights are bit-equal to the original's; every other one has changed."""
    for name, p in model.named_parameters():
        assert torch.equal(p[~mask[name]], original[name][~mask[name]]), name
        assert (p[mask[name]] != original[name][mask[name]]).all(), name


def single(values: list[float]) -> nn.Module:
    """A model that is one parameter, ``theta``."""
    model = nn.Module()
    model.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    return model


def linear(model: nn.Module, x: Tensor) -> Tensor:
    """A loss whose gradient is the mean of the rows ``x`` (B, parameters)."""
    return (x.double() @ model.theta).mean()


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tiny_data: ImageData) -> nn.Module:
    return recipe.fit(tiny_data.train, 0, device=torch.device("cpu"))


class TestMask:
    @pytest.mark.parametrize("row", range(10))
    @pytest.mark.parametrize("name", ["mask_mlp", "mask_convbn"])
    def test_golden(self, golden: Golden, name: str, row: int) -> None:
        """Fails if the smallest gradients are kept, magnitudes are summed before the sign is lost,
        layers are ranked one by one, or BatchNorm runs in training mode."""
        case = golden(f"salun/{name}")
        assert not case["tie_at_threshold"].any()
        model = network(part(case, "theta."), part(case, "buf.")).train()
        loader = batches(TensorDataset(case["X_f"], case["y_f"]), int(case["hp.batch_size"]))
        mask = saliency_mask(model, cross_entropy, loader, case["keep_fraction"][row].item())
        found = flat(mask)
        assert torch.equal(found, case["mask_flat"][row].bool())
        assert found.sum() == case["n_kept"][row]
        saliency = case["gradient_flat"].abs()
        if not found.all():
            assert saliency[found].min() > saliency[~found].max()
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        for key, buffer in part(case, "buf.").items():
            assert torch.equal(model.state_dict()[key], buffer)

    def test_gradients_are_summed_with_their_signs(self) -> None:
        """Fails if magnitudes are summed: the first weight's gradients cancel."""
        steps = [torch.tensor([[5.0, 1.0]]), torch.tensor([[-5.0, 1.0]])]
        assert saliency_mask(single([0, 0]), linear, steps, 0.5)["theta"].tolist() == [False, True]

    def test_a_short_last_batch_weighs_as_much_as_a_full_one(self) -> None:
        """Fails if batches are weighted by their size: the first weight would be kept."""
        steps = [torch.tensor([[1.0, 0.6]] * 3), torch.tensor([[-0.9, 0.0]])]
        assert saliency_mask(single([0, 0]), linear, steps, 0.5)["theta"].tolist() == [False, True]

    @pytest.mark.parametrize(("n", "keep", "count"), [(90, 0.7, 62), (91, 0.7, 63), (90, 0.5, 45)])
    def test_the_count_is_the_authors_and_exact_among_equals(
        self, n: int, keep: float, count: int
    ) -> None:
        """Fails if a threshold decides: all gradients are equal. 90 * 0.7 is below 63 in floats."""
        mask = saliency_mask(single([0.0] * n), linear, [torch.ones(1, n)], keep)
        assert mask["theta"].sum() == count
        assert flat(random_mask(single([0.0] * n), keep, generator(0))).sum() == count

    def test_a_parameter_without_gradient_is_the_last_to_be_kept(self, golden: Golden) -> None:
        """Fails if an unused one raises or is left out of the ranking, or a frozen one is in it."""
        case = golden("salun/mask_mlp")
        model = network(part(case, "theta."), {})
        model.register_parameter("unused", nn.Parameter(torch.ones(74, dtype=torch.float64)))
        model.fc1.bias.requires_grad_(False)
        batch = (case["X_f"], case["y_f"])

        mask = saliency_mask(model, cross_entropy, [batch], 0.4)
        assert sum(m.numel() for m in mask.values()) == 148
        assert flat(mask).sum() == 56  # of 142 that can be trained
        assert not mask["unused"].any()
        assert not mask["fc1.bias"].any()
        assert not model.fc1.bias.requires_grad
        whole = saliency_mask(model, cross_entropy, [batch], 1.0)
        assert not whole.pop("fc1.bias").any()
        assert flat(whole).all()

    def test_a_mask_lies_in_memory_as_its_parameter_does(self) -> None:
        """Fails in another layout: combining the two would be several times slower."""
        model = ResNet18(3, 3, width=2).build(0)
        mask = random_mask(model, 0.5, generator(0))
        assert any(not p.is_contiguous() for p in model.parameters())
        assert all(mask[n].stride() == p.stride() for n, p in model.named_parameters())

    @pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan")])
    def test_keep_is_checked(self, keep: float) -> None:
        with pytest.raises(ValueError, match=r"keep must lie in \(0, 1\], not"):
            saliency_mask(single([0.0]), linear, [torch.ones(1, 1)], keep)
        with pytest.raises(ValueError, match=r"keep must lie in \(0, 1\], not"):
            random_mask(single([0.0]), keep, generator(0))

    def test_a_share_that_is_no_weight_at_all(self) -> None:
        """Fails where a mask of nothing is made, under which a method trains and changes nothing."""
        for make in (
            lambda: saliency_mask(single([1.0, 2.0]), linear, [torch.ones(1, 2)], 0.4),
            lambda: random_mask(single([1.0, 2.0]), 0.4, generator(0)),
        ):
            with pytest.raises(ValueError, match="no weight of 2 that can be trained"):
                make()

    def test_a_loss_that_is_not_finite_names_the_batch_and_restores_the_mode(self) -> None:
        model = single([0.0]).train()
        steps = [torch.ones(1, 1), torch.full((1, 1), float("nan"))]
        with pytest.raises(TrainingError, match="SalUn mask: the loss is nan at batch 2"):
            saliency_mask(model, linear, steps, 1.0)
        with pytest.raises(TrainingError, match="SalUn mask: there is no batch"):
            saliency_mask(model, linear, [], 1.0)
        assert model.training

    def test_a_random_mask_is_drawn_uniformly(self) -> None:
        """Fails if some weights are favoured, or the generator is ignored."""
        model, g = single([0.0] * 40), generator(0)
        hits = sum(random_mask(model, 0.3, g)["theta"].double() for _ in range(400)) / 400
        assert hits.mean().item() == pytest.approx(0.3)
        assert (hits - 0.3).abs().max() < 5 * (0.3 * 0.7 / 400) ** 0.5
        a, b = (random_mask(model, 0.3, generator(seed))["theta"] for seed in (1, 1))
        assert torch.equal(a, b)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
}


class TestFrozen:
    @pytest.fixture
    def case(self, golden: Golden) -> dict[str, Tensor]:
        return golden("salun/mask_mlp")

    @pytest.fixture
    def model(self, case: dict[str, Tensor]) -> nn.Module:
        return network(part(case, "theta."), {})

    @pytest.fixture
    def mask(self, model: nn.Module) -> Mask:
        return random_mask(model, 0.5, generator(0))

    def step(self, model: nn.Module, case: dict[str, Tensor], optimizer: Any) -> None:
        optimizer.zero_grad()
        cross_entropy(model, (case["X_f"], case["y_f"])).backward()
        optimizer.step()

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_masked_out_weights_stay_bit_equal_after_every_step(
        self, case: dict[str, Tensor], model: nn.Module, mask: Mask, name: str
    ) -> None:
        """Fails if only gradients are masked: decay, momentum from before or Adam's state move
        them. All others must move, so that exactly half of the weights may change."""
        optimizer = OPTIMIZERS[name](model.parameters())
        self.step(model, case, optimizer)  # fills the momentum
        original = weights(model)
        with frozen(model, mask):
            for _ in range(5):
                self.step(model, case, optimizer)
                assert_held(model, original, mask)
        assert_held(model, original, mask)
        self.step(model, case, optimizer)
        assert (flat(weights(model)) != flat(original)).all()

    def test_the_others_move_as_if_nothing_were_frozen(
        self, case: dict[str, Tensor], model: nn.Module, mask: Mask
    ) -> None:
        """Fails if freezing changes the first step of a weight that may change."""
        free = network(part(case, "theta."), {})
        self.step(free, case, OPTIMIZERS["sgd"](free.parameters()))
        with frozen(model, mask):
            self.step(model, case, OPTIMIZERS["sgd"](model.parameters()))
        kept = flat(mask)
        assert torch.equal(flat(weights(model))[kept], flat(weights(free))[kept])

    def test_only_gradients_are_masked_where_asked(
        self, case: dict[str, Tensor], model: nn.Module, mask: Mask
    ) -> None:
        """Fails if "gradient" freezes exactly, or not at all: weight decay alone moves them."""
        original, kept = flat(weights(model)), flat(mask)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
        with frozen(model, mask, "gradient"):
            self.step(model, case, optimizer)
        after = flat(weights(model))
        torch.testing.assert_close(after[~kept], original[~kept] * (1 - 0.1 * 0.5))
        assert ((after - 0.95 * original)[kept].abs() > 1e-6).float().mean() > 0.8

    def test_changes_without_an_optimizer_end_with_the_block(
        self, model: nn.Module, mask: Mask
    ) -> None:
        """Fails if a masked-out weight that is not a number survives a multiplication by 0."""
        original = weights(model)
        with frozen(model, mask), torch.no_grad():
            for p in model.parameters():
                p.fill_(float("inf"))
        assert_held(model, original, mask)

    def test_other_optimizers_are_none_of_its_business(
        self, case: dict[str, Tensor], model: nn.Module, mask: Mask
    ) -> None:
        """Fails if every optimizer's step restores: methods also optimize images."""
        other = network(part(case, "theta."), {})
        before = weights(other)
        with frozen(model, mask):
            with torch.no_grad():
                model.fc1.weight.fill_(7.0)
            self.step(other, case, torch.optim.SGD(other.parameters(), 0.1))
            assert (model.fc1.weight == 7).all()
        assert (flat(weights(other)) != flat(before)).any()

    @pytest.mark.parametrize("freeze", ["exact", "gradient"])
    def test_an_error_in_the_block_unhooks(
        self, case: dict[str, Tensor], model: nn.Module, mask: Mask, freeze: str
    ) -> None:
        """Fails if a hook outlives the block: everything after it would be frozen too."""
        original = weights(model)
        with pytest.raises(RuntimeError, match="stop"), frozen(model, mask, freeze):
            raise RuntimeError("stop")
        self.step(model, case, torch.optim.SGD(model.parameters(), 0.1))
        moved = flat(weights(model)) != flat(original)
        assert moved[~flat(mask)].float().mean() > 0.8

    def test_an_unknown_freeze_is_refused(self, model: nn.Module, mask: Mask) -> None:
        with (
            pytest.raises(ValueError, match="unknown freeze 'hard'; known: exact, gradient"),
            frozen(model, mask, "hard"),
        ):
            pass


def recorded(case: dict[str, Tensor]) -> Callable[[int], list[tuple[Tensor, Tensor]]]:
    """Epoch -> the batches that the authors' run visited, with the labels that it drew."""
    x = torch.cat([case["X_f"], case["X_r"]])
    visits = []
    for k in range(int(case["step_batch"].max()) + 1):
        rows = case["step_batch"] == k
        visits.append((x[case["step_index"][rows]], case["step_label"][rows]))
    per_epoch = len(visits) // int(case["hp.epochs"])
    return lambda epoch: visits[epoch * per_epoch : (epoch + 1) * per_epoch]


def recorded_split(split: ForgetSplit, model: nn.Module) -> ForgetSplit:
    """As large as ``split``, of as many classes as the model; what is learned is recorded."""
    *_, bias = model.parameters()
    classes = len(bias)
    parts = (p.with_labels(p.labels % classes) for p in (split.forget, split.retain))
    return ForgetSplit("recorded", Classification(classes), *parts)


def config_of(case: dict[str, Tensor]) -> TrainConfig:
    hp = {k: v.item() for k, v in part(case, "hp.").items()}
    return TrainConfig(
        epochs=hp["epochs"],
        lr=hp["lr"],
        batch_size=hp["batch_size"],
        momentum=hp["momentum"],
        weight_decay=hp["weight_decay"],
    )


class TestGoldens:
    @pytest.mark.parametrize(("freeze", "key"), [("exact", "theta1."), ("gradient", "theta1_old.")])
    @pytest.mark.parametrize(
        "name", ["rl_mlp_plain_sgd", "rl_mlp_momentum_decay", "rl_convbn_mixed_branch"]
    )
    def test_the_weights_after_random_labelling(
        self,
        golden: Golden,
        tiny_split: ForgetSplit,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        freeze: str,
        key: str,
    ) -> None:
        """Fails if freezing is another, momentum restarts with an epoch, or BatchNorm is masked."""
        case = golden(f"salun/{name}")
        mask = {k: v.bool() for k, v in part(case, "mask.").items()}
        model = network(part(case, "theta0."), part(case, "buf0."))
        monkeypatch.setattr(SalUn, "mask_of", lambda *_: mask)
        monkeypatch.setattr(SalUn, "epochs", lambda *_: recorded(case))
        split = recorded_split(tiny_split, model)
        found = SalUn(config_of(case), freeze=freeze)(model, split)
        expected = part(case, key)
        for k, p in found.named_parameters():
            torch.testing.assert_close(p.detach(), expected[k], rtol=0, atol=1e-9)
            if freeze == "exact":
                assert torch.equal(p[~mask[k]], case[f"theta0.{k}"][~mask[k]])
        if freeze == "exact":
            for k, buffer in part(case, "buf1.").items():
                torch.testing.assert_close(found.state_dict()[k], buffer, rtol=0, atol=1e-9)
        else:
            out = [(p - case[f"theta0.{k}"])[~mask[k]] for k, p in found.named_parameters()]
            drift = torch.cat(out).abs().max()
            torch.testing.assert_close(drift, case["masked_drift_old"], rtol=0, atol=1e-9)

    def test_the_soft_variant(
        self, golden: Golden, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails if the anchor stays at the first epoch's, or the share falls within an epoch."""
        case = golden("salun/soft_mlp")
        split = forget_random(
            replace(tiny_data, train=tiny_data.train.subset(torch.arange(22))), count=7
        )
        model = network(part(case, "theta0."), {})
        monkeypatch.setattr(SalUnSoft, "epochs", lambda *_: recorded(case))
        method = SalUnSoft(config_of(case), ratio=case["hp.mask_ratio"].item())
        found = method(model, recorded_split(split, model))
        for k, p in found.named_parameters():
            torch.testing.assert_close(p.detach(), case[f"theta1.{k}"], rtol=0, atol=1e-9)
        back = sum(int((p == case[f"theta0.{k}"]).sum()) for k, p in found.named_parameters())
        assert back == 51 - 41


class TestSalUn:
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"keep": 0.0}, r"keep must be in \(0, 1\]"),
            ({"keep": 1.5}, r"keep must be in \(0, 1\]"),
            ({"freeze": "soft"}, "freeze must be 'exact' or 'gradient', not 'soft'"),
            ({"mask": "layer"}, "mask must be 'saliency' or 'random', not 'layer'"),
            ({"order": "retain_first"}, "order must be .*, not 'retain_first'"),
        ],
    )
    def test_hyperparameters_that_make_no_sense(self, bad: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SalUn(**bad)

    def test_the_defaults_are_the_authors(self) -> None:
        train = TrainConfig(10, 0.013, batch_size=256, momentum=0.9, weight_decay=5e-4)
        assert SalUn() == SalUn(train, "mixed", False, 0.5, "exact", "saliency")

    @pytest.mark.parametrize("keep", [0.2, 0.7])
    @pytest.mark.parametrize("mask", ["saliency", "random"])
    def test_exactly_the_share_keep_changes(
        self, trained: nn.Module, tiny_split: ForgetSplit, mask: str, keep: float
    ) -> None:
        """Fails if a masked-out weight moves, or another one is held."""
        method = SalUn(SMALL, keep=keep, mask=mask)
        found = method(trained, tiny_split, 3)
        assert_held(found, weights(trained), method.mask_of(trained, tiny_split, 3))
        changed = flat(weights(found)) != flat(weights(trained))
        assert changed.sum() == int(len(changed) * keep)

    def test_keeping_everything_is_random_labelling(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if making the mask changes the model, the labels or the order of the batches."""
        for order in ("forget_first", "mixed"):
            ours = SalUn(SMALL, order, keep=1.0)(trained, tiny_split, 5)
            plain = RandomLabel(SMALL, order)(trained, tiny_split, 5)
            for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
                assert torch.equal(a, b)

    def test_the_mask_is_that_of_the_forget_set_under_its_true_labels(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the retain set or random labels decide, or a random choice."""
        # One batch: its mean gradient does not depend on the order.
        whole = batches(tiny_split.forget, 8)
        mask = SalUn(SMALL).mask_of(trained, tiny_split, 0)
        by_hand = flat(saliency_mask(trained, cross_entropy, whole, 0.5))
        assert (flat(mask) == by_hand).float().mean() > 0.999
        other = flat(SalUn(SMALL, mask="random").mask_of(trained, tiny_split, 0))
        assert other.sum() == by_hand.sum()
        assert 0.4 < (other == by_hand).float().mean() < 0.6

    def test_the_mask_s_batches_are_shuffled_augmented_and_of_256(
        self, model: nn.Module, tiny_split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails if they are as small as the training's, or their augmentation is not seeded."""
        seen: list[list[tuple[Tensor, Tensor]]] = []

        def spy(model: nn.Module, loss: Any, batches: Iterable[Any], keep: float) -> Mask:
            seen.append(list(batches))
            return random_mask(model, keep, generator(0))

        monkeypatch.setattr(module, "saliency_mask", spy)
        many = replace(tiny_split, forget=tiny_split.forget.subset(torch.arange(300) % 8))
        method = SalUn(replace(SMALL, augment=("crop",)))
        for seed in (0, 0, 1):
            method.mask_of(model, many, seed)
        assert [len(y) for _, y in seen[0]] == [256, 44]
        a, b, c = (torch.cat([x for x, _ in epoch]) for epoch in seen)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        config = replace(method.train, batch_size=256)
        with seeded(0, "mask"):
            x, _ = next(iter(shuffled_epochs(many.forget, config, derive_seed(0, "mask"))(0)))
        assert torch.equal(seen[0][0][0], x)
        plain = {tuple(image.flatten().tolist()) for image in many.forget.batch_of(range(8))[0]}
        assert sum(tuple(image.flatten().tolist()) in plain for image in x) < 64

    @pytest.mark.parametrize(
        "method",
        [
            SalUn(SMALL, mask="random"),
            SalUn(SMALL, "mixed", True, freeze="gradient"),
            SalUnSoft(SMALL, "forget_first", ratio=1.0),
        ],
        ids=["random mask", "gradient, mixed", "soft, forget first"],
    )
    def test_the_variants_keep_the_contract(self, method: RandomLabel) -> None:
        check_method(method)


class TestSalUnSoft:
    def test_shrinking_by_hand(self) -> None:
        """Fails if the count is that of the weights that stay away, or nothing is subtracted."""
        anchors = [torch.tensor([1.0, 1.0]), torch.tensor([[1.0], [1.0]])]
        parameters = [torch.tensor([2.0, -1.0]), torch.tensor([[4.0], [1.5]])]
        shrink(parameters, anchors, 2)  # moved by 1, -2, 3 and 0.5: the threshold is 1
        assert [p.flatten().tolist() for p in parameters] == [[1, 0], [3, 1]]
        shrink(parameters, anchors, 0)
        assert [p.flatten().tolist() for p in parameters] == [[1, 0], [3, 1]]

    def test_returned_weights_are_bit_equal(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails with another share: S = 1 + 5 batches in the one epoch, so 5/6 of the ratio."""
        config = replace(SMALL, epochs=1)
        found = flat(weights(SalUnSoft(config, ratio=0.6)(trained, tiny_split)))
        same = int((found == flat(weights(trained))).sum())
        assert same == int(0.6 * ((6 - 1) / 6 * len(found)))

    def test_a_share_of_less_than_one_weight_shrinks_nothing(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails where the count is 0: there is no 0-th smallest move."""
        config = replace(SMALL, epochs=1, batch_size=128)
        found = SalUnSoft(config, ratio=1e-5)(trained, tiny_split)
        assert (flat(weights(found)) != flat(weights(trained))).float().mean() > 0.99

    @pytest.mark.parametrize("ratio", [0.0, 1.1, float("nan")])
    def test_the_ratio_is_checked(self, ratio: float) -> None:
        with pytest.raises(ValueError, match=r"ratio must be (in \(0, 1\]|a finite number)"):
            SalUnSoft(ratio=ratio)


ASCENT = GradientAscent(replace(SMALL, lr=0.01, batch_size=4))


class TestMasked:
    def test_gradient_ascent_of_the_salient_weights(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the mask is not the saliency's, or the method is not run as it is."""
        found = Masked(ASCENT, keep=0.3)(trained, tiny_split, 1)
        mask = saliency_mask(trained, cross_entropy, batches(tiny_split.forget, 256), 0.3)
        assert_held(found, weights(trained), mask)
        batch = tiny_split.forget.batch_of(range(8))
        assert cross_entropy(found, batch) > cross_entropy(trained, batch) + 0.01
        everything = Masked(ASCENT, keep=1.0)(trained, tiny_split, 1)
        plain = ASCENT(trained, tiny_split, 1)
        assert torch.equal(flat(weights(everything)), flat(weights(plain)))

    def test_a_step_without_an_optimizer_is_masked_too(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if only optimizers are watched. The authors multiply that step by the mask."""
        method = InfluenceUnlearning(samples=20)
        found = flat(weights(Masked(method)(trained, tiny_split)))
        mask = flat(saliency_mask(trained, cross_entropy, batches(tiny_split.forget, 256), 0.5))
        step = flat(weights(method(trained, tiny_split)))
        assert torch.equal(found, torch.where(mask, step, flat(weights(trained))))
        assert (found != flat(weights(trained))).sum() > 0.4 * len(found)

    def test_an_additional_logit_does_not_matter(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the expanded layer has weights that the mask does not know."""
        found = Masked(BoundaryExpand(SMALL))(trained, tiny_split)
        mask = saliency_mask(trained, cross_entropy, batches(tiny_split.forget, 256), 0.5)
        assert_held(found, weights(trained), mask)
        assert found.head.out_features == 10

    def test_a_method_that_makes_a_new_model_is_refused(
        self, recipe: Recipe, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        with pytest.raises(ValueError, match="retrain makes parameters of its own"):
            Masked(Retrain(recipe))(trained, tiny_split)

    def test_its_needs_are_the_method_s_and_the_mask_s(self, recipe: Recipe) -> None:
        assert Masked(FineTune()).needs == {"forget", "retain"}
        assert Masked(ASCENT).needs == {"forget"}
        assert Masked(Retrain(recipe)).needs == {"forget", "retain", "fresh_model"}
        assert Masked.needs == {"forget"}

    def test_the_method_sees_what_it_declares_only(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if the mask's data reach the method."""

        @dataclass(frozen=True)
        class Peeks(FineTune):
            def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
                len(split.forget)
                return model

        with pytest.raises(WithheldDataError, match="Peeks does not declare 'forget'"):
            Masked(Peeks())(trained, tiny_split)

    def test_it_draws_where_the_method_does_and_is_told_apart_by_it(self) -> None:
        assert Masked(ASCENT).draws is True
        assert Masked(SSD()).draws is False
        assert describe(Masked(ASCENT)) != describe(Masked(SSD()))

    @pytest.mark.parametrize("method", [InfluenceUnlearning(samples=8), SSD(alpha=1.0)])
    def test_around_what_does_not_draw_it_keeps_the_contract(self, method: Any) -> None:
        check_method(Masked(method))

    @pytest.mark.parametrize("bad", [{"keep": 0.0}, {"freeze": "hard"}])
    def test_its_options_are_checked(self, bad: dict) -> None:
        with pytest.raises(ValueError, match=r"(keep|freeze) must be"):
            Masked(ASCENT, **bad)
