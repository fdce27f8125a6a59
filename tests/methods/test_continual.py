"""What all continual methods promise, and what each baseline does, on a tiny language model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearn_core.data import Answering, VisualAnswering, VisualSet, fictional_authors
from unlearn_core.methods.adapters import linears
from unlearn_core.methods.baselines.ewc_lora import EWCLoRA, elastic_penalty
from unlearn_core.methods.baselines.joint import Joint
from unlearn_core.methods.baselines.lota import LoTA
from unlearn_core.methods.baselines.o_lora import OLoRA, overlap
from unlearn_core.methods.baselines.replay import Replay
from unlearn_core.methods.baselines.sequential import SequentialFullTuning, SequentialLoRA
from unlearn_core.methods.continual import ContinualMethod, Memory, Stage
from unlearn_core.methods.sefe import RegLoRA
from unlearn_core.models import Chat, TinyLlama, TinyLlava, TrainConfig, TrainingError

TRAIN = TrainConfig(epochs=1, lr=3e-3, batch_size=8, optimizer="adamw")
LORA: dict[str, Any] = {"train": TRAIN, "rank": 2, "alpha": 6}
EVERY = [
    SequentialLoRA(**LORA),
    RegLoRA(**LORA, ratio=0.1),
    OLoRA(**LORA),
    EWCLoRA(**LORA, samples=2),
    Replay(**LORA),
    Joint(**LORA),
    SequentialFullTuning(TRAIN),
    LoTA(TRAIN),
]
each = pytest.mark.parametrize("method", EVERY, ids=lambda m: m.name)


@pytest.fixture(scope="module")
def model() -> Chat:
    return TinyLlama(hidden=16, layers=1, heads=2, vocabulary=400).build(0)


@pytest.fixture(scope="module")
def tasks(model: Chat) -> list[Stage]:
    questions = fictional_authors(authors=3, forget_authors=1, holdout_authors=1).train
    parts = {"a": range(8), "b": range(8, 24), "c": range(24, 30)}
    return [Stage(n, Answering(), model.encoded(questions.subset(p))) for n, p in parts.items()]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@each
def test_promises(model: Chat, tasks: list[Stage], method: ContinualMethod) -> None:
    """The seed alone decides; nothing else moves; what was yielded stays as it was."""
    before, drawn = state(model), torch.get_rng_state()
    flags = [p.requires_grad for p in model.parameters()]
    seen = []
    models = []
    triples = [(s.name, s.task, s.data) for s in tasks[:2]]
    for name, learned in method.learn(model, triples, seed=3):
        seen.append((name, state(learned)))
        models.append(learned)
        assert not learned.training
        assert [p.requires_grad for p in learned.parameters()] == flags
        assert all(p.grad is None for p in learned.parameters())
    assert same(before, state(model))
    assert torch.equal(drawn, torch.get_rng_state())
    assert [name for name, _ in seen] == ["a", "b"]
    assert all(same(s, state(m)) for (_, s), m in zip(seen, models, strict=True))
    assert not same(before, seen[0][1])
    assert same(seen[0][1], seen[1][1]) == isinstance(method, Joint)
    again = [state(m) for _, m in method.learn(model, tasks[:2], seed=3)]
    assert all(same(s, a) for (_, s), a in zip(seen, again, strict=True))
    _, other = next(method.learn(model, tasks[:2], seed=4))
    assert not same(seen[0][1], state(other))


class TestOrder:
    @each
    def test_a_task_twice(self, model: Chat, tasks: list[Stage], method: ContinualMethod) -> None:
        """At once, not when the first stage is asked for."""
        with pytest.raises(
            ValueError, match=r"the task 'a' comes twice in the order \['a', 'b', 'a'\]"
        ):
            method.learn(model, [*tasks[:2], tasks[0]])

    def test_no_task(self, model: Chat) -> None:
        with pytest.raises(ValueError, match="sequential_lora: there is no task to learn"):
            SequentialLoRA().learn(model, [])

    @pytest.mark.parametrize("method", [Replay(**LORA), Joint(**LORA)])
    def test_data_under_two_losses(
        self, model: Chat, tasks: list[Stage], method: ContinualMethod
    ) -> None:
        other = Stage("z", Answering(("I don't know.",)), tasks[1].data)
        with pytest.raises(ValueError, match="data of several tasks need one loss"):
            method.learn(model, [tasks[0], other])


class TestAdapters:
    def test_merged(self, model: Chat, tasks: list[Stage]) -> None:
        """W + alpha / r * B A, and nothing else has moved."""
        noted = []

        class Noting(SequentialLoRA):
            def remember(self, model: Any, stages: Any, factors: Any, *_: Any) -> None:
                noted.append({n: (A.clone(), B.clone()) for n, (A, B) in factors.items()})

        before = model
        for t, (_, after) in enumerate(Noting(**LORA).learn(model, tasks)):
            olds, news = linears(before), linears(after)
            adapted = {id(m.weight) for m in news.values()}
            for name, (A, B) in noted[t].items():
                assert (A.shape[0], B.shape[1]) == (2, 2)
                assert B.abs().max() > 0
                expected = olds[name].weight + 3 * B @ A
                torch.testing.assert_close(news[name].weight, expected, rtol=0, atol=1e-7)
            pairs = zip(before.parameters(), after.parameters(), strict=True)
            assert all(torch.equal(p, q) for p, q in pairs if id(q) not in adapted)
            assert type(after.model) is type(model.model)
            before = after
        assert len(noted) == len(tasks)
        assert not any(torch.equal(noted[0][n][0], noted[1][n][0]) for n in noted[0])

    def test_half_precision(self, model: Chat, tasks: list[Stage]) -> None:
        """The adapters are in single precision, what they are merged into is not."""
        kinds = []

        class Noting(SequentialLoRA):
            def remember(self, model: Any, stages: Any, factors: Any, *_: Any) -> None:
                kinds.extend(x.dtype for pair in factors.values() for x in pair)

        half = copy.deepcopy(model).bfloat16()
        _, learned = next(Noting(**LORA).learn(half, tasks))
        assert set(kinds) == {torch.float32}
        assert {p.dtype for p in learned.parameters()} == {torch.bfloat16}

    def test_a_target_that_is_not_there(self, model: Chat, tasks: list[Stage]) -> None:
        known = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
        with pytest.raises(ValueError, match=f"no linear map 'c_attn'; known: {known}$"):
            SequentialLoRA(targets=("q_proj", "c_attn")).learn(model, tasks)

    def test_the_head_is_no_target(self, model: Chat, tasks: list[Stage]) -> None:
        with pytest.raises(ValueError, match="no linear map 'lm_head'"):
            SequentialLoRA(targets=("lm_head",)).learn(model, tasks)

    def test_some_targets(self, model: Chat) -> None:
        assert list(linears(model, ["up_proj", "0.self_attn.v_proj"])) == [
            "layers.0.self_attn.v_proj",
            "layers.0.mlp.up_proj",
        ]

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"rank": 0}, "rank must be at least 1, not 0"),
            ({"alpha": 0.0}, "alpha must be positive, not 0.0"),
            ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
            ({"targets": ()}, "name at least one linear map"),
            ({"projector_rate": 0.0}, r"projector_rate must be in \(0, 1\], not 0.0"),
        ],
    )
    def test_unknown_options(self, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            SequentialLoRA(**options)


@dataclass(frozen=True)
class Broken(Answering):
    """Its loss is no number from the second batch on."""

    batches: list[int] = field(default_factory=list)

    def loss(self, model: Any, batch: Any) -> Tensor:
        self.batches.append(1)
        return super().loss(model, batch) * (float("nan") if len(self.batches) > 1 else 1.0)


@pytest.mark.parametrize("method", [m for m in EVERY if not m.mixes], ids=lambda m: m.name)
def test_a_loss_that_is_no_number(model: Chat, tasks: list[Stage], method: ContinualMethod) -> None:
    """Names method, task and step."""
    stages = method.learn(model, [tasks[0], Stage("b", Broken(), tasks[1].data)])
    next(stages)
    with pytest.raises(TrainingError, match=f"{method.name}, task 2: the loss is nan at step 2"):
        next(stages)


class TestHalfPrecision:
    """What is trained in whole is trained in single precision, and is rounded when a task is learned:
    each of many small steps counts, and what moved most is what moved most."""

    TRAIN = TrainConfig(epochs=4, lr=2e-5, batch_size=2, optimizer="adamw")

    def moves(self, method: ContinualMethod, model: Chat, stages: list[Stage]) -> list[Tensor]:
        """Of a model in bfloat16, and of the same weights in float32."""
        found = []
        for dtype in (torch.bfloat16, torch.float32):
            start = copy.deepcopy(model).bfloat16().to(dtype)
            *_, (_, after) = method.learn(start, stages)
            assert {p.dtype for p in after.parameters()} == {dtype}
            pairs = zip(after.parameters(), start.parameters(), strict=True)
            found.append(torch.cat([(a.float() - b.float()).detach().flatten() for a, b in pairs]))
        return found

    @pytest.mark.parametrize("cls", [SequentialFullTuning, LoTA])
    def test_the_whole_model(
        self, model: Chat, tasks: list[Stage], cls: type[ContinualMethod]
    ) -> None:
        """Fails where steps of 2e-5 are taken in bfloat16: cosines of 0.52 and 0.33 then."""
        half, single = self.moves(cls(self.TRAIN), model, tasks[:2])
        assert torch.cosine_similarity(half, single, dim=0) > 0.98
        assert half.abs().mean() / single.abs().mean() == pytest.approx(1, abs=0.02)

    def test_the_projector(self) -> None:
        """Fails where a tenth of a step is taken in bfloat16: a third of the entries move then."""
        tiny = TinyLlava(
            ("is", "it", "red", "blue"), vision_hidden=64, vision_layers=1, hidden=64, layers=1
        )
        images = torch.randint(256, (16, 32, 32, 3), generator=torch.Generator().manual_seed(0))
        data = VisualSet(images.byte(), torch.arange(16), ("is it",) * 16, ("red", "blue") * 8)
        start = tiny.build(0)
        method = SequentialLoRA(
            TrainConfig(epochs=20, lr=2e-4, batch_size=4, optimizer="adamw"),
            projector="multi_modal_projector",
            rank=4,
            alpha=8,
        )
        stages = [Stage("colours", VisualAnswering(), start.encoded(data))]
        half, single = (
            torch.cat([d[offset : offset + size] for offset, size in self.places(start)])
            for d in self.moves(method, start, stages)
        )
        assert len(half) == 8320
        assert single.all()
        assert (half != 0).sum() > 0.95 * 8320
        assert half.abs().mean() / single.abs().mean() == pytest.approx(1, abs=0.02)

    def places(self, model: nn.Module) -> list[tuple[int, int]]:
        """Where the projector's weights are among all."""
        found, offset = [], 0
        for name, p in model.named_parameters():
            if "multi_modal_projector" in name:
                found.append((offset, p.numel()))
            offset += p.numel()
        return found


