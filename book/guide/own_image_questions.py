"""Forget what is in one image: images and questions of one's own, and a LLaVA with its processor."""

from PIL import Image, ImageDraw
from transformers import CLIPImageProcessor, LlavaProcessor

from unlearn_core.data import ForgetSplit, VisualAnswering, VisualSet
from unlearn_core.methods import GradDiff
from unlearn_core.models import (
    TinyLlava,
    TrainConfig,
    VisionChat,
    shuffled_epochs,
    train,
    vocabulary_of,
)

COLOURS = ("red", "green", "blue", "yellow")
QUESTION = "What is in the image?"
ANSWERS = [f"A {colour} disc." for colour in COLOURS]


def picture(colour: str, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).ellipse((2, 2, width - 2, height - 2), fill=colour)
    return image


images = [picture(c, 40 + 8 * i, 64 - 8 * i) for i, c in enumerate(COLOURS)]  # of any size

# A model of yours: LlavaForConditionalGeneration.from_pretrained(...) and
# AutoProcessor.from_pretrained(...). This one is small, and knows the words of these texts.
small = TinyLlava(
    vocabulary_of([QUESTION, *ANSWERS]), vision_hidden=32, vision_layers=2, hidden=64, layers=2
).build(seed=0)
processor = LlavaProcessor(
    image_processor=CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ),
    tokenizer=small.tokenizer,
    patch_size=8,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
    chat_template=(
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>\n"
        "{% else %}{{ c.text }}{% endif %}{% endfor %}{% if m.role == 'user' %}\n{% endif %}"
        "{% endfor %}"
    ),
)
chat = VisionChat.from_processor(small.model, processor)

data = VisualSet.from_images(images, [QUESTION] * 4, ANSWERS)
encoded = chat.encoded(data)
split = ForgetSplit(
    "the red disc", VisualAnswering(), forget=encoded.subset([0]), retain=encoded.subset([1, 2, 3])
)

# The original has learned all four.
learn = TrainConfig(epochs=80, lr=2e-3, batch_size=4, optimizer="adamw")
train(chat, shuffled_epochs(encoded, learn, seed=0), split.task.loss, learn)

method = GradDiff(train=TrainConfig(epochs=6, lr=5e-4, batch_size=1, optimizer="adamw"))
unlearned = method(chat, split, seed=0)

for name, one in (("original", chat), ("unlearned", unlearned)):
    said = one.answer([QUESTION] * 4, images, max_new_tokens=8)
    scores = one.log_probs(list(zip([QUESTION] * 4, ANSWERS, images, strict=True)))
    print(name)
    for answer, text, score in zip(ANSWERS, said, scores, strict=True):
        print(f"  {answer:16} probability {score.sum().exp():.2f}, says: {text}")
