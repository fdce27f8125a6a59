"""The architectures of the hub's models that our specs name, and the sizes of its data: no weight, no network.

The values are those of each repository's ``config.json``. What they determine is checked by the number of
weights that a model is known to have (``tests/replication/test_sizes.py``).
"""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest import mock

from ..runner import with_variables

__all__ = ["MODELS", "built_from_geometry", "depth", "layers_of"]

#: id on the hub -> folder in it ("" for the repository itself) -> configuration class and its values.
MODELS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "google/vit-base-patch16-224": {
        "": (
            "ViTConfig",
            {
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "image_size": 224,
                "patch_size": 16,
            },
        )
    },
    "microsoft/phi-1_5": {
        "": (
            "PhiConfig",
            {
                "vocab_size": 51200,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "max_position_embeddings": 2048,
                "partial_rotary_factor": 0.5,
            },
        )
    },
    "facebook/opt-2.7b": {
        "": (
            "OPTConfig",
            {
                "vocab_size": 50272,
                "hidden_size": 2560,
                "ffn_dim": 10240,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "word_embed_proj_dim": 2560,
                "max_position_embeddings": 2048,
            },
        )
    },
    "NousResearch/Llama-2-7b-chat-hf": {
        "": (
            "LlamaConfig",
            {
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "max_position_embeddings": 4096,
            },
        )
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "": (
            "Qwen2Config",
            {
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
            },
        )
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "": (
            "LlamaConfig",
            {
                "vocab_size": 49152,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "max_position_embeddings": 8192,
                "tie_word_embeddings": True,
            },
        )
    },
    "llava-hf/llava-1.5-7b-hf": {
        "": (
            "LlavaConfig",
            {
                "vision_config": {
                    "model_type": "clip_vision_model",
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 16,
                    "image_size": 336,
                    "patch_size": 14,
                    "projection_dim": 768,
                },
                "text_config": {
                    "model_type": "llama",
                    "vocab_size": 32064,
                    "hidden_size": 4096,
                    "intermediate_size": 11008,
                    "num_hidden_layers": 32,
                    "num_attention_heads": 32,
                    "max_position_embeddings": 4096,
                },
                "image_token_index": 32000,
                "image_seq_length": 576,
                "vision_feature_layer": -2,
            },
        )
    },
    "openai/clip-vit-base-patch32": {
        "": (
            "CLIPConfig",
            {
                "text_config": {
                    "hidden_size": 512,
                    "intermediate_size": 2048,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 8,
                },
                "vision_config": {
                    "hidden_size": 768,
                    "intermediate_size": 3072,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 12,
                    "image_size": 224,
                    "patch_size": 32,
                },
                "projection_dim": 512,
            },
        )
    },
    "sentence-transformers/all-MiniLM-L6-v2": {
        "": (
            "BertConfig",
            {
                "vocab_size": 30522,
                "hidden_size": 384,
                "num_hidden_layers": 6,
                "num_attention_heads": 12,
                "intermediate_size": 1536,
            },
        )
    },
    "CompVis/stable-diffusion-v1-4": {
        "unet": (
            "UNet2DConditionModel",
            {
                "sample_size": 64,
                "block_out_channels": [320, 640, 1280, 1280],
                "layers_per_block": 2,
                "cross_attention_dim": 768,
                "attention_head_dim": 8,
            },
        ),
        "vae": (
            "AutoencoderKL",
            {
                "sample_size": 512,
                "block_out_channels": [128, 256, 512, 512],
                "down_block_types": ["DownEncoderBlock2D"] * 4,
                "up_block_types": ["UpDecoderBlock2D"] * 4,
                "layers_per_block": 2,
                "latent_channels": 4,
            },
        ),
        "text_encoder": (
            "CLIPTextConfig",
            {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "projection_dim": 768,
            },
        ),
        "scheduler": (
            "PNDMScheduler",
            {
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "skip_prk_steps": True,
            },
        ),
    },
}


def _write(folder: Path, kind: str, values: dict[str, Any]) -> None:
    """A configuration file as the library of that class writes it."""
    import diffusers
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(transformers, kind):
        getattr(transformers, kind)(**values).save_pretrained(folder)
    elif kind == "PNDMScheduler":
        diffusers.PNDMScheduler(**values).save_pretrained(folder)
    else:
        (folder / "config.json").write_text(
            json.dumps({"_class_name": kind, **values}), encoding="utf-8"
        )


