"""What language models cost, as ratios of things measured in one run; SmolLM2-135M, one thread.

Run ``make models`` first: the model is real, since a tiny one would make everything around it look dear.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from unlearn_core.data import IDK, ForgetSplit, QuestionData, fictional_authors, forget_questions
from unlearn_core.methods import FLAT, GUARD
from unlearn_core.methods.guard import GuardedChat
from unlearn_core.metrics import ask, evaluation_sets
from unlearn_core.models import Chat, SmolLM2, TrainConfig

Report = Callable[..., None]
Timed = Callable[..., dict[str, float]]

BATCH, LONGEST = 8, 24


@pytest.fixture(scope="module")
def chat() -> Chat:
    return SmolLM2().build(0)


@pytest.fixture(scope="module")
def data() -> QuestionData:
    return fictional_authors(6, 1, 1)


@pytest.fixture(scope="module")
def split(chat: Chat, data: QuestionData) -> ForgetSplit:
    return forget_questions(data, chat.encoded, IDK)


def test_flat_against_two_passes(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    chat: Chat,
    split: ForgetSplit,
) -> None:
    """FLAT's training on one batch an epoch against as many plain passes over answers and over
    templates, each with its backward pass, and as many optimizer steps. Aim: at most 1.1."""
    epochs = 3
    config = TrainConfig(epochs=epochs, lr=1e-6, batch_size=BATCH, optimizer="adamw")
    forget = split.forget
    templates = split.task.relabel(forget, torch.Generator().manual_seed(0))
    rows = [forget.collate([d[i] for i in range(BATCH)]) for d in (forget, templates)]

    def plain() -> None:
        optimizer = config.make_optimizer(chat.parameters())
        for _ in range(epochs):
            for batch in rows:
                split.task.loss(chat, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    def flat() -> None:
        FLAT("kl", config)(chat, split, inplace=True)

    assert len(forget) == BATCH
    found = interleaved(3, flat=flat, plain=plain)
    report(flat_per_two_passes=found["flat"] / found["plain"])
    benchmark.pedantic(flat, rounds=1)


def test_evaluation_against_raw_passes(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    chat: Chat,
    data: QuestionData,
) -> None:
    """Scoring every answer of every question: its tokens a second over those of plain forward passes at
    the best of three batch sizes. Aim: at least 0.7."""
    sets = evaluation_sets(data, {"retain": 16})
    pairs = {
        (q, a)
        for part in sets.values()
        for i, (q, answer) in enumerate(part)
        for a in (answer, *part.paraphrased[i : i + 1], *part.wrong[i])
    }
    lengths = [len(chat.encode(q, a).input_ids) for q, a in pairs]
    typical = round(sum(lengths) / len(lengths))

    @torch.no_grad()
    def raw(size: int) -> None:
        ids = torch.randint(1000, 2000, (size, typical))
        for _ in range(len(pairs) // size):
            chat(ids, torch.ones_like(ids))

    sizes = (8, 16, 32)
    ways = {f"raw_{size}": lambda size=size: raw(size) for size in sizes}
    found = interleaved(2, scored=lambda: ask(chat, sets, None), **ways)
    best = max(typical * size * (len(pairs) // size) / found[f"raw_{size}"] for size in sizes)
    report(evaluation_throughput_per_raw=sum(lengths) / found["scored"] / best)
    benchmark.pedantic(ask, (chat, sets, None), rounds=1)


def test_restricted_decoding_against_beam_search(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    chat: Chat,
    split: ForgetSplit,
) -> None:
    """Answers under GUARD's restriction against plain beam search of the same width and length. Aim: at
    most 1.5; and every distinct word is embedded once, so a second round embeds none."""
    config = TrainConfig(epochs=5, lr=1e-3, batch_size=8, optimizer="adamw")
    guarded: GuardedChat = GUARD(extractor="oracle", train=config)(chat, split)
    asked = list(split.forget.questions.questions)
    prompts = [chat.prompt(q) for q in asked]
    same = {"num_beams": guarded.beams, "min_new_tokens": LONGEST}

    def restricted() -> None:
        guarded.answer_flagged(asked, LONGEST, 2 * guarded.beams)

    def plain() -> None:
        chat.complete(prompts, LONGEST, 2, lambda *_: same)

    before = guarded.encoder.encoded
    restricted()
    once = guarded.encoder.encoded - before
    found = interleaved(2, restricted=restricted, plain=plain)
    assert guarded.encoder.encoded == before + once
    report(restricted_per_beam_search=found["restricted"] / found["plain"], words_embedded=once)
    benchmark.pedantic(restricted, rounds=1)
