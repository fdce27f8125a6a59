"""Image classifiers on trial (SSD, SalUn, IAU, Challenging Forgets)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from ...data import (
    DATASETS,
    Classification,
    ForgetSplit,
    ImageSet,
    Source,
    batches,
    forget_indices,
    make_split,
)
from ...methods import SSD
from ...methods.baselines.retrain import retrain_seed
from ...methods.iau import GradientRestriction
from ...methods.ssd import dampen, importances
from ...methods.worst_case import SELECTORS, example_losses
from ...metrics import (
    VERSION,
    Cost,
    Estimate,
    ShadowAttack,
    SideOutputs,
    accuracies_on_test,
    entropy,
    evaluate_classifier,
    gap_to_retrained,
    gradient_norms,
    klom,
    margins,
    mean,
    membership_calls,
    outputs_of,
    relearned_accuracy,
    u_lira,
)
from ...metrics.shadow import ATTACK_TRAINING, attack_network
from ...models import MODELS, Recipe, predict, shuffled_epochs, to
from ...registry import ConfigError, bind, brief, build, describe, did_you_mean, within
from ...seeding import derive_seed, generator
from ..cache import digest
from ..outcomes import OUTCOMES, pack
from ..papers import Experiment
from ..records import Row, now
from ..run import Replication
from .base import ORIGINAL, Costs, Trial, nested, train_config

__all__ = ["ORIGINAL", "ClassificationTrial", "trials"]

#: What a model can be trained for, by the name in a profile's ``task``.
TASKS = {"classification": Classification, "gradient_restriction": GradientRestriction}

#: What can be forgotten, and what a request of that kind is.
FORGET = {
    "class": "the name or number of a class",
    "subclass": "the name or number of a sub-class",
    "fraction": "a share of the training images, between 0 and 1",
    "count": "a number of training images",
    "chosen": "the name of a rule in select that chooses examples",
}


@dataclass(frozen=True)
class ImagesAsked:
    """What ``ask`` holds.

    Attributes
    ----------
    retain : how many retain images, at equal distances, a model is judged on; all where nothing is said
    """

    retain: PositiveInt | None = None


class ClassificationTrial(Trial):
    """A trial whose target is a class, a size, or the name of a rule that chooses the forget set by
    the original model.
    """

    original_spec: ClassVar[dict[str, Any]] = {"method": None, "sides_only": False}
    problems = DATASETS
    reads = Trial.reads | {"attack", "shadow", "relearn", "select", "judged_on", "ask"}
    asks = ImagesAsked

    def __init__(self, run: Replication, experiment: str, seed: int, target: Any) -> None:
        super().__init__(run, experiment, seed, target)
        self.data = run.data(experiment)
        self.recipe = self.recipe_of(self.experiment, len(self.data.classes))
        self._pairs: dict[str, Any] = {}  # importances by how they are estimated

    @classmethod
    def recipe_of(cls, e: Experiment, classes: int = 10) -> Recipe:
        """As many classes as the data have; ten where they are not at hand."""
        spec = build(MODELS, e.model, "model", classes=classes)
        task = build(TASKS, e.task, "task", classes=classes)
        return Recipe(spec, task, train_config(e.train))

    @classmethod
    def check(cls, e: Experiment, seeds: Sequence[int]) -> None:
        super().check(e, seeds)
        if e.attack == "shadow":
            check_attack(e.shadow)
        elif e.shadow:
            raise ConfigError(f"shadow: the attack is {e.attack!r}, which reads nothing of it")
        if e.relearn is not None:
            bind(relearned_accuracy, e.relearn, "relearn", model=None, split=None, seed=0)
        stops = train_config(e.train).patience is not None
        if (stops or e.judged_on == "validation") and not e.data.get("validation_per_class"):
            raise ConfigError(
                "data: patience or judged_on asks for validation images: say validation_per_class"
            )

    @classmethod
    def check_measure(
        cls,
        entry: str | Mapping[str, Any],
        e: Experiment,
        methods: Mapping[str, Any],
        seeds: Sequence[int],
    ) -> None:
        super().check_measure(entry, e, methods, seeds)
        if not isinstance(entry, Mapping):
            return
        if "audit" in entry:
            models = entry["models"]
            if not isinstance(models, int) or models < 6:
                raise ConfigError(f"models: 6 at least, three to a half, not {brief(models)}")
            if e.oracle is None:
                raise ConfigError("audit: without an oracle there is nothing to compare with")
        if "quantised" in entry:
            check_bits(entry["bits"])

    @classmethod
    def check_problem(cls, e: Experiment) -> None:
        super().check_problem(e)
        rules = {name: selection_rule(name, rule) for name, rule in e.select.items()}
        kind, wanted = cls.requests(e)
        for value in wanted:
            if kind in ("class", "subclass"):
                right = isinstance(value, str | int)
            elif kind == "fraction":
                right = isinstance(value, float) and 0 < value < 1
            elif kind == "count":
                right = isinstance(value, int) and value > 0
            elif kind == "chosen":
                right = value in rules and getattr(rules[value][0], "by", "example") != "class"
            else:
                raise ConfigError(
                    f"forget: unknown kind {brief(kind)}; {did_you_mean(kind, FORGET)}"
                )
            if not right:
                raise ConfigError(f"forget.{kind}: {FORGET[kind]}, not {brief(value)}")

    @cached_property
    def split(self) -> ForgetSplit:
        (kind,) = self.experiment.forget
        if kind == "chosen":
            if self.experiment.select[self.target].get("by") == "class":
                raise ConfigError(f"{self.name}: {self.target!r} chooses classes, not a forget set")
            chosen = self.select(self.target).detail["index"]
            split = forget_indices(self.data, torch.tensor(chosen))
        else:
            split = make_split(self.data, {kind: self.target}, self.seed)
        if self.experiment.judged_on == "validation":
            if self.data.validation is None:
                raise ConfigError(f"{self.name} is judged on validation data, but has none")
            split = replace(split, test=self.data.validation, test_forget=None, test_retain=None)
        self.check_split(split)
        return split

    @property
    def trained_on(self) -> ImageSet:
        return self.data.train

    @property
    def held_out(self) -> tuple[ImageSet | None, dict[str, Any]]:
        if self.recipe.train.patience is None or self.data.validation is None:
            return None, {}
        return self.data.validation, {"validation": self.fingerprints[2]}

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.data.sources

    @cached_property
    def fingerprints(self) -> tuple[str, str, str | None]:
        """Of training, test and (if any) validation images."""
        return self.run.fingerprints(self.name)

    @property
    def fingerprint(self) -> dict[str, Any]:
        validated = self.recipe.train.patience is not None
        train, test, validation = self.fingerprints
        return {
            "train": train,
            "test": validation if self.experiment.judged_on == "validation" else test,
            **({"validation": validation} if validated else {}),
        }

    def evaluation(self) -> dict[str, Any]:
        index = self.split.forget.index.contiguous().numpy()
        own: dict[str, Any] = {"forget": hashlib.sha256(index).hexdigest()}
        e = self.experiment
        if e.attack != "entropy":
            own |= {"attack": e.attack, **({"shadow": e.shadow} if e.attack == "shadow" else {})}
        if e.relearn is not None:
            own["relearn"] = e.relearn
        return own | ({"ask": e.ask} if e.ask else {})

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Estimate], dict[str, Any]]:
        e = self.experiment
        outputs = outputs_of(model, self.split, e.ask.get("retain"))
        given: dict[str, Any] = {"random_model": self.random_model} if e.attack == "entropy" else {}
        if e.attack == "shadow":
            given = {"shadow": self.shadow}
        calls = membership_calls(outputs, given.get("shadow", e.attack))
        out = evaluate_classifier(model, self.split, outputs=outputs, calls=calls, **given)
        if e.relearn is not None:
            probe = relearned_accuracy(model, self.split, self.seed, **e.relearn)
            out["relearned_accuracy"] = probe
        hits = {k: (o.logits.argmax(1) == o.labels) for k, o in outputs._asdict().items()}
        hits["attack"] = calls
        return out, {OUTCOMES: {k: pack(v.cpu().numpy()) for k, v in hits.items()}}

    def compare(self, row: Row, retrained: Row) -> dict[str, Estimate]:
        return {"gap": gap_to_retrained(row.metrics, retrained.metrics)}

    def measure_original(self, *, sides_only: bool = False) -> Row:
        if not sides_only:
            return super().measure_original()
        spec = {"method": None, "sides_only": True}
        return self.row(ORIGINAL, spec, lambda: (self.sides(self.original), {}))

    def measure_known_importances(self, label: str) -> Row:
        """SSD with the training set's importances of before the request, on test data alone.

        They are computed once for all requests to the same original, over the images in class order.
        """
        ssd: SSD = self.methods[label]
        key = digest([self.identity, self.fingerprints[0], self.model_seed, ssd.batch_size])

        def known() -> dict[str, Tensor]:
            if key not in self.run.shared:
                train = self.data.train
                by_class = train.subset(train.subclasses.argsort(stable=True))
                loader = batches(by_class, ssd.batch_size)
                self.run.shared[key] = importances(self.original, loader, self.split.task.loss)
            return self.run.shared[key]

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            imp_D = known()
            model = copy.deepcopy(self.original)
            with self.costs() as cost:
                imp_f = ssd.importance_of(model, self.split.forget, self.split, self.seed)
                dampen(model, imp_f, imp_D, ssd.alpha, ssd.lam)
            return self.sides(model) | cost.metrics(self.original, model), {}

        once = "of the training set: once, in class order"
        spec = {"method": describe(ssd), "importances": once}
        return self.row(f"{label}, known importances", spec, compute)

    def measure_dampening(
        self, label: str, *, alpha: float | None = None, lam: float | None = None, fisher: str = ""
    ) -> Row:
        """How many weights SSD selects, and what that does to both sides of the test set.

        What is not given is the method's own. The importances are computed once for all values.
        """
        base: SSD = self.methods[label]
        ssd = replace(
            base,
            alpha=base.alpha if alpha is None else alpha,
            lam=base.lam if lam is None else lam,
            fisher=fisher or base.fisher,
        )

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            if ssd.fisher not in self._pairs:
                self._pairs[ssd.fisher] = ssd.importance_pair(self.original, self.split, self.seed)
            model = copy.deepcopy(self.original)
            masks = dampen(model, *self._pairs[ssd.fisher], ssd.alpha, ssd.lam)
            count = sum(int(m.sum()) for m in masks.values())
            total = sum(m.numel() for m in masks.values())
            share = {"selected_weights": Estimate(100 * count / total, total)}
            tensors = {n: [int(m.sum()), m.numel()] for n, m in masks.items()}
            kept = {"selected": tensors if ssd.alpha == base.alpha else {}}
            return self.sides(model) | share, kept

        at = {"fisher": ssd.fisher, "alpha": ssd.alpha, "lam": ssd.lam}
        return self.row(label, {"method": describe(ssd)}, compute, **at)

    def measure_at_step_of(self, label: str, *, method: str) -> Row:
        """A method at the learning rate that was chosen for another one: its parts, say."""
        return self.measure_method(label, lr=self.methods[method].lr)

    def measure_elsewhere(self, label: str) -> Row:
        """A method that forgets *another* set of the same size, of images that this trial retains:
        how much of what happens to this one's forget set is not for its sake.
        """
        method, retained = self.methods[label], self.split.retain.index
        order = torch.randperm(len(retained), generator=generator(self.seed, "elsewhere"))
        others = retained[order[: len(self.split.forget)]]

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            with self.costs() as costs:
                model = method(self.original, forget_indices(self.data, others), self.seed)
            metrics, detail = self.evaluate(model)
            return metrics | costs.metrics(self.original, model), detail

        spec = {"method": describe(method), "forgets": "as many of the retained images"}
        return self.compared(self.row(f"{label}, for another set", spec, compute))

    def measure_sequence(self, label: str, *, requests: int) -> Row:
        """The forget set in so many requests, one after the other, each to the model that the one
        before left; what a later one will name is retained meanwhile.

        The row's detail holds the test accuracy after each request.
        """
        method, forget = self.methods[label], self.split.forget
        order = torch.randperm(len(forget), generator=generator(self.seed, "sequence"))

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            model, left = self.original, order
            after, seconds, steps = [], 0.0, 0
            for request, part in enumerate(order.chunk(requests)):
                left = left[len(part) :]
                split = replace(
                    self.split,
                    forget=forget.subset(part),
                    retain=self.split.retain + forget.subset(left),
                )
                with self.costs() as costs:
                    model = method(model, split, derive_seed(self.seed, "request", request))
                seconds += costs.cost.seconds
                steps += costs.optimizer_steps
                after.append(self.sides(model)["test_accuracy"].value)
            metrics, detail = self.evaluate(model)
            cost = Costs(Cost(seconds), steps).metrics(self.original, model)
            return metrics | cost, detail | {"test_accuracy_after": after}

        spec = {"method": describe(method), "requests": requests}
        return self.compared(self.row(f"{label}, in sequence", spec, compute, requests=requests))

    def measure_audit(self, label: str, *, models: int) -> Row:
        """A method on the originals of so many seeds, beside as many retrained models: what tells
        the one kind from the other, image by image (see `unlearn_core.metrics.audits`).

        All have one forget set. Accuracies, attack and gap are of the means over the models. Of the
        retrained models one half stands beside the other.
        """
        oracle = self.experiment.oracle
        method = None if label == ORIGINAL else self.methods[label]

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            (out, pool), (aims, aim) = (self.pool(name, models) for name in (label, oracle))
            if label == oracle:
                pool, aim = ({k: m[half] for k, m in pool.items()} for half in halves(models))
            found = {k: klom(pool[k], aim[k]) for k in pool}
            told = u_lira(pool["forget"], aim["forget"])
            return {
                **out,
                "gap": gap_to_retrained(out, aims),
                **{f"klom_{k}": mean(v) for k, v in found.items()},
                "klom_forget_95": Estimate(found["forget"].quantile(0.95).item(), len(told)),
                "u_lira": mean(told),
                "u_lira_95": Estimate(told.quantile(0.95).item(), len(told)),
            }, {}

        spec = {"method": describe(method) if method else None, "models": models}
        return self.row(label, spec, compute, models=models)

    def pool(self, label: str, models: int) -> tuple[dict[str, Estimate], dict[str, Tensor]]:
        """Of so many models: the means of their metrics, and their margins (models, images) on the
        three parts of the split. Those of the retrained ones are kept for the next method.
        """
        key = digest([self.name, self.seed, self.target, label, models])
        if key in self.run.shared:
            return self.run.shared[key]
        values: dict[str, list[float]] = {}
        found: dict[str, list[Tensor]] = {part: [] for part in SideOutputs._fields}
        for k in range(models):
            seed = derive_seed(self.model_seed, "audit", k)
            if label == self.experiment.oracle:
                model, _ = self.fit(self.split.retain, retrain_seed(seed))
            else:
                model, _ = self.fit(self.trained_on, seed)
                if label != ORIGINAL:
                    model = self.methods[label](model, self.split, seed)
            outputs = outputs_of(model, self.split, self.experiment.ask.get("retain"))
            calls = membership_calls(outputs, "confidence")
            for name, at in evaluate_classifier(
                model, self.split, outputs=outputs, calls=calls
            ).items():
                values.setdefault(name, []).append(at.value)
            for part, o in outputs._asdict().items():
                found[part].append(margins(o.logits, o.labels))
        metrics = {name: mean(torch.tensor(v, dtype=torch.float64)) for name, v in values.items()}
        pool = metrics, {part: torch.stack(m) for part, m in found.items()}
        if label == self.experiment.oracle:
            self.run.shared[key] = pool
        return pool

    def measure_quantised(self, label: str, *, bits: int) -> Row:
        """A model whose weights were rounded to so many bits, beside the retrained one's: what a
        method has moved by less than a rounding step comes back.

        Matrices and kernels are rounded to the nearest of 2^bits - 1 values about 0, a scale for each
        output channel; biases and normalisation stay as they are.
        """
        method = None if label == ORIGINAL else self.methods[label]

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            return self.evaluate(rounded(self.unlearned(label), bits))

        spec = {"method": describe(method) if method else None, "bits": bits}
        row = self.row(label, spec, compute, bits=bits)
        oracle = self.experiment.oracle
        if oracle is None:
            return row
        return self.with_comparison(
            row, row if label == oracle else self.measure_quantised(oracle, bits=bits)
        )

    def compared(self, row: Row) -> Row:
        """The row with its distance to the retrained model, where there is one."""
        oracle = self.experiment.oracle
        return self.with_comparison(row, self.measure_method(oracle)) if oracle else row

    def measure_norms(self) -> Row:
        """Gradient norms of 500 single training images, at the original."""
        limit = 500

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            loss = self.split.task.loss
            norms = gradient_norms(self.original, loss, self.data.train, limit=limit)
            largest = Estimate(norms.quantile(0.99).item(), len(norms))
            return {"gradient_norm": mean(norms), "gradient_norm_99": largest}, {}

        return self.row("Gradient norms", {"method": None, "limit": limit}, compute)

    def measure_one_pass(self) -> Row:
        """The time of one forward and backward pass over the training set."""
        size = 256

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            model = self.original
            parameters = list(model.parameters())
            config = replace(self.recipe.train, batch_size=size, augment=())
            loader = shuffled_epochs(self.data.train, config, 0)(0)
            with self.costs() as cost:
                for batch in loader:
                    loss = self.split.task.loss(model, to(batch, self.device))
                    torch.autograd.grad(loss, parameters)
            return {"seconds": Estimate(cost.cost.seconds)}, {}

        return self.row("One pass", {"method": None, "batch_size": size}, compute)

    def measure_selection(self) -> Row:
        """What the experiment's one rule chooses: classes, say, each of which is then forgotten."""
        (rule,) = self.experiment.select
        return self.select(rule)

    def measure_anatomy(self) -> Row:
        """How the forget set looks to the original, before anything is unlearned: its losses, margins
        and entropies, and how far each image is from the nearest retained one of its class.

        The row's detail holds positions in the training set: of the eight images of the forget set with
        the smallest loss, and of the eight outside it with the largest.
        """

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            forget, retain = self.split.forget, self.split.retain
            out = predict(self.original, forget)
            rows = torch.arange(len(forget))
            true = out.logits[rows, out.labels]
            others = out.logits.clone()
            others[rows, out.labels] = -torch.inf
            near = torch.full((len(forget),), torch.nan)  # stays so where a whole class is chosen
            flat = [d.pixels.flatten(1).float() / 255 for d in (forget, retain)]
            for label in out.labels.unique():
                mine, rest = forget.labels == label, retain.labels == label
                if rest.any():
                    near[mine] = torch.cdist(flat[0][mine], flat[1][rest]).min(dim=1).values
            own, outside = (example_losses(self.original, d) for d in (forget, retain))
            shown = {
                "fitted_best": forget.index[own.argsort()[:8]].tolist(),
                "fitted_worst": retain.index[outside.argsort(descending=True)[:8]].tolist(),
            }
            return {
                "selected_loss": mean(own),
                "selected_margin": mean(true - others.max(dim=1).values),
                "selected_entropy": mean(entropy(out.logits)),
                "selected_distance": mean(near[near.isfinite()]),
            }, shown

        return self.row("Anatomy", {"method": None}, compute)

    def select(self, name: str) -> Row:
        """What a rule of the experiment's ``select`` chooses, by the original model.

        The row's detail holds ``index``: positions in the training set or, for a rule about
        classes, their numbers.
        """
        selector, fraction = selection_rule(name, self.experiment.select[name])
        classes = getattr(selector, "by", "example") == "class"
        among = len(self.data.classes) if classes else len(self.data.train)
        budget = round(fraction * among)

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            original, task = self.original, Classification(len(self.data.classes))
            with self.costs() as costs:
                selection = selector.select(
                    original, self.data.train, task, budget, self.seed, self.recipe
                )
            metrics = {"seconds": Estimate(costs.cost.seconds)}
            if not classes:
                losses = example_losses(original, self.data.train)[selection.index]
                metrics["selected_loss"] = mean(losses)
            if selection.log:
                last = selection.log[-1]
                for name in ("overlap_initial", "overlap_previous"):
                    metrics[name] = Estimate(100 * last[name], budget)
                metrics["binary_weights"] = Estimate(100 * last["binary_share"], among)
            return metrics, {"index": selection.index.tolist(), "log": [*selection.log]}

        spec = {"select": describe(selector), "budget": budget}
        return self.bare_row("Selection", spec, compute, forget=name)

    @cached_property
    def shadow(self) -> ShadowAttack:
        """The attack on models of this recipe and data, through the cache: no seed changes it."""

        def fit() -> tuple[nn.Module, dict[str, Any]]:
            attack = ShadowAttack.fit(
                self.data.train,
                self.recipe,
                validation=self.data.validation,
                device=self.device,
                **self.experiment.shadow,
            )
            return attack.network, {
                "commit": self.run.commit,
                "dirty": self.run.dirty,
                "date": now(),
            }

        key = self.shadow_key
        if key not in self.run.shared:
            classes = self.recipe.task.classes
            network, _ = self.run.cache.model(
                key, lambda: attack_network(classes), fit, self.acceptable
            )
            self.run.shared[key] = ShadowAttack(network.to(self.device))
        return self.run.shared[key]

    @property
    def shadow_key(self) -> str:
        """What determines the fitted attack: its key in the cache."""
        train, _, validation = self.fingerprints
        own = [self.identity, train, validation, self.experiment.shadow, VERSION]
        return digest(["shadow attack", *own])

    def models(self) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        yield from super().models()
        if self.experiment.attack == "shadow":
            yield "shadow attack", self.shadow_key, lambda: self.shadow

    @cached_property
    def random_model(self) -> nn.Module:
        """What ZRF compares with: the same architecture, freshly initialised."""
        return self.recipe.build(derive_seed(self.seed, "zrf")).to(self.device)

    def sides(self, model: nn.Module) -> dict[str, Estimate]:
        """Test accuracies alone, for sweeps; the training set is not looked at."""
        return accuracies_on_test(predict(model, self.split.test), self.split)

    def check_split(self, split: ForgetSplit) -> None:
        """Record whether forget and retain are disjoint and complete."""
        forget, retain = set(split.forget.index.tolist()), set(split.retain.index.tolist())
        self.run.invariant(
            "forget and retain are disjoint and complete",
            self.name,
            self.seed,
            not forget & retain and len(forget) + len(retain) == len(self.data.train),
            f"{len(forget)} + {len(retain)} of {len(self.data.train)}",
        )

    def check_oracle(self, row: Row) -> None:
        """What must be true of a model that never saw the forget set."""
        value = {k: m.value for k, m in row.metrics.items()}
        self.run.invariant(
            "the oracle's gap to itself is 0",
            self.name,
            self.seed,
            value["gap"] == 0,
            f"{value['gap']}",
        )
        if self.recipe.train.max_steps is not None:
            return  # a few steps teach nothing: the rest is true of a model that was trained
        (kind,) = self.experiment.forget
        if kind == "class" and self.experiment.judged_on == "test":
            self.run.invariant(
                "the retrained model's accuracy on the forgotten class is 0",
                self.name,
                self.seed,
                value["forget_accuracy"] == value["test_forget_accuracy"] == 0,
                f"{value['forget_accuracy']:.1f} % (train), {value['test_forget_accuracy']:.1f} % (test)",
            )
        if kind in ("fraction", "count"):
            # Both are held-out images to it: they may differ by their sampling noise only.
            forget, test = row.metrics["forget_accuracy"], row.metrics["test_accuracy"]
            p = test.value / 100
            noise = 100 * (p * (1 - p) * (1 / forget.n + 1 / test.n)) ** 0.5
            self.run.invariant(
                "the retrained model's forget accuracy is near its test accuracy (4 sigma)",
                self.name,
                self.seed,
                abs(forget.value - test.value) <= 4 * noise + 1e-9,
                f"{forget.value:.1f} % and {test.value:.1f} %, sigma {noise:.1f} points",
            )


