"""RegLoRA, against numbers recorded from the authors' code and by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded import LogitTables, batch_of, part
from torch import Tensor

from unlearn_core.data import Answering, fictional_authors
from unlearn_core.methods.adapters import LLAMA_LINEARS, linears
from unlearn_core.methods.baselines.sequential import SequentialLoRA
from unlearn_core.methods.continual import Memory, Stage
from unlearn_core.methods.sefe import RegLoRA, key_elements, penalty, protected_movement
from unlearn_core.models import Chat, TinyLlama, TrainConfig

Golden = Callable[[str], dict[str, Tensor]]
SMALL: dict[str, Any] = {"rank": 4, "alpha": 8, "dropout": 0.0}
TRAIN = TrainConfig(epochs=10, lr=3e-3, batch_size=8, optimizer="adamw", schedule="cosine")


@pytest.fixture(scope="module")
def model() -> Chat:
    return TinyLlama(hidden=16, layers=1, heads=2, vocabulary=400).build(0)


@pytest.fixture(scope="module")
def tasks(model: Chat) -> list[Stage]:
    questions = fictional_authors(authors=3, forget_authors=1, holdout_authors=1).train
    eight = (questions.subset(range(8 * i, 8 * i + 8)) for i in range(2))
    return [Stage(n, Answering(), model.encoded(q)) for n, q in zip("ab", eight, strict=True)]


def factors_of(g: dict[str, Tensor], t: int) -> dict[str, tuple[Tensor, Tensor]]:
    given = part(g, f"in_t{t}_")
    names = [n.removesuffix("_A") for n in given if n.endswith("_A")]
    return {n: (given[f"{n}_A"].clone(), given[f"{n}_B"].clone()) for n in names}


def flat(positions: Tensor, columns: int) -> Tensor:
    """Rows and columns (n, 2) as positions in the flattened matrix."""
    return (positions[:, 0] * columns + positions[:, 1]).int()


@pytest.mark.parametrize(("case", "tasks"), [("reglora_1", 3), ("reglora_2", 2)])
class TestRecorded:
    def test_protected_positions(self, golden: Golden, model: Chat, case: str, tasks: int) -> None:
        """Fails where BA is scaled by alpha / r, ranked in double precision, or counted otherwise;
        where repetitions are dropped, or the new positions put last."""
        g = golden(f"sefe/{case}")
        method, memory = RegLoRA(ratio=g["hp_M"].item()), Memory()
        for t in range(1, tasks + 1):
            factors = factors_of(g, t)
            method.remember(model, [], factors, memory, 0)
            for layer, (A, _) in factors.items():
                expected = flat(g[f"out_t{t}_{layer}_idx"], A.shape[1])
                assert memory[layer, "BA"].tolist() == expected.tolist()

    def test_penalty_loss_and_gradients(
        self, golden: Golden, model: Chat, case: str, tasks: int
    ) -> None:
        """Fails where entries are summed or squared, or repeated positions count once."""
        g = golden(f"sefe/{case}")
        for t in range(2, tasks + 1):
            factors = factors_of(g, t)
            leaves = [x.requires_grad_() for pair in factors.values() for x in pair]
            protected = {
                (layer, "BA"): flat(g[f"out_t{t - 1}_{layer}_idx"], A.shape[1])
                for layer, (A, _) in factors.items()
            }
            found = penalty(factors, protected)
            expected = g[f"out_t{t}_reg_mean"]
            torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-10)
            as_coded = found * len(factors) / 224  # the authors' number of layers
            gradients = iter(torch.autograd.grad(as_coded, leaves))
            for layer in factors:
                for of in "AB":
                    expected = g[f"out_t{t}_{layer}_grad{of}"]
                    torch.testing.assert_close(next(gradients), expected, rtol=0, atol=1e-10)
            said = LogitTables({"x": g[f"in_t{t}_logits"]})
            answers = Answering().loss(said, batch_of("x", g[f"in_t{t}_labels"]))
            weight = g["hp_lambda"].item() * len(factors) / 224
            extra = RegLoRA(weight=weight).regulariser(factors, protected)
            expected = g[f"out_t{t}_total_loss"]
            torch.testing.assert_close((answers + extra).detach(), expected, rtol=0, atol=1e-5)


class TestKeyElements:
    def test_the_largest_first_whatever_their_sign(self) -> None:
        update = torch.tensor([[0.1, -5.0, 2.0], [3.0, 0.0, -4.0]])
        assert key_elements(update, 0.5).tolist() == [1, 5, 3]

    def test_rounding_as_the_authors(self) -> None:
        """Fails where the share of the whole number is taken: 0.29 * 100 is less than 29."""
        assert int(0.29 * 100) == 28
        assert len(key_elements(torch.rand(20, 5), 0.29)) == int(0.29 * 20 * 5) == 29

    def test_less_than_one(self) -> None:
        with pytest.raises(ValueError, match=r"a share of 0.02 is no entry of a \(6, 8\) matrix"):
            key_elements(torch.rand(6, 8), 0.02)


class TestPenalty:
    A, B = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0], [0.5]])  # BA: 3 -6; 0.5 -1

    def test_by_hand(self) -> None:
        """A position that is listed twice counts twice, in the sum and in the number."""
        factors = {"x": (self.A, self.B), "y": (self.A, self.B)}
        protected = {("x", "BA"): torch.tensor([1, 1, 2]), ("y", "BA"): torch.tensor([3])}
        assert penalty(factors, protected).item() == pytest.approx(((6 + 6 + 0.5) / 3 + 1) / 2)

    def test_no_layer_is_kept_whole(self) -> None:
        """Fails where the backward pass holds the updates of all layers, and not their entries."""
        factors = {n: (torch.randn(2, 60), torch.randn(50, 2).requires_grad_()) for n in "abc"}
        protected = {(n, "BA"): torch.arange(30) for n in "abc"}
        held: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            penalty(factors, protected).backward()
        assert sum(held) > 3 * 30
        assert sum(held) < 50 * 60

    def test_of_the_factors(self) -> None:
        protected = {("x", "A"): torch.tensor([1]), ("x", "B"): torch.tensor([0, 1])}
        assert penalty({"x": (self.A, self.B)}, protected).item() == pytest.approx(2 + 3.5 / 2)

    @pytest.mark.parametrize(
        ("regularise", "expected"),
        [
            ("update", {"BA": [1]}),
            ("a", {"A": [1]}),
            ("b", {"B": [0]}),
            ("factors", {"A": [1], "B": [0]}),
        ],
    )
    def test_what_is_remembered(
        self, model: Chat, regularise: str, expected: dict[str, list[int]]
    ) -> None:
        method, memory = RegLoRA(ratio=0.5, regularise=regularise), Memory()
        method.remember(model, [], {"x": (self.A, self.B)}, memory, 0)
        n = 2 if regularise == "update" else 1
        assert {of: p[:1].tolist() for (_, of), p in memory.items()} == expected
        assert {len(p) for p in memory.values()} == {n}

    def test_random_positions(self, model: Chat, tasks: list[Stage]) -> None:
        """As many, of the update's shape; drawn anew for each task, by the seed."""
        method = RegLoRA(ratio=0.1, selection="random")
        factors = {"x": (torch.rand(2, 30), torch.rand(20, 2))}

        def drawn(seed: int, t: int) -> list[int]:
            memory = Memory()
            method.remember(model, tasks[:t], factors, memory, seed)
            return memory["x", "BA"].tolist()

        first = drawn(0, 1)
        assert len(set(first)) == 60
        assert first == drawn(0, 1)
        assert first != drawn(0, 2)
        assert first != drawn(1, 1)


