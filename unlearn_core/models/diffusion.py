"""Denoising diffusion models of images, conditioned on a class or on a text.

A `Diffusion` wraps a UNet and a noise schedule of diffusers as one module. Methods train it like any
other network; what is frozen in all of them - the text encoder, the autoencoder - is no part of it,
so its parameters are the UNet's. A condition is a class (int) or a prompt (str), at every size.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data import Source, resolve
from ..data.checks import check_numbers, check_texts
from ..extras import needing
from ..fields import Count, Fraction
from ..seeding import derive_seed
from .classifiers import ModelSpec
from .inference import evaluating, precision_of, several
from .saving import Saved
from .sentences import MINILM
from .training import default_device, device_of, require_finite

__all__ = [
    "Autoencoder",
    "DIFFUSION_MODELS",
    "ClassConditional",
    "ClassToImage",
    "Diffusion",
    "PromptEncoder",
    "StableDiffusion",
    "TextConditional",
    "TextToImage",
]

#: Epsilon of x_t at a step: what one step of sampling asks for. (x_t, t, number of the step).
Guide = Callable[[Tensor, Tensor, int], Tensor]


class Fold(Saved):
    """Pixels to fewer, deeper ones and back: an exactly invertible stand-in for an autoencoder."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def encode(self, images: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(images, self.factor)

    def decode(self, latents: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(latents, self.factor)


class Autoencoder(Saved):
    """A VAE of diffusers, frozen; latents are its means, scaled.

    Parameters
    ----------
    vae : ``AutoencoderKL``
    """

    def __init__(self, vae: nn.Module) -> None:
        self.vae = vae.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Autoencoder:
        return self  # nothing changes it

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [-1, 1] to latents (n, channels, h, w) of unit scale, float32."""
        vae = self.vae.to(images.device)
        found = vae.encode(images.to(vae.dtype)).latent_dist.mode()
        return (found * vae.config.scaling_factor).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, channels, h, w) of unit scale to images (n, 3, H, W) about [-1, 1], float32.

        Eight at a time: of 64 images of 512 pixels the VAE's memory would be fifty gigabytes.
        """
        vae = self.vae.to(latents.device)
        parts = (latents.to(vae.dtype) / vae.config.scaling_factor).split(8)
        return torch.cat([vae.decode(part).sample.float() for part in parts])


class PromptEncoder(Saved):
    """A frozen text encoder of transformers, which remembers the prompts that it has read.

    Parameters
    ----------
    model, tokenizer : of transformers
    length : tokens that every prompt is padded or cut to
    masked : whether what fills up is set to zero (BERT's) or counts as text (CLIP's)
    scale : what the states are divided by
    """

    #: So many prompts are remembered; then all are forgotten.
    REMEMBERED = 4096

    def __init__(
        self, model: nn.Module, tokenizer: Any, length: int, masked: bool, scale: float = 1.0
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.tokenizer, self.length, self.masked, self.scale = tokenizer, length, masked, scale
        self._known: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptEncoder:
        return self  # nothing changes it

    @property
    def dimensions(self) -> int:
        """The size of an embedding."""
        return self.model.config.hidden_size

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and which of them are text, special tokens included: (n, length) each."""
        found = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        return found["input_ids"], found["attention_mask"]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(n, length, dimensions) float32, on the CPU.

        Raises
        ------
        TypeError
            A prompt that is no text.
        """
        check_texts(prompts, "prompts", empty=True)
        new = [p for p in dict.fromkeys(prompts) if p not in self._known]
        if len(self._known) + len(new) > self.REMEMBERED:
            self._known.clear()
            new = list(dict.fromkeys(prompts))
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            ids, mask = self.tokens(part)
            device = device_of(self.model)
            given = {"attention_mask": mask.to(device)} if self.masked else {}
            states = self.model(input_ids=ids.to(device), **given).last_hidden_state
            states = states.float().cpu() / self.scale
            if self.masked:
                states = states * mask[:, :, None]
            self._known.update(zip(part, states, strict=True))
        return torch.stack([self._known[p] for p in prompts])


class Diffusion(Saved, nn.Module):
    """A UNet that predicts the noise in an image, its schedule, and what images are to it.

    Parameters
    ----------
    unet : of diffusers, predicting epsilon, in any precision
    scheduler : of diffusers; its betas are the model's, and `sample` draws by it
    codec : images to what the UNet works on, and back
    drop : in training, so often a condition is left out (classifier-free guidance)
    precision : "bf16" runs the UNet under autocast; "no" as its weights are, or as a training asks

    Raises
    ------
    TypeError
        The schedule or the codec is none.
    ValueError
        The schedule has no betas, or another thing than epsilon is predicted; a share or a precision that
        is none.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Any,
        codec: Fold | Autoencoder,
        drop: float = 0.1,
        precision: Literal["no", "bf16"] = "no",
    ) -> None:
        super().__init__()
        if not hasattr(scheduler, "config"):
            raise TypeError(
                f"a scheduler of diffusers is needed, not one of type {type(scheduler).__name__}"
            )
        if not hasattr(codec, "encode") or not hasattr(codec, "decode"):
            raise TypeError(
                f"a codec encodes and decodes, such as Autoencoder(vae): not {codec!r:.60}"
            )
        if not 0 <= drop < 1:
            raise ValueError(f"drop is a share in [0, 1), not {drop!r}")
        predicts = scheduler.config.get("prediction_type")
        if "beta_schedule" not in scheduler.config or predicts is None:
            raise ValueError(
                f"the {type(scheduler).__name__} has no betas: flow matching is out of scope"
            )
        if predicts != "epsilon":
            raise ValueError(f"epsilon is predicted, not {predicts!r}")
        self.unet, self.scheduler, self.codec = unet, scheduler, codec
        self._ddim = _ddim(scheduler)
        self.drop, self.precision = drop, precision_of(precision)
        self.training = unet.training

    # --- conditions -----------------------------------------------------------------------------

    def nothing(self, n: int) -> Sequence[Any]:
        """The condition that says nothing, n times."""
        raise NotImplementedError

    def embed(self, condition: Sequence[Any]) -> Tensor:
        """What the UNet reads of the conditions, on its device: n of them."""
        raise NotImplementedError

    def denoise(self, x_t: Tensor, t: Tensor, embedded: Tensor) -> Tensor:
        """Epsilon, as ``x_t`` (n, c, h, w), at steps ``t`` (n,) of embedded conditions."""
        raise NotImplementedError

    def embed_dropping(self, condition: Sequence[Any]) -> Tensor:
        """`embed`; while the model trains, a share ``drop`` of the conditions is left out."""
        found = self.embed(condition)
        if not (self.training and self.drop):
            return found
        n = len(found)
        left_out = (torch.rand(n) < self.drop).to(found.device).view(n, *[1] * (found.dim() - 1))
        return torch.where(left_out, self.embed(self.nothing(n)), found)

    def forward(self, x_t: Tensor, t: Tensor, condition: Sequence[Any]) -> Tensor:
        """As `denoise`, of conditions: the noise in ``x_t`` (n, ...) at steps ``t`` (n,)."""
        return self.denoise(x_t, t, self.embed(condition))

    # --- images ---------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """How many steps the schedule has."""
        return self.scheduler.config.num_train_timesteps

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what the UNet works on."""
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """:math:`x_t` of clean latents (n, c, h, w) at steps ``t`` (n,), whatever draws."""
        # Of a copy, which takes its betas to the latents' device.
        return copy.copy(self._ddim).add_noise(latents, noise, t)

    def guide(self, condition: Sequence[Any], guidance: float) -> Guide:
        """What one batch of samples follows: classifier-free guidance,

        :math:`\\epsilon_\\varnothing + s(\\epsilon_c - \\epsilon_\\varnothing)`.
        """
        n = len(condition)
        if guidance == 1:
            alone = self.embed(condition)
            return lambda x_t, t, step: self.denoise(x_t, t.expand(n), alone)
        both = torch.cat([self.embed(self.nothing(n)), self.embed(condition)])

        def epsilon(x_t: Tensor, t: Tensor, step: int) -> Tensor:
            empty, full = self.denoise(torch.cat([x_t, x_t]), t.expand(2 * n), both).chunk(2)
            return empty + guidance * (full - empty)

        return epsilon

    def denoising(
        self,
        latents: Tensor,
        guide: Guide,
        steps: int,
    ) -> Iterator[Tensor]:
        """DDIM from noise ``latents``, whatever draws: what is left after each of ``steps`` steps."""
        yield from _steps(copy.deepcopy(self._ddim), latents, guide, steps)

    def noise(self, n: int, seed: int) -> Tensor:
        """What ``n`` images are drawn from, as the UNet sees them: standard normal, on the CPU.

        That of image i depends on ``seed`` and i alone.
        """
        # PyTorch draws normal numbers in blocks of 16, and the last ones anew where some are left over:
        # with whole blocks an image's are the same whatever follows it.
        size = math.prod(self.shape)
        draw = torch.Generator().manual_seed(seed)
        blocks = torch.randn((n, 16 * math.ceil(size / 16)), generator=draw)
        return blocks[:, :size].reshape(n, *self.shape)

    @torch.no_grad()
    def sample(
        self,
        condition: Sequence[Any],
        seed: int,
        *,
        steps: int = 50,
        guidance: float = 7.5,
        batch_size: int = 64,
    ) -> Tensor:
        """Draw an image for each condition: (n, C, H, W) in [-1, 1], float32 on the CPU.

        The `noise` of image i, and what the schedule draws for it on the way, depend on ``seed`` and i
        alone, so that two models, or two lists of conditions, can be compared image by image. Memory
        is that of ``batch_size`` images.

        Raises
        ------
        TypeError
            One prompt in the place of several.
        NotFiniteError
            The weights are not finite.
        """
        several(condition, "conditions")
        require_finite(self, "the model that draws")
        device, noise, out = device_of(self), self.noise(len(condition), seed), []
        with evaluating(self):
            for start in range(0, len(condition), batch_size):
                chosen = condition[start : start + batch_size]
                first = noise[start : start + batch_size].to(device)
                draws = [
                    torch.Generator().manual_seed(derive_seed(seed, "steps", start + i))
                    for i in range(len(chosen))
                ]
                scheduler = copy.deepcopy(self.scheduler)
                path = _steps(scheduler, first, self.guide(chosen, guidance), steps, draws)
                (latents,) = deque(path, maxlen=1)
                out.append(self.codec.decode(latents).clamp(-1, 1).float().cpu())
        return torch.cat(out) if out else torch.empty(0)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision in which the UNet runs, inside the block; of "no", whatever there is around it."""
        if self.precision == "no":
            yield
            return
        with torch.autocast(device_of(self).type, torch.bfloat16):
            yield


def _ddim(scheduler: Any) -> Any:
    """DDIM on the betas of a schedule; it clips nothing unless that one's configuration says so."""
    from diffusers import DDIMScheduler

    if isinstance(scheduler, DDIMScheduler):
        return scheduler
    # What a configuration lists as defaults would be replaced by DDIM's own, whatever it says.
    says = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    return DDIMScheduler.from_config({"clip_sample": False, **says})


def _steps(
    scheduler: Any,
    latents: Tensor,
    guide: Guide,
    steps: int,
    draws: list[torch.Generator] | None = None,
) -> Iterator[Tensor]:
    """What a schedule leaves of standard normal ``latents`` after each step; ``draws``, one a row."""
    takes = inspect.signature(scheduler.step).parameters
    how = {"generator": draws} if "generator" in takes else {}
    scheduler.set_timesteps(steps)
    latents = latents * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        epsilon = guide(scheduler.scale_model_input(latents, t), t.to(latents.device), i)
        latents = scheduler.step(epsilon, t, latents, **how).prev_sample
        yield latents


class TextConditional(Diffusion):
    """Conditioned on prompts, through cross-attention on a text encoder's states.

    `from_pipeline` makes one of a pipeline of diffusers, and `to_pipeline` a pipeline of it.

    Parameters
    ----------
    unet, scheduler, codec, drop, precision : as of `Diffusion`
    prompts : the text encoder
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Any,
        codec: Fold | Autoencoder,
        prompts: PromptEncoder,
        drop: float = 0.1,
        precision: Literal["no", "bf16"] = "no",
    ) -> None:
        super().__init__(unet, scheduler, codec, drop, precision)
        self.prompts = prompts

    @classmethod
    def from_pipeline(
        cls, pipeline: Any, drop: float = 0.0, precision: Literal["no", "bf16"] = "no"
    ) -> TextConditional:
        """What a text-to-image pipeline of diffusers draws with, for methods to change.

        `sample` draws what the pipeline draws from the same noise, by its scheduler. The parts are the
        pipeline's own: methods copy the UNet, and nothing changes the others, which are frozen here.
        A safety checker is left out.

        Parameters
        ----------
        pipeline : ``StableDiffusionPipeline``, version 1 or any of its form, in any precision
        drop, precision : as of `Diffusion`

        Raises
        ------
        TypeError
            It is no pipeline, or one of parts that methods here know nothing of, which are named.
        ValueError
            It predicts another thing than epsilon.
        """
        from diffusers import DiffusionPipeline

        name = type(pipeline).__name__
        if not isinstance(pipeline, DiffusionPipeline):
            raise TypeError(f"a pipeline of diffusers is needed, not one of type {name}")
        parts = pipeline.components
        wanted = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        if missing := [part for part in wanted if parts.get(part) is None]:
            raise TypeError(f"{name} has no {' and no '.join(missing)}: it is out of scope")
        if others := [k for k in ("text_encoder_2", "text_encoder_3") if parts.get(k) is not None]:
            raise TypeError(f"{name} has a second text encoder ({others[0]}): it is out of scope")
        unet, vae, text = pipeline.unet, pipeline.vae, pipeline.text_encoder
        given = (
            "addition_embed_type",
            "class_embed_type",
            "encoder_hid_dim_type",
            "time_cond_proj_dim",
        )
        if more := [key for key in given if unet.config.get(key) is not None]:
            raise TypeError(
                f"{name}: its UNet is given more than an image, a step and a text ({more[0]}): it is "
                "out of scope"
            )
        if unet.config.in_channels != vae.config.latent_channels:
            raise TypeError(
                f"{name}: its UNet takes {unet.config.in_channels} channels, and the VAE gives "
                f"{vae.config.latent_channels}: it draws from images too, and is out of scope"
            )
        if getattr(text.config, "use_attention_mask", False):
            raise TypeError(f"{name}: its text encoder masks what fills up: it is out of scope")
        prompts = PromptEncoder(
            text, pipeline.tokenizer, pipeline.tokenizer.model_max_length, masked=False
        )
        return cls(unet, pipeline.scheduler, Autoencoder(vae), prompts, drop, precision)

    def to_pipeline(self) -> Any:
        """A ``StableDiffusionPipeline`` of diffusers with these parts; no safety checker.

        Raises
        ------
        TypeError
            The model is none that a pipeline can draw with; or something besides its weights makes
            it draw as it does, which a pipeline would lose.
        """
        from diffusers import StableDiffusionPipeline

        if type(self) is not TextConditional:
            raise TypeError(
                f"{type(self).__name__} draws as it does by more than its weights, which a pipeline "
                "would lose"
            )
        if not isinstance(self.codec, Autoencoder) or self.prompts.masked:
            raise TypeError(
                "a pipeline has a VAE and a text encoder like CLIP's, and this model none"
            )
        return StableDiffusionPipeline(
            vae=self.codec.vae,
            text_encoder=self.prompts.model,
            tokenizer=self.prompts.tokenizer,
            unet=self.unet,
            scheduler=copy.deepcopy(self.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def nothing(self, n: int) -> list[str]:
        return [""] * n

    def embed(self, condition: Sequence[str] | Tensor) -> Tensor:
        """(n, length, dimensions); states that are given stand for themselves."""
        states = condition if isinstance(condition, Tensor) else self.prompts(condition)
        return states.to(device_of(self))

    def denoise(self, x_t: Tensor, t: Tensor, embedded: Tensor) -> Tensor:
        with self.autocast():
            own = next(self.unet.parameters()).dtype
            found = self.unet(x_t.to(own), t, encoder_hidden_states=embedded.to(own))
            return found.sample.float()


class ClassConditional(Diffusion):
    """Conditioned on a class, through an embedding; the one after the last class says nothing."""

    @property
    def classes(self) -> int:
        """How many classes it draws."""
        return self.unet.config.num_class_embeds - 1

    def nothing(self, n: int) -> Tensor:
        return torch.full((n,), self.classes)

    def embed(self, condition: Sequence[int] | Tensor) -> Tensor:
        """(n,) int64.

        Raises
        ------
        TypeError
            Texts, or other than whole numbers.
        ValueError
            A number that is no class.
        """
        if not isinstance(condition, Tensor) and any(isinstance(c, str) for c in condition):
            raise TypeError(
                f"this model draws classes, from 0 to {self.classes - 1}, not {condition[0]!r}"
            )
        found = torch.as_tensor(condition)
        if len(found):
            check_numbers(
                found, "the classes to draw", self.classes + 1
            )  # the last one says nothing
        return found.long().to(device_of(self))

    def denoise(self, x_t: Tensor, t: Tensor, embedded: Tensor) -> Tensor:
        with self.autocast():
            own = next(self.unet.parameters()).dtype
            return self.unet(x_t.to(own), t, class_labels=embedded).sample.float()


def _schedule(betas: str) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(1000, beta_schedule=betas, clip_sample=False, set_alpha_to_one=True)


@dataclass(frozen=True)
class TextToImage(ModelSpec):
    """A small text-to-image model: frozen MiniLM states, cross-attention at the lowest resolution.

    Attributes
    ----------
    size, channels : of the images
    fold : they are folded by this factor (`Fold`)
    widths : channels of the UNet's levels, from the highest resolution down
    length : tokens of a prompt
    drop : see `Diffusion`
    """

    size: Count = 28
    channels: Count = 1
    fold: Count = 2
    widths: tuple[int, ...] = (32, 64)
    length: Count = 12
    drop: Fraction = 0.1

    #: The standard deviation of MiniLM's states.
    SCALE = 0.43

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        super().__post_init__()
        if self.size % (self.fold * 2 ** (len(self.widths) - 1)):
            raise ValueError(f"{self.size} pixels can't be folded and halved that often")

    def sources(self) -> tuple[Source, ...]:
        return (resolve(MINILM, repo_type="model", patterns=("**/*",)),)

    @needing("diffusion")
    def make(self) -> TextConditional:
        from diffusers import UNet2DConditionModel

        prompts = _minilm(str(self.sources()[0].path), self.length, self.SCALE)
        deeper = len(self.widths) - 1
        unet = UNet2DConditionModel(
            sample_size=self.size // self.fold,
            in_channels=self.channels * self.fold**2,
            out_channels=self.channels * self.fold**2,
            layers_per_block=1,
            block_out_channels=self.widths,
            down_block_types=(*["DownBlock2D"] * deeper, "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", *["UpBlock2D"] * deeper),
            cross_attention_dim=prompts.dimensions,
            attention_head_dim=16,
            norm_num_groups=8,
        )
        return TextConditional(
            unet, _schedule("squaredcos_cap_v2"), Fold(self.fold), prompts, drop=self.drop
        )


_ENCODERS: dict[tuple[str, int], PromptEncoder] = {}


def _minilm(folder: str, length: int, scale: float) -> PromptEncoder:
    """One for all models: it is frozen."""
    from transformers import AutoModel, AutoTokenizer

    if (folder, length) not in _ENCODERS:
        model = AutoModel.from_pretrained(folder, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        _ENCODERS[folder, length] = PromptEncoder(model, tokenizer, length, True, scale)
    return _ENCODERS[folder, length]


@dataclass(frozen=True)
class ClassToImage(ModelSpec):
    """A class-conditional UNet, attention at the lowest resolution, or where ``attention`` says.

    Attributes
    ----------
    classes : how many
    size, channels, fold, widths, drop : as of `TextToImage`
    layers : residual blocks a level
    attention : the levels, from 0, that have attention
    dropout : in the residual blocks
    betas : diffusers' name of the noise schedule; "linear" is DDPM's
    """

    classes: Count
    size: Count = 28
    channels: Count = 1
    fold: Count = 2
    widths: tuple[int, ...] = (32, 64)
    layers: Count = 1
    attention: tuple[int, ...] = (1,)
    dropout: Fraction = 0.0
    drop: Fraction = 0.1
    betas: str = "squaredcos_cap_v2"

    def __post_init__(self) -> None:
        for name in ("widths", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        if self.size % (self.fold * 2 ** (len(self.widths) - 1)):
            raise ValueError(f"{self.size} pixels can't be folded and halved that often")

    @needing("diffusion")
    def make(self) -> ClassConditional:
        from diffusers import UNet2DModel

        has = [i in self.attention for i in range(len(self.widths))]
        unet = UNet2DModel(
            sample_size=self.size // self.fold,
            in_channels=self.channels * self.fold**2,
            out_channels=self.channels * self.fold**2,
            layers_per_block=self.layers,
            block_out_channels=self.widths,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in has),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in has[::-1]),
            attention_head_dim=16,
            norm_num_groups=8,
            dropout=self.dropout,
            num_class_embeds=self.classes + 1,
        )
        return ClassConditional(unet, _schedule(self.betas), Fold(self.fold), drop=self.drop)


@dataclass(frozen=True)
class StableDiffusion(ModelSpec):
    """A Stable Diffusion of version 1 from the hub: safetensors only, no safety checker.

    Attributes
    ----------
    id : on the hub, or a folder, as of `CausalLM`
    precision : see `Diffusion`; the weights stay in float32
    """

    id: str = "CompVis/stable-diffusion-v1-4"
    precision: Literal["no", "bf16"] = "bf16"

    def sources(self) -> tuple[Source, ...]:
        parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        patterns = (
            "model_index.json",
            *(f"{p}/*.{e}" for p in parts for e in ("json", "txt", "safetensors")),
        )
        return (resolve(self.id, repo_type="model", patterns=patterns),)

    @needing("diffusion")
    def make(self) -> TextConditional:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        folder = str(self.sources()[0].path)
        safe = {"use_safetensors": True}
        try:
            text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **safe)
        except OSError as error:
            raise ValueError(f"{self.id}: this pipeline has no text encoder ({error})") from error
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **safe)
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **safe)
        betas = DDIMScheduler.load_config(folder, subfolder="scheduler")
        scheduler = DDIMScheduler.from_config({"clip_sample": False, **betas})
        prompts = PromptEncoder(
            text.to(default_device()), tokenizer, tokenizer.model_max_length, masked=False
        )
        # What trains it on captions leaves none out, as in the authors' code of SalUn.
        parts = (unet, scheduler, Autoencoder(vae), prompts)
        return TextConditional(*parts, drop=0.0, precision=self.precision)


#: Models that draw, by the name in a profile's ``model``.
DIFFUSION_MODELS: dict[str, type[ModelSpec]] = {
    "text_to_image": TextToImage,
    "class_to_image": ClassToImage,
    "stable_diffusion": StableDiffusion,
}
