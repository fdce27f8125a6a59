from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unlearn_core.data import Classification, ImageData
from unlearn_core.models import sample_gradients


def of_one(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient by autograd, of one example at a time."""
    loss = nn.functional.cross_entropy(model(x[None]), y[None])
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    pairs = zip(named.items(), gradients, strict=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs}


class TestSampleGradients:
    def test_each_is_that_of_one_example(self, model: nn.Module, tiny_data: ImageData) -> None:
        """Fails if examples are mixed, the statistics of BatchNorm left out, a frozen weight
        differentiated, or a gradient divided by the size of the batch."""
        generator = torch.Generator().manual_seed(0)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2, generator=generator)
        model = model.double().eval()
        model.head.bias.requires_grad_(False)
        x, y = tiny_data.train.batch_of([0, 9, 25, 79])
        (found,) = sample_gradients(model, Classification(10).loss, (x.double(), y))
        expected = [of_one(model, *pair) for pair in zip(x.double(), y, strict=True)]
        assert found.keys() == expected[0].keys()
        assert "head.bias" not in found
        for name, gradients in found.items():
            torch.testing.assert_close(
                gradients, torch.stack([e[name] for e in expected]), rtol=1e-9, atol=1e-12
            )

    def test_the_loss_sees_batches_of_one_and_every_tensor_of_them(self) -> None:
        """Fails if an example loses its first dimension, or the third tensor (a weight) is lost."""
        model = nn.Linear(3, 2, bias=False)
        batch = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]), torch.arange(5.0)
        shapes = set()

        def loss(outputs, sample: tuple[Tensor, ...]) -> Tensor:
            x, y, weight = sample
            shapes.add((x.shape, y.shape, weight.shape, outputs(x).shape))
            return (weight * outputs(x)[:, 0]).sum()

        (found,) = sample_gradients(model, loss, batch)
        assert shapes == {((1, 3), (1,), (1,), (1, 2))}
        torch.testing.assert_close(found["weight"][:, 0], batch[2][:, None] * batch[0])
        assert not found["weight"][:, 1].any()

    @pytest.mark.parametrize(("unused", "sizes"), [(2**24, [3, 3, 1]), (2**26, [1] * 7)])
    def test_chunks_hold_2_to_the_26_numbers_at_most(self, unused: int, sizes: list[int]) -> None:
        """Fails if a large network's gradients are made for the whole batch at once, if a network
        of more weights gets chunks of none, or if the last chunk is lost."""
        model = nn.Linear(3, 2).double()
        x, y = torch.randn(7, 3, dtype=torch.float64), torch.arange(7) % 2
        expected = [of_one(model, *pair)["weight"] for pair in zip(x, y, strict=True)]
        model.unused = nn.Parameter(torch.empty(unused, dtype=torch.float16))
        chunks = []
        for chunk in sample_gradients(model, Classification(2).loss, (x, y)):
            assert not chunk["unused"][-1, :5].any()
            chunks.append(chunk["weight"])
        assert [len(c) for c in chunks] == sizes
        torch.testing.assert_close(torch.cat(chunks), torch.stack(expected))

    def test_the_model_stays_as_it_is(self, model: nn.Module, tiny_data: ImageData) -> None:
        model.eval()
        before = {n: v.clone() for n, v in model.state_dict().items()}
        batch = tiny_data.train.batch_of([0, 1])
        list(sample_gradients(model, Classification(10).loss, batch))
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
