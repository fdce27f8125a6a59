"""The baselines of the language chapters, against numbers recorded from two authors' code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded import LogitTables, batch_of
from torch import Tensor

from unlearn_core.data import Answering
from unlearn_core.methods import (
    DPO,
    LLMU,
    NPO,
    DPORetain,
    GradDiff,
    KLMinimization,
    NPORetain,
    PreferenceOptimization,
    ReferenceFreeDPO,
    SimNPO,
    SimPO,
)
from unlearn_core.methods.baselines.kl_minimization import kept_outputs

Golden = Callable[[str], dict[str, Tensor]]
SIDES = ("forget", "template", "retain")
TASK = Answering()


class Recorded:
    """One recorded case as a model, a reference and a batch that has everything beside it."""

    def __init__(self, g: dict[str, Tensor]) -> None:
        self.g = g
        self.model = LogitTables({s: g[f"in_logits_{s}"] for s in SIDES})
        self.reference = LogitTables({s: g[f"in_ref_logits_{s}"] for s in SIDES})
        self.batch: dict[str, Any] = {s: batch_of(s, g[f"in_labels_{s}"]) for s in SIDES}
        with torch.no_grad():
            for side in ("forget", "template"):
                before = TASK.log_probs(self.reference, self.batch[side])
                self.batch[f"{side}_before"] = before
        self.batch["before"] = self.batch["forget_before"]

    def check(self, loss: Tensor, key: str) -> None:
        torch.testing.assert_close(loss.detach(), self.g[f"out_{key}_loss"], rtol=0, atol=1e-10)
        for side in SIDES:
            if f"out_{key}_grad_{side}" not in self.g:
                continue
            (found,) = torch.autograd.grad(
                loss, self.model.tables[side], retain_graph=True, allow_unused=True
            )
            expected = self.g[f"out_{key}_grad_{side}"]
            found = torch.zeros_like(expected) if found is None else found
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", ["flat_baselines_1", "flat_baselines_2"])
class TestAsInFLATsTrainer:
    @pytest.mark.parametrize(
        ("key", "method"),
        [
            ("gd", GradDiff()),
            ("po", PreferenceOptimization(mean="joint")),
            ("npo", NPO()),
            ("npo_gd", NPORetain()),
            ("dpo_code", ReferenceFreeDPO()),
            ("dpo_withref", DPO()),
        ],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    def test_losses_without_a_reference_model(
        self, golden: Golden, case: str, key: str, method: Any
    ) -> None:
        """Fails where a sum and a mean over tokens are exchanged, a sign, or the factor 2 / beta."""
        r = Recorded(golden(f"flat/{case}"))
        r.check(method.loss(TASK, r.model, r.batch), key)

    @pytest.mark.parametrize(("key", "method"), [("kl", KLMinimization()), ("llmu", LLMU())])
    def test_losses_beside_the_original(
        self, golden: Golden, case: str, key: str, method: Any
    ) -> None:
        """Fails where the divergence runs the other way, or leaves out prompts and padding."""
        r = Recorded(golden(f"flat/{case}"))
        r.check(method.loss(TASK, r.reference, r.model, r.batch), key)

    def test_gradient_ascent(self, golden: Golden, case: str) -> None:
        r = Recorded(golden(f"flat/{case}"))
        r.check(-TASK.loss(r.model, r.batch["forget"]), "ga")

    def test_dpo_beside_the_retain_set(self, golden: Golden, case: str) -> None:
        """The recorded sum is that without a reference; the term that is added is the same."""
        r = Recorded(golden(f"flat/{case}"))
        added = DPORetain().loss(TASK, r.model, r.batch) - DPO().loss(TASK, r.model, r.batch)
        r.check(ReferenceFreeDPO().loss(TASK, r.model, r.batch) + added, "dpo_code_gd")


@pytest.mark.parametrize("case", ["ou_losses_1", "ou_losses_2"])
class TestAsInOpenUnlearning:
    """There a loss is gamma times the forget term and alpha times the retain term."""

    def parts(self, g: dict[str, Tensor]) -> tuple[Recorded, float, float, float]:
        return Recorded(g), *(float(g[f"hp_{k}"]) for k in ("gamma", "alpha", "beta"))

    def test_grad_diff(self, golden: Golden, case: str) -> None:
        r, gamma, alpha, _ = self.parts(golden(f"flat/{case}"))
        method = GradDiff(weight=alpha / gamma)
        r.check(gamma * method.loss(TASK, r.model, r.batch), "GradDiff")

    def test_npo(self, golden: Golden, case: str) -> None:
        r, gamma, alpha, beta = self.parts(golden(f"flat/{case}"))
        gone = NPO(beta=beta).loss(TASK, r.model, r.batch)
        kept = TASK.loss(r.model, r.batch["retain"])
        r.check(gamma * gone + alpha * kept, "NPO")
        near = kept_outputs(TASK, r.reference, r.model, r.batch["retain"])
        r.check(gamma * gone + alpha * near, "NPO_KL")

    def test_dpo(self, golden: Golden, case: str) -> None:
        r, gamma, alpha, beta = self.parts(golden(f"flat/{case}"))
        gone = DPO(beta=beta).loss(TASK, r.model, r.batch)
        r.check(gamma * gone + alpha * TASK.loss(r.model, r.batch["retain"]), "DPO")

    def test_simnpo(self, golden: Golden, case: str) -> None:
        """Fails where delta has the other sign, or tokens are counted without the last one."""
        g = golden(f"flat/{case}")
        r, gamma, alpha, beta = self.parts(g)
        method = SimNPO(beta=beta, delta=float(g["hp_delta"]), gamma=gamma / alpha)
        r.check(alpha * method.loss(TASK, r.model, r.batch), "SimNPO")


def test_simpo_by_hand() -> None:
    """Means over tokens and a margin: log-probabilities of -1 and -3, over one and two tokens."""
    logits = {
        "template": torch.tensor([[[0.0, 0.0], [0.0, 0.0]]]),
        "forget": torch.tensor([[[0.0, 2.0], [0.0, 2.0], [0.0, 0.0]]]),
    }
    model = LogitTables({k: v.double() for k, v in logits.items()})
    batch = {
        "template": batch_of("template", torch.tensor([[-100, 1]])),
        "forget": batch_of("forget", torch.tensor([[-100, 1, 0]])),
    }
    e, f = -0.6931471805599453, (-0.1269280110429726 - 2.1269280110429727) / 2
    expected = 2 / 1.5 * torch.nn.functional.softplus(torch.tensor(0.25 - 1.5 * (e - f)))
    found = SimPO(beta=1.5, gamma=0.25).loss(TASK, model, batch)
    assert found.item() == pytest.approx(expected.item(), abs=1e-7)
