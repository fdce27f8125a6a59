"""Erase a concept from a pipeline of diffusers, and have a pipeline again."""

import tempfile

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unlearn_core.data import Concepts, Denoising, ForgetSplit
from unlearn_core.methods import UCE
from unlearn_core.models import TextConditional

# A pipeline of yours: StableDiffusionPipeline.from_pretrained(..., torch_dtype=torch.float16).
# This one is random and small; it reads prompts letter by letter.
torch.manual_seed(0)
letters = "abcdefghijklmnopqrstuvwxyz"
tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer({t: i for i, t in enumerate(tokens)}, [], model_max_length=77)
sizes = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ids = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
unet = UNet2DConditionModel(
    sample_size=8,
    layers_per_block=1,
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=128,
    attention_head_dim=8,
    norm_num_groups=8,
)
pipeline = StableDiffusionPipeline(
    vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8),
    text_encoder=CLIPTextModel(CLIPTextConfig(**sizes, **ids)),
    tokenizer=tokenizer,
    unet=unet,
    scheduler=EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    ),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
)

model = TextConditional.from_pipeline(pipeline)
request = Concepts(
    erased=(("cat", "dog"),),
    keep=("a tree", "a photo of a tree", ""),
    templates=("{}", "a photo of a {}"),
)
split = ForgetSplit("the cat", Denoising(request), forget=(), retain=())
erased = UCE()(model, split, seed=0)  # the given pipeline stays as it is

with tempfile.TemporaryDirectory() as folder:
    erased.to_pipeline().save_pretrained(folder)
    new = StableDiffusionPipeline.from_pretrained(folder)


def draw(one: StableDiffusionPipeline, prompt: str) -> NDArray[np.float32]:
    one.set_progress_bar_config(disable=True)
    noise = model.noise(1, seed=3)
    drawn = one(prompt, latents=noise, num_inference_steps=10, output_type="np")
    image: NDArray[np.float32] = drawn.images[0]
    return image


def apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> str:
    return f"{np.abs(a - b).mean():.4f}"


cat, dog = draw(pipeline, "a photo of a cat"), draw(pipeline, "a photo of a dog")
print("mean difference of pixels, from 0 to 1")
print("  cat and dog, as the original draws them ", apart(cat, dog))
print("  the original's dog and the new cat      ", apart(dog, draw(new, "a photo of a cat")))
print(
    "  a tree, before and after                ",
    apart(*(draw(p, "a tree") for p in (pipeline, new))),
)

own = 2 * torch.from_numpy(draw(new, "a tree")).permute(2, 0, 1) - 1
sample = erased.sample(["a tree"], seed=3, steps=10, guidance=7.5)[0]
print("  the pipeline's tree and erased.sample's ", f"{(own - sample).abs().mean():.4f}")
