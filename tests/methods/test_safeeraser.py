"""Prompt Decouple, its losses against numbers recorded from the authors' code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from recorded import batch_of
from torch import Tensor, nn

from unlearn_core.data import Answering, ForgetSplit, WithheldDataError
from unlearn_core.methods import (
    DPO,
    FLAT,
    NPO,
    RMU,
    DPORetain,
    GradDiff,
    GradientAscent,
    KLMinimization,
    PreferenceOptimization,
    PromptDecouple,
    SimNPO,
    check_method,
)
from unlearn_core.methods.forget_pairs import paired_epochs
from unlearn_core.models import Chat, TrainConfig

Golden = Callable[[str], dict[str, Tensor]]
TASK = Answering()
PO = PreferenceOptimization(mean="joint")
CONFIG = TrainConfig(epochs=2, lr=1e-3, batch_size=3, optimizer="adamw")
SIDES = {"forget": "forget", "retain": "retain", "decouple": "pd"}


class Tables(nn.Module):
    """As `recorded.LogitTables`, but a module, of which a method can keep a copy."""

    def __init__(self, tables: dict[str, Tensor]) -> None:
        super().__init__()
        self.tables = nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in tables.items()})
        self.asked: list[str] = []

    def forward(self, name: str, attention_mask: None, at: Tensor | None = None) -> Tensor:
        self.asked.append(name)
        return self.tables[name] if at is None else self.tables[name][at]


def recorded(g: dict[str, Tensor]) -> tuple[Tables, Tables, dict[str, Any]]:
    """The model, the original, and a batch with everything beside it."""
    tables = {side: g[f"in_logits_{theirs}"] for side, theirs in SIDES.items()}
    original = Tables(tables | {"retain": g["in_ref_logits_retain"]})
    batch = {side: batch_of(side, g[f"in_labels_{theirs}"]) for side, theirs in SIDES.items()}
    batch["template"] = batch_of("forget", g["in_labels_refuse"])
    return Tables(tables), original, batch


METHODS = {"ga": GradientAscent(), "gd": GradDiff(), "kl": KLMinimization(), "idk": PO}


@pytest.mark.parametrize("case", ["losses_1", "losses_2", "losses_3"])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("key", METHODS)
def test_losses_and_gradients(golden: Golden, case: str, decoupled: bool, key: str) -> None:
    """Fails with one weight for all methods, gradient difference's retain weight as it was, the
    divergence on answers only, or a mean of each part where refusals and retain share one."""
    g = golden(f"safeeraser/{case}")
    model, original, batch = recorded(g)
    method = PromptDecouple(METHODS[key]) if decoupled else METHODS[key]
    loss = method.objective(TASK, original)(model, batch)
    name = f"{key}pd" if decoupled else key
    torch.testing.assert_close(loss.detach(), g[f"out_{name}_loss"], rtol=0, atol=1e-10)
    loss.backward()
    for side, theirs in SIDES.items():
        found, expected = model.tables[side].grad, g[f"out_{name}_grad_{theirs}"]
        found = torch.zeros_like(expected) if found is None else found
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("key", METHODS)
def test_it_costs_one_forward_pass_of_its_own_samples(golden: Golden, key: str) -> None:
    """Fails if a batch of the method is read again."""
    asked = []
    for method in (METHODS[key], PromptDecouple(METHODS[key])):
        model, original, batch = recorded(golden("safeeraser/losses_1"))
        method.objective(TASK, original)(model, batch)
        asked.append(model.asked)
    assert asked[1] == [*asked[0], "decouple"]


@pytest.mark.parametrize(
    ("method", "options", "parts"),
    [
        (GradDiff(), {}, (0.5, 0.5)),
        (GradDiff(weight=3.0), {}, (1.5, 0.5)),
        (GradDiff(), {"weight": 0.25, "retain_weight": 1.0}, (1.0, 0.25)),
        (KLMinimization(weight=2.0), {}, (2.0, 1.0)),
        (KLMinimization(), {"retain_weight": 0.1}, (0.1, 1.0)),
    ],
)
def test_weights(
    golden: Golden, method: Any, options: dict[str, float], parts: tuple[float, float]
) -> None:
    """Fails if a weight that is given is halved too, or the divergence's is."""
    g = golden("safeeraser/losses_1")
    model, original, batch = recorded(g)
    loss = PromptDecouple(method, **options).objective(TASK, original)(model, batch)
    kept = g["out_ce_retain" if isinstance(method, GradDiff) else "out_kl_retain"]
    expected = -g["out_ce_forget"] + parts[0] * kept + parts[1] * g["out_ce_pd"]
    torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def split(learned: tuple[Chat, ForgetSplit]) -> ForgetSplit:
    """Eight examples of each part; the kth decoupling example has the kth forget example's prompt."""
    split = learned[1]
    n = len(split.forget)
    answers = [f"It is number {i}." for i in range(n)]
    return replace(
        split,
        retain=split.retain.subset(range(n)),
        decouple=split.forget.with_answers(answers),
    )


