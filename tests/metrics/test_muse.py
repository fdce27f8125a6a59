"""MUSE's metrics, against recorded scores of the authors' code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unlearn_core.metrics.muse import cut_answer, holdout_auc, knowmem_prompt, min_k, privleak
from unlearn_core.metrics.text import rouge_l

GOLDENS = Path(__file__).parents[1] / "data_files" / "goldens" / "_llm_metrics"
Golden = Callable[[str], dict[str, Tensor]]


def texts(g: dict[str, Tensor], part: str) -> list[Tensor]:
    return [row[:n] for row, n in zip(g[f"in_{part}_logp"], g[f"in_{part}_len"], strict=True)]


@pytest.mark.parametrize("case", ["muse_privleak_1", "muse_privleak_2"])
class TestRecorded:
    def test_scores(self, golden: Golden, case: str) -> None:
        g = golden(f"_llm_metrics/{case}")
        compared = 0
        for part in ("forget", "retain", "holdout"):
            for j, k in enumerate(g["in_ratios"].tolist()):
                expected = g[f"out_{part}_mink"][:, j]
                long = ~expected.isnan()
                found = min_k([t for t, fits in zip(texts(g, part), long, strict=True) if fits], k)
                torch.testing.assert_close(found, expected[long], rtol=0, atol=1e-9)
                compared += int(long.sum())
        assert compared > 150

    def test_auc_and_leakage(self, golden: Golden, case: str) -> None:
        """Fails where the two splits are exchanged, or the reference is in the wrong place."""
        g = golden(f"_llm_metrics/{case}")
        forget, holdout = (min_k(texts(g, part)) for part in ("forget", "holdout"))
        auc = holdout_auc(forget, holdout)
        at_40 = 1 + g["in_ratios"].tolist().index(0.4)
        assert auc == pytest.approx(g["out_auc"][0, 2, at_40].item(), abs=1e-9)
        for name in ("", "_news", "_books"):
            reference = g[f"in_auc_ref{name}"].item()
            expected = g[f"out_privleak{name}"].item()
            assert privleak(auc, reference) == pytest.approx(expected, abs=1e-6)


class TestPrivLeak:
    def test_both_ends_and_the_middle(self) -> None:
        trained, unseen = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])
        assert holdout_auc(trained, unseen) == 0
        assert holdout_auc(unseen, trained) == 1
        assert holdout_auc(trained, trained) == 0.5
        assert (privleak(0), privleak(1), privleak(0.5)) == (-100, 100, 0)
        assert privleak(0.4, retrained_auc=0.4) == 0

    def test_no_reference(self) -> None:
        with pytest.raises(ValueError, match="AUC is 0"):
            privleak(0.5, 0)


class TestMinK:
    def test_by_hand(self) -> None:
        """Two of five, whatever their order; and one of three."""
        first = torch.tensor([-1.0, -5.0, -2.0, -3.0, -0.5])
        second = torch.tensor([-4.0, -1.0, -7.0])
        assert min_k([first, second]).tolist() == [4.0, 7.0]

    def test_too_short(self) -> None:
        with pytest.raises(ValueError, match="text 1 has 2 scored tokens"):
            min_k([torch.ones(3), torch.ones(2)])


def test_knowmem() -> None:
    recorded = json.loads((GOLDENS / "muse_rouge_knowmem_1.json").read_text())
    shots = [tuple(pair) for pair in recorded["icl"]]
    for item in recorded["items"]:
        assert knowmem_prompt(shots, item["question"]) == item["prompt"]
        answer = cut_answer(item["raw_output"])
        assert answer == item["processed_output"]
        (found,) = rouge_l([answer], [item["gt"]], of="fmeasure", stem=False).tolist()
        assert found == pytest.approx(item["rougeL"], abs=1e-9)


def test_verbmem() -> None:
    recorded = json.loads((GOLDENS / "muse_rouge_verbmem_2.json").read_text())
    said, true = (
        [item[k] for item in recorded["items"]] for k in ("processed_output", "reference_used")
    )
    found = rouge_l(said, true, of="fmeasure", stem=False)
    assert found.mean().item() == pytest.approx(recorded["report"]["mean_rougeL"], abs=1e-9)
    recall = rouge_l(said, true, of="recall", stem=False)
    assert recall.mean().item() == pytest.approx(recorded["report"]["mean_rougeL_recall"], abs=1e-9)
