"""What the profiles take: geometries, operations and bytes against hand counts and real runs; the kept table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from unlearn_core.data import Classification, ImageSet
from unlearn_core.methods import GUARD, ICUL, SLD, RealEra
from unlearn_core.methods.cross_attention import shared_rows
from unlearn_core.metrics import search_embedding
from unlearn_core.models import (
    CausalLM,
    ClassToImage,
    Llava,
    ModelSpec,
    ResNet18,
    SmallCNN,
    SmolLM2,
    StableDiffusion,
    TrainConfig,
    ViT,
    predict,
    shuffled_epochs,
    training,
)
from unlearn_core.replication.pages import takes
from unlearn_core.replication.pages.takes import sizes_table
from unlearn_core.replication.papers import known_papers, load_paper
from unlearn_core.replication.sizes import stand_ins
from unlearn_core.replication.sizes.geometry import built_from_geometry, depth, layers_of
from unlearn_core.replication.sizes.meter import Cost, Meter, bytes_of
from unlearn_core.replication.sizes.table import CARDS, hours, made_of, pflops, read
from unlearn_core.replication.sizes.work import size_of, work_of
from unlearn_core.replication.trials.plan import rows_of

LLAMA = "NousResearch/Llama-2-7b-chat-hf"


@pytest.fixture
def meter() -> Iterator[Meter]:
    with built_from_geometry(), Meter() as found:
        yield found


def weights(model: nn.Module) -> int:
    return sum({id(p): p.numel() for p in model.parameters()}.values())


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (ResNet18(10), 11_173_962),
        (ViT(20), 86_389_248 + 768 * 20 + 20),
        (SmolLM2(), 134_515_008),
        (StableDiffusion(), 859_520_964),
    ],
    ids=["resnet18", "vit", "smollm2", "unet"],
)
def test_a_model_has_as_many_weights_as_it_is_known_to_have(
    spec: ModelSpec, count: int, meter: Meter
) -> None:
    assert weights(spec.build(0)) == count


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (CausalLM("microsoft/phi-1_5", "{question}"), 1_418_270_720),
        (CausalLM("facebook/opt-2.7b", "{question}", weights="*.bin"), 2_651_596_800),
        (CausalLM(LLAMA, "{question}", dtype="bfloat16"), 6_738_415_616),
        (CausalLM("Qwen/Qwen2.5-7B-Instruct", "{question}", dtype="bfloat16"), 7_615_616_512),
        (Llava(), 7_063_427_072),
    ],
    ids=["phi", "opt", "llama", "qwen", "llava"],
)
def test_layers_that_are_alike_add_as_much_each(spec: ModelSpec, count: int, meter: Meter) -> None:
    found = []
    for layers in (1, 2):
        with depth(layers):
            found.append(weights(spec.build(0)))
    assert found[0] + (layers_of(spec.id) - 1) * (found[1] - found[0]) == count


def test_the_parts_of_stable_diffusion(meter: Meter) -> None:
    model = StableDiffusion().build(0)
    assert weights(model.codec.vae) == 83_653_863
    assert weights(model.prompts.model) == 123_060_480


# --- operations ----------------------------------------------------------------------------------


def blank(n: int, side: int = 32, channels: int = 3) -> ImageSet:
    labels = torch.arange(n) % 10
    pixels = torch.zeros((n, side, side, channels), dtype=torch.uint8)
    return ImageSet(pixels, labels, labels, (0.5,) * channels, (0.5,) * channels)


def resnet18_by_hand() -> int:
    """Multiplications and additions of one image of 32 x 32 pixels, convolutions and the last layer."""
    total = 32 * 32 * 64 * 3 * 9
    inside, side = 64, 32
    for outside, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        side //= stride
        total += side * side * outside * 9 * (inside + 3 * outside)
        if stride > 1:
            total += side * side * outside * inside
        inside = outside
    return 2 * (total + 512 * 10)


def test_resnet18_takes_what_a_hand_count_says(meter: Meter) -> None:
    model = ResNet18(10).build(0)
    with meter.measure() as cost:
        predict(model, blank(1000))  # four batches, two of which run
    assert cost.total == pytest.approx(1000 * resnet18_by_hand(), rel=0.03)
    assert resnet18_by_hand() == pytest.approx(1.11e9, rel=0.01)
    batch = 256
    assert cost.total / (4 * batch) == pytest.approx(resnet18_by_hand(), rel=1e-6)


CONFIG = TrainConfig(epochs=3, lr=0.01, batch_size=16, optimizer="adam")


def trained(model: nn.Module, data: ImageSet) -> None:
    training.train(model, shuffled_epochs(data, CONFIG, 0), Classification(10).loss, CONFIG)


def test_a_training_takes_what_a_real_one_takes() -> None:
    """Fails where two steps are not extended to all of them: 3 epochs of 6 batches."""
    data = blank(96, 16, 1)
    with FlopCounterMode(display=False) as real:
        trained(SmallCNN(10, 1).build(0), data)
    with Meter() as meter, meter.measure() as cost:
        trained(SmallCNN(10, 1).build(0), data)
    assert cost.total == real.get_total_flops() > 0
    assert cost.flops["conv, single"] > 0.99 * cost.total


def test_a_peak_is_that_of_pytorchs_tracker() -> None:
    """One step on fake tensors, followed by both."""
    with Meter() as meter:
        model = SmallCNN(10, 1, width=32).build(0)
        with meter.mode:
            x, y = torch.zeros(64, 1, 16, 16), torch.zeros(64, dtype=torch.int64)

        def step() -> None:
            nn.functional.cross_entropy(model(x), y).backward()

        with meter.measure() as cost:
            step()
        model.zero_grad()
    tracker = MemTracker()
    tracker.track_external(model, x, y)
    with tracker:
        step()
    (found,) = tracker.get_tracker_snapshot("peak").values()
    assert cost.peak == pytest.approx(found["Total"], rel=0.02)
    assert cost.peak > bytes_of(model) + 4 * 64 * 32 * 16 * 16


def test_a_training_hides_no_higher_peak(meter: Meter) -> None:
    """Of what is done in one piece the highest counts, be it before a training."""
    model, many, few = SmallCNN(10, 1).build(0), blank(256, 32, 1), blank(16, 8, 1)
    with meter.measure() as predicted:
        predict(model, many)
    with meter.measure() as both:
        predict(model, many)
        trained(model, few)
    assert both.peak == predicted.peak
    assert sum(both.parts.values()) == both.peak


def test_an_original_is_trained_beside_nothing(meter: Meter) -> None:
    """And a retrained model beside the original."""
    e = load_paper("ssd").profile("ci").experiments["full_class"]
    work = work_of(e)(meter, e)
    own, retrained = work.fit(None), work.fit(work.targets(0)[0])
    held = bytes_of(work.original)
    assert own.parts["copies"] == 0
    assert retrained.parts["copies"] == held > 0
    assert retrained.peak - own.peak == held


def test_sampling_takes_two_passes_a_step(meter: Meter) -> None:
    model = ClassToImage(10, size=16, channels=1, widths=(8, 16)).build(0)
    costs = []
    for steps, guidance in ((4, 1), (8, 1), (8, 3)):
        with meter.measure() as cost:
            model.sample([0, 1], 0, steps=steps, guidance=guidance, batch_size=2)
        costs.append(cost.total)
    assert costs[1] == 2 * costs[0] > 0
    assert costs[2] == 2 * costs[1]


# --- Llama-2-7B, whole, four sequences of 256 tokens -----------------------------------------------


def step_of_llama(meter: Meter) -> Cost:
    """One step of AdamW in half precision with checkpointing, by two and three layers."""
    found = []
    for layers in (2, 3):
        with depth(layers):
            spec = CausalLM(LLAMA, "{question}", dtype="bfloat16", checkpointing=True)
            model = spec.build(0).model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        ids = torch.zeros((4, 256), dtype=torch.int64)
        for _ in range(2):
            with meter.measure() as cost:
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        found.append(cost)
        del model, optimizer
    return found[0].beyond(found[1], layers_of(LLAMA) - 2)


def test_fine_tuning_llama_whole(meter: Meter) -> None:
    cost = step_of_llama(meter)
    # Weights, gradients and two moments in half precision, and a few gigabytes beside them.
    assert 8 * 6.738e9 < cost.peak < 60e9
    # Forward twice and backward: 8 operations a weight and token; embeddings are looked up.
    by_hand = 8 * (6.738e9 - 32_000 * 4096) * 4 * 256
    assert cost.total == pytest.approx(by_hand, rel=0.08)


# --- stand-ins -------------------------------------------------------------------------------------


def test_a_readers_book_is_as_long_as_its_passages_need() -> None:
    data = stand_ins.books({"use": "own_text", "forget_chapters": 30})
    assert [len(s) for s in (data.ask_forget, data.ask_retain, data.holdout)] == [400] * 3
    assert {len(a.split()) for a in data.train.answers} == {150}
    assert len(data.train) == len({*data.train.questions}) == 800
    assert data.forget.tolist() == [*range(400, 800)]


def test_a_known_book_is_no_longer_than_it_is() -> None:
    asked = {"use": "gutenberg", "forget_chapters": 6}
    data = stand_ins.books(asked)
    assert len(data.ask_forget) == len(data.ask_retain) == len(data.holdout) == 40
    assert {len(a.split()) for a in data.ask_forget.answers} == {40}
    assert (len(data.questions_forget), len(data.questions_retain)) == (20, 20)
    with pytest.raises(ValueError, match="there are 41 passages, 400 were asked for"):
        stand_ins.books({**asked, "passages": 400, "prompt_words": 150, "answer_words": 150})


# --- the kept table --------------------------------------------------------------------------------


#: The papers whose size is kept: `make size` keeps it.
PAPERS = sorted(read("paper"))


@pytest.mark.parametrize("slug", PAPERS)
def test_the_table_is_of_the_profile_as_it_is(slug: str) -> None:
    known, profile = read("paper"), load_paper(slug).profile("paper")
    assert known[slug]["made_of"] == made_of(profile), f"make size PROFILE=paper PAPERS={slug}"
    assert list(known[slug]["experiments"]) == list(profile.experiments)


@pytest.mark.parametrize("slug", PAPERS)
def test_minutes_and_memory_are_those_of_the_table(slug: str) -> None:
    profile, sizes = load_paper(slug).profile("paper"), read("paper")[slug]["experiments"]
    minutes = 60 * sum(hours(s, "A100") for s in sizes.values())
    assert profile.minutes == pytest.approx(minutes, rel=0.1)
    peak = max(s["peak_gb"] for s in sizes.values())
    assert profile.memory_gb == pytest.approx(peak, rel=0.1)
    (card,) = re.findall(r"(\d+) GB GPU|GPU with (\d+) GB", profile.hardware)
    assert peak < int(max(card)), f"{profile.hardware} does not hold {peak} GB"


def test_what_is_kept_is_what_is_computed(meter: Meter) -> None:
    """The first experiment of a paper, again."""
    profile = load_paper("iau").profile("paper")
    name, e = next(iter(profile.experiments.items()))
    ((_, size),) = size_of(profile.model_copy(update={"experiments": {name: e}}), meter)
    kept = read("paper")["iau"]["experiments"][name]
    assert size.rows == kept["rows"]
    assert size.cost.total / 1e15 == pytest.approx(pflops(kept), rel=0.01)
    assert size.cost.peak / 1e9 == pytest.approx(kept["peak_gb"], rel=0.01)


@pytest.mark.parametrize("slug", known_papers())
def test_every_measure_is_counted(slug: str) -> None:
    """Fails where `make size` would end at a row that it does not know."""
    for profile in load_paper(slug).profiles.values():
        for name, e in profile.experiments.items():
            kind = work_of(e)
            for seed in e.seeds or profile.seeds:
                asked = {row.measure for row in rows_of(e, name, seed, None)} - {*kind.taken_apart}
                assert [m for m in asked if not hasattr(kind, f"measure_{m}")] == [], name


class TestMeasures:
    """What a measure takes beside others, in operations."""

    def taken(self, meter: Meter, slug: str, name: str, *measure: Any) -> float:
        profile = load_paper(slug).profile("ci")
        e = profile.experiments[name].model_copy(update={"measure": measure, "seeds": (0,)})
        ((_, size),) = size_of(profile.model_copy(update={"experiments": {name: e}}), meter)
        return size.cost.total

    def test_an_audit(self, meter: Meter) -> None:
        """Fails where a model is not counted, or the retrained ones are counted for each method."""

        def taken(*labels: str, models: int = 2) -> float:
            entry = {"audit": [*labels], "models": models}
            return self.taken(meter, "salun", "audit", entry)

        once = self.taken(meter, "salun", "audit", {"method": "Retrain"})  # the original, too
        retrained, original = taken("Retrain"), taken("Original") - taken("Retrain")
        assert retrained + original == pytest.approx(
            2 * once, rel=0.1
        )  # no original is asked in it
        assert 0 < retrained < original  # on nine tenths of the images
        method = taken("FT") - taken("Original")
        assert method > 0
        both = taken("Original", "FT", "Retrain")
        assert both == pytest.approx(retrained + 2 * original + method)
        assert taken("FT", models=6) == pytest.approx(3 * taken("FT"))

    def test_quantised(self, meter: Meter) -> None:
        """As the method and what is asked of it: rounding takes nothing."""

        def taken(measure: str, label: str, **changes: int) -> float:
            return self.taken(meter, "salun", "audit", {measure: label, **changes})

        assert taken("quantised", "FT", bits=4) == pytest.approx(taken("method", "FT"))
        less, more = (
            self.taken(meter, "salun", "audit", {"method": "FT"}, *more)
            for more in ([], [{"quantised": ["FT", "Retrain"], "bits": [4, 8]}])
        )
        method = taken("method", "FT") - taken("method", "Retrain")
        asked = taken("quantised", "Retrain", bits=4) - taken("method", "Retrain")
        assert asked > 0
        assert more - less == pytest.approx(2 * method + 2 * asked)

    def test_a_null_of_a_language_model(self, meter: Meter) -> None:
        """Another fit on the retain set, and what is asked of it, each time."""
        retrained, one, three = (
            self.taken(meter, "flat", "trajectory", {"method": "Retrain"}, *more)
            for more in ([], [{"null": None}], [{"null": None, "again": [1, 2, 3]}])
        )
        assert three - retrained == pytest.approx(3 * (one - retrained))
        # Beside them it has the original's fit, on sixteen authors in the place of eleven.
        assert 0.35 * retrained < one - retrained < 0.5 * retrained


def test_examples_in_a_prompt_are_read(meter: Meter) -> None:
    """ICUL's, by hand: forty questions about what is to be forgotten, whose prompts are read to score the
    answers and the templates, and to answer; 617 others and strangers' forty where it knows no difference."""
    e = load_paper("guard").profile("paper").experiments["guard_phi"]
    e = e.model_copy(update={"relearn": None})
    work = work_of(e)(meter, e)

    def tokens(method: ICUL) -> float:
        return work.evaluate("forget01", method).total / work.one_token.total

    example = 16.3 + 34.6 + 2  # a question and an answer of TOFU, the means, and two line breaks
    assert tokens(ICUL()) - tokens(ICUL(right=3)) == pytest.approx(3 * 40 * 3 * example)
    more = tokens(ICUL(everywhere=True)) - tokens(ICUL())
    assert more == pytest.approx((2 * 617 + 40) * 7 * example)
    found = work.evaluate("forget01", ICUL()).parts["cache"] / work.cache_bytes
    asked = 7 * example + 16.3 + stand_ins.prompt_tokens(e.model["template"])
    assert found == pytest.approx(40 * (asked + e.ask["max_new_tokens"]))


