"""A model that sees and answers: LLaVA (Liu et al., 2023; arXiv 2304.08485) as a `Chat`.

An image stands in a prompt as one ``<image>``, which becomes as many tokens as the vision tower gives;
transformers puts what the tower saw in their place, and at generation does so in the first step only.
"""

from __future__ import annotations

import copy
import functools
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import Source, VisualAnswering, VisualSet, resolve
from ..data.image_questions import Triple, as_pixels
from ..extras import needing
from ..fields import Count
from ..registry import ADDED
from ..seeding import derive_seed, seeded
from .chat import Chat, EncodedSet, Encoding, Messages, head_at
from .classifiers import ModelSpec
from .inference import evaluating, several
from .language import checkpoint_layers
from .training import (
    Recipe,
    TrainConfig,
    device_of,
    require_finite,
    shuffled_epochs,
    train,
)

__all__ = [
    "MULTIMODAL_MODELS",
    "EncodedVisualSet",
    "ImageTransform",
    "Llava",
    "SeeingRecipe",
    "TinyLlava",
    "VisionChat",
    "VisualEncoding",
    "learn_to_see",
    "vocabulary_of",
]

#: The token that stands for an image.
IMAGE = "<image>"


@dataclass(frozen=True)
class ImageTransform:
    """Images as a vision tower takes them; they are shrunk as CLIP's processor does (bicubic).

    Attributes
    ----------
    size : of the square that comes out
    mean, std : of each channel, for values in [0, 1]
    pad : fill up to a square with the mean colour, as LLaVA-1.5's authors do; else the middle is cut
        out, as CLIP and the hub's LLaVA do
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: bool = False

    @classmethod
    def from_processor(cls, processor: Any) -> ImageTransform:
        """What an image processor of transformers does, CLIP's or LLaVA's.

        Raises
        ------
        ValueError
            It does something else, which is named.
        """
        steps = ("do_resize", "do_rescale", "do_normalize")
        names = ("size", "crop_size", "resample", "do_center_crop", *steps)
        does = {name: getattr(processor, name, None) for name in names}
        pad = bool(getattr(processor, "do_pad", False))
        sides = dict(does["size"] or {})
        side = sides.get("shortest_edge", sides.get("height"))
        known = {
            "size": side and (pad or sides == {"shortest_edge": side}),
            "crop_size": pad or dict(does["crop_size"] or {}) == {"height": side, "width": side},
            "resample": does["resample"] == 3,  # bicubic, in PIL's numbers
            "do_center_crop": pad or does["do_center_crop"],
            **{name: does[name] for name in steps},
        }
        if wrong := [name for name, is_known in known.items() if not is_known]:
            raise ValueError(
                f"a {type(processor).__name__} with {wrong[0]}={does[wrong[0]]!r} is out of scope: "
                "give an ImageTransform of your own"
            )
        mean, std = (tuple(getattr(processor, name)) for name in ("image_mean", "image_std"))
        return cls(side, mean, std, pad)

    def __call__(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """(B, H, W, 3) uint8, or B images of any size -> (B, 3, size, size) float32."""
        if not isinstance(images, Tensor):
            if len({image.shape for image in images}) > 1:
                return torch.cat([self(image[None]) for image in images])
            images = torch.stack(list(images))
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as tv

        x = images.permute(0, 3, 1, 2)
        if self.pad:
            height, width = x.shape[-2:]
            side = max(height, width)
            left, top = (side - width) // 2, (side - height) // 2
            around = [left, top, side - width - left, side - height - top]
            x = tv.pad(x, around, fill=[int(255 * m) for m in self.mean])
        x = tv.resize(x, [self.size], InterpolationMode.BICUBIC, antialias=True)
        top, left = ((n - self.size) // 2 for n in x.shape[-2:])
        x = x[..., top : top + self.size, left : left + self.size]
        x = tv.to_dtype(x, torch.float32, scale=True)
        return tv.normalize(x, list(self.mean), list(self.std))


class VisualEncoding(NamedTuple):
    """A prompt and its answer as tokens, and the image as it is; labels as in `Encoding`."""

    input_ids: Tensor
    labels: Tensor
    image: Tensor


@dataclass(frozen=True)
class EncodedVisualSet(EncodedSet):
    """Questions about images as a model's tokens; a batch also has ``pixel_values``."""

    questions: VisualSet
    transform: ImageTransform

    def __getitem__(self, i: int) -> VisualEncoding:
        question, answer, image = self.questions[i]
        return VisualEncoding(*self.encode(question, answer), image)

    def collate(self, rows: Sequence[VisualEncoding]) -> dict[str, Tensor]:
        """As of `EncodedSet`, and ``pixel_values`` (B, 3, size, size) float32."""
        pixels = self.transform([row.image for row in rows])
        return {**super().collate(rows), "pixel_values": pixels}


