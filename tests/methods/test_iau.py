from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from recorded import network, part
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from unlearn_core.data import Classification, ForgetSplit, WithheldDataError
from unlearn_core.methods import IAU, check_method
from unlearn_core.methods.iau import GradientRestriction, leave_one_out_shifts, mean_gradient
from unlearn_core.models import LeNet, Recipe, TrainConfig, TrainingError, train
from unlearn_core.registry import describe

Golden = Callable[[str], dict[str, Tensor]]


def recorded_network(case: dict[str, Tensor]) -> nn.Module:
    return network(part(case, "theta0."), part(case, "buf0."))


def lenet(case: dict[str, Tensor]) -> nn.Module:
    model = LeNet(10).build(0).double()
    for p, w in zip(model.parameters(), part(case, "w8.").values(), strict=True):
        p.data.copy_(w.double() / 256)
    return model


def split_of(
    forget: tuple[Tensor, Tensor], retain: tuple[Tensor, Tensor], classes: int
) -> ForgetSplit:
    sets = (TensorDataset(*s) for s in (forget, retain))
    return ForgetSplit("recorded", Classification(classes), *sets, test=None)


def recorded_split(case: dict[str, Tensor]) -> ForgetSplit:
    (classes,) = (len(t) for k, t in case.items() if re.fullmatch(r"theta0\.fc2?\.bias", k))
    return split_of((case["X_f"], case["y_f"]), (case["X_r"], case["y_r"]), classes)


def lenet_split(case: dict[str, Tensor]) -> ForgetSplit:
    sides = ((case[f"X8_{s}"].double() / 64, case[f"y_{s}"]) for s in "fr")
    return split_of(*sides, 10)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters()}


def flat(tensors: object) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            *(found[name], expected[name]), rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


class TestRecordedSteps:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("step_mlp", {}),
            ("step_mlp", {"batch_size": 7}),
            ("step_mlp", {"mode": "train"}),
            ("step_convbn_eval", {}),
            ("step_convbn_eval", {"batch_size": 5}),
            ("step_convbn_train", {"mode": "train", "batch_size": 5}),
        ],
    )
    def test_the_authors_step(self, golden: Golden, name: str, options: dict) -> None:
        """Fails with a sum for a mean, another sign, batches that count alike whatever their size,
        an epsilon elsewhere, or BatchNorm in the other mode."""
        case = golden(f"iau/{name}")
        model = recorded_network(case).train(options.get("mode") != "train")
        unlearned = IAU(lr=case["hp.lr"].item(), **options)(model, recorded_split(case))
        for key, expected in part(case, "theta1.").items():
            found, clear = unlearned.get_parameter(key).detach(), case[f"g.{key}"].abs() > 1e-6
            torch.testing.assert_close(found[clear], expected[clear], rtol=0, atol=1e-10)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
        assert_near(dict(unlearned.named_buffers()), part(case, "buf1."), 1e-10)

    def test_the_case_in_training_mode_is_another_one(self, golden: Golden) -> None:
        """Fails if the two recorded cases could not tell the modes apart."""
        case = golden("iau/step_convbn_train")
        lr, expected = case["hp.lr"].item(), part(case, "theta1.")
        found = IAU(lr=lr)(recorded_network(case), recorded_split(case))
        apart = flat(weights_of(found).values()) - flat(expected[n] for n in weights_of(found))
        assert apart.abs().max() > lr
        assert_near(dict(found.named_buffers()), part(case, "buf0."), 0)

    def test_a_plain_gradient_step(self, golden: Golden) -> None:
        case = golden("iau/step_mlp")
        method = IAU(lr=case["hp.lr"].item(), update="sgd")
        found = method(recorded_network(case), recorded_split(case))
        assert_near(weights_of(found), part(case, "theta1_sgd."), 1e-12)

    @pytest.mark.parametrize(
        ("options", "side", "sign"),
        [({"correction": False}, "f", 1), ({"approximation": False}, "r", -1)],
    )
    def test_each_part_alone(self, golden: Golden, options: dict, side: str, sign: int) -> None:
        """Fails if the forget set is descended, or a part that is off still contributes."""
        case = golden("iau/step_mlp")
        found = IAU(lr=0.5, update="sgd", **options)(recorded_network(case), recorded_split(case))
        expected = {
            k: v + sign * 0.5 * case[f"grad_{side}.{k}"] for k, v in part(case, "theta0.").items()
        }
        assert_near(weights_of(found), expected, 1e-12)

    def test_the_original_network(self, golden: Golden) -> None:
        """Fails if LeNet flattens, pools or orders its weights otherwise."""
        case = golden("iau/cnn_step")
        model, split = lenet(case), lenet_split(case)
        for side, data in (("r", split.retain), ("f", split.forget)):
            torch.testing.assert_close(
                model(data.dataset.tensors[0]).detach(), case[f"logits_{side}"], rtol=0, atol=1e-9
            )
        before = flat(model.parameters())
        assert len(before) == 62_006
        delta = flat(IAU(lr=case["hp.lr"].item())(model, split).parameters()) - before
        torch.testing.assert_close(
            delta[case["sample_index"]], case["sample_delta"], rtol=0, atol=1e-9
        )
        assert delta.norm().item() == pytest.approx(case["delta_norm"].item(), abs=1e-9)
        assert (delta == 0).sum() == case["n_zero_gradient"]
        g = [
            r - f
            for r, f in zip(
                *(
                    mean_gradient(model, d, split.task.loss, 3)
                    for d in (split.retain, split.forget)
                ),
                strict=True,
            )
        ]
        torch.testing.assert_close(
            flat(g)[case["sample_index"]], case["sample_g"], rtol=0, atol=1e-9
        )
        norms = torch.stack([t.norm() for t in g])
        torch.testing.assert_close(norms, case["g_tensor_norms"], rtol=0, atol=1e-9)