class TestPairing:
    def read(
        self, learned: tuple[Chat, ForgetSplit], split: ForgetSplit, **options: Any
    ) -> list[tuple[int, ...]]:
        """Which examples stand side by side in an epoch: (forget, [retain,] decouple)."""
        sides = [s for s in SIDES if s != "retain" or options.get("retain")]
        padding = learned[0].padding
        known = {
            s: [row.input_ids.tolist() for row in map(getattr(split, s).__getitem__, range(8))]
            for s in sides
        }
        out = []
        for batch in paired_epochs(split, CONFIG, 0, **options)(0):
            rows = [batch[s]["input_ids"].tolist() for s in sides]
            for ids in zip(*rows, strict=True):
                bare = [[t for t in row if t != padding] for row in ids]
                out.append(tuple(known[s].index(row) for s, row in zip(sides, bare, strict=True)))
        return out

    def test_the_authors_is_at_the_retain_example(
        self, learned: tuple[Chat, ForgetSplit], split: ForgetSplit
    ) -> None:
        """Fails if the decoupling example is drawn by itself, or shares the forget example's
        prompt; or if the retain examples are others than without it."""
        found = self.read(learned, split, retain=True, decouple="retain")
        assert sorted(f for f, _, _ in found) == list(range(8))
        assert all(r == d for _, r, d in found)
        assert any(f != d for f, _, d in found)
        alone = self.read(learned, replace(split, retain=split.decouple), decouple="retain")
        assert alone == [(f, d) for f, _, d in found]

    def test_the_intended_one_shares_the_prompt(
        self, learned: tuple[Chat, ForgetSplit], split: ForgetSplit
    ) -> None:
        found = self.read(learned, split, retain=True, decouple="forget")
        assert all(f == d for f, _, d in found)
        assert any(r != d for _, r, d in found)

    @pytest.mark.parametrize("pairing", ["retain", "forget"])
    def test_retain_examples_stay_those_of_the_method(
        self, learned: tuple[Chat, ForgetSplit], split: ForgetSplit, pairing: str
    ) -> None:
        """Fails if decoupling draws from their stream, so that two runs compare two orders."""
        plain = paired_epochs(split, CONFIG, 0, retain=True)(0)
        other = paired_epochs(split, CONFIG, 0, retain=True, decouple=pairing)(0)
        for a, b in zip(plain, other, strict=True):
            assert torch.equal(a["retain"]["input_ids"], b["retain"]["input_ids"])
            assert torch.equal(a["forget"]["input_ids"], b["forget"]["input_ids"])


