"""Images with captions to learn to draw from, and words for them (RealEra, SalUn, Challenging Forgets)."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..seeding import generator
from .checks import check_texts
from .images import (
    FASHION_CLASSES,
    ImageData,
    ImageSet,
    cifar10,
    fashion_mnist,
    image_folder,
    shapes,
)
from .registered import table_of
from .sources import MissingSourceError, Source, file_sha256, inside, json_file, resolve
from .tables import read

__all__ = [
    "CAPTIONED",
    "CaptionData",
    "CaptionedSet",
    "Noun",
    "captioned_cifar10",
    "captioned_fashion",
    "captioned_shapes",
    "coco_captions",
    "i2p_prompts",
    "imagenette",
    "objects",
    "painters",
    "paintings",
    "people",
]


@dataclass(frozen=True)
class CaptionedSet(Dataset):
    """Images with pixels in [-1, 1], as diffusion models have them, and one caption for each.

    A batch is ``x`` (B, C, H, W) float32 and its captions: B texts.

    Raises
    ------
    TypeError
        Captions that are no texts, or one text in their place.
    ValueError
        Another number of captions; images that are normalised otherwise.
    """

    images: ImageSet
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        check_texts(self.captions, "captions", empty=True)
        if len(self.images) != len(self.captions):
            raise ValueError(f"{len(self.images)} images have {len(self.captions)} captions")
        if {*self.images.mean, *self.images.std} != {0.5}:
            raise ValueError(
                f"images are drawn with pixels in [-1, 1], and these have the mean {self.images.mean} and "
                f"the deviation {self.images.std}: dataclasses.replace(images, mean=(0.5,), std=(0.5,))"
            )

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        x, captions = self.batch_of([i])
        return x[0], captions[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, str]]:
        """These images, one by one, for a loader that collates them."""
        return list(zip(*self.batch_of(indices), strict=True))

    def batch_of(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """The batch of these images."""
        return self.images.batch_of(indices)[0], [self.captions[i] for i in indices]

    def subset(self, positions: Tensor) -> CaptionedSet:
        """The images at these positions, in that order."""
        captions = tuple(self.captions[i] for i in positions.tolist())
        return CaptionedSet(self.images.subset(positions), captions)

    def with_captions(self, captions: Sequence[str]) -> CaptionedSet:
        """The same images under other captions, one an image."""
        return replace(self, captions=tuple(captions))

    def augmented(self, names: tuple[str, ...], draw: int = 0) -> CaptionedSet:
        """The same captions, the images as `ImageSet.augmented` varies them."""
        return replace(self, images=self.images.augmented(names, draw))

    def __add__(self, other: CaptionedSet) -> CaptionedSet:
        return CaptionedSet(self.images + other.images, self.captions + other.captions)

    def fingerprint(self) -> str:
        """SHA-256 of images and captions, order included."""
        digest = hashlib.sha256(self.images.fingerprint().encode())
        for caption in self.captions:
            digest.update(caption.encode() + b"\0")
        return digest.hexdigest()


@dataclass(frozen=True)
class Noun:
    """The words for one kind of thing, as they stand in a caption, article included.

    Attributes
    ----------
    name : the usual one
    synonyms : others that mean the same
    kind : what it is a kind of, together with others; "" where there is no such word
    """

    name: str
    synonyms: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class CaptionData:
    """Captioned training images, and what their captions are made of.

    Attributes
    ----------
    train : the captioned images
    test : images under labels, for the classifier that judges what is drawn, and for distances
    nouns : one for each label
    templates : sentences with ``{}`` in the place of a noun
    general : words that fit every image
    groups : nouns that are to be erased together, by their names
    """

    train: CaptionedSet
    test: ImageSet
    nouns: tuple[Noun, ...]
    templates: tuple[str, ...]
    general: str
    sources: tuple[Source, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def labels(self) -> Tensor:
        """(N,) which noun each training image is of."""
        return self.train.images.labels

    def label(self, name: str) -> int:
        """The label whose noun is called so; a ValueError where there is none."""
        names = [noun.name for noun in self.nouns]
        if name not in names:
            raise ValueError(f"no noun is called {name!r}; known: {', '.join(names)}")
        return names.index(name)


def _captioned(
    data: ImageData,
    nouns: tuple[Noun, ...],
    templates: tuple[str, ...],
    general: str,
    seed: int,
) -> CaptionData:
    """Draw a caption for every image: of ten, five have its name, three a synonym, one its kind
    (where it has one), and one the general words."""
    draw = generator(seed, "captions")

    def uniform(n: int) -> list[int]:
        return torch.randint(n, (len(data.train),), generator=draw).tolist()

    what, which, how = uniform(10), uniform(2**31), uniform(len(templates))
    captions = []
    for label, w, i, t in zip(data.train.labels.tolist(), what, which, how, strict=True):
        noun = nouns[label]
        words = noun.name
        if w == 0:
            words = general
        elif w == 1 and noun.kind:
            words = noun.kind
        elif w in (2, 3, 4) and noun.synonyms:
            words = noun.synonyms[i % len(noun.synonyms)]
        captions.append(templates[t].format(words))
    # Pixels from -1 to 1, as diffusion models have them.
    channels = data.train.pixels.shape[-1]
    middle = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    train = CaptionedSet(replace(data.train, **middle), tuple(captions))
    return CaptionData(train, replace(data.test, **middle), nouns, templates, general, data.sources)


TEMPLATES = ("a photo of {}", "a picture of {}", "{}")

#: In the order of `FASHION_CLASSES`.
FASHION_NOUNS = (
    Noun("a t-shirt", ("a tee", "a short-sleeved top"), "a garment"),
    Noun("trousers", ("pants", "jeans", "slacks"), "a garment"),
    Noun("a pullover", ("a sweater", "a jumper"), "a garment"),
    Noun("a dress", ("a gown", "a frock"), "a garment"),
    Noun("a coat", ("a jacket", "an overcoat"), "a garment"),
    Noun("a sandal", ("a flip flop", "an open shoe"), "footwear"),
    Noun("a shirt", ("a blouse", "a button-up"), "a garment"),
    Noun("a sneaker", ("a running shoe", "a trainer", "a tennis shoe"), "footwear"),
    Noun("a bag", ("a handbag", "a purse", "a tote")),
    Noun("an ankle boot", ("a boot", "a bootie"), "footwear"),
)
assert len(FASHION_NOUNS) == len(FASHION_CLASSES)


def captioned_fashion(
    per_class: int | None = None, test_per_class: int | None = None, seed: int = 0
) -> CaptionData:
    """Fashion-MNIST with captions of our own: names, synonyms and kinds in three templates."""
    data = fashion_mnist(per_class, test_per_class)
    return _captioned(data, FASHION_NOUNS, TEMPLATES, "a fashion item", seed)


SHAPE_NOUNS = (
    Noun("a disc", ("a circle", "a dot"), "a round thing"),
    Noun("a ring", ("a hoop", "a loop"), "a round thing"),
    Noun("a square", ("a box", "a block"), "a thing with corners"),
    Noun("a frame", ("a border", "a square outline"), "a thing with corners"),
    Noun("a diamond", ("a rhombus", "a lozenge"), "a thing with corners"),
    Noun("a triangle", ("a wedge", "a pyramid"), "a thing with corners"),
    Noun("a plus", ("a plus sign", "an upright cross")),
    Noun("a cross", ("an x", "a times sign")),
    Noun("a bar", ("a dash", "a horizontal stripe")),
    Noun("a column", ("a pillar", "a vertical stripe")),
)


def captioned_shapes(
    per_class: int = 60,
    test_per_class: int = 20,
    nouns: int = len(SHAPE_NOUNS),
    spread: float = 0.25,
    seed: int = 0,
) -> CaptionData:
    """Drawn shapes, 16x16, with captions; nothing to download.

    The first ``nouns`` of the ten `shapes` in one fill, hardly any noise, and little ``spread``: a
    small model learns to draw them in a minute.

    Raises
    ------
    ValueError
        ``nouns`` is less than 2, or more than there are.
    """
    if not 2 <= nouns <= len(SHAPE_NOUNS):
        raise ValueError(f"nouns must lie in 2..{len(SHAPE_NOUNS)}, not {nouns}")
    data = shapes(per_class, test_per_class, fills=1, noise=0.01, spread=spread, seed=seed)
    train, test = (s.subset((s.labels < nouns).nonzero()[:, 0]) for s in (data.train, data.test))
    return _captioned(
        replace(data, train=train, test=test), SHAPE_NOUNS[:nouns], TEMPLATES, "a shape", seed
    )


#: The classes of CIFAR-10, with the synonyms that MACE asks for (github.com/Shilin-LU/MACE, ``metrics``).
OBJECT_NOUNS = tuple(
    Noun(f"the {name}", tuple(f"the {s}" for s in synonyms))
    for name, synonyms in {
        "airplane": ("aircraft", "plane", "jet"),
        "automobile": ("car", "vehicle", "motorcar"),
        "bird": ("avian", "fowl", "winged creature"),
        "cat": ("feline", "kitty", "housecat"),
        "deer": ("hart", "stag", "doe"),
        "dog": ("canine", "pooch", "hound"),
        "frog": ("amphibian", "anuran", "tadpole"),
        "horse": ("equine", "steed", "mount"),
        "ship": ("vessel", "boat", "watercraft"),
        "truck": ("lorry", "rig", "hauler"),
    }.items()
)


def captioned_cifar10(per_class: int | None = None, seed: int = 0) -> CaptionData:
    """CIFAR-10 with captions of our own, in the words of `objects`."""
    return _captioned(cifar10(per_class), OBJECT_NOUNS, OBJECT_TEMPLATES, "the object", seed)


OBJECT_TEMPLATES = ("a photo of {}", "a picture of {}", "{}")


def _words_alone(nouns: tuple[Noun, ...], templates: tuple[str, ...], general: str) -> CaptionData:
    """Words without images: for a model that was trained elsewhere."""
    none = torch.zeros(0, dtype=torch.int64)
    images = ImageSet(
        torch.zeros((0, 1, 1, 3), dtype=torch.uint8), none, none, (0.5,) * 3, (0.5,) * 3
    )
    return CaptionData(CaptionedSet(images, ()), images, nouns, templates, general)


def objects() -> CaptionData:
    """The words for ten kinds of objects, without images.

    The article stands in the templates: a text encoder that reads from left to right says the same of it
    whatever follows, so that it is no part of a concept.
    """

    def bare(words: str) -> str:
        return words.removeprefix("the ")

    nouns = tuple(Noun(bare(n.name), tuple(map(bare, n.synonyms))) for n in OBJECT_NOUNS)
    return _words_alone(nouns, tuple(t.format("the {}") for t in OBJECT_TEMPLATES), "object")


#: Ten objects in ten styles (github.com/OPTML-Group/Unlearn-WorstCase, ``prompt-wise/``).
PAINTED = (
    *("Statues", "Towers", "Human", "Flowers", "Birds"),
    *("Trees", "Waterfalls", "Jellyfish", "Sandwiches", "Dogs"),
)
STYLES = (
    *("Crayon", "Ukiyoe", "Mosaic", "Sketch", "Dadaism"),
    *("Winter", "Van_Gogh", "Rust", "Glowing_Sunset", "Red_Blue_Ink"),
)


def paintings() -> CaptionData:
    """The words for ten kinds of objects in ten styles, without images; each pair is a noun."""
    nouns = tuple(Noun(f"{what} in {style}") for what in PAINTED for style in STYLES)
    return _words_alone(nouns, ("A painting of a {} Style.",), "Object in any")


#: Twenty painters whose works are in the public domain; the first ten are erased.
PAINTERS = (
    *("Vincent van Gogh", "Claude Monet", "Edvard Munch", "Gustav Klimt", "Katsushika Hokusai"),
    *(
        "Johannes Vermeer",
        "Hieronymus Bosch",
        "Amedeo Modigliani",
        "Francisco Goya",
        "William Blake",
    ),
    *("Paul Gauguin", "Mary Cassatt", "Egon Schiele", "Henri Rousseau"),
    *("Utagawa Hiroshige", "Rembrandt", "Pieter Bruegel", "Georges Seurat"),
    *("Sandro Botticelli", "Caspar David Friedrich"),
)


def painters() -> CaptionData:
    """The words for twenty painters' styles, without images, in five templates of our own."""
    templates = (
        *("a picture in the manner of {}", "a picture that {} has inspired"),
        *("a painting after {}", "a copy of a painting by {}", "a well-known picture by {}"),
    )
    data = _words_alone(tuple(map(Noun, PAINTERS)), templates, "art")
    return replace(data, groups={"ten painters": PAINTERS[:10]})


def people() -> CaptionData:
    """The names of people that a reader lists, without images, in five templates of our own.

    ``$UNLEARN_CELEBRITIES`` names a folder with ``names.csv``, whose columns are ``name`` and ``part``:
    "erase" or "keep". The former are the group "the names to erase".

    Raises
    ------
    MissingSourceError
        There is no such file.
    ValueError
        A column is missing, a name is empty or there twice, a part is another word, or one of the
        two parts has no name.
    """
    root = Path(os.environ.get("UNLEARN_CELEBRITIES", ""))
    file = root / "names.csv"
    if not file.is_file():
        raise MissingSourceError("$UNLEARN_CELEBRITIES names no folder with names.csv")
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [(line.get("name") or "", line.get("part") or "") for line in csv.DictReader(lines)]
    names = [name for name, _ in rows]
    if {part for _, part in rows} != {"erase", "keep"} or "" in names:
        raise ValueError(
            f"{file.name}: every line needs a name and a part, 'erase' or 'keep', and both are needed"
        )
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{file.name}: {min(twice)!r} is there twice")
    templates = (
        *("a portrait of {}", "a drawing of {}", "{} painted in oil"),
        *("{} in public, photographed", "an official photo of {}"),
    )
    return replace(
        _words_alone(tuple(map(Noun, names)), templates, "a person"),
        sources=(Source("people", "user", file_sha256([file], root), root),),
        groups={"the names to erase": tuple(n for n, part in rows if part == "erase")},
    )


