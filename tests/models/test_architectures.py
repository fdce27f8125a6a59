"""What a chat says and finds probable is what the model's own greedy decoding and one plain sequence
say, whatever the architecture, its configuration on the hub and its chat template."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn_core.data import IGNORED
from unlearn_core.models import Chat, TinyLlama

LONG = "Who wrote the long novel about the sea and the wind?"
PAIRS = [
    *((LONG, a) for a in ("Ada Moreau.", "Bo", "Nobody who was born in Dorvane, ever.", "x")),
    ("Who?", "Ada."),
    ("In which city was Ada Moreau born, and when was that?", "In Dorvane, in 1921."),
]
QUESTIONS = [LONG, "Who?", "In which city was Ada Moreau born, and when was that?"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return TinyLlama(vocabulary=400).build(0).tokenizer


#: Of few key and value heads; of a window that is shorter than a question.
FEW: dict[str, Any] = {"num_key_value_heads": 2}
WINDOW = FEW | {"sliding_window": 8}

#: Name -> its class, what is special of its configuration, and whether one sequence may hold
#: several answers.
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("Llama", {}, True),
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}, True),
    "gpt2": ("GPT2", {"n_positions": 256}, True),
    "qwen2": ("Qwen2", FEW, True),
    "mistral, within its window": ("Mistral", FEW | {"sliding_window": 200}, True),
    "mistral": ("Mistral", WINDOW, False),
    "gemma2": ("Gemma2", WINDOW | {"head_dim": 8}, False),
    "gpt_neo": (
        "GPTNeo",
        {"attention_types": [[["global", "local"], 1]], "window_size": 8, "num_layers": 2},
        False,
    ),
    "mpt (ALiBi)": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, False),
    "bloom (ALiBi)": ("Bloom", {"n_layer": 2, "n_head": 4}, False),
    "falcon (ALiBi)": ("Falcon", {"alibi": True}, False),
    "falcon": ("Falcon", {"alibi": False}, True),
    "mamba": ("Mamba", {"state_size": 4}, False),
    "lfm2": ("Lfm2", FEW | {"full_attn_idxs": [1], "block_multiple_of": 8}, False),
}


def built(family: str, tokenizer: Any) -> Any:
    """A tiny one, drawn; its weights are large, so that what it reads makes a difference."""
    import transformers

    kind, own, _ = FAMILIES[family]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 256}
    tokens = {"bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    tokens |= {"eos_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    tokens |= {"tie_word_embeddings": False}
    config = getattr(transformers, f"{kind}Config")(**sizes | tokens | own)
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}{head}")(config).eval()
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    return model


@torch.no_grad()
def alone(chat: Chat, pair: tuple[str, str]) -> Tensor:
    """The answer's log-probabilities, of one plain sequence."""
    ids, labels = chat.encode(*pair)
    logits = chat.model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits
    scores = logits[0, :-1].float().log_softmax(dim=-1)[torch.arange(len(ids) - 1), ids[1:]]
    return scores[labels[1:] != IGNORED]


@torch.no_grad()
def greedy(chat: Chat, question: str, n: int, stops: tuple[int, ...] = ()) -> str:
    """The likeliest token again and again, each time of one plain sequence."""
    ids = chat.tokenizer(chat.prompt(question).rstrip(" "))["input_ids"]
    said: list[int] = []
    while len(said) < n:
        row = torch.tensor([ids + said])
        logits = chat.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        said.append(int(logits[0, -1].argmax()))
        if said[-1] in (chat.tokenizer.eos_token_id, *stops):
            said.pop()
            break
    return chat.tokenizer.decode(said, skip_special_tokens=True).strip()


def masks_read(chat: Chat) -> list[int]:
    """How many dimensions the attention masks have that the model is given from now on."""
    seen: list[int] = []
    chat.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["attention_mask"].dim()), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryArchitecture:
    def test_log_probs(self, tokenizer: Any, family: str) -> None:
        """Fails where several answers share a sequence in a way that the architecture doesn't bear."""
        chat = Chat(built(family, tokenizer), tokenizer)
        expected = [alone(chat, pair) for pair in PAIRS]
        for size in (16, 2):
            for found, right in zip(chat.log_probs(PAIRS, size), expected, strict=True):
                torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
        seen = masks_read(chat)
        chat.log_probs(PAIRS)
        # It was found out once, and is not tried again.
        assert (set(seen) == {4}) == FAMILIES[family][2]
        assert (4 in seen) == FAMILIES[family][2]

    def test_answers(self, tokenizer: Any, family: str) -> None:
        chat = Chat(built(family, tokenizer), tokenizer)
        expected = [greedy(chat, q, 8) for q in QUESTIONS]
        assert len(set(expected)) > 1
        assert chat.answer(QUESTIONS, 8) == expected


