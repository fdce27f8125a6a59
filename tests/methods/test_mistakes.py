"""What is likely to be done wrong with models that speak, draw and see, and what is said of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from unlearn_core.data import (
    Answering,
    Concepts,
    Denoising,
    ForgetSplit,
    QuestionData,
    forget_concepts,
    forget_questions,
)
from unlearn_core.methods import FLAT, GUARD, SLD, UCE, FineTune, GradDiff, Prompting, TaskVector
from unlearn_core.methods.baselines.sequential import SequentialLoRA
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.metrics import ask, rule_judge
from unlearn_core.models import (
    Chat,
    ClassToImage,
    NotFiniteError,
    TextConditional,
    TrainConfig,
)

Learned = tuple[Chat, ForgetSplit]


@pytest.fixture(scope="module")
def drawing() -> tuple[TextConditional, ForgetSplit]:
    return STAND_INS["diffusion"]()


class TestOneForSeveral:
    """Fails where the letters of a text are taken for so many texts."""

    def test_a_question(self, learned: Learned) -> None:
        chat, split = learned
        for model in (chat, Prompting()(chat, split)):
            with pytest.raises(TypeError, match=r"questions are several: \['Who\?'\], not 'Who\?'"):
                model.answer("Who?")
            with pytest.raises(TypeError, match="are several"):
                model.log_probs("Who?")

    def test_a_pair(self, learned: Learned) -> None:
        with pytest.raises(TypeError, match="a question and its answer are several"):
            learned[0].log_probs(("Who?", "Ada."))

    def test_a_question_about_an_image(self) -> None:
        model, _ = STAND_INS["multimodal"]()
        with pytest.raises(TypeError, match="questions are several"):
            model.answer("Which?", torch.zeros(6, 32, 32, 3, dtype=torch.uint8))

    def test_a_prompt(self, drawing: tuple[TextConditional, ForgetSplit]) -> None:
        with pytest.raises(TypeError, match=r"conditions are several: \['a cat'\]"):
            drawing[0].sample("a cat", seed=0)


class TestLanguage:
    def test_a_model_that_is_not_wrapped(self, learned: Learned) -> None:
        chat, split = learned
        with pytest.raises(TypeError, match=r"LlamaForCausalLM, and it must be a Chat: wrap it in"):
            FLAT()(chat.model, split)
        with pytest.raises(TypeError, match=r"a LlamaForCausalLM is asked through a Chat: wrap it"):
            ask(chat.model, {"forget": split.forget.questions})

    def test_the_model_for_its_encoding(self, learned: Learned) -> None:
        data = QuestionData.from_pairs([("Who?", "Ada.")], [("When?", "1921.")])
        with pytest.raises(TypeError, match=r"give the model's, chat\.encoded"):
            forget_questions(data, learned[0])

    @pytest.mark.parametrize("method", [FLAT(), GUARD()], ids=["flat", "guard"])
    def test_texts_for_tokens(self, learned: Learned, method: Any) -> None:
        chat, split = learned
        bare = ForgetSplit("texts", Answering(), split.forget.questions, split.retain.questions)
        with pytest.raises(TypeError, match=r"the split's forget set holds texts.*chat\.encoded"):
            method(chat, bare)

    def test_a_mapping_for_a_pair(self, learned: Learned) -> None:
        """Fails where the names of its parts are scored."""
        for model in (learned[0], Prompting()(*learned)):
            with pytest.raises(
                TypeError, match=r"a pair is \(question, answer\), not \{'question'"
            ):
                model.log_probs([{"question": "Who?", "answer": "Ada."}])
            with pytest.raises(TypeError, match="the answer to 'Who\\?' is a text, not 3"):
                model.log_probs([("Who?", 3)])

    def test_a_precision_that_is_none(self, learned: Learned, drawing: Any) -> None:
        """Fails where it is taken for bfloat16, as all that isn't "no"."""
        chat, (model, _) = learned[0], drawing
        for precision in ("fp16", "bfloat16", torch.bfloat16, None):
            with pytest.raises(ValueError, match="precision is 'no' or 'bf16', not "):
                Chat(chat.model, chat.tokenizer, precision=precision)
            parts = (model.unet, model.scheduler, model.codec, model.prompts)
            with pytest.raises(ValueError, match="precision is 'no' or 'bf16', not "):
                TextConditional(*parts, precision=precision)

    @pytest.mark.parametrize("wrong", ["gpt2", torch.nn.Linear(2, 2), "a chat"])
    def test_what_is_no_language_model(self, learned: Learned, wrong: Any) -> None:
        chat = learned[0]
        with pytest.raises(
            TypeError, match="the model is one of transformers, such as AutoModelFor"
        ):
            Chat(chat if wrong == "a chat" else wrong, chat.tokenizer)

    def test_a_tokenizer_with_more_tokens_than_the_model(self, learned: Learned) -> None:
        """Fails where an embedding says that an index is out of range."""
        chat = copy.deepcopy(learned[0])
        known = chat.model.get_input_embeddings().num_embeddings
        chat.model.resize_token_embeddings(20)
        few = Chat(chat.model, chat.tokenizer)
        for call in (
            lambda: few.encode("Who is it?", "Ada."),
            lambda: few.answer(["Who is it?"], 2),
            lambda: few.log_probs([("Who is it?", "Ada.")]),
        ):
            with pytest.raises(ValueError, match="the model knows 20: is it of another model"):
                call()
        chat.model.resize_token_embeddings(known)
        assert len(few.encode("Who is it?", "Ada.").input_ids) > 2
        own = copy.deepcopy(chat.tokenizer)
        own.add_special_tokens({"pad_token": "<filling>"})
        chat.model.resize_token_embeddings(own.pad_token_id)
        with pytest.raises(
            ValueError, match=r"token '<filling>' is number \d+, and the model knows"
        ):
            Chat(chat.model, own)

    def test_tokens_of_another_tokenizer(self, learned: Learned) -> None:
        """Fails where words that the model has never seen so are learned and forgotten."""
        chat, split = learned
        other = copy.deepcopy(chat)
        other.tokenizer = copy.deepcopy(chat.tokenizer)
        same = replace(split, forget=other.encoded(split.forget.questions))
        short = GradDiff(train=TrainConfig(1, 1e-3))
        short.check(chat, same)  # a copy that takes the same tokens
        other.tokenizer.add_tokens(["another"])
        with pytest.raises(
            TypeError, match="GradDiff: the split's forget set holds the tokens of an"
        ):
            short(chat, same)

    @pytest.mark.parametrize("form", ["split", "mapping", "pair", "texts", "bare", "nan"])
    def test_what_is_learned_in_a_sequence(self, learned: Learned, form: str) -> None:
        chat, split = learned
        given: dict[str, tuple[Any, str]] = {
            "split": (split, r"tasks are a list of \(name, task, data\)"),
            "mapping": ({"one": split.forget}, r"tasks are a list of \(name, task, data\)"),
            "pair": ([("one", split.forget)], r"tasks are a list of \(name, task, data\)"),
            "texts": (
                [("one", split.task, split.forget.questions)],
                r"'one' are texts.* chat\.encoded\(questions\)",
            ),
        }
        right = [("one", split.task, split.forget)]
        tasks, says = given.get(
            form, (right, r"it must be a Chat: wrap it|given model is not finite")
        )
        model = copy.deepcopy(chat)
        if form == "nan":
            torch.nn.init.constant_(next(model.parameters()), float("nan"))
        with pytest.raises((TypeError, NotFiniteError), match=f"^sequential_lora: .*{says}"):
            SequentialLoRA().learn(model.model if form == "bare" else model, tasks)

    def test_adapters_on_adapters(self, learned: Learned) -> None:
        from peft import LoraConfig, get_peft_model

        own = copy.deepcopy(learned[0])
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        own.model = get_peft_model(own.model, config)
        stages = [("one", learned[1].task, learned[1].forget)]
        with pytest.raises(ValueError, match=r"adapters on 'q_proj' already: merge them first"):
            list(SequentialLoRA().learn(own, stages))

    def test_a_judge_of_other_answers(self) -> None:
        with pytest.raises(ValueError, match="is for restricted_symbols alone: of other answers"):
            rule_judge("Which colour?", "red", "red")


