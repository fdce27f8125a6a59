"""The `paper` profile can't run here: it is rehearsed, on a made-up hub with the real layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from torch import nn

from unlearn_core.data import VisualAnswering, VisualSet, cifar10, cifar100, image_folder
from unlearn_core.data.images import CIFAR20
from unlearn_core.models import MODELS, Llava, TrainConfig, train
from unlearn_core.registry import build
from unlearn_core.replication.papers import known_papers, load_paper, rehearsed
from unlearn_core.replication.publish import check_publishable, machine_paths
from unlearn_core.replication.records import Record
from unlearn_core.replication.rehearsal import HUB, USER, build_hub
from unlearn_core.replication.trials.continual import BEFORE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A built hub, in the environment."""
    made = build_hub(tmp_path_factory.mktemp("hub"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.items():
            patch.setenv(name, value)
        yield made


def features(file: Path) -> dict[str, Any]:
    return json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"]


class TestHub:
    def test_has_every_id_of_every_profile(self, variables: dict[str, str]) -> None:
        for id in HUB:
            assert (Path(variables["UNLEARN_HUB"]) / id).is_dir()
        for name in USER:
            assert Path(variables[name]).is_dir()

    def test_cifar10_has_the_schema_of_the_real_one(self, variables: dict[str, str]) -> None:
        folder = Path(variables["UNLEARN_HUB"]) / "uoft-cs/cifar10/plain_text"
        made = folder / "train-00000-of-00001.parquet"
        schema = pq.read_schema(made)
        assert schema.names == ["img", "label"]
        assert str(schema.field("img").type) == "struct<bytes: binary, path: string>"
        assert str(schema.field("label").type) == "int64"
        assert features(made)["img"] == {"_type": "Image"}
        real = ROOT.parent / "shared/data/hub/uoft-cs/cifar10" / made.name
        if real.exists():
            assert features(made) == features(real)
            assert schema.remove_metadata() == pq.read_schema(real).remove_metadata()

    def test_cifar100_is_spelt_as_on_the_hub(self, variables: dict[str, str]) -> None:
        """Fails where the made-up names are nicer than the real ones: the hub's class 26 is
        "cra", so that a lookup of the superclasses' members, crab among them, would end there."""
        folder = Path(variables["UNLEARN_HUB"]) / "uoft-cs/cifar100/cifar100"
        made = features(folder / "test-00000-of-00001.parquet")
        assert list(made) == ["img", "fine_label", "coarse_label"]
        assert made["fine_label"]["names"][25:28] == ["couch", "cra", "crocodile"]
        assert made["coarse_label"]["names"] == list(CIFAR20)

    def test_the_loaders_read_it(self, variables: dict[str, str]) -> None:
        """Fails where the two labels of the made-up CIFAR-100 contradict each other, too."""
        small, fine, coarse = cifar10(), cifar100(), cifar100(coarse=True)
        assert len(small.train) == 160, "83 random images must leave some"
        assert small.train.pixels.shape[1:] == (32, 32, 3)
        assert fine.classes[26] == "crab"
        assert coarse.classes == tuple(CIFAR20)
        assert [s.kind for s in (*small.sources, *fine.sources)] == ["hub-folder"] * 2
        folder = Path(variables["UNLEARN_HUB"]) / "uoft-cs/cifar100/cifar100"
        table = pq.read_table(folder / "train-00000-of-00001.parquet")
        assert coarse.train.labels.tolist() == table["coarse_label"].to_pylist()

    def test_pins(self, variables: dict[str, str]) -> None:
        data = image_folder("$UNLEARN_PINS")
        wanted = load_paper("ssd").profile("paper").experiments["full_class_pins_resnet18"]
        assert len(data.classes) > max(wanted.forget["class"])
        assert (len(data.train), len(data.test)) == (4 * 41, 41)

    def test_vit_is_stored_as_a_classifier_and_read_as_an_encoder(
        self, variables: dict[str, str]
    ) -> None:
        """Fails where the weights are not the file's: transformers only warns of missing ones."""
        folder = Path(variables["UNLEARN_HUB"]) / "google/vit-base-patch16-224"
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["ViTForImageClassification"]
        assert (config["image_size"], config["patch_size"]) == (224, 16)
        model = build(MODELS, {"use": "vit"}, "model", classes=3).build(0)
        with safe_open(folder / "model.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.startswith("vit.")]  # noqa: SIM118
            stored = [file.get_tensor(name) for name in names]
        # transformers renames on the way, so tensors are known by what is in them.
        read = [p for n, p in model.encoder.named_parameters() if not n.startswith("pooler.")]
        assert len(read) == len(stored) > 30
        for tensor in stored:
            assert any(torch.equal(tensor, p) for p in read)

    def test_llava_is_read_from_all_parts_of_its_weights(self, variables: dict[str, str]) -> None:
        """Fails where an image has another number of tokens than the tower gives, too."""
        folder = Path(variables["UNLEARN_HUB"]) / "llava-hf/llava-1.5-7b-hf"
        assert len(list(folder.glob("*.safetensors"))) > 1
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["LlavaForConditionalGeneration"]
        assert config["vision_feature_layer"] == -2
        chat = Llava().build(0)
        stored = {}
        for name in folder.glob("*.safetensors"):
            with safe_open(name, "pt") as file:
                stored |= {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        read = list(chat.parameters())
        assert len(read) == len(stored)
        for tensor in stored.values():
            assert any(torch.equal(tensor.bfloat16(), p) for p in read)
        images = torch.zeros(2, 20, 30, 3, dtype=torch.uint8)
        assert len(chat.answer(["What is it?", "Which?"], images, 2)) == 2

    def test_checkpointing_changes_no_gradient(self, variables: dict[str, str]) -> None:
        """Fails where it is asked for and not on, or says something, with a path, on the page."""
        data = VisualSet(
            torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.tensor([0]), ("?",), ("a",)
        )
        gradients, calls = [], []
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            for on in (False, True):
                chat = Llava(dtype="float32", precision="no", checkpointing=on).build(0).train()
                layer = chat.model.get_decoder().layers[0].mlp
                layer.register_forward_pre_hook(lambda *_, on=on: calls.append(on))
                encoded = chat.encoded(data)
                VisualAnswering().loss(chat, encoded.collate([encoded[0]])).backward()
                found = [p.grad for p in chat.parameters() if p.grad is not None]
                gradients.append(torch.cat([g.flatten() for g in found]))
        torch.testing.assert_close(*gradients)
        assert gradients[0].abs().sum() > 0
        assert calls == [False, True, True]  # once more on the way back

    def test_is_the_same_every_time(self, variables: dict[str, str], tmp_path: Path) -> None:
        def contents(root: Path) -> dict[str, bytes]:
            files = (f for f in root.rglob("*") if f.is_file())
            return {f.relative_to(root).as_posix(): f.read_bytes() for f in files}

        again = build_hub(tmp_path / "hub")
        for name in ("UNLEARN_HUB", *USER):
            assert contents(Path(again[name])) == contents(Path(variables[name]))

    def test_it_empties_its_folder(self, tmp_path: Path) -> None:
        (tmp_path / "hub" / "hub").mkdir(parents=True)
        (tmp_path / "hub" / "hub" / "old").touch()
        build_hub(tmp_path / "hub")
        assert not (tmp_path / "hub" / "hub" / "old").exists()


def precisions(profile: Any) -> dict[tuple[str, ...], Any]:
    """Every word on precision that a profile's experiments say, by its place."""
    found = {}

    def walk(value: Any, place: tuple[str, ...]) -> None:
        for key, inside in value.items() if isinstance(value, dict) else ():
            if key in ("dtype", "precision"):
                found[*place, key] = inside
            walk(inside, (*place, key))

    walk(profile.model_dump()["experiments"], ())
    return found


def test_it_runs_in_the_precision_of_the_real_run() -> None:
    """Fails where a profile in half precision is rehearsed in single precision, which hides faults."""
    profiles = [p for slug in known_papers() for p in load_paper(slug).profiles.values()]
    real, short = ([*map(precisions, some)] for some in (profiles, map(rehearsed, profiles)))
    assert any(real)
    for expected, found in zip(real, short, strict=True):
        assert found.items() >= expected.items()
        # What is only spelled out is what holds anyway.
        assert {v for k, v in found.items() if k not in expected} <= {"no"}


def test_a_training_of_few_steps_starts_no_more_epochs() -> None:
    """Fails where each of 200 epochs still starts its loader and its workers, for nothing."""
    epochs = []

    def batches(epoch: int) -> list[torch.Tensor]:
        epochs.append(epoch)
        return [torch.ones(1, 2)] * 3

    config = TrainConfig(epochs=200, lr=0.1, max_steps=2)
    train(nn.Linear(2, 1), batches, lambda model, x: model(x).sum(), config)
    assert epochs == [0, 0]  # once to count its batches


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the real notebooks and package, in which the rehearsal was run."""
    root = tmp_path_factory.mktemp("rehearsal")
    for name in ("notebooks", "unlearn_core", "book"):
        (root / name).symlink_to(ROOT / name)
    (root / "real-cache").mkdir()
    environment = os.environ | {
        "UNLEARN_ROOT": str(root),
        "PYTHONPATH": str(ROOT),
        "UNLEARN_CACHE": str(root / "real-cache"),
    }
    for name in ("UNLEARN_HUB", "UNLEARN_CLEAN", "UNLEARN_BUILD", *USER):
        environment.pop(name, None)
    code = (
        "import sys; from unlearn_core.replication.rehearsal import rehearse; "
        "from unlearn_core.replication.runner import summary; "
        "made = rehearse([]); print(summary(made)); "
        "sys.exit({o.state for o in made} != {'ran'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture
def record(root: Path) -> Record:
    return Record.read(root / "build" / "rehearsal" / "ssd.json")


@pytest.mark.parametrize("slug", sorted(set(known_papers()) - {"ssd"}))
class TestOthers:
    def test_every_experiment_ran_on_the_made_up_hub(self, root: Path, slug: str) -> None:
        """Fails where an experiment of the paper profile is listed but never run."""
        record = Record.read(root / "build" / "rehearsal" / f"{slug}.json")
        assert record.rehearsal
        assert record.skips == ()
        profile = load_paper(slug).profile("paper")
        assert set(profile.experiments) <= {row.experiment for row in record.rows}
        kinds = {s["kind"] for row in record.rows for s in row.provenance.sources}
        user = {"user"} if any(e.requires for e in profile.experiments.values()) else set()
        assert kinds - {"embedded"} == {"hub-folder"} | user

    def test_every_method_of_the_main_experiment_ran(self, root: Path, slug: str) -> None:
        record = Record.read(root / "build" / "rehearsal" / f"{slug}.json")
        known = {
            **{"iau": "lenet", "flat": "tofu_llama", "guard": "guard_llama"},
            **{"realera": "erase_main", "sefe": "orders", "safeeraser": "benchmark"},
        }
        experiments = load_paper(slug).profile("paper").experiments
        name = known.get(slug, "random" if "random" in experiments else next(iter(experiments)))
        experiment = experiments[name]
        where = {name, experiment.originals_of or name}
        ran = {row.method for row in record.rows if row.experiment in where}
        before = BEFORE if "order" in experiment.forget else "Original"
        assert {before, *experiment.methods} <= ran


def test_a_sequence_counts_what_it_left_out(root: Path) -> None:
    record = Record.read(root / "build" / "rehearsal" / "sefe.json")
    (before,) = (r for r in record.rows if r.method == BEFORE and r.experiment == "orders")
    left_out = before.detail["left_out"]
    assert {name: n for name, n in left_out.items() if n} == {
        "ScienceQA": {"no image": 1},
        "VizWiz": {"image can't be decoded": 2},
    }


@pytest.mark.parametrize("slug", known_papers())
def test_no_page_names_a_path_of_this_machine(root: Path, slug: str) -> None:
    """Fails where a library's warning or progress bar gets into a page: after days of computing, the
    `paper` chapter could not be published."""
    assert machine_paths((root / "build" / "rehearsal" / f"{slug}.ipynb").read_text()) == []


class TestSSD:
    def test_it_is_a_rehearsal(self, record: Record, root: Path) -> None:
        assert record.rehearsal
        assert record.profile == "paper"
        with pytest.raises(Exception, match="a rehearsal is not published"):
            check_publishable(
                root / "build" / "rehearsal" / "ssd.ipynb",
                root / "build" / "rehearsal" / "ssd.json",
            )

    def test_every_method_of_every_experiment_ran(self, record: Record) -> None:
        """Fails where an experiment is skipped: then its path, ViT or Pins, has never run."""
        assert record.skips == ()
        ran = {(row.experiment, row.method) for row in record.rows}
        for name, experiment in load_paper("ssd").profile("paper").experiments.items():
            assert (name, "Original") in ran
            for label in experiment.methods:
                if name.startswith("every_class"):
                    label = "SSD, known importances"
                assert (name, label) in ran
        assert any("vit" in name for name, _ in ran)
        assert any("pins" in name for name, _ in ran)

    def test_data_came_from_the_made_up_hub(self, record: Record) -> None:
        kinds = {(s["id"], s["kind"]) for row in record.rows for s in row.provenance.sources}
        assert kinds == {
            ("uoft-cs/cifar10", "hub-folder"),
            ("uoft-cs/cifar100", "hub-folder"),
            ("google/vit-base-patch16-224", "hub-folder"),
            ("unlearn_pins", "user"),
        }

    def test_no_training_took_more_than_two_steps(self, record: Record) -> None:
        steps = {
            (row.method, row.metrics["optimizer_steps"].value)
            for row in record.rows
            if "optimizer_steps" in row.metrics
        }
        # UNSIR makes its noise by steps of its own (2), and trains twice.
        assert steps == {
            ("Retrain", 2),
            ("Retrain (head reset)", 2),
            ("Fine-tune", 2),
            ("Bad teacher", 1),  # an epoch is one batch
            ("Amnesiac", 2),
            ("UNSIR", 6),
            ("SSD", 0),
            ("SSD, known importances", 0),
            ("Random selection", 0),
            ("Absolute importance", 0),
        }

    def test_every_claim_was_judged(self, record: Record) -> None:
        """A few steps bring no network into the paper's regime, and the verdicts say so."""
        claims = load_paper("ssd").claims
        for verdict in record.verdicts:
            tested = list(verdict.margins) == [1]
            unmet = verdict.reason.startswith("what it presupposes is not so")
            assert tested or (unmet and claims[verdict.claim].needs), verdict
        assert any(verdict.margins for verdict in record.verdicts)

    def test_invariants_hold(self, record: Record) -> None:
        assert all(i.holds for i in record.invariants)
        checked = {i.experiment for i in record.invariants}
        assert checked == set(load_paper("ssd").profile("paper").experiments)

    def test_the_real_cache_was_not_touched(self, root: Path, record: Record) -> None:
        """Fails where made-up rows get among the real ones."""
        assert not list((root / "real-cache").iterdir())
        assert (root / "build" / "rehearsal" / "cache" / "rows").is_dir()

    def test_the_page_says_that_it_is_one(self, root: Path, record: Record) -> None:
        text = (root / "build" / "rehearsal" / "ssd.ipynb").read_text()
        assert "This is a rehearsal: a few steps on made-up data." in text
        assert '"output_type": "error"' not in text
