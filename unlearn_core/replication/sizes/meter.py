"""Counting what runs on tensors without contents: operations, and the bytes that are alive at once.

A model is made of PyTorch's fake tensors, which have shapes and no memory. Whatever is computed with them is
seen by a `Meter`, which adds up floating-point operations by PyTorch's own formulas (those of
`torch.utils.flop_counter.FlopCounterMode`) and follows every storage from its making to its end, as
`torch.distributed._tools.MemTracker` does; that one looks at every module as well, and a step of a model of
seven billion weights takes it a minute.

What would be decided by contents is decided once for all: a value that is read is one, everything is
finite. Of a training one batch runs; other loops over data run twice, and the second time counts for all others.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ...methods import ESD, cross_attention, forget_pairs, realera
from ...models import Diffusion, ModelSpec, TinyLlama, TrainConfig, diffusion, language, training

__all__ = ["Cost", "Meter", "bytes_of"]

aten = torch.ops.aten

#: Attention on a CPU, which stands for the fused one of a GPU: the formulas know that one alone.
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)
    ),
}

CONVOLUTIONS = {aten.convolution, aten._convolution, aten.convolution_backward}

#: What autocast computes in single precision on a GPU, and not on a CPU.
SINGLE = {
    nn.functional.layer_norm,
    nn.functional.group_norm,
    nn.functional.softmax,
    nn.functional.log_softmax,
    nn.functional.cross_entropy,
    torch.softmax,
    torch.log_softmax,
    torch.nn.functional.mse_loss,
    Tensor.softmax,
    Tensor.log_softmax,
}


@dataclass
class Cost:
    """What something takes.

    Attributes
    ----------
    flops : floating-point operations, by "conv" or "matmul" and "half" or "single"; and "launches", how many
        kernels a processor starts for them
    read : bytes that must be read whatever is computed, of what is generated token by token
    peak : bytes that are alive at once
    parts : of the peak: weights, copies (of weights, that a method or a trial holds), gradients, optimizer,
        activations; cache, of what is generated
    """

    flops: Counter[str] = field(default_factory=Counter)
    read: float = 0.0
    peak: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        larger = max(self, other, key=lambda c: c.peak)
        flops = Counter({k: self.flops[k] + other.flops[k] for k in {*self.flops, *other.flops}})
        return Cost(flops, self.read + other.read, larger.peak, larger.parts)

    def __mul__(self, times: float) -> Cost:
        """As often, one after the other."""
        flops = Counter({k: times * v for k, v in self.flops.items()})
        return replace(self, flops=flops, read=times * self.read)

    def beyond(self, other: Cost, times: float) -> Cost:
        """This, and so often what ``other`` takes more."""
        a, b = self, other

        def line(x: float, y: float) -> float:
            return x + times * (y - x)

        return Cost(
            Counter({k: line(a.flops[k], b.flops[k]) for k in {*a.flops, *b.flops}}),
            line(a.read, b.read),
            line(a.peak, b.peak),
            {k: line(a.parts.get(k, 0.0), v) for k, v in b.parts.items()},
        )

    @property
    def total(self) -> float:
        """Operations of all kinds, launches not counted."""
        return sum(v for k, v in self.flops.items() if k != "launches")


def bytes_of(*models: nn.Module) -> int:
    """Of weights and buffers, each storage once."""
    found = {}
    for model in models:
        for t in (*model.parameters(), *model.buffers()):
            storage = t.untyped_storage()
            found[storage._cdata] = storage.nbytes()
    return sum(found.values())


class _Contents(TorchFunctionMode):
    """What asks for the contents of a fake tensor gets some; what comes from it stays on the device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("input")
        fake = isinstance(first, FakeTensor)
        if (
            func in SINGLE
            and torch.is_autocast_enabled("cpu")
            and fake
            and first.dtype.itemsize < 4
        ):
            return func(*[a.float() if _half(a) else a for a in args], **kwargs)
        if fake:
            if func in (torch.isfinite, Tensor.isfinite):
                return torch.tensor(True)
            if func in (torch.isnan, Tensor.isnan, Tensor.isneginf, torch.isinf, Tensor.isinf):
                return torch.tensor(False)
            if func is Tensor.cpu:
                return real(first)
            if func is Tensor.tolist:
                return real(first).tolist()
            if func is Tensor.numpy:
                return real(first).numpy()
        if func is torch.where and isinstance(kwargs.get("out"), FakeTensor):
            return kwargs["out"]
        if func is torch.randperm and args[0] > 2**24:
            return torch.arange(2**10)  # of all weights: which ones, sets no size
        return func(*args, **kwargs)


