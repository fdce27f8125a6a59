"""Models that learn tasks one after another, on trial (SEFE)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from ...data import (
    COIN_TASKS,
    VISUAL_TASKS,
    AnswerStyleDiversification,
    Source,
    VisualAnswering,
    VisualTask,
    captions,
    coin,
    coin_source,
    resolve,
    stage_zero,
    visual_tasks,
)
from ...data.coin import CoinTask
from ...data.scenes import VOCABULARY
from ...methods import CONTINUAL, ContinualMethod, Stage
from ...methods.adapters import submodule
from ...methods.sefe import protected_movement
from ...metrics import (
    Estimate,
    backward_transfer,
    mean_average_accuracy,
    mean_final_accuracy,
    mean_finetune_accuracy,
    score_answers,
)
from ...models import (
    MULTIMODAL_MODELS,
    EncodedVisualSet,
    Recipe,
    SeeingRecipe,
    VisionChat,
    learn_to_see,
)
from ...registry import (
    ConfigError,
    altered,
    bind,
    brief,
    build,
    describe,
    did_you_mean,
    named,
    within,
)
from ..cache import digest
from ..papers import Experiment
from ..records import Row
from ..run import Replication
from .base import Trial, check_task, nested, train_config

__all__ = ["BEFORE", "ContinualTrial"]

#: The method column's word for the model before its first task.
BEFORE = "Before the first task"

#: Percentages of a task's answers that who published CoIN's tasks converted.
PUBLISHED = (0, 10, 20, 40, 60, 80)

#: Of how many questions of a task a row keeps what was said.
SHOWN = 3

#: The four aggregates of an accuracy matrix.
AGGREGATES = {
    "mft": mean_finetune_accuracy,
    "mfn": mean_final_accuracy,
    "maa": mean_average_accuracy,
    "bwt": backward_transfer,
}


@dataclass(frozen=True)
class CaptionedRecipe(SeeingRecipe):
    """A recipe whose vision tower learns from captions, and not from what is answered.

    Attributes
    ----------
    captions : how many images with captions
    """

    captions: int = 0

    def start(self, data: Dataset, seed: int, device: torch.device) -> VisionChat:
        model = Recipe.start(self, data, seed, device)
        learn_to_see(model, captions(self.captions, seed=0), self.tower, seed)
        return model


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large drawn tasks are: what ``data: {use: visual_tasks, …}`` says.

    Attributes
    ----------
    per_task, test_per_task : questions of a task
    base, captions : what the model learns before the first task, and its vision tower before
    """

    per_task: PositiveInt
    test_per_task: PositiveInt
    base: PositiveInt
    captions: PositiveInt


@dataclass(frozen=True, kw_only=True)
class TasksAsked:
    """What ``ask`` holds: the longest answer, questions at a time, and the share of entries whose movement is
    told apart."""

    max_new_tokens: PositiveInt
    batch_size: PositiveInt = 64
    protected: Annotated[float, Field(gt=0, le=1)]


