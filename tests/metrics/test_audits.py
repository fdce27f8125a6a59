"""Audits by many models, beside numpy, scipy and closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy, norm

from unlearn_core.metrics import klom, margins, u_lira
from unlearn_core.models import NotFiniteError
from unlearn_core.seeding import generator


def drawn(models, examples, mean=0.0, deviation=1.0, seed=0):
    noise = torch.randn(models, examples, generator=generator(seed, "margins"), dtype=torch.float64)
    return mean + deviation * noise


def test_a_margin_is_the_logit_of_the_true_class():
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 1.0]])
    p = logits.double().softmax(dim=1)[[0, 1], [0, 2]]
    found = margins(logits, torch.tensor([0, 2]))
    assert torch.allclose(found, (p / (1 - p)).log(), atol=1e-12)


def test_a_margin_of_a_sure_answer_is_finite():
    found = margins(torch.tensor([[200.0, 0.0], [0.0, 200.0]]), torch.tensor([0, 0]))
    assert found.tolist() == [200.0, -200.0]


def test_klom_is_the_divergence_of_shared_histograms():
    unlearned, retrained = drawn(64, 5, mean=1.0), drawn(48, 5, deviation=2.0, seed=1)
    found = klom(unlearned, retrained)
    for i in range(5):
        both = np.concatenate([unlearned[:, i], retrained[:, i]])
        edges = np.linspace(both.min(), both.max(), 21)
        q, p = (np.histogram(x[:, i], edges)[0] / len(x) + 1e-5 for x in (unlearned, retrained))
        assert found[i].item() == pytest.approx(entropy(p, q), rel=1e-9)


def test_klom_of_one_pool_with_itself_is_nothing():
    pool = drawn(20, 7)
    assert klom(pool, pool).abs().max().item() == 0
    assert klom(torch.ones(4, 2), torch.ones(5, 2)).tolist() == [0, 0]


def test_klom_counts_what_lies_beyond_its_limit_as_the_limit():
    far, further = torch.full((10, 1), 150.0), torch.full((10, 1), 900.0)
    assert klom(far, further).item() == 0
    assert klom(-far, further).item() == pytest.approx(np.log(1 / 1e-5), rel=1e-2)


def test_u_lira_fits_a_normal_distribution_to_all_other_models():
    unlearned, retrained = drawn(12, 3, mean=1.0), drawn(15, 3, deviation=1.5, seed=1)
    found = u_lira(unlearned, retrained)
    for i in range(3):
        sides = [x[:, i].numpy() for x in (unlearned, retrained)]
        right = [[], []]
        for kind in range(2):
            for k, x in enumerate(sides[kind]):
                known = [np.delete(s, k % len(s)) for s in sides]
                likely = [norm.pdf(x, s.mean(), s.std(ddof=1)) for s in known]
                right[kind].append(np.argmax(likely) == kind)
        assert found[i].item() == pytest.approx(50 * (np.mean(right[0]) + np.mean(right[1])))


def test_u_lira_of_one_distribution_is_chance_and_of_two_is_bayes():
    same = u_lira(drawn(200, 50), drawn(200, 50, seed=1)).mean().item()
    few = u_lira(drawn(3, 20_000), drawn(3, 20_000, seed=1)).mean().item()
    assert few == pytest.approx(50, abs=1)
    apart = u_lira(drawn(200, 50, mean=2.0), drawn(200, 50, seed=1)).mean().item()
    assert same == pytest.approx(50, abs=1.5)
    assert apart == pytest.approx(100 * norm.cdf(1.0), abs=1.5)


def test_u_lira_tells_nothing_by_models_that_are_all_alike():
    assert u_lira(torch.ones(5, 2), torch.ones(6, 2)).tolist() == [50, 50]


@pytest.mark.parametrize("audit", [klom, u_lira])
def test_pools_that_do_not_fit_are_refused(audit):
    with pytest.raises(ValueError, match=r"retrained models: \(models, examples\).*not \(1, 4\)"):
        audit(drawn(8, 4), drawn(1, 4))
    with pytest.raises(ValueError, match="4 examples under unlearned and 5 under retrained"):
        audit(drawn(8, 4), drawn(8, 5))
    with pytest.raises(NotFiniteError, match="margins of unlearned models"):
        audit(torch.full((8, 4), torch.nan), drawn(8, 4))
