from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unlearn_core.data import MissingSourceError
from unlearn_core.metrics import (
    EXPOSED,
    INCEPTION,
    METRICS,
    Estimate,
    ZeroShot,
    changed_pixels,
    classifier_fid,
    clip_score,
    drawn_as,
    frechet_distance,
    generation,
    harmonic_mean,
    inception_features,
    judge,
    nudity_counts,
    unlearning_accuracy,
)
from unlearn_core.models import SmallCNN
from unlearn_core.replication.rehearsal import clip as build_clip
from unlearn_core.replication.rehearsal import coco as build_coco


class Reader(nn.Module):
    """Its logits are the first pixels of an image times ten; it must be in evaluation mode."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return self.scale * x.flatten(1)[:, : self.classes]


def pictures(*rows: tuple[float, ...]) -> Tensor:
    """Images of 2x2 pixels from their first three pixels."""
    return torch.tensor([(*row, 0.0) for row in rows]).reshape(-1, 1, 2, 2)


#: Named 0, 0, 1 and 2, the last one with half a probability.
FOUR = pictures((1, 0, 0), (0.5, 0, 0), (-1, 1, -1), (-1, 0.25, 0.26))


class TestDrawnAs:
    def test_top_1_and_probability_of_one_class(self) -> None:
        """By hand. Fails if the probability is of the class that is named, or a fraction."""
        named, sure = drawn_as(Reader(), FOUR, 0)
        assert named == Estimate(50.0, 4, 100 * math.sqrt(0.25 / 4))
        logits = [(10, 0, 0), (5, 0, 0), (-10, 10, -10), (-10, 2.5, 2.6)]
        p = torch.tensor([math.exp(a) / sum(map(math.exp, (a, b, c))) for a, b, c in logits])
        assert sure.value == pytest.approx(100 * p.mean().item(), rel=1e-5)
        assert sure.n == 4
        assert sure.stderr == pytest.approx(100 * p.std().item() / 2, rel=1e-5)

    def test_each_image_may_have_its_own_class(self) -> None:
        """Fails if the first label stands for all."""
        named, sure = drawn_as(Reader(), FOUR, torch.tensor([0, 1, 1, 1]))
        assert named.value == 50
        assert named != drawn_as(Reader(), FOUR, 1)[0]
        p = judge(Reader(), FOUR)
        expected = math.exp(2.5) / (math.exp(-10) + math.exp(2.5) + math.exp(2.6))
        assert p[3, 1].item() == pytest.approx(expected, rel=1e-5)
        assert sure.value == pytest.approx(25 * (p[0, 0] + p[1:, 1].sum()).item())

    def test_the_classifier_keeps_its_mode_and_gets_no_gradient(self) -> None:
        classifier = Reader().train()
        drawn_as(classifier, FOUR, 0)
        assert classifier.training
        assert classifier.scale.grad is None

    @pytest.mark.parametrize("wrong", [math.nan, math.inf, 1.5, 255.0])
    def test_pixels_of_another_range_are_an_error(self, wrong: float) -> None:
        """Fails where NaN, of which the first class is the largest logit, counts as a hit."""
        with pytest.raises(ValueError, match=r"finite and lie in \[-1, 1\]"):
            drawn_as(Reader(), pictures((wrong, 0, 0)), 0)

    @pytest.mark.parametrize("images", [torch.empty(0), torch.empty(0, 1, 2, 2), torch.ones(1, 2)])
    def test_no_image_is_an_error(self, images: Tensor) -> None:
        with pytest.raises(ValueError, match="n at least 1"):
            drawn_as(Reader(), images, 0)

    def test_another_number_of_labels_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="4 images have 1 labels"):
            drawn_as(Reader(), FOUR, torch.tensor([0]))


class TestHarmonicMean:
    @pytest.mark.parametrize(
        ("accuracies", "expected"),
        [
            ((9.06, 95.39, 10.03), 92.04),
            ((40.32, 98.79, 49.83), 64.09),
            ((4.30, 84.56), 89.79),
        ],
    )
    def test_values_of_the_mace_paper(self, accuracies: tuple[float, ...], expected: float) -> None:
        """Its airplane rows of MACE and UCE, and 100 celebrities. Fails if an accuracy that should
        be low is taken as it is, or H_c for H_o."""
        found = harmonic_mean(*map(Estimate, accuracies))
        assert found == Estimate(pytest.approx(expected, abs=0.01))

    def test_it_is_the_formula(self) -> None:
        e, s, g = 0.2, 0.7, 0.35
        expected = 3 / (1 / (1 - e) + 1 / s + 1 / (1 - g))
        found = harmonic_mean(Estimate(20), Estimate(70), Estimate(35))
        assert found.value == pytest.approx(100 * expected)

    @pytest.mark.parametrize(
        "accuracies", [(100, 90, 5), (5, 0, 5), (5, 90, 100), (100, 90), (100, 0, 100)]
    )
    def test_a_part_that_is_0_makes_it_0(self, accuracies: tuple[float, ...]) -> None:
        assert harmonic_mean(*map(Estimate, accuracies)) == Estimate(0)

    @pytest.mark.parametrize("accuracies", [(101, 50), (50, 101), (-1, 50), (50, 50, 101)])
    def test_only_per_cent(self, accuracies: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="in per cent"):
            harmonic_mean(*map(Estimate, accuracies))


def test_unlearning_accuracy_is_the_rest() -> None:
    assert unlearning_accuracy(Estimate(12.5, 8, 3.0)) == (87.5, 8, 3.0)


class TestChangedPixels:
    def test_per_cent_of_the_range(self) -> None:
        """By hand: of one image all pixels go from black to white, of the other one a quarter of
        the way. Fails in levels of 0 to 255, for the range 1, or if differences cancel."""
        before = torch.stack([torch.full((1, 2, 2), -1.0), torch.zeros(1, 2, 2)])
        after = torch.stack([torch.ones(1, 2, 2), torch.tensor([[[0.5, -0.5], [0.5, -0.5]]])])
        found = changed_pixels(before, after)
        assert found == (62.5, 2, pytest.approx(37.5))
        assert changed_pixels(after, before) == found
        assert changed_pixels(after, after).value == 0

    def test_images_are_compared_one_by_one(self) -> None:
        with pytest.raises(ValueError, match="images of"):
            changed_pixels(torch.zeros(2, 1, 2, 2), torch.zeros(1, 1, 2, 2))


def gaussian(n: int, mean: list[float], spread: Tensor, seed: int) -> Tensor:
    """(n, d) with exactly this sample mean and this covariance root: whitened, then transformed."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, len(mean), generator=draw, dtype=torch.float64)
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov()).T)
    return x @ spread + torch.tensor(mean, dtype=torch.float64)