class VisionChat(Chat):
    """A LLaVA with its tokenizer, its image transform and the form of its prompts.

    `from_processor` makes one of what transformers has. An image is (H, W, 3) uint8, or one of PIL, an
    array or a file, of any size.

    Parameters
    ----------
    model : ``LlavaForConditionalGeneration``
    tokenizer : fast, with the token ``<image>``
    transform : makes the model's input of images
    template : the prompt, with ``{question}`` and, unless questions bring an ``<image>``, ``{image}``;
        None for the tokenizer's own chat template, of which the image is the first part
    precision, system : as of `Chat`

    Raises
    ------
    TypeError, ValueError
        As of `Chat`; the model is no LLaVA, or the tokenizer's ``<image>`` is not the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        transform: ImageTransform,
        template: str | None,
        precision: Literal["no", "bf16"] = "no",
        system: str | None = None,
    ) -> None:
        if not hasattr(tokenizer, "convert_tokens_to_ids") and hasattr(tokenizer, "tokenizer"):
            raise TypeError(
                f"the tokenizer is of type {type(tokenizer).__name__}: with a processor of "
                "transformers, VisionChat.from_processor(model, processor)"
            )
        if template is not None:
            template = template.replace("{image}", IMAGE)
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if kind != "llava":
            raise TypeError(f"the model must be a LLaVA, whose model_type is 'llava', not a {kind}")
        super().__init__(model, tokenizer, template, precision, system)
        if tokenizer.convert_tokens_to_ids(IMAGE) != model.config.image_token_index:
            raise ValueError(f"{IMAGE} is not token {model.config.image_token_index}, the model's")
        self.transform = transform

    @classmethod
    def from_processor(
        cls,
        model: nn.Module,
        processor: Any,
        template: str | None = None,
        precision: Literal["no", "bf16"] = "no",
        system: str | None = None,
    ) -> VisionChat:
        """A LLaVA of transformers with the processor that belongs to it.

        Parameters
        ----------
        model : ``LlavaForConditionalGeneration``
        processor : ``LlavaProcessor``
        template, precision, system : as of `VisionChat`; without a template, the processor's own

        Raises
        ------
        TypeError
            It is no processor of text and images, or the model is no LLaVA.
        ValueError
            As of `VisionChat` and `ImageTransform.from_processor`; no template.
        """
        parts = [getattr(processor, name, None) for name in ("tokenizer", "image_processor")]
        if None in parts:
            raise TypeError(
                f"a processor has a tokenizer and an image_processor, a {type(processor).__name__} "
                "has not"
            )
        tokenizer, images = parts
        own = getattr(processor, "chat_template", None)
        if template is None and own:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = own
        transform = ImageTransform.from_processor(images)
        return cls(model, tokenizer, transform, template, precision, system)

    @property
    def image_tokens(self) -> int:
        """How many tokens an image is."""
        config = self.model.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        return patches + (config.vision_feature_select_strategy == "full")  # the class token

    @property
    def context(self) -> int | None:
        return getattr(self.model.config.text_config, "max_position_embeddings", None)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Logits as of `Chat`.

        Raises
        ------
        ValueError
            An image token without an image: the model would read it as a word.
        """
        if pixel_values is None and (input_ids == self.model.config.image_token_index).any():
            raise ValueError("there are image tokens, but no pixel_values")
        with self._autocast(), head_at(self.model, at):
            return self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                pixel_values=pixel_values,
            ).logits

    def prompt(self, question: str | Messages) -> str:
        """The prompt, with the image's tokens in it.

        Raises
        ------
        ValueError
            Not one image token, or a word that the tokenizer doesn't know.
        """
        text = super().prompt(question)
        return text if self.template is None else self._with_image(text)

    def _with_image(self, text: str) -> str:
        if text.count(IMAGE) != 1:
            raise ValueError(f"{text.count(IMAGE)} image tokens, not one, in the prompt {text!r}")
        self._check_words(text)
        return text.replace(IMAGE, IMAGE * self.image_tokens)

    def _turns(self, question: str | Messages, answer: str | None = None, **options: Any) -> str:
        return self._with_image(super()._turns(question, answer, **options))

    def _content(self, text: str, asked: bool = False) -> list[dict[str, str]]:
        image = [{"type": "image"}] if asked else []
        return [*image, {"type": "text", "text": text}]

    def _adds(self, text: str) -> bool:
        # A processor leaves what begins a text to its tokenizer, unless the chat template wrote it.
        first = self.tokenizer.bos_token
        return super()._adds(text) or not (first and text.startswith(first))

    def encode(self, question: str, answer: str) -> Encoding:
        """As of `Chat`; an answer can have no image, nor a word that the tokenizer doesn't know.

        Raises
        ------
        ValueError
            An image token, or a word that the tokenizer doesn't know, in the answer.
        """
        if IMAGE in answer:
            raise ValueError(f"an image token in the answer {answer!r}")
        self._check_words(answer)
        return super().encode(question, answer)

    def _check_words(self, text: str) -> None:
        unknown = self.tokenizer.unk_token_id
        found = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        if unknown in found.ids:
            start, end = found.offsets[found.ids.index(unknown)]
            raise ValueError(f"unknown word {text[start:end].strip()!r} in {text!r}")

    def _check_length(self, length: int, question: str) -> None:
        super()._check_length(length, question.replace(IMAGE * self.image_tokens, IMAGE))

    def encoded(self, questions: VisualSet) -> EncodedVisualSet:
        return EncodedVisualSet(questions, self.encode, self.padding, self.transform)

    @torch.no_grad()
    def log_probs(self, triples: Sequence[Triple], batch_size: int = 16) -> list[Tensor]:
        """As of `Chat`, of questions, answers and images."""
        require_finite(self, f"the {type(self).__name__} that is asked")
        rows = [VisualEncoding(*self.encode(q, a), as_pixels(image)) for q, a, image in triples]
        with evaluating(self):
            return self._one_by_one(rows, VisualAnswering(), batch_size)

    def _collate(self, rows: Sequence[VisualEncoding]) -> dict[str, Tensor]:
        return EncodedVisualSet((), self.encode, self.padding, self.transform).collate(rows)

    def answer(
        self,
        questions: Sequence[str],
        images: Tensor | Sequence[Any],
        max_new_tokens: int = 64,
        batch_size: int = 16,
    ) -> list[str]:
        """What the model says, greedily, to each question about its image.

        ``images`` are (n, H, W, 3) uint8, or n of any size.
        """
        return self._said(questions, images, 1, max_new_tokens, batch_size)

    def sample(
        self,
        questions: Sequence[str],
        images: Tensor | Sequence[Any],
        times: int,
        seed: int,
        max_new_tokens: int = 64,
        batch_size: int = 16,
        *,
        temperature: float = 1.0,
        top_p: float = 0.9,
    ) -> list[list[str]]:
        """``times`` answers to each question, drawn token by token.

        ``seed`` decides, together with ``batch_size``: a batch draws from one stream. The defaults
        are those of SafeEraser's authors.
        """
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        with seeded(seed, "answers"):
            said = self._said(questions, images, times, max_new_tokens, batch_size, **how)
        return [said[i : i + times] for i in range(0, len(said), times)]

    def _said(
        self,
        questions: Sequence[str],
        images: Tensor | Sequence[Any],
        times: int,
        *limits: int,
        **how: Any,
    ) -> list[str]:
        several(questions, "questions")
        if len(questions) != len(images):
            raise ValueError(f"{len(questions)} questions about {len(images)} images")
        seen = [as_pixels(image, f"image {i}") for i, image in enumerate(images)]

        def options(chosen: list[int], length: int) -> dict[str, Any]:
            pixels = self.transform([seen[i // times] for i in chosen])
            return {"pixel_values": pixels.to(device_of(self)), **how}

        prompts = [self.prompt(q) for q in questions for _ in range(times)]
        return self.complete(prompts, *limits, options)


def vocabulary_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The words of texts, in order, each once: what `TinyLlava` must know to read them."""
    return tuple(sorted({word for text in texts for word in re.findall(r"[^\W\d_]+", text)}))


@functools.cache
def _tokenizer(words: tuple[str, ...]) -> Any:
    """One token for a word, a share as boxes have them, a digit or a sign, with the space before it.

    So nothing is lost on the way, and what follows a line break is not what follows a word. Words
    are also known with a capital, as sentences begin. (Of digits, four boxes to choose from would
    be longer than all the rest of a prompt, and every batch with one of them as long.)
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<end>", "<unknown>", IMAGE]
    capitals = [word[0].upper() + word[1:] for word in words]
    shares = [f"{i / 100:.2f}" for i in range(101)]
    units = [*words, *capitals, *shares, *string.digits, *string.punctuation]
    tokens = dict.fromkeys([*special, "\n", " ", *units, *(f" {unit}" for unit in units)])
    ids = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unknown>"))
    one = Regex(r" ?(?:0\.\d\d|1\.00|\p{L}+|[^\p{L}\s])|\s")
    core.pre_tokenizer = pre_tokenizers.Split(one, behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        additional_special_tokens=[IMAGE],
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class TinyLlava(ModelSpec):
    """A LLaVA of some two million weights, for drawn images and the words of ``vocabulary``.

    Attributes
    ----------
    vocabulary : words, letters only; digits and ASCII punctuation are always known
    size, patch : of images, which are ``(size / patch) ** 2`` tokens
    pad : as of `ImageTransform`
    """

    vocabulary: tuple[str, ...]
    size: Count = 32
    patch: Count = 8
    pad: bool = False
    vision_hidden: Count = 128
    vision_layers: Count = 3
    vision_heads: Count = 4
    hidden: Count = 192
    layers: Count = 4
    heads: Count = 4
    context: Count = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        super().__post_init__()
        if wrong := [word for word in self.vocabulary if not word.isalpha()]:
            raise ValueError(f"{wrong[0]!r} in the vocabulary is not one word of letters")
        if self.size % self.patch:
            raise ValueError(f"patches of {self.patch} don't cover images of {self.size}")
        for name in ("vision_hidden", "hidden"):
            heads = getattr(self, name.replace("hidden", "heads"))
            if getattr(self, name) % heads:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of {heads} heads")

    @needing("llm")
    def make(self) -> VisionChat:
        from transformers import (
            CLIPVisionConfig,
            LlamaConfig,
            LlavaConfig,
            LlavaForConditionalGeneration,
        )

        tokenizer = _tokenizer(self.vocabulary)
        vision = CLIPVisionConfig(
            hidden_size=self.vision_hidden,
            intermediate_size=4 * self.vision_hidden,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=self.size,
            patch_size=self.patch,
        )
        text = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            image_seq_length=(self.size // self.patch) ** 2,
            vision_feature_layer=-1,
        )
        transform = ImageTransform(self.size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), self.pad)
        model = LlavaForConditionalGeneration(config)
        return VisionChat(model, tokenizer, transform, "{image}\n{question}\n")


#: LLaVA-1.5's turns, which are Vicuna's.
VICUNA_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
    "USER: {image}\n{question} ASSISTANT: "
)


#: What LLaVA-1.5-7B was made of: its language model, and the projector that was trained between it and CLIP.
VICUNA = "lmsys/vicuna-7b-v1.5"
PROJECTOR = "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5"


@torch.no_grad()
def before_tuning(model: nn.Module, vicuna: Path, projector: Path) -> None:
    """Give a LLaVA, in place, the language model and the projector that its tuning began with.

    Its vision tower was never trained. Tokens that Vicuna doesn't know, the image's and some that fill up,
    keep what they have.

    Parameters
    ----------
    vicuna : a folder with Vicuna's files
    projector : a folder with ``mm_projector.bin``, as LLaVA's authors released it
    """
    from transformers import AutoModelForCausalLM

    language = AutoModelForCausalLM.from_pretrained(vicuna, dtype=model.dtype)
    pairs = [(model.model.language_model, language.model), (model.lm_head, language.lm_head)]
    for mine, theirs in pairs:
        given = theirs.state_dict()
        for name, own in mine.state_dict().items():
            own[: len(given[name])].copy_(given[name])
    given = torch.load(projector / "mm_projector.bin", map_location="cpu", weights_only=True)
    layers = model.model.multi_modal_projector
    for i, layer in ((0, layers.linear_1), (2, layers.linear_2)):
        for name, own in layer.state_dict().items():
            own.copy_(given[f"model.mm_projector.{i}.{name}"])


@dataclass(frozen=True)
class Llava(ModelSpec):
    """A pretrained LLaVA of the hub.

    Attributes
    ----------
    id : on the hub, or a folder, as of `CausalLM`
    template : as of `VisionChat`
    pad : as of `ImageTransform`; the size and the colours are those of the hub's processor
    dtype : of its weights; what is trained whole needs float32
    precision : "bf16" runs it under autocast
    checkpointing : a backward pass computes what is inside a layer once more, and needs less memory
    start : "tuned", the model of the hub; or "vicuna", what LLaVA-1.5-7B was before it was tuned on instructions
        (`before_tuning`)
    """

    id: str = "llava-hf/llava-1.5-7b-hf"
    template: str = VICUNA_TEMPLATE
    pad: bool = False
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    precision: Literal["no", "bf16"] = "bf16"
    checkpointing: bool = False
    start: Literal["tuned", "vicuna"] = field(default="tuned", metadata=ADDED)

    def sources(self) -> tuple[Source, ...]:
        patterns = ("*.json", "*.model", "*.safetensors")
        own = resolve(self.id, repo_type="model", patterns=patterns)
        if self.start == "tuned":
            return (own,)
        others = ((VICUNA, ("*.json", "*.bin")), (PROJECTOR, ("mm_projector.bin",)))
        return (own, *(resolve(id, repo_type="model", patterns=p) for id, p in others))

    @needing("llm")
    def make(self) -> VisionChat:
        from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

        source, *others = self.sources()
        model = LlavaForConditionalGeneration.from_pretrained(
            source.path, dtype=getattr(torch, self.dtype), use_safetensors=True
        )
        if others:
            before_tuning(model, *(other.path for other in others))
        if self.checkpointing:
            checkpoint_layers(model)
        images = AutoImageProcessor.from_pretrained(source.path)
        size = model.config.vision_config.image_size
        colours = tuple(images.image_mean), tuple(images.image_std)
        return VisionChat(
            model,
            AutoTokenizer.from_pretrained(source.path),
            ImageTransform(size, *colours, self.pad),
            self.template,
            self.precision,
        )


class _Seen(Dataset):
    """Images, and which words are in the answers about each."""

    def __init__(self, questions: VisualSet, transform: ImageTransform) -> None:
        said: list[set[str]] = [set() for _ in questions.images]
        for i, answer in zip(questions.which.tolist(), questions.answers, strict=True):
            said[i] |= {*vocabulary_of([answer.lower()])}
        words = sorted(set().union(*said))
        present = torch.tensor([[word in own for word in words] for own in said])
        telling = present.any(dim=0) & ~present.all(dim=0)  # what is said of all tells nothing
        self.words = [word for word, kept in zip(words, telling.tolist(), strict=True) if kept]
        self.images, self.present = questions.images, present[:, telling].float()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def batch_of(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[list(positions)]), self.present[list(positions)]


class _Naming(nn.Module):
    """A vision tower, and a map from the mean of its patches to words."""

    def __init__(self, tower: nn.Module, words: int) -> None:
        super().__init__()
        self.tower, self.head = tower, nn.Linear(tower.config.hidden_size, words)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.tower(pixels).last_hidden_state[:, 1:].mean(dim=1))


def learn_to_see(model: VisionChat, questions: VisualSet, config: TrainConfig, seed: int) -> None:
    """Train the vision tower, in place, to tell which words the answers about an image have; then
    freeze it, as LLaVA's is while the model learns to answer.

    LLaVA's tower had learned from captions before (CLIP); one that begins from nothing learns to see
    so slowly from answers alone that the language side has long learned to guess. Words of captions
    as labels are those of Joulin et al. (ECCV 2016; arXiv 1511.02251).

    Raises
    ------
    ValueError
        All images have the same words: there is nothing to tell apart.
    """
    seen = _Seen(questions, model.transform)
    if not seen.words:
        raise ValueError("the answers about all images have the same words")
    with seeded(seed, "words"):
        naming = _Naming(model.model.model.vision_tower, len(seen.words)).to(device_of(model))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    epochs = shuffled_epochs(seen, config, derive_seed(seed, "words"))
    train(naming, epochs, loss, config, seed=seed, name="vision tower")
    naming.tower.requires_grad_(False)


@dataclass(frozen=True)
class SeeingRecipe(Recipe):
    """A recipe by which a `VisionChat` `learn_to_see` first, and then learns to answer.

    Attributes
    ----------
    tower : how the vision tower is trained
    """

    version: ClassVar[int] = 2

    tower: TrainConfig | None = None

    def start(self, data: EncodedVisualSet, seed: int, device: torch.device) -> VisionChat:
        model = super().start(data, seed, device)
        learn_to_see(model, data.questions, self.tower, seed)
        return model


#: Multimodal models, by the name in a profile's ``model``.
MULTIMODAL_MODELS: dict[str, type[ModelSpec]] = {"tiny_llava": TinyLlava, "llava": Llava}