class CountedRows(TensorDataset):
    """Says which rows were read, in their order."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.read: list[int] = []

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        self.read.append(i)
        return super().__getitem__(i)


class TestIAU:
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"lr": 0.0}, "lr must be positive, not 0.0"),
            ({"lr": float("nan")}, "lr must be a finite number, not nan"),
            ({"update": "adamw"}, "update must be 'adam' or 'sgd' or 'random', not 'adamw'"),
            ({"mode": "half"}, "mode must be 'eval' or 'train', not 'half'"),
            ({"approximation": False, "correction": False}, "there is no step to take"),
        ],
    )
    def test_hyperparameters_that_make_no_sense(self, bad: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            IAU(**bad)

    def test_the_defaults_are_the_code_s(self) -> None:
        assert describe(IAU()) == {
            **{"is": "IAU", "version": 1, "lr": 1e-3, "update": "adam", "mode": "eval"},
            **{"approximation": True, "correction": True, "batch_size": 256},
        }

    def test_the_control_steps_as_far_in_random_directions(
        self, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        """Fails where it looks at the data, where its step has another size than Adam's, or its
        signs follow each other."""
        control = IAU(lr=1e-2, update="random")
        hidden = tiny_split.only(frozenset(), "this test")
        before = flat(model.parameters())
        moves = [flat(control(model, hidden, seed).parameters()) - before for seed in (0, 1)]
        for move in moves:
            torch.testing.assert_close(
                move.abs(), torch.full_like(move, 1e-2), rtol=1e-4, atol=1e-6
            )
            assert abs(move.sign().mean().item()) < 0.1
        assert abs((moves[0].sign() * moves[1].sign()).mean().item()) < 0.1
        adam = flat(IAU(lr=1e-2)(model, tiny_split).parameters()) - before
        assert adam.abs().max().item() == pytest.approx(1e-2, rel=1e-3)
        assert (control.draws, IAU().draws) == (True, False)
        check_method(control)

    @pytest.mark.parametrize(
        ("part", "data"), [("correction", "retain"), ("approximation", "forget")]
    )
    def test_a_part_that_is_off_touches_no_data(
        self, model: nn.Module, tiny_split: ForgetSplit, part: str, data: str
    ) -> None:
        """Fails if the retain set is so much as measured without correction."""
        hidden = tiny_split.only(frozenset({"forget", "retain"} - {data}), "this test")
        unlearned = IAU(**{part: False})(model, hidden)
        assert flat(unlearned.parameters()).ne(flat(model.parameters())).any()
        with pytest.raises(WithheldDataError, match=f"does not declare '{data}'"):
            IAU()(model, hidden)

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_every_image_is_read_once(self, golden: Golden, mode: str) -> None:
        case = golden("iau/step_convbn_eval")
        split = recorded_split(case)
        counted = [CountedRows(*s.dataset.tensors) for s in (split.forget, split.retain)]
        split = replace(split, forget=counted[0], retain=counted[1])
        for rows in counted:
            rows.read.clear()  # for the labels
        IAU(mode=mode, batch_size=5)(recorded_network(case), split)
        assert [c.read for c in counted] == [[*range(6)], [*range(24)]]

    @pytest.mark.parametrize("update", ["adam", "sgd"])
    def test_what_has_no_gradient_stays(
        self, model: nn.Module, tiny_split: ForgetSplit, update: str
    ) -> None:
        model.unused = nn.Parameter(torch.ones(3))
        model.head.bias.requires_grad_(False)
        unlearned = IAU(update=update)(model, tiny_split)
        assert unlearned.unused.tolist() == [1, 1, 1]
        assert torch.equal(unlearned.head.bias, model.head.bias)
        assert not torch.equal(unlearned.head.weight, model.head.weight)

    def test_the_forget_loss_rises_and_the_retain_loss_does_not(
        self, recipe: Recipe, tiny_split: ForgetSplit
    ) -> None:
        loss = tiny_split.task.loss
        everyone = tiny_split.retain + tiny_split.forget
        original = recipe.fit(everyone, 0, device=torch.device("cpu"))

        def losses(model: nn.Module) -> list[float]:
            sides = (tiny_split.forget, tiny_split.retain)
            return [loss(model, s.batch_of(range(len(s)))).item() for s in sides]

        forget, retain = losses(original)
        corrected = losses(IAU(lr=1e-2, update="sgd")(original, tiny_split))
        alone = losses(IAU(lr=1e-2, update="sgd", correction=False)(original, tiny_split))
        assert corrected[0] > forget + 1e-3
        assert corrected[1] < retain
        assert alone[0] > forget + 1e-3
        assert alone[1] > corrected[1]

    def test_a_loss_that_is_not_finite_names_the_batch(self, golden: Golden) -> None:
        case = golden("iau/step_mlp")
        case["X_r"][9] = float("nan")
        with pytest.raises(TrainingError, match="the loss is nan at batch 2"):
            IAU(batch_size=8)(recorded_network(case), recorded_split(case))


def restricted(model: nn.Module, task: Classification, batch: tuple[Tensor, Tensor]) -> tuple:
    """The loss, and its gradient by parameter name."""
    value = task.loss(model, batch)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(value, list(named.values()), materialize_grads=True)
    return value, dict(zip(named, gradients, strict=True))


class TestGradientRestriction:
    @pytest.mark.parametrize("name", ["gr_loss_mlp", "gr_loss_mlp_large_alpha"])
    def test_recorded_losses_and_their_derivatives(self, golden: Golden, name: str) -> None:
        """Fails if the penalty is a constant to the derivative, a global norm, or squared."""
        case = golden(f"iau/{name}")
        alpha, model = case["hp.alpha"].item(), network(part(case, "theta."))
        batch = case["X"], case["y"]
        classes = len(case["theta.fc2.bias"])
        value, gradients = restricted(model, GradientRestriction(classes, alpha), batch)
        torch.testing.assert_close(value.detach(), case["loss_code"], rtol=0, atol=1e-12)
        assert_near(gradients, part(case, "grad_code."), 1e-10)
        found = GradientRestriction(classes, alpha, "global").loss(model, batch).detach()
        expected = case["ce"] + alpha * case["penalty_global"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def test_the_derivative_of_the_global_norm(self, golden: Golden) -> None:
        """Against finite differences; the recorded derivative is that of the other norm."""
        case = golden("iau/gr_loss_mlp_large_alpha")
        model, batch = network(part(case, "theta.")), (case["X"], case["y"])
        task = GradientRestriction(3, 0.7, "global")
        _, gradients = restricted(model, task, batch)
        w, h = model.fc1.weight.data, 1e-5
        for i in ((0, 0), (2, 3), (4, 1)):
            values = []
            for step in (h, -2 * h):
                w[i] += step
                values.append(task.loss(model, batch).item())
            w[i] += h
            slope = (values[0] - values[1]) / (2 * h)
            assert gradients["fc1.weight"][i].item() == pytest.approx(slope, abs=1e-7)

    def test_the_original_network(self, golden: Golden) -> None:
        case = golden("iau/cnn_step")
        task = GradientRestriction(10, case["hp.alpha"].item())
        value, gradients = restricted(lenet(case), task, lenet_split(case).retain.dataset.tensors)
        assert value.item() == pytest.approx(case["gr_loss_r"].item(), abs=1e-9)
        found = flat(gradients.values())[case["sample_index"]]
        torch.testing.assert_close(found, case["gr_sample_grad"], rtol=0, atol=1e-9)
        norms = torch.stack([g.norm() for g in gradients.values()])
        torch.testing.assert_close(norms, case["gr_grad_tensor_norms"], rtol=0, atol=1e-9)

    def test_recorded_training(self, golden: Golden) -> None:
        """Fails if the loss differs in the training loop: a gradient left over, a new Adam."""
        case = golden("iau/gr_training_mlp")
        model, task = (
            network(part(case, "theta0.")),
            GradientRestriction(3, case["hp.alpha"].item()),
        )
        rows = [case["batch_index"] == i for i in range(3)]
        batches = [(case["X"][r], case["y"][r]) for r in rows]
        losses, epochs = [], []

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            losses.append(task.loss(model, batch))
            return losses[-1]

        def after_step(model: nn.Module, step: int) -> None:
            if step % 3 == 0:
                right = model(case["X"]).argmax(1) == case["y"]
                state = {k: v.clone() for k, v in weights_of(model).items()}
                epochs.append((state, right.double().mean()))

        config = TrainConfig(3, case["hp.lr"].item(), 8, optimizer="adam")
        train(model, lambda _: batches, loss, config, after_step=after_step)
        for epoch, (state, accuracy) in enumerate(epochs):
            assert_near(state, part(case, f"theta_epoch{epoch + 1}."), 1e-8)
            assert accuracy.item() == pytest.approx(case["accuracy"][epoch].item())
        first = torch.stack(losses[::3]).detach()
        torch.testing.assert_close(first, case["loss_first_batch"], rtol=0, atol=1e-8)

    @pytest.mark.parametrize("norm", ["per_tensor", "global"])
    @pytest.mark.parametrize("dead", ["first layer", "all"])
    def test_a_gradient_of_exactly_0_gives_no_nan(self, norm: str, dead: str) -> None:
        """Fails with a norm written as the square root of a sum."""
        fc1, fc2 = nn.Linear(3, 4), nn.Linear(4, 2)
        model = nn.Sequential(OrderedDict(fc1=fc1, relu=nn.ReLU(), fc2=fc2)).double()
        with torch.no_grad():
            fc1.bias.fill_(-100)
            fc2.bias.copy_(torch.tensor([2000.0, 0.0] if dead == "all" else [0.3, 0.0]))
        batch = torch.ones(5, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
        _, plain = restricted(model, Classification(2), batch)
        value, found = restricted(model, GradientRestriction(2, 0.5, norm), batch)
        assert not plain["fc1.weight"].any()
        assert plain["fc2.bias"].any() == (dead != "all")
        assert value.isfinite()
        assert all(g.isfinite().all() for g in found.values())
        assert not found["fc1.weight"].any()
        assert found["fc2.bias"].any() == (dead != "all")

    def test_parameters_without_a_part_in_the_loss(self, golden: Golden) -> None:
        """Fails if an unused parameter raises, as in the authors' code, or a frozen one counts."""
        case = golden("iau/gr_loss_mlp")
        model, task = network(part(case, "theta.")), GradientRestriction(4)
        model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        batch = case["X"], case["y"]
        assert task.loss(model, batch).item() == pytest.approx(case["loss_code"].item(), abs=1e-12)
        model.fc1.weight.requires_grad_(False)
        expected = case["ce"] + 0.005 * case["tensor_norms"][1:].sum()
        assert task.loss(model, batch).item() == pytest.approx(expected.item(), abs=1e-12)

    def test_a_recipe_trains_with_it(self, recipe: Recipe, tiny_split: ForgetSplit) -> None:
        """Fails if the recipe's task is not what trains, or alpha = 0 is not the cross-entropy."""

        def fit(task: Classification) -> Tensor:
            own = replace(recipe, task=task)
            return flat(own.fit(tiny_split.retain, 0, device=torch.device("cpu")).parameters())

        plain = fit(recipe.task)
        assert torch.equal(fit(GradientRestriction(10, 0.0)), plain)
        assert (fit(GradientRestriction(10)) - plain).abs().max() > 1e-4

    def test_it_is_plain_data(self) -> None:
        """Fails if a cached model of the plain loss could be taken for one of this."""
        task = GradientRestriction(10)
        assert describe(task) == {
            **{"is": "GradientRestriction", "classes": 10, "alpha": 0.005, "norm": "per_tensor"}
        }
        assert pickle.loads(pickle.dumps(task)) == task
        assert hash(task) != hash(GradientRestriction(10, norm="global"))

    @pytest.mark.parametrize("bad", [{"alpha": -0.1}, {"alpha": float("nan")}, {"norm": "sum"}])
    def test_hyperparameters_that_make_no_sense(self, bad: dict) -> None:
        with pytest.raises(
            ValueError,
            match=r"alpha must be (at least 0|a finite number)|norm must be .*, not 'sum'",
        ):
            GradientRestriction(10, **bad)


