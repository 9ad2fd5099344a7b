"""What a model thought and what it answered, told apart by the tags that reasoning models write."""

from __future__ import annotations

import re

_OPEN, _CLOSE = "<think>", "</think>"
_THOUGHT = re.compile(f"{_OPEN}(.*?)(?:{_CLOSE}|\\Z)", re.DOTALL)


def split(text: str) -> tuple[str | None, str]:
    """Reasoning, None where there is no tag, and answer. Thoughts that are never closed leave an
    empty answer.
    """
    before, closed, _ = text.partition(_CLOSE)
    if closed and _OPEN not in before:
        # The chat template opened the thought already: only its end is the model's.
        text = _OPEN + text
    thoughts = _THOUGHT.findall(text)
    if not thoughts:
        return None, text
    return "\n".join(thought.strip() for thought in thoughts), _THOUGHT.sub("", text).strip()
