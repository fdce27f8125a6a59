from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unlearn_core.data import (
    Classification,
    ForgetSplit,
    ImageData,
    forget_class,
    forget_random,
    forget_subclass,
)
from unlearn_core.data import shapes as draw_shapes
from unlearn_core.metrics import (
    METRICS,
    Estimate,
    ShadowAttack,
    accuracy,
    changed_weights,
    confidence_attack,
    entropy,
    entropy_attack,
    evaluate_classifier,
    fit_entropy_attack,
    gap_to_retrained,
    jensen_shannon,
    mean,
    measure,
    membership_calls,
    outputs_of,
    share,
    zrf,
    zrf_as_published,
)
from unlearn_core.metrics.shadow import attack_network, shadow_features
from unlearn_core.models import Recipe, predict, training

Golden = Callable[[str], dict[str, Tensor]]


class TestShare:
    def test_per_cent_with_the_binomial_standard_error(self) -> None:
        """Fails with a share of 1, n - 1 for n, or an error that is not in per cent."""
        found = share(torch.tensor([True] * 3 + [False] * 9))
        assert found == Estimate(25.0, 12, pytest.approx(100 * math.sqrt(0.25 * 0.75 / 12)))

    def test_certainty_has_no_error(self) -> None:
        assert share(torch.tensor([True, True])) == (100, 2, 0)

    def test_nothing_has_no_share(self) -> None:
        with pytest.raises(ValueError, match="a share of nothing"):
            share(torch.tensor([], dtype=torch.bool))


class TestMean:
    def test_with_the_standard_error_of_a_sample(self) -> None:
        """Fails with n for n - 1, or with the deviation in the place of the error."""
        assert mean(torch.tensor([1.0, 2.0, 6.0])) == (3, 3, pytest.approx(math.sqrt(7 / 3)))

    def test_one_value_has_no_error(self) -> None:
        """Fails where it is NaN, which no record may hold."""
        assert mean(torch.tensor([2.5])) == (2.5, 1, None)

    def test_it_is_worked_out_in_double_precision(self) -> None:
        assert mean(torch.tensor([2.0**24, 1.0])).value == 2**23 + 0.5

    def test_nothing_has_no_mean(self) -> None:
        with pytest.raises(ValueError, match="a mean of nothing"):
            mean(torch.tensor([]))


class TestAccuracy:
    def test_golden(self, golden: Golden) -> None:
        """Fails if batch accuracies are averaged: a short last batch would be over-weighted."""
        case = golden("ssd/accuracy")
        logits, y = case["logits"], case["y"]
        found = accuracy(logits, y)
        assert found.value == pytest.approx(case["accuracy_exact"].item(), abs=1e-10)
        assert found.n == 37
        parts = zip(logits.split(8), y.split(8), strict=True)
        published = torch.tensor([accuracy(*p).value for p in parts]).mean()
        assert published.item() == pytest.approx(case["accuracy_code"].item(), abs=1e-5)
        assert abs(published.item() - found.value) > 0.1

    def test_the_loss_beside_it(self, golden: Golden) -> None:
        """Fails if the task's loss is not the mean over samples."""
        case, loss = golden("ssd/accuracy"), Classification(4).loss
        logits, y = case["logits"], case["y"]
        exact = loss(nn.Identity(), (logits, y)).item()
        assert exact == pytest.approx(case["loss_exact"].item(), abs=1e-10)
        parts = zip(logits.split(8), y.split(8), strict=True)
        published = torch.stack([loss(nn.Identity(), p) for p in parts]).mean().item()
        assert published == pytest.approx(case["loss_code"].item(), abs=1e-10)


