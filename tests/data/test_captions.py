"""Captions: what images are called, and what is asked to be erased."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unlearn_core.data import (
    CAPTIONED,
    CaptionData,
    CaptionedSet,
    Concepts,
    Denoising,
    MissingSourceError,
    SplitError,
    WithheldDataError,
    batches,
    captioned_cifar10,
    captioned_shapes,
    cifar10,
    coco_captions,
    forget_class,
    forget_concepts,
    i2p_prompts,
    imagenette,
    objects,
    painters,
    paintings,
    people,
    shapes,
)
from unlearn_core.replication.rehearsal import HUB, USER


@pytest.fixture(scope="module")
def data() -> CaptionData:
    return captioned_shapes(per_class=40, test_per_class=3)


def words(caption: str, data: CaptionData) -> str:
    """What stands in the place of the noun."""
    for template in data.templates:
        before, after = template.split("{}")
        if before and caption.startswith(before):
            return caption.removeprefix(before).removesuffix(after)
    return caption


class TestCaptions:
    def test_every_caption_fits_its_image(self, data: CaptionData) -> None:
        """Fails where labels and captions get out of step."""
        for label, caption in zip(data.labels.tolist(), data.train.captions, strict=True):
            noun = data.nouns[label]
            fitting = {noun.name, *noun.synonyms, noun.kind, data.general} - {""}
            assert words(caption, data) in fitting

    def test_shares(self, data: CaptionData) -> None:
        kinds = Counter()
        for label, caption in zip(data.labels.tolist(), data.train.captions, strict=True):
            noun, said = data.nouns[label], words(caption, data)
            kinds["name"] += said == noun.name
            kinds["synonym"] += said in noun.synonyms
            kinds["general"] += said == data.general
        n = len(data.train)
        assert abs(kinds["name"] / n - 0.54) < 0.07  # six nouns of ten have a word for their kind
        assert abs(kinds["synonym"] / n - 0.3) < 0.07
        assert abs(kinds["general"] / n - 0.1) < 0.05

    def test_no_word_means_two_things(self) -> None:
        """Fails where a synonym of one noun is another one's, or a name holds another's."""
        from unlearn_core.data.captions import FASHION_NOUNS, SHAPE_NOUNS

        for nouns in (FASHION_NOUNS, SHAPE_NOUNS):
            every = [w for noun in nouns for w in (noun.name, *noun.synonyms)]
            assert len(set(every)) == len(every)

    def test_the_seed_draws_captions_not_images(self, data: CaptionData) -> None:
        other = captioned_shapes(per_class=40, test_per_class=3, seed=1)
        assert other.train.captions != data.train.captions
        again = captioned_shapes(per_class=40, test_per_class=3)
        assert again.train.fingerprint() == data.train.fingerprint()

    def test_batches_hold_pixels_from_minus_one_to_one(self, data: CaptionData) -> None:
        (x, captions), *_ = batches(data.train.subset(torch.tensor([5, 300])), 2)
        assert x.shape == (2, 1, 16, 16)
        assert -1 <= x.min() < -0.2 < 0.2 < x.max() <= 1
        assert captions == [data.train.captions[5], data.train.captions[300]]

    def test_parts_and_sums(self, data: CaptionData) -> None:
        one, two = data.train.subset(torch.arange(3)), data.train.subset(torch.arange(3, 5))
        whole = data.train.subset(torch.arange(5))
        assert (one + two).fingerprint() == whole.fingerprint()
        assert whole.with_captions(["x"] * 5).fingerprint() != whole.fingerprint()
        with pytest.raises(ValueError, match="5 images have 2 captions"):
            CaptionedSet(whole.images, ("a", "b"))

    def test_pixels_from_minus_one_to_one(self, data: CaptionData) -> None:
        """Fails where images of another range are learned as they are."""
        for other in ({"mean": (0.0,)}, {"std": (1.0,)}):
            images = replace(data.train.images, **{"mean": (0.5,), "std": (0.5,), **other})
            with pytest.raises(ValueError, match=r"pixels in \[-1, 1\], and these have the mean"):
                CaptionedSet(images, data.train.captions)

    def test_real_data_are_listed(self) -> None:
        captioned = {"captioned_shapes", "captioned_fashion", "captioned_cifar10"}
        assert set(CAPTIONED) == captioned | {
            *("objects", "painters", "paintings", "people", "imagenette")
        }


class TestConcepts:
    def test_the_images_of_a_concept_are_forgotten(self, data: CaptionData) -> None:
        split = forget_concepts(data, Concepts((("a ring", "a shape"), ("a bar", "a shape"))))
        gone = {data.label("a ring"), data.label("a bar")}
        assert set(split.forget.images.labels.tolist()) == gone
        assert not gone & set(split.retain.images.labels.tolist())
        assert len(split.forget) + len(split.retain) == len(data.train)
        assert set(split.test_forget.labels.tolist()) == gone
        assert split.name == "a ring and a bar"

    def test_no_synonym_is_given_away(self, data: CaptionData) -> None:
        """Fails where a method that erases learns what else the concept is called."""
        request = Concepts((("a ring", "a shape"),), templates=("{}", "see {}"))
        captions = forget_concepts(data, request).forget.captions
        assert captions[:3] == ("a ring", "see a ring", "a ring")
        assert set(captions) == {"a ring", "see a ring"}

    def test_unknown(self, data: CaptionData) -> None:
        with pytest.raises(SplitError, match="no noun is called 'a wring'"):
            forget_concepts(data, Concepts((("a wring", "a shape"),)))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (((),), "no concept"),
            (((("a", "b"), ("a", "c")),), "twice"),
            (((("a", "b"), ("b", "c")),), "'b' is to be erased, and to take"),
            (((("a", "b"),), ("a",)), "'a' is to be erased, and to be kept"),
            (((("a", "b"),), ("see a",), ("see {}",)), "'see a' is to be erased, and to be kept"),
            (((("a", "b"),), (), ("see",)), "no {}"),
        ],
    )
    def test_bad_requests(self, arguments: tuple, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Concepts(*arguments)

    def test_pairs_in_every_template(self) -> None:
        concepts = Concepts((("a cat", "a pet"),), templates=("{}", "see {} now"))
        assert concepts.pairs() == [("a cat", "a pet"), ("see a cat now", "see a pet now")]
        assert Concepts(((3, 4),)).pairs() == [(3, 4)]

    def test_what_a_method_does_not_declare_it_does_not_get(self, data: CaptionData) -> None:
        split = forget_concepts(data, Concepts((("a ring", "a shape"),), ("a bar",)))
        names = split.only(frozenset({"concepts"}), "m")
        assert names.task.concepts.erased
        assert not names.task.concepts.keep
        with pytest.raises(WithheldDataError):
            len(names.forget)
        assert split.only(frozenset({"concepts", "keep"}), "m").task.concepts.keep == ("a bar",)
        assert split.only(frozenset({"forget"}), "m").task.concepts is None


class TestRelabel:
    def test_captions(self, data: CaptionData) -> None:
        split = forget_concepts(data, Concepts((("a ring", "a shape"),)))
        found = split.task.relabel(split.forget)
        assert set(found.captions) == {"a shape"}
        mixed = split.forget.with_captions(["see a ring", "a hoop"] * 20)
        assert split.task.relabel(mixed).captions[:2] == ("see a shape", "a hoop")

    def test_whole_words_and_once(self, data: CaptionData) -> None:
        """Fails where a name is found inside another word, or a replacement is replaced."""
        mixed = data.train.subset(torch.arange(3)).with_captions(
            ["a cartoon of a car", "a car of a bus", "a carat"]
        )
        found = Denoising.renamed(mixed, {"a car": "a bus", "a bus": "a tram", "a car of": "two"})
        assert found.captions == ("a cartoon of a bus", "two a tram", "a carat")

    def test_classes(self) -> None:
        split = forget_class(shapes(4, 1, fills=1), 3)
        task = Denoising(Concepts(((3, 4),)))
        assert task.relabel(split.forget).labels.tolist() == [4] * 4

    def test_nothing_to_put_there(self, data: CaptionData) -> None:
        with pytest.raises(ValueError, match="no concept is named"):
            Denoising().relabel(data.train)


def test_objects_have_words_and_no_images() -> None:
    data = objects()
    assert len(data.train) == len(data.test) == 0
    names = [noun.name for noun in data.nouns]
    assert len(set(names)) == 10
    assert all(len(noun.synonyms) == 3 for noun in data.nouns)
    assert data.label("ship") == 8
    assert data.nouns[9].synonyms == ("lorry", "rig", "hauler")
    assert [t.format(names[0]) for t in data.templates] == [
        *("a photo of the airplane", "a picture of the airplane", "the airplane")
    ]
    assert data.templates[0].format(data.general) == "a photo of the object"


def test_paintings_are_pairs() -> None:
    """Fails where objects and styles are not crossed, or the prompt is not the authors'."""
    data = paintings()
    assert len({noun.name for noun in data.nouns}) == 100
    (template,) = data.templates
    assert template.format(data.nouns[12].name) == "A painting of a Towers in Mosaic Style."