def selection_rule(name: str, rule: Mapping[str, Any]) -> tuple[Any, float]:
    """A rule of an experiment's ``select``, and the share of examples or classes that it chooses."""
    with within(f"select.{name}"):
        own = nested(rule)
        fraction = own.pop("fraction", None)
        if not (isinstance(fraction, float) and 0 < fraction < 1):
            raise ConfigError(f"fraction: a share between 0 and 1, not {brief(fraction)}")
        return build(SELECTORS, own, "selection rule"), fraction


def halves(models: int) -> tuple[slice, slice]:
    return slice(models // 2), slice(models // 2, models)


def check_bits(bits: Any) -> None:
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ConfigError(f"bits: 2 to 8, not {brief(bits)}")


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """A copy with matrices and kernels rounded to ``bits``, symmetric about 0, by output channel."""
    check_bits(bits)
    out, most = copy.deepcopy(model), 2 ** (bits - 1) - 1
    with torch.no_grad():
        for p in out.parameters():
            if p.ndim < 2:
                continue
            scale = p.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(p.dtype).tiny) / most
            zeros = torch.zeros(len(p), dtype=torch.int32, device=p.device)
            p.copy_(torch.fake_quantize_per_channel_affine(p, scale, zeros, 0, -most, most))
    return out


def check_attack(says: Mapping[str, Any]) -> None:
    """The arguments of `ShadowAttack.fit` that an experiment's ``shadow`` gives."""
    with within("shadow"):
        own = {k: v for k, v in says.items() if k in ("shadows", "seed")}
        training = {k: v for k, v in says.items() if k not in own}
        bind(ShadowAttack.fit, own, "the attack", pool=None, recipe=None)
        train_config(asdict(ATTACK_TRAINING) | training)


def trials(run: Replication, prefix: str) -> Iterator[ClassificationTrial]:
    """`ClassificationTrial.each`, under the name that the chapters use."""
    return ClassificationTrial.each(run, prefix)
