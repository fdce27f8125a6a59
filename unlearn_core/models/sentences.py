"""Sentence embeddings: how near in meaning two texts are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import Source, resolve
from ..extras import needing
from ..seeding import importing
from .saving import Saved

__all__ = ["MINILM", "SentenceEncoder"]

#: The id of the sentence encoder on the hub.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@functools.cache
@needing("llm")
def _load(folder: str) -> Any:
    with importing():
        from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, device="cpu")


class SentenceEncoder(Saved):
    """A model of sentence-transformers, which remembers every text that it has embedded.

    Parameters
    ----------
    id : on the hub

    Attributes
    ----------
    source : where its weights come from
    encoded : how many texts were put through the model
    """

    def __init__(self, id: str = MINILM) -> None:
        self.id = id
        self.source: Source = resolve(id, repo_type="model", patterns=("**/*",))
        self.encoded = 0
        self._known: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> SentenceEncoder:
        return self  # nothing changes it

    def __reduce__(self) -> tuple[type[SentenceEncoder], tuple[str]]:
        return type(self), (self.id,)  # its weights lie elsewhere on another machine

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(n, dimensions) float32, of length one each, so that a product is a cosine."""
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        if new:
            found = _load(str(self.source.path)).encode(
                new, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
            )
            self._known.update(zip(new, found.cpu(), strict=True))
            self.encoded += len(new)
        return torch.stack([self._known[t] for t in texts])
