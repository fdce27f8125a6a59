"""Image classifiers, described by small frozen specs that can be hashed, cached and rebuilt.

A spec (`ResNet18`, `SmallCNN`, `LeNet`, `ViT`) is plain data; ``spec.build(seed)`` makes a freshly
initialised network that maps a normalised batch ``(B, C, H, W)`` to logits ``(B, classes)``.
The networks save and load with ``save_pretrained`` / ``from_pretrained`` (safetensors).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ..data import Source, resolve
from ..extras import needing
from ..fields import Count, check_fields
from ..seeding import seeded

__all__ = [
    "ClassifierSpec",
    "LeNet",
    "LeNetClassifier",
    "MODELS",
    "ModelSpec",
    "ResNet18",
    "ResNet18Classifier",
    "SmallCNN",
    "SmallCNNClassifier",
    "ViT",
]


class ResNet18Classifier(
    nn.Module, PyTorchModelHubMixin, library_name="unlearn-core", tags=["image-classification"]
):
    """ResNet-18 with the CIFAR stem: 3x3 stride-1 convolution, no max-pooling.

    Stages have ``width * (1, 2, 4, 8)`` channels and strides ``(1, 2, 2, 2)``, two basic blocks
    each (He et al., 2016; the stem and the strides as in the SSD authors' ``src/resnet.py``).
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        # torchvision takes a second to import, and only this needs it.
        from torchvision.models.resnet import BasicBlock

        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        stages, inside = [], width
        for factor, stride in zip((1, 2, 4, 8), (1, 2, 2, 2), strict=True):
            outside = width * factor
            shortcut = None
            if stride != 1 or inside != outside:
                shortcut = nn.Sequential(
                    nn.Conv2d(inside, outside, 1, stride=stride, bias=False),
                    nn.BatchNorm2d(outside),
                )
            stages.append(
                nn.Sequential(
                    BasicBlock(inside, outside, stride, shortcut), BasicBlock(outside, outside)
                )
            )
            inside = outside
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inside, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W), normalised, to logits (N, classes)."""
        return self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))


class SmallCNNClassifier(
    nn.Module, PyTorchModelHubMixin, library_name="unlearn-core", tags=["image-classification"]
):
    """Three blocks of 3x3 convolution, BatchNorm, ReLU; the last two halve the image."""

    def __init__(self, classes: int, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        blocks, inside = [], channels
        for factor, stride in ((1, 1), (2, 2), (4, 2)):
            outside = width * factor
            blocks += [
                nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outside),
                nn.ReLU(inplace=True),
            ]
            inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W), normalised, to logits (N, classes)."""
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class LeNetClassifier(
    nn.Module, PyTorchModelHubMixin, library_name="unlearn-core", tags=["image-classification"]
):
    """LeNet-5 with ReLU and max-pooling: convolutions of 6 and 16, linear layers of 120 and 84.

    The network ``CNN`` of the IAU authors' ``train_model.py``: 5x5 convolutions without padding,
    no BatchNorm, no dropout. ``size`` is the images' height and width in pixels.
    """

    def __init__(self, classes: int, channels: int = 3, size: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        side = ((size - 4) // 2 - 4) // 2
        self.hidden = nn.Sequential(
            nn.Linear(16 * side**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()
        )
        self.head = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W), normalised, to logits (N, classes)."""
        return self.head(self.hidden(self.features(x).flatten(1)))


class ViTClassifier(nn.Module):
    """A pretrained ViT with a linear head on the CLS token, images resized to its input size.

    As the SSD authors' ``src/models.py``: the normalised image is resized (bilinear), not
    passed through the model's own processor; the pooler stays and gets no gradient.
    """

    def __init__(self, classes: int, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        size = self.encoder.config.image_size
        x = nn.functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        return self.head(self.encoder(pixel_values=x).last_hidden_state[:, 0])


class ModelSpec:
    """Base of all specs: ``build(seed)`` makes a fresh model.

    A spec's fields are held to their annotations (`unlearn_core.fields`) when it is made; one with a
    ``__post_init__`` of its own calls this one.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    def make(self) -> nn.Module:
        """A new model on the CPU, its weights drawn from the global random state; `build` seeds it.

        This is what a spec of one's own defines.

        Raises
        ------
        MissingSourceError
            Pretrained weights are nowhere to be found.
        """
        raise NotImplementedError

    def sources(self) -> tuple[Source, ...]:
        """Where pretrained weights come from; they determine the model as the spec does."""
        return ()

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised model in evaluation mode, on the CPU."""
        with seeded(seed, "init"):
            return self.make().eval()


@dataclass(frozen=True)
class ClassifierSpec(ModelSpec):
    """Base of the specs of classifiers."""

    classes: Count

    def build(self, seed: int) -> nn.Module:
        return super().build(seed).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class ResNet18(ClassifierSpec):
    """ResNet-18 with the CIFAR stem; width 64 is the usual one (11.2 M parameters)."""

    channels: Count = 3
    width: Count = 64

    def make(self) -> nn.Module:
        return ResNet18Classifier(self.classes, self.channels, self.width)


@dataclass(frozen=True)
class SmallCNN(ClassifierSpec):
    """Three convolutions; for images of 8 to 32 pixels."""

    channels: Count = 1
    width: Count = 16

    def make(self) -> nn.Module:
        return SmallCNNClassifier(self.classes, self.channels, self.width)


@dataclass(frozen=True)
class LeNet(ClassifierSpec):
    """LeNet-5 for square images of ``size`` pixels, at least 16; 62,006 parameters as it is."""

    channels: Count = 3
    size: Count = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 16:
            raise ValueError(f"LeNet needs images of at least 16 pixels, not {self.size}")

    def make(self) -> nn.Module:
        return LeNetClassifier(self.classes, self.channels, self.size)


@dataclass(frozen=True)
class ViT(ClassifierSpec):
    """A ViT from the hub, pretrained, with a new linear head."""

    id: str = "google/vit-base-patch16-224"

    def sources(self) -> tuple[Source, ...]:
        patterns = ("config.json", "*.safetensors")
        return (resolve(self.id, repo_type="model", patterns=patterns),)

    @needing("vit")
    def make(self) -> nn.Module:
        from transformers import ViTModel

        (source,) = self.sources()
        encoder = ViTModel.from_pretrained(source.path, use_safetensors=True)
        return ViTClassifier(self.classes, encoder)


#: Image classifiers, by the name in a profile's ``model``.
MODELS: dict[str, type[ClassifierSpec]] = {
    "resnet18": ResNet18,
    "small_cnn": SmallCNN,
    "lenet": LeNet,
    "vit": ViT,
}
