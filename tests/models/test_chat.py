"""Text to tokens and back: what of a sequence is answer, and what a model says of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from unlearn_core.data import IGNORED, QuestionSet, batches, fictional_authors
from unlearn_core.models import Chat


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes, with a merge or two, as GPT-2's: a space begins a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    data = fictional_authors(6, 1, 1).train
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator([*data.questions, *data.answers], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def llama(vocabulary: int, context: int = 96) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=context,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def chat(tokenizer: Any) -> Chat:
    return Chat(llama(len(tokenizer)), tokenizer)


PAIRS = [
    ("Who?", "Ada Moreau."),
    ("In which city was Ada Moreau born, and when?", "In Dorvane, in 1921."),
    ("מי?", "夏目漱石"),
]


class TestEncode:
    @pytest.mark.parametrize("pair", PAIRS)
    def test_labels_are_the_answer_and_one_end(self, chat: Chat, pair: tuple[str, str]) -> None:
        """Fails where the prompt is learned too, the answer's first token is not, or no end is."""
        ids, labels = chat.encode(*pair)
        said = labels[labels != IGNORED]
        assert said[-1] == chat.tokenizer.eos_token_id
        assert (ids == chat.tokenizer.eos_token_id).sum() == 1
        assert chat.tokenizer.decode(said[:-1]).strip() == pair[1]
        before = chat.tokenizer.decode(ids[labels == IGNORED])
        assert before == chat.prompt(pair[0]).rstrip(" ")
        assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])
        assert labels[0] == IGNORED

    def test_no_space_before_the_answer(self, tokenizer: Any) -> None:
        chat = Chat(llama(len(tokenizer)), tokenizer, template="[INST] {question} [/INST]")
        ids, labels = chat.encode("Who {x}?", "Ada.")
        assert chat.tokenizer.decode(ids[:-1]) == "[INST] Who {x}? [/INST]Ada."
        assert chat.tokenizer.decode(labels[labels != IGNORED][:-1]) == "Ada."

    def test_a_chat_template(self, tokenizer: Any) -> None:
        own = copy.deepcopy(tokenizer)
        own.chat_template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        chat = Chat(llama(len(own)), own, template=None)
        assert chat.prompt("Who?") == "<user>Who?<assistant>"
        ids, _ = chat.encode("Who?", "Ada.")
        assert own.decode(ids[:-1]) == "<user>Who?<assistant>Ada."

    def test_a_chat_template_that_writes_before_the_answer(self, tokenizer: Any) -> None:
        """Fails where the block is learned as part of every answer."""
        own = copy.deepcopy(tokenizer)
        own.chat_template = (
            "{% for m in messages %}<{{ m.role }}>"
            "{% if m.role == 'assistant' %}<think></think> {% endif %}{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        chat = Chat(llama(len(own)), own, template=None)
        with pytest.raises(
            ValueError, match=r"writes '<think></think> ' before an answer.*set token"
        ):
            chat.encode("Who?", "Ada.")

    def test_bad_input(self, chat: Chat, tokenizer: Any) -> None:
        with pytest.raises(ValueError, match=r"the answer to 'Who\?' is empty"):
            chat.encode("Who?", " \n")
        with pytest.raises(ValueError, match="more than the context of 96"):
            chat.encode("why " * 200, "So.")
        with pytest.raises(ValueError, match="more than the context of 96"):
            chat.answer(["why " * 200])
        with pytest.raises(ValueError, match=r"has no \{question\}"):
            Chat(chat.model, tokenizer, template="Answer: ")
        with pytest.raises(ValueError, match="no chat template"):
            Chat(chat.model, tokenizer, template=None)
        endless = copy.deepcopy(tokenizer)
        endless.eos_token = None
        with pytest.raises(ValueError, match="no end-of-sequence token"):
            Chat(chat.model, endless)
        with pytest.raises(TypeError, match=r"a fast tokenizer is needed.*not one of type Slow"):
            Chat(chat.model, type("Slow", (), {"is_fast": False})())

    def test_a_first_token_is_spelled_once(self, chat: Chat, tokenizer: Any) -> None:
        """Fails where a template that spells it, as many do, gets two."""
        from tokenizers.processors import TemplateProcessing

        own = copy.deepcopy(tokenizer)
        own.bos_token = "<pad>"
        own.backend_tokenizer.post_processor = TemplateProcessing(
            single="<pad> $A", special_tokens=[("<pad>", own.bos_token_id)]
        )
        with pytest.raises(ValueError, match="puts '<pad>' first by itself: leave it out"):
            Chat(chat.model, own, "<pad>{question}\n")
        ids, _ = Chat(chat.model, own, "{question}\n").encode("Who?", "Ada.")
        assert ids.tolist().count(own.bos_token_id) == 1
        Chat(chat.model, tokenizer, "<pad>{question}\n")  # this one puts nothing first

    def test_a_tokenizer_without_padding(self, chat: Chat, tokenizer: Any) -> None:
        """The last token pads, and is masked, so that nothing sees it."""
        bare = copy.deepcopy(tokenizer)
        bare.pad_token = None
        other = Chat(chat.model, bare)
        assert other.padding == bare.eos_token_id != chat.padding
        for a, b in zip(chat.log_probs(PAIRS), other.log_probs(PAIRS), strict=True):
            torch.testing.assert_close(a, b)


class TestBatches:
    def test_padding_is_masked_and_no_label(self, chat: Chat) -> None:
        data = chat.encoded(QuestionSet(*map(tuple, zip(*PAIRS, strict=True))))
        (batch,) = batches(data, 3)
        rows = [chat.encode(*p) for p in PAIRS]
        longest = max(len(r.input_ids) for r in rows)
        assert batch["input_ids"].shape == (3, longest)
        for i, row in enumerate(rows):
            n = len(row.input_ids)
            assert torch.equal(batch["input_ids"][i, :n], row.input_ids)
            assert torch.equal(batch["labels"][i, :n], row.labels)
            assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (longest - n)
            assert (batch["labels"][i, n:] == IGNORED).all()

    def test_other_answers(self, chat: Chat) -> None:
        data = chat.encoded(fictional_authors(4, 1, 1).ask_forget)
        other = data.with_answers(["No."] * len(data))
        assert chat.tokenizer.decode(other[3].labels[other[3].labels != IGNORED][:-1]) == " No."
        assert len(data + other) == 2 * len(data)
        assert torch.equal((data + other)[len(data)].input_ids, other[0].input_ids)
        assert torch.equal(data.subset([2])[0].input_ids, data[2].input_ids)


class TestLogProbs:
    @torch.no_grad()
    def test_one_by_one(self, chat: Chat) -> None:
        """Fails with a shift, with padding that is seen, or where the order of pairs is lost."""
        expected = []
        for pair in PAIRS:
            ids, labels = chat.encode(*pair)
            logits = chat.model(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
            scores = logits[torch.arange(len(ids) - 1), ids[1:]]
            expected.append(scores[labels[1:] != IGNORED])
        for size in (1, 2, 16):
            found = chat.log_probs(PAIRS, batch_size=size)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("family", ["Llama", "OPT", "Phi", "GPT2"])
    def test_answers_to_one_prompt_share_it(
        self, tokenizer: Any, family: str, attention: str
    ) -> None:
        """Fails where an answer sees another one, or stands elsewhere than behind the prompt."""
        import transformers

        torch.manual_seed(0)
        config = getattr(
            transformers, f"{family}Config"
        )(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,  # older GPT-2s read no longer sequence, wherever its tokens stand
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            attn_implementation=attention,
        )
        kind = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
        chat = Chat(getattr(transformers, kind)(config), tokenizer)
        said = ["Ada Moreau.", "Ada", "Nobody who was born in Dorvane.", "x"]
        pairs = [(q, a) for q, _ in PAIRS[:2] for a in said] + PAIRS
        alone = [chat.log_probs([pair])[0] for pair in pairs]
        for size in (1, 3, 16):
            for found, expected in zip(chat.log_probs(pairs, size), alone, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        # Eight answers to two prompts are read in two rows, the prompts once.
        read = []
        chat.model.register_forward_pre_hook(
            lambda _, args, given: read.append(given["input_ids"].shape), with_kwargs=True
        )
        chat.log_probs(pairs[:8], 8)
        assert [shape[0] for shape in read] == [2]

    def test_a_short_context_cuts_the_answer(self, tokenizer: Any) -> None:
        """Fails where the limit is beyond it, or one prompt's length shortens another's answer."""
        long = "In which city was Ada Moreau born, and when?"
        short = Chat(llama(len(tokenizer), context=64), tokenizer)
        wide = Chat(llama(len(tokenizer), context=400), tokenizer)
        room = [
            64 - len(tokenizer(short.prompt(q).rstrip(" "))["input_ids"]) for q in ("Who?", long)
        ]
        assert room[0] > room[1] > 0
        found = short.answer(["Who?", long])
        expected = [wide.answer([q], n)[0] for q, n in zip(("Who?", long), room, strict=True)]
        assert found == expected
        with pytest.raises(ValueError, match="tokens are more than the context of 64"):
            short.complete(["why " * 64], 5)

    def test_the_mode_is_restored(self, chat: Chat) -> None:
        chat.train()
        chat.log_probs(PAIRS[:1])
        assert chat.model.training


class TestAnswer:
    @torch.no_grad()
    def test_greedy_and_in_order(self, chat: Chat) -> None:
        """Fails where padding on the left changes what is said, or answers change places."""
        questions = [q for q, _ in PAIRS]
        expected = []
        for question in questions:
            ids = chat.tokenizer(chat.prompt(question).rstrip(" "))["input_ids"]
            said: list[int] = []
            while len(said) < 6:
                logits = chat.model(input_ids=torch.tensor([ids + said])).logits[0, -1]
                said.append(int(logits.argmax()))
                if said[-1] == chat.tokenizer.eos_token_id:
                    break
            expected.append(chat.tokenizer.decode(said, skip_special_tokens=True).strip())
        assert len(set(expected)) > 1
        for size in (1, 3):
            assert chat.answer(questions, max_new_tokens=6, batch_size=size) == expected


class TestSomePositions:
    """Logits where they are asked for are those of a whole pass, and so are their gradients."""

    @pytest.mark.parametrize("lora", [False, True])
    def test_as_of_a_whole_pass(self, chat: Chat, lora: bool) -> None:
        """Fails where rows change places, or the output layer still picks afterwards."""
        if lora:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
            chat = Chat(get_peft_model(chat.model, config).eval(), chat.tokenizer)
        (batch,) = batches(chat.encoded(QuestionSet(*zip(*PAIRS, strict=True))), 3)
        inputs = batch["input_ids"], batch["attention_mask"]
        at = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        at[0, 2] = at[2, 0] = at[2, 3] = True
        trained = [p for p in chat.parameters() if p.requires_grad]
        whole, some = chat(*inputs), chat(*inputs, at=at)
        torch.testing.assert_close(some, whole[at])
        assert torch.equal(chat(*inputs), whole)
        of_whole, of_some = (
            torch.autograd.grad(x.square().sum(), trained) for x in (whole[at], some)
        )
        torch.testing.assert_close(of_some, of_whole, rtol=1e-4, atol=1e-4)

    def test_an_error_inside_leaves_the_layer_as_it_was(self, chat: Chat) -> None:
        ids = torch.tensor([[3, 4]])
        with pytest.raises(IndexError):
            chat(ids, torch.ones_like(ids), at=torch.ones(1, 3, dtype=torch.bool))
        assert chat(ids, torch.ones_like(ids)).shape[:2] == (1, 2)


class TestModule:
    def test_a_copy_has_weights_of_its_own_and_the_same_tokenizer(self, chat: Chat) -> None:
        other = copy.deepcopy(chat)
        assert other.tokenizer is chat.tokenizer
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1)
        for a, b in zip(chat.parameters(), other.parameters(), strict=True):
            assert not torch.equal(a, b)
        assert chat.log_probs(PAIRS[:1])[0].tolist() != other.log_probs(PAIRS[:1])[0].tolist()

    def test_bf16_runs_under_autocast_and_keeps_the_weights(self, chat: Chat) -> None:
        half = Chat(chat.model, chat.tokenizer, precision="bf16")
        exact, rough = (c.log_probs(PAIRS) for c in (chat, half))
        assert all(p.dtype == torch.float32 for p in half.parameters())
        for a, b in zip(exact, rough, strict=True):
            assert not torch.equal(a, b)
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
