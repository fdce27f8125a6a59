"""A language model that answers questions: how text becomes tokens, and what comes out.

`Chat` wraps a causal model of transformers and its tokenizer as one module. Methods train it like
any other network, on `Chat.encoded` questions; metrics ask it for `Chat.answer` and
`Chat.log_probs` only, so a method that acts while text is generated overrides these two.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import IGNORED, QuestionSet
from .inference import evaluating
from .training import device_of, require_finite

__all__ = ["Around", "Chat", "EncodedSet", "Encoding"]


class Encoding(NamedTuple):
    """A prompt and its answer as tokens; labels are -100 on the prompt."""

    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class EncodedSet(Dataset):
    """Questions as a model's tokens; a batch is padded on the right to its longest sequence.

    Parameters
    ----------
    questions : the texts
    encode : (question, answer) -> tokens
    padding : the token that fills up
    """

    questions: QuestionSet
    encode: Callable[[str, str], Encoding]
    padding: int

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, i: int) -> Encoding:
        return self.encode(*self.questions[i])

    def collate(self, rows: Sequence[Encoding]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels``, each (B, longest) int64."""
        pad = nn.utils.rnn.pad_sequence
        lengths = torch.tensor([len(r.input_ids) for r in rows])
        ids = pad([r.input_ids for r in rows], batch_first=True, padding_value=self.padding)
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            "labels": pad([r.labels for r in rows], batch_first=True, padding_value=IGNORED),
        }

    def with_answers(self, answers: Sequence[str]) -> EncodedSet:
        return replace(self, questions=self.questions.with_answers(answers))

    def subset(self, positions: Tensor | Sequence[int]) -> EncodedSet:
        return replace(self, questions=self.questions.subset(positions))

    def __add__(self, other: EncodedSet) -> EncodedSet:
        return replace(self, questions=self.questions + other.questions)

    def fingerprint(self) -> str:
        return self.questions.fingerprint()


@dataclass(frozen=True)
class Pack:
    """A prompt and several answers to it as one sequence.

    Attributes
    ----------
    input_ids : (L,) the prompt and, one after the other, the answers without their last tokens
    positions : (L,) where each token would stand behind the prompt alone
    part : (L,) 0 for the prompt, k for the kth answer
    predicts : (tokens,) which input predicts each token of the answers, in order
    answers : which answers they are
    """

    input_ids: Tensor
    positions: Tensor
    part: Tensor
    predicts: Tensor
    answers: list[int]

    @classmethod
    def of(cls, prompt: Sequence[int], chosen: list[int], answers: Sequence[Tensor]) -> Pack:
        n = len(prompt)
        ids, positions, parts = [torch.tensor(prompt)], [torch.arange(n)], [torch.zeros(n).long()]
        predicts = []
        length = n
        for k, i in enumerate(chosen, start=1):
            new = len(answers[i]) - 1
            ids.append(answers[i][:-1])
            positions.append(torch.arange(n, n + new))
            parts.append(torch.full((new,), k))
            predicts += [torch.tensor([n - 1]), torch.arange(length, length + new)]
            length += new
        return cls(*(torch.cat(x) for x in (ids, positions, parts, predicts)), chosen)


def collate_packs(packs: Sequence[Pack], padding: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """``input_ids`` and ``position_ids`` (B, L), and ``attention_mask`` (B, 1, L, L).

    The mask is what is added to the attention: 0 where a token sees another, its own answer's or the
    prompt's, and minus infinity elsewhere. What fills up sees itself.
    """
    pad = nn.utils.rnn.pad_sequence
    ids = pad([p.input_ids for p in packs], batch_first=True, padding_value=padding)
    part = pad([p.part for p in packs], batch_first=True, padding_value=-1)
    seen = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    seen &= torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
    return {
        "input_ids": ids,
        "attention_mask": mask[:, None],
        "position_ids": pad([p.positions for p in packs], batch_first=True),
    }


@contextlib.contextmanager
def head_at(model: nn.Module, at: Tensor | None) -> Iterator[None]:
    """Inside the block the output layer reads the positions ``at`` alone, (B, length) bool.

    ``logits_to_keep`` of transformers keeps the same positions of every sequence. None for all.
    """
    if at is None:
        yield
        return
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][at],))
    try:
        yield
    finally:
        hook.remove()