def points(n: int, d: int = 10) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    truth = torch.randn(d, generator=g, dtype=torch.float64)
    return x, (torch.rand(n, generator=g) < torch.sigmoid(x @ truth)).long()


def minimum(objective: Callable[[Tensor], Tensor], d: int) -> Tensor:
    theta = torch.zeros(d, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        *([theta], 1, 500), tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = objective(theta)
        value.backward()
        return value

    solver.step(closure)
    found = theta.detach()
    for _ in range(3):  # how near a line search comes to the minimum differs by machine
        gradient = torch.autograd.functional.jacobian(objective, found)
        hessian = torch.autograd.functional.hessian(objective, found)
        found = found - torch.linalg.solve(hessian, gradient)
    return found


class TestLeaveOneOut:
    def test_all_three_shifts_agree(self) -> None:
        """Claim 1 of the chapter: fails with a wrong sign, 1/n or Hessian."""
        x, y = points(400)
        found = leave_one_out_shifts(x, y, torch.arange(60))
        assert found.keys() == {"influence", "opposite_point", "gradient", "sign"}
        for errors in (found["influence"], found["opposite_point"]):
            assert errors.cosine.shape == errors.relative_error.shape == (60,)
            assert errors.cosine.min() > 0.999
            assert errors.relative_error.median() < 0.03

    def test_the_error_falls_as_one_over_n(self) -> None:
        """Fails if something other than the second order is left over, as with n - 1 for n."""
        few, many = (leave_one_out_shifts(*points(n, 4), torch.arange(50)) for n in (250, 4000))
        for name in ("influence", "opposite_point"):
            ratio = few[name].relative_error.median() / many[name].relative_error.median()
            assert 8 < ratio < 32, name

    def test_against_refitting_by_another_solver(self) -> None:
        n, d, penalty, i = 60, 3, 0.05, 7
        x, y = points(n, d)

        def losses(theta: Tensor) -> Tensor:
            return nn.functional.softplus(x @ theta) - y * (x @ theta)

        def total(theta: Tensor) -> Tensor:
            return losses(theta).sum() / n + penalty / 2 * theta.square().sum()

        theta = minimum(total, d)
        p = torch.sigmoid(x @ theta)
        gradient = (p[i] - y[i]) * x[i]
        exact = minimum(lambda t: total(t) - losses(t)[i] / n, d) - theta
        opposite = minimum(lambda t: total(t) - gradient @ t / n, d) - theta
        hessian = torch.autograd.functional.hessian(total, theta)
        influence = torch.linalg.solve(hessian, gradient) / n
        found = leave_one_out_shifts(x, y, torch.tensor([3, i]), penalty)
        directions = {"gradient": gradient, "sign": gradient.sign()}
        for name, shift in {
            "influence": influence,
            "opposite_point": opposite,
            **directions,
        }.items():
            cosine = shift @ exact / shift.norm() / exact.norm()
            error = (shift - exact).norm() / exact.norm()
            assert found[name].cosine[1].item() == pytest.approx(cosine.item(), abs=1e-9)
            assert found[name].relative_error[1].item() == pytest.approx(error.item(), abs=1e-6)
        assert found["influence"].relative_error[1] > 1e-3

    def test_what_it_refuses(self) -> None:
        x, y = points(20)
        with pytest.raises(ValueError, match="the labels must be 0 or 1"):
            leave_one_out_shifts(x, 2 * y, torch.tensor([0]))
        with pytest.raises(ValueError, match="penalty must be positive, not 0"):
            leave_one_out_shifts(x, y, torch.tensor([0]), 0)

    def test_no_convergence_is_an_error(self) -> None:
        """Fails if the last iterate of a diverging Newton method is taken for the minimum."""
        g = torch.Generator().manual_seed(0)
        x, scale = (torch.randn(12, k, generator=g, dtype=torch.float64) for k in (3, 1))
        y = torch.arange(12) % 2
        with pytest.raises(TrainingError, match="Newton's method does not converge"):
            leave_one_out_shifts(x * 100**scale, y, torch.tensor([1]), 1e-6)