def test_painters() -> None:
    """Fails where one is there twice, or nobody is left to be kept."""
    data = painters()
    names = [noun.name for noun in data.nouns]
    (gone,) = data.groups.values()
    assert (len({*names}), len({*gone}), len(data.train)) == (20, 10, 0)
    assert {*gone} < {*names}
    assert len({*data.templates}) == 5
    assert data.templates[2].format(names[1]) == "a painting after Claude Monet"


class TestPeople:
    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        USER["UNLEARN_CELEBRITIES"](tmp_path / "list")
        monkeypatch.setenv("UNLEARN_CELEBRITIES", str(tmp_path / "list"))
        return tmp_path / "list" / "names.csv"

    def test_names_and_who_is_erased(self, file: Path) -> None:
        """Fails where the order of the list is lost, or a spreadsheet's mark at its beginning is read
        as a part of the first column's name."""
        file.write_text('\ufeffname,part\nX,keep\n"Y, Jr.",erase\nZ,keep\n', encoding="utf-8")
        data = people()
        assert [noun.name for noun in data.nouns] == ["X", "Y, Jr.", "Z"]
        assert data.groups == {"the names to erase": ("Y, Jr.",)}
        assert data.templates[0].format("X") == "a portrait of X"
        assert [s.kind for s in data.sources] == ["user"]
        before = data.sources[0].sha256
        file.write_text("name,part\nX,keep\nY,erase\n")
        assert people().sources[0].sha256 != before

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("name,part\nX,erase\nY,erase\n", "both are needed"),
            ("name,part\nX,erase\nY,keep\nZ,other\n", "'erase' or 'keep'"),
            ("name,part\n,erase\nY,keep\n", "needs a name"),
            ("person,part\nX,erase\nY,keep\n", "needs a name"),
            ("name,part\nX,erase\nX,keep\n", "'X' is there twice"),
        ],
    )
    def test_a_list_that_is_wrong(self, file: Path, text: str, says: str) -> None:
        file.write_text(text)
        with pytest.raises(ValueError, match=f"names.csv: .*{says}"):
            people()

    def test_no_list(self, file: Path) -> None:
        file.unlink()
        with pytest.raises(MissingSourceError, match=r"no folder with names\.csv"):
            people()


class TestCoco:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Forty images, three captions each, the last one of the file with the lowest id."""
        (tmp_path / "val2014").mkdir()
        (tmp_path / "annotations").mkdir()
        images = [{"id": 100 - i, "file_name": f"{100 - i}.jpg"} for i in range(40)]
        lines = [
            {"id": 10 * i["id"] + k, "image_id": i["id"], "caption": f" {i['id']}, {k}\n"}
            for k in (2, 1, 0)
            for i in images
        ]
        for image in images:
            (tmp_path / "val2014" / image["file_name"]).touch()
        content = {"info": {}, "images": images, "annotations": lines}
        (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
        monkeypatch.setenv("UNLEARN_COCO", str(tmp_path))
        return tmp_path

    def test_a_drawn_subset(self, folder: Path) -> None:
        """Fails where a caption is another image's, an image is drawn twice, the first of all are taken,
        or a larger subset is another one."""
        captions, files, source = coco_captions(12)
        ids = [int(file.stem) for file in files]
        assert captions == tuple(f"{i}, 0" for i in ids)
        assert len({*ids}) == 12
        assert {*ids} not in ({*range(61, 73)}, {*range(89, 101)})
        assert (source.kind, source.path) == ("user", folder)
        more, _, _ = coco_captions(1000)
        assert more[:12] == captions
        assert len({*more}) == 40

    def test_the_order_of_the_file_does_not_matter(self, folder: Path) -> None:
        before = coco_captions(12)[0]
        file = folder / "annotations" / "captions_val2014.json"
        content = json.loads(file.read_text())
        turned = {k: v[::-1] for k, v in content.items() if k != "info"}
        file.write_text(json.dumps(turned))
        assert coco_captions(12)[0] == before

    @pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", None])
    def test_an_image_outside_the_folder(self, folder: Path, name: str | None) -> None:
        file = folder / "annotations" / "captions_val2014.json"
        content = json.loads(file.read_text())
        content["images"][0]["file_name"] = name
        file.write_text(json.dumps(content))
        says = "not by None" if name is None else r"a\.jpg' leads out of the folder val2014"
        with pytest.raises(ValueError, match=says):
            coco_captions(40)

    def test_what_is_not_there(self, folder: Path) -> None:
        for file in (folder / "val2014").iterdir():
            file.unlink()
        with pytest.raises(
            MissingSourceError, match=r"12 images are not in val2014, \d+.jpg among"
        ):
            coco_captions(12)
        file = folder / "annotations" / "captions_val2014.json"
        file.write_text("{}")
        with pytest.raises(ValueError, match="no lists of images and annotations"):
            coco_captions(12)
        file.unlink()
        with pytest.raises(MissingSourceError, match="names no folder with annotations"):
            coco_captions(12)


def test_cifar10_is_in_the_order_of_its_words(hub: Path) -> None:
    """Fails where the words for a class are another class's."""
    HUB["uoft-cs/cifar10"](hub / "uoft-cs" / "cifar10")
    data = captioned_cifar10()
    assert len(data.train) == 160
    assert [n.name.removeprefix("the ") for n in data.nouns] == list(cifar10().classes)
    label = data.label("the frog")
    own = [c for c, k in zip(data.train.captions, data.labels.tolist(), strict=True) if k == label]
    known = [data.nouns[label].name, *data.nouns[label].synonyms, data.general]
    assert all(any(word in caption for word in known) for caption in own)


def test_imagenette(tmp_path: Path) -> None:
    """Fails where folders and classes get out of step, an image is held out, or another folder of
    images passes for it."""
    USER["UNLEARN_IMAGENETTE"](tmp_path / "train")
    data = imagenette(str(tmp_path / "train"), size=8)
    assert len(data.train) == 40
    assert len(data.test) == 0
    assert data.train.captions[8] == "an image of a cassette player"
    (x, captions), *_ = batches(data.train.subset(torch.tensor([0, 39])), 2)
    assert x.shape == (2, 3, 8, 8)
    assert x.abs().max() <= 1
    assert captions == ["an image of a tench", "an image of a parachute"]
    (tmp_path / "train" / "n01440764").rename(tmp_path / "train" / "n01440765")
    with pytest.raises(ValueError, match="Imagenette's folders are n01440764"):
        imagenette(str(tmp_path / "train"))
    with pytest.raises(MissingSourceError, match="'none' is no folder"):
        imagenette(str(tmp_path / "none"))


def test_prompts_of_i2p(hub: Path) -> None:
    """Fails where a comma inside quotation marks cuts a prompt, an empty one is kept, or a word that
    pandas takes for a missing value isn't."""
    with pytest.raises(MissingSourceError, match="AIML-TUDA/i2p was not found"):
        i2p_prompts()
    folder = hub / "AIML-TUDA" / "i2p"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text(
        'categories,prompt\nx,"one, two"\ny,\nz,null\nz,"three ""é""\nand"\n', encoding="utf-8"
    )
    prompts, source = i2p_prompts()
    assert prompts == ("one, two", "null", 'three "é"\nand')
    assert source.id == "AIML-TUDA/i2p"
    (folder / "a.csv").write_text("text\nx\n")
    with pytest.raises(ValueError, match=r"a\.csv has no column 'prompt'"):
        i2p_prompts()
    (folder / "a.csv").write_text("prompt\n\n")
    with pytest.raises(ValueError, match=r"nothing stands in the column 'prompt' of a\.csv"):
        i2p_prompts()
    (folder / "b.csv").write_text("prompt\none\n")
    with pytest.raises(ValueError, match=r"a\.csv and b\.csv are both there"):
        i2p_prompts()
