"""A language model that answers questions: how text becomes tokens, and what comes out.

`Chat` wraps a causal model of transformers and its tokenizer as one module. Methods train it like
any other network, on `Chat.encoded` questions; metrics ask it for `Chat.answer` and
`Chat.log_probs` only, so a method that acts while text is generated overrides these two.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import IGNORED, Answering, QuestionSet
from .inference import check_pair, evaluating, precision_of, several
from .saving import Saved
from .training import device_of, require_finite, to

__all__ = ["Around", "Chat", "EncodedSet", "Encoding", "Messages"]

#: A conversation as transformers writes it, ``[{"role": "user", "content": "..."}, ...]``.
Messages = Sequence[Mapping[str, str]]

#: What stands for a question or an answer where only what is around it is asked for.
MARK = "<<the text>>"


#: What day it is to a chat template that writes the date: the one that Llama 3.1's falls back on.
TODAY = datetime(2024, 7, 26)


@functools.cache
def on_one_day(template: str) -> str:
    """A chat template that writes the date of `TODAY` whatever the day.

    Raises
    ------
    ValueError
        It asks for the date in a form that is not written there.
    """
    found = re.sub(
        r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""",
        lambda call: repr(TODAY.strftime(call[2])),
        template,
    )
    if re.search(r"strftime_now(?!\s+is\s+(not\s+)?defined)", found):
        raise ValueError("the chat template writes today's date into every prompt; give a template")
    return found


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
    encode : (question, answer) -> tokens (`Chat.encode`)
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
        """The same questions with other answers, one a question."""
        return replace(self, questions=self.questions.with_answers(answers))

    def subset(self, positions: Tensor | Sequence[int]) -> EncodedSet:
        """The questions at these positions, in that order."""
        return replace(self, questions=self.questions.subset(positions))

    def __add__(self, other: EncodedSet) -> EncodedSet:
        return replace(self, questions=self.questions + other.questions)

    def fingerprint(self) -> str:
        """SHA-256 of the questions and answers, order included."""
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
def no_defaults(model: nn.Module) -> Iterator[None]:
    """Inside the block ``generate`` does what it is told, and nothing that a hub's file adds."""
    from transformers import GenerationConfig

    own = [(m, m.generation_config) for m in model.modules() if "generation_config" in vars(m)]
    for module, _ in own:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, config in own:
            module.generation_config = config


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


class Chat(Saved, nn.Module):
    """A causal language model with its tokenizer and the form of its prompts.

    Parameters
    ----------
    model : of transformers
    tokenizer : its fast tokenizer
    template : the prompt, with ``{question}`` in it; the answer follows at once, and ends with the
        tokenizer's end of sequence. None for the tokenizer's own chat template, an answer's end
        being that of its turn; one that writes the date writes `TODAY`
    precision : "bf16" runs the model under autocast; "no" in the precision of its weights
    system : what the chat template is told first; a template of text says it itself

    Raises
    ------
    TypeError
        The model is no module of transformers, or a `Chat` already; the tokenizer is none, or a slow one.
    ValueError
        Another precision; a token for filling up that the model doesn't know.
        A template without a question, or one that begins with the token that the tokenizer puts
        first by itself; a tokenizer without an end-of-sequence token, or without a chat template
        where that is asked for; a system prompt beside a template of text.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        template: str | None = "Question: {question}\nAnswer: ",
        precision: Literal["no", "bf16"] = "no",
        system: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise TypeError(
                "the model is one of transformers, such as AutoModelForCausalLM.from_pretrained(...), not "
                f"of type {type(model).__name__}"
            )
        if not getattr(tokenizer, "is_fast", False):
            kind = type(tokenizer).__name__
            raise TypeError(
                f"a fast tokenizer is needed, which AutoTokenizer loads by default, not one of type "
                f"{kind}"
            )
        if template is not None and "{question}" not in template:
            raise ValueError(f"the template {template!r} has no {{question}}")
        if template is None and not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template: set tokenizer.chat_template, or give a template "
                "with {question} in it"
            )
        if template is not None and system is not None:
            raise ValueError("a template of text says the system prompt itself: write it there")
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end-of-sequence token: set tokenizer.eos_token to one that the "
                "model knows"
            )
        first = tokenizer.bos_token
        spelled = template is not None and first and template.startswith(first)
        if spelled and tokenizer(template)["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
            raise ValueError(
                f"the tokenizer puts {first!r} first by itself: leave it out of the template"
            )
        self.model, self.tokenizer = model, tokenizer
        self.template, self.precision, self.system = template, precision_of(precision), system
        self.training = model.training
        self._check_known([self.padding])
        #: The longest pack and the longest answer behind its prompt that were found exact; None where
        #: packs are not.
        self._exact: tuple[int, int] | None = (0, 0)
        #: Whether padding on the left was found exact; None: not yet.
        self._exact_padding: bool | None = None

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
    def stops(self) -> list[int]:
        """The tokens that end what the model says: its own, the tokenizer's end of sequence, and the
        one with which a chat template ends an answer."""
        config = getattr(self.model, "generation_config", None)
        own = getattr(config, "eos_token_id", None)
        own = [] if own is None else [own] if isinstance(own, int) else own
        return sorted({*own, self.tokenizer.eos_token_id, *self._turn_end()})

    def _turn_end(self) -> list[int]:
        """The token of its own that a chat template writes at once behind an answer, if any."""
        if self.template is not None:
            return []
        _, _, behind = Chat._turns(self, MARK, MARK).rpartition(MARK)
        ids = self.tokenizer(behind, add_special_tokens=False)["input_ids"][:1]
        return [i for i in ids if i in self.tokenizer.added_tokens_decoder]

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
        where = {} if position_ids is None else {"position_ids": position_ids}
        with self._autocast(), head_at(self.model, at):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **where).logits

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The embeddings and what each layer makes of them: (B, length, hidden) each."""
        with self._autocast():
            out = self.model(
                input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
            )
        return out.hidden_states

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        if self.precision == "no":  # or, around it, in what a training asks for
            yield
            return
        with torch.autocast(device_of(self).type, torch.bfloat16):
            yield

    def prompt(self, question: str | Messages) -> str:
        """What the model reads before its answer.

        Parameters
        ----------
        question : a text; to a chat template also a conversation that ends with the user's turn

        Raises
        ------
        TypeError
            It is neither; or a conversation, and the template is one of text.
        ValueError
            A conversation that ends with another turn, or brings a second system prompt.
        """
        if self.template is None:
            return self._turns(question, add_generation_prompt=True)
        if not isinstance(question, str):
            raise TypeError(
                f"the question {str(question)[:60]!r} is no text; a list of messages is for the "
                "tokenizer's own chat template: Chat(model, tokenizer, template=None)"
            )
        return self.template.replace("{question}", question)

    def _messages(self, question: str | Messages) -> list[dict[str, Any]]:
        """A question as a conversation, the system prompt first."""
        if isinstance(question, str):
            turns = [{"role": "user", "content": self._content(question, asked=True)}]
        else:
            every = question if isinstance(question, Sequence) else ()
            turns = [dict(m) if isinstance(m, Mapping) else {} for m in every]
            if not turns or any({"role", "content"} - turn.keys() for turn in turns):
                raise TypeError(
                    "a question is a text, or a list of messages that have a role and a content, not "
                    f"{str(question)[:60]!r}"
                )
            if turns[-1]["role"] != "user":
                raise ValueError(f"the last message is the {turns[-1]['role']}'s, not the user's")
        if self.system is None:
            return turns
        if turns[0]["role"] == "system":
            raise ValueError("the messages bring a system prompt, and the chat has one")
        return [{"role": "system", "content": self._content(self.system)}, *turns]

    def _content(self, text: str, asked: bool = False) -> Any:
        """A message's text as the chat template takes it."""
        return text

    def _turns(self, question: str | Messages, answer: str | None = None, **options: Any) -> str:
        """A conversation as the tokenizer's chat template writes it."""
        turns = self._messages(question)
        if answer is not None:
            turns.append({"role": "assistant", "content": self._content(answer)})
        template = on_one_day(self.tokenizer.get_chat_template())
        return self.tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, **options
        )

    def _adds(self, text: str) -> bool:
        """Whether the tokenizer is to add the tokens that begin and end a text."""
        return self.template is not None

    def encode(self, question: str | Messages, answer: str) -> Encoding:
        """Prompt and answer, tokenised as one text, and one token that ends the answer.

        A space that the prompt ends with counts as part of the answer: most tokenizers make one
        token of it and the word that follows, and `answer` lets the model say it.

        Raises
        ------
        TypeError
            The answer is no text, or as of `prompt`.
        ValueError
            An empty answer, a token that the model doesn't know, a text that is longer than the model's
            context, or a chat template
            whose conversation doesn't begin with its own prompt, or goes on with another text than the
            answer.
        """
        if not isinstance(answer, str):
            raise TypeError(f"the answer to {question!r} is a text, not {answer!r}")
        if not answer.strip():
            raise ValueError(f"the answer to {question!r} is empty")
        prompt = self.prompt(question)
        text = prompt + answer if self.template is not None else self._turns(question, answer)
        after = text.rfind(answer.strip()) + len(answer.strip())
        if not text.startswith(prompt) or after <= len(prompt):
            raise ValueError(
                f"the chat template writes {prompt[-40:]!r} and {answer[:40]!r} otherwise where they "
                "follow each other; give a template"
            )
        said = text[len(prompt) :].lstrip()
        if not said.startswith(answer.strip()):
            between = said[: said.rfind(answer.strip())]
            raise ValueError(
                f"the chat template writes {between[:60]!r} before an answer, which would be learned as "
                "part of it: set tokenizer.chat_template to one that doesn't"
            )
        found = self.tokenizer(
            text, add_special_tokens=self._adds(text), return_offsets_mapping=True
        )
        ids, end = list(found["input_ids"]), self.tokenizer.eos_token_id
        ends = [e for _, e in found["offset_mapping"]]
        if self.template is not None:
            if ids[-1] == end and ends[-1] == 0:
                ids, ends = ids[:-1], ends[:-1]  # some tokenizers add it themselves
        else:  # what follows the end of its turn is not said by the model
            stops, behind = self.stops, range(len(ids))
            cut = next((i for i in behind if ends[i] > after and ids[i] in stops), None)
            if cut is not None:
                ids, end, ends = ids[:cut], ids[cut], ends[:cut]
        ids.append(end)
        self._check_length(len(ids), question)
        self._check_known(ids)
        tokens = torch.tensor(ids)
        begins = len(prompt.rstrip(" "))
        said = torch.tensor([*(e > begins for e in ends), True])
        return Encoding(tokens, tokens.where(said, IGNORED))

    def _check_length(self, length: int, question: str | Messages) -> None:
        if self.context is not None and length > self.context:
            raise ValueError(
                f"{length} tokens are more than the context of {self.context}: {str(question)[:60]!r}"
            )

    def _check_known(self, ids: Sequence[int]) -> None:
        """Raise where the model has no embedding of a token."""
        embeddings = self.model.get_input_embeddings()
        known = getattr(embeddings, "num_embeddings", None)
        if known is not None and max(ids) >= known:
            raise ValueError(
                f"the tokenizer's token {self.tokenizer.convert_ids_to_tokens(max(ids))!r} is number "
                f"{max(ids)}, and the model knows {known}: is it of another model? Else "
                "model.resize_token_embeddings(len(tokenizer)) makes room"
            )

    def encoded(self, questions: QuestionSet) -> EncodedSet:
        """The questions as this model's tokens, to train on."""
        return EncodedSet(questions, self.encode, self.padding)

    @torch.no_grad()
    def log_probs(
        self, pairs: Sequence[tuple[str | Messages, str]], batch_size: int = 16
    ) -> list[Tensor]:
        """Log-probabilities of the tokens of each answer, its end included.

        One float32 tensor (tokens,) a pair, on the CPU, in the order of ``pairs``. All answers to a
        prompt stand behind it in one sequence, where none sees another, so the prompt is read once;
        sequences of like length share a batch of ``batch_size`` answers or so. An architecture that
        does not give the same values so (ALiBi, a state that runs through the sequence, a window
        shorter than it) reads one answer after the other. It is found out by trying: in float32 no
        token's value may be off by more than 1e-3, in half precision their mean by no more than 0.1. A
        prompt with its answer that is longer than the ``sliding_window`` of the configuration is not tried.

        Raises
        ------
        TypeError
            Something else than pairs.
        NotFiniteError
            The weights are not finite.
        """
        require_finite(self, f"the {type(self).__name__} that is asked")
        for pair in pairs:
            check_pair(pair)
        rows = [self.encode(*pair) for pair in pairs]
        prompts: dict[tuple[int, ...], list[int]] = {}
        answers = []
        for i, (ids, labels) in enumerate(rows):
            begins = max(int((labels != IGNORED).int().argmax()), 1)  # nothing predicts the first
            answers.append(ids[begins:])
            prompts.setdefault(tuple(ids[:begins].tolist()), []).append(i)
        packs = [
            Pack.of(prompt, chosen[start : start + batch_size], answers)
            for prompt, chosen in prompts.items()
            for start in range(0, len(chosen), batch_size)
        ]
        out: list[Tensor] = [torch.empty(0)] * len(pairs)
        with evaluating(self):
            if not self._packs_are_exact(packs, rows, answers):
                return self._one_by_one(rows, Answering(), batch_size)
            most = max((len(p.answers) for p in packs), default=1)
            for batch in _by_length([len(p.input_ids) for p in packs], batch_size // most or 1):
                chosen = [packs[i] for i in batch]
                for pack, parts in zip(chosen, self._of_packs(chosen, answers), strict=True):
                    for i, part in zip(pack.answers, parts, strict=True):
                        out[i] = part
        return out

    def _of_packs(
        self, packs: Sequence[Pack], answers: Sequence[Tensor]
    ) -> Iterator[Sequence[Tensor]]:
        """Of each pack, the log-probabilities of its answers' tokens."""
        inputs = collate_packs(packs, self.padding, self.model.dtype)
        logits = self(**{k: v.to(device_of(self)) for k, v in inputs.items()})
        for pack, rows in zip(packs, logits, strict=True):
            # Only positions that predict an answer: the vocabulary is wide.
            labels = torch.cat([answers[i] for i in pack.answers]).to(rows.device)
            scores = rows[pack.predicts.to(rows.device)].float().log_softmax(dim=-1)
            scores = scores.gather(1, labels[:, None])[:, 0].cpu()
            yield scores.split([len(answers[i]) for i in pack.answers])

    def _one_by_one(self, rows: Sequence[Encoding], task: Answering, size: int) -> list[Tensor]:
        """`log_probs` of each row as a sequence of its own, padded on the right."""
        out = [torch.empty(0)] * len(rows)
        for chosen in _by_length([len(row.input_ids) for row in rows], size):
            batch = to(self._collate([rows[i] for i in chosen]), device_of(self))
            scores = task.token_log_probs(self, batch)[0].cpu()
            parts = scores.split(task.answer_tokens(batch).tolist())
            for i, part in zip(chosen, parts, strict=True):
                out[i] = part
        return out

    def _collate(self, rows: Sequence[Encoding]) -> dict[str, Tensor]:
        return EncodedSet((), self.encode, self.padding).collate(rows)

    def _packs_are_exact(
        self, packs: Sequence[Pack], rows: Sequence[Encoding], answers: Sequence[Tensor]
    ) -> bool:
        """Whether answers are as probable in packs as in sequences of their own.

        Looked at once, and again where a pack, or an answer behind its prompt, is longer than any
        before: of that answer (a window may be shorter than it) and of the longest pack's last one.
        A window that the configuration names is not tried: rounding hides one that is hardly too short.
        """
        if not packs or self._exact is None:
            return self._exact is not None
        pack = max(packs, key=lambda p: len(p.input_ids))
        longest = max(range(len(rows)), key=lambda i: len(rows[i].input_ids))
        its_own = next(p for p in packs if longest in p.answers)
        lengths = len(pack.input_ids), len(rows[longest].input_ids)
        if lengths[0] > self._exact[0] or lengths[1] > self._exact[1]:
            # By pack, so that one is looked at where both are the same.
            probes = {id(pack): (pack, pack.answers[-1]), id(its_own): (its_own, longest)}
            window = getattr(self.model.config, "sliding_window", None)
            fits = window is None or lengths[1] <= window
            if fits and all(self._is_exact(p, i, rows, answers) for p, i in probes.values()):
                self._exact = max(lengths[0], self._exact[0]), max(lengths[1], self._exact[1])
            else:
                self._exact = None
        return self._exact is not None

    def _is_exact(
        self, pack: Pack, i: int, rows: Sequence[Encoding], answers: Sequence[Tensor]
    ) -> bool:
        """Whether answer ``i`` is as probable behind all others of its pack as alone."""
        others = [k for k in pack.answers if k != i] or [i]
        prompt = pack.input_ids[pack.part == 0].tolist()
        plain = self._in_own_precision()
        (alone,) = plain._one_by_one([rows[i]], Answering(), 1)
        try:
            (parts,) = plain._of_packs([Pack.of(prompt, [*others, i], answers)], answers)
            return self._alike(parts[-1], alone)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # it knows no masks of four dimensions, say
            return False

    def _in_own_precision(self) -> Chat:
        """The same model, not under autocast: what differs there is no rounding."""
        plain = copy.copy(self)
        plain.precision = "no"
        return plain

    def _alike(self, a: Tensor, b: Tensor) -> bool:
        """Whether log-probabilities of the same are alike but for rounding.

        Each of them; in half precision, where single ones are rounded far, on average.
        """
        if a.shape != b.shape:
            return False
        apart = (a - b).abs()
        if self.model.dtype.itemsize >= 4:
            return bool(apart.max() <= 1e-3)
        return bool(apart.mean() <= 0.1)

    def answer(
        self, questions: Sequence[str | Messages], max_new_tokens: int = 200, batch_size: int = 48
    ) -> list[str]:
        """What the model says, greedily, to each question; see `complete`."""
        several(questions, "questions")
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

        Greedily, where ``options`` says nothing else, until one of `stops` or ``max_new_tokens``, or
        as many as its context leaves: nothing else of the model's generation configuration counts.
        ``options`` maps the positions of a batch's prompts,
        and the length that they are padded to, to more arguments for ``generate``.

        Raises
        ------
        NotFiniteError
            The weights are not finite.
        ValueError
            A prompt that fills the whole context.
        """
        require_finite(self, f"the {type(self).__name__} that is asked")
        encoded = []
        limits: dict[int, list[int]] = {}  # how many new tokens -> which prompts
        for i, prompt in enumerate(prompts):
            text = prompt.rstrip(" ")
            ids = self.tokenizer(text, add_special_tokens=self._adds(text))["input_ids"]
            if ids[-1] == self.tokenizer.eos_token_id and len(ids) > 1:
                ids = ids[:-1]
            self._check_length(len(ids) + 1, prompt)
            self._check_known(ids)
            encoded.append(torch.tensor(ids))
            room = max_new_tokens if self.context is None else self.context - len(ids)
            limits.setdefault(min(max_new_tokens, room), []).append(i)
        out, stops = [""] * len(encoded), self.stops
        with evaluating(self), no_defaults(self.model):
            for limit, chosen in (
                (limit, chosen)
                for limit, members in limits.items()
                for chosen in self._batches(encoded, members, batch_size, options)
            ):
                longest = max(len(encoded[i]) for i in chosen)
                with self._autocast():
                    said = self._generate(
                        [encoded[i] for i in chosen],
                        max_new_tokens=limit,
                        eos_token_id=stops,
                        **options(chosen, longest),
                    )
                for i, row in zip(chosen, said[:, longest:].tolist(), strict=True):
                    length = next((k for k, token in enumerate(row) if token in stops), len(row))
                    out[i] = self.tokenizer.decode(row[:length], skip_special_tokens=True).strip()
        return out

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """What ``generate`` of transformers gives: (n, length) tokens, those of the prompts first.

        ``options`` are that function's, and the model's generation configuration counts; it stops at
        one of `stops`. What a method put around the model has its say, as in `answer`.
        """
        given = {"eos_token_id": self.stops, "pad_token_id": self.padding, **options}
        with evaluating(self), self._autocast():
            return self.model.generate(input_ids=input_ids, attention_mask=attention_mask, **given)

    def question_of(self, prompt: str) -> str:
        """The question that a `prompt` asks.

        Raises
        ------
        ValueError
            It has another form.
        """
        before, _, after = self.prompt(MARK).partition(MARK)
        _, found, rest = prompt.partition(before.lstrip())
        question, ends, _ = rest.rpartition(after.rstrip())
        if not (found or not before.strip()) or not ends:
            raise ValueError(f"{prompt[:60]!r} is no prompt of the form {before + MARK + after!r}")
        return question

    def _generate(self, prompts: Sequence[Tensor], **options: Any) -> Any:
        # Padding on the left: what is generated follows the prompt at once.
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        return self.model.generate(
            input_ids=ids.to(device_of(self)),
            attention_mask=mask.to(device_of(self)),
            pad_token_id=self.padding,
            **{"do_sample": False, **options},
        )

    def _batches(
        self,
        prompts: Sequence[Tensor],
        members: Sequence[int],
        size: int,
        options: Callable[..., dict[str, Any]],
    ) -> Iterator[list[int]]:
        """Members of like length; of one length where padding changes what is said."""
        for part in _by_length([len(prompts[i]) for i in members], size):
            chosen = [members[k] for k in part]
            lengths = dict.fromkeys(len(prompts[i]) for i in chosen)
            if len(lengths) == 1 or self._padding_is_exact(prompts, chosen, options):
                yield chosen
            else:
                yield from ([i for i in chosen if len(prompts[i]) == n] for n in lengths)

    def _padding_is_exact(
        self,
        prompts: Sequence[Tensor],
        chosen: Sequence[int],
        options: Callable[..., dict[str, Any]],
    ) -> bool:
        """Whether the first tokens after the shortest prompt are as probable beside the longest one.

        Looked at once, by greedy decoding.
        """
        if self._exact_padding is not None:
            return self._exact_padding
        plain = self._in_own_precision()

        def begin(some: list[int]) -> tuple[Tensor, list[int]]:
            """Of the last one: log-probabilities (3, vocabulary), and the tokens that are said."""
            longest = max(len(prompts[i]) for i in some)
            given = {k: v for k, v in options(some, longest).items() if isinstance(v, Tensor)}
            how = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
            found = plain._generate([prompts[i] for i in some], **how, **given)
            scores = torch.stack([step[-1] for step in found.logits]).float().log_softmax(dim=-1)
            return scores, found.sequences[-1, longest:].tolist()

        alone, said = begin([chosen[-1]])
        try:
            beside, also = begin([chosen[0], chosen[-1]])
            # After a tie the two go on apart.
            same = next((i for i in range(3) if said[i] != also[i]), 2) + 1
            self._exact_padding = self._alike(beside[:same], alone[:same])
        except torch.OutOfMemoryError:
            raise
        except Exception:  # it knows no padding on the left
            self._exact_padding = False
        return self._exact_padding


class Around(Chat):
    """A chat with something around it: subclasses override what it answers and finds probable."""

    def __init__(self, chat: Chat) -> None:
        if isinstance(chat, Around):
            raise TypeError(
                f"a {type(chat).__name__} is around the model, and would be lost: take its .chat"
            )
        super().__init__(chat.model, chat.tokenizer, chat.template, chat.precision, chat.system)

    @property
    def chat(self) -> Chat:
        """What it is around."""
        return Chat(self.model, self.tokenizer, self.template, self.precision, self.system)

    @property
    def bare(self) -> Chat:
        return self.chat


def _by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions in batches of like length, the longest first, so that memory is known at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]
