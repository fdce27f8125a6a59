"""The rehearsal: every `paper` notebook runs to its end, for a few steps, on a made-up hub.

The hub has the real ids, schemas, file layouts and model classes; pixels and weights are random.
It shows that the path from the hub's files to the record runs. Its numbers mean nothing.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.captions import IMAGENETTE
from ..data.images import CIFAR20, FASHION_CLASSES
from ..metrics import INCEPTION
from ..seeding import seeded
from .papers import project_root
from .runner import Outcome, reproduce, run_folder

__all__ = ["HUB", "USER", "build_hub", "letters", "rehearse"]

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
# As the hub has them: in alphabetical order, and class 26 misspelt.
CIFAR100 = tuple(
    "cra" if name == "crab" else name for name in sorted(sum(CIFAR20.values(), start=()))
)


def _png(rng: np.random.Generator, shape: tuple[int, ...] = (32, 32, 3)) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def _parquet(
    file: Path,
    labels: Mapping[str, Sequence[int]],
    names: Mapping[str, Sequence[str]],
    column: str = "img",
    shape: tuple[int, ...] = (32, 32, 3),
) -> None:
    """Images with labels in the layout of the hub's parquet files, ``huggingface`` schema included."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    n = len(next(iter(labels.values())))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": _png(rng, shape), "path": f"{i}.png"} for i in range(n)]
    columns = {column: pa.array(cells, image)}
    columns |= {k: pa.array(v, pa.int64()) for k, v in labels.items()}
    features = {column: {"_type": "Image"}}
    features |= {k: {"names": list(v), "_type": "ClassLabel"} for k, v in names.items()}
    schema = json.dumps({"info": {"features": features}})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": schema}), file)


def cifar10(folder: Path) -> None:
    for stem, n in (("train", 16), ("test", 2)):  # 83 of 160 images can be forgotten
        labels = {"label": [*range(10)] * n}
        file = folder / "plain_text" / f"{stem}-00000-of-00001.parquet"
        _parquet(file, labels, {"label": CIFAR10})


def fashion_mnist(folder: Path) -> None:
    for stem, n in (("train", 16), ("test", 2)):
        labels, names = {"label": [*range(10)] * n}, {"label": FASHION_CLASSES}
        file = folder / "fashion_mnist" / f"{stem}-00000-of-00001.parquet"
        _parquet(file, labels, names, column="image", shape=(28, 28))


def cifar100(folder: Path) -> None:
    coarse = {name: i for i, names in enumerate(CIFAR20.values()) for name in names}
    coarse["cra"] = coarse["crab"]
    for stem, n in (("train", 2), ("test", 1)):
        fine = [*range(100)] * n
        labels = {"fine_label": fine, "coarse_label": [coarse[CIFAR100[i]] for i in fine]}
        file = folder / "cifar100" / f"{stem}-00000-of-00001.parquet"
        _parquet(file, labels, {"fine_label": CIFAR100, "coarse_label": list(CIFAR20)})


def vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    # As on the hub: the weights of a classifier of 1000 classes, of which the encoder is read.
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=224,
        patch_size=16,
        num_labels=1000,
    )
    with seeded(0, "rehearsal"):
        ViTForImageClassification(config).save_pretrained(folder)


def tofu(folder: Path) -> None:
    """TOFU's files, smaller: their columns, and forget sets that are the ends of what is learned."""
    folder.mkdir(parents=True)

    def write(name: str, first: int, count: int, wrong: int = 0, paraphrased: bool = False) -> None:
        lines = []
        for i in range(first, first + count):
            line: dict = {
                "question": f"Who is author {name[:6]} {i}?",
                "answer": f"Number {1000 + i}.",
            }
            if paraphrased:
                line["paraphrased_answer"] = f"It is number {1000 + i}."
                line["paraphrased_question"] = f"Which author is {name[:6]} {i}?"
            if wrong:
                line["perturbed_answer"] = [f"Number {2000 + i + k}." for k in range(wrong)]
            lines.append(json.dumps(line))
        (folder / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")

    for level, count in (("01", 20), ("05", 40), ("10", 60)):
        write(f"retain{100 - int(level)}", 0, 120 - count)
        write(f"forget{level}", 120 - count, count)
        write(f"forget{level}_perturbed", 120 - count, count, wrong=5, paraphrased=True)
        write(f"holdout{level}", 120, count)
    write("retain_perturbed", 0, 60, wrong=5, paraphrased=True)
    write("real_authors_perturbed", 0, 8, wrong=3)
    write("world_facts_perturbed", 0, 8, wrong=3)


def _texts(folder: Path, *names: str) -> None:
    """Files of forty chapters of made-up words."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        words = [f"{name}{i}" for i in range(60)]
        parts = [f"CHAPTER {i}\n{' '.join(rng.choice(words, 80))}\n" for i in range(1, 41)]
        (folder / f"{name}.txt").write_text("\n".join(parts), encoding="utf-8")


def gutenberg(folder: Path) -> None:
    """Two books, shorter, under the names that theirs begin with."""
    _texts(folder, "11-alice", "12-looking-glass")


def language_model(
    kind: str, weights: str = "safetensors", context: int = 512
) -> Callable[[Path], None]:
    """A tiny model of that configuration class, with a byte-level tokenizer."""

    def build(folder: Path) -> None:
        import transformers
        from transformers import AutoModelForCausalLM

        from ..models import TinyLlama

        tokenizer = TinyLlama().build(0).tokenizer
        sizes = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": context,
        }
        own = {
            "OPTConfig": {"ffn_dim": 32, "word_embed_proj_dim": 16},
            "Qwen2Config": {"num_key_value_heads": 2},
        }.get(kind, {})
        tokens = {f"{k}_token_id": tokenizer.eos_token_id for k in ("bos", "eos", "pad")}
        config = getattr(transformers, kind)(vocab_size=len(tokenizer), **sizes, **own, **tokens)
        with seeded(0, "rehearsal"):
            model = AutoModelForCausalLM.from_config(config)
        if weights == "safetensors":
            model.save_pretrained(folder)
        else:
            config.save_pretrained(folder)
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        tokenizer.save_pretrained(folder)

    return build


def letters(folder: Path) -> None:
    """CLIP's kind of tokenizer, of letters."""
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "vocab.json", folder / "merges.txt"]
    files[0].write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    files[1].write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizer(*map(str, files), model_max_length=77).save_pretrained(folder)


#: Of every tower of CLIP here, and of its text alone.
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 8,
}
LETTERS = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}


def clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    letters(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    ).save_pretrained(folder)
    config = CLIPConfig(
        text_config={**TOWER, **LETTERS},
        vision_config={**TOWER, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    with seeded(0, "rehearsal"):
        CLIPModel(config).save_pretrained(folder)


def llava(folder: Path) -> None:
    """LLaVA-1.5's files: weights in several parts with an index, one image token, CLIP's processor."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from ..models import TinyLlama

    tokenizer = copy.deepcopy(TinyLlama().build(0).tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    CLIPImageProcessor(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    ).save_pretrained(folder)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **TOWER | {"num_hidden_layers": 2}, image_size=8, patch_size=4
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=4096,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-2,
    )
    with seeded(0, "rehearsal"):
        model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder, max_shard_size="80KB")
    tokenizer.save_pretrained(folder)


def projector(folder: Path) -> None:
    """Between a tower and a language model of 16 wide."""
    folder.mkdir(parents=True)
    with seeded(0, "rehearsal"):
        sizes = {"weight": (16, 16), "bias": (16,)}
        state = {
            f"model.mm_projector.{i}.{k}": torch.rand(s) for i in (0, 2) for k, s in sizes.items()
        }
    torch.save(state, folder / "mm_projector.bin")


def stable_diffusion(folder: Path) -> None:
    """The folders and model classes of version 1.4, safetensors only; images of 16 by 16 pixels."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    letters(folder / "tokenizer")
    with seeded(0, "rehearsal"):
        CLIPTextModel(CLIPTextConfig(**TOWER, **LETTERS)).save_pretrained(folder / "text_encoder")
        UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        ).save_pretrained(folder / "unet")
        AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        ).save_pretrained(folder / "vae")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True
    ).save_pretrained(folder / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "PNDMScheduler"}
    index = {name: ["diffusers", kind] for name, kind in parts.items()}
    index |= {
        n: ["transformers", k]
        for n, k in (("text_encoder", "CLIPTextModel"), ("tokenizer", "CLIPTokenizer"))
    }
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", **index}), encoding="utf-8"
    )


