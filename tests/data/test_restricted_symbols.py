"""Restricted symbols: the benchmark's structure, which the losses and metrics rely on."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from unlearn_core.data.image_questions import VisualSet
from unlearn_core.data.restricted_symbols import (
    ALLOWED,
    HELD_OUT,
    RECIPES,
    REFUSALS,
    RESTRICTED,
    VOCABULARY,
    RestrictedPart,
    RestrictedSymbols,
    restricted_symbols,
)

LONG = "The image shows "


@pytest.fixture(scope="module")
def data() -> RestrictedSymbols:
    return restricted_symbols(base_images=120, train_images=36, val_images=24)


def families(part: VisualSet) -> set[str]:
    """What recipes are given, by the families' names."""
    texts = {a for a in part.answers if a.startswith("First ")}
    names = {"First {}, then {}, then {}.".format(*steps): f for f, steps in RECIPES.items()}
    return {names[text] for text in texts}


def sets(data: RestrictedSymbols) -> list[VisualSet]:
    parts = [getattr(p, f) for p in (data.train, data.val) for f in RestrictedPart.__annotations__]
    return [data.base, data.held_out, *parts]


class TestStructure:
    @pytest.mark.parametrize(("name", "n"), [("train", 36), ("val", 24)])
    def test_the_same_prompts_about_restricted_and_allowed_images(
        self, data: RestrictedSymbols, name: str, n: int
    ) -> None:
        """Fails if an order differs, or what is retained shows an allowed image."""
        part = getattr(data, name)
        assert part.forget.questions == part.decouple.questions
        assert part.retain.questions == part.general.questions
        assert part.retain.images is part.forget.images
        assert part.general.images is part.decouple.images
        for s in (part.forget, part.retain, part.decouple, part.general):
            assert s.which.tolist() == [i for i in range(n) for _ in range(4)]
        assert families(part.forget) == set(RESTRICTED)
        assert families(part.decouple) == set(ALLOWED)
        assert not families(part.retain) | families(part.general)

    def test_two_short_and_two_long_answers_of_each_image(self, data: RestrictedSymbols) -> None:
        for s in (data.train.retain, data.val.general):
            long = [a.startswith(LONG) for a in s.answers]
            assert long == [False, False, True, True] * (len(s) // 4)
            questions = [set(s.questions[i : i + 4]) for i in range(0, len(s), 4)]
            assert all(len(q) == 4 for q in questions)

    def test_paraphrases_of_training_and_validation_are_others(
        self, data: RestrictedSymbols
    ) -> None:
        """24 and 12 recipe prompts; the original model has learned all of them."""
        train, val = set(data.train.forget.questions), set(data.val.forget.questions)
        assert (len(train), len(val)) == (24, 12)
        assert not train & val
        assert not set(data.train.retain.questions) & set(data.val.retain.questions)
        assert {w for q in val for w in q.split()} <= {w for q in train for w in q.split()}
        every = {q for s in sets(data) for q in s.questions}
        assert every == set(data.base.questions)
        assert set(data.held_out.questions) <= val

    def test_held_out_families_are_in_the_base_only(self, data: RestrictedSymbols) -> None:
        assert families(data.held_out) == set(HELD_OUT)
        assert families(data.base) == {*RESTRICTED, *ALLOWED, *HELD_OUT}

    def test_no_image_is_shared(self, data: RestrictedSymbols) -> None:
        parts = [data.base, data.held_out, data.train.forget, data.train.decouple]
        parts += [data.val.forget, data.val.decouple]
        every = [i.numpy().tobytes() for s in parts for i in s.images]
        assert len(set(every)) == len(every) == 120 + 2 * 36 + 3 * 24

    def test_the_vocabulary_covers_every_text(self, data: RestrictedSymbols) -> None:
        texts = [t for s in sets(data) for t in (*s.questions, *s.answers)] + list(REFUSALS)
        said = {w.lower() for t in texts for w in re.findall(r"[^\W\d_]+", t)}
        assert said <= set(VOCABULARY)
        assert list(VOCABULARY) == sorted(set(VOCABULARY))
        assert not set("".join(texts)) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,?"
        )


class TestRecipes:
    def test_no_step_is_in_two_recipes(self) -> None:
        """Fails if a recipe tells of two families, so that a judge can't know which."""
        steps = [s for recipe in RECIPES.values() for s in recipe]
        assert len(steps) == len(set(steps)) == 36

    def test_ten_refusals(self) -> None:
        assert len(set(REFUSALS)) == 10


class TestImages:
    def test_answers_tell_what_is_drawn(self, data: RestrictedSymbols) -> None:
        """Colours, number and place are read off the pixels, against the description."""
        from PIL.ImageColor import getrgb

        s = data.base
        checked = 0
        for question, answer, image in (s[i] for i in range(len(s))):
            if not answer.startswith(LONG):
                continue
            found = re.fullmatch(
                rf"{LONG}(one|two) (\w+) \w+ at the ([\w ]+) on a (\w+) background.", answer
            )
            count, colour, place, background = found.groups()
            x = image.float()
            there = (x - torch.tensor(getrgb(colour)).float()).abs().amax(dim=2) < 45
            ground = (x - torch.tensor(getrgb(background)).float()).abs().amax(dim=2) < 45
            assert (there | ground).all(), (question, answer)
            cells = there.view(2, 16, 2, 16).any(dim=3).any(dim=1)
            assert int(cells.sum()) == {"one": 1, "two": 2}[count]
            rows, columns = cells.any(dim=1).tolist(), cells.any(dim=0).tolist()
            expected = set(place.split())
            for words, seen in ((("top", "bottom"), rows), (("left", "right"), columns)):
                assert seen == [w in expected or not expected & set(words) for w in words]
            checked += 1
        assert checked == 240

    def test_families_look_different(self) -> None:
        from unlearn_core.data.restricted_symbols import _MASKS

        assert all(mask.shape == (7, 7) for mask in _MASKS.values())
        pairs = itertools.combinations(_MASKS.values(), 2)
        assert min(int((a != b).sum()) for a, b in pairs) >= 13

    def test_the_seed_decides_and_nothing_else(self) -> None:
        state = torch.get_rng_state()
        a, b, c = (restricted_symbols(12, 12, 12, seed) for seed in (0, 0, 1))
        assert torch.equal(state, torch.get_rng_state())
        for x, y, z in zip(sets(a), sets(b), sets(c), strict=True):
            assert x.fingerprint() == y.fingerprint() != z.fingerprint()

    def test_sizes_do_not_change_the_other_parts(self) -> None:
        """Fails if parts share a stream: a longer pre-training would change what is forgotten."""
        a, b = restricted_symbols(12, 12, 12), restricted_symbols(24, 12, 12)
        assert a.train.forget.fingerprint() == b.train.forget.fingerprint()
        assert a.held_out.fingerprint() == b.held_out.fingerprint()

    @pytest.mark.parametrize("sizes", [(11, 12, 12), (12, 11, 12), (12, 12, 0)])
    def test_every_family_must_be_seen(self, sizes: tuple[int, int, int]) -> None:
        with pytest.raises(ValueError, match="there are 12 families: draw at least as many"):
            restricted_symbols(*sizes)