class Chat(nn.Module):
    """A causal language model with its tokenizer and the form of its prompts.

    Parameters
    ----------
    model : of transformers
    tokenizer : its fast tokenizer
    template : the prompt, with ``{question}`` in it; the answer follows at once. None for the
        tokenizer's own chat template
    precision : "bf16" runs the model under autocast; "no" in the precision of its weights

    Raises
    ------
    ValueError
        A template without a question, or a tokenizer without an end-of-sequence token, or
        without a chat template where that is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        template: str | None = "Question: {question}\nAnswer: ",
        precision: Literal["no", "bf16"] = "no",
    ) -> None:
        super().__init__()
        if template is not None and "{question}" not in template:
            raise ValueError(f"the template {template!r} has no {{question}}")
        if template is None and not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token")
        self.model, self.tokenizer = model, tokenizer
        self.template, self.precision = template, precision
        self.training = model.training

    def __deepcopy__(self, memo: dict[int, Any]) -> Chat:
        """Another model; the tokenizer, which nothing changes, is shared."""
        other = copy.copy(self)
        other._modules = {k: copy.deepcopy(m, memo) for k, m in self._modules.items()}
        return other

    @property
    def bare(self) -> Chat:
        """The model without what a method put around it: what somebody who has the weights has."""
        return self

    @property
    def padding(self) -> int:
        """The token that fills up; it is masked, so a tokenizer without one lends its last."""
        t = self.tokenizer
        return t.eos_token_id if t.pad_token_id is None else t.pad_token_id

    @property
    def context(self) -> int | None:
        """The longest sequence that the model reads; None where it does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, length, vocabulary); with ``at``, (B, length) bool, (positions, vocabulary)."""
        with self._autocast(), head_at(self.model, at):
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids
            ).logits

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The embeddings and what each layer makes of them: (B, length, hidden) each."""
        with self._autocast():
            out = self.model(
                input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
            )
        return out.hidden_states

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        kind = device_of(self).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def prompt(self, question: str) -> str:
        if self.template is not None:
            return self.template.replace("{question}", question)
        turn = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)

    def encode(self, question: str, answer: str) -> Encoding:
        """Prompt and answer, tokenised as one text, and one end-of-sequence token.

        A space that the prompt ends with counts as part of the answer: most tokenizers make one
        token of it and the word that follows, and `answer` lets the model say it.

        Raises
        ------
        ValueError
            An empty answer, or a text that is longer than the model's context.
        """
        if not answer.strip():
            raise ValueError(f"the answer to {question!r} is empty")
        prompt = self.prompt(question)
        found = self.tokenizer(
            prompt + answer,
            add_special_tokens=self.template is not None,
            return_offsets_mapping=True,
        )
        ids = list(found["input_ids"])
        ends = [end for _, end in found["offset_mapping"]]
        if ids[-1] == self.tokenizer.eos_token_id and ends[-1] == 0:
            ids, ends = ids[:-1], ends[:-1]  # some tokenizers add it themselves
        ids.append(self.tokenizer.eos_token_id)
        self._check_length(len(ids), question)
        tokens = torch.tensor(ids)
        begins = len(prompt.rstrip(" "))
        said = torch.tensor([*(end > begins for end in ends), True])
        return Encoding(tokens, tokens.where(said, IGNORED))

    def _check_length(self, length: int, question: str) -> None:
        if self.context is not None and length > self.context:
            raise ValueError(
                f"{length} tokens are more than the context of {self.context}: {question[:60]!r}"
            )

    def encoded(self, questions: QuestionSet) -> EncodedSet:
        """The questions as this model's tokens, to train on."""
        return EncodedSet(questions, self.encode, self.padding)

    @torch.no_grad()
    def log_probs(self, pairs: Sequence[tuple[str, str]], batch_size: int = 16) -> list[Tensor]:
        """Log-probabilities of the tokens of each answer, the end of sequence included.

        One float32 tensor (tokens,) a pair, on the CPU, in the order of ``pairs``. All answers to a
        prompt stand behind it in one sequence, where none sees another, so the prompt is read once;
        sequences of like length share a batch of ``batch_size`` answers or so.
        """
        prompts: dict[tuple[int, ...], list[int]] = {}
        answers = []
        for i, pair in enumerate(pairs):
            ids, labels = self.encode(*pair)
            begins = max(int((labels != IGNORED).int().argmax()), 1)  # nothing predicts the first
            answers.append(ids[begins:])
            prompts.setdefault(tuple(ids[:begins].tolist()), []).append(i)
        packs = [
            Pack.of(prompt, chosen[start : start + batch_size], answers)
            for prompt, chosen in prompts.items()
            for start in range(0, len(chosen), batch_size)
        ]
        most = max((len(p.answers) for p in packs), default=1)
        require_finite(self, f"the {type(self).__name__} that is asked")
        out: list[Tensor] = [torch.empty(0)] * len(pairs)
        with evaluating(self):
            for batch in _by_length([len(p.input_ids) for p in packs], batch_size // most or 1):
                chosen = [packs[i] for i in batch]
                inputs = collate_packs(chosen, self.padding, self.model.dtype)
                logits = self(**{k: v.to(device_of(self)) for k, v in inputs.items()})
                for pack, rows in zip(chosen, logits, strict=True):
                    # Only positions that predict an answer: the vocabulary is wide.
                    labels = torch.cat([answers[i] for i in pack.answers]).to(rows.device)
                    scores = rows[pack.predicts.to(rows.device)].float().log_softmax(dim=-1)
                    scores = scores.gather(1, labels[:, None])[:, 0].cpu()
                    parts = scores.split([len(answers[i]) for i in pack.answers])
                    for i, part in zip(pack.answers, parts, strict=True):
                        out[i] = part
        return out

    def answer(
        self, questions: Sequence[str], max_new_tokens: int = 200, batch_size: int = 48
    ) -> list[str]:
        """What the model says, greedily, to each question."""
        prompts = [self.prompt(q) for q in questions]
        return self.complete(prompts, max_new_tokens, batch_size)

    @torch.no_grad()
    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        batch_size: int = 48,
        options: Callable[[list[int], int], dict[str, Any]] = lambda chosen, length: {},
    ) -> list[str]:
        """What the model writes after each prompt, without white space around it.

        ``options`` maps the positions of a batch's prompts, and the length that they are padded to,
        to more arguments for ``generate``.
        """
        encoded = []
        for prompt in prompts:
            ids = self.tokenizer(prompt.rstrip(" "), add_special_tokens=self.template is not None)[
                "input_ids"
            ]
            if ids[-1] == self.tokenizer.eos_token_id and len(ids) > 1:
                ids = ids[:-1]
            self._check_length(len(ids) + max_new_tokens, prompt)
            encoded.append(torch.tensor(ids))
        out = [""] * len(encoded)
        require_finite(self, f"the {type(self).__name__} that is asked")
        with evaluating(self), self._autocast():
            for chosen in _by_length([len(p) for p in encoded], batch_size):
                # Padding on the left: what is generated follows the prompt at once.
                longest = max(len(encoded[i]) for i in chosen)
                ids = torch.full((len(chosen), longest), self.padding)
                mask = torch.zeros_like(ids)
                for row, i in enumerate(chosen):
                    ids[row, longest - len(encoded[i]) :] = encoded[i]
                    mask[row, longest - len(encoded[i]) :] = 1
                said = self.model.generate(
                    input_ids=ids.to(device_of(self)),
                    attention_mask=mask.to(device_of(self)),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self.padding,
                    eos_token_id=self.tokenizer.eos_token_id,
                    **{"do_sample": False, **options(chosen, longest)},
                )[:, longest:]
                texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
                for i, text in zip(chosen, texts, strict=True):
                    out[i] = text.strip()
        return out


class Around(Chat):
    """A chat with something around it: subclasses override what it answers and finds probable."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat.model, chat.tokenizer, chat.template, chat.precision)

    @property
    def bare(self) -> Chat:
        return Chat(self.model, self.tokenizer, self.template, self.precision)


def _by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions in batches of like length, the longest first, so that memory is known at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]
