"""Examples side by side, and the two methods that need no pair."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unlearn_core.data import (
    Answering,
    ForgetSplit,
    ImageData,
    fictional_authors,
    forget_class,
    forget_questions,
)
from unlearn_core.methods import RMU, Mismatch, TaskVector
from unlearn_core.methods.forget_pairs import (
    Beside,
    log_probs_before,
    paired_epochs,
    template_answers,
)
from unlearn_core.models import CausalLM, Chat, Recipe, TrainConfig, shuffled_epochs, train

CONFIG = TrainConfig(epochs=2, lr=1e-3, batch_size=3, optimizer="adamw")


class TestBeside:
    def test_parts_stay_side_by_side(self, learned: tuple[Chat, ForgetSplit]) -> None:
        _, split = learned
        numbers = torch.arange(len(split.forget)).float()
        batch = Beside(forget=split.forget, number=numbers).batch_of([5, 2])
        assert batch["number"].tolist() == [5, 2]
        for row, i in enumerate((5, 2)):
            ids = split.forget[i].input_ids
            assert torch.equal(batch["forget"]["input_ids"][row, : len(ids)], ids)

    def test_images_come_as_their_own_batches(self, tiny_data: ImageData) -> None:
        x, y = Beside(a=tiny_data.train, b=tiny_data.train).batch_of([3, 1])["b"]
        expected = tiny_data.train.batch_of([3, 1])
        assert torch.equal(x, expected[0])
        assert torch.equal(y, expected[1])

    def test_unequal_lengths(self) -> None:
        with pytest.raises(ValueError, match=r"unequal lengths: \{'a': 2, 'b': 3\}"):
            Beside(a=torch.zeros(2), b=torch.zeros(3))


class TestEpochs:
    def test_every_example_once_with_others_drawn_anew(self, tiny_data: ImageData) -> None:
        """Fails where the retain examples of an epoch are always the same, or no seed's own."""
        split = forget_class(tiny_data, 3)
        config = TrainConfig(epochs=2, lr=0.1, batch_size=3)
        numbers = torch.arange(8.0)

        def read(epochs: object, epoch: int) -> tuple[list[float], list[int]]:
            batches = list(epochs(epoch))
            assert [len(b["before"]) for b in batches] == [3, 3, 2]
            order = [n for b in batches for n in b["before"].tolist()]
            return order, [y for b in batches for y in b["retain"][1].tolist()]

        epochs, other = (
            paired_epochs(
                split, config, seed, retain=True, before=lambda epoch: {"before": numbers}
            )
            for seed in (0, 1)
        )
        (first, kept), (second, kept_second) = read(epochs, 0), read(epochs, 1)
        assert sorted(first) == sorted(second) == list(range(8))
        assert first != second
        assert kept != kept_second
        assert 3 not in kept + kept_second
        assert read(epochs, 0) == (first, kept)
        assert read(other, 0) != (first, kept)

    def test_numbers_belong_to_their_examples(self, learned: tuple[Chat, ForgetSplit]) -> None:
        """Fails where the original's log-probabilities are shuffled otherwise than the examples."""
        model, split = learned
        known = log_probs_before(model, split.task, split.forget, 3)
        assert len(set(known.tolist())) > 1
        epochs = paired_epochs(split, CONFIG, 0, before=lambda epoch: {"before": known})
        with torch.no_grad():
            for batch in epochs(0):
                now = split.task.log_probs(model, batch["forget"])
                torch.testing.assert_close(now, batch["before"], rtol=1e-4, atol=1e-4)

    def test_templates_of_an_epoch_are_drawn_once(self, learned: tuple[Chat, ForgetSplit]) -> None:
        """DPO asks for them twice: before it trains, and while it does."""
        _, split = learned
        a, again, b = (template_answers(split, 0, epoch).questions.answers for epoch in (1, 1, 2))
        assert a == again != b
        assert set(a) <= set(split.task.templates)


class TestTaskVector:
    @pytest.mark.parametrize("alpha", [0.5, 2.0])
    def test_goes_the_other_way(
        self, recipe: Recipe, tiny_split: ForgetSplit, alpha: float
    ) -> None:
        """Fails where the vector is added, scaled otherwise, or taken from elsewhere."""
        model = recipe.build(0)
        config = TrainConfig(epochs=2, lr=0.01, batch_size=4)
        learned_more = copy.deepcopy(model)
        epochs = shuffled_epochs(tiny_split.forget, config, 0)
        train(learned_more, epochs, tiny_split.task.loss, config, seed=0)
        unlearned = TaskVector(config, alpha)(model, tiny_split)
        triples = zip(
            model.parameters(), learned_more.parameters(), unlearned.parameters(), strict=True
        )
        for before, more, after in triples:
            torch.testing.assert_close(after, before - alpha * (more - before))

    def test_in_half_precision_the_vector_is_not_what_rounding_leaves_of_it(
        self, learned: tuple[Chat, ForgetSplit]
    ) -> None:
        """Fails where the further training is rounded before it is subtracted: most of its small steps are
        nothing then, and two hundred times nothing is nothing."""
        half = copy.deepcopy(learned[0]).bfloat16()
        method = TaskVector(TrainConfig(3, 1e-5, batch_size=8, optimizer="adamw"), alpha=200.0)
        moves = []
        for model in (half, copy.deepcopy(half).float()):
            pairs = zip(method(model, learned[1]).parameters(), model.parameters(), strict=True)
            moves.append(torch.cat([(a - b.float()).detach().flatten() for a, b in pairs]))
        rough, exact = moves
        assert torch.cosine_similarity(rough, exact, dim=0) > 0.95
        assert rough.abs().mean() / exact.abs().mean() == pytest.approx(1, abs=0.05)


class TestRMU:
    def test_only_some_maps_move_and_activations_go_where_they_are_sent(
        self, learned: tuple[Chat, ForgetSplit]
    ) -> None:
        """Fails where the whole model is trained, or the direction is not a fixed one."""
        model, split = learned
        config = TrainConfig(epochs=30, lr=3e-3, batch_size=8, optimizer="adamw")
        method = RMU(layer=1, train=config, steering=20.0, alpha=1.0)
        unlearned = method(model, split)
        moved = {
            name
            for (name, a), (_, b) in zip(
                model.named_parameters(), unlearned.named_parameters(), strict=True
            )
            if not torch.equal(a, b)
        }
        assert moved == {f"model.model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
        assert all(p.requires_grad for p in unlearned.parameters())

        def activations(chat: Chat) -> torch.Tensor:
            batch = split.forget.collate([split.forget[i] for i in range(8)])
            layer, seen = chat.model.model.layers[1], []
            handle = layer.register_forward_hook(lambda m, i, out: seen.append(out))
            with torch.no_grad():
                split.task.logits(chat, batch)
            handle.remove()
            out = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
            return out[batch["attention_mask"].bool()]

        shift = (activations(unlearned) - activations(model)).mean(dim=0)
        assert (
            activations(unlearned).norm(dim=1).mean() > 1.5 * activations(model).norm(dim=1).mean()
        )
        assert (shift > 0).float().mean() > 0.8, "the direction has positive entries"

    def test_no_such_layer(self, learned: tuple[Chat, ForgetSplit]) -> None:
        with pytest.raises(ValueError, match="no layer 2: the model has 2"):
            RMU(layer=2)(*learned)


def test_withheld_templates_are_not_there(learned: tuple[Chat, ForgetSplit]) -> None:
    _, split = learned
    seen = split.only(frozenset({"forget"}), "GA")
    assert seen.task == Answering()
    assert split.only(frozenset({"forget", "templates"}), "FLAT").task == split.task


class TestWhatIsRefused:
    def test_rmu_on_another_architecture(self, hub: Path) -> None:
        from unlearn_core.replication.rehearsal import language_model

        language_model("PhiConfig")(hub / "a/model")
        chat = CausalLM("a/model", "Question: {question}\nAnswer: ").build(0)
        data = fictional_authors(2, 1, 1)
        split = forget_questions(data, chat.encoded)
        with pytest.raises(TypeError, match="rmu knows models built like Llama, not PhiFor"):
            RMU(layer=0)(chat, split)

    def test_a_task_vector_of_adapters(self, hub: Path) -> None:
        from unlearn_core.replication.rehearsal import language_model

        language_model("LlamaConfig")(hub / "a/model")
        chat = CausalLM("a/model", "Question: {question}\nAnswer: ", lora_rank=2).build(0)
        split = forget_questions(fictional_authors(2, 1, 1), chat.encoded)
        with pytest.raises(TypeError, match="task_vector subtracts weights"):
            TaskVector()(chat, split)

    def test_mismatch_without_unrelated_answers(self, learned: tuple[Chat, ForgetSplit]) -> None:
        chat, split = learned
        with pytest.raises(
            ValueError, match="Mismatch needs the split's unrelated set, which is missing"
        ):
            Mismatch()(chat, replace(split, unrelated=None))
