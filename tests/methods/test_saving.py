"""What a method made, saved and loaded: the same outputs, and word of how it was made."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from small import SMALL
from torch import Tensor, nn

from unlearn_core.data import ForgetSplit
from unlearn_core.methods import METHODS, SSD, Method, Prompting
from unlearn_core.methods.baselines.prompting import Prefixed
from unlearn_core.methods.baselines.sequential import SequentialLoRA
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.methods.guard import GuardedChat
from unlearn_core.models import (
    Chat,
    ClassToImage,
    TrainConfig,
    VisionChat,
    load_pretrained,
    save_pretrained,
)

Learned = tuple[Chat, ForgetSplit]
ONE = TrainConfig(epochs=1, lr=1e-3, batch_size=4, optimizer="adamw")


def method_of(name: str) -> Method:
    few = {"right": 2} if name == "icul" else {}  # examples that its short context holds
    return METHODS[name](**SMALL.get(name, {}), **few)


def outputs(model: Any, split: ForgetSplit) -> list[Any]:
    """What a user of the model sees of it."""
    if isinstance(model, VisionChat):
        triples = [split.forget.questions[i] for i in range(3)]
        images = torch.stack([image for *_, image in triples])
        said = model.answer([q for q, *_ in triples], images, 4)
        return [*model.log_probs(triples), *said]
    if isinstance(model, Chat):
        pairs = [part.questions[i] for part in (split.forget, split.retain) for i in range(3)]
        return [*model.log_probs(pairs), *model.answer([q for q, _ in pairs], 6)]
    if hasattr(model, "unet"):
        return [model.sample([split.task.concepts.prompts()[0]], seed=0, steps=2)]
    with torch.no_grad():
        return [model(split.forget[0][0][None])]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        else:
            assert a == b


@pytest.mark.parametrize(
    ("modality", "name"),
    [
        ("images", "ssd"),
        ("text", "flat"),
        *(("text", name) for name in ("guard", "whp", "prompting", "filter_prompting")),
        *(("text", name) for name in ("output_filtering", "icul")),
        ("multimodal", "grad_diff"),
        ("diffusion", "uce"),
        ("diffusion", "sld"),
    ],
)
class TestEveryKind:
    def test_it_is_the_same_afterwards(self, modality: str, name: str, tmp_path: Path) -> None:
        """Fails where a part is left out, or made anew instead of being read."""
        model, split = STAND_INS[modality]()
        method = method_of(name)
        made = method(model, split, seed=3)
        expected = outputs(made, split)
        save_pretrained(made, tmp_path)
        loaded = load_pretrained(tmp_path)
        assert type(loaded) is type(made)
        assert not any(m.training for m in loaded.modules())
        assert_same(outputs(loaded, split), expected)
        assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
            n: p.requires_grad for n, p in made.named_parameters()
        }
        state = made.state_dict()
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())

    def test_who_made_it_stands_beside_it(self, modality: str, name: str, tmp_path: Path) -> None:
        model, split = STAND_INS[modality]()
        method = method_of(name)
        save_pretrained(method(model, split, seed=3), tmp_path)
        (told,) = json.loads((tmp_path / "unlearn.json").read_text())["made_by"]
        assert told["method"] == name
        assert told["class"].endswith(f":{type(method).__name__}")
        assert (told["version"], told["seed"]) == (method.version, 3)
        assert told["fields"].keys() == {f.name for f in dataclasses.fields(method)}
        assert load_pretrained(tmp_path).made_by == (told,)

    def test_it_can_be_pickled(self, modality: str, name: str) -> None:
        """Fails where a function without a name, or a hook of transformers, is part of it."""
        model, split = STAND_INS[modality]()
        made = method_of(name)(model, split, seed=3)
        expected = outputs(made, split)
        assert_same(outputs(pickle.loads(pickle.dumps(made)), split), expected)
        assert_same(outputs(made, split), expected)


def test_one_method_after_another(tmp_path: Path) -> None:
    model, split = STAND_INS["images"]()
    first = SSD(alpha=1.0)(model, split, seed=1)
    save_pretrained(first, tmp_path)
    second = SSD(alpha=2.0)(load_pretrained(tmp_path), split, seed=2)
    assert [(m["seed"], m["fields"]["alpha"]) for m in second.made_by] == [(1, 1.0), (2, 2.0)]
    assert not hasattr(model, "made_by")
    assert len(first.made_by) == 1


def test_a_sequence_of_tasks(tmp_path: Path) -> None:
    model, split = STAND_INS["text"]()
    tasks = [(n, split.task, part) for n, part in (("a", split.forget), ("b", split.retain))]
    *_, (_, last) = SequentialLoRA(ONE, rank=2).learn(model, tasks, seed=5)
    assert [(m["method"], m["seed"], m["task"]) for m in last.made_by] == [
        ("sequential_lora", 5, "a"),
        ("sequential_lora", 5, "b"),
    ]
    save_pretrained(last, tmp_path)
    assert_same(outputs(load_pretrained(tmp_path), split), outputs(last, split))


class TestAdapters:
    @pytest.fixture
    def chat(self, learned: Learned) -> Chat:
        from peft import LoraConfig, get_peft_model

        own = copy.deepcopy(learned[0])
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        own.model = get_peft_model(own.model, config).eval()
        with torch.no_grad():
            for name, p in own.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.05)
        return own

    def test_with_the_model_below(self, chat: Chat, learned: Learned, tmp_path: Path) -> None:
        """Fails where the adapter is merged, or what is below is not the model without it."""
        from peft import PeftModel

        before = outputs(chat, learned[1])
        chat.save_pretrained(tmp_path)
        assert_same(outputs(chat, learned[1]), before)
        loaded = Chat.from_pretrained(tmp_path)
        assert isinstance(loaded.model, PeftModel)
        assert_same(outputs(loaded, learned[1]), before)
        free = {n for n, p in loaded.named_parameters() if p.requires_grad}
        assert free == {n for n, p in chat.named_parameters() if p.requires_grad}
        assert all("lora_" in n for n in free)
        assert free
        with loaded.model.disable_adapter():
            assert_same(outputs(loaded, learned[1]), outputs(learned[0], learned[1]))

    def test_a_plain_model_saved_after_them(
        self, chat: Chat, learned: Learned, tmp_path: Path
    ) -> None:
        """Fails where the adapter stays, and is read with the plain model."""
        (tmp_path / "notes.txt").write_text("mine")
        chat.save_pretrained(tmp_path)
        learned[0].save_pretrained(tmp_path)
        assert_same(outputs(load_pretrained(tmp_path), learned[1]), outputs(*learned))
        assert not list(tmp_path.rglob("adapter*"))
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_files_of_others(self, chat: Chat, learned: Learned, tmp_path: Path) -> None:
        """Fails where they are read with the model, or deleted."""
        chat.model.save_pretrained(tmp_path / "model")
        with pytest.raises(ValueError, match=r"model holds files that are not .* empty it, or"):
            learned[0].save_pretrained(tmp_path)
        assert (tmp_path / "model" / "adapter_config.json").is_file()
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    def test_merged_ones_are_refused(self, chat: Chat, tmp_path: Path) -> None:
        """Fails where they count twice in what is loaded."""
        chat.model.merge_adapter()
        with pytest.raises(ValueError, match="would count twice: take them out by unmerge_adapter"):
            chat.save_pretrained(tmp_path)

    @pytest.mark.parametrize("everything", [True, False])
    def test_their_precision(
        self, everything: bool, chat: Chat, learned: Learned, tmp_path: Path
    ) -> None:
        """Fails where peft chooses another: bfloat16 all over, or float32 adapters on bfloat16."""
        chat.model.to(torch.bfloat16)
        if not everything:
            for name, p in chat.named_parameters():
                if "lora_" in name:
                    p.data = p.data.float()
        chat.save_pretrained(tmp_path)
        loaded = Chat.from_pretrained(tmp_path)
        assert {n: p.dtype for n, p in loaded.named_parameters()} == {
            n: p.dtype for n, p in chat.named_parameters()
        }
        assert_same(outputs(loaded, learned[1]), outputs(chat, learned[1]))

    def test_elsewhere_they_are_refused(self, chat: Chat, tmp_path: Path) -> None:
        chat.model = chat.model.get_base_model()
        with pytest.raises(ValueError, match="has adapters inside: merge them, or put the whole"):
            chat.save_pretrained(tmp_path)


class TestForms:
    def test_half_precision(self, learned: Learned, tmp_path: Path) -> None:
        chat = copy.deepcopy(learned[0])
        chat.model.to(torch.bfloat16)
        chat.save_pretrained(tmp_path)
        loaded = Chat.from_pretrained(tmp_path)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        assert_same(outputs(loaded, learned[1]), outputs(chat, learned[1]))

    def test_the_kernel_of_the_attention(self, learned: Learned, tmp_path: Path) -> None:
        chat = copy.deepcopy(learned[0])
        chat.model.set_attn_implementation("eager")
        chat.save_pretrained(tmp_path)
        assert Chat.from_pretrained(tmp_path).model.config._attn_implementation == "eager"

    def test_a_model_of_classes(self, tmp_path: Path) -> None:
        model = ClassToImage(classes=3, size=8, widths=(8, 16)).build(0)
        model.save_pretrained(tmp_path)
        found = load_pretrained(tmp_path).sample([1, 2], seed=0, steps=2)
        torch.testing.assert_close(found, model.sample([1, 2], 0, steps=2), rtol=0, atol=0)

    def test_transformers_reads_its_part_by_itself(self, learned: Learned, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        chat = learned[0]
        chat.save_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        own = chat.model.state_dict()
        assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        text = "In which city was Ada born?"
        assert tokenizer(text)["input_ids"] == chat.tokenizer(text)["input_ids"]

    def test_another_model_in_the_same_folder(self, learned: Learned, tmp_path: Path) -> None:
        """Fails where something of the former one is read."""
        chat, split = learned
        Prompting()(chat, split).save_pretrained(tmp_path)
        chat.save_pretrained(tmp_path)
        loaded = load_pretrained(tmp_path)
        assert type(loaded) is Chat
        assert not hasattr(loaded, "made_by")


class TestWeightsAlone:
    def test_of_a_network_that_says_nothing_of_itself(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
        net.made_by = ({"method": "ssd"},)
        save_pretrained(net, tmp_path)
        with pytest.raises(TypeError, match=r"weights of a torch\.nn.*Sequential alone: make one"):
            load_pretrained(tmp_path)
        other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        loaded = load_pretrained(tmp_path, other)
        assert loaded is other
        assert not loaded.training
        x = torch.arange(8.0).view(2, 4)
        assert torch.equal(loaded(x), net(x))
        assert loaded.made_by == net.made_by

    def test_of_another_network(self, tmp_path: Path) -> None:
        save_pretrained(nn.Sequential(nn.Linear(4, 3)), tmp_path)
        with pytest.raises(ValueError, match="not of a torch"):
            load_pretrained(tmp_path, nn.Linear(4, 3))
        with pytest.raises(ValueError, match="not the network's"):
            load_pretrained(tmp_path, nn.Sequential(nn.Linear(4, 2)))


class TestRefused:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no unlearn\.json"):
            load_pretrained(tmp_path)

    def test_a_network_where_none_is_needed(self, learned: Learned, tmp_path: Path) -> None:
        learned[0].save_pretrained(tmp_path)
        with pytest.raises(TypeError, match="give none to load into"):
            load_pretrained(tmp_path, learned[0])
        with pytest.raises(TypeError, match="holds a Chat, and no GuardedChat"):
            GuardedChat.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("antigravity:Thing", "not imported"),
            ("os:system", "no model"),
            ("unlearn_core.models.chat:nothing", "no model"),
        ],
    )
    def test_a_class_that_is_no_model(self, name: str, says: str, tmp_path: Path) -> None:
        about = {"made_by": [], "frozen": [], "model": {"class": name, "arguments": {}}}
        (tmp_path / "unlearn.json").write_text(json.dumps(about))
        with pytest.raises(ValueError, match=says):
            load_pretrained(tmp_path)

    def test_a_part_that_can_not_be_written(self, learned: Learned, tmp_path: Path) -> None:
        class Own(Prefixed):
            pass

        own = Own(learned[0], "Well: ", flag=lambda chat, asked: torch.ones(len(asked)).bool())
        learned[0].save_pretrained(tmp_path)
        with pytest.raises(TypeError, match="flag is a function and can't be saved: make it a"):
            own.save_pretrained(tmp_path)
        assert type(load_pretrained(tmp_path)) is Chat  # the former model is still there


class TestGenerate:
    def prompts(self, chat: Chat, questions: list[str]) -> dict[str, Tensor]:
        """Padded on the left, as for transformers' ``generate``."""
        rows = [chat.tokenizer(chat.prompt(q).rstrip(" "))["input_ids"] for q in questions]
        longest = max(map(len, rows))
        ids = torch.tensor([[chat.padding] * (longest - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
        return {"input_ids": ids, "attention_mask": mask}

    @pytest.mark.parametrize(
        "name", ["flat", "guard", "whp", "prompting", "output_filtering", "icul"]
    )
    def test_it_says_what_answer_says(self, learned: Learned, name: str) -> None:
        """Fails where what a method put around the model has no say, or rows are mixed up."""
        chat, split = learned
        made = method_of(name)(chat, split, seed=0)
        asked = [
            part.questions.questions[i] for i in (0, 1) for part in (split.forget, split.retain)
        ]
        given = self.prompts(chat, asked)
        found = made.generate(**given, max_new_tokens=12)
        start = given["input_ids"].shape[1]
        assert torch.equal(found[:, :start], given["input_ids"])
        said = chat.tokenizer.batch_decode(found[:, start:], skip_special_tokens=True)
        assert [text.strip() for text in said] == made.answer(asked, 12)

    def test_options_are_for_what_is_not_flagged(self, learned: Learned) -> None:
        chat, split = learned
        made = Prompting()(chat, split)
        given = self.prompts(chat, [split.forget.questions.questions[0]])
        with pytest.raises(ValueError, match="flagged 'do_sample' can't be asked"):
            made.generate(**given, do_sample=True)
        given = self.prompts(chat, [split.retain.questions.questions[0]])
        assert made.generate(**given, do_sample=False, max_new_tokens=2).shape[0] == 1

    def test_a_text_that_is_no_prompt(self, learned: Learned) -> None:
        made = Prompting()(*learned)
        ids = torch.tensor([made.tokenizer("Ada was born")["input_ids"]])
        with pytest.raises(ValueError, match="is no prompt of the form 'Question: <<the text>>"):
            made.generate(ids)

    def test_two_caches_take_no_beams(self, learned: Learned) -> None:
        made = METHODS["whp"](**SMALL["whp"])(*learned)
        with pytest.raises(ValueError, match="take one"):
            made.generate(torch.tensor([[5, 6]]), num_beams=2)


def test_nothing_goes_around_what_is_around(learned: Learned) -> None:
    """Fails where the first of two is lost without a word."""
    chat, split = learned
    with pytest.raises(TypeError, match=r"a Prefixed is around the model, .* take its \.chat"):
        METHODS["output_filtering"]()(Prompting()(chat, split), split)
