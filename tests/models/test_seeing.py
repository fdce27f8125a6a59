"""A vision tower that learns which words are said about an image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unlearn_core.data import VisualAnswering, VisualSet
from unlearn_core.models import SeeingRecipe, TinyLlava, TrainConfig, learn_to_see, vocabulary_of
from unlearn_core.models.vision import _Naming, _Seen

COLOURS = ("red", "green", "blue")


def coloured(n: int) -> VisualSet:
    """Images of one colour each, under a sentence and a word about it."""
    images = torch.zeros(n, 8, 8, 3, dtype=torch.uint8)
    for i in range(n):
        images[i, :, :, i % 3] = 255
    names = [COLOURS[i % 3] for i in range(n)]
    which = torch.arange(n).repeat_interleave(2)
    answers = [text for name in names for text in (f"It is {name}.", name.capitalize())]
    return VisualSet(images, which, ("What is it?", "Which?") * n, tuple(answers))


SPEC = TinyLlava(
    vocabulary_of(["What is it", "Which", *COLOURS]),
    **{"size": 8, "patch": 4, "vision_hidden": 16, "vision_layers": 1, "vision_heads": 2},
    **{"hidden": 16, "layers": 1, "heads": 2},
)
TRAIN = TrainConfig(epochs=25, lr=0.01, batch_size=6, optimizer="adamw")


def test_words_that_are_said_of_all_images_are_no_labels() -> None:
    """Fails where "it" and "is" are learned, or a capital makes another word."""
    seen = _Seen(coloured(6), SPEC.build(0).transform)
    assert seen.words == ["blue", "green", "red"]
    assert seen.present.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]] * 2


def test_it_tells_images_apart_and_touches_nothing_else() -> None:
    """Fails where the tower isn't the one that learns: its patches alone must then tell colours."""
    chat, data = SPEC.build(0), coloured(12)
    before = {k: v.clone() for k, v in chat.state_dict().items()}
    learn_to_see(chat, data, TRAIN, seed=0)
    moved = {k for k, v in chat.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all("vision_tower" in k for k in moved)
    naming = _Naming(chat.model.model.vision_tower, 3)
    patches = naming.tower(chat.transform(data.images)).last_hidden_state[:, 1:].mean(dim=1)
    apart = torch.cdist(patches, patches)
    same = torch.arange(12)[:, None] % 3 == torch.arange(12) % 3
    assert apart[same].max() < apart[~same].min() / 10


def test_the_same_seed_sees_the_same() -> None:
    towers = []
    for seed in (0, 0, 1):
        chat = SPEC.build(0)
        learn_to_see(chat, coloured(6), replace(TRAIN, epochs=1), seed)
        towers.append(torch.cat([p.flatten() for p in chat.model.model.vision_tower.parameters()]))
    assert torch.equal(towers[0], towers[1])
    assert not torch.equal(towers[0], towers[2])


def test_images_that_all_look_alike() -> None:
    with pytest.raises(ValueError, match="the same words"):
        learn_to_see(SPEC.build(0), coloured(1), TRAIN, seed=0)


def test_a_recipe_sees_before_it_answers() -> None:
    """Fails where the tower is not trained at all, or trained along with the answers."""
    recipe = SeeingRecipe(SPEC, VisualAnswering(), replace(TRAIN, epochs=1), TRAIN)
    data = recipe.build(0).encoded(coloured(12))
    seeing = recipe.build(0)
    learn_to_see(seeing, data.questions, TRAIN, seed=0)
    made = recipe.fit(data, seed=0)
    moved = {
        name.startswith("model.model.vision_tower")
        for (name, a), b in zip(made.named_parameters(), seeing.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved == {False}