class TestEntropyAttack:
    @pytest.mark.parametrize("part", ["retain", "forget", "test"])
    def test_golden_entropies(self, golden: Golden, part: str) -> None:
        """Fails in bits, or if probabilities are clipped."""
        case = golden("ssd/mia_entropy")
        found = entropy(case[f"logits_{part}"])
        torch.testing.assert_close(found, case[f"entropy_{part}"], rtol=0, atol=1e-10)

    def test_closed_forms(self) -> None:
        logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0], [5.0, 5.0, -1e4, -1e4]])
        expected = torch.tensor([math.log(4), 0, math.log(2)], dtype=torch.float64)
        torch.testing.assert_close(entropy(logits), expected)

    @pytest.mark.parametrize(("C", "suffix"), [(1.0, "C1"), (2.0, "multinomial")])
    def test_golden_attack(self, golden: Golden, C: float, suffix: str) -> None:
        """Fails with the other C, without balanced weights, or with a penalised intercept."""
        case = golden("ssd/mia_entropy")
        attack = fit_entropy_attack(case["logits_retain"], case["logits_test"], C)
        slope, intercept = attack.coef_.item(), attack.intercept_.item()
        assert slope == pytest.approx(case[f"slope_{suffix}"].item(), rel=2e-3)
        assert intercept == pytest.approx(case[f"intercept_{suffix}"].item(), rel=2e-3)
        boundary = case[f"boundary_{suffix}"].item()
        assert -intercept / slope == pytest.approx(boundary, rel=2e-3)

    def test_golden_objective(self, golden: Golden) -> None:
        """Fails if C = 2 is only near the two penalised rows: the solver's stopping rule, which
        blurs the fit above, is tightened here."""
        case = golden("ssd/mia_entropy")
        attack = fit_entropy_attack(case["logits_retain"], case["logits_test"])
        x = torch.cat([case["entropy_retain"], case["entropy_test"]])[:, None].numpy()
        attack.set_params(tol=1e-10, max_iter=1000).fit(x, [1] * 60 + [0] * 40)
        assert attack.coef_.item() == pytest.approx(case["slope_multinomial"].item(), rel=1e-5)
        intercept = case["intercept_multinomial"].item()
        assert attack.intercept_.item() == pytest.approx(intercept, rel=1e-5)

    def test_golden_shares(self, golden: Golden) -> None:
        """Fails if the share is of non-members, or the two training sets are swapped."""
        case = golden("ssd/mia_entropy")
        logits = [case[f"logits_{part}"] for part in ("retain", "test", "forget")]
        n = len(case["logits_forget"])
        for C, name in ((1.0, "mia_code"), (2.0, "mia_multinomial")):
            found = entropy_attack(*logits, C)
            assert found.value == pytest.approx(100 * case[name].item(), abs=1e-10)
            assert found.n == n

    def test_c_is_2_unless_told(self, golden: Golden) -> None:
        """Fails with scikit-learn's C = 1: the authors' two penalised rows make it 2."""
        case = golden("ssd/mia_entropy")
        slope = fit_entropy_attack(case["logits_retain"], case["logits_test"]).coef_.item()
        assert slope == pytest.approx(case["slope_multinomial"].item(), rel=2e-3)
        assert abs(slope / case["slope_C1"].item() - 1) > 0.05
        confident, unsure = torch.eye(3).repeat(20, 1), torch.eye(3).repeat(20, 1) / 9
        assert fit_entropy_attack(confident, unsure).C == 2

    @pytest.mark.parametrize(
        ("options", "suffix"),
        [({}, "multinomial"), ({"C": 1.0}, "C1"), ({"C": 2.0}, "multinomial")],
    )
    def test_the_share_lies_below_the_boundary_of_its_c(
        self, golden: Golden, options: dict[str, float], suffix: str
    ) -> None:
        """Fails if C is not passed on: the goldens' forget set has nothing between the two."""
        case = golden("ssd/mia_entropy")
        forget = torch.zeros(2000, 6)
        forget[:, 0] = torch.linspace(0, 6, 2000)
        members = entropy(forget) < case[f"boundary_{suffix}"]
        found = entropy_attack(case["logits_retain"], case["logits_test"], forget, **options)
        assert found.value == pytest.approx(100 * members.double().mean().item(), abs=0.1)

    def test_a_model_that_knows_its_members_gives_the_forget_set_away(self) -> None:
        confident, unsure = 9 * torch.eye(3).repeat(20, 1), torch.eye(3).repeat(20, 1) / 9
        assert entropy_attack(confident, unsure, confident).value == 100
        assert entropy_attack(confident, unsure, unsure).value == 0


class TestZRF:
    def test_golden_divergence_per_sample(self, golden: Golden) -> None:
        """Fails in bits, without the factor 1/2, or averaged over classes."""
        case = golden("ssd/zrf")
        found = jensen_shannon(case["logits_u"], case["logits_g"])
        torch.testing.assert_close(found, case["js_per_sample"], rtol=0, atol=1e-10)

    def test_golden_score(self, golden: Golden) -> None:
        case = golden("ssd/zrf")
        found = zrf(case["logits_u"], case["logits_g"])
        assert found.value == pytest.approx(case["zrf_paper"].item(), abs=1e-10)
        assert found.n == 14
        stderr = case["js_per_sample"].std().item() / math.sqrt(14)
        assert found.stderr == pytest.approx(stderr)

    def test_golden_score_as_published(self, golden: Golden) -> None:
        """Fails if the divergences run forwards, or are averaged over samples only."""
        case = golden("ssd/zrf")
        found = zrf_as_published(case["logits_u"], case["logits_g"])
        assert found == pytest.approx(case["zrf_code"].item(), abs=1e-10)

    def test_equal_outputs_do_not_diverge(self) -> None:
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            jensen_shannon(logits, logits + 7), torch.zeros(5).double(), atol=1e-7, rtol=0
        )
        assert zrf(logits, logits).value == pytest.approx(1)

    def test_disjoint_outputs_diverge_by_ln_2(self) -> None:
        p, q = torch.tensor([[600.0, 0.0]]), torch.tensor([[0.0, 600.0]])
        assert jensen_shannon(p, q).item() == pytest.approx(math.log(2))
        assert zrf(p, q) == (pytest.approx(1 - math.log(2)), 1, None)

    @pytest.mark.parametrize("gap", [800.0, 1e5])
    def test_probabilities_that_underflow_stay_finite(self, gap: float) -> None:
        """Fails if 0 log 0 is NaN: a class that both models rule out would spoil the mean."""
        p, q = torch.tensor([[gap, 0.0, 0.0]]), torch.tensor([[0.0, gap, 0.0]])
        assert jensen_shannon(p, p).item() == 0
        assert jensen_shannon(p, q).item() == pytest.approx(math.log(2))

    def test_the_divergence_is_symmetric(self) -> None:
        p, q = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))

    def test_as_published_it_is_minus_infinity_on_underflow(self) -> None:
        p, q = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        assert zrf_as_published(p, q) == -math.inf
        assert math.isfinite(zrf(p, q).value)


class TestChangedWeights:
    def test_it_counts_entries(self) -> None:
        before = nn.Linear(4, 2)
        after = copy.deepcopy(before)
        with torch.no_grad():
            after.weight[0, :2] += 1
            after.bias[1] = -after.bias[1]
        assert changed_weights(before, after) == (100 * 3 / 10, 10, None)

    def test_nothing_changed(self, model: nn.Module) -> None:
        assert changed_weights(model, copy.deepcopy(model)).value == 0

    def test_another_architecture_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="not of one architecture"):
            changed_weights(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


class TestGap:
    names = ("retain_accuracy", "forget_accuracy", "test_accuracy", "entropy_mia")

    def values(self, *numbers: float) -> dict[str, Estimate]:
        return dict(zip(self.names, map(Estimate, numbers), strict=True))

    def test_it_is_the_mean_absolute_difference(self) -> None:
        """Fails if differences cancel, or another metric is averaged in."""
        ours = self.values(90, 10, 80, 50) | {"zrf": Estimate(0.0)}
        theirs = self.values(95, 0, 80, 49) | {"zrf": Estimate(1.0)}
        assert gap_to_retrained(ours, theirs) == Estimate((5 + 10 + 0 + 1) / 4)
        assert gap_to_retrained(theirs, ours) == gap_to_retrained(ours, theirs)

    @pytest.mark.parametrize("attack", ["confidence_mia", "shadow_mia"])
    def test_the_attack_is_the_one_that_was_measured(self, attack: str) -> None:
        """Fails if only the entropy attack counts, or the loss on the forget set does too."""
        accuracies = self.names[:3]
        ours = dict(zip((*accuracies, attack), map(Estimate, (90, 10, 80, 50)), strict=True))
        theirs = dict(zip((*accuracies, attack), map(Estimate, (95, 0, 80, 20)), strict=True))
        ours["forget_loss"], theirs["forget_loss"] = Estimate(0.0), Estimate(9.0)
        assert gap_to_retrained(ours, theirs) == Estimate((5 + 10 + 0 + 30) / 4)

    def test_another_attack_than_the_retrained_model_s_is_an_error(self) -> None:
        """Fails if the attack is left out, or two that have opposite directions are compared."""
        confident = dict.fromkeys((*self.names[:3], "confidence_mia"), Estimate(0))
        with pytest.raises(
            ValueError, match="model's is confidence_mia, the retrained one's is ent"
        ):
            gap_to_retrained(confident, self.values(0, 0, 0, 0))

    def test_a_missing_metric_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="model's is none, the retrained one's is entropy_mia"):
            gap_to_retrained({n: Estimate(0) for n in self.names[:3]}, self.values(0, 0, 0, 0))


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tiny_data: ImageData) -> nn.Module:
    return recipe.fit(tiny_data.train, 0, device=torch.device("cpu"))