def _half(value: Any) -> bool:
    return isinstance(value, FakeTensor) and value.is_floating_point() and value.dtype.itemsize < 4


def real(fake: Tensor) -> Tensor:
    """Contents for a fake tensor: standard normal where that is few numbers, zeros otherwise."""
    if fake.is_floating_point() and fake.numel() <= 2**22:
        drawn = torch.Generator().manual_seed(0)
        return torch.randn(fake.shape, generator=drawn).to(fake.dtype)
    return torch.zeros((), dtype=fake.dtype).expand(fake.shape)


class Meter(TorchDispatchMode):
    """Counts inside its block, in which specs build models without contents; `measure` reads the counts."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.flops: Counter[str] = Counter()
        self.now = self.peak = 0
        self.times = 1.0
        self.parts: dict[str, float] = {}
        self._alive: dict[int, weakref.ref] = {}
        self._stack = contextlib.ExitStack()
        self._steps: dict[Any, Cost] = {}
        #: Costs that are known already, by what they are of.
        self.known: dict[str, Cost] = {}
        #: What distinguishes the trainings of one method: set by who runs it.
        self.running: Any = None

    # --- what is seen -----------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        if packet is aten._local_scalar_dense and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            args = (args[0], [*_positions(args[1])], *args[2:])
        if packet is aten.nonzero and isinstance(args[0], FakeTensor):
            return torch.zeros((max(args[0].numel() // 2, 1), args[0].dim()), dtype=torch.int64)
        out = func(*args, **kwargs)
        if any(isinstance(t, FakeTensor) for t in tree_leaves(out)):
            self.flops["launches"] += self.times
        count = ATTENTION.get(packet)
        if count is not None:
            self._count(packet, args, count(*args, **kwargs))
        elif packet in flop_registry:
            self._count(packet, args, flop_registry[packet](*args, **kwargs, out_val=out))
        for t in tree_leaves(out):
            if isinstance(t, FakeTensor):
                self._follow(t)
        return out

    def _count(self, packet: Any, args: tuple, flops: float) -> None:
        half = any(t.dtype.itemsize < 4 for t in tree_leaves(args) if isinstance(t, FakeTensor))
        kind = "conv" if packet in CONVOLUTIONS else "matmul"
        self.flops[f"{kind}, {'half' if half else 'single'}"] += self.times * flops

    def _follow(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()

        def end(_: Any) -> None:
            self._alive.pop(key, None)
            self.now -= size

        self._alive[key] = weakref.ref(storage, end)
        self.now += size
        self.peak = max(self.peak, self.now)

    # --- what is not run in full ------------------------------------------------------------------

    def __enter__(self) -> Meter:
        from peft import LoraModel

        super().__enter__()
        gc.freeze()  # what is there already need not be looked through again and again
        self._stack.callback(gc.unfreeze)
        self._stack.enter_context(_Contents())
        for patch in (
            mock.patch.object(DataLoader, "__iter__", self._loader(DataLoader.__iter__)),
            mock.patch.object(diffusion, "_steps", self._path(diffusion._steps)),
            mock.patch.object(ESD, "drawn", self._half_drawn),
            mock.patch.object(LoraModel, "__init__", self._attaching(LoraModel.__init__)),
            mock.patch.object(ModelSpec, "build", self._building(ModelSpec.build)),
            mock.patch.object(nn.Module, "to", _moving(nn.Module.to)),
            mock.patch.object(Tensor, "__deepcopy__", _copying(Tensor.__deepcopy__)),
            mock.patch.dict(diffusion._ENCODERS, clear=True),
        ):
            self._stack.enter_context(patch)
        stand_ins = {
            training.train: self._training(training.train),
            forget_pairs.log_probs_before: _as_many(forget_pairs.log_probs_before),
            realera.mine: _mined,
            cross_attention.edit: self._editing(cross_attention.edit),
        }
        for module in [m for n, m in sys.modules.items() if n.startswith("unlearn_core")]:
            for own, stand_in in stand_ins.items():
                if getattr(module, own.__name__, None) is own:
                    self._stack.enter_context(mock.patch.object(module, own.__name__, stand_in))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        super().__exit__(*error)

    @contextlib.contextmanager
    def repeated(self, times: float) -> Iterator[None]:
        """What is counted in the block counts so often."""
        self.times *= times
        try:
            yield
        finally:
            self.times /= times

    def _loader(self, own: Callable[[DataLoader], Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def iterate(loader: DataLoader) -> Iterator[Any]:
            loader.num_workers = 0
            return self._twice(own(loader), len(loader))

        return iterate

    def _twice(self, items: Iterator[Any], count: int) -> Iterator[Any]:
        """The first of them, and the second as all others."""
        for i, item in enumerate(itertools.islice(items, 2)):
            with self.repeated(count - 1 if i else 1):
                yield item

    def _path(self, own: Callable[..., Iterator[Tensor]]) -> Callable[..., Iterator[Tensor]]:
        def path(
            scheduler: Any, latents: Tensor, guide: Any, steps: int, draws: Any = None
        ) -> Iterator[Tensor]:
            found = own(scheduler, latents, guide, steps, draws)
            yield next(found)
            if steps > 1:
                with self.repeated(steps - 1):
                    last = next(found)
                yield last

        return path

    def _attaching(self, own: Callable[..., None]) -> Callable[..., None]:
        def attach(*args: Any, **kwargs: Any) -> None:
            with self.mode:
                own(*args, **kwargs)

        return attach

    def _editing(self, own: Callable[..., None]) -> Callable[..., None]:
        """`edit`, whose rows come from the CPU: as they lie on the device, where it solves."""

        def lies(t: Tensor) -> Tensor:
            with self.mode:
                return torch.empty(t.shape, dtype=torch.float64)

        def edit(model: Diffusion, rows: Tensor, instead: Any, scale: Tensor, ridge: float) -> None:
            given = instead if isinstance(instead, Mapping) else lies(instead)
            own(model, lies(rows), given, lies(scale), ridge)

        return edit

    @property
    def _half_drawn(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """`ESD.drawn` ends at a random step: half the path, on average."""

        @torch.no_grad()
        def drawn(esd: ESD, model: Diffusion, condition: list[Any]) -> tuple[Tensor, Tensor]:
            noise = torch.randn(len(condition), *model.shape)
            path = model.denoising(noise, model.guide(condition, esd.guidance), esd.steps)
            with self.repeated(0.5):
                (x_t,) = deque(path, maxlen=1)
            return x_t, torch.ones(len(condition), dtype=torch.int64)

        return drawn

    def _building(self, own: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def build(spec: ModelSpec, seed: int) -> nn.Module:
            if isinstance(spec, TinyLlama):
                language._tokenizer(spec.vocabulary)  # it is kept, and made of contents
            with self.mode:
                return own(spec, seed)

        return build

    def _training(self, own: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        """`train`, a batch of it, which stands for all."""

        def train(
            model: nn.Module,
            batches: Any,
            loss: Any,
            config: TrainConfig,
            *,
            after_step: Any = None,
            validate: Any = None,
            checkpoint: Any = None,
            name: str = "train",
            still: Any = None,
            **more: Any,
        ) -> nn.Module:
            loader = batches(0)
            steps = config.epochs * len(loader) // config.accumulate
            steps = min(steps, config.max_steps or steps)
            if config.patience is not None:  # it ends early, about where the others do
                steps = min(steps, EARLY * len(loader) // config.accumulate)
            key = (self.running, name, config.batch_size)
            if key not in self._steps:
                plain = replace(
                    config,
                    epochs=1,
                    accumulate=1,
                    schedule="constant",
                    milestones=(),
                    warmup_epochs=0.0,
                    patience=None,
                    max_steps=None,
                )
                first = [next(iter(loader))]
                self._steps[key] = self._one_step(
                    partial(own, still=still), model, first, loss, plain, after_step, name
                )
            found = self._steps[key]
            counted = found * (self.times * steps * config.accumulate)
            self.flops.update(counted.flops)
            if found.peak >= self.peak:
                self.peak, self.parts = found.peak, found.parts
            if validate is not None:
                with self.repeated(EARLY):
                    validate(model)
            return model.eval()

        return train

    def _one_step(
        self,
        own: Callable[..., nn.Module],
        model: nn.Module,
        first: list[Any],
        loss: Any,
        config: TrainConfig,
        after_step: Any,
        name: str,
    ) -> Cost:
        """A batch and a step, as the second one: beside the optimizer's state that the first has left."""
        before, peak, held = self.flops.copy(), self.peak, self.now
        times, self.times = self.times, 1.0
        self.peak = held
        trained = [p for p in model.parameters() if p.requires_grad]
        count = sum(p.numel() for p in trained)
        moments = 4.0 * count * {"sgd": 1 if config.momentum else 0}.get(config.optimizer, 2)
        backward = held

        def look(*_: Any) -> None:
            nonlocal backward
            backward = self.peak

        handle = register_optimizer_step_pre_hook(look)
        try:
            own(model, lambda epoch: first, loss, config, name=name, after_step=after_step)
        finally:
            handle.remove()
        highest = max(backward + moments, self.peak)
        weights = bytes_of(model)
        masters = sum(4 * p.numel() for p in trained if p.dtype.itemsize < 4)
        parts = {
            "weights": weights + masters / 2,  # in the place of halves
            "copies": held - weights,
            "gradients": 4.0 * count,
            "optimizer": moments,
        }
        parts["activations"] = highest - sum(parts.values())
        cost = Cost(self.flops - before, 0.0, highest, parts)
        self.flops, self.peak, self.times = before, max(peak, highest), times
        return cost

    # --- what is asked ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def measure(self) -> Iterator[Cost]:
        """What the block takes; filled when it ends."""
        before, self.flops, self.peak, self.parts = self.flops, Counter(), self.now, {}
        cost, held = Cost(), self.now
        try:
            yield cost
        finally:
            if not self.parts:  # nothing was trained
                self.parts = {"weights": held, "activations": self.peak - held}
            cost.flops, cost.peak, cost.parts = self.flops, self.peak, self.parts
            self.flops = before