class TestFindingOut:
    def test_a_longer_sequence_is_looked_at_again(self, tokenizer: Any) -> None:
        """Within the window all is well; fails where that is believed of what is longer."""
        model = built("mistral, within its window", tokenizer)
        model.config.sliding_window = 40
        for layer in model.model.layers:
            layer.self_attn.sliding_window = 40
        chat = Chat(model, tokenizer)
        chat.log_probs([("Who?", "Ada."), ("Who?", "Bo.")])
        seen = masks_read(chat)
        chat.log_probs([("Who?", "Ada."), ("Who?", "Bo.")])
        assert set(seen) == {4}
        for found, pair in zip(chat.log_probs(PAIRS), PAIRS, strict=True):
            torch.testing.assert_close(found, alone(chat, pair), rtol=1e-4, atol=1e-4)

    def test_a_long_answer_beside_a_longer_pack_of_short_ones(self, tokenizer: Any) -> None:
        """Fails where the longest pack alone is looked at, whose answers are all within the window."""
        model = built("mistral, within its window", tokenizer)
        model.config.sliding_window = 40
        for layer in model.model.layers:
            layer.self_attn.sliding_window = 40
        chat = Chat(model, tokenizer)
        short = [("Who?", a) for a in ("Ada Moreau.", "Bo", "In Dorvane, in 1921.", "x")] * 4
        for pairs in (short, short + PAIRS[-1:]):
            for found, pair in zip(chat.log_probs(pairs), pairs, strict=True):
                torch.testing.assert_close(found, alone(chat, pair), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("family", "window", "dtype"),
        [
            ("mistral", {"sliding_window": 120}, torch.float32),
            ("mistral", {"sliding_window": 115}, torch.bfloat16),
            ("gpt_neo", {"window_size": 120}, torch.float32),
        ],
    )
    def test_an_answer_that_is_a_little_too_long(
        self,
        tokenizer: Any,
        monkeypatch: pytest.MonkeyPatch,
        family: str,
        window: dict[str, int],
        dtype: torch.dtype,
    ) -> None:
        """Of 122 tokens; fails where the few that miss something are lost in a mean over all."""
        kind, own, _ = FAMILIES[family]
        monkeypatch.setitem(FAMILIES, family, (kind, own | window, False))
        chat = Chat(built(family, tokenizer).to(dtype), tokenizer)
        pairs = [("Who?", " ".join(["Ada Moreau was born in Dorvane"] * 8)), ("Who?", "Bo.")]
        assert len(chat.encode(*pairs[0])[0]) == 122
        for found, pair in zip(chat.log_probs(pairs), pairs, strict=True):
            torch.testing.assert_close(found, alone(chat, pair), rtol=1e-4, atol=1e-4)
        seen = masks_read(chat)
        chat.log_probs(pairs)
        assert set(seen) == {2}

    def test_a_single_long_answer(self, tokenizer: Any) -> None:
        """A pack of one has a mask of four dimensions, too, which says nothing of a window."""
        chat = Chat(built("mistral", tokenizer), tokenizer)
        (found,) = chat.log_probs([PAIRS[-1]])
        torch.testing.assert_close(found, alone(chat, PAIRS[-1]), rtol=1e-4, atol=1e-4)

    def test_copies_know_it(self, tokenizer: Any) -> None:
        chat = Chat(built("mpt (ALiBi)", tokenizer), tokenizer)
        chat.log_probs(PAIRS)
        other = copy.deepcopy(chat)
        seen = masks_read(other)
        other.log_probs(PAIRS)
        assert set(seen) == {2}

    def test_nothing_to_ask(self, tokenizer: Any) -> None:
        chat = Chat(built("llama", tokenizer), tokenizer)
        assert chat.log_probs([]) == chat.answer([]) == []

    def test_padding_that_is_seen(self, tokenizer: Any) -> None:
        """Of a model that takes no notice of the mask, prompts of one length alone share a batch."""
        model = built("llama", tokenizer)
        plain = model.forward
        model.forward = lambda *args, attention_mask=None, position_ids=None, **more: plain(
            *args, **more
        )
        chat = Chat(model, tokenizer)
        asked = [*QUESTIONS, "Why?"]
        assert chat.answer(asked, 8) == [greedy(chat, q, 8) for q in asked]

    def test_half_precision_is_no_other_architecture(self, tokenizer: Any) -> None:
        """Fails where what is only rounded is taken for another value."""
        chat = Chat(built("llama", tokenizer).bfloat16(), tokenizer)
        chat.log_probs(PAIRS)
        seen = masks_read(chat)
        chat.log_probs(PAIRS)
        assert set(seen) == {4}
        chat = Chat(built("llama", tokenizer), tokenizer, precision="bf16")
        chat.log_probs(PAIRS)
        seen = masks_read(chat)
        chat.log_probs(PAIRS)
        assert set(seen) == {4}


class TestGenerationConfig:
    @pytest.mark.parametrize(
        "of_the_hub",
        [
            {},
            {"repetition_penalty": 1.3},
            {"no_repeat_ngram_size": 1},
            {"num_beams": 4, "length_penalty": 2.0},
            {"do_sample": True, "temperature": 2.0, "top_k": 50},
            {"min_new_tokens": 8},
            {"max_length": 3},
            {"suppress_tokens": [*range(5, 300)]},
            {"bad_words_ids": [[i] for i in range(5, 300)]},
            {"penalty_alpha": 0.6, "top_k": 4},
        ],
        ids=str,
    )
    def test_greedily_is_greedily(self, tokenizer: Any, of_the_hub: dict[str, Any]) -> None:
        """Fails where a hub's ``generation_config.json`` has a say; it is as it was afterwards."""
        chat = Chat(built("llama", tokenizer), tokenizer)
        expected = [greedy(chat, q, 8) for q in QUESTIONS]
        chat.model.generation_config.update(**of_the_hub)
        before = chat.model.generation_config
        assert chat.answer(QUESTIONS, 8) == expected
        assert chat.model.generation_config is before
        assert before.to_dict().items() >= of_the_hub.items()

    def test_through_adapters(self, tokenizer: Any) -> None:
        from peft import LoraConfig, get_peft_model

        model = built("llama", tokenizer)
        model.generation_config.repetition_penalty = 1.3
        chat = Chat(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")).eval(), tokenizer)
        assert chat.answer(QUESTIONS, 8) == [greedy(chat, q, 8) for q in QUESTIONS]
        assert chat.model.generation_config.repetition_penalty == 1.3

    def test_it_stops_where_the_model_does(self, tokenizer: Any) -> None:
        """Its configuration names two ends, the other one being a word to the tokenizer."""
        chat = Chat(built("llama", tokenizer), tokenizer)
        free = [greedy(chat, q, 8) for q in QUESTIONS]
        prompt = tokenizer(chat.prompt(LONG).rstrip(" "), return_tensors="pt")["input_ids"]
        third = chat.model.generate(prompt, max_new_tokens=3, do_sample=False)[0, -1].item()
        chat.model.generation_config.eos_token_id = [tokenizer.eos_token_id, third]
        assert chat.stops == sorted([tokenizer.eos_token_id, third])
        said = chat.answer(QUESTIONS, 8)
        assert said == [greedy(chat, q, 8, (third,)) for q in QUESTIONS]
        assert len(said[0]) < len(free[0])
        assert free[0].startswith(said[0])


#: Turns that end as Gemma's do: not with the tokenizer's end of sequence.
TURNS = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content | trim }}<turn_end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