#: The classes of Imagenette, by the folders of its archive (github.com/fastai/imagenette).
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def imagenette(path: str = "$UNLEARN_IMAGENETTE", size: int = 512) -> CaptionData:
    """Imagenette's training images, each under the caption "an image of a" and its class.

    ``path`` is the folder ``train`` of the archive, which has a folder a class, and may name environment
    variables. No image is held out.

    Raises
    ------
    MissingSourceError
        It is no folder.
    ValueError
        Its folders are not the ten of the archive.
    """
    data = image_folder(path, size, test_fraction=0.0)
    if data.classes != tuple(IMAGENETTE):
        raise ValueError(f"Imagenette's folders are {', '.join(IMAGENETTE)}; here {data.classes}")
    nouns = tuple(Noun(name) for name in IMAGENETTE.values())
    template, middle = "an image of a {}", {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    captions = tuple(template.format(nouns[k].name) for k in data.train.labels.tolist())
    train, test = (replace(part, **middle) for part in (data.train, data.test))
    return CaptionData(
        CaptionedSet(train, captions), test, nouns, (template,), "object", data.sources
    )


def i2p_prompts() -> tuple[tuple[str, ...], Source]:
    """The prompts of I2P (Schramowski et al., CVPR 2023), which make models draw what is inappropriate.

    Raises
    ------
    MissingSourceError
        They are in none of the places of `resolve`.
    ValueError
        There are several files, or theirs has no column ``prompt`` with anything in it.
    """
    from datasets import Features, Value

    source = resolve("AIML-TUDA/i2p", repo_type="dataset", patterns=("*.csv",))
    file, *more = sorted(source.path.glob("*.csv"))
    if more:
        raise ValueError(f"{source.id}: {file.name} and {more[0].name} are both there; remove one")
    # As texts, and as they are written: one that says "null" is a prompt, too.
    options = {"usecols": ["prompt"], "keep_default_na": False}
    text = Features({"prompt": Value("string")})
    try:
        rows = read("csv", [file], features=text, **options)
        prompts = tuple(row["prompt"] for row in rows if row["prompt"])
    except ValueError as error:
        raise ValueError(f"{source.id}: {file.name} has no column 'prompt': {error}") from error
    if not prompts:
        raise ValueError(f"{source.id}: nothing stands in the column 'prompt' of {file.name}")
    return prompts, source


def coco_captions(n: int) -> tuple[tuple[str, ...], tuple[Path, ...], Source]:
    """One caption for each of ``n`` of COCO's validation images of 2014, drawn with a fixed seed.

    ``$UNLEARN_COCO`` names a folder as COCO lays it out: ``annotations/captions_val2014.json`` and the
    images in ``val2014``. Where there are fewer images, all are taken.

    Returns the captions, the files of their images, and where the captions come from.

    Raises
    ------
    MissingSourceError
        The folder, the captions or a chosen image is not there.
    ValueError
        The file of captions has no list ``images`` or ``annotations``, or names an image outside
        ``val2014``.
    """
    root = Path(os.environ.get("UNLEARN_COCO", ""))
    file = root / "annotations" / "captions_val2014.json"
    if not file.is_file():
        raise MissingSourceError(
            "$UNLEARN_COCO names no folder with annotations/captions_val2014.json"
        )
    content = json_file(file)
    if not {"images", "annotations"} <= content.keys():
        raise ValueError(f"{file.name} has no lists of images and annotations")
    captions: dict[int, str] = {}
    for line in sorted(content["annotations"], key=lambda a: a["id"]):
        captions.setdefault(line["image_id"], line["caption"].strip())  # of five the first one
    images = sorted((i["id"], i["file_name"]) for i in content["images"] if i["id"] in captions)
    order = torch.randperm(len(images), generator=generator(0, "coco captions"))[:n].tolist()
    files = tuple(inside(root / "val2014", images[i][1]) for i in order)
    if missing := [f.name for f in files if not f.is_file()]:
        raise MissingSourceError(
            f"$UNLEARN_COCO: {len(missing)} images are not in val2014, {missing[0]} among them"
        )
    source = Source("COCO captions 2014", "user", file_sha256([file], root), root)
    return tuple(captions[images[i][0]] for i in order), files, source


#: Problems of images with captions, by the name in a profile's ``data``.
CAPTIONED = table_of(
    CaptionData,
    *(captioned_shapes, captioned_fashion, captioned_cifar10),
    *(objects, paintings, painters, people, imagenette),
)
