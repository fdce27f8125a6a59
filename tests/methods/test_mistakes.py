"""What is likely to be done wrong with models that speak, draw and see, and what is said of it."""

from __future__ import annotations

import copy
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
from unlearn_core.models import Chat, TextConditional

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

    @pytest.mark.parametrize("erased", [("a cat", "a dog"), (("a cat",),)])
    def test_what_takes_its_place(self, erased: Any) -> None:
        with pytest.raises(ValueError, match=r"erased holds pairs, such as .* not .*a cat"):
            Denoising(Concepts(erased))
