"""Who's Harry Potter: two models that answer as one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch

from unlearn_core.data import ForgetSplit
from unlearn_core.methods import WHP
from unlearn_core.methods.baselines.whp import ContrastChat
from unlearn_core.models import Chat, TrainConfig

Learned = tuple[Chat, ForgetSplit]
TRAIN = TrainConfig(epochs=3, lr=3e-3, batch_size=8, optimizer="adamw")


@pytest.fixture(scope="module")
def other(learned: Learned) -> torch.nn.Module:
    """The model with its weights disturbed, and surer of what it says."""
    model = copy.deepcopy(learned[0].model)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * p.abs().mean() * torch.randn(p.shape, generator=g)
        model.lm_head.weight *= 1.5
    return model.eval()


def test_logits_by_hand(learned: Learned, other: torch.nn.Module) -> None:
    """Fails where the sign is turned, or what the other finds less likely is raised."""
    chat, _ = learned
    both = ContrastChat(chat, other, alpha=2.0).eval()
    batch = {"input_ids": torch.tensor([[5, 9, 7]]), "attention_mask": torch.ones(1, 3).long()}
    with torch.no_grad():
        own, more = chat.model(**batch).logits, other(**batch).logits
        found = both(**batch)
    assert torch.allclose(found, torch.where(more > own, own - 2 * (more - own), own), atol=1e-5)
    assert (found < own - 1e-3).any()


def one_token(chat: Chat) -> Chat:
    """The same chat, with a tokenizer whose one special token begins, ends and fills up."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(chat.tokenizer)
    end = tokenizer.eos_token
    tokenizer.pad_token = tokenizer.bos_token = end
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return Chat(chat.model, tokenizer, chat.template)


@pytest.mark.parametrize("form", [lambda chat: chat, one_token], ids=["plain", "one token for all"])
def test_what_is_said_is_what_is_likeliest(
    learned: Learned, other: torch.nn.Module, form: Callable[[Chat], Chat]
) -> None:
    """Fails where the other model's cache, its padding or its positions are wrong: each answer must be
    what a greedy search through `forward` finds, alone and without a cache. What fills up is known by
    the mask: by the token, a text's first one would be masked too."""
    chat, split = form(learned[0]), learned[1]
    both = ContrastChat(chat, other, alpha=3.0).eval()
    questions = [
        *split.forget.questions.questions[:3],
        "What?",
        split.retain.questions.questions[0],
    ]
    said = both.answer(questions, 8)
    for question, text in zip(questions, said, strict=True):
        ids = chat.tokenizer(chat.prompt(question).rstrip(" "))["input_ids"]
        ids = ids[:-1] if ids[-1] == chat.tokenizer.eos_token_id else ids
        start = len(ids)
        for _ in range(8):
            x = torch.tensor([ids])
            with torch.no_grad():
                ids.append(int(both(x, torch.ones_like(x))[0, -1].argmax()))
            if ids[-1] == chat.tokenizer.eos_token_id:
                break
        expected = chat.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        assert text == expected
    assert said != chat.answer(questions, 8)


def test_no_deprecated_name_is_used(learned: Learned, other: torch.nn.Module) -> None:
    """Fails where a cache is handed on under a name that transformers is about to drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        ContrastChat(learned[0], other, alpha=3.0).answer(["Who?", "What is it?"], 4)


def test_without_a_weight_it_is_the_original(learned: Learned) -> None:
    chat, split = learned
    same = WHP(TRAIN, alpha=0.0)(chat, split)
    questions = split.forget.questions.questions[:4]
    assert same.answer(questions, 8) == chat.answer(questions, 8)
    pairs = [split.forget.questions[0], split.retain.questions[1]]
    for a, b in zip(same.log_probs(pairs), chat.log_probs(pairs), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_what_is_forgotten_becomes_less_likely(learned: Learned) -> None:
    """Fails where the copy is trained on what is kept, or the original itself is trained."""
    chat, split = learned
    before = copy.deepcopy(chat.state_dict())
    contrast = WHP(TRAIN, alpha=4.0)(chat, split)
    assert all(torch.equal(v, before[k]) for k, v in chat.state_dict().items())
    bare = contrast.bare.state_dict()
    assert all(torch.equal(bare[k], v) for k, v in before.items())

    def nll(model: Chat, part: ForgetSplit) -> float:
        pairs = [part.questions[i] for i in range(8)]
        return -torch.cat(model.log_probs(pairs)).mean().item()

    rise = [nll(contrast, p) - nll(chat, p) for p in (split.forget, split.retain)]
    assert rise[0] > rise[1] + 0.1
