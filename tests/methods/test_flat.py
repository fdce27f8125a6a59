"""FLAT's losses, against numbers recorded from the authors' code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unlearn_core.methods.flat import DIVERGENCES, answer_probability, divergence_loss

Golden = Callable[[str], dict[str, Tensor]]
NAMES = {"kl": "KL", "js": "JS", "pearson": "Pearson", "tv": "TV"}


class TestDivergence:
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_recorded_values_and_slopes(self, golden: Golden, divergence: str) -> None:
        """The code's Jensen-Shannon has log 2 in single precision: 4e-9."""
        g = golden("flat/flat_scalar_1")
        a, b = (g[k].clone().requires_grad_() for k in ("in_a", "in_b"))
        loss = divergence_loss(a, b, divergence)
        name = NAMES[divergence]
        torch.testing.assert_close(loss.detach(), g[f"out_loss_{name}"], rtol=0, atol=1e-8)
        slopes = torch.autograd.grad(loss.sum(), (a, b))
        for slope, key in zip(slopes, ("dLda", "dLdb"), strict=True):
            torch.testing.assert_close(slope, g[f"out_{key}_{name}"], rtol=0, atol=1e-8)

    @pytest.mark.parametrize(
        ("divergence", "lowest"),
        [("kl", -0.6321206), ("js", -0.3798854), ("pearson", -1.0), ("tv", -0.3807971)],
    )
    def test_lowest_where_the_template_is_sure_and_the_answer_gone(
        self, divergence: str, lowest: float
    ) -> None:
        """Fails where a sign is turned, by which the answer is learned again; or where the loss
        has no bound."""
        grid = torch.linspace(0, 1, 21).double()
        loss = divergence_loss(grid[:, None], grid[None, :], divergence)
        assert loss.min() == loss[-1, 0]
        assert loss.min().item() == pytest.approx(lowest, abs=1e-6)
        assert (loss.diff(dim=0) < 0).all()
        assert (loss.diff(dim=1) > 0).all()

    def test_another_divergence(self) -> None:
        with pytest.raises(ValueError, match="unknown divergence 'neyman'; known: tv, js"):
            divergence_loss(torch.zeros(1), torch.zeros(1), "neyman")


@pytest.mark.parametrize("case", ["flat_loss_1", "flat_loss_2", "flat_loss_3"])
class TestRecordedBatches:
    def test_probabilities(self, golden: Golden, case: str) -> None:
        g = golden(f"flat/{case}")
        for side, letter in (("template", "a"), ("forget", "b")):
            for normalize in ("answer", "padded"):
                found = answer_probability(
                    g[f"in_logits_{side}"], g[f"in_labels_{side}"], normalize
                )
                expected = g[f"out_{letter}_{normalize}"]
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_losses_and_gradients(self, golden: Golden, case: str, divergence: str) -> None:
        """Fails where the padded length and the answer's are exchanged, or the place of the mean."""
        g, name = golden(f"flat/{case}"), NAMES[divergence]
        logits = {s: g[f"in_logits_{s}"].clone().requires_grad_() for s in ("forget", "template")}

        def probability(side: str, normalize: str) -> Tensor:
            return answer_probability(logits[side], g[f"in_labels_{side}"], normalize)

        for variant, normalize, mean_first in (
            ("code", "padded", True),
            ("paper", "answer", False),
            ("answer_batchmean", "answer", True),
            ("padded_sequence", "padded", False),
        ):
            a, b = probability("template", normalize), probability("forget", normalize)
            if mean_first:
                a, b = a.mean(), b.mean()
            loss = divergence_loss(a, b, divergence).mean()
            expected = g[f"out_{variant}_loss_{name}"]
            torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=1e-8)
            if variant in ("code", "paper"):
                gradients = torch.autograd.grad(loss, list(logits.values()))
                for side, gradient in zip(logits, gradients, strict=True):
                    expected = g[f"out_{variant}_grad_{side}_{name}"]
                    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-8)


def test_an_answer_that_is_not_there() -> None:
    labels = torch.tensor([[-100, 1], [-100, -100]])
    with pytest.raises(ValueError, match="no answer"):
        answer_probability(torch.zeros(2, 2, 3), labels)
    assert answer_probability(torch.zeros(2, 2, 3), labels, "padded")[1] == 0