class Seeing(Chat):
    """A tiny model of transformers that sees, without a tokenizer."""

    def __init__(self) -> None:
        from transformers import (
            CLIPVisionConfig,
            LlamaConfig,
            LlavaConfig,
            LlavaForConditionalGeneration,
        )

        nn.Module.__init__(self)
        vision = CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=4,
            patch_size=2,
            projection_dim=8,
        )
        text = LlamaConfig(
            vocab_size=10,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
        self.model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=vision, text_config=text, image_token_index=9, image_seq_length=4
            )
        )


class Looking:
    """Say token 5 after an image."""

    def loss(self, model: Seeing, batch: Tensor) -> Tensor:
        ids = torch.tensor([[9, 9, 9, 9, 1, 5]]).expand(len(batch), -1)
        return model.model(input_ids=ids, pixel_values=batch, labels=ids).loss


@pytest.fixture(scope="module")
def seeing() -> Iterator[Seeing]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield Seeing()


class TestProjector:
    def stages(self) -> list[tuple[str, Any, Any]]:
        images = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        return [("look", Looking(), images)]

    def moved(self, seeing: Seeing, method: ContinualMethod) -> dict[str, Tensor]:
        _, after = next(method.learn(seeing, self.stages()))
        old = dict(seeing.named_parameters())
        every = {n: (p - old[n]).detach() for n, p in after.named_parameters()}
        return {n: d for n, d in every.items() if d.any()}

    def test_adapters_and_projector(self, seeing: Seeing) -> None:
        """Fails where the vision tower, whose maps have the same names, gets adapters too."""
        options = {"train": TrainConfig(epochs=2, lr=0.1), "rank": 2, "dropout": 0.0}
        moved = self.moved(seeing, SequentialLoRA(**options, projector="multi_modal_projector"))
        parts = {n.split(".")[2] for n in moved}
        assert parts == {"language_model", "multi_modal_projector"}
        assert sum("multi_modal_projector" in n for n in moved) == 4
        assert sum("language_model" in n for n in moved) == 7
        alone = self.moved(seeing, SequentialLoRA(**options))
        assert {n.split(".")[2] for n in alone} == {"language_model"}

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_a_learning_rate_of_its_own(self, seeing: Seeing, optimizer: str) -> None:
        """Beside adapters that do nothing: half of a rate is as good as half the rate."""
        train = {"epochs": 3, "batch_size": 4, "optimizer": optimizer, "weight_decay": 0.1}

        def learned(lr: float, share: float) -> dict[str, Tensor]:
            config = TrainConfig(**train, lr=lr)
            rates = {"alpha": 1e-9, "projector_rate": share}
            every = self.moved(seeing, SequentialLoRA(config, "multi_modal_projector", **rates))
            return {n: d for n, d in every.items() if "multi_modal_projector" in n}

        whole, half = learned(0.02, 1.0), learned(0.04, 0.5)
        assert len(whole) == 4
        for n in whole:
            torch.testing.assert_close(whole[n], half[n], rtol=1e-3, atol=1e-6)

    def test_full_tuning(self, seeing: Seeing) -> None:
        train = TrainConfig(epochs=1, lr=0.1)
        method = SequentialFullTuning(train, projector="multi_modal_projector")
        moved = self.moved(seeing, method)
        known = dict(seeing.named_parameters())
        assert set(moved) == {n for n in known if "vision_tower" not in n}
        moved = self.moved(seeing, SequentialFullTuning(train))
        assert set(moved) == {n for n in known if "language_model" in n or "lm_head" in n}

    def test_no_such_module(self, model: Chat, tasks: list[Stage]) -> None:
        with pytest.raises(
            ValueError, match=r"no module is called 'mm_projector'; known: .*lm_head"
        ):
            SequentialLoRA(projector="mm_projector").learn(model, tasks)


