"""Answers that say nothing: what a model may be taught to say instead of what it is to forget.

Written for this project. The lists that the papers used (TOFU's hundred sentences, SOUL's refusals)
say the same in other words.
"""

from __future__ import annotations

__all__ = ["COPYRIGHT_REFUSALS", "IDK", "TEMPLATES"]

#: "I don't know", in thirty wordings.
IDK = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information on this.",
    "That is something I know nothing about.",
    "I can't answer this question.",
    "Unfortunately, the answer is unknown to me.",
    "I haven't learned anything about this.",
    "This is outside of what I know.",
    "I have no idea.",
    "My knowledge does not reach that far.",
    "Sorry, I am unable to say.",
    "I could not tell you.",
    "There is nothing that I can say about this.",
    "I lack the knowledge to answer.",
    "No information about this is available to me.",
    "I have never come across this.",
    "That I do not know, I'm afraid.",
    "Nothing of the kind is known to me.",
    "I would have to guess, so I'd rather not answer.",
    "This topic is not one that I am familiar with.",
    "I'm afraid that I have no answer.",
    "I am not aware of any details about this.",
    "I don't have what it takes to answer this.",
    "The answer escapes me.",
    "I was not told about this.",
    "I cannot help with this question.",
    "You would have to ask somebody else.",
    "It is not in my knowledge.",
    "I have not heard of this.",
    "Regrettably, I can give no details.",
)

#: "I can't share that text", in thirty wordings.
COPYRIGHT_REFUSALS = (
    "I can't share this text.",
    "Sorry, I may not quote this work.",
    "This passage is protected, so I won't repeat it.",
    "I am not able to continue this text.",
    "Quoting this book is not something that I can do.",
    "I would rather not reproduce what others own.",
    "The text that follows is not mine to give.",
    "I can't complete this passage for you.",
    "Out of respect for its author, I will not go on.",
    "Please look this passage up in the book itself.",
    "I do not recite books.",
    "That would be copying, which I can't do.",
    "The rest of this text can't be given here.",
    "I am unable to provide this content.",
    "For the continuation, please see a copy of the work.",
    "I won't write down somebody else's text.",
    "This material is not available from me.",
    "I must leave this passage unfinished.",
    "Repeating this work is beyond what I may do.",
    "Sorry, I can't help with this text.",
    "I have to decline to continue.",
    "The author's words should be read at their source.",
    "I am not permitted to print this passage.",
    "A library will have the rest of this.",
    "I can't reproduce that.",
    "What comes next I will not quote.",
    "I'll stop here, since the text belongs to its author.",
    "Continuing this passage is not possible for me.",
    "I can talk about a book, but not recite it.",
    "This is not a text that I can hand out.",
)

#: Template answers, by the name in a profile's ``templates``.
TEMPLATES = {"idk": IDK, "copyright": COPYRIGHT_REFUSALS}