class TestUnlearning:
    def probability(self, chat: Chat, data: Any) -> float:
        return torch.cat(chat.log_probs(list(data.questions))).exp().mean().item()

    @pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
    def test_the_contract(
        self, learned: tuple[Chat, ForgetSplit], split: ForgetSplit, method: Any
    ) -> None:
        """Fails where it reads what neither it nor its method declares."""
        check_method(PromptDecouple(replace(method, train=CONFIG)), learned[0], split)

    def test_what_is_safe_is_learned_beside(
        self, learned: tuple[Chat, ForgetSplit], split: ForgetSplit
    ) -> None:
        """Fails if the decoupling loss rises, or its prompts are refused too."""
        model = learned[0]
        train = TrainConfig(epochs=12, lr=2e-3, batch_size=4, optimizer="adamw")
        plain, decoupled = (
            m(model, split)
            for m in (replace(PO, train=train), PromptDecouple(replace(PO, train=train)))
        )
        safe = self.probability(decoupled, split.decouple)
        assert safe > self.probability(plain, split.decouple) + 0.2

    def test_weight_zero_is_the_method(
        self, learned: tuple[Chat, ForgetSplit], split: ForgetSplit
    ) -> None:
        method = replace(PO, train=CONFIG)
        plain, other = (m(learned[0], split) for m in (method, PromptDecouple(method, weight=0.0)))
        for a, b in zip(plain.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


class TestAroundOthers:
    @pytest.mark.parametrize(
        "method", [NPO(train=CONFIG), DPORetain(train=CONFIG), FLAT(train=CONFIG)], ids=str
    )
    def test_it_works_around_every_method_of_pairs(
        self, learned: tuple[Chat, ForgetSplit], split: ForgetSplit, method: Any
    ) -> None:
        """Fails where what the original thought is not beside the examples, or weighs otherwise:
        with a weight of zero it is the method, with another it isn't."""
        plain, none, some = (
            torch.nn.utils.parameters_to_vector(m(learned[0], split).parameters())
            for m in (method, *(PromptDecouple(method, weight=w) for w in (0.0, 1.0)))
        )
        torch.testing.assert_close(none, plain, rtol=0, atol=1e-6)
        assert (some - plain).abs().max() > 1e-4
        decoupled = PromptDecouple(method, weight=0.0)
        assert decoupled.needs == method.needs | {"decouple"}
        assert decoupled.works_on == {"text"}

    def test_a_subclass_is_what_it_is_of(self) -> None:
        """Fails where a method that only changes a default is none that the authors know."""

        @dataclass(frozen=True)
        class Half(GradDiff):
            name: ClassVar[str] = "half"
            weight: float = 0.5

        made = PromptDecouple(Half())
        assert (made.weight, made.retain_weight) == (0.5, 0.25)
        assert PromptDecouple(SimNPO(), weight=2.0).retain_weight is None


def test_the_set_is_withheld_from_others(split: ForgetSplit) -> None:
    seen = split.only(frozenset({"forget", "retain"}), "GradDiff")
    with pytest.raises(WithheldDataError, match="GradDiff does not declare 'decouple'"):
        len(seen.decouple)
    assert split.only(frozenset({"decouple"}), "PD").decouple is split.decouple


def test_needs_are_those_of_both() -> None:
    assert PromptDecouple(GradientAscent()).needs == {"forget", "decouple"}
    assert PromptDecouple(PO).needs == {"forget", "retain", "templates", "decouple"}
    assert PromptDecouple(KLMinimization()).needs == {"forget", "retain", "reference", "decouple"}


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        (DPO(), {}, "the authors have no weight beside DPO; give weight"),
        (RMU(layer=0), {}, "RMU can't be decoupled: it is no method of pairs"),
        (PO, {"pairing": "prompt"}, "pairing must be 'retain' or 'forget', not 'prompt'"),
        (PO, {"weight": -1.0}, "weight must be at least 0 or None, not -1.0"),
        (PO, {"weight": float("inf")}, "weight must be a finite number or None, not inf"),
        (PO, {"retain_weight": 1.0}, "PreferenceOptimization has no weight of the retain"),
        (GradDiff(), {"retain_weight": -1.0}, "retain_weight must be at least 0 or None"),
    ],
)
def test_what_is_refused(method: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PromptDecouple(method, **options)


@pytest.mark.parametrize(
    ("n", "pairing", "match"),
    [
        (None, "retain", "PromptDecouple needs the split's decouple set, which is missing"),
        (5, "retain", "5 decoupling examples beside 8 of the retain set"),
        (5, "forget", "5 decoupling examples beside 8 of the forget set"),
    ],
)
def test_a_set_that_can_not_be_paired(
    learned: tuple[Chat, ForgetSplit], split: ForgetSplit, n: int | None, pairing: str, match: str
) -> None:
    short = replace(split, decouple=None if n is None else split.decouple.subset(range(n)))
    with pytest.raises(ValueError, match=match):
        PromptDecouple(PO, pairing=pairing)(learned[0], short)