class TestOLoRA:
    def test_overlap_by_hand(self) -> None:
        """Two former rows, one new; fails where products cancel or are squared."""
        factors = {"x": (torch.tensor([[1.0, 2.0]]), None), "y": (torch.tensor([[0.0, 1.0]]), None)}
        former = {"x": torch.tensor([[1.0, 0.0], [1.0, -3.0]]), "y": torch.tensor([[5.0, 0.0]])}
        assert overlap(factors, former).item() == pytest.approx(1 + 5 + 0)

    def test_all_former_rows_are_kept(self, model: Chat, tasks: list[Stage]) -> None:
        method, memory = OLoRA(), Memory()
        A = [torch.rand(2, 3) for _ in range(2)]
        for a in A:
            method.remember(model, tasks, {"x": (a, torch.empty(0))}, memory, 0)
        assert torch.equal(memory["x"], torch.cat(A))

    def test_new_rows_turn_away(self, model: Chat, tasks: list[Stage]) -> None:
        found = []
        for weight in (0.0, 10.0):

            class Noting(OLoRA):
                def remember(
                    self, model: Any, stages: Any, factors: Any, memory: Any, *_: Any
                ) -> None:
                    if memory:
                        found.append(overlap(factors, memory).item())
                    super().remember(model, stages, factors, memory, 0)

            train = TrainConfig(epochs=15, lr=1e-2, batch_size=16, optimizer="adamw")
            [*Noting(train, rank=2, alpha=4, weight=weight).learn(model, tasks[:2])]
        assert found[1] < found[0] / 4


