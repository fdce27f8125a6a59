"""FLAT, its losses against numbers recorded from the authors' code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded import LogitTables, batch_of
from torch import Tensor

from unlearn_core.data import Answering, ForgetSplit
from unlearn_core.methods import FLAT, FixedWeights
from unlearn_core.methods.flat import DIVERGENCES, answer_probability, divergence_loss
from unlearn_core.models import Chat, TrainConfig

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
            model = LogitTables({side: g[f"in_logits_{side}"]})
            batch = batch_of(side, g[f"in_labels_{side}"])
            for normalize, length in (("answer", None), ("padded", batch["labels"].shape[1])):
                found = answer_probability(Answering(), model, batch, length).detach()
                expected = g[f"out_{letter}_{normalize}"]
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize(
        ("variant", "reduce"), [("paper", "sequence"), ("answer_batchmean", "batch_mean")]
    )
    def test_losses_and_gradients(
        self, golden: Golden, case: str, divergence: str, variant: str, reduce: str
    ) -> None:
        """Fails where a mean is taken at the other place."""
        g, name = golden(f"flat/{case}"), NAMES[divergence]
        sides = ("forget", "template")
        model = LogitTables({s: g[f"in_logits_{s}"] for s in sides})
        batch = {s: batch_of(s, g[f"in_labels_{s}"]) for s in sides}
        method = FLAT(divergence=divergence, reduce=reduce)
        loss = method.loss(Answering(), model, batch)
        expected = g[f"out_{variant}_loss_{name}"]
        torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=1e-8)
        if variant == "paper":
            gradients = torch.autograd.grad(loss, [model.tables[s] for s in sides])
            for side, gradient in zip(sides, gradients, strict=True):
                expected = g[f"out_{variant}_grad_{side}_{name}"]
                torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-8)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize(
        ("variant", "mean_first"), [("code", True), ("padded_sequence", False)]
    )
    def test_divided_by_the_padded_length(
        self, golden: Golden, case: str, divergence: str, variant: str, mean_first: bool
    ) -> None:
        """As the code does; in these cases each side is padded to a length of its own."""
        g, name = golden(f"flat/{case}"), NAMES[divergence]
        sides = ("template", "forget")
        model = LogitTables({s: g[f"in_logits_{s}"] for s in sides})
        a, b = (
            answer_probability(Answering(), model, batch_of(s, labels), labels.shape[1])
            for s in sides
            for labels in [g[f"in_labels_{s}"]]
        )
        if mean_first:
            a, b = a.mean(), b.mean()
        loss = divergence_loss(a, b, divergence).mean()
        expected = g[f"out_{variant}_loss_{name}"]
        torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=1e-8)
        if variant == "code":
            gradients = torch.autograd.grad(loss, [model.tables[s] for s in sides])
            for side, gradient in zip(sides, gradients, strict=True):
                expected = g[f"out_{variant}_grad_{side}_{name}"]
                torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-8)


def test_one_length_for_both_sides() -> None:
    """Fails where each batch is divided by its own length: 500 counts for both in the code."""
    tables = {"template": torch.zeros(1, 3, 4), "forget": torch.zeros(1, 5, 4)}
    batch = {k: batch_of(k, torch.full(v.shape[:2], 1)) for k, v in tables.items()}
    method = FLAT(divergence="pearson", padded_to=11)
    a, b = 2 / 4 / 10, 4 / 4 / 10
    loss = method.loss(Answering(), LogitTables(tables), batch)
    assert loss.item() == pytest.approx(-a + b + b**2 / 4)


@pytest.mark.parametrize(("of", "expected"), [("probability", 3 / 4), ("loss", math.log(4))])
def test_fixed_weights_by_hand(of: str, expected: float) -> None:
    """Of an answer that is sure and a template with one chance in four; fails where the two sides
    are exchanged."""
    tables = {"template": torch.zeros(1, 2, 4), "forget": torch.zeros(1, 2, 4)}
    tables["forget"][0, 0, 1] = 50.0
    batch = {k: batch_of(k, torch.tensor([[-100, 1]])) for k in tables}
    loss = FixedWeights(of=of).loss(Answering(), LogitTables(tables), batch).item()
    assert loss == pytest.approx(expected)


def test_an_answer_that_is_not_there() -> None:
    model = LogitTables({"x": torch.zeros(2, 2, 3)})
    batch = batch_of("x", torch.tensor([[-100, 1], [-100, -100]]))
    with pytest.raises(ValueError, match="no answer"):
        answer_probability(Answering(), model, batch)
    assert answer_probability(Answering(), model, batch, 2)[1] == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"divergence": "hellinger"}, "'tv' or 'js' or 'pearson' or 'kl', not 'hellinger'"),
        ({"padded_to": 1}, "padded_to must be at least 2 or None, not 1"),
        ({"reduce": "sum"}, "reduce must be 'sequence' or 'batch_mean', not 'sum'"),
    ],
)
def test_unknown_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FLAT(**options)


class TestUnlearning:
    """On a tiny model that has learned its few answers by heart."""

    def probabilities(self, model: Chat, split: ForgetSplit, answers: Any) -> Tensor:
        batch = answers.collate([answers[i] for i in range(len(answers))])
        with torch.no_grad():
            return answer_probability(split.task, model, batch)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_answers_go_and_templates_come(
        self, learned: tuple[Chat, ForgetSplit], divergence: str
    ) -> None:
        """Fails where the two sides of a pair are exchanged, which would teach the answers."""
        model, split = learned
        config = TrainConfig(epochs=25, lr=1e-3, batch_size=4, optimizer="adamw")
        unlearned = FLAT(divergence, config)(model, split)
        n = len(split.forget)
        templates = [split.forget.with_answers([t] * n) for t in split.task.templates]
        answer, template = (
            sum(self.probabilities(unlearned, split, x).mean() for x in sets) / len(sets)
            - sum(self.probabilities(model, split, x).mean() for x in sets) / len(sets)
            for sets in ([split.forget], templates)
        )
        assert answer < -0.8
        assert template > 0.03

    def test_the_epochs_draw_templates_anew(self, learned: tuple[Chat, ForgetSplit]) -> None:
        """Fails where templates are drawn once, or a question comes twice in an epoch."""
        model, split = learned
        config = TrainConfig(epochs=2, lr=1e-3, batch_size=3)
        epochs = FLAT(train=config).epochs(None, split, 0)

        def said(epoch: int, side: str) -> list[str]:
            rows = [r for b in epochs(epoch) for r in b[side]["input_ids"].tolist()]
            return sorted(model.tokenizer.batch_decode(rows, skip_special_tokens=True))

        whole = [model.prompt(q) + a for q, a in (split.forget.questions[i] for i in range(8))]
        assert said(0, "forget") == said(1, "forget") == sorted(whole)
        assert said(0, "template") == said(0, "template") != said(1, "template")
        templates = {t for text in said(0, "template") for t in [text.split("Answer: ")[1]]}
        assert len(templates) > 1
        assert templates <= set(split.task.templates)

    def test_without_templates(self, learned: tuple[Chat, ForgetSplit]) -> None:
        model, split = learned
        bare = dataclasses.replace(split, task=Answering())
        with pytest.raises(
            ValueError,
            match=r"FLAT needs template answers, .* has none: IDK .*or in Answering\(IDK\)",
        ):
            FLAT()(model, bare)

    def test_it_reads_neither_retain_data_nor_a_reference(self) -> None:
        assert FLAT.needs == {"forget", "templates"}
