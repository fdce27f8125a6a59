from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from unlearn_core.data import Classification, ImageData, MissingSourceError
from unlearn_core.methods.ssd import importances
from unlearn_core.models import (
    MODELS,
    CausalLM,
    ClassToImage,
    LeNet,
    ModelSpec,
    ResNet18,
    SmallCNN,
    TextToImage,
    TinyLlama,
    TinyLlava,
    ViT,
    predict,
)
from unlearn_core.models.classifiers import (
    LeNetClassifier,
    ResNet18Classifier,
    SmallCNNClassifier,
)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def output_sizes(model: nn.Module, modules: list[nn.Module], x: Tensor) -> list[tuple[int, ...]]:
    sizes = []
    for module in modules:
        module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    model(x)
    return sizes


def same(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class TestResNet18:
    def test_the_usual_one_has_11_173_962_parameters(self) -> None:
        """Fails with the ImageNet stem (7x7), biased convolutions or a missing shortcut."""
        assert count(ResNet18(10).build(0)) == 11_173_962

    def test_the_stages_halve_the_image_but_the_stem_does_not(self) -> None:
        """Fails if the stem strides or pools, as torchvision's does."""
        model = ResNet18(7, width=4).build(0)
        sizes = output_sizes(model, [model.stem, *model.stages], torch.zeros(1, 3, 32, 32))
        assert sizes == [(4, 32, 32), (4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_logits(self, channels: int) -> None:
        model = ResNet18(7, channels, width=2).build(0)
        assert model(torch.zeros(5, channels, 16, 16)).shape == (5, 7)

    def test_the_head_sees_the_mean_over_positions(self) -> None:
        model = ResNet18(3, width=2).build(0)
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        by_hand = model.head(model.stages(model.stem(x)).flatten(2).mean(2))
        torch.testing.assert_close(model(x), by_hand)


class TestSmallCNN:
    def test_its_parameters_by_hand(self) -> None:
        convolutions = 9 * (1 * 4 + 4 * 8 + 8 * 16)
        norms, head = 2 * (4 + 8 + 16), 16 * 10 + 10
        assert count(SmallCNN(10, width=4).build(0)) == convolutions + norms + head

    def test_the_last_two_blocks_halve_the_image(self) -> None:
        model = SmallCNN(5, 3, width=2).build(0)
        blocks = [m for m in model.blocks if isinstance(m, nn.Conv2d)]
        sizes = output_sizes(model, blocks, torch.zeros(1, 3, 8, 8))
        assert sizes == [(2, 8, 8), (4, 4, 4), (8, 2, 2)]
        assert model(torch.zeros(4, 3, 8, 8)).shape == (4, 5)


class TestLeNet:
    def test_the_usual_one_has_62_006_parameters(self) -> None:
        assert count(LeNet(10).build(0)) == 62_006

    @pytest.mark.parametrize(
        ("size", "sides"), [(32, (28, 10, 5)), (28, (24, 8, 4)), (17, (13, 2, 1))]
    )
    def test_the_sizes_by_hand(self, size: int, sides: tuple[int, int, int]) -> None:
        """Fails with padding, a stride, or a first linear layer for another image size."""
        model = LeNet(7, 2, size).build(0)
        modules = [model.features[0], model.features[3], model.features, model.hidden]
        found = output_sizes(model, modules, torch.zeros(3, 2, size, size))
        a, b, c = sides
        assert found == [(6, a, a), (16, b, b), (16, c, c), (84,)]
        assert model(torch.zeros(3, 2, size, size)).shape == (3, 7)

    def test_too_small_an_image_is_refused(self) -> None:
        assert LeNet(10, size=16).build(0)(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
        with pytest.raises(ValueError, match="LeNet needs images of at least 16 pixels, not 15"):
            LeNet(10, size=15)


SPECS = [ResNet18(4, 1, width=2), SmallCNN(4, width=2), LeNet(4, 1, 16)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: type(s).__name__)
class TestEverySpec:
    def test_the_seed_decides_and_nothing_else(self, spec: ModelSpec) -> None:
        before = torch.get_rng_state()
        a = spec.build(0)
        torch.rand(3)
        b, c = spec.build(0), spec.build(1)
        assert same(a, b)
        assert not same(a, c)
        torch.set_rng_state(before)
        spec.build(2)
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_model_is_in_evaluation_mode_and_channels_last(self, spec: ModelSpec) -> None:
        model = spec.build(0)
        assert not any(m.training for m in model.modules())
        for p in model.parameters():
            if p.dim() == 4:
                assert p.is_contiguous(memory_format=torch.channels_last)

    def test_the_spec_is_plain_data(self, spec: ModelSpec) -> None:
        assert type(spec)(**vars(spec)) == spec
        assert len({spec, type(spec)(**vars(spec))}) == 1


@pytest.mark.parametrize(
    ("spec", "cls"),
    list(zip(SPECS, (ResNet18Classifier, SmallCNNClassifier, LeNetClassifier), strict=True)),
    ids=["ResNet18", "SmallCNN", "LeNet"],
)
def test_saved_and_loaded_the_ecosystem_s_way(spec: ModelSpec, cls: type, tmp_path: Path) -> None:
    """Fails if the constructor's arguments are not in config.json, or a buffer is not saved."""
    model = spec.build(3)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    loaded = cls.from_pretrained(tmp_path).eval()
    assert same(model, loaded)
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(x), model(x))


class TestViT:
    id = "someone/tiny-vit"

    @pytest.fixture
    def saved(self, hub: Path) -> nn.Module:
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = ViTModel(config)
        encoder.save_pretrained(hub / self.id)
        return encoder.eval()

    def test_the_encoder_is_the_saved_one_and_the_head_is_new(self, saved: nn.Module) -> None:
        spec = ViT(3, self.id)
        a, b, c = spec.build(0), spec.build(0), spec.build(1)
        assert same(a.encoder, saved)
        assert same(a, b)
        assert not torch.equal(a.head.weight, c.head.weight)
        assert not a.training

    def test_the_head_reads_the_class_token_of_the_resized_image(self, saved: nn.Module) -> None:
        model = ViT(3, self.id).build(0)
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        resized = nn.functional.interpolate(x, size=(8, 8), mode="bilinear", align_corners=False)
        token = saved(pixel_values=resized).last_hidden_state[:, 0]
        torch.testing.assert_close(model(x), model.head(token))

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    @pytest.mark.parametrize("per_sample", [False, True])
    def test_the_pooler_has_no_importance(self, saved: nn.Module, per_sample: bool) -> None:
        """Fails if a parameter without gradient stops SSD or is taken for specialised."""
        model = ViT(3, self.id).build(0)
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        batches = [(x, torch.tensor([0, 1, 2, 0]))]
        found = importances(model, batches, Classification(3).loss, per_sample=per_sample)
        pooler = {n for n in found if "pooler" in n}
        assert len(pooler) == 2
        for name, value in found.items():
            assert value.any() == (name not in pooler), name

    def test_a_missing_one_says_how_to_get_it(self, hub: Path) -> None:
        with pytest.raises(MissingSourceError, match=f"hf download {self.id}"):
            ViT(3, self.id).build(0)


def test_the_table_names_every_spec() -> None:
    by_name = {"resnet18": ResNet18, "small_cnn": SmallCNN, "lenet": LeNet, "vit": ViT}
    assert by_name == MODELS


class TestPredict:
    @pytest.mark.parametrize("training", [True, False])
    def test_it_is_the_forward_pass_in_evaluation_mode(
        self, tiny_data: ImageData, model: nn.Module, training: bool
    ) -> None:
        """Fails if BatchNorm uses (or changes) its statistics, or the order is lost."""
        x, y = tiny_data.test.batch_of(range(len(tiny_data.test)))
        expected = model(x).detach()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.train(training)
        out = predict(model, tiny_data.test, batch_size=7)
        torch.testing.assert_close(out.logits, expected)
        assert torch.equal(out.labels, y)
        assert model.training is training
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def test_it_builds_no_graph_and_leaves_gradients_on(
        self, tiny_data: ImageData, model: nn.Module
    ) -> None:
        assert not predict(model, tiny_data.test).logits.requires_grad
        assert torch.is_grad_enabled()

    def test_an_error_restores_the_mode(self) -> None:
        model = nn.Linear(2, 2).train()
        with pytest.raises(RuntimeError):
            predict(model, TensorDataset(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)))
        assert model.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmallCNN(classes=10, width=0), "SmallCNN: width must be at least 1, not 0"),
        (lambda: SmallCNN(classes=10, channels=-3), "channels must be at least 1, not -3"),
        (lambda: ResNet18(classes="10"), "ResNet18: classes must be a whole number, not '10'"),
        (lambda: ResNet18(classes=True), "classes must be a whole number, not True"),
        (lambda: LeNet(classes=10, size=32.5), "size must be a whole number, not 32.5"),
        (lambda: ViT(classes=10, id=7), "ViT: id must be of type str, not 7"),
        (lambda: TinyLlama(heads=0), "TinyLlama: heads must be at least 1, not 0"),
        (lambda: TinyLlama(hidden=30), "hidden 30 is not a multiple of 4 heads"),
        (lambda: CausalLM("id", "{question}", lora_rank=0), "lora_rank must be at least 1 or None"),
        (lambda: CausalLM("id", "{question}", dtype="half"), "dtype must be 'float32' or"),
        (lambda: TinyLlava(("red",), patch=0), "TinyLlava: patch must be at least 1, not 0"),
        (lambda: TextToImage(fold=0), "TextToImage: fold must be at least 1, not 0"),
        (lambda: ClassToImage(classes=2, drop=1.5), r"drop must be in \[0, 1\), not 1.5"),
        (lambda: ClassToImage(classes=2, drop=float("nan")), "drop must be a finite number"),
    ],
)
def test_what_no_model_can_be_made_of_is_refused_at_once(
    make: Callable[[], ModelSpec], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()