class TestLearning:
    def test_without_weight_it_is_sequential(self, model: Chat, tasks: list[Stage]) -> None:
        """Bit for bit: both draw the same adapters and batches."""
        kinds = (SequentialLoRA(TRAIN, **SMALL), RegLoRA(TRAIN, **SMALL, weight=0.0))
        plain, none = ([m.state_dict() for _, m in k.learn(model, tasks)] for k in kinds)
        for a, b in zip(plain, none, strict=True):
            assert all(torch.equal(a[k], b[k]) for k in a)

    def test_protected_positions_stay(self, model: Chat, tasks: list[Stage]) -> None:
        """Fails where it is the others that are protected, or nothing is."""
        weights = (0.0, 1e4)
        moved = []
        for weight in weights:
            method = RegLoRA(TRAIN, **SMALL, ratio=0.05, weight=weight)
            models = [model, *(m for _, m in method.learn(model, tasks))]
            moved.append(protected_movement(models, 0.05))
        ((free,), (held,)) = moved
        assert held[0] < free[0] / 10
        assert held[0] < held[1] / 5

    def test_movement_by_hand(self, model: Chat) -> None:
        """Of two tasks: the first moves positions 0 and 1 most, so the second's moves of 0.5 and 0
        there are of what is protected."""
        models = [copy.deepcopy(model) for _ in range(3)]
        (name,) = linears(model, ["layers.0.self_attn.q_proj"])
        rows = [linears(m)[name].weight.data.view(-1) for m in models]
        n = len(rows[0])
        for row in rows[1:]:
            row.copy_(rows[0])
        rows[1][:2] += torch.tensor([3.0, -2.0])
        rows[2].copy_(rows[1])
        rows[2][1:3] += torch.tensor([0.5, 4.0])
        ((inside, outside),) = protected_movement(models, 2 / n, ("layers.0.self_attn.q_proj",))
        assert inside == pytest.approx(0.5 / 2, abs=1e-6)
        assert outside == pytest.approx(4.0 / (n - 2), abs=1e-6)

    def test_where_everything_is_protected(self, model: Chat) -> None:
        ((inside, outside),) = protected_movement([model] * 3, 1.0)
        assert inside == 0
        assert math.isnan(outside)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratio": 0.0}, r"ratio must be in \(0, 1\], not 0.0"),
        ({"ratio": 2.0}, r"ratio must be in \(0, 1\], not 2.0"),
        ({"weight": -1.0}, "weight must be at least 0, not -1.0"),
        ({"weight": float("inf")}, "weight must be a finite number, not inf"),
        ({"regularise": "ab"}, "'update' or 'a' or 'b' or 'factors', not 'ab'"),
        ({"selection": "low"}, "selection must be 'top' or 'random', not 'low'"),
        ({"rank": 0}, "rank must be at least 1, not 0"),
    ],
)
def test_unknown_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RegLoRA(**options)


def test_all_linear_maps_of_a_llama(model: Chat) -> None:
    """Fails where the head is among them, or the authors' 224 would not come out at 32 layers."""
    assert [n.rpartition(".")[2] for n in linears(model)] == list(LLAMA_LINEARS)


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 1.5])
def test_a_share_of_entries_is_between_none_and_all(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"a share is in \(0, 1\]"):
        key_elements(torch.ones(2, 3), ratio)


def test_entries_that_are_not_numbers_are_not_the_largest() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        key_elements(torch.tensor([1.0, float("nan")]), 0.5)