#: Epochs after which early stopping ends a training: of LeNet on CIFAR-10, with a patience of ten.
EARLY = 25


def _moving(own: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`Module.to`, in place: it would swap fake parameters for others, and can't."""

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        tensors = [*module.parameters(), *module.buffers()]
        if not any(isinstance(t, FakeTensor) or isinstance(t.data, FakeTensor) for t in tensors):
            return own(module, *args, **kwargs)
        _, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        for t in tensors:
            if dtype is not None and t.is_floating_point():
                t.data = t.data.to(dtype)
        return module

    return to


def _as_many(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`log_probs_before`, whose two batches stand for all."""

    def found(model: nn.Module, task: Any, data: Any, batch_size: int) -> Tensor:
        return own(model, task, data, batch_size).repeat(len(data))[: len(data)]

    return found


def _mined(e: Tensor, n: int, *_: Any) -> Tensor:
    """`mine`, which draws on the CPU until it has found enough: what they are sets no size."""
    return e.expand(n, *e.shape)


def _copying(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`copy.deepcopy`, which would copy the storage that a fake tensor hasn't got."""

    def deepcopy(t: Tensor, memo: dict[int, Any]) -> Tensor:
        if not isinstance(t, FakeTensor):
            return own(t, memo)
        if id(t) not in memo:
            found = t.detach().clone()
            kind = nn.Parameter if isinstance(t, nn.Parameter) else Tensor.requires_grad_
            memo[id(t)] = kind(found, t.requires_grad)
        return memo[id(t)]

    return deepcopy


def _positions(indices: Any) -> Iterator[Any]:
    """Indices, each mask among them as the positions that it chooses."""
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            yield index
        elif isinstance(index, FakeTensor):  # of what is chosen by contents, half
            n = max(index.numel() // 2, 1)
            yield from (torch.zeros(n, dtype=torch.int64) for _ in range(index.dim()))
        else:
            yield from index.nonzero(as_tuple=True)
