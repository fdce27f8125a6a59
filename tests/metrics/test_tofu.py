"""TOFU's metrics, on losses from the authors' published logs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import hmean
from torch import Tensor

from unlearn_core.metrics.tofu import (
    answer_losses,
    choice_probability,
    deviation_score,
    forget_quality,
    model_utility,
    truth_ratio,
    truth_ratio_score,
)

Golden = Callable[[str], dict[str, Tensor]]
SIDES = ("retain", "ra", "wf")


@pytest.fixture(params=["full", "retain90"])
def log(request: pytest.FixtureRequest, golden: Golden) -> dict[str, Tensor]:
    return golden(f"_llm_metrics/tofu_mu_phi_{request.param}")


class TestLogs:
    @pytest.mark.parametrize("average", ["geometric", "arithmetic"])
    def test_components_and_utility(self, log: dict[str, Tensor], average: str) -> None:
        """Fails where the two means of the wrong answers are mixed up, where real authors' and world
        facts' probability is not that among the choices, or the mean over the parts is another."""
        parts = {}
        for side in SIDES:
            gt, wrong = log[f"in_{side}_gt_loss"], log[f"in_{side}_perturb_loss"]
            probability = (-gt).exp() if side == "retain" else choice_probability(gt, wrong)
            ratios = truth_ratio(log[f"in_{side}_paraphrased_loss"], wrong, average)
            score = truth_ratio_score(ratios, forgotten=False)
            parts |= {
                f"{side} probability": probability.mean().item(),
                f"{side} rouge": log[f"in_{side}_rougeL_recall"].mean().item(),
                f"{side} truth ratio": score.mean().item(),
            }
        kind = "" if average == "geometric" else "_arith"
        expected = log[f"out_components{kind}"].tolist()
        assert list(parts.values()) == pytest.approx(expected, abs=1e-10)
        assert model_utility(parts) == pytest.approx(log[f"out_mu{kind}"].item(), abs=1e-10)

    def test_truth_ratios(self, log: dict[str, Tensor]) -> None:
        for side in (*SIDES, "forget"):
            found = truth_ratio(log[f"in_{side}_paraphrased_loss"], log[f"in_{side}_perturb_loss"])
            torch.testing.assert_close(
                found, log[f"out_{side}_truth_ratio"], rtol=1e-10, atol=1e-10
            )

    def test_forget_side(self, log: dict[str, Tensor]) -> None:
        wrong, paraphrase = log["in_forget_perturb_loss"], log["in_forget_paraphrased_loss"]
        scores = [
            truth_ratio_score(truth_ratio(paraphrase, wrong, a), forgotten=True).mean().item()
            for a in ("geometric", "arithmetic")
        ]
        assert scores == pytest.approx(log["out_forget"][2:].tolist(), abs=1e-10)
        probability = (-log["in_forget_gt_loss"]).exp().mean().item()
        assert probability == pytest.approx(log["out_forget"][0].item(), abs=1e-10)