def test_beams_are_answers_at_a_time(meter: Meter) -> None:
    """Forty-eight rows: six prompts of seven beams, each of which keeps its tokens."""
    e = load_paper("guard").profile("paper").experiments["guard_phi"]
    e = e.model_copy(update={"relearn": None})
    work = work_of(e)(meter, e)
    found = [work.write(40, 20, 200, n, beams) for n, beams in ((48, 1), (6, 7))]
    guarded = work.evaluate("forget01", GUARD()).read - work.evaluate("forget01").read
    assert guarded == pytest.approx(found[1].read - found[0].read, rel=0.01)
    assert found[1].parts["cache"] == 6 * 7 * 220 * work.cache_bytes


class TestDrawing:
    """Of the ci size of RealEra's chapter."""

    @pytest.fixture
    def work(self, meter: Meter) -> Any:
        e = load_paper("realera").profile("ci").experiments["erase_main"]
        given = {**e.ask, "search": {**e.ask["search"], "steps": 5}}
        return work_of(e)(meter, e.model_copy(update={"ask": given}))

    def test_a_search_takes_what_all_its_steps_take(self, work: Any, meter: Meter) -> None:
        """Two of five are run. Fails, too, where the first one alone reads the prompt."""
        asked = work.e.ask["search"]
        x = torch.zeros((asked["examples"], *work.image_shape))
        given = {k: v for k, v in asked.items() if k != "examples"}
        counted = work.measure_embedding(None, None)
        with meter.measure() as run:
            search_embedding(work.original, x, "a thing", seed=0, **given)
        drawn = work.draw(work.e.ask["erased"])
        assert counted.total - drawn.total == pytest.approx(run.total)

    def test_sld_takes_three_passes_a_step(self, work: Any) -> None:
        (target,) = work.targets(0)
        plain, guided = work.evaluate(target), work.evaluate(target, SLD())
        drawn = work.draw(work.images(target)).flops["conv, single"]
        assert drawn > 0
        more = guided.flops["conv, single"] - plain.flops["conv, single"]
        assert more == pytest.approx(drawn / 2)

    def test_rows_of_a_closed_form_lie_on_the_device(self, work: Any) -> None:
        """In double precision, and a few times: what they are to give, their errors, the gain."""
        (target,) = work.targets(0)
        peaks = [
            work.unlearn(RealEra(stages="closed_form", near=near, beyond=0), target).peak
            for near in (500, 1000)
        ]
        encoder, general = work.original.prompts, work.data.general
        rows = 0
        for t in work.data.templates:
            pair = (t.format(target), target, t.format(general), general)
            rows += len(shared_rows(encoder, *pair)[0])
        more = 8 * 500 * rows * encoder.dimensions
        assert 4 * more <= peaks[1] - peaks[0] <= 6 * more


