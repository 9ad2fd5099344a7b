"""Measures the prose of README.md and of the four parts of docs/: `python scripts/prose.py`.

Prose is what a reader reads as sentences: paragraphs, list items and quotes. Tables, code,
headings, pictures and generated parts are left out. A screen is what 40 lines show.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tutorials", "how-to", "reference", "explanation")
PARAGRAPH_WORDS, SENTENCE_WORDS, SCREEN_LINES = 80, 16, 40
README_LINES, README_WORDS = 120, 750

_LINK = re.compile(r"\[[^\]]*\]\([^)]+\)")
_GENERATED = re.compile(r"<!-- (?P<name>[\w ]+) -->\n.*?<!-- end of (?P=name) -->\n", re.DOTALL)
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
# The end of a sentence: a mark, then a space and no small letter. A path has no space.
_SENTENCE_END = re.compile(r"[.!?][*)\"']*\s+(?=[^a-z\s])")


@dataclass(frozen=True)
class Measure:
    """What one page came to."""

    longest_paragraph: int
    mean_sentence: float
    screens_without_link: list[int]


def pages() -> list[Path]:
    found = [path for part in PARTS for path in sorted((ROOT / "docs" / part).glob("*.md"))]
    return [ROOT / "README.md", *found]


def paragraphs(text: str) -> Iterator[str]:
    """Each paragraph or list item as one line, with the words of its links alone."""
    text = _FENCE.sub("", _GENERATED.sub("", text))
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        line = line.removeprefix("> ")
        starts = re.match(r"\s*([-*]|\d+\.) ", line)
        skipped = re.match(r"    |\||#|<|!\[", line) and not starts
        if not line.strip() or starts or skipped:
            if block:
                yield _words_of(" ".join(block))
            block = []
        if line.strip() and not skipped:
            block.append(re.sub(r"^\s*([-*]|\d+\.) ", "", line).strip())


def _words_of(text: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]+\)", r"\1", text)
    # Code reads as one word, whatever is in it.
    return re.sub(r"`[^`]*`", "code", text).replace("**", "")


def sentences(paragraph: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(paragraph) if part.strip()]


def measure(text: str) -> Measure:
    found = list(paragraphs(text))
    lengths = [len(sentence.split()) for part in found for sentence in sentences(part)]
    return Measure(
        longest_paragraph=max((len(part.split()) for part in found), default=0),
        mean_sentence=sum(lengths) / len(lengths) if lengths else 0.0,
        screens_without_link=_screens_without_link(text),
    )


def _screens_without_link(text: str) -> list[int]:
    """The first line of each screen that has prose or tables and no link."""
    # What is generated is one table, however long.
    lines = _GENERATED.sub("", text).splitlines()
    screens = {
        start + 1: "\n".join(lines[start : start + SCREEN_LINES])
        for start in range(0, len(lines), SCREEN_LINES)
    }
    # The rest of a page's last screen may be short.
    return [
        first
        for first, screen in screens.items()
        if len(screen.splitlines()) > SCREEN_LINES // 2 and not _LINK.search(screen)
    ]


def problems(name: str, text: str) -> list[str]:
    """What of a page is not as it has to be."""
    found = measure(text)
    wrong = []
    if found.longest_paragraph > PARAGRAPH_WORDS:
        wrong.append(f"{name}: a paragraph of {found.longest_paragraph} words")
    if found.mean_sentence >= SENTENCE_WORDS:
        wrong.append(f"{name}: a mean sentence of {found.mean_sentence:.1f} words")
    wrong += [f"{name}:{line}: a screen without a link" for line in found.screens_without_link]
    if name == "README.md":
        lines, words = len(text.splitlines()), len(text.split())
        if lines > README_LINES or words > README_WORDS:
            wrong.append(f"{name}: {lines} lines and {words} words")
    return wrong


def main() -> None:
    wrong = []
    for path in pages():
        name = str(path.relative_to(ROOT))
        text = path.read_text(encoding="utf-8")
        found = measure(text)
        print(f"{name}: {found.longest_paragraph} words, {found.mean_sentence:.1f} a sentence")
        wrong += problems(name, text)
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