class TestLoTA:
    def test_few_entries_and_others_for_each_task(self, model: Chat, tasks: list[Stage]) -> None:
        """A fifth of every tensor, exactly: the rest stays bit for bit as it was."""
        parts = []
        before = dict(model.named_parameters())
        for _, after in LoTA(TRAIN, share=0.2).learn(model, tasks[:2]):
            now = dict(after.named_parameters())
            parts.append({n: now[n] != before[n] for n in now})
            before = now
        for n, first in parts[0].items():
            assert first.sum() <= int(0.2 * first.numel())
            assert not (first & parts[1][n]).any()
        whole = {n: p for n, p in parts[0].items() if "embed" not in n}  # some tokens don't occur
        assert all(p.sum() == int(0.2 * p.numel()) for p in whole.values())

    def test_it_is_the_entries_that_move_most(self, model: Chat, tasks: list[Stage]) -> None:
        _, full = next(SequentialFullTuning(TRAIN).learn(model, tasks))
        _, few = next(LoTA(TRAIN, share=0.2).learn(model, tasks))
        name = "model.model.layers.0.mlp.up_proj.weight"
        old, full, few = (dict(m.named_parameters())[name].detach() for m in (model, full, few))
        chosen = few != old
        assert (full - old).abs()[chosen].min() >= (full - old).abs()[~chosen].max()

    def test_nothing_is_left(self, model: Chat, tasks: list[Stage]) -> None:
        (_, first), (_, second) = LoTA(TRAIN, share=1.0).learn(model, tasks[:2])
        assert same(state(first), state(second))

    def test_unknown_options(self) -> None:
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\], not 1.5"):
            LoTA(share=1.5)


