"""Attacks on models that were made to forget how to draw something."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unlearn_core.data import captioned_shapes
from unlearn_core.metrics import relearned_drawing, search_embedding
from unlearn_core.models import TextToImage
from unlearn_core.models.diffusion import Fold

ALPHAS = torch.linspace(0.99, 0.05, 10)


class Painter(nn.Module):
    """Knows the noise in an image whose pixels all have the value that its text states say."""

    steps = 10
    codec = Fold(1)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def embed(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 2, 3)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a = ALPHAS[t].view(-1, 1, 1, 1)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def denoise(self, x_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
        a = ALPHAS[t].view(-1, 1, 1, 1)
        value = states.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        return (x_t - a.sqrt() * value) / (1 - a).sqrt() + self.weight


class TestSearch:
    def test_what_draws_the_images_is_found(self) -> None:
        """Fails where the loss of another step, or of other images, is followed."""
        model = Painter().train()
        images = torch.full((4, 1, 2, 2), 0.6)
        found = search_embedding(model, images, "x", steps=150, lr=0.05)
        assert found.shape == (1, 2, 3)
        assert found.mean().item() == pytest.approx(0.6, abs=0.02)
        assert model.weight.grad is None
        assert model.training

    def test_the_seed_draws(self) -> None:
        images = torch.rand(4, 1, 2, 2)
        one, same, other = (
            search_embedding(Painter(), images, "x", steps=5, seed=s) for s in (0, 0, 1)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_no_image(self) -> None:
        with pytest.raises(ValueError, match="no image of what is looked for"):
            search_embedding(Painter(), torch.empty(0, 1, 2, 2), "x")


def test_relearning_is_looked_at_on_the_way() -> None:
    """Fails where the given model is trained, or a look comes a step too late."""
    model = TextToImage(size=16, widths=(8, 16)).build(0)
    before = [p.clone() for p in model.parameters()]
    shown = captioned_shapes(3, 1, nouns=2).train
    seen: list[Tensor] = []

    def look(trained: nn.Module) -> float:
        seen.append(next(trained.parameters()).detach().clone())
        return float(len(seen))

    points = relearned_drawing(model, shown, look, [1, 3], lr=1e-2, batch_size=4)
    assert points == [(0, 1.0), (1, 2.0), (3, 3.0)]
    assert torch.equal(seen[0], before[0])
    assert not torch.equal(seen[1], seen[2])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