class TestChatTemplate:
    @pytest.fixture
    def chat(self, tokenizer: Any) -> Chat:
        own = copy.deepcopy(tokenizer)
        own.add_tokens(["<turn>", "<turn_end>"])  # ordinary ones, which decoding doesn't drop
        own.chat_template = TURNS
        model = built("llama", own)
        end = own.convert_tokens_to_ids("<turn_end>")
        model.generation_config.eos_token_id = [own.eos_token_id, end]
        return Chat(model, own, template=None)

    def test_an_answer_ends_as_its_turn_does(self, chat: Chat) -> None:
        """Fails where the tokenizer's end is put behind it, which the model never says."""
        ids, labels = chat.encode("Who?", " Ada. ")
        text = "<turn>user\nWho?<turn_end>\n<turn>assistant\nAda.<turn_end>"
        assert chat.tokenizer.decode(ids) == text
        assert chat.tokenizer.decode(labels[labels != IGNORED]) == "Ada.<turn_end>"

    def test_log_probs_are_those_of_the_model_s_own_end(self, chat: Chat) -> None:
        pairs = [("Who?", "Ada."), ("Who?", "Bo Lee."), (LONG, "Ada.")]
        for found, pair in zip(chat.log_probs(pairs), pairs, strict=True):
            text = chat.tokenizer.apply_chat_template(
                [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}],
                tokenize=False,
            ).removesuffix("\n")
            ids = torch.tensor(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
            with torch.no_grad():
                logits = chat.model(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
            expected = logits[torch.arange(len(ids) - 1), ids[1:]][-len(found) :]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_what_it_says_is_what_the_model_generates(self, chat: Chat) -> None:
        end = chat.tokenizer.convert_tokens_to_ids("<turn_end>")
        with torch.no_grad():  # it ends after a word or two
            head = chat.model.get_output_embeddings().weight
            head[end] = 0.5 * head[5:50].sum(dim=0)
        said = chat.answer(QUESTIONS, 8)
        for question, text in zip(QUESTIONS, said, strict=True):
            ids = chat.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )["input_ids"]
            own = chat.model.generate(ids, max_new_tokens=8, do_sample=False)
            said_by_it = own[0, ids.shape[1] :]
            whole = chat.tokenizer.decode(said_by_it, skip_special_tokens=True)
            assert text == whole.split("<turn_end>")[0].strip()
            assert "<turn" not in text

    def test_it_stops_at_the_end_of_a_turn_that_no_configuration_names(self, chat: Chat) -> None:
        """Fails where a model that was tuned on a template of its own runs on to the limit."""
        end = chat.tokenizer.convert_tokens_to_ids("<turn_end>")
        chat.model.generation_config.eos_token_id = chat.tokenizer.eos_token_id
        assert end in chat.stops
        _, labels = chat.encode("Who?", "Ada.")
        assert labels[-1] == end

    def test_a_system_prompt_stands_first(self, chat: Chat) -> None:
        told = Chat(chat.model, chat.tokenizer, template=None, system="Be brief.")
        assert told.prompt("Who?") == (
            "<turn>system\nBe brief.<turn_end>\n<turn>user\nWho?<turn_end>\n<turn>assistant\n"
        )
        ids, labels = told.encode("Who?", "Ada.")
        assert chat.tokenizer.decode(ids).startswith("<turn>system\nBe brief.<turn_end>")
        assert chat.tokenizer.decode(labels[labels != IGNORED]) == "Ada.<turn_end>"
        assert told.answer(["Who?"], 6) == chat.answer(
            [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]], 6
        )

    def test_a_conversation_is_a_question(self, chat: Chat) -> None:
        """Fails where it is written into the prompt as Python writes a list."""
        turns = [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "Ada."},
            {"role": "user", "content": "And when?"},
        ]
        prompt = "".join(f"<turn>{t['role']}\n{t['content']}<turn_end>\n" for t in turns)
        assert chat.prompt(turns) == f"{prompt}<turn>assistant\n"
        (scores,) = chat.log_probs([(turns, "In 1921.")])
        ids = chat.tokenizer(chat.prompt(turns), add_special_tokens=False)["input_ids"]
        answer = chat.tokenizer("In 1921.<turn_end>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = chat.model(input_ids=torch.tensor([ids + answer])).logits[0].log_softmax(-1)
        expected = logits[len(ids) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0]
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("question", "error", "says"),
        [
            (7, TypeError, "a text, or a list of messages"),
            ([], TypeError, "a text, or a list of messages"),
            (["Who?"], TypeError, "a text, or a list of messages"),
            ([{"role": "user"}], TypeError, "that have a role and a content"),
            ([{"role": "assistant", "content": "Ada."}], ValueError, "is the assistant's"),
        ],
    )
    def test_what_is_no_conversation(
        self, chat: Chat, question: Any, error: type[Exception], says: str
    ) -> None:
        with pytest.raises(error, match=says):
            chat.prompt(question)

    def test_what_does_not_go_together(self, chat: Chat, tokenizer: Any) -> None:
        told = Chat(chat.model, chat.tokenizer, template=None, system="Be brief.")
        both = [{"role": "system", "content": "No."}, {"role": "user", "content": "Who?"}]
        with pytest.raises(
            ValueError, match="the messages bring a system prompt, and the chat has"
        ):
            told.prompt(both)
        plain = Chat(chat.model, tokenizer)
        with pytest.raises(
            TypeError, match=r"is no text; a list of messages is for .*template=None"
        ):
            plain.prompt(both)
        with pytest.raises(ValueError, match="says the system prompt itself: write it there"):
            Chat(chat.model, tokenizer, system="Be brief.")

    def test_it_is_saved_too(self, chat: Chat, tmp_path: Path) -> None:
        told = Chat(chat.model, chat.tokenizer, template=None, system="Be brief.")
        told.save_pretrained(tmp_path)
        loaded = Chat.from_pretrained(tmp_path)
        assert (loaded.system, loaded.template) == ("Be brief.", None)
        assert loaded.prompt("Who?") == told.prompt("Who?")
        assert loaded.stops == told.stops
        assert loaded.answer(QUESTIONS, 6) == told.answer(QUESTIONS, 6)

    #: What Gemma's and Phi-3's write, the former without a system prompt, and their ends of a turn.
    @pytest.mark.parametrize(
        ("template", "end"),
        [
            (
                "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
                "{{ raise_exception('System role not supported') }}{% endif %}"
                "{% for message in messages %}{% if (message['role'] == 'assistant') %}"
                "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
                "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
                "'<end_of_turn>\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
                "<end_of_turn>",
            ),
            (
                "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + "
                "message['content'] + '<|end|>\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}"
                "{% endif %}",
                "<|end|>",
            ),
        ],
        ids=["gemma", "phi-3"],
    )
    def test_of_other_families(self, tokenizer: Any, template: str, end: str) -> None:
        own = copy.deepcopy(tokenizer)
        marks = ["<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>"]
        own.add_special_tokens({"bos_token": "<bos>"})
        own.add_tokens(marks, special_tokens=True)
        own.chat_template = template
        model = built("llama", own)
        number = own.convert_tokens_to_ids(end)
        model.generation_config.eos_token_id = [own.eos_token_id, number]
        chat = Chat(model, own, template=None)
        ids, labels = chat.encode("Who?", "Ada.")
        assert own.decode(labels[labels != IGNORED]) == f"Ada.{end}"
        begins = (labels != IGNORED).nonzero()[0, 0]
        asked = own.apply_chat_template(
            [{"role": "user", "content": "Who?"}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert ids[:begins].tolist() == asked
        assert ids.tolist().count(own.bos_token_id) == ("bos_token" in template)
        said = chat.model.generate(torch.tensor([asked]), max_new_tokens=8, do_sample=False)
        whole = own.decode(said[0, len(asked) :], skip_special_tokens=True).strip()
        assert chat.answer(["Who?"], 8) == [whole]

    def test_the_date_is_the_same_every_day(self, chat: Chat) -> None:
        chat.tokenizer.chat_template = (
            "{% if strftime_now is defined %}Today is {{ strftime_now('%d %b %Y') }}.\n{% endif %}"
            + TURNS
        )
        assert chat.prompt("Who?").startswith("Today is 26 Jul 2024.\n<turn>user\nWho?")
        ids, _ = chat.encode("Who?", "Ada.")
        assert chat.tokenizer.decode(ids).startswith("Today is 26 Jul 2024.\n")

    def test_a_date_that_can_not_be_fixed_is_refused(self, chat: Chat) -> None:
        chat.tokenizer.chat_template = "{% set f = '%d' %}{{ strftime_now(f) }}" + TURNS
        with pytest.raises(ValueError, match="today's date into every prompt; give a template"):
            chat.prompt("Who?")

    @pytest.mark.parametrize(
        "template",
        [
            TURNS + "{% if add_generation_prompt %}<think>{% endif %}",
            "{% for m in messages %}{{ m.role }}{% endfor %}",
        ],
    )
    def test_a_template_that_writes_them_otherwise_is_refused(
        self, chat: Chat, template: str
    ) -> None:
        chat.tokenizer.chat_template = template
        with pytest.raises(ValueError, match=r"'Ada\.' otherwise .* give a template"):
            chat.encode("Who?", "Ada.")