class TestTruthRatio:
    def test_equal_losses(self) -> None:
        losses = torch.full((3,), 1.7)
        for average in ("geometric", "arithmetic"):
            ratios = truth_ratio(losses, losses[:, None].expand(3, 4), average)
            torch.testing.assert_close(ratios, torch.ones(3).double())
        assert truth_ratio_score(ratios, forgotten=True).tolist() == pytest.approx([1, 1, 1])
        assert truth_ratio_score(ratios, forgotten=False).tolist() == pytest.approx([0, 0, 0])

    def test_by_hand(self) -> None:
        """Wrong answers of probability 1/2 and 1/8, a paraphrase of 1/2: R is 1/2 by the geometric
        mean (1/4) and 5/8 by the arithmetic one (5/16)."""
        wrong = torch.tensor([[math.log(2), math.log(8)]]).double()
        right = torch.tensor([math.log(2)]).double()
        assert truth_ratio(right, wrong).item() == pytest.approx(1 / 2)
        assert truth_ratio(right, wrong, "arithmetic").item() == pytest.approx(5 / 8)
        assert choice_probability(right, wrong).item() == pytest.approx(0.5 / 1.125)

    def test_a_collapsed_model_still_has_a_ratio(self) -> None:
        """Fails where probabilities are formed: e to the minus 800 is 0, and 0/0 is nothing."""
        right, wrong = torch.tensor([800.0]), torch.tensor([[801.0, 801.0]])
        assert truth_ratio(right, wrong).item() == pytest.approx(math.exp(-1))
        assert truth_ratio(right, wrong, "arithmetic").item() == pytest.approx(math.exp(-1))
        assert choice_probability(right, wrong).item() == pytest.approx(1 / (1 + 2 * math.exp(-1)))

    def test_another_average(self) -> None:
        with pytest.raises(ValueError, match="'geometric' or 'arithmetic', not 'median'"):
            truth_ratio(torch.ones(1), torch.ones(1, 2), "median")

    @pytest.mark.parametrize("case", ["ou_tofu_1", "ou_tofu_2"])
    def test_open_unlearning(self, golden: Golden, case: str) -> None:
        """Its 1e-10 in the denominators is below the tolerance for losses like these."""
        g = golden(f"_llm_metrics/{case}")
        right, wrong = g["in_correct_loss"], g["in_wrong_loss"]
        ratios = truth_ratio(right, wrong)
        torch.testing.assert_close(ratios, g["out_tr"], rtol=1e-8, atol=1e-9)
        closer = truth_ratio_score(ratios, forgotten=True).mean()
        better = truth_ratio_score(ratios, forgotten=False).mean()
        choice = choice_probability(right, wrong)
        torch.testing.assert_close(closer, g["out_tr_closer_to_1"], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(better, g["out_tr_true_better"], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(choice, g["out_prob_options"], rtol=1e-8, atol=1e-9)
        reference = truth_ratio(g["in_ref_correct_loss"], g["in_ref_wrong_loss"])
        p = forget_quality(ratios, reference).p_value
        assert p == pytest.approx(g["out_ks_pvalue"].item(), rel=1e-6)


class TestModelUtility:
    def test_equal_parts_and_a_zero(self) -> None:
        assert model_utility({str(i): 0.3 for i in range(9)}) == pytest.approx(0.3)
        assert model_utility({"a": 0.5, "b": 0.0}) == 0

    def test_unequal_parts(self) -> None:
        assert model_utility({"a": 1.0, "b": 0.5}) == pytest.approx(2 / 3)
        values = [0.2, 0.9, 0.4]
        assert model_utility(dict(zip("abc", values, strict=True))) == pytest.approx(hmean(values))

    @pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
    def test_no_share(self, bad: float) -> None:
        with pytest.raises(ValueError, match=r"b is .*, not in \[0, 1\]"):
            model_utility({"a": 0.5, "b": bad})

    def test_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="nothing"):
            model_utility({})


class TestForgetQuality:
    def test_published_logs_question_by_question(self, golden: Golden) -> None:
        """The questions that both logs hold: without that, other questions are compared."""
        g = golden("_llm_metrics/tofu_fq_phi")
        models = [g[f"in_R_phi_{n}"] for n in ("full", "retain90", "retain95", "retain99")]
        compared = 0
        for i, (a, b) in enumerate(g["in_pairs"].tolist()):
            (first, second), n = g["in_item_start"][i].tolist(), int(g["in_item_count"][i])
            if n == 0:
                continue
            one, two = models[a][first : first + n], models[b][second : second + n]
            p, statistic = forget_quality(one, two)
            assert p == pytest.approx(g["out_pvalue_aligned"][i].item(), rel=1e-6)
            assert statistic == pytest.approx(g["out_statistic_aligned"][i].item(), abs=1e-10)
            assert forget_quality(1 / one, 1 / two).p_value == pytest.approx(p, rel=1e-6)
            compared += 1
        assert compared == 5

    @pytest.mark.parametrize(
        ("n", "p"), [(10, 1.1e-5), (20, 1.5e-11), (40, 1.9e-23), (100, 2.2e-59), (200, 1.94e-119)]
    )
    def test_the_smallest_there_is(self, n: int, p: float) -> None:
        apart = forget_quality(torch.linspace(0, 1, n), torch.linspace(2, 3, n))
        assert apart.statistic == 1
        assert apart.p_value == pytest.approx(p, rel=0.05)
        same = forget_quality(torch.linspace(0, 1, n), torch.linspace(0, 1, n))
        assert same == (1, 0)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="the same questions"):
            forget_quality(torch.ones(3), torch.ones(4))
        with pytest.raises(ValueError, match="the same questions"):
            forget_quality(torch.ones(0), torch.ones(0))
        with pytest.raises(ValueError, match="not a number"):
            forget_quality(torch.tensor([1.0, math.nan]), torch.ones(2))


class TestAnswerLosses:
    @pytest.mark.parametrize("case", ["tofu_losses_1", "tofu_losses_2"])
    def test_recorded(self, golden: Golden, case: str) -> None:
        g = golden(f"_llm_metrics/{case}")
        right = answer_losses(g["in_logits_para"], g["in_labels_para"])
        shape = g["in_labels_wrong"].shape
        wrong = answer_losses(
            g["in_logits_wrong"].flatten(0, 1), g["in_labels_wrong"].flatten(0, 1)
        )
        for found, name in ((right, "para"), (wrong, "wrong")):
            size = (-1,) if name == "para" else shape[:2]
            torch.testing.assert_close(found.total.view(size), g[f"out_loss_{name}"])
            torch.testing.assert_close(found.mean.view(size), g[f"out_avg_loss_{name}"])
            assert torch.equal(found.tokens.view(size), g[f"out_ntok_{name}"])
        ratios = truth_ratio(right.mean, wrong.mean.view(shape[:2]))
        torch.testing.assert_close(ratios, g["out_truth_ratio"])

    def test_prompt_and_padding_do_not_count(self) -> None:
        """The same value with padding left or right of the text, and other logits under it."""
        torch.manual_seed(0)
        logits = torch.randn(1, 6, 7)
        labels = torch.tensor([[-100, -100, 3, 1, 2, 6]])
        expected = answer_losses(logits, labels)
        by_hand = -logits[0, 1:5].double().log_softmax(-1)[range(4), labels[0, 2:]]
        assert expected.total.item() == pytest.approx(by_hand.sum().item())
        assert expected.tokens.tolist() == [4]
        pad, ignored = torch.randn(1, 3, 7), torch.full((1, 3), -100)
        for order in (1, -1):
            longer = torch.cat([logits, pad][::order], dim=1)
            wider = torch.cat([labels, ignored][::order], dim=1)
            found = answer_losses(longer, wider)
            assert found.mean.item() == pytest.approx(expected.mean.item())

    def test_no_answer(self) -> None:
        labels = torch.tensor([[-100, 1], [-100, -100]])
        with pytest.raises(ValueError, match="sequence 1 has no answer"):
            answer_losses(torch.zeros(2, 2, 3), labels)

    def test_nothing_predicts_the_first_token(self) -> None:
        with pytest.raises(ValueError, match="first token"):
            answer_losses(torch.zeros(1, 2, 3), torch.tensor([[2, 1]]))


def test_deviation_score() -> None:
    assert deviation_score(0.0, 1.0) == 0
    assert deviation_score(0.6, 0.2) == pytest.approx(100)
    assert deviation_score(0.3, 1.0) == pytest.approx(30)