def _tokenizer(folder: Path, id: str) -> None:
    """A tokenizer of the kind that is there; how long real texts are, `stand_ins` knows."""
    from ...models import TinyLlama
    from ..rehearsal import letters

    if "stable-diffusion" in id:
        letters(folder / "tokenizer")
    elif "clip" in id:
        letters(folder)
    elif "vit" not in id and "MiniLM" not in id:
        tokenizer = TinyLlama().build(0).tokenizer
        if "llava" in id:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
            kind, values = MODELS[id][""]
            token = tokenizer.convert_tokens_to_ids("<image>")  # of this tokenizer
            _write(folder, kind, values | {"image_token_index": token})
        tokenizer.save_pretrained(folder)


#: How many layers a language model is given in the place of its own number, where one is set.
DEPTH: ContextVar[int | None] = ContextVar("DEPTH", default=None)


@contextlib.contextmanager
def depth(layers: int | None) -> Iterator[None]:
    """In the block of `built_from_geometry`, language models have so many layers."""
    token = DEPTH.set(layers)
    try:
        yield
    finally:
        DEPTH.reset(token)


def layers_of(id: str) -> int:
    """Of the language model of an id."""
    ((_, values),) = MODELS[id].values()
    return values.get("text_config", values)["num_hidden_layers"]


def _cut(config: Any) -> Any:
    if DEPTH.get() is not None and hasattr(config.get_text_config(), "vocab_size"):
        config.get_text_config().num_hidden_layers = DEPTH.get()
    return config


@contextlib.contextmanager
def built_from_geometry() -> Iterator[None]:
    """In the block a spec's ``build`` makes its hub's architecture from this table, weights left as they are.

    The spec's own code runs: what it adds (adapters, checkpointing, a template) is there.
    """
    import diffusers
    import transformers
    from transformers.initialization import no_init_weights
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    from ...models import language, vision

    def model(
        cls: type, path: Any, *_: Any, dtype: Any = None, subfolder: str = "", **__: Any
    ) -> Any:
        config = _cut(cls.config_class.from_pretrained(path, subfolder=subfolder))
        with no_init_weights():
            made = cls._from_config(config, **({"dtype": dtype} if dtype else {}))
        made.tie_weights()
        return made

    def auto(cls: type, path: Any, *_: Any, dtype: Any = None, **__: Any) -> Any:
        config = _cut(transformers.AutoConfig.from_pretrained(path))
        with no_init_weights():
            made = cls.from_config(config, **({"dtype": dtype} if dtype else {}))
        made.tie_weights()
        return made

    def part(cls: type, path: Any, *_: Any, subfolder: str | None = None, **__: Any) -> Any:
        return cls.from_config(cls.load_config(path, subfolder=subfolder))

    def gguf(_: Path) -> tuple[dict[str, Any], Any, Any]:
        kind, values = MODELS["HuggingFaceTB/SmolLM2-135M-Instruct"][""]
        config = _cut(getattr(transformers, kind)(**values))
        with no_init_weights():
            made = transformers.LlamaForCausalLM(config)
        made.tie_weights()
        return made.state_dict(), config, language.TinyLlama().build(0).tokenizer

    def same(*_: Any) -> None:
        """Other values are of no other size."""

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        hub = Path(name)
        for id, parts in MODELS.items():
            if id.startswith("HuggingFaceTB"):  # a file that `gguf` does not look into
                (hub / id).mkdir(parents=True)
                (hub / id / "model.gguf").touch()
                continue
            if id.startswith("sentence-transformers"):
                continue
            for folder, (kind, values) in parts.items():
                _write(hub / id / folder, kind, values)
            _tokenizer(hub / id, id)
        for id in (vision.VICUNA, vision.PROJECTOR):  # what is there is of no account
            (hub / id).mkdir(parents=True)
            (hub / id / "config.json").touch()
            (hub / id / "mm_projector.bin").touch()
        transformers.CLIPImageProcessor().save_pretrained(hub / "llava-hf/llava-1.5-7b-hf")
        for patch in (
            with_variables({"UNLEARN_HUB": str(hub), "HF_HUB_OFFLINE": "1"}),
            mock.patch.object(transformers.PreTrainedModel, "from_pretrained", classmethod(model)),
            mock.patch.object(_BaseAutoModelClass, "from_pretrained", classmethod(auto)),
            mock.patch.object(diffusers.ModelMixin, "from_pretrained", classmethod(part)),
            mock.patch.object(language, "_gguf", gguf),
            mock.patch.object(vision, "before_tuning", same),
        ):
            stack.enter_context(patch)
        yield
