from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unlearn_core.metrics import attack_features, confidence_attack, svc_attack
from unlearn_core.metrics.catalogue import Estimate

Golden = Callable[[str], dict[str, Tensor]]
SVC = ["svc_c10", "svc_c4_two_targets"]
FEATURES = ["correctness", "confidence", "entropy", "modified_entropy", "prob"]


def pair(case: dict[str, Tensor], part: str) -> tuple[Tensor, Tensor]:
    return case[f"logits_{part}"], case[f"y_{part}"]


class TestFeatures:
    def test_golden(self, golden: Golden) -> None:
        """Fails with the authors' modified entropy, which takes log p where log(1 - p) is meant."""
        case = golden("_classification_metrics/features_c6")
        found = attack_features(case["logits"], case["y"])
        assert list(found) == FEATURES
        torch.testing.assert_close(found["prob"], case["prob"], rtol=0, atol=1e-12)
        for name, key in (("entropy", "entropy"), ("modified_entropy", "m_entropy_paper")):
            torch.testing.assert_close(found[name][:, 0], case[key], rtol=0, atol=1e-10)
        assert (found["modified_entropy"][:, 0] - case["m_entropy_code"]).abs().min() > 1e-3

    def test_golden_confidences(self, golden: Golden) -> None:
        case = golden("salun/svc_mia")
        for part in ("member", "nonmember", "forget"):
            found = attack_features(*pair(case, part))["confidence"][:, 0]
            torch.testing.assert_close(found, case[f"confidence_{part}"], rtol=0, atol=1e-12)

    def test_by_hand(self) -> None:
        """Two outputs, 3/4 and 1/4, seen with either label."""
        logits = torch.tensor([[math.log(3.0), 0.0]] * 2)
        found = attack_features(logits, torch.tensor([0, 1]))
        a, b = math.log(0.75), math.log(0.25)
        by_hand = {
            "correctness": [[1], [0]],
            "confidence": [[0.75], [0.25]],
            "entropy": [[-0.75 * a - 0.25 * b]] * 2,
            "modified_entropy": [[-0.25 * a - 0.25 * a], [-0.75 * b - 0.75 * b]],
            "prob": [[0.75, 0.25]] * 2,
        }
        for name, value in by_hand.items():
            torch.testing.assert_close(found[name], torch.tensor(value).double(), atol=1e-7, rtol=0)

    def test_certainty_is_finite(self) -> None:
        """Fails with a logarithm of 0: the class with probability 1 is the wrong one."""
        found = attack_features(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([1, 1]))
        assert all(v.isfinite().all() for v in found.values())
        assert found["modified_entropy"][1].item() == 0

    def test_logarithms_are_of_a_least_probability_on_both_sides(self) -> None:
        """Song and Mittal's code, and the authors' ``MIA.py`` after it, take ln max(p, 1e-30) and
        ln max(1 - p, 1e-30) alike: a wrong label that is 670.7 nats away counts 138.2, not 739.8."""
        found = attack_features(torch.tensor([[0.0, 670.7]]), torch.tensor([0]))
        assert found["modified_entropy"].item() == pytest.approx(-2 * math.log(1e-30))
        near = attack_features(torch.tensor([[0.0, 60.0]]), torch.tensor([0]))
        assert near["modified_entropy"].item() == pytest.approx(60 - math.log(1e-30))


class TestAttack:
    @pytest.mark.parametrize("feature", FEATURES)
    @pytest.mark.parametrize("name", SVC)
    def test_golden(self, golden: Golden, name: str, feature: str) -> None:
        """Fails with another C or gamma, standardised features, or members and non-members
        exchanged."""
        case = golden(f"_classification_metrics/{name}")
        assert (case["margin"] > 1e-4).all()
        fit = [attack_features(*pair(case, p))[feature] for p in ("member", "nonmember")]
        forget = attack_features(*pair(case, "forget"))[feature]
        share = svc_attack(*fit, forget).double().mean().item()
        if "y_target_train" in case:  # there the authors average it with the members found
            target = attack_features(*pair(case, "target_train"))[feature]
            share = (share + 1 - svc_attack(*fit, target).double().mean().item()) / 2
        key = "mia_m_entropy_paper" if feature == "modified_entropy" else f"mia.{feature}"
        assert share == pytest.approx(case[key].item(), abs=1e-12)

    def test_golden_efficacy(self, golden: Golden) -> None:
        """Fails as a share of 1, or of those that are called members."""
        case = golden("salun/svc_mia")
        found = confidence_attack(*(pair(case, p) for p in ("member", "nonmember", "forget")))
        assert found.value == pytest.approx(case["mia_percent"].item(), abs=1e-9)
        assert found.n == 30
        assert found.stderr == pytest.approx(100 * math.sqrt(1 / 3 * 2 / 3 / 30))

    def outputs(self, n: int, confident: bool) -> tuple[Tensor, Tensor]:
        """Logits of right answers, sure or unsure, that differ a little."""
        logits = torch.zeros(n, 3)
        logits[:, 1] = torch.linspace(6, 7, n) if confident else torch.linspace(0, 0.2, n)
        return logits, torch.ones(n, dtype=torch.long)

    @pytest.mark.parametrize(("confident", "share"), [(True, 0.0), (False, 100.0)])
    def test_high_means_forgotten(self, confident: bool, share: float) -> None:
        found = confidence_attack(
            self.outputs(20, True), self.outputs(20, False), self.outputs(7, confident)
        )
        assert found == Estimate(share, 7, 0.0)

    def test_no_more_members_than_non_members_are_used_at_equal_distances(self) -> None:
        """Fails if all members count, or the first ones, which are of a few classes only."""
        sure, unsure = self.outputs(20, True), self.outputs(20, False)
        other = tuple(t.repeat(3, *[1] * (t.ndim - 1)) for t in unsure)
        # Every fourth one is sure; the first twenty are not.
        order = torch.cat([torch.arange(20, 80).view(20, 3), torch.arange(20)[:, None]], dim=1)
        members = tuple(
            torch.cat(t)[order.flatten()].roll(1, 0) for t in zip(sure, other, strict=True)
        )
        assert (members[0][::4, 1] > 5).all()
        found = confidence_attack(members, unsure, self.outputs(5, False))
        assert found == confidence_attack(sure, unsure, self.outputs(5, False))
        assert found.value == 100
        first = tuple(t[:20] for t in members)
        assert confidence_attack(first, unsure, self.outputs(9, True)).value < 100
        assert confidence_attack(members, unsure, sure).value == 0