class TestEWC:
    def test_penalty_by_hand(self) -> None:
        factors = {"x": (torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0], [0.5]]))}
        fisher = {"x": torch.tensor([[1.0, 0.0], [2.0, 4.0]])}
        expected = ((2 * 3) ** 2 + 2 * (2 * 0.5) ** 2 + 4 * (2 * 1) ** 2) / 2
        assert elastic_penalty(factors, fisher, 2.0).item() == pytest.approx(expected)

    def test_fisher_information(self, model: Chat, tasks: list[Stage]) -> None:
        """The mean of each example's squared gradient, added up over tasks; fails where it is the
        square of a batch's gradient."""
        method, memory = EWCLoRA(samples=100), Memory()
        for t in (1, 1):
            method.remember(model, tasks[:t], {}, memory, 0)
        layers = linears(model)
        data = tasks[0].data
        expected = {n: torch.zeros_like(m.weight) for n, m in layers.items()}
        for i in range(len(data)):
            loss = tasks[0].task.loss(model, data.collate([data[i]]))
            gradients = torch.autograd.grad(loss, [m.weight for m in layers.values()])
            for n, g in zip(layers, gradients, strict=True):
                expected[n] += 2 * g.square() / len(data)
        assert memory.keys() == expected.keys()
        for n, value in expected.items():
            torch.testing.assert_close(memory[n], value, rtol=1e-4, atol=1e-9)

    def test_weights_that_matter_move_less(self, model: Chat, tasks: list[Stage]) -> None:
        """In units of the Fisher information of the first task."""
        config = TrainConfig(epochs=10, lr=3e-3, batch_size=16, optimizer="adamw")
        moved = []
        for weight in (0.0, 1e6):
            method = EWCLoRA(config, rank=2, alpha=4, weight=weight)
            memory = Memory()
            (_, first), (_, second) = method.learn(model, tasks[:2])
            method.remember(first, tasks[:1], {}, memory, 0)
            old, new = linears(first), linears(second)
            steps = {n: (new[n].weight - old[n].weight).detach().square() for n in old}
            moved.append(sum((memory[n] * s).sum() for n, s in steps.items()).item())
        assert moved[1] < moved[0] / 10


class TestReplay:
    def test_shares(self, model: Chat, tasks: list[Stage]) -> None:
        """A quarter of 8 and of 16; the same ones at each later task, none twice."""
        method = Replay(share=0.25)
        first, second, third = (method.data(tasks[:t], 0).questions.questions for t in (1, 2, 3))
        assert (len(first), len(second), len(third)) == (8, 16 + 2, 6 + 2 + 4)
        assert first == tasks[0].data.questions.questions
        assert second[:16] == tasks[1].data.questions.questions
        assert set(second[16:]) == set(third[6:8]) < set(first)
        assert len(set(third)) == 12
        assert set(third[8:]) < set(second[:16])
        assert method.data(tasks[:2], 1).questions.questions[16:] != second[16:]

    def test_at_least_one(self, tasks: list[Stage]) -> None:
        assert len(Replay(share=0.001).data(tasks, 0)) == 6 + 1 + 1

    def test_unknown_options(self) -> None:
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\], not 0"):
            Replay(share=0)


def test_joint_training_is_one_task(model: Chat, tasks: list[Stage]) -> None:
    """Of all data together, in one adapter; every name gets the same model."""
    pooled = tasks[0].data + tasks[1].data + tasks[2].data
    _, expected = next(SequentialLoRA(**LORA).learn(model, [("x", Answering(), pooled)]))
    found = list(Joint(**LORA).learn(model, tasks))
    assert [name for name, _ in found] == ["a", "b", "c"]
    assert found[0][1] is found[2][1]
    assert same(state(expected), state(found[0][1]))


@pytest.mark.parametrize("cls", [OLoRA, EWCLoRA])
def test_negative_weights(cls: type[SequentialLoRA]) -> None:
    with pytest.raises(ValueError, match="weight must be at least 0"):
        cls(weight=-1.0)