class TestFrechetDistance:
    def test_closed_form_of_diagonal_covariances(self) -> None:
        """sum (m_a - m_b)^2 + (s_a - s_b)^2. Fails if covariances are over n, or a trace is left
        out."""
        a = gaussian(20, [0, 1, 2], torch.diag(torch.tensor([1.0, 2.0, 3.0]).double()), 0)
        b = gaussian(30, [1, 1, 4], torch.diag(torch.tensor([2.0, 2.0, 0.5]).double()), 1)
        assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 6.25, rel=1e-10)

    def test_against_the_root_of_the_product(self) -> None:
        """Covariances that do not commute, by scipy's sqrtm. Fails if the roots are multiplied."""
        from scipy.linalg import sqrtm

        draw = torch.Generator().manual_seed(0)
        a, b = (torch.randn(40, 5, generator=draw).double() for _ in range(2))
        a, b = a @ torch.randn(5, 5, generator=draw).double(), b + 1
        one, two = a.T.cov(), b.T.cov()
        root = sqrtm((one @ two).numpy()).real
        expected = (a.mean(0) - b.mean(0)).square().sum() + (one + two).trace() - 2 * root.trace()
        assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
        assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)

    @pytest.mark.parametrize("n", [3, 50])
    def test_a_set_is_at_no_distance_from_itself(self, n: int) -> None:
        """Also where the covariance is singular: 3 points in 8 dimensions."""
        a = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
        assert 0 <= frechet_distance(a, a) < 1e-10
        assert 0 <= frechet_distance(a, a.flip(0)) < 1e-10

    def test_points_of_one_value(self) -> None:
        """A model that draws one image only: no covariance is left."""
        a = gaussian(20, [0, 0], torch.eye(2).double(), 0)
        constant = torch.tensor([[3.0, 4.0]]).expand(10, 2)
        assert frechet_distance(a, constant) == pytest.approx(25 + 2)

    @pytest.mark.parametrize(
        ("a", "b"), [((5, 2), (5, 3)), ((1, 2), (5, 2)), ((5, 2), (1, 2)), ((5,), (5,))]
    )
    def test_sets_that_can_t_be_compared(self, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="two sets of features"):
            frechet_distance(torch.zeros(a), torch.zeros(b))


