"""What SEFE and SafeEraser cost, as ratios of things measured in one run; one thread.

The model is a LLaVA made here, larger than the book's: small matrices would make everything around
them look dear.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from unlearn_core.data import (
    REFUSALS,
    ForgetSplit,
    RestrictedSymbols,
    VisualAnswering,
    restricted_symbols,
)
from unlearn_core.data.restricted_symbols import VOCABULARY
from unlearn_core.methods import PreferenceOptimization, PromptDecouple
from unlearn_core.methods.adapters import adapters
from unlearn_core.methods.sefe import key_elements, penalty
from unlearn_core.models import TinyLlava, TrainConfig, VisionChat, to

Report = Callable[..., None]
Timed = Callable[..., dict[str, float]]

BATCH, LONGEST = 16, 16
TRAIN = TrainConfig(epochs=1, lr=1e-6, batch_size=BATCH, optimizer="adamw", max_steps=4)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> RestrictedSymbols:
    return restricted_symbols(base_images=12, train_images=24, val_images=12)


@pytest.fixture
def chat() -> VisionChat:
    return TinyLlava(VOCABULARY, hidden=384, layers=4, heads=6, vision_hidden=128).build(0)


@pytest.fixture
def split(chat: VisionChat, data: RestrictedSymbols) -> ForgetSplit:
    parts = (chat.encoded(s) for s in (data.train.forget, data.train.retain, data.train.decouple))
    forget, retain, decouple = parts
    task = VisualAnswering(REFUSALS)
    return ForgetSplit("restricted", task, forget, retain, decouple=decouple)


def test_a_step_with_the_penalty(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    chat: VisionChat,
    split: ForgetSplit,
) -> None:
    """A training step of adapters with RegLoRA's penalty on two per cent of every map, against one
    without. Aim: at most 1.1."""
    batch = split.forget.collate([split.forget[i] for i in range(BATCH)])
    with adapters(chat, 0, rank=8, alpha=16) as factors:
        protected = {
            (layer, "BA"): key_elements(torch.randn(len(B), A.shape[1]), 0.02)
            for layer, (A, B) in factors.items()
        }

        def plain() -> None:
            split.task.loss(chat, batch).backward()

        def penalised() -> None:
            (split.task.loss(chat, batch) + 2500 * penalty(factors, protected)).backward()

        found = interleaved(5, penalised=penalised, plain=plain)
        report(penalised_step_per_plain_step=found["penalised"] / found["plain"])
        benchmark.pedantic(penalised, rounds=1)


def test_decoupling_against_its_own_pass(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    chat: VisionChat,
    split: ForgetSplit,
) -> None:
    """What Prompt Decouple adds to PO's steps, against a forward and a backward pass over as many
    decoupling samples. Aim: 1."""
    po = PreferenceOptimization(mean="joint", train=TRAIN)
    decoupled = PromptDecouple(po)
    own = split.decouple.collate([split.decouple[i] for i in range(BATCH)])

    def one_pass() -> None:
        for _ in range(TRAIN.max_steps):
            split.task.loss(chat, to(own, torch.device("cpu"))).backward()

    ways = {"po": lambda: po(chat, split), "decoupled": lambda: decoupled(chat, split)}
    found = interleaved(3, one_pass=one_pass, **ways)
    report(added_per_own_pass=(found["decoupled"] - found["po"]) / found["one_pass"])
    benchmark.pedantic(ways["decoupled"], rounds=1)


def test_answers_in_batches(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    chat: VisionChat,
    data: RestrictedSymbols,
) -> None:
    """Answers to 48 questions in batches of 16 and one at a time. Aim: well under 1."""
    asked = data.train.forget.subset(range(48))
    images = asked.images[asked.which]

    def said(size: int) -> None:
        chat.answer(asked.questions, images, LONGEST, batch_size=size)

    found = interleaved(2, batched=lambda: said(16), single=lambda: said(1))
    report(batched_per_single=found["batched"] / found["single"])
    benchmark.pedantic(said, (16,), rounds=1)
