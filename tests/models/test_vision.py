"""Images and text to tokens and back: what LLaVA as a chat reads, learns and says."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearn_core.data import IGNORED, VisualSet, batches
from unlearn_core.data.objectives import VisualAnswering
from unlearn_core.models import TrainConfig, device_of, shuffled_epochs, to, train
from unlearn_core.models.vision import (
    MULTIMODAL_MODELS,
    ImageTransform,
    Llava,
    TinyLlava,
    VisionChat,
    vocabulary_of,
)
from unlearn_core.registry import build, describe

QUESTIONS = ("What is in the image?", "Is it red?\nAnswer 'Yes' or 'No'.", "Where is the square?")
ANSWERS = ("A red square.", "No", "[0.25, 0.50, 0.75, 1.00]")
TINY = TinyLlava(
    vocabulary_of([*QUESTIONS, *ANSWERS, "circle"]),
    size=8,
    patch=4,
    vision_hidden=16,
    vision_layers=1,
    vision_heads=2,
    hidden=32,
    layers=2,
    heads=2,
    context=64,
)


def drawn(n: int, size: int = 8) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, size, size, 3), generator=g, dtype=torch.uint8)


DATA = VisualSet(drawn(2), torch.tensor([0, 1, 0]), QUESTIONS, ANSWERS)
ASKED = DATA.images[DATA.which]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            {"images": torch.rand(2, 8, 8, 3)},
            ValueError,
            r"uint8, not \(2, 8, 8, 3\) torch.float32",
        ),
        ({"which": torch.tensor([0, 2, 0])}, ValueError, r"which .* must be below 2"),
        ({"which": torch.tensor([0, -1, 0])}, ValueError, r"which .* one is -1"),
        ({"which": torch.tensor([0.0, 1.0, 0.0])}, TypeError, r"which .* must be int64"),
        ({"answers": (1, 2, 3)}, TypeError, "answers must be texts: number 0 is of type int"),
        ({"questions": "abc"}, TypeError, "questions is one text"),
        ({"answers": ("a", "b", " ")}, ValueError, "text 2 of answers is empty"),
    ],
)
def test_a_set_that_makes_no_sense(change: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        replace(DATA, **change)


@pytest.fixture
def chat() -> VisionChat:
    chat = TINY.build(0)
    with torch.no_grad():  # so that what it says is not all the same
        for p in chat.parameters():
            p.mul_(3)
    return chat


@pytest.fixture(scope="module")
def learned() -> VisionChat:
    """It has learned one answer to each of two images, to the same question."""
    data = VisualSet(
        drawn(2), torch.arange(2), ("What is in the image?",) * 2, ("A red square.", "A circle.")
    )
    chat = TINY.build(0)
    config = TrainConfig(epochs=60, lr=3e-3, batch_size=2, optimizer="adamw")
    epochs = shuffled_epochs(chat.encoded(data), config, 0)
    return train(chat, epochs, VisualAnswering().loss, config)


class TestTransform:
    def test_values(self) -> None:
        """Fails where channels change places, or the scale is not that of [0, 1]."""
        image = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 4, 4, 3)
        found = ImageTransform(4, (0.0, 0.1, 0.5), (1.0, 0.5, 0.25))(image)
        assert found.shape == (1, 3, 4, 4)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[0, :, 2, 1], torch.tensor([0.0, 0.2, 2.0]))

    def test_a_square_of_the_mean_colour(self) -> None:
        """Fails where the image is cut instead, isn't in the middle, or the colour is another."""
        wide = torch.full((1, 2, 5, 3), 255, dtype=torch.uint8)
        transform = ImageTransform(5, (0.2, 0.4, 0.6), (1.0, 1.0, 1.0), pad=True)
        for image, found in (
            (wide, transform(wide)),
            (wide.transpose(1, 2), transform(wide.transpose(1, 2)).transpose(2, 3)),
        ):
            assert image.shape[0] == found.shape[0]
            white = torch.tensor([0.8, 0.6, 0.4])[:, None, None].expand(3, 2, 5)
            torch.testing.assert_close(found[0, :, 1:3], white)
            torch.testing.assert_close(found[0, :, [0, 3, 4]], torch.zeros(3, 3, 5))
        black = torch.zeros(1, 2, 5, 3, dtype=torch.uint8)
        assert transform(black)[0, 0].aminmax() == pytest.approx((-0.2, 0.0), abs=1e-6)

    @pytest.mark.parametrize("shape", [(12, 20), (21, 10), (8, 8), (5, 7)])
    def test_as_the_hub_does(self, shape: tuple[int, int], tmp_path: Path) -> None:
        """Fails where another filter shrinks, or another part is cut out."""
        from transformers import AutoImageProcessor

        size = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
        more = {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": False}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(size | more))
        hub = AutoImageProcessor.from_pretrained(tmp_path)
        g = torch.Generator().manual_seed(0)
        images = torch.randint(256, (2, *shape, 3), generator=g, dtype=torch.uint8)
        expected = hub(list(images.permute(0, 3, 1, 2)), return_tensors="pt")["pixel_values"]
        found = ImageTransform(8, tuple(hub.image_mean), tuple(hub.image_std))(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class TestWords:
    @pytest.mark.parametrize(
        "text",
        [
            *QUESTIONS,
            *ANSWERS,
            "Yes",
            "B",
            "Square red.\nA. 12  (red); no: 3.5%",
            " A",
            "red-square",
        ],
    )
    def test_nothing_is_lost(self, text: str) -> None:
        tokenizer = replace(TINY, vocabulary=("B", "no", *TINY.vocabulary)).build(0).tokenizer
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text

    def test_one_token_a_word_a_share_a_digit_and_a_sign(self) -> None:
        tokenizer = TINY.build(0).tokenizer
        assert tokenizer.tokenize("A red square.") == ["A", " red", " square", "."]
        assert tokenizer.tokenize("[0.25, 1") == ["[", "0.25", ",", " 1"]
        assert tokenizer.tokenize("3.05 1.00 1.5") == [*"3.", "0", "5", " 1.00", " 1", ".", "5"]
        assert tokenizer.tokenize("<image>\nIs") == ["<image>", "\n", "Is"]

    def test_the_words_of_texts(self) -> None:
        assert vocabulary_of(["A red, red\nsquare 2x", "it's"]) == (
            *("A", "it", "red", "s", "square", "x"),
        )

    def test_bad_words(self) -> None:
        with pytest.raises(ValueError, match="'red square' in the vocabulary is not one word"):
            TinyLlava(("a", "red square"))


class TestEncode:
    @pytest.mark.parametrize("i", range(3))
    def test_labels_are_the_answer_and_one_end(self, chat: VisionChat, i: int) -> None:
        """Fails where the prompt or the image is learned too, or no end is; or the image is not
        the four tokens that the vision tower gives."""
        ids, labels = chat.encode(QUESTIONS[i], ANSWERS[i])
        said = labels != IGNORED
        assert torch.equal(labels[said], ids[said])
        assert chat.tokenizer.decode(ids[said]) == ANSWERS[i] + "<end>"
        assert chat.tokenizer.decode(ids[~said]) == "<image>" * 4 + f"\n{QUESTIONS[i]}\n"
        assert (ids == chat.model.config.image_token_index).sum() == chat.image_tokens == 4
        assert (ids == chat.tokenizer.eos_token_id).sum() == 1

    def test_as_many_tokens_as_the_vision_tower_gives(self, chat: VisionChat) -> None:
        for strategy in ("default", "full"):
            chat.model.config.vision_feature_select_strategy = strategy
            (features,) = chat.model.get_image_features(
                chat.transform(drawn(1)), vision_feature_select_strategy=strategy
            ).pooler_output
            assert len(features) == chat.image_tokens

    def test_the_question_may_bring_the_image(self, chat: VisionChat) -> None:
        other = VisionChat(chat.model, chat.tokenizer, chat.transform, "{question} : ")
        assert other.prompt("Is <image> red?") == f"Is {'<image>' * 4} red? : "
        ids, labels = other.encode("Is <image> red?", "No")
        assert chat.tokenizer.decode(ids[labels != IGNORED]) == " No<end>"

    def test_bad_input(self, chat: VisionChat) -> None:
        bare = VisionChat(chat.model, chat.tokenizer, chat.transform, "{question}\n")
        with pytest.raises(ValueError, match="0 image tokens, not one, in the prompt 'Is it red"):
            bare.encode("Is it red?", "No")
        with pytest.raises(ValueError, match="2 image tokens, not one"):
            chat.answer(["<image> red?"], drawn(1))
        with pytest.raises(ValueError, match="an image token in the answer"):
            chat.encode("Is it red?", "<image>")
        with pytest.raises(ValueError, match=r"unknown word 'purple' in 'A purple square\.'"):
            chat.encode("Is it red?", "A purple square.")
        with pytest.raises(ValueError, match="unknown word 'blue'"):
            chat.answer(["Is it blue?"], drawn(1))
        with pytest.raises(ValueError, match=r"the answer to 'Is it red\?' is empty"):
            chat.encode("Is it red?", " ")
        with pytest.raises(ValueError, match="more than the context of 64: 'red red"):
            chat.encode("red " * 60, "No")
        with pytest.raises(ValueError, match=r"more than the context of 64: '<image>\\nred red"):
            chat.answer(["red " * 60], drawn(1))
        with pytest.raises(ValueError, match="1 questions about 2 images"):
            chat.answer(["Is it red?"], drawn(2))
        with pytest.raises(ValueError, match="image tokens, but no pixel_values"):
            chat(*(x[None] for x in chat.encode("Is it red?", "No")))
        chat.model.config.image_token_index = 7
        with pytest.raises(ValueError, match="<image> is not token 7"):
            VisionChat(chat.model, chat.tokenizer, chat.transform, chat.template)


class TestBatches:
    def test_what_is_in_a_batch(self, chat: VisionChat) -> None:
        """Fails where an image stands beside another question."""
        (batch,) = batches(chat.encoded(DATA), 3)
        assert list(batch) == ["input_ids", "attention_mask", "labels", "pixel_values"]
        assert torch.equal(batch["pixel_values"], chat.transform(DATA.images[[0, 1, 0]]))
        lengths = [
            len(chat.encode(q, a).input_ids) for q, a in zip(QUESTIONS, ANSWERS, strict=True)
        ]
        assert batch["attention_mask"].sum(dim=1).tolist() == lengths

    def test_parts_and_other_answers(self, chat: VisionChat) -> None:
        data = chat.encoded(DATA)
        both = data.subset([2]) + data.with_answers(["No"] * 3)
        assert len(both) == 4
        assert torch.equal(both[0].input_ids, data[2].input_ids)
        assert torch.equal(both[3].image, DATA.images[0])
        assert chat.tokenizer.decode(both[3].labels[-2:]) == "No<end>"
        assert data.fingerprint() == DATA.fingerprint()

    @torch.no_grad()
    def test_some_positions_as_of_a_whole_pass(self, chat: VisionChat) -> None:
        """Fails where what stands for an image shifts the positions."""
        (batch,) = batches(chat.encoded(DATA), 3)
        at = batch["labels"] != IGNORED
        task = VisualAnswering()
        whole, some = task.logits(chat, batch), task.logits(chat, batch, at)
        torch.testing.assert_close(some, whole[at])

    @torch.no_grad()
    def test_padding_changes_nothing(self, chat: VisionChat) -> None:
        data = chat.encoded(DATA)
        task = VisualAnswering()
        together = task.logits(chat, data.collate([data[i] for i in range(3)]))
        for i in range(3):
            alone = task.logits(chat, data.collate([data[i]]))[0]
            torch.testing.assert_close(together[i, : len(alone)], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def logits_of(chat: VisionChat, ids: Tensor, image: Tensor) -> Tensor:
    """By the model itself, of one sequence: (length, vocabulary)."""
    pixels = chat.transform(image[None])
    return chat.model(input_ids=ids[None], pixel_values=pixels).logits[0]


def test_log_probs_one_by_one(chat: VisionChat) -> None:
    """Fails with a shift, with padding that is seen, or where order or images are mixed up."""
    expected = []
    for question, answer, image in (DATA[i] for i in range(3)):
        ids, labels = chat.encode(question, answer)
        scores = logits_of(chat, ids, image)[:-1].log_softmax(dim=-1)
        scores = scores[torch.arange(len(ids) - 1), ids[1:]]
        expected.append(scores[labels[1:] != IGNORED])
    chat.train()
    for size in (1, 2, 16):
        for a, b in zip(chat.log_probs(DATA, size), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert chat.model.training


def test_answers_are_greedy_and_in_order(chat: VisionChat) -> None:
    """Fails where padding on the left changes what is said, or the image is lost on the way."""
    expected = []
    for question, image in zip(QUESTIONS, ASKED, strict=True):
        ids = torch.tensor(chat.tokenizer(chat.prompt(question))["input_ids"])
        said: list[int] = []
        while len(said) < 6 and said[-1:] != [chat.tokenizer.eos_token_id]:
            tokens = torch.cat([ids, torch.tensor(said, dtype=torch.int64)])
            said.append(int(logits_of(chat, tokens, image)[-1].argmax()))
        expected.append(chat.tokenizer.decode(said, skip_special_tokens=True).strip())
    assert len(set(expected)) == 3
    for size in (1, 3):
        assert chat.answer(QUESTIONS, ASKED, max_new_tokens=6, batch_size=size) == expected


def test_what_it_says_depends_on_the_image(learned: VisionChat) -> None:
    """Fails where training doesn't reach the vision tower, or images change places."""
    asked = ["What is in the image?"] * 3
    found = learned.answer(asked, drawn(2)[[1, 0, 1]], max_new_tokens=8)
    assert found == ["A circle.", "A red square.", "A circle."]
    right, wrong = learned.log_probs(
        [(asked[0], "A circle.", drawn(2)[1]), (asked[0], "A circle.", drawn(2)[0])]
    )
    assert right.sum() > -1
    assert wrong.sum() < -2


class TestSample:
    def test_the_seed_decides(self, chat: VisionChat) -> None:
        before = torch.get_rng_state()
        a, b, c = (chat.sample(QUESTIONS, ASKED, 3, s, 6) for s in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert a == b != c
        assert [len(said) for said in a] == [3, 3, 3]
        assert len({*a[0]}) > 1

    def test_certainty(self, chat: VisionChat) -> None:
        """Fails where temperature or top_p is not passed on, or samples change places."""
        greedy = chat.answer(QUESTIONS, ASKED, 6)
        for how in ({"temperature": 1e-4}, {"top_p": 1e-4}):
            said = chat.sample(QUESTIONS, ASKED, 2, 0, 6, batch_size=4, **how)
            assert said == [[answer] * 2 for answer in greedy]

    def test_as_often_as_probable(self, learned: VisionChat) -> None:
        """Fails where the draw is from other probabilities, such as those of the best 50 only."""
        flat = copy.deepcopy(learned)
        with torch.no_grad():
            flat.model.lm_head.weight.mul_(0.1)
        ids = torch.tensor(flat.tokenizer(flat.prompt(QUESTIONS[0]))["input_ids"])
        p = logits_of(flat, ids, drawn(1)[0])[-1].softmax(dim=-1)
        best = p.topk(50).indices
        texts = {flat.tokenizer.decode([i]).strip() for i in best.tolist()}
        (said,) = flat.sample(QUESTIONS[:1], drawn(1), 400, 0, 1, 400, top_p=1.0)
        outside = 1 - sum(s in texts for s in said) / 400
        assert outside > 0.3


class TestModule:
    def test_a_copy_has_weights_of_its_own(self, chat: VisionChat) -> None:
        other = copy.deepcopy(chat)
        assert other.tokenizer is chat.tokenizer
        before = chat.log_probs(DATA)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1)
        for a, b in zip(chat.log_probs(DATA), before, strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(other.log_probs(DATA)[0], before[0])

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_adapters_of_the_language_model(self, learned: VisionChat, wrapped: bool) -> None:
        """Fails where the vision tower gets adapters too, or anything else is trained."""
        from peft import LoraConfig, get_peft_model, inject_adapter_in_model

        chat = copy.deepcopy(learned)
        before = chat.log_probs(DATA)
        frozen = {n: p.clone() for n, p in learned.model.named_parameters()}
        lora = LoraConfig(
            r=2, target_modules=r".*language_model.*\.([qkvo]|gate|up|down)_proj", bias="none"
        )
        if wrapped:
            chat.model = get_peft_model(chat.model, lora)
        else:
            inject_adapter_in_model(lora, chat.model)
        names = [n for n, p in chat.named_parameters() if p.requires_grad]
        assert len(names) == 2 * TINY.layers * 7
        assert all("language_model" in n and "lora_" in n for n in names)
        config = TrainConfig(epochs=2, lr=1e-2, batch_size=3, optimizer="adamw")
        data = chat.encoded(DATA)
        train(chat, shuffled_epochs(data, config, 0), VisualAnswering().loss, config)
        assert chat.log_probs(DATA)[0].sum() != before[0].sum()
        assert len(chat.answer(QUESTIONS, ASKED, 3)) == 3
        if wrapped:
            chat.model = chat.model.unload()
            for name, p in chat.model.named_parameters():
                assert torch.equal(p, frozen[name])

    def test_bf16_runs_under_autocast(self, chat: VisionChat) -> None:
        half = VisionChat(chat.model, chat.tokenizer, chat.transform, chat.template, "bf16")
        batch = to(next(iter(batches(half.encoded(DATA), 3))), device_of(half))
        assert VisualAnswering().logits(half, batch).dtype == torch.bfloat16
        assert VisualAnswering().loss(half, batch).dtype == torch.float32


class TestSpecs:
    def test_tiny_is_plain_data(self) -> None:
        assert TinyLlava(**vars(TINY)) == TINY
        assert describe(TINY)["is"] == "TinyLlava"
        spec = {"use": "tiny_llava", "size": 16, "patch": 4}
        found = build(MULTIMODAL_MODELS, spec, "model", vocabulary=["red"])
        assert found == TinyLlava(("red",), size=16, patch=4)

    def test_tiny_has_two_million_weights(self) -> None:
        chat = TinyLlava(vocabulary_of(QUESTIONS)).build(0)
        assert 2e6 < sum(p.numel() for p in chat.parameters()) < 3e6
        assert chat.image_tokens == 16

    def test_tiny_bad_sizes(self) -> None:
        with pytest.raises(ValueError, match="patches of 5 don't cover images of 32"):
            TinyLlava(("a",), patch=5)
        with pytest.raises(ValueError, match="hidden 190 is not a multiple of 4 heads"):
            TinyLlava(("a",), hidden=190)

    def test_llava_is_what_the_hub_holds(self, hub: Path, chat: VisionChat) -> None:
        """Fails where weights are left at random, or the processor's colours are not read."""
        from transformers import CLIPImageProcessor

        folder = hub / Llava().id
        chat.model.save_pretrained(folder)
        chat.tokenizer.save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": 8}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(
            folder
        )
        template = "{image} {question} "
        spec = Llava(template=template, dtype="float32", precision="no", pad=True)
        found = spec.build(1)
        assert found.transform.mean == (0.1, 0.2, 0.3)
        assert (found.transform.size, found.transform.pad) == (8, True)
        found.transform, found.template = chat.transform, chat.template
        for a, b in zip(found.log_probs(DATA), chat.log_probs(DATA), strict=True):
            torch.testing.assert_close(a, b)
        half: Any = Llava(template=template).build(0)
        assert (half.precision, half.model.dtype) == ("bf16", torch.bfloat16)
        assert half.answer(QUESTIONS[:1], ASKED[:1], 3)

    def test_llava_before_it_was_tuned(self, hub: Path) -> None:
        """Fails where a weight is the tuned model's, the tower another, or the projector's maps change places."""
        from transformers import AutoModelForCausalLM

        from unlearn_core.models.vision import PROJECTOR, VICUNA
        from unlearn_core.replication.rehearsal import HUB

        for id in (Llava().id, VICUNA, PROJECTOR):
            HUB[id](hub / id)
        tuned, start = (Llava(start=s, dtype="float32").build(0).model for s in ("tuned", "vicuna"))
        language = AutoModelForCausalLM.from_pretrained(hub / VICUNA)
        own, given = start.model.language_model.state_dict(), language.model.state_dict()
        assert own.keys() == given.keys()
        assert all(torch.equal(own[k][: len(given[k])], given[k]) for k in given)
        known = len(language.lm_head.weight)
        assert torch.equal(start.lm_head.weight[:known], language.lm_head.weight)
        assert torch.equal(start.lm_head.weight[known:], tuned.lm_head.weight[known:])
        maps = torch.load(hub / PROJECTOR / "mm_projector.bin")
        layers = start.model.multi_modal_projector
        assert torch.equal(layers.linear_1.weight, maps["model.mm_projector.0.weight"])
        assert torch.equal(layers.linear_2.bias, maps["model.mm_projector.2.bias"])
        towers = (m.model.vision_tower.state_dict() for m in (tuned, start))
        assert all(torch.equal(a, b) for a, b in zip(*(t.values() for t in towers), strict=True))

    def test_llava_writes_vicunas_turns(self) -> None:
        assert Llava().template.endswith("USER: {image}\n{question} ASSISTANT: ")


#: A template that writes the image and a line for each turn.
TURNS = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>\n"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% if m.role == 'user' %}\n{% endif %}{% endfor %}"
)


def pictures() -> list[Any]:
    """Images of PIL, of three sizes."""
    from PIL import Image

    g = torch.Generator().manual_seed(1)
    sizes = [(12, 20), (8, 8), (21, 10)]
    drawn = [torch.randint(256, (*s, 3), generator=g, dtype=torch.uint8) for s in sizes]
    return [Image.fromarray(image.numpy()) for image in drawn]


def processor_of(chat: VisionChat, kind: str = "CLIPImageProcessor", **options: Any) -> Any:
    import transformers

    images = getattr(transformers, kind)(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, **options
    )
    return transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=chat.tokenizer,
        patch_size=chat.model.config.vision_config.patch_size,
        vision_feature_select_strategy=chat.model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=TURNS,
    )


class TestProcessor:
    @torch.no_grad()
    @pytest.mark.parametrize(
        ("kind", "options"),
        [("CLIPImageProcessor", {}), ("LlavaImageProcessor", {"do_pad": True})],
    )
    def test_as_transformers_has_it(
        self, chat: VisionChat, kind: str, options: dict[str, Any]
    ) -> None:
        """Fails where the prompt, the image's tokens or the image's pixels are others."""
        processor = processor_of(chat, kind, **options)
        own = VisionChat.from_processor(chat.model, processor)
        images = pictures()
        for question, image in zip(QUESTIONS, images, strict=True):
            turns = [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": question}],
                }
            ]
            text = processor.apply_chat_template(turns, add_generation_prompt=True)
            given = processor(images=[image], text=[text], return_tensors="pt")
            ids = own.tokenizer(own.prompt(question))["input_ids"]
            assert ids == given["input_ids"][0].tolist()
            pixels = own.transform([torch.from_numpy(np.array(image))])
            torch.testing.assert_close(pixels, given["pixel_values"], rtol=0, atol=0.02)
            said = chat.model.generate(
                **given,
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=own.padding,
                eos_token_id=own.stops,
            )
            expected = own.tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True).strip()
            assert own.answer([question], [image], 6) == [expected]

    def test_images_of_any_size_share_a_batch(self, chat: VisionChat) -> None:
        """Fails where one of them stands beside another question."""
        own = VisionChat.from_processor(chat.model, processor_of(chat))
        images = pictures()
        together = own.log_probs(list(zip(QUESTIONS, ANSWERS, images, strict=True)))
        for triple, found in zip(
            zip(QUESTIONS, ANSWERS, images, strict=True), together, strict=True
        ):
            torch.testing.assert_close(found, own.log_probs([triple])[0], rtol=1e-4, atol=1e-4)
        said = own.answer(QUESTIONS, images, 6)
        assert said == [own.answer([q], [i], 6)[0] for q, i in zip(QUESTIONS, images, strict=True)]

    def test_what_is_trained_on(self, chat: VisionChat) -> None:
        own = VisionChat.from_processor(chat.model, processor_of(chat))
        data = VisualSet.from_images(pictures(), QUESTIONS, ANSWERS)
        (batch,) = batches(own.encoded(data + data.subset([1])), 4)
        assert batch["pixel_values"].shape == (4, 3, 8, 8)
        assert torch.equal(batch["pixel_values"][1], batch["pixel_values"][3])
        assert VisualAnswering().loss(own, batch).isfinite()
        assert (
            data.fingerprint()
            != VisualSet.from_images(pictures()[::-1], QUESTIONS, ANSWERS).fingerprint()
        )

    def test_it_is_saved_too(self, chat: VisionChat, tmp_path: Path) -> None:
        own = VisionChat.from_processor(chat.model, processor_of(chat))
        own.save_pretrained(tmp_path)
        loaded = VisionChat.from_pretrained(tmp_path)
        assert loaded.transform == own.transform
        assert loaded.answer(QUESTIONS, pictures(), 6) == own.answer(QUESTIONS, pictures(), 6)

    def test_a_template_of_one_s_own(self, chat: VisionChat) -> None:
        own = VisionChat.from_processor(chat.model, processor_of(chat), chat.template)
        assert own.prompt("Is it red?") == chat.prompt("Is it red?")

    def test_what_is_refused(self, chat: VisionChat) -> None:
        processor = processor_of(chat)
        with pytest.raises(TypeError, match=r"type LlavaProcessor: .*VisionChat\.from_processor"):
            VisionChat(chat.model, processor, chat.transform, chat.template)
        with pytest.raises(TypeError, match="a processor has a tokenizer and an image_processor"):
            VisionChat.from_processor(chat.model, chat.tokenizer)
        with pytest.raises(TypeError, match=r"must be a LLaVA, .*, not a Linear"):
            VisionChat.from_processor(torch.nn.Linear(2, 2), processor)
        with pytest.MonkeyPatch.context() as patch:  # it has an image_token_index, too
            patch.setattr(type(chat.model.config), "model_type", "llava_next")
            with pytest.raises(
                TypeError, match="a LLaVA, whose model_type is 'llava', not a llava_n"
            ):
                VisionChat.from_processor(chat.model, processor)
        with pytest.raises(ValueError, match="with do_center_crop=False is out of scope"):
            VisionChat.from_processor(chat.model, processor_of(chat, do_center_crop=False))
        with pytest.raises(TypeError, match=r"image 1 must be an image of PIL.*not of type object"):
            chat.answer(QUESTIONS[:2], [drawn(1)[0], object()])
        with pytest.raises(ValueError, match=r"image 0 must be \(H, W, 3\) uint8, not \(3, 8, 8\)"):
            VisualSet.from_images([torch.rand(3, 8, 8)], ["Is it red?"], ["No"])