class TestClassifierFID:
    images = torch.rand(2, 30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def test_features_are_what_the_head_reads(self) -> None:
        """Fails with logits for features, or in training mode."""
        classifier = SmallCNN(10, width=2).build(0).train()
        drawn, real = self.images
        found = classifier_fid(classifier, drawn, real)
        assert classifier.training
        classifier.eval()
        with torch.no_grad():
            a, b = (classifier.blocks(x).mean(dim=(2, 3)) for x in (drawn, real))
        assert a.shape == (30, 8)
        assert found == (pytest.approx(frechet_distance(a, b), rel=1e-5), 30, None)
        classifier_fid(classifier, drawn, real)
        assert not classifier.head._forward_pre_hooks

    def test_real_images_against_themselves(self) -> None:
        classifier = SmallCNN(10, width=2).build(0)
        assert classifier_fid(classifier, self.images[0], self.images[0]).value < 1e-9
        halves = classifier_fid(classifier, self.images[1][::2], self.images[1][1::2]).value
        assert halves > 1e-6

    def test_a_classifier_without_a_linear_layer(self) -> None:
        with pytest.raises(ValueError, match="no linear layer"):
            classifier_fid(Reader(), FOUR, FOUR)


class TestInception:
    @pytest.fixture
    def weights(self, tmp_path: Path) -> Path:
        """Made-up weights under the real names."""
        build_coco(tmp_path / "coco")
        return tmp_path / "coco" / INCEPTION

    def test_features_are_the_extractor_s_of_images_resized_as_in_clean_fid(
        self, weights: Path
    ) -> None:
        """Against PIL and torch-fidelity. Fails without antialiasing, with values in [-1, 1], or where
        images of several sizes lose their place."""
        from PIL import Image
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        g = torch.Generator().manual_seed(0)
        sizes = ((640, 427), (512, 512), (40, 30))
        images = [torch.randint(256, (3, *size), generator=g, dtype=torch.uint8) for size in sizes]
        images[1] //= 3
        squares = [
            Image.fromarray(x.permute(1, 2, 0).numpy()).resize((299, 299), Image.Resampling.BICUBIC)
            for x in images
        ]
        x = torch.stack([torch.from_numpy(np.array(s)).permute(2, 0, 1) for s in squares])
        extractor = FeatureExtractorInceptionV3("theirs", ["2048"], str(weights))
        (expected,) = extractor(x)
        found = inception_features(images, weights)
        assert found.shape == (3, 2048)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)
        assert (expected[0] - expected[1]).norm() > 0.05 * expected[0].norm()


@pytest.fixture
def clip(hub: Path) -> Iterator[str]:
    """A random CLIP of a few dimensions in the hub folder; its tokens are letters."""
    build_clip(hub / "tiny" / "clip")
    generation._clip.cache_clear()
    yield "tiny/clip"
    generation._clip.cache_clear()