class TestDrawing:
    def test_parts_of_a_pipeline(self, drawing: tuple[TextConditional, ForgetSplit]) -> None:
        with pytest.raises(
            TypeError, match=r"must be a Diffusion: make one by TextConditional\.from_"
        ):
            UCE()(drawing[0].unet, drawing[1])

    @pytest.mark.parametrize(
        "method", [FineTune(), GradDiff(), TaskVector()], ids=["fine_tune", "grad_diff", "task"]
    )
    def test_no_images(self, drawing: tuple[TextConditional, ForgetSplit], method: Any) -> None:
        model, split = drawing
        named = ForgetSplit("named", split.task, (), ())
        with pytest.raises(
            ValueError, match=r"needs the split's (forget|retain) set, which is empty"
        ):
            method(model, named)
        assert SLD()(model, named).concept == "a disc"

    @pytest.mark.parametrize(
        ("template", "says"),
        [
            ("a photo", r"'a photo' has no \{\}"),
            ("{} and {}", r"must have one \{\}, for the concept, and no other field"),
            ("a {kind} of {}", r"must have one \{\}, for the concept, and no other field"),
        ],
    )
    def test_a_template(self, template: str, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            Concepts((("a cat", "a dog"),), templates=(template,))

    def test_a_captioned_set_for_data_with_nouns(
        self, drawing: tuple[TextConditional, ForgetSplit]
    ) -> None:
        _, split = drawing
        with pytest.raises(
            TypeError, match=r"nouns of a CaptionData, .*: cut it by hand, ForgetSpl"
        ):
            forget_concepts(split.forget, split.task.concepts)

    def test_a_request_that_names_nothing(
        self, drawing: tuple[TextConditional, ForgetSplit]
    ) -> None:
        model, split = drawing
        unnamed = ForgetSplit("none", Denoising(), split.forget, split.retain)
        with pytest.raises(ValueError, match=r"UCE is told by name what to erase"):
            UCE()(model, unnamed)
        for wrong in ("a cat", (("a cat", "a dog"),)):
            with pytest.raises(ValueError, match="Denoising: concepts must be of type Concepts or"):
                Denoising(wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize("pair", [("a cat", None), ("a cat", 3), ("", "a cat"), (None, None)])
    def test_a_concept_and_its_place_are_of_one_kind(self, pair: tuple[Any, Any]) -> None:
        with pytest.raises(ValueError, match="are two texts, or the numbers of two classes, not "):
            Concepts((pair,))
        assert Concepts(((0, 1),)).pairs() == [(0, 1)]
        assert Concepts((("a cat", ""),)).pairs() == [("a cat", "")]

    @pytest.mark.parametrize("part", ["keep", "templates"])
    def test_one_text_for_several(self, part: str) -> None:
        with pytest.raises(TypeError, match=f"{part} is one text, not a sequence of texts"):
            Concepts((("a cat", "a dog"),), **{part: "a {}"})  # type: ignore[arg-type]

    @pytest.mark.parametrize("factor", [255.0, 1.0])
    def test_pixels_from_0_to_255(
        self, drawing: tuple[TextConditional, ForgetSplit], factor: float
    ) -> None:
        """Fails where a model learns to draw images that are white but for a few pixels."""
        model, _ = drawing
        x = torch.rand(4, 1, 16, 16) * factor
        pairs = [(image, "a disc") for image in x]
        split = ForgetSplit("mine", Denoising(), pairs[:2], pairs[2:])
        method = FineTune(TrainConfig(1, 1e-4))
        if factor == 1:
            assert method(model, split) is not model
            return
        for wrong in (x, x.byte()):
            pairs = [(image, "a disc") for image in wrong]
            with pytest.raises(ValueError, match=r"pixels in \[-1, 1\], in floating point"):
                method(model, ForgetSplit("mine", Denoising(), pairs[:2], pairs[2:]))

    def test_conditions(self, drawing: tuple[TextConditional, ForgetSplit]) -> None:
        with pytest.raises(TypeError, match="prompts must be texts: number 1 is of type int"):
            drawing[0].sample(["a disc", 1], seed=0, steps=1)
        classes = ClassToImage(classes=2, size=8, widths=(16, 16)).build(0)
        with pytest.raises(TypeError, match="draws classes, from 0 to 1, not 'cat'"):
            classes.sample(["cat"], seed=0, steps=1)
        for wrong in (3, -1):
            with pytest.raises(ValueError, match="the classes to draw must be"):
                classes.sample([wrong], seed=0, steps=1)
        assert len(classes.sample([0, 1], seed=0, steps=1)) == 2

    @pytest.mark.parametrize(
        ("change", "error", "says"),
        [
            ({"scheduler": None}, TypeError, "a scheduler of diffusers is needed"),
            ({"codec": None}, TypeError, "a codec encodes and decodes"),
            ({"drop": 2.0}, ValueError, r"drop is a share in \[0, 1\), not 2"),
        ],
    )
    def test_parts_that_are_none(
        self,
        drawing: tuple[TextConditional, ForgetSplit],
        change: dict[str, Any],
        error: type[Exception],
        says: str,
    ) -> None:
        model = drawing[0]
        own = {n: getattr(model, n) for n in ("unet", "scheduler", "codec", "prompts")}
        with pytest.raises(error, match=says):
            TextConditional(**own | change)

    @pytest.mark.parametrize("erased", [("a cat", "a dog"), (("a cat",),)])
    def test_what_takes_its_place(self, erased: Any) -> None:
        with pytest.raises(ValueError, match=r"erased holds pairs, such as .* not .*a cat"):
            Denoising(Concepts(erased))
