"""CoIN's eight tasks with converted answers (CoIN-ASD), in a folder as SEFE's authors lay it out.

Annotations: huggingface.co/datasets/jinpeng0528/CoIN-ASD, to be put under ``annotations``; the images
are those of eight data sets, of which some are handed out on request only. What is read:

- ``annotations/<task>/train_ori.json`` or ``train_x<ratio>.json``: a list of ``id``, ``image`` (a path
  from the folder) and ``conversations``, a human's turn and a model's.
- ``annotations/<task>/test.json``: a list of ``question_id``, ``image``, ``text`` and ``answer`` (a box in
  ``answer_bbox``). Where the authors' scorers read the right answers from the data set itself, so does
  this: ``ScienceQA/problems.json``, ``TextVQA/TextVQA_0.5.1_val.json`` (here the most frequent one of
  ten) and ``GQA/testdev_balanced_questions.json``.

Source of the layout: github.com/jinpeng0528/SEFE, README, ``scripts`` and ``llava/eval/CoIN``, commit
2f61efe.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..registry import did_you_mean
from ..seeding import generator
from .answer_styles import PROMPTS, VisualItem, VisualTask
from .image_files import ImageFiles
from .image_questions import VisualSet
from .sources import MissingSourceError, Source, file_sha256, inside, json_file

__all__ = ["COIN_TASKS", "CoinTask", "coin", "coin_source"]

#: Task -> the style of its answers, in the paper's order.
COIN_TASKS = {
    "ScienceQA": "choice",
    "TextVQA": "short",
    "ImageNet": "class",
    "GQA": "short",
    "VizWiz": "short",
    "Grounding": "box",
    "VQAv2": "short",
    "OCRVQA": "short",
}

#: The environment variable that names the folder.
FOLDER = "UNLEARN_COIN"

Line = dict[str, Any]


class CoinTask(NamedTuple):
    """A task, and how many questions of its files were left out, by reason."""

    task: VisualTask
    left_out: dict[str, int]


def _root() -> Path:
    given = os.environ.get(FOLDER)
    root = Path(given).expanduser() if given else None
    if root is None or not (root / "annotations").is_dir():
        raise MissingSourceError(
            f"${FOLDER} is {'not set' if root is None else 'a folder without annotations'}; it names a "
            "folder with the images and, in annotations, the files of jinpeng0528/CoIN-ASD"
        )
    return root


def coin_source(names: Sequence[str]) -> Source:
    """Where the annotations of these tasks come from."""
    root = _root()
    files = [f for name in names for f in (root / "annotations" / name).glob("*.json")]
    return Source("jinpeng0528/CoIN-ASD", "user", file_sha256(files, root), root)


def _read(file: Path) -> Any:
    if not file.is_file():
        raise MissingSourceError(f"{file.parent.name}/{file.name} is not in ${FOLDER}")
    return json_file(file)


def _drawn(
    lines: list[Line], n: int, root: Path, size: int, skip_broken: bool, *names: object
) -> tuple[list[Line], list[Path], dict[str, int]]:
    """The first ``n`` of the shuffled lines that have an image, their images, and what was left out."""
    out: list[Line] = []
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    images = ImageFiles((), size)
    for i in torch.randperm(len(lines), generator=generator(0, "coin", *names)).tolist():
        if len(out) == n:
            break
        if "image" not in lines[i]:
            left_out["no image"] += 1
            continue
        file = inside(root, lines[i]["image"])
        if skip_broken:
            try:
                images.read(file)
            except ValueError:
                left_out["image can't be decoded"] += 1
                continue
        out.append(lines[i])
        files.append(file)
    return out, files, dict(left_out)


def _set(
    pairs: Sequence[tuple[str, str]], files: Sequence[Path], size: int, what: str
) -> VisualSet:
    if not pairs:
        raise ValueError(f"{what}: there is no question with an image")
    questions, answers = zip(*pairs, strict=True)
    return VisualSet(ImageFiles(files, size), torch.arange(len(pairs)), questions, answers)


def _turns(line: Line) -> tuple[str, str]:
    """Question and answer of a training line; the image's place is the prompt's business."""
    human, model, *more = (turn["value"] for turn in line["conversations"])
    if more or human.count("<image>") != 1:
        raise ValueError(
            f"question {line['id']!r} has {2 + len(more)} turns and {human.count('<image>')} image "
            "tokens, not 2 and 1"
        )
    return human.replace("<image>", "").strip(), model.strip()


def _keys(root: Path, name: str) -> Callable[[Line], tuple[str, tuple[str, ...]]]:
    """Of a test line, the right answer and the options."""
    if name == "ScienceQA":
        problems = _read(root / name / "problems.json")

        def science(line: Line) -> tuple[str, tuple[str, ...]]:
            problem = problems[str(line["question_id"])]
            return "ABCDE"[problem["answer"]], tuple(problem["choices"])

        return science
    if name == "TextVQA":
        ten = {
            str(x["question_id"]): x["answers"]
            for x in _read(root / name / "TextVQA_0.5.1_val.json")["data"]
        }
        return lambda line: (Counter(ten[str(line["question_id"])]).most_common(1)[0][0], ())
    if name == "GQA":
        known = _read(root / name / "testdev_balanced_questions.json")
        return lambda line: (known[str(line["question_id"])]["answer"], ())
    if name == "Grounding":
        return lambda line: (line["answer_bbox"], ())
    return lambda line: (line["answer"], ())


def coin(
    name: str,
    per_task: int,
    test_per_task: int,
    ratio: int = 0,
    size: int = 336,
    skip_broken: bool = False,
) -> CoinTask:
    """A task of CoIN; the same questions are drawn whatever the ratio.

    Parameters
    ----------
    name : one of `COIN_TASKS`
    per_task, test_per_task : how many questions, at most, to learn from and to ask
    ratio : percentage of answers in other styles; 0, 10, 20, 40, 60 or 80, as published
    size : side of the square that an image becomes
    skip_broken : leave out, and count, what can't be decoded; else it raises when it is asked for

    Raises
    ------
    ValueError
        An unknown task; a question with more than one image or turn; a file that is no JSON, or
        names an image outside the folder.
    MissingSourceError
        ``$UNLEARN_COIN`` is not set, or a file is not there.
    """
    if name not in COIN_TASKS:
        raise ValueError(f"unknown task {name!r}; {did_you_mean(name, COIN_TASKS)}")
    root = _root()
    folder = root / "annotations" / name
    given = _read(folder / (f"train_x{ratio}.json" if ratio else "train_ori.json"))
    lines, files, left = _drawn(given, per_task, root, size, skip_broken, name, "train")
    train = _set([_turns(line) for line in lines], files, size, f"{name}, train")
    asked, files, left_test = _drawn(
        _read(folder / "test.json"), test_per_task, root, size, skip_broken, name, "test"
    )
    key, pairs, items = _keys(root, name), [], []
    for line in asked:
        question, (answer, options) = line["text"].replace("<image>", "").strip(), key(line)
        if name == "ScienceQA" and PROMPTS["choice"] not in question:
            question = f"{question}\n{PROMPTS['choice']}"  # as the authors' script does
        content = options["ABCDE".index(answer)] if options else answer
        pairs.append((question, answer))
        items.append(VisualItem(question, content, (), "", "", options))
    test = _set(pairs, files, size, f"{name}, test")
    task = VisualTask(name, COIN_TASKS[name], train, test, (), tuple(items))
    return CoinTask(task, dict(Counter(left) + Counter(left_test)))
