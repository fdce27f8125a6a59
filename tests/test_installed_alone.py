"""Each extra of the installation, and the installation without any, is whole by itself, whatever another
one would bring.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: A small use of everything that an extra is for; "" is the installation without any.
USES = {
    "": """
from unlearn_core.data import Classification, digits, forget_class
from unlearn_core.methods import SSD, check_method
from unlearn_core.metrics import evaluate_classifier
from unlearn_core.models import Recipe, SmallCNN, TrainConfig
check_method(SSD())
data = digits()
split = forget_class(data, "3")
recipe = Recipe(SmallCNN(10), Classification(10), TrainConfig(epochs=1, lr=0.1, batch_size=len(data.train)))
model = recipe.fit(data.train, seed=0)
assert evaluate_classifier(SSD()(model, split), split)["test_accuracy"].n == len(data.test)
""",
    "vit": """
import tempfile
from transformers import ViTConfig, ViTModel
from unlearn_core.data import digits, forget_class
from unlearn_core.methods import SSD
from unlearn_core.models import ViT
sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
with tempfile.TemporaryDirectory() as folder:
    ViTModel(ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes)).save_pretrained(folder)
    SSD()(ViT(10, id=folder).build(0), forget_class(digits(), "3"))
""",
    "llm": """
import gguf  # reads checkpoints that no small example has
from unlearn_core.methods import GUARD, GradDiff, RegLoRA
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.metrics import ask, bleu, evaluate_chat
from unlearn_core.models import TrainConfig
short = TrainConfig(epochs=1, lr=1e-3)
text, multimodal = (STAND_INS[m]() for m in ("text", "multimodal"))
for given in (text, multimodal):
    GradDiff(train=short)(*given)
(stage, *_) = RegLoRA(train=short).learn(multimodal[0], [("one", multimodal[1].task, multimodal[1].retain)])
guarded = GUARD(train=short)(*text)  # it embeds prompts by a sentence encoder
asked = ask(guarded, {"forget": text[1].forget.questions}, max_new_tokens=4)
evaluate_chat(guarded, asked, ["I don't know."])
bleu(["a"], ["a"])
""",
    "diffusion": """
import torch_fidelity  # reads a checkpoint that no small example has
from unlearn_core.methods import ESD, MACE, RealEra
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.models import StableDiffusion, TrainConfig
short = TrainConfig(epochs=1, lr=1e-3)
for method in (ESD(short, steps=2), MACE(images=1, steps=2, train=short), RealEra(images=1, steps=2, train=short)):
    method(*STAND_INS["diffusion"]())
""",
    "book": """
import jupyter_book.cli.main, papermill.execute
from unlearn_core.replication.__main__ import main
from unlearn_core.replication.pages import book
assert main(["list", "--profile", "ci"]) == 0
""",
    "cluster": """
import ray.util.client.worker  # joins a cluster that is elsewhere
from unlearn_core.replication.__main__ import main
from unlearn_core.replication.engine import OnRay
assert main(["list", "--profile", "ci"]) == 0
""",
    "dev": """
import importlinter.cli, jupyterlab.labapp, mypy.api, nbstripout, pytest, pytest_benchmark.plugin
import ruff, xdist.plugin
from playwright.sync_api import sync_playwright
raise SystemExit(pytest.main(["-p", "no:cacheprovider", "--collect-only", "tests/test_fields.py"]))
""",
}


def brought(extra: str) -> set[str]:
    """The distributions that an installation with one extra alone brings, and what they require."""
    own = PROJECT["name"]
    ours = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    wanted, found = [(own, ""), (own, extra)], set()
    while wanted:
        name, of = wanted.pop()
        if (name, of) not in found:
            found.add((name, of))
            lines = ours[of] if name == own else importlib.metadata.requires(name) or ()
            for line in map(Requirement, lines):
                if line.marker is None or line.marker.evaluate({"extra": of}):
                    wanted += [(canonicalize_name(line.name), by) for by in ("", *line.extras)]
    return {name for name, _ in found} - {own}


def run(code: str, extra: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code where nothing else is installed: links to what an extra brings stand in a folder."""
    for name in brought(extra):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():  # several share the folder of a namespace
                (folder / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, folder))), "UNLEARN_ROOT": str(ROOT)}
    # -S: without what is installed beside this interpreter.
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=ROOT, env=os.environ | paths, capture_output=True, text=True)


@pytest.mark.parametrize("extra", USES, ids=lambda extra: extra or "none")
def test_an_extra_alone_is_enough(extra: str, tmp_path: Path) -> None:
    """Fails where something that an extra is for wants a package that only another one brings."""
    done = run(USES[extra], extra, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_an_extra_does_not_bring_is_not_there(tmp_path: Path) -> None:
    done = run("import transformers\nimport peft", "vit", tmp_path)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'peft'"


def test_every_extra_is_used() -> None:
    assert {*USES} == {"", *PROJECT["optional-dependencies"]}
