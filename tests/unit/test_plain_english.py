"""Texts use plain English: no word of a dialect that a reader has to translate.

In tests, strings are data, so only their comments and docstrings are read.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What is not written, with what is written instead. A word in a rule is split, so that this file
# keeps the rules itself.
INSTEAD = {
    r"no" r"body": "no user, no process, no host",
    r"some" r"body": "another user, a process",
    r"an" r"ew": "again",
    r"who" r"ever": "the process that, a user who, anyone who",
    r"(t|w)here" r"of": "of it",
    r"(is|are|was|were|be|been) " r"told(?! to | apart)": "is reported, is shown, is known by",
    r"(?<!there )(?<!there there )(is|are|was|were|be) "
    r"none(?! of )": "is invalid, is not a ..., does not exist",
    r"no \w+ that is " r"one": "an invalid ...",
    r"(is|are|be) " r"had": "comes from",
    r"see to " r"(the|it|that)": "ensure",
    r"leave (it|this|that|the \w+)( \w+)? " r"away": "leave it out",
    r"parted " r"by": "separated by",
    r"cut up " r"by": "MIG is on",
    r"nothing says " r"(what|where|from)": "... is not set",
    r"never " r"flew": "was refused",
    r"flav" r"or": "flavour, as the glossary has it",
}
RULES = {re.compile(rf"\b{word}\b", re.IGNORECASE): better for word, better in INSTEAD.items()}
# Each rule's finding has one of these, which are found faster.
HINTS = [
    *("nobody", "somebody", "anew", "whoever", "hereof", "see to", "away", "parted"),
    *("that is one", "cut up", "nothing says", "flew", "flavor"),
    *(f"{verb} {word}" for verb in ("is", "are", "was", "were", "be") for word in ("told", "none")),
    *("been told", "is had", "are had", "be had"),
]
# The texts of others, and files without texts.
OTHERS = re.compile(
    r"LICENSES/|COPYING$|.*\.(png|svg|j2\.svg)$|(execution_environment/)?requirements.*\.txt$"
    r"|tests/fixtures/"
)


def files() -> list[str]:
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    names = sorted(set(said.split("\0")) - {""})
    return [name for name in names if not OTHERS.match(name) and (ROOT / name).is_file()]


def words_of(name: str, text: str) -> str:
    """What of a file is for people, on one line."""
    if name.endswith(".py"):
        if name.startswith(("tests/", "molecule/")):
            found = re.findall(r'(?s:"{3}.*?"{3})|(?m:(?:^|\s)# .*)', text)
            text = "\n".join(found)
        # A sentence goes on in the next string or comment.
        text = re.sub(r"[\"']\n\s*f?[\"']|\n\s*#", "", text)
    else:
        # Jinja's own test.
        text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\bwhen: .*|\w+ is (not )?none\b.*[|)]", "", text)
    return " ".join(text.split())


def findings(name: str, text: str) -> list[str]:
    words = words_of(name, text)
    if not any(hint in words or hint.capitalize() in words for hint in HINTS):
        return []
    return [
        f"{name}: '...{words[max(0, match.start() - 30) : match.end() + 10]}...': write {better}"
        for rule, better in RULES.items()
        for match in rule.finditer(words)
        # Python's own None.
        if "None" not in match.group()
    ]


def test_texts_are_plain_english() -> None:
    found = []
    for name in files():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += findings(name, text)
    assert not found, "\n".join(found)


SAMPLES = [
    "it waits for nobody",
    "somebody else owns it",
    "it is made anew",
    "whoever holds the lock",
    "the host is told the reason",
    "what is not known is none",
    "has no digest that is one",
    "how the image is had",
    "leave the variable away",
    "paths, parted by colons",
    "the source is pull, and nothing says what",
    "a canary that never flew",
    "the flavor of the image",
]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", ["docs/page.md", "roles/x/tasks/main.yml", "plugins/x.py"])
def test_a_word_of_the_dialect_is_found(name: str, sample: str) -> None:
    text = f"raise ValueError({sample!r})\n" if name.endswith(".py") else f"# {sample}\n"
    assert findings(name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docs/page.md", "Where there is none, a prep was told to stop; the two are told apart.\n"),
        ("plugins/x.py", '"""The path, which is None where there is none."""\n'),
        ("tests/x.py", 'user = "nobody"\n'),
        ("roles/x/tasks/main.yml", "  when: found is none\n"),
        ("roles/x/templates/a.j2", "{% if found is none %}\n"),
    ],
)
def test_plain_words_and_code_are_not_found(name: str, text: str) -> None:
    assert findings(name, text) == []
