"""README.md and docs/: links lead somewhere, commands exist, prose is short."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from scripts import prose
from sgl_admin.commands import main as sgl_admin
from sgl_admin.contract import stages
from slice_bench import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
_FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    return [first or second for first, second in _LINK.findall(without_code(text))]


def without_code(text: str) -> str:
    lines = [line for line in _FENCE.sub("", text).splitlines() if not line.startswith("    ")]
    return re.sub(r"`[^`]*`", "", "\n".join(lines))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]+\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def broken(page: Path, text: str) -> list[str]:
    """The relative links of a page that lead nowhere."""
    found = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _mark, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or not target.is_relative_to(ROOT):
            found.append(link)
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            found.append(link)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_and_anchor_leads_somewhere(name: str) -> None:
    page = ROOT / name
    assert broken(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "link", ["docs/none.md", "README.md#none", "#none", "../outside.md", "docs/images/none.svg"]
)
def test_a_link_that_leads_nowhere_is_found(link: str) -> None:
    assert broken(ROOT / "README.md", f"# Here\n\n[there]({link})\n") == [link]


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        if page.suffix == ".md":
            names = [link.partition("#")[0] for link in links(page.read_text(encoding="utf-8"))]
            waiting += [(page.parent / name).resolve() for name in names if name]
    assert sorted(str(page) for page in set(PAGES) - reached) == []


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]


def commands(name: str, text: str) -> Iterator[Command]:
    """Each line of a page's code blocks, as words."""
    fenced = [line for block in _FENCE.findall(text) for line in block.splitlines()]
    indented = [line[4:] for line in _FENCE.sub("", text).splitlines() if line.startswith("    ")]
    for line in [*fenced, *indented]:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # a line of a program, of JSON or of a message
        if words:
            yield Command(name, tuple(words))


def unknown(command: Command) -> str | None:
    """What a command names that this repository does not have."""
    words = command.words
    program = words[0].rpartition("/")[2]
    if program == "ansible-playbook":
        return next((word for word in words[1:] if not _is_playbook_or_option(word, words)), None)
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", _read("Makefile"), re.MULTILINE))
        return next((w for w in words[1:] if "=" not in w and w not in targets), None)
    if words[0].removeprefix("./").startswith(("scripts/", "tests/")):
        return None if (ROOT / words[0].removeprefix("./")).is_file() else words[0]
    for module, parser in PARSERS.items():
        # A lone name is a sentence's, or the collection's.
        if module in words[1:]:
            return _refused(words[words.index(module) + 1 :], parser())
    return None


def _is_playbook_or_option(word: str, words: tuple[str, ...]) -> bool:
    if word.startswith("slice_bench.sglang."):
        return (ROOT / "playbooks" / f"{word.rpartition('.')[2]}.yml").is_file()
    if word.startswith("playbooks/"):
        return (ROOT / word).is_file()
    if word.endswith(".yml"):
        return False
    if word.startswith("inventories/"):
        # The tutorials copy the example to inventories/lab.
        return word == "inventories/lab" or (ROOT / word).exists()
    return True


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _subcommands(
    parser: argparse.ArgumentParser, before: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Each command of an argparse parser, by its words."""
    choices = [each.choices for each in parser._actions if isinstance(each.choices, dict)]
    if not choices:
        yield before
    for name, inner in (item for group in choices for item in group.items()):
        yield from _subcommands(inner, (*before, name))


PARSERS = {"slice_bench.cli": cli.parser, "sgl-admin": sgl_admin._parser}


def _refused(words: tuple[str, ...], parser: argparse.ArgumentParser) -> str | None:
    """These words, where the real parser does not take them."""
    try:
        further = parser.parse_known_args(words)[1]
    except SystemExit:
        return " ".join(words)
    # A fleet's other arguments are ansible-playbook's, those of ready and server sgl-admin's.
    return " ".join(further) if further and words[0] not in ("fleet", "ready", "server") else None


def everything() -> list[Command]:
    return [
        command for name in [*NAMES, "CONTRIBUTING.md"] for command in commands(name, _read(name))
    ]


def test_every_command_in_a_code_block_exists() -> None:
    found = everything()
    programs = {command.words[0].rpartition("/")[2] for command in found}
    assert {"ansible-playbook", "make", "docker", "python"} <= programs
    wrong = [(command, unknown(command)) for command in found if unknown(command)]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "ansible-playbook playbooks/none.yml",
        "ansible-playbook -i inventories/none playbooks/prep.yml",
        "ansible-playbook slice_bench.sglang.none",
        "make none",
        "scripts/none.sh",
        "python -m slice_bench.cli none",
        "python -m slice_bench.cli stop --none",
        "docker exec sglang-dev sgl-admin caches none",
        "docker exec sglang-dev sgl-admin status --none",
        ".venv/bin/ansible-playbook playbooks/none.yml",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    [command] = commands("page", f"Text:\n\n    {line}\n")
    assert unknown(command)


# The words of a command before its flags, in the first column of a table.
WORDS = r"^\| `([a-z]+(?:[ -][a-z]+)*)"


def test_sgl_admins_commands_are_all_in_its_table() -> None:
    page = _read("docs/reference/sgl-admin.md")
    rows = {tuple(row.split()[:2]) for row in re.findall(WORDS, page, re.MULTILINE)}
    assert rows == set(_subcommands(sgl_admin._parser()))


def test_every_type_of_error_has_its_meaning() -> None:
    _before, _heading, section = _read("docs/reference/faults.md").partition("| type |")
    listed = re.findall(r"^\| `(\w+)` \| ", section.partition("\n## ")[0], re.MULTILINE)
    assert listed == list(stages.ERROR_TYPES)


@pytest.mark.parametrize("path", prose.pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_prose_is_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert prose.problems(str(path.relative_to(ROOT)), text) == []


LONG = "word " * 81
BAD_PAGES = {
    "a paragraph": f"# T\n\n[a](b) {LONG}\n",
    "a mean sentence": f"# T\n\n[a](b) {'word ' * 20}.\n",
    "a screen without a link": "# T\n\n" + "Short line.\n" * 40,
    "lines and": "# T\n\n" + "[a](b)\n\n" * 61,
}


@pytest.mark.parametrize("problem", BAD_PAGES)
def test_long_prose_is_found(problem: str) -> None:
    found = prose.problems("README.md", BAD_PAGES[problem])
    assert any(problem in one for one in found), found


def test_tables_code_and_generated_parts_are_no_prose() -> None:
    text = f"# T\n\n| {LONG} |\n\n    {LONG}\n\n<!-- x -->\n{LONG}\n<!-- end of x -->\n\n[a](b).\n"
    assert list(prose.paragraphs(text)) == ["a."]


def test_the_pictures_are_small_and_there_for_light_and_dark() -> None:
    pictures = sorted((ROOT / "docs" / "images").glob("*.png"))
    assert [picture.stem.rpartition("-")[2] for picture in pictures].count("dark") == 2
    assert len(pictures) == 4 and all(picture.stat().st_size < 200_000 for picture in pictures)


def test_the_archive_that_a_project_installs_is_this_release() -> None:
    version = yaml.safe_load(_read("galaxy.yml"))["version"]
    page = _read("docs/how-to/use-in-your-project.md")
    assert re.findall(r"slice_bench-sglang-([\d.]+)\.tar", page) == [version]


# Where the map of CONTRIBUTING.md abbreviates.
ROOTS = ("", "plugins", "plugins/module_utils", "plugins/module_utils/_contract", "sgl_admin")


def test_the_contributors_map_names_what_exists() -> None:
    names = re.findall(r"`([\w.-]+(?:/[\w.-]+)+/?)`", _read("CONTRIBUTING.md"))
    # `make slow` writes it.
    names.remove("tests/slow-lane.txt")
    assert len(names) > 60
    assert [name for name in names if not any((ROOT / r / name).exists() for r in ROOTS)] == []


# What operators ask, each with the page, its heading and words of the answer.
QUESTIONS = {
    "install": ("README.md", "Prepare your GPU hosts", "scripts/setup.sh"),
    "prepare one GH200": ("docs/tutorials/gh200-fleet.md", "4. Prepare", "playbooks/prep.yml"),
    "prepare ten": ("docs/explanation/fleet-sizing.md", "What each size needs", "| one | ten |"),
    "change the model": (
        "docs/how-to/models-and-profiles.md",
        "Change the model",
        "Set `sgl_model`",
    ),
    "two profiles": (
        "docs/how-to/models-and-profiles.md",
        "Keep two profiles on one host",
        "provider-prep",
    ),
    "serve": ("docs/how-to/serve.md", "Serve what was prepared", "server start"),
    "where is METRICS_READY": (
        "docs/reference/files.md",
        "METRICS_READY in a file",
        "telemetry_probe.ok",
    ),
    "what does it prove": ("docs/explanation/proof.md", "What it proves", "Prometheus scrapes"),
    "upgrade SGLang": ("docs/how-to/upgrade.md", "Upgrade SGLang", "sgl_image_base"),
    "roll back": ("docs/how-to/upgrade.md", "Roll back", "old digest"),
    "cancel": ("docs/how-to/watch.md", "Cancel", "prep cancel"),
    "watch": ("docs/how-to/watch.md", "Watch\n", "status --watch"),
    "reboot": ("docs/how-to/reboot.md", "Reboot a host", "prep.yml"),
    "disk full": ("docs/how-to/clean-up.md", "The disk is full", "can it go"),
    "uninstall": ("docs/how-to/clean-up.md", "Uninstall", "playbooks/uninstall.yml"),
    "proxy": ("docs/how-to/proxy-and-mirrors.md", "Proxy and mirrors", "where to set proxy"),
    "no internet": ("docs/how-to/air-gap.md", "A GH200 without the internet", "controller"),
    "share caches": ("docs/how-to/share-caches.md", "Share caches", "sgl_cache_share"),
    "exit code 13": ("docs/reference/exit-codes.md", "sgl-admin, and the", "| 13 | `inductor`"),
    "what leaves the host": ("docs/explanation/security.md", "What leaves a host", "report"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_one_link_from_the_readme(question: str) -> None:
    page, heading, words = QUESTIONS[question]
    readme = _read("README.md")
    assert page == "README.md" or page in {link.partition("#")[0] for link in links(readme)}
    _before, found, section = _read(page).partition(f"# {heading}")
    assert found and words in re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]
