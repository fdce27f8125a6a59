"""Classifiers and data sets of other libraries, in everything that takes a classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from small import make
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from unlearn_core.data import Classification, ForgetSplit, LabelledSet, forget_class, logits_of
from unlearn_core.methods import (
    IAU,
    METHODS,
    SSD,
    BoundaryShrink,
    CFk,
    EUk,
    FineTune,
    InfluenceCG,
    SalUn,
    Scrub,
    check_method,
)
from unlearn_core.methods.baselines.influence_cg import hessian_product
from unlearn_core.methods.baselines.selection import AbsoluteSelection, RandomSelection
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.methods.iau import GradientRestriction
from unlearn_core.methods.salun import random_mask, saliency_mask
from unlearn_core.methods.worst_case import ByLoss, WorstCase
from unlearn_core.metrics import evaluate_classifier, relearned_accuracy
from unlearn_core.metrics.shadow import ShadowAttack, gradient_norms
from unlearn_core.models import Recipe, TrainConfig, frozen_norms, learning, predict, train

N, NAMES = 36, ("cat", "dog", "heron")
CPU = torch.device("cpu")
SHORT = TrainConfig(epochs=2, lr=0.02, batch_size=8, momentum=0.9)


def vit() -> ViTForImageClassification:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = ViTConfig(**sizes, num_hidden_layers=1, image_size=8, patch_size=4, num_labels=3)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return ViTForImageClassification(config)


def resnet() -> ResNetForImageClassification:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return ResNetForImageClassification(config)


class Logits(nn.Module):
    """The tensor of logits alone, of a model that gives them in an output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def images() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(N, 3, 8, 8, generator=g), torch.arange(N) % 3
    x[torch.arange(N), y] += 1.0
    return x, y


class Samples(Dataset):
    """Mappings, as a processor of Hugging Face's makes them."""

    def __init__(self) -> None:
        self.x, self.y = images()

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"pixel_values": self.x[i], "label": int(self.y[i])}


def split_of(data: Any) -> ForgetSplit:
    return forget_class(data, "dog", classes=NAMES, test=data)


@pytest.fixture(scope="module", params=[vit, resnet], ids=["vit", "resnet"])
def twins(request: pytest.FixtureRequest) -> list[tuple[nn.Module, ForgetSplit, Recipe]]:
    """One trained network and data set as Hugging Face has them, and as plain tensors."""
    out = []
    ways = ((request.param, Samples()), (lambda: Logits(request.param()), TensorDataset(*images())))
    for build, data in ways:
        recipe = Recipe(build, Classification(3), SHORT)
        out.append((recipe.fit(data, 0, device=CPU), split_of(data), recipe))
    return out


def weights(model: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*model.parameters(), *model.buffers())]


def alike(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(s, t) for s, t in zip(weights(a), weights(b), strict=True))


@pytest.mark.parametrize("name", [n for n, c in METHODS.items() if "images" in c.works_on])
def test_every_method_does_the_same_to_both(name: str, twins: list[Any]) -> None:
    """Fails where a method reads logits past the task, or a sample in a way of its own."""
    (model, split, recipe), (plain, tensors, own) = twins
    assert alike(model, plain)
    before = copy.deepcopy(model)
    unlearned = make(METHODS[name], recipe)(model, split, 3)
    assert alike(model, before)
    assert not alike(unlearned, model)
    assert alike(unlearned, make(METHODS[name], own)(plain, tensors, 3))


class BatchNormAct(nn.BatchNorm2d):
    """A normalisation with its activation inside, as timm's."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(super().forward(x))


class LikeTimm(nn.Module):
    """What timm's models have, which isn't installed here: logits as a tensor, a head that can be
    taken off, paths that are dropped in training, fused attention over what convolutions see."""

    pretrained_cfg: ClassVar = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 8, 8)}

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.drop = num_classes, 8, 0.2
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), BatchNormAct(8))
        self.qkv, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)
        self.head = nn.Linear(8, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.head = nn.Linear(8, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        path = nn.functional.scaled_dot_product_attention(*self.qkv(x)[:, None].chunk(3, dim=-1))
        if self.training:
            path = path * (torch.rand(len(x), 1, 1, 1) >= self.drop) / (1 - self.drop)
        return self.norm(x + path[:, 0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean(dim=1)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("name", [n for n, c in METHODS.items() if "images" in c.works_on])
def test_every_method_works_on_a_model_like_timm_s(name: str) -> None:
    split = split_of(TensorDataset(*images()))
    recipe = Recipe(LikeTimm, Classification(3), SHORT)
    model = recipe.build(0)
    before = copy.deepcopy(model)
    unlearned = make(METHODS[name], recipe)(model, split, 3)
    assert alike(model, before)
    assert not alike(unlearned, model)
    assert evaluate_classifier(unlearned, split)["forget_accuracy"].n == 12


def test_a_head_that_was_taken_off() -> None:
    model = LikeTimm()
    model.reset_classifier(0)
    with pytest.raises(ValueError, match=r"\(24, 8\).*3 classes: give the model as many outputs"):
        evaluate_classifier(model, split_of(TensorDataset(*images())))


def test_everything_that_measures_says_the_same_of_both(twins: list[Any]) -> None:
    found = []
    for model, split, recipe in twins:
        shadow = ShadowAttack.fit(split.retain, recipe, shadows=1, device=CPU, epochs=1)
        selection = WorstCase(2, train=TrainConfig(1, 1e-3, 8)).select(
            model, split.retain, split.task, 4, 0
        )
        found.append(
            (
                evaluate_classifier(model, split, random_model=recipe.build(5)),
                evaluate_classifier(model, split, shadow=shadow),
                relearned_accuracy(model, split, 0, steps=1, examples=2),
                gradient_norms(model, split.task.loss, split.forget, 3).tolist(),
                selection.index.tolist(),
                ByLoss().select(model, split.retain, split.task, 4, 0).index.tolist(),
                predict(model, split.test).logits.tolist(),
            )
        )
    assert found[0] == found[1]
    assert len(found[0][4]) == 4


class TestLogits:
    def test_where_they_are(self) -> None:
        x = torch.rand(2, 3)
        for found in (x, {"loss": 1, "logits": x}, vit()(torch.rand(2, 3, 8, 8))):
            assert logits_of(found).shape == (2, 3)
        google = torchvision.models.googlenet(num_classes=3, init_weights=False).train()
        assert logits_of(google(torch.rand(2, 3, 64, 64))).shape == (2, 3)

    @pytest.mark.parametrize(
        ("found", "says"),
        [({"out": 1}, "a mapping of out"), ((1, 2), "returns tuple"), (None, "NoneType")],
    )
    def test_there_are_none(self, found: Any, says: str) -> None:
        with pytest.raises(TypeError, match=f"{says}.* no logits: wrap it"):
            logits_of(found)

    def test_probabilities_are_none(self) -> None:
        """Fails where losses and attacks are of a softmax's softmax; its logarithm is as good as logits."""
        table = TensorDataset(torch.randn(N, 5), torch.arange(N) % 3)
        net = nn.Linear(5, 3)
        with pytest.raises(
            ValueError, match=r"Sequential .* gives probabilities, .*leave its last"
        ):
            predict(nn.Sequential(net, nn.Softmax(dim=1)), table)
        found = predict(nn.Sequential(net, nn.LogSoftmax(dim=1)), table).logits
        expected = predict(net, table).logits.log_softmax(dim=1)
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("classes", [10, 100])
    def test_nor_are_those_of_half_precision(self, dtype: torch.dtype, classes: int) -> None:
        """Fails where they are looked at without a thought of rounding: rows miss one by 2e-3."""
        table = TensorDataset(torch.randn(N, 5).to(dtype), torch.arange(N) % 3)
        net = nn.Linear(5, classes).to(dtype)
        with pytest.raises(ValueError, match="gives probabilities"):
            predict(nn.Sequential(net, nn.Softmax(dim=1)), table)
        found = predict(net, table).logits
        assert found.dtype == torch.float32
        assert torch.equal(found, net(table.tensors[0]).float())

    def test_nor_are_exact_one_hot_scores(self) -> None:
        """What is refused to the letter; scores of another scale, or a hundredth off, are logits."""
        table = TensorDataset(torch.eye(3)[torch.arange(N) % 3], torch.arange(N) % 3)
        net = nn.Linear(3, 3, bias=False)
        net.weight.data = torch.eye(3)
        with pytest.raises(ValueError, match="gives probabilities"):
            predict(net, table)
        for scale in (2.0, 0.99):
            net.weight.data = scale * torch.eye(3)
            assert torch.equal(predict(net, table).logits, scale * table.tensors[0])

    def test_a_task_of_ones_own_is_asked_everywhere(self) -> None:
        """Fails where a caller runs the model itself: it can't know what this one returns."""

        class Out(Classification):
            def logits(self, model: Callable[[Tensor], Any], batch: Any) -> Tensor:
                return model(batch[0])["out"]

        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(5, 3)

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"out": self.head(x)}

        table = TensorDataset(torch.randn(N, 5), torch.arange(N) % 3)
        recipe = Recipe(Odd, Out(3), SHORT)
        split = replace(split_of(table), task=Out(3))
        model = recipe.fit(table, 0, device=CPU)
        for name, cls in METHODS.items():
            if "images" in cls.works_on:
                assert not alike(make(cls, recipe)(model, split, 0), model), name
        evaluate_classifier(model, split, random_model=recipe.build(1))
        ShadowAttack.fit(table, recipe, shadows=1, device=CPU, epochs=1)
        assert (
            len(WorstCase(1, train=TrainConfig(1, 1e-3)).select(model, table, Out(3), 4, 0).index)
            == 4
        )


class TestRecipes:
    def test_a_function_makes_the_same_model_from_the_same_seed(self) -> None:
        recipe = Recipe(vit, Classification(3), SHORT)
        before = torch.get_rng_state()
        assert alike(recipe.build(4), recipe.build(4))
        assert not alike(recipe.build(4), recipe.build(5))
        assert torch.equal(before, torch.get_rng_state())
        assert not recipe.build(0).training

    def test_a_class_without_arguments_is_one(self) -> None:
        class Net(nn.Sequential):
            def __init__(self) -> None:
                super().__init__(nn.Flatten(), nn.Linear(4, 2))

        assert isinstance(Recipe(Net, Classification(2), None).build(0), Net)

    def test_a_network_is_none(self) -> None:
        with pytest.raises(TypeError, match=r"give a spec or a function, lambda: Linear\(...\)"):
            Recipe(nn.Linear(2, 2), Classification(2), SHORT)
        with pytest.raises(TypeError, match=r"a recipe's train is a TrainConfig, not {'lr': 1}"):
            Recipe(vit, Classification(2), {"lr": 1})

    def test_what_a_function_makes(self) -> None:
        """A network that is there already would be trained again, and called a fresh one."""
        net = nn.Linear(2, 2)
        recipe = Recipe(lambda: net, Classification(2), SHORT)
        recipe.build(0)
        with pytest.raises(TypeError, match="gave the same network twice"):
            recipe.build(1)
        with pytest.raises(TypeError, match=r"makes a str, not a torch.nn.Module"):
            Recipe(lambda: "net", Classification(2), SHORT).build(0)


def head_only(model: nn.Module) -> nn.Module:
    """A copy of which only the classifier learns."""
    model = copy.deepcopy(model).requires_grad_(False)
    model.classifier.requires_grad_(True)
    return model


class TestFrozenParts:
    @pytest.fixture
    def half(self, twins: list[Any]) -> tuple[nn.Module, ForgetSplit, Recipe]:
        model, split, recipe = twins[0]
        return head_only(model), split, recipe

    @pytest.mark.parametrize(
        "name",
        [
            n
            for n, c in METHODS.items()
            if "images" in c.works_on and not {"fresh_model"} & c.needs and n != "eu_k"
        ],
    )
    def test_only_what_can_be_trained_moves(self, name: str, half: Any) -> None:
        """Fails where weights that are frozen, or statistics of BatchNorm in that part, have moved."""
        model, split, recipe = half
        unlearned = make(METHODS[name], recipe)(model, split, 0)
        before, after = model.state_dict(), unlearned.state_dict()
        moved = {n for n in before if not torch.equal(before[n], after[n])}
        assert moved
        assert all(n.startswith("classifier.") for n in moved)

    def test_a_recipe_of_a_frozen_backbone(self) -> None:
        recipe = Recipe(lambda: head_only(resnet()), Classification(3), SHORT)
        start, end = recipe.build(0).state_dict(), recipe.fit(Samples(), 0, device=CPU).state_dict()
        assert {n.split(".")[0] for n in start if not torch.equal(start[n], end[n])} == {
            "classifier"
        }

    def test_which_layers_those_are(self) -> None:
        model = nn.Sequential(
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)),
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
            nn.BatchNorm1d(2),
        )
        assert frozen_norms(model) == []
        model[0].requires_grad_(False)
        model[1][1].requires_grad_(False)
        assert frozen_norms(model) == [model[0][1], model[1][1]]
        learning(model)
        assert [m.training for m in model.modules()] == [
            m not in frozen_norms(model) for m in model.modules()
        ]

    def test_what_a_method_freezes_itself_moves_as_in_its_authors_code(
        self, recipe: Recipe
    ) -> None:
        """CF-k and EU-k leave the whole network in training mode."""
        model = resnet().eval()
        split = split_of(Samples())
        for cls in (CFk, EUk):
            after = cls(SHORT)(model, split).state_dict()
            moved = [n for n, t in model.state_dict().items() if not torch.equal(t, after[n])]
            assert any("running_mean" in n for n in moved)
            assert all("running" in n or "num_batches" in n or "classifier" in n for n in moved)
            still = cls(SHORT)(head_only(model), split).state_dict()
            assert not any(
                "running" in n
                for n, t in model.state_dict().items()
                if not torch.equal(t, still[n])
            )

    def test_a_mode_that_the_authors_script_has(self) -> None:
        model, split = head_only(resnet()).eval(), split_of(Samples())
        after = IAU(mode="train")(model, split).state_dict()
        moved = {n for n, t in model.state_dict().items() if not torch.equal(t, after[n])}
        assert moved == {n for n in after if n.startswith("classifier")}

    @pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
    def test_salun_counts_what_can_be_trained(self, half: Any, keep: float) -> None:
        model, split, _ = half
        n = sum(p.numel() for p in model.classifier.parameters())
        batch = (split.forget.batch_of(range(8)),)
        masks = (
            saliency_mask(model, split.task.loss, batch, keep),
            random_mask(model, keep, torch.Generator().manual_seed(0)),
        )
        for mask in masks:
            assert sum(int(m.sum()) for m in mask.values()) == int(n * keep)
            assert {k for k, m in mask.items() if m.any()} <= {
                "classifier.weight",
                "classifier.bias",
            } | {
                "classifier.1.weight",
                "classifier.1.bias",
            }

    def test_a_random_choice_is_among_what_can_be_trained(self, half: Any) -> None:
        model, split, _ = half
        for cls in (RandomSelection, AbsoluteSelection):
            a, b = (c(alpha=0.5)(model, split) for c in (SSD, cls))
            counts = [
                sum(
                    int((p != q).sum())
                    for p, q in zip(model.parameters(), u.parameters(), strict=True)
                )
                for u in (a, b)
            ]
            assert counts[0] == counts[1] > 0

    def test_frozen_layers_are_none_of_the_last_k(self, twins: list[Any]) -> None:
        model, split, _ = twins[0]
        model = head_only(model)
        with pytest.raises(
            ValueError, match="k = 2, but the model has 1 layers with parameters to train"
        ):
            CFk(SHORT, k=2)(model, split)


class TestSecondDerivatives:
    """The fast kernels of attention can't be differentiated twice."""

    @pytest.mark.parametrize(
        "build",
        [vit, lambda: torchvision.models.VisionTransformer(8, 4, 1, 2, 16, 24, num_classes=3)],
        ids=["transformers", "torchvision"],
    )
    def test_a_vision_transformer(self, build: Callable[[], nn.Module]) -> None:
        """Against differences of gradients, in float64."""
        torch.manual_seed(0)
        model = build().double().eval()
        x, y = images()
        data = TensorDataset(x.double(), y)
        task = Classification(3)
        parameters = list(model.parameters())
        vector = nn.functional.normalize(
            torch.randn(sum(p.numel() for p in parameters)).double(), dim=0
        )

        def gradient(task: Classification) -> Tensor:
            value = task.loss(model, (x.double(), y))
            return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

        def shifted(step: float) -> Tensor:
            pieces = vector.split([p.numel() for p in parameters])
            with torch.no_grad():
                for p, v in zip(parameters, pieces, strict=True):
                    p.add_(step * v.view(p.shape))
            return gradient(task)

        found = hessian_product(model, data, task.loss, 7, vector)
        h = 1e-4
        above, below = shifted(h), shifted(-2 * h)
        torch.testing.assert_close(found, (above - below) / (2 * h), rtol=1e-5, atol=1e-8)
        shifted(h)
        # d|g|^2/2 along v is g H v.
        restricted = GradientRestriction(3, alpha=1.0, norm="global")
        g = gradient(task)
        extra = gradient(restricted) - g
        torch.testing.assert_close(
            extra @ vector,
            (g @ hessian_product(model, data, task.loss, N, vector)) / g.norm(),
            rtol=1e-6,
            atol=0,
        )

    def test_the_methods_that_need_them(self, twins: list[Any]) -> None:
        model, split, _ = twins[0]
        assert not alike(InfluenceCG(iterations=2)(model, split), model)
        task = GradientRestriction(3)
        recipe = Recipe(vit, task, TrainConfig(1, 0.01, 8))
        assert not alike(recipe.fit(split.retain, 0, device=CPU), recipe.build(0))


class TestOtherInputs:
    def test_rows_of_a_table(self) -> None:
        """Every method, those with noise and steps of pixels too."""
        data = TensorDataset(torch.randn(N, 5), torch.arange(N) % 3)
        recipe = Recipe(
            lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
            Classification(3),
            SHORT,
        )
        model = recipe.fit(data, 0, device=CPU)
        for name, cls in METHODS.items():
            if "images" in cls.works_on:
                assert not alike(make(cls, recipe)(model, split_of(data), 0), model), name

    def test_a_step_over_the_boundary_is_in_units_of_the_inputs(self) -> None:
        model = nn.Linear(2, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
            model.bias.zero_()
        data = LabelledSet(torch.tensor([[0.3, 5.0], [0.7, -5.0]]), [0, 1 - 1], 2)
        split = ForgetSplit("two", Classification(2), data, data.subset([]))
        batch = data.batch_of([0, 1])
        found = BoundaryShrink(step=0.5).labels(model, split, batch)
        assert found.tolist() == [1, 0]  # 0.3 - 0.5 is across, 0.7 - 0.5 isn't

    def test_the_contract_sees_a_split_of_any_data(self) -> None:
        data = TensorDataset(torch.randn(N, 5), torch.arange(N) % 3)
        check_method(SSD(alpha=1.0), nn.Linear(5, 3), split_of(data))


class TestMistakes:
    def test_scrub_of_one_epoch(self) -> None:
        with pytest.raises(ValueError, match="SCRUB needs two epochs at least"):
            Scrub(TrainConfig(epochs=1, lr=0.1))

    @pytest.mark.parametrize("selector", [WorstCase(1), ByLoss()])
    @pytest.mark.parametrize("budget", [0.1, True, "4"])
    def test_a_share_for_a_budget(self, selector: Any, budget: Any, twins: list[Any]) -> None:
        model, split, _ = twins[0]
        with pytest.raises(TypeError, match="the budget is how many are selected, a whole number"):
            selector.select(model, split.retain, split.task, budget, 0)

    def test_an_argument_that_the_attack_has_not(self, twins: list[Any]) -> None:
        _, split, recipe = twins[0]
        with pytest.raises(
            TypeError, match=r"ShadowAttack.fit has no argument 'shadow'; did you mean 'shadows'"
        ):
            ShadowAttack.fit(split.retain, recipe, shadow=2)

    def test_a_mapping_for_a_training(self) -> None:
        for cls in (FineTune, SalUn):
            with pytest.raises(
                (TypeError, ValueError), match=r"train .*TrainConfig.*\{'lr': 0.1\}"
            ):
                cls(train={"lr": 0.1})

    def test_a_model_with_other_outputs(self, twins: list[Any]) -> None:
        model, _, _ = twins[0]
        data = TensorDataset(*images())
        split = forget_class(data, 1, classes=10)
        with pytest.raises(
            ValueError, match=r"\(36, 3\).*10 classes: give the model as many outputs"
        ):
            evaluate_classifier(model, ForgetSplit("all", split.task, data, list(data), data))

    @pytest.mark.parametrize(
        ("inputs", "weights"), [(torch.float64, torch.float32), (torch.float32,) * 2]
    )
    def test_inputs_of_another_precision(self, inputs: torch.dtype, weights: torch.dtype) -> None:
        """Fails where it is left to a matrix product to say which of the two is meant."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).to(weights)
        x, y = images()
        split = forget_class(TensorDataset(x.to(inputs), y), 1, test=TensorDataset(x.to(inputs), y))
        calls = (
            lambda: FineTune(SHORT)(model, split),
            lambda: SSD()(model, split),
            lambda: evaluate_classifier(model, split),
        )
        if inputs == weights:
            assert [call() for call in calls]
            return
        for call in calls:
            with pytest.raises(
                TypeError,
                match=r"the inputs are torch\.float64 and the model's weights torch\.float32",
            ):
                call()

    def test_an_error_of_the_model_s_own_stays_what_it_is(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            predict(model, TensorDataset(*images()))

    def test_labels_that_a_recipe_s_task_has_not(self) -> None:
        recipe = Recipe(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), Classification(2), SHORT
        )
        with pytest.raises(
            ValueError, match=r"base model: the labels must be below 2, .* one is 2"
        ):
            recipe.fit(TensorDataset(*images()), 0, device=CPU)

    def test_a_chat_or_a_split_in_another_s_place(self, twins: list[Any]) -> None:
        chat, questions = STAND_INS["text"]()
        model, split, _ = twins[0]
        with pytest.raises(
            TypeError, match=r"of type Chat, and it must be a torch.nn.Module from im"
        ):
            FineTune(SHORT)(chat, split)
        for swapped in ((split, model), (model, questions)):
            with pytest.raises(
                TypeError, match="on the ForgetSplit of one, which comes after the m"
            ):
                evaluate_classifier(*swapped)

    @pytest.mark.parametrize("task", [Classification, None, 4])
    def test_a_task_that_is_none(self, task: Any) -> None:
        data = list(zip(*images(), strict=True))
        with pytest.raises(TypeError, match=r"mine: the task is one such as Classification\(10\)"):
            ForgetSplit("mine", task, data[:4], data[4:])

    @pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("method", [SSD(), FineTune(SHORT)], ids=["ssd", "fine_tune"])
    def test_gradients_that_a_caller_switched_off(
        self, off: Any, method: Any, twins: list[Any]
    ) -> None:
        """What measures a model is often written so, and methods are called in the middle of it."""
        model, split, _ = twins[0]
        with off():
            found = method(model, split)
            assert not torch.is_grad_enabled()
        assert alike(found, method(model, split))
        assert not any(p.is_inference() for p in found.parameters())

    def test_a_recipe_where_gradients_are_off(self) -> None:
        recipe = Recipe(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), Classification(3), SHORT
        )
        data = TensorDataset(*images())
        with torch.inference_mode():
            found = recipe.fit(data, 0, device=CPU)
        assert alike(found, recipe.fit(data, 0, device=CPU))

    def test_a_short_training_of_dicts(self) -> None:
        """The loop itself takes what a loader of torch's gives."""
        model = vit()
        loader = torch.utils.data.DataLoader(Samples(), 8)

        def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            return model(batch["pixel_values"], labels=batch["label"]).loss

        before = copy.deepcopy(model)
        assert not alike(train(model, lambda _: loader, loss, TrainConfig(1, 0.1)), before)