def test_adapters_of_another_kind_are_another_training(meter: Meter) -> None:
    """What differs in adapters alone is counted, and without the projector's gradients."""
    profile = load_paper("safeeraser").profile("ci")
    e = next(iter(profile.experiments.values()))
    own = e.model_copy(update={"measure": ("methods",)})
    frozen = own.model_copy(update={"adapters": {**e.adapters, "projector": None}})
    asked = e.model_copy(update={"measure": ("original",)})  # pays for the fit
    experiments = {"asked": asked, "own": own, "again": own, "frozen": frozen}
    sizes = dict(size_of(profile.model_copy(update={"experiments": experiments}), meter))
    taken = {name: size.cost.total for name, size in sizes.items()}
    assert taken["again"] == 0
    assert 0.9 * taken["own"] < taken["frozen"] < taken["own"]


def test_hours_are_those_of_what_takes_longest() -> None:
    half, reads = {"matmul, half": 0.4 * 312e12 * 3600}, 0.6 * CARDS["A100"]["read"] * 7200
    assert hours({"flops": half, "read": 0}, "A100") == pytest.approx(1)
    assert hours({"flops": half | {"launches": 1e6}, "read": 0}, "A100") == pytest.approx(1)
    assert hours({"flops": {"launches": 3600 / 8e-6}, "read": 0}, "H100") == pytest.approx(1)
    assert hours({"flops": half, "read": reads}, "A100") == pytest.approx(3)


def test_the_page_has_every_experiment_and_their_sum() -> None:
    sizes = read("paper")["iau"]["experiments"]
    shown = sizes_table({"iau": load_paper("iau")})
    assert "Not computed" not in shown
    assert all(f">{name}</" in shown for name in sizes)
    assert f"<b>{sum(s['rows'] for s in sizes.values())}</b>" in shown


def test_the_page_sums_hours_and_names_papers_that_are_not_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One experiment computes for three hours, the other starts kernels for two."""
    size = {"rows": 1, "read": 0.0, "peak_gb": 1.0, "parts_gb": {}}
    computes = size | {"flops": {"matmul, half": 0.4 * 312e12 * 3 * 3600, "launches": 0.0}}
    starts = size | {"flops": {"matmul, half": 0.0, "launches": 2 * 3600 / 8e-6}}
    kept = {"iau": {"experiments": {"a": computes, "b": starts}}}
    monkeypatch.setattr(takes, "read", lambda _: kept)
    shown = sizes_table({slug: load_paper(slug) for slug in ("iau", "flat")})
    assert "<b>5</b>" in shown
    assert "<p>Not computed yet: FLAT. " in shown