class TestClip:
    images = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompts = ("a bag", "a sneaker", "boots", "a bag", "a long prompt of more than enough letters")

    def cosines(self, hub: Path, images: Tensor) -> Tensor:
        """Each image with each prompt, as transformers has it, with the scale it has learned."""
        from PIL import Image
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        folder = hub / "tiny" / "clip"
        model = CLIPModel.from_pretrained(folder)
        files = [
            Image.fromarray(np.uint8(np.round((x[0].numpy() + 1) * 127.5))).convert("RGB")
            for x in images
        ]
        pixels = CLIPImageProcessor.from_pretrained(folder)(files, return_tensors="pt")
        words = CLIPTokenizer.from_pretrained(folder)(
            list(self.prompts), padding=True, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            return model(**pixels, **words).logits_per_image / model.logit_scale.exp()

    def test_score_of_pairs(self, clip: str, hub: Path) -> None:
        """Against transformers on image files. Fails with the pixels in [-1, 1], each image with
        all prompts, batches that lose their place, or a cosine for 100 of it."""
        pairs = self.cosines(hub, self.images).diagonal()
        found = clip_score(self.images, self.prompts, clip, batch_size=2)
        assert found.value == pytest.approx(100 * pairs.mean().item(), abs=1e-3)
        assert found.n == 5
        assert found.stderr == pytest.approx(100 * pairs.std().item() / math.sqrt(5), abs=1e-3)
        assert pairs.std() > 0.01

    def test_zero_shot_classifier(self, clip: str, hub: Path) -> None:
        """MACE's Acc_e. Fails with cosines for logits."""
        expected = (100 * self.cosines(hub, self.images)[:, :3]).softmax(dim=1)
        classifier = ZeroShot(self.prompts[:3], clip)
        named, sure = drawn_as(classifier, self.images, 1)
        assert not classifier.model.training  # all scores share it
        assert sure.value == pytest.approx(100 * expected[:, 1].mean().item(), abs=1e-2)
        assert named.value == 100 * (expected.argmax(dim=1) == 1).double().mean().item()

    def test_a_pair_is_an_image_and_a_prompt(self) -> None:
        with pytest.raises(ValueError, match="5 images have 1 prompts"):
            clip_score(self.images, ["a bag"])

    def test_nothing_has_no_score(self) -> None:
        with pytest.raises(ValueError, match="a mean of nothing"):
            clip_score(torch.empty(0), [])

    def test_a_model_that_is_not_there(self, hub: Path) -> None:
        with pytest.raises(MissingSourceError, match="no/clip was not found"):
            clip_score(self.images, self.prompts, "no/clip")
        with pytest.raises(MissingSourceError, match="no/clip was not found"):
            ZeroShot(["a bag"], "no/clip")


class TestNudity:
    def test_detections_above_the_threshold_count(self) -> None:
        """By hand. Fails if images are counted, covered parts or a score of the threshold itself."""

        def detector(images: Tensor) -> list[list[dict[str, object]]]:
            feet = [{"class": "FEET_EXPOSED", "score": s} for s in (0.9, 0.61, 0.6, 0.2)]
            others = [{"class": c, "score": 0.9} for c in ("FACE_MALE", "BELLY_COVERED")]
            return [feet, [], [*others, {"class": "BELLY_EXPOSED", "score": 0.7}, feet[0]]]

        found = nudity_counts(torch.zeros(3, 1, 4, 4), detector)
        assert found == dict.fromkeys(EXPOSED, 0) | {"FEET_EXPOSED": 3, "BELLY_EXPOSED": 1}
        lower = nudity_counts(torch.zeros(3, 1, 4, 4), detector, threshold=0.1)
        assert lower["FEET_EXPOSED"] == 5

    def test_eight_parts(self) -> None:
        assert len(set(EXPOSED)) == 8
        assert all(part.endswith("_EXPOSED") for part in EXPOSED)

    def test_a_detector_must_look_at_every_image(self) -> None:
        with pytest.raises(ValueError, match="of 1 images, not 2"):
            nudity_counts(torch.zeros(2, 1, 4, 4), lambda images: [[]])

    def test_nudenet_reads_images_as_opencv_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails with red for blue, values of another range, or channels first."""
        seen = []

        class NudeDetector:
            def detect(self, array: np.ndarray) -> list[dict[str, object]]:
                seen.append(array)
                return [{"class": "FEET_EXPOSED", "score": 0.8, "box": [0, 0, 1, 1]}]

        monkeypatch.setitem(sys.modules, "nudenet", SimpleNamespace(NudeDetector=NudeDetector))
        generation._nudenet.cache_clear()
        images = torch.tensor([1.0, 0.0, -1.0])[None, :, None, None].expand(2, 3, 4, 6)
        assert nudity_counts(images)["FEET_EXPOSED"] == 2
        generation._nudenet.cache_clear()
        assert [a.shape for a in seen] == [(4, 6, 3)] * 2
        assert seen[0].dtype == np.uint8
        assert seen[0].flags["C_CONTIGUOUS"]
        assert seen[0][0, 0].tolist() == [0, 128, 255]

    def test_without_nudenet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "nudenet", None)
        generation._nudenet.cache_clear()
        with pytest.raises(MissingSourceError, match="nudenet is not available"):
            nudity_counts(torch.zeros(2, 1, 4, 4))


def test_the_catalogue_has_what_a_row_of_drawn_images_may_hold() -> None:
    names = {"classifier_fid", "clip_score", "nudity_count", "changed_pixels"}
    names |= {"attacked_accuracy", "relearned_generation"}
    names |= {"inception_fid", "erased_clip_score", "clip_gap"}
    assert names <= METRICS.keys()
    for name in names:
        assert METRICS[name].definition.endswith(".")
