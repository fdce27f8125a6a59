"""Keep what methods made: weights, what is around them, and word of how they were made."""

import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from unlearn_core.data import (
    Classification,
    digits,
    fictional_authors,
    forget_class,
    forget_questions,
)
from unlearn_core.methods import SSD, Prompting
from unlearn_core.models import (
    Chat,
    Recipe,
    SmallCNN,
    TinyLlama,
    TrainConfig,
    load_pretrained,
    save_pretrained,
)

folder = Path(tempfile.mkdtemp())

# A classifier that can be saved by itself.
data = digits()
split = forget_class(data, "3")
recipe = Recipe(SmallCNN(classes=10), Classification(classes=10), TrainConfig(epochs=1, lr=0.1))
unlearned = SSD(alpha=5)(recipe.fit(data.train, seed=0), split, seed=0)
save_pretrained(unlearned, folder / "digits")
loaded = load_pretrained(folder / "digits")
assert data.test is not None
image = data.test[0][0][None]
print("digits:", sorted(file.name for file in (folder / "digits").iterdir()))
print("  the same outputs:", torch.equal(loaded(image), unlearned(image)))
print("  made by:", json.dumps(loaded.made_by[0]))

# One of which only you know how it is built: its weights are kept, and loaded into another.
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
save_pretrained(SSD(alpha=5)(net, split), folder / "net")
load_pretrained(folder / "net", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))

# A chat whose weights are the original's, with something before what is to be forgotten.
chat = TinyLlama().build(seed=0)
questions = forget_questions(fictional_authors(4, 1, 1), chat.encoded)
prompted = Prompting()(chat, questions)
prompted.save_pretrained(folder / "prompted")
again = Chat.from_pretrained(folder / "prompted")
question = questions.forget.questions.questions[0]
print("prompted:", sorted(file.name for file in (folder / "prompted").iterdir()))
print("  the same answer:", again.answer([question], 8) == prompted.answer([question], 8))

ids = again.tokenizer(again.prompt(question).rstrip(" "), return_tensors="pt")["input_ids"]
said = again.generate(ids, max_new_tokens=8)  # as transformers' generate, with what is before it
print("  generate says it too:", again.tokenizer.decode(said[0, ids.shape[1] :]).strip() != "")
