from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from unlearn_core.data import Classification, ForgetSplit, LabelledSet, batches
from unlearn_core.methods import FisherForgetting, InfluenceCG, check_method
from unlearn_core.methods.baselines.fisher_forgetting import expected_fisher
from unlearn_core.methods.baselines.influence_cg import conjugate_gradients, hessian_product
from unlearn_core.models import TrainingError
from unlearn_core.registry import describe


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class TestFisherForgetting:
    def test_the_noise_of_every_weight(self, model: nn.Module, tiny_split: ForgetSplit) -> None:
        """Fails with another root, the Fisher of batches or of the forget set, or no floor."""
        noise, floor = 1e-9, 1e-5
        fisher = torch.zeros(len(flat(model)))
        for i in range(len(tiny_split.retain)):
            loss = tiny_split.task.loss(model, tiny_split.retain.batch_of([i]))
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            fisher += torch.cat([g.flatten() for g in gradients]).square()
        fisher /= len(tiny_split.retain)
        assert 0.1 < (fisher < floor).float().mean() < 0.9
        std = (noise / fisher.clamp(min=floor)) ** 0.25
        draws = []
        for seed in range(10):
            unlearned = FisherForgetting(noise, floor, 7)(model, tiny_split, seed)
            draws.append((flat(unlearned) - flat(model)) / std)
        z = torch.stack(draws)
        assert abs(z.mean().item()) < 0.02
        assert z.std().item() == pytest.approx(1, abs=0.02)
        for side in (fisher < floor, fisher > 1e-4):
            assert z[:, side].std().item() == pytest.approx(1, abs=0.03)
        assert z.std(dim=0).min() > 0.1
        neighbours = (z[:, 1:] * z[:, :-1]).mean().item()
        assert abs(neighbours) < 0.02

    def test_the_fourth_root_of_the_noise_scales_it(
        self, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        weak, strong = (
            flat(FisherForgetting(n)(model.double(), as_double(tiny_split))) - flat(model)
            for n in (1e-10, 16e-10)
        )
        torch.testing.assert_close(strong, 2 * weak)

    def test_a_weight_that_nothing_depends_on_gets_the_most_noise(
        self, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails if F = 0 gives an infinite weight or none at all; a frozen weight has no noise."""
        model.unused = nn.Parameter(torch.zeros(4000))
        model.head.bias.requires_grad_(False)
        unlearned = FisherForgetting(16e-10, 1e-10)(model, tiny_split)
        assert unlearned.unused.std().item() == pytest.approx(2, rel=0.05)
        assert torch.equal(unlearned.head.bias, model.head.bias)

    def test_the_fisher_of_expected_labels(self, model: nn.Module, tiny_split: ForgetSplit) -> None:
        """Golatkar's code: every image and class apart, weighted by its probability. Fails with the
        true labels, with equal weights, or with a mean over the classes."""
        data = tiny_split.retain
        expected = torch.zeros(len(flat(model)))
        for i in range(len(data)):
            x, _ = data.batch_of([i])
            for label, p in enumerate(model(x)[0].softmax(dim=0).tolist()):
                loss = nn.functional.cross_entropy(model(x), torch.tensor([label]))
                gradients = torch.autograd.grad(loss, list(model.parameters()))
                expected += p * torch.cat([g.flatten() for g in gradients]).square()
        expected /= len(data)
        loader = batches(data, 7)
        found = expected_fisher(model, loader, tiny_split.task)
        torch.testing.assert_close(torch.cat([f.flatten() for f in found.values()]), expected)

    def test_expected_labels_are_what_it_says(
        self, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails where the option is not read: noise has another size, and labels do not matter."""
        given, expected = (FisherForgetting(labels=k) for k in ("given", "expected"))
        assert not torch.equal(flat(given(model, tiny_split)), flat(expected(model, tiny_split)))
        assert describe(given) == describe(FisherForgetting())
        assert describe(expected)["labels"] == "expected"
        wrong = tiny_split.retain.with_labels((tiny_split.retain.labels + 1) % 10)
        other = replace(tiny_split, retain=wrong)
        assert torch.equal(flat(expected(model, tiny_split)), flat(expected(model, other)))
        check_method(expected)

    @pytest.mark.parametrize("bad", [{"noise": 0.0}, {"floor": 0.0}, {"noise": float("nan")}])
    def test_hyperparameters_that_make_no_sense(self, bad: dict) -> None:
        with pytest.raises(ValueError, match=r"must be (positive|a finite number), not"):
            FisherForgetting(**bad)

    def test_unknown_labels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="labels must be 'given' or 'expected', not 'true'"):
            FisherForgetting(labels="true")


def as_double(split: ForgetSplit) -> ForgetSplit:
    sets = []
    for data in (split.forget, split.retain):
        x, y = data.batch_of(range(len(data)))
        sets.append(TensorDataset(x.double(), y))
    return ForgetSplit(split.name, split.task, *sets, test=None)


class Net(nn.Module):
    """Five inputs, three classes, 44 weights in use and two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(2))
        self.fc1 = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.fc2 = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.fc1(x)).tanh())


@pytest.fixture
def net() -> nn.Module:
    g = torch.Generator().manual_seed(0)
    net = Net().double()
    for p in net.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g))
    return net.eval()


@pytest.fixture
def split() -> ForgetSplit:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 5, generator=g).double(), torch.randint(0, 3, (30,), generator=g)
    forget, retain = TensorDataset(x[:4], y[:4]), TensorDataset(x[4:], y[4:])
    return ForgetSplit("random", Classification(3), forget, retain, test=None)


def dense(model: nn.Module, *sets: LabelledSet) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the mean loss over the sets, all weights in one vector."""
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    x, y = (torch.cat(columns) for columns in zip(*(s.dataset.tensors for s in sets), strict=True))

    def loss(vector: Tensor) -> Tensor:
        pieces = vector.split([s.numel() for s in shapes])
        weights = {n: v.view(s) for n, v, s in zip(names, pieces, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    theta = flat(model)
    return torch.func.grad(loss)(theta), torch.autograd.functional.hessian(loss, theta)


class TestInfluenceCG:
    @pytest.mark.parametrize("batch_size", [7, 256])
    def test_against_a_dense_solve(
        self, net: nn.Module, split: ForgetSplit, batch_size: int
    ) -> None:
        """Fails with the Hessian of the retain set, a mean over the forget set, another sign, or
        batches that count alike."""
        g, _ = dense(net, split.forget)
        _, H = dense(net, split.retain, split.forget)
        A = H + torch.eye(len(H))
        assert torch.linalg.eigvalsh(A).min() > 0
        expected = torch.linalg.solve(A, 4 / 30 * g)
        found = InfluenceCG(100, damping=1, batch_size=batch_size)(net.train(), split)
        torch.testing.assert_close(flat(found) - flat(net), expected, rtol=1e-7, atol=1e-11)
        assert found.unused.tolist() == net.unused.tolist()
        assert torch.equal(found.norm.running_mean, net.norm.running_mean)

    def test_a_hessian_product(self, net: nn.Module, split: ForgetSplit) -> None:
        v = torch.randn(46, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        found = hessian_product(net, split.retain, split.task.loss, 7, v)
        torch.testing.assert_close(found, dense(net, split.retain)[1] @ v)

    def test_one_iteration_is_steepest_ascent_with_the_best_step(
        self, net: nn.Module, split: ForgetSplit
    ) -> None:
        """Fails if ``iterations`` are not counted."""
        g, _ = dense(net, split.forget)
        _, H = dense(net, split.retain, split.forget)
        b = 4 / 30 * g
        expected = b * (b @ b) / (b @ H @ b + 0.5 * b @ b)
        found = flat(InfluenceCG(1, damping=0.5)(net, split)) - flat(net)
        torch.testing.assert_close(found, expected)

    def test_it_agrees_with_an_exact_refit(self) -> None:
        """Fails with a wrong sign or 1/n: in logistic regression with a penalty, whose curvature
        is the damping, the step leads to where training without the forget set would."""
        g, penalty = torch.Generator().manual_seed(0), 0.05
        x = torch.randn(200, 4, generator=g).double()
        y = (x[:, 0] + 0.5 * torch.randn(200, generator=g) > 0).long()
        model = nn.Linear(4, 2, bias=False).double()

        def refit(rows: slice) -> nn.Module:
            own = copy.deepcopy(model)
            solver = torch.optim.LBFGS(
                own.parameters(), 1, 500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
            )

            def closure() -> Tensor:
                solver.zero_grad()
                errors = nn.functional.cross_entropy(own(x[rows]), y[rows], reduction="sum")
                value = errors / 200 + penalty / 2 * own.weight.square().sum()
                value.backward()
                return value

            solver.step(closure)
            own.zero_grad()
            return own

        original, retrained = refit(slice(None)), refit(slice(5, None))
        sets = TensorDataset(x[:5], y[:5]), TensorDataset(x[5:], y[5:])
        split = ForgetSplit("five points", Classification(2), *sets, test=None)
        exact = flat(retrained) - flat(original)
        found = flat(InfluenceCG(20, damping=penalty)(original, split)) - flat(original)
        assert nn.functional.cosine_similarity(found, exact, dim=0) > 0.99
        assert (found - exact).norm() < 0.1 * exact.norm()

    def test_a_sample_of_the_training_set_is_drawn_by_the_seed(
        self, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        method = InfluenceCG(3, damping=0.1, samples=20)
        check_method(method, model, tiny_split)
        assert method.draws
        assert not InfluenceCG().draws
        everything = flat(InfluenceCG(3, damping=0.1, samples=80)(model, tiny_split))
        whole = flat(InfluenceCG(3, damping=0.1)(model, tiny_split))
        torch.testing.assert_close(everything, whole, rtol=1e-3, atol=1e-5)
        part = flat(method(model, tiny_split))
        assert (part - whole).norm() > 0.01 * (whole - flat(model)).norm()

    def test_a_negative_curvature_is_an_error_where_there_is_nothing_to_return(
        self, net: nn.Module, split: ForgetSplit
    ) -> None:
        """Fails if the model is returned as it was, as though it had been unlearned."""
        with pytest.raises(TrainingError, match="the curvature along the gradient is -1; a larger"):
            conjugate_gradients(lambda v: -v, torch.tensor([0.6, 0.8]), 5)

    @pytest.mark.parametrize(
        "bad", [{"iterations": 0}, {"samples": 0}, {"damping": -1.0}, {"damping": float("nan")}]
    )
    def test_hyperparameters_that_make_no_sense(self, bad: dict) -> None:
        with pytest.raises(ValueError, match=r"must be (at least [01]|a finite number)"):
            InfluenceCG(**bad)


class TestConjugateGradients:
    def solve(self, A: Tensor, b: Tensor, iterations: int) -> tuple[Tensor, list[Tensor]]:
        directions: list[Tensor] = []

        def product(v: Tensor) -> Tensor:
            directions.append(v)
            return A @ v

        return conjugate_gradients(product, b, iterations), directions

    def system(self) -> tuple[Tensor, Tensor]:
        root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return root @ root.T + 0.1 * torch.eye(6), torch.arange(1.0, 7, dtype=torch.float64)

    def test_as_many_iterations_as_unknowns_solve_it(self) -> None:
        A, b = self.system()
        found, directions = self.solve(A, b, 30)
        torch.testing.assert_close(found, torch.linalg.solve(A, b))
        assert len(directions) < 30
        for i in range(5):
            assert abs(directions[i] @ A @ directions[i + 1]) < 1e-6

    def test_nothing_to_solve(self) -> None:
        """Fails with 0/0."""
        found, directions = self.solve(torch.eye(3), torch.zeros(3), 5)
        assert found.tolist() == [0, 0, 0]
        assert directions == []

    def test_it_stops_at_a_direction_without_positive_curvature(self) -> None:
        """Fails if the step along it is taken: downhill there is no end."""
        A, b = torch.diag(torch.tensor([2.0, -1.0])), torch.tensor([1.0, 0.5])
        found, directions = self.solve(A, b, 10)
        assert len(directions) == 2
        torch.testing.assert_close(found, b * (b @ b) / (b @ A @ b))
