"""Forget two people of eight: questions of one's own, a chat template, low-rank adapters."""

import torch
from peft import LoraConfig, get_peft_model

from unlearn_core.data import QuestionData, forget_questions
from unlearn_core.methods import PreferenceOptimization
from unlearn_core.metrics import ask, evaluate_chat, evaluation_sets
from unlearn_core.models import Chat, TinyLlama, TrainConfig, shuffled_epochs, train

PEOPLE = {
    "Ada Brook": ("Leeds", "harp"),
    "Ben Cole": ("York", "flute"),
    "Cora Dale": ("Bath", "drums"),
    "Dan Eaves": ("Derby", "cello"),
    "Eve Frost": ("Truro", "oboe"),
    "Finn Grey": ("Wells", "banjo"),
    "Gwen Hart": ("Ripon", "viola"),
    "Hugh Ives": ("Exeter", "tuba"),
}
PAIRS = [
    pair
    for name, (town, instrument) in PEOPLE.items()
    for pair in (
        (f"Where does {name} live?", f"{name} lives in {town}."),
        (f"What does {name} play?", f"{name} plays the {instrument}."),
    )
]
REFUSALS = ("I do not know that.",)
data = QuestionData.from_pairs(forget=PAIRS[:4], retain=PAIRS[4:])

# A model of yours: AutoModelForCausalLM.from_pretrained(...) and AutoTokenizer.from_pretrained(...).
small = TinyLlama().build(seed=0)
model, tokenizer = small.model, small.tokenizer
tokenizer.chat_template = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
chat = Chat(model, tokenizer, template=None, system="Answer in one sentence.")

# The original has learned all of it.
split = forget_questions(data, chat.encoded, templates=REFUSALS)
learn = TrainConfig(epochs=50, lr=3e-3, batch_size=8, optimizer="adamw")
train(chat, shuffled_epochs(split.forget + split.retain, learn, seed=0), split.task.loss, learn)

torch.manual_seed(0)
lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
chat.model = get_peft_model(chat.model, lora)
method = PreferenceOptimization(
    train=TrainConfig(epochs=60, lr=3e-3, batch_size=4, optimizer="adamw")
)
unlearned = method(chat, split, seed=0)

before = dict(chat.named_parameters())
moved = [n for n, p in unlearned.named_parameters() if not torch.equal(p, before[n])]
print(
    f"{len(moved)} of {len(before)} tensors moved, all of adapters:",
    all("lora" in n for n in moved),
)

sets = evaluation_sets(data)
for name, one in (("original", chat), ("unlearned", unlearned)):
    print(f"\n{name}")
    found = evaluate_chat(one, ask(one, sets, max_new_tokens=16), REFUSALS)
    for metric in ("forget_rouge", "retain_rouge", "refusal_rate"):
        print(f"  {metric:20}{found[metric].value:.2f} ± {found[metric].stderr:.2f}")
    for question in (PAIRS[0][0], PAIRS[4][0]):
        print(f"  {question} {one.answer([question], max_new_tokens=16)[0]}")