class TestEvaluateClassifier:
    def test_every_part_is_what_a_direct_prediction_says(
        self, recipe: Recipe, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if two sides are swapped, or a side's rows are not looked up by image."""
        random_model = recipe.build(9)
        found = evaluate_classifier(trained, tiny_split, random_model=random_model)
        for name, part in (
            ("retain_accuracy", tiny_split.retain),
            ("forget_accuracy", tiny_split.forget),
            ("test_accuracy", tiny_split.test),
            ("test_retain_accuracy", tiny_split.test_retain),
            ("test_forget_accuracy", tiny_split.test_forget),
        ):
            out = predict(trained, part)
            assert found[name] == accuracy(out.logits, out.labels), name
        retain, test, forget = (
            predict(trained, p).logits
            for p in (tiny_split.retain, tiny_split.test, tiny_split.forget)
        )
        assert found["entropy_mia"] == entropy_attack(retain, test, forget)
        assert found["zrf"] == zrf(forget, predict(random_model, tiny_split.forget).logits)
        assert len({found[k].n for k in found if "accuracy" in k}) == 5

    SIDES = ("retain", "forget", "test", "test_retain", "test_forget")

    def test_without_a_random_model_the_confidence_attack_is_measured(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if members and non-members are exchanged, or the loss is of another part."""
        found = evaluate_classifier(trained, tiny_split)
        accuracies = {f"{side}_accuracy" for side in self.SIDES}
        assert found.keys() == accuracies | {"confidence_mia", "forget_loss"}
        retain, test, forget = (
            predict(trained, p) for p in (tiny_split.retain, tiny_split.test, tiny_split.forget)
        )
        pairs = [(out.logits, out.labels) for out in (retain, test, forget)]
        assert found["confidence_mia"] == confidence_attack(*pairs)
        assert found["confidence_mia"].n == 8
        log_p = forget.logits.double().log_softmax(dim=1)
        losses = -log_p[torch.arange(8), forget.labels]
        stderr = losses.std().item() / math.sqrt(8)
        assert found["forget_loss"] == (
            pytest.approx(losses.mean().item()),
            8,
            pytest.approx(stderr),
        )

    def test_with_a_shadow_attack_that_one_is_measured(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if it is asked about another part than the forget set, or nobody asks how often it
        is wrong about the others."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            attack = ShadowAttack(attack_network(10))
        forget = predict(trained, tiny_split.forget)
        with torch.no_grad():  # so that it calls half of the forget set members
            features = shadow_features(forget.logits, forget.labels)
            attack.network[9].bias -= attack.network(features).median() + 1e-6
        found = evaluate_classifier(trained, tiny_split, shadow=attack)
        accuracies = {f"{side}_accuracy" for side in self.SIDES}
        rates = {"shadow_mia", "shadow_true_positives", "shadow_false_positives"}
        assert found.keys() == accuracies | rates | {"forget_loss"}
        for name, part in (("true", tiny_split.retain), ("false", tiny_split.test)):
            out = predict(trained, part)
            rate = attack.member_rate(out.logits, out.labels)
            assert found[f"shadow_{name}_positives"] == rate
        assert found["shadow_mia"] == attack.member_rate(forget.logits, forget.labels)
        assert (found["shadow_mia"].value, found["shadow_mia"].n) == (50, 8)
        plain = evaluate_classifier(trained, tiny_split)
        for name in (*accuracies, "forget_loss"):
            assert found[name] == plain[name]

    def test_which_images_the_attack_calls(
        self, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if an image's call is another's, means the opposite of what is counted, or calls that
        are given are not used."""
        outputs = outputs_of(trained, tiny_split)
        for attack, options in (("confidence", {}), ("entropy", {"random_model": trained})):
            calls = membership_calls(outputs, attack)
            found = evaluate_classifier(trained, tiny_split, **options)
            assert share(calls) == found[f"{attack}_mia"]
            again = evaluate_classifier(
                trained, tiny_split, outputs=outputs, calls=calls, **options
            )
            assert again == found
            other = evaluate_classifier(trained, tiny_split, calls=~calls, **options)
            assert other[f"{attack}_mia"].value == 100 - found[f"{attack}_mia"].value

    def test_some_of_the_retain_set(self, trained: nn.Module, tiny_split: ForgetSplit) -> None:
        """Fails if the first images are taken, which are of one class, or another part is cut."""
        outputs = outputs_of(trained, tiny_split, 36)
        some = predict(trained, tiny_split.retain.subset(torch.arange(0, 72, 2)))
        torch.testing.assert_close(outputs.retain.logits, some.logits)
        assert [len(part.labels) for part in outputs] == [36, 8, 40]
        found = evaluate_classifier(trained, tiny_split, outputs=outputs)
        assert found["retain_accuracy"] == accuracy(some.logits, some.labels)
        whole = outputs_of(trained, tiny_split, 100)
        assert torch.equal(whole.retain.labels, tiny_split.retain.labels)

    def test_the_sides_of_a_test_set_in_another_order(
        self, trained: nn.Module, tiny_data: ImageData, recipe: Recipe
    ) -> None:
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        data = replace(tiny_data, test=tiny_data.test.subset(order))
        split = forget_class(data, 5)
        found = evaluate_classifier(trained, split, random_model=recipe.build(9))
        for side in ("test_retain", "test_forget"):
            out = predict(trained, getattr(split, side))
            assert found[f"{side}_accuracy"] == accuracy(out.logits, out.labels)

    def test_a_subclass_has_sides_and_a_random_request_has_none(
        self, trained: nn.Module, tiny_data: ImageData, recipe: Recipe
    ) -> None:
        coarse = draw_shapes(2, 2, fills=2, size=12, coarse=True)
        found = evaluate_classifier(
            trained, forget_subclass(coarse, 3), random_model=recipe.build(9)
        )
        assert (found["test_forget_accuracy"].n, found["test_retain_accuracy"].n) == (2, 38)
        found = evaluate_classifier(
            trained, forget_random(tiny_data, count=8), random_model=recipe.build(9)
        )
        assert not any(name.startswith(("test_retain", "test_forget")) for name in found)

    def test_the_oracle_s_gap_to_itself_is_0(self, recipe: Recipe, tiny_split: ForgetSplit) -> None:
        """Fails if evaluation draws: the same model would get two values."""
        retrained = recipe.fit(tiny_split.retain, 0, device=torch.device("cpu"))
        a, b = (
            evaluate_classifier(retrained, tiny_split, random_model=recipe.build(9))
            for _ in range(2)
        )
        assert a == b
        assert gap_to_retrained(a, b).value == 0

    def test_a_model_retrained_without_a_class_never_names_it(
        self, recipe: Recipe, tiny_split: ForgetSplit
    ) -> None:
        config = replace(recipe.train, epochs=6)
        retrained = replace(recipe, train=config).fit(
            tiny_split.retain, 0, device=torch.device("cpu")
        )
        found = evaluate_classifier(retrained, tiny_split, random_model=recipe.build(9))
        assert found["forget_accuracy"].value == found["test_forget_accuracy"].value == 0

    def test_every_metric_is_in_the_table(
        self, recipe: Recipe, trained: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        found = evaluate_classifier(trained, tiny_split, random_model=recipe.build(9))
        assert found.keys() <= METRICS.keys()
        for metric in METRICS.values():
            assert metric.better in ("higher", "lower", "retrained", "none")
            assert metric.label
            assert metric.definition.endswith(".")


class TestMeasure:
    def test_it_sees_an_allocation(self) -> None:
        """Fails if the peak is read at the end, when the memory is free again."""
        with measure(torch.device("cpu")) as cost:
            block = torch.ones(40_000_000 // 4)
            del block
        if cost.peak_memory is None:
            pytest.skip("this kernel does not let a process reset its memory high-water mark")
        assert 35 < cost.peak_memory < 80

    def test_what_was_there_before_does_not_count(self) -> None:
        block = torch.ones(40_000_000 // 4)
        del block
        with measure(torch.device("cpu")) as cost:
            pass
        if cost.peak_memory is None:
            pytest.skip("this kernel does not let a process reset its memory high-water mark")
        assert cost.peak_memory < 30

    def test_it_does_not_depend_on_what_ran_before(self) -> None:
        """Fails if memory that was freed, but not given back to the system, counts as in use: the
        second of two equal methods would seem to need none."""

        def work() -> None:
            blocks = [torch.ones(50_000) for _ in range(200)]  # 40 MB in pieces of the heap
            pins.append(torch.ones(50_000))  # a later allocation keeps the heap from shrinking
            del blocks

        pins: list[Tensor] = []
        peaks = []
        for _ in range(2):
            with measure(torch.device("cpu")) as cost:
                work()
            peaks.append(cost.peak_memory)
        if None in peaks:
            pytest.skip("this kernel does not let a process reset its memory high-water mark")
        assert all(35 < peak < 80 for peak in peaks), peaks

    @pytest.mark.parametrize(
        "status",
        [None, "", "VmSize: 9 kB\nVmRSS: 5 kB\n", "VmHWM: 5 kB\n", "VmRSS:\nVmHWM:\n", "VmRSS: ?"],
        ids=["no file", "empty", "no peak", "no size", "no numbers", "no number"],
    )
    def test_what_a_sandbox_hides_is_not_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str | None
    ) -> None:
        """Fails where a kernel without that field (gVisor) ends every training."""
        from unlearn_core.metrics import cost as module

        monkeypatch.setattr(module, "_STATUS", tmp_path / "status")
        if status is not None:
            (tmp_path / "status").write_text(status)
        with measure(torch.device("cpu")) as cost:
            pass
        assert cost.peak_memory is None
        assert cost.seconds > 0

    def test_a_field_that_goes_while_it_is_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from unlearn_core.metrics import cost as module

        monkeypatch.setattr(module, "_STATUS", tmp_path / "status")
        (tmp_path / "status").write_text("VmRSS: 5000 kB\nVmHWM: 5001 kB\n")
        with measure(torch.device("cpu")) as cost:
            (tmp_path / "status").write_text("VmRSS: 5000 kB\nVmHWM: 9000 kB\n")
        assert cost.peak_memory == 4000 * 1024 / 1e6
        (tmp_path / "status").write_text("VmRSS: 5000 kB\nVmHWM: 5001 kB\n")
        with measure(torch.device("cpu")) as cost:
            (tmp_path / "status").unlink()
        assert cost.peak_memory is None

    @pytest.mark.parametrize(("threads", "clock"), [(1, "process_time"), (2, "perf_counter")])
    def test_one_thread_is_timed_by_its_own_work(
        self, monkeypatch: pytest.MonkeyPatch, threads: int, clock: str
    ) -> None:
        """Fails where what else runs on a machine makes a method slower than another one."""
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        for name, step in (("process_time", 2.0), ("perf_counter", 3.0)):
            told = itertools.count(step=step)
            monkeypatch.setattr(training.time, name, lambda told=told: next(told))
        with measure(torch.device("cpu")) as cost:
            pass
        assert cost.seconds == pytest.approx({"process_time": 2, "perf_counter": 3}[clock])

    def test_workers_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails where a data loader's own processes work for nothing."""
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        code = "import time\nwhile time.process_time() < 0.3: pass"
        with measure(torch.device("cpu")) as cost:
            subprocess.run([sys.executable, "-S", "-c", code], check=True)
        assert cost.seconds >= 0.2