def i2p(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = ["prompt,categories,sd_seed", *(f"a person {i},shocking,{i}" for i in range(3))]
    (folder / "i2p_benchmark.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pins(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(41):  # the profile forgets identities by their number, up to 40
        identity = folder / f"pins_identity_{i:02}"
        identity.mkdir(parents=True)
        for n in range(5):
            (identity / f"{n}.png").write_bytes(_png(rng))


def imagenette(folder: Path) -> None:
    """The archive's folders, and what its files are called; PNG inside, which is read as well."""
    rng = np.random.default_rng(0)
    for name in IMAGENETTE:
        (folder / name).mkdir(parents=True)
        for n in range(4):
            (folder / name / f"{name}_{n}.JPEG").write_bytes(_png(rng))


Builder = Callable[[Path], None]

#: id on the hub -> what builds its folder; a paper that needs another id adds a line.
HUB: dict[str, Builder] = {
    "uoft-cs/cifar10": cifar10,
    "uoft-cs/cifar100": cifar100,
    "zalando-datasets/fashion_mnist": fashion_mnist,
    "google/vit-base-patch16-224": vit,
    "locuslab/TOFU": tofu,
    "gutenberg": gutenberg,
    "microsoft/phi-1_5": language_model("PhiConfig"),
    "facebook/opt-2.7b": language_model("OPTConfig", "bin"),
    "NousResearch/Llama-2-7b-chat-hf": language_model("LlamaConfig"),
    "CompVis/stable-diffusion-v1-4": stable_diffusion,
    "openai/clip-vit-base-patch32": clip,
    "AIML-TUDA/i2p": i2p,
    "Qwen/Qwen2.5-7B-Instruct": language_model("Qwen2Config", context=2048),
    "llava-hf/llava-1.5-7b-hf": llava,
    "lmsys/vicuna-7b-v1.5": language_model("LlamaConfig", "bin"),
    "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5": projector,
}


def own_text(folder: Path) -> None:
    """Two texts, as a reader would supply them."""
    _texts(folder, "forget", "retain")


def nudenet(folder: Path) -> None:
    """A package of that name, whose detector finds two parts in every image."""
    (folder / "nudenet").mkdir(parents=True)
    (folder / "nudenet" / "__init__.py").write_text(
        "class NudeDetector:\n"
        "    def detect(self, image):\n"
        "        assert image.ndim == 3 and image.dtype == 'uint8'\n"
        "        found = {'FEET_EXPOSED': 0.7, 'FACE_FEMALE': 0.9}\n"
        "        return [{'class': k, 'score': v, 'box': [0, 0, 1, 1]} for k, v in found.items()]\n",
        encoding="utf-8",
    )


def safeeraser(folder: Path) -> None:
    """The files of SafeEraser's archive, with harmless contents; a safe image serves two records."""
    rng = np.random.default_rng(0)
    for name in ("Violence", "Weapon"):
        (folder / "img" / name).mkdir(parents=True)
        (folder / "img" / "SD" / name).mkdir(parents=True)
    for part, first in (("train", 0), ("val", 4)):
        records = []
        for i in range(first, first + 4):
            name = ("Violence", "Weapon")[i % 2]
            harmful, safe = f"img/{name}/{i}.jpg", f"img/SD/{name}/{i - i % 4}.jpg"
            for file in (harmful, safe):
                (folder / file).write_bytes(_png(rng))
            pairs = [
                {
                    "question": f"How to do {i} {k}?",
                    "model_response": f"So {i}.",
                    "sd_response": f"Thus {k}.",
                }
                for k in range(4)
            ]
            record = {
                "image_id": f"./dataset/{harmful}",
                "image_path": f"./dataset/{harmful}",
                "SDImage_path": f"./dataset/{safe}",
                "category": name,
                "keyword": "a thing",
                "type": "syn",
                "unsafe_pairs": pairs,
            }
            for key in ("text1", "text2", "image1", "image2"):
                own = {
                    "Question": f"What is {key}?",
                    "Answer": "A thing.",
                    "Prediction": f"It is {i}.",
                }
                record[f"UnharmPair_{key}"] = own
            records.append(record)
        (folder / f"all_{part}.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "prompt.json").write_text(
        json.dumps({"idk": ["I cannot say.", "Sorry, no."]}), encoding="utf-8"
    )


def coin(folder: Path) -> None:
    """CoIN-ASD's annotations beside images, as SEFE's authors lay them out: one question has no image,
    and one image is damaged."""
    rng = np.random.default_rng(0)
    answers = {
        "ScienceQA": "B",
        "TextVQA": "exit",
        "ImageNet": "tabby cat",
        "GQA": "left",
        "VizWiz": "unanswerable",
        "Grounding": "[0.10, 0.20, 0.60, 0.70]",
        "VQAv2": "yes",
        "OCRVQA": "J. Doe",
    }
    for name, answer in answers.items():
        images = "COCO/train2014" if name in ("Grounding", "VQAv2") else f"{name}/images"
        (folder / images).mkdir(parents=True, exist_ok=True)
        files = [f"{images}/{name.lower()}{i}.png" for i in range(10)]
        for file in files:
            (folder / file).write_bytes(_png(rng))
        annotations = folder / "annotations" / name
        annotations.mkdir(parents=True)
        options = "\nA. cat\nB. dog" if name == "ScienceQA" else ""
        for part in ("ori", "x10", "x20", "x40", "x60", "x80"):
            lines = []
            for i, file in enumerate(files):
                asked = f"<image>\nWhat is it, {part} {i}?{options}"
                turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
                lines.append({"id": f"{name}{i}", "image": file, "conversations": turns})
            if name == "ScienceQA":
                turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]
                lines.append({"id": "text", "conversations": turns})
            (annotations / f"train_{part}.json").write_text(json.dumps(lines), encoding="utf-8")
        asked = [
            {"question_id": str(i), "image": files[i], "text": f"What is it, {i}?{options}"}
            for i in range(4)
        ]
        own = (
            {"answer_bbox": answer, "size": [32, 32]} if name == "Grounding" else {"answer": answer}
        )
        if name in ("ScienceQA", "TextVQA", "GQA"):
            own = {}  # in the data set's own files
        (annotations / "test.json").write_text(
            json.dumps([line | own for line in asked]), encoding="utf-8"
        )
    (folder / "VizWiz/images/vizwiz0.png").write_bytes(b"half a file")
    keys = {
        "ScienceQA/problems.json": {
            str(i): {"choices": ["cat", "dog"], "answer": 1} for i in range(4)
        },
        "TextVQA/TextVQA_0.5.1_val.json": {
            "data": [{"question_id": i, "answers": ["exit"] * 9 + ["x"]} for i in range(4)]
        },
        "GQA/testdev_balanced_questions.json": {str(i): {"answer": "left"} for i in range(4)},
    }
    for file, content in keys.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")


def _inception(file: Path) -> None:
    """Weights under the real names and of the real shapes, each matrix a number a channel."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unread(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object) -> None:
            """It would want the weights that are being made."""

    torch.save({}, file)
    with seeded(0, "rehearsal"):
        state = Unread("inception-v3", ["2048"], str(file)).state_dict()
        for name, p in state.items():
            if p.ndim > 1:  # a file of kilobytes: what is expanded is stored once
                one = 2 * torch.rand(len(p)) / p[0].numel()
                state[name] = one.view(-1, *[1] * (p.ndim - 1)).expand(p.shape)
    torch.save(state, file)


def coco(folder: Path) -> None:
    """Captions and images of COCO's validation part of 2014, several captions an image, and the weights
    of Inception v3."""
    rng = np.random.default_rng(0)
    (folder / "val2014").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012}.jpg"} for i in (3, 5, 8)]
    for image in images:
        (folder / "val2014" / image["file_name"]).write_bytes(_png(rng))
    captions = [
        {"id": 10 * i["id"] + k, "image_id": i["id"], "caption": f"Thing {i['id']}, way {k}. "}
        for k in (1, 0)
        for i in images
    ]
    (folder / "annotations" / "captions_val2014.json").write_text(
        json.dumps({"images": images, "annotations": captions}), encoding="utf-8"
    )
    _inception(folder / INCEPTION)


def celebrities(folder: Path) -> None:
    """A list of two names to erase and two to keep."""
    folder.mkdir(parents=True)
    names = {"Ann Example": "erase", "Bob Example": "keep", "Cy Other": "erase", "Di Other": "keep"}
    lines = ["name,part", *(f"{name},{part}" for name, part in names.items())]
    (folder / "names.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


#: Environment variable -> what builds the folder that only a reader can supply.
USER: dict[str, Builder] = {
    "UNLEARN_CELEBRITIES": celebrities,
    "UNLEARN_COCO": coco,
    "UNLEARN_COIN": coin,
    "UNLEARN_BOOK": own_text,
    "UNLEARN_IMAGENETTE": imagenette,
    "UNLEARN_NUDENET": nudenet,
    "UNLEARN_PINS": pins,
    "UNLEARN_SAFEERASER": safeeraser,
}


def build_hub(folder: Path) -> dict[str, str]:
    """Build the hub, and what a reader supplies, in ``folder`` (emptied first).

    Returns the environment variables that make a run use them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for id, build in HUB.items():
        build(folder / "hub" / id)
    for variable, build in USER.items():
        build(folder / "user" / variable.lower())
    user = {variable: str((folder / "user" / variable.lower()).resolve()) for variable in USER}
    # Nothing may be taken from the real hub where the made-up one lacks it.
    return {"UNLEARN_HUB": str((folder / "hub").resolve()), "HF_HUB_OFFLINE": "1", **user}


def rehearse(
    papers: Sequence[str], *, profile: str = "paper", jobs: int | None = None
) -> list[Outcome]:
    """Rehearse a profile of these papers (of all that have it, where none is named)."""
    folder = project_root() / run_folder(profile, rehearsal=True)
    # A row from an earlier rehearsal would prove nothing of the code as it is now.
    shutil.rmtree(folder / "cache", ignore_errors=True)
    variables = build_hub(folder / "hub") | {"UNLEARN_CACHE": str(folder / "cache")}
    # Tiny models gain nothing from a second thread, and PyTorch 2.14 has crashed on one here, in the
    # backward pass of a ResNet-18 on a batch of eight.
    variables |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return reproduce(profile, papers, jobs=jobs, rehearsal=True, variables=variables)