class ContinualTrial(Trial):
    """One order of tasks: a model learns them in turn, and after each is asked all that it has learned.

    A target is the order, names with spaces between them; every seed has one of its own. A method of
    the profile may say ``asd``, the percentage of each task's training set that
    `AnswerStyleDiversification` converts.
    """

    def __init__(self, run: Replication, experiment: str, seed: int, target: Any) -> None:
        super().__init__(run, experiment, seed, target)
        self.order = tuple(target.split())
        self.recipe = self.recipe_of(self.experiment)
        self.coin = self.experiment.data["use"] == "coin"

    problems: ClassVar[Mapping[str, Callable[..., Any]]] = {"visual_tasks": Sizes, "coin": coin}
    reads = frozenset({"train", "tower", "ask"})
    asks = TasksAsked

    @classmethod
    def recipe_of(cls, e: Experiment) -> Recipe:
        check_task(e, "visual_answering")
        model = build(MULTIMODAL_MODELS, e.model, "model", vocabulary=VOCABULARY)
        if not e.train:
            if e.tower:
                raise ConfigError("tower: a model that is not trained here learns nothing before")
            return Recipe(model, VisualAnswering(), None)
        tower, train = train_config(e.tower), train_config(e.train)
        return CaptionedRecipe(model, VisualAnswering(), train, tower, e.data["captions"])

    @classmethod
    def check_problem(cls, e: Experiment) -> None:
        problem, arguments = named(cls.problems, e.data, "data set")
        published = problem is coin
        bind(
            problem,
            arguments,
            f"data set {e.data['use']!r}",
            **{"name": "", "ratio": 0} if published else {},
        )
        if bool(e.train) == published:
            raise ConfigError(
                "train: drawn tasks are for a model that is trained here, CoIN's for one that is not"
            )
        known = COIN_TASKS if published else VISUAL_TASKS
        ((kind, orders),) = e.forget.items()
        for order in orders if isinstance(orders, list) else [orders]:
            if kind != "order" or not isinstance(order, str):
                raise ConfigError(f"forget: names of tasks under 'order', not {brief(e.forget)}")
            names = order.split()
            for name in names:
                if name not in known:
                    raise ConfigError(
                        f"forget.order: unknown task {brief(name)}; {did_you_mean(name, known)}"
                    )
            if len(set(names)) < len(names):
                raise ConfigError(f"forget.order: a task comes twice in {brief(order)}")

    @classmethod
    def check_settings(
        cls, e: Experiment, methods: Mapping[str, Any], seeds: Sequence[int]
    ) -> None:
        super().check_settings(e, {label: method for label, (method, _) in methods.items()}, seeds)
        ((_, orders),) = e.forget.items()
        count = len(orders) if isinstance(orders, list) else 1
        if count != len(seeds):
            raise ConfigError(f"forget.order: {count} orders for {len(seeds)} seeds")

    @classmethod
    def pairs(cls, run: Replication, name: str) -> Iterable[tuple[int, Any]]:
        """Each seed and the order that it has."""
        return zip(run.seeds_of(name), run.targets(name), strict=True)

    # --- data -------------------------------------------------------------------------------------

    @cached_property
    def chat(self) -> VisionChat:
        """A model that turns texts and images into batches; its weights don't matter."""
        return self.recipe.build(0)

    @cached_property
    def tasks(self) -> tuple[VisualTask, ...]:
        """The tasks in their order, each in its own style; the same whatever the order."""
        if self.coin:
            return tuple(self.published(name, 0).task for name in self.order)
        sizes = self.experiment.data
        key = digest(["visual tasks", sizes, sorted(self.order)])
        if key not in self.run.shared:
            names = sorted(self.order)
            made = visual_tasks(names, sizes["per_task"], sizes["test_per_task"], seed=0)
            self.run.shared[key] = dict(zip(names, made, strict=True))
        return tuple(self.run.shared[key][name] for name in self.order)

    def published(self, name: str, ratio: int) -> CoinTask:
        """A task of CoIN, with that percentage of its answers converted by who published it."""
        spec = {k: v for k, v in self.experiment.data.items() if k != "use"}
        key = digest(["coin", name, ratio, spec])
        if key not in self.run.shared:
            self.run.shared[key] = coin(name, ratio=ratio, **spec)
        return self.run.shared[key]

    @cached_property
    def original(self) -> VisionChat:  # type: ignore[override]
        """The model before the first task: trained here, or as its hub has it."""
        return self.chat.to(self.device) if self.recipe.train is None else super().original

    @cached_property
    def trained_on(self) -> EncodedVisualSet:
        """What the model learns before the first task, where it is trained here."""
        key = digest(["stage zero", self.experiment.data["base"]])
        if key not in self.run.shared:
            self.run.shared[key] = stage_zero(self.experiment.data["base"], seed=0)
        return self.chat.encoded(self.run.shared[key])

    @property
    def sources(self) -> tuple[Source, ...]:
        if self.coin:
            return (coin_source(self.order),)
        fashion = "zalando-datasets/fashion_mnist"
        return (resolve(fashion, repo_type="dataset"),) if "fashion" in self.order else ()

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return {"train": self.trained_on.fingerprint()} if self.recipe.train else {}

    def evaluation(self) -> dict[str, Any]:
        sets = [[t.name, t.train.fingerprint(), t.test.fingerprint()] for t in self.tasks]
        return {"tasks": digest(sets), "order": list(self.order), "ask": self.experiment.ask}

    # --- methods ----------------------------------------------------------------------------------

    @cached_property
    def methods(self) -> dict[str, tuple[ContinualMethod, float]]:  # type: ignore[override]
        """Each method under its name in the chapter, and its percentage of converted answers."""
        return self.methods_of(self.experiment, self.recipe)

    @classmethod
    def methods_of(  # type: ignore[override]
        cls, e: Experiment, recipe: Recipe
    ) -> dict[str, tuple[ContinualMethod, float]]:
        out = {}
        for label, spec in e.methods.items():
            with within(f"methods.{label}"):
                own = nested(spec)
                ratio = own.pop("asd", 0)
                altered(AnswerStyleDiversification(), "asd", ratio=ratio)
                if e.data["use"] == "coin" and ratio not in PUBLISHED:
                    raise ConfigError(f"asd: one of {PUBLISHED} is published, not {ratio}")
                out[label] = build(CONTINUAL, own, "method"), ratio
        return out

    def stages(self, ratio: float) -> list[Stage]:
        """The tasks as a method learns them."""
        tasks = self.tasks
        if self.coin:
            tasks = tuple(self.published(name, ratio).task for name in self.order)
        elif ratio:
            convert = AnswerStyleDiversification(ratio=ratio)
            tasks = tuple(convert(task, self.seed) for task in tasks)
        return [Stage(t.name, VisualAnswering(), self.chat.encoded(t.train)) for t in tasks]

    # --- rows -------------------------------------------------------------------------------------

    def said(self, model: VisionChat, task: VisualTask) -> list[str]:
        """What a model answers to a task's test set."""
        asked, ask = task.test, self.experiment.ask
        most, size = ask["max_new_tokens"], ask.get("batch_size", 64)
        return model.answer(asked.questions, asked.images[asked.which], most, batch_size=size)

    def measure_before(self) -> Row:
        """What the model can do before the first task, on the test sets of all."""

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            found = [score_answers(t, self.said(self.original, t)) for t in self.tasks]
            every = torch.cat([f.truth.double() for f in found])
            detail = {kind: [_share(getattr(f, kind)) for f in found] for kind in KINDS}
            if self.coin:
                detail["left_out"] = {n: self.published(n, 0).left_out for n in self.order}
            trained = self.recipe.train is not None
            model = self.fit(self.trained_on, self.model_seed)[1] if trained else {}
            own = {"order": list(self.order), "model": model}
            return {"mfn": Estimate(_share(every), len(every))}, {**detail, **own}

        return self.bare_row(BEFORE, {**self.evaluation(), "method": None}, compute)

    def measure_method(self, label: str) -> Row:  # type: ignore[override]
        """Learn all tasks in their order; after each, ask what was learned so far."""
        method, ratio = self.methods[label]

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            original, stages = self.original, self.stages(ratio)
            matrices = {kind: torch.full((len(stages),) * 2, torch.nan) for kind in KINDS}
            cost = {"seconds": 0.0, "optimizer_steps": 0}
            last: list[list[str]] = []
            changed = 0  # weights of the vision tower that are other than before

            def models() -> Iterator[VisionChat]:
                nonlocal changed
                yield (model := original)
                learning = method.learn(original, stages, self.seed)
                for t in range(len(stages)):
                    before = model
                    # Whoever takes the models looks at weights only, with gradients off.
                    with torch.enable_grad(), self.costs() as costs:
                        _, model = next(learning)
                    cost["seconds"] += costs.cost.seconds
                    cost["optimizer_steps"] += costs.optimizer_steps
                    if model is not before:  # joint training has one model for all stages
                        last.clear()
                    for task in self.tasks[len(last) : t + 1]:
                        last.append(self.said(model, task))
                    for j, (task, texts) in enumerate(zip(self.tasks, last, strict=False)):
                        for kind, values in score_answers(task, texts)._asdict().items():
                            matrices[kind][t, j] = _share(values)
                    yield model
                towers = (submodule(m, "vision_tower") for m in (original, model))
                pairs = zip(*(tower.parameters() for tower in towers), strict=True)
                changed = sum((a != b).sum().item() for a, b in pairs)

            moved = protected_movement(models(), self.experiment.ask["protected"])
            metrics = self.aggregates(matrices)
            metrics |= {k: Estimate(v) for k, v in cost.items()}
            if moved:
                kept, free = (sum(part) / len(moved) for part in zip(*moved, strict=True))
                metrics |= {"moved_protected": Estimate(kept), "moved_free": Estimate(free)}
            shown = [
                {"task": task.name, "question": q, "answer": right, "said": text}
                for task, texts in zip(self.tasks, last, strict=True)
                for q, right, text in list(
                    zip(task.test.questions, task.test.answers, texts, strict=True)
                )[:SHOWN]
            ]
            detail = {kind: _lists(matrix) for kind, matrix in matrices.items()}
            detail["coin_truth"] = [
                _share(score_answers(task, texts, coin_compat=True).truth)
                for task, texts in zip(self.tasks, last, strict=True)
            ]
            detail |= {"order": list(self.order), "tower_changed": changed}
            return metrics, {**detail, "said": shown}

        spec = {**self.evaluation(), "method": describe(method), "asd": ratio}
        row = self.bare_row(label, spec, compute)
        self.check_row(row)
        return row

    def check_row(self, row: Row) -> None:
        """No method trains the vision tower, and what is scored right is known."""
        changed = row.detail["tower_changed"]
        own = self.name, self.seed
        self.run.invariant(
            "the vision tower is as it was", *own, not changed, f"{row.method}: {changed} weights"
        )
        right, known = (
            [share for line in row.detail[kind] for share in line]
            for kind in ("truth", "knowledge")
        )
        self.run.invariant(
            "no more answers are right than hold the right content",
            *own,
            all(r <= k for r, k in zip(right, known, strict=True)),
            f"{row.method}: {len(right)} shares of a task's answers after a task",
        )

    def aggregates(self, matrices: Mapping[str, Tensor]) -> dict[str, Estimate]:
        """MFT, MFN, MAA and BWT of what is true and of what is known; and, of the tasks before the last
        one, how many answers have their task's form at the end, and how many of the wrong ones hold
        the right content."""
        n = len(self.tasks) * self.experiment.data["test_per_task"]
        out = {}
        for prefix, kind in (("", "truth"), ("knowledge_", "knowledge")):
            for name, aggregate in AGGREGATES.items():
                out[prefix + name] = Estimate(aggregate(matrices[kind]), n)
        if len(self.tasks) > 1:
            former = {kind: matrix[-1, :-1].mean().item() for kind, matrix in matrices.items()}
            count = n - self.experiment.data["test_per_task"]
            out["format_valid"] = Estimate(former["format_valid"], count)
            out["superficial_gap"] = Estimate(former["knowledge"] - former["truth"], count)
        return out


#: What is scored of every answer.
KINDS = ("truth", "format_valid", "knowledge")


def _share(hits: Tensor) -> float:
    return 100 * hits.double().mean().item()


def _lists(matrix: Tensor) -> list[list[float]]:
    """The rows of a matrix without what stands above the diagonal."""
    return [row[: t + 1].tolist() for t, row in enumerate(matrix)]
