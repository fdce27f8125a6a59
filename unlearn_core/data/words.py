"""A text as a list of words, and the words that say nothing by themselves."""

from __future__ import annotations

import functools
import re

from ..seeding import importing

__all__ = ["function_words", "words_of"]


def words_of(text: str) -> list[str]:
    """The words of a text as they are written, without a possessive's ending."""
    found = re.findall(r"\w+(?:['’-]\w+)*", text)
    return [re.sub(r"['’]s$", "", word) for word in found]


@functools.cache
def function_words() -> frozenset[str]:
    """English words that say nothing by themselves, in lower case: scikit-learn's list."""
    with importing():
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS
