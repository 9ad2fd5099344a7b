# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads the XML of `nvidia-smi -q -x` so that what is damaged in it costs itself alone.

The whole is rarely damaged: a control character in a product name, a line of a driver's message in
the middle, an element that is cut off. A strict parser would give up all GPUs for it, and with them
every refusal. No entity is expanded but XML's own five.

Three things of nvidia-smi's XML are relied on (drivers 470 to 610): an element holds text or
elements, never both; GPUs come last and are not nested; each has an id and begins with its
product_name. So `<gpu>` without an id, or `</gpu>` in the middle, is what is left of another name.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from ._contract.texts import one_line

_ROOT = "nvidia_smi_log"
_GPU = "gpu"
# What each GPU begins with.
_FIRST = "product_name"
# What a partition of a GPU says of itself is under the names of what the GPU says.
_PARTITION = "mig_device"
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKUP = re.compile(
    r"<[!?][^<>]*>|<(?P<end>/?)(?P<name>[A-Za-z_][\w.-]*)(?P<attributes>\s[^<>]*?)?(?P<empty>/?)>",
    re.ASCII,
)
_ID = re.compile(r"\sid\s*=\s*[\"']([^\"'<>]*)[\"']", re.ASCII)
# What takes a value's place where there is none.
NO_VALUE = (
    *("", "N/A", "None", "Not Found", "Not Supported", "Not Available", "Unknown Error"),
    *("GPU is lost", "GPU requires reset", "Insufficient Permissions"),
    "Requested functionality has been deprecated",
)
# The last one is made of no other's text.
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&amp;": "&"}
# nvidia-smi nests seven deep.
_MAX_DEPTH = 32


def number(text: str) -> int | None:
    """The whole number that a value begins with, without its unit; None where it has none."""
    found = re.match(r"\d{1,15}(?!\d)", text.strip(), re.ASCII)
    return int(found[0]) if found else None


class Part:
    """A part of the log, such as one GPU. Its texts are found by the end of their path."""

    def __init__(self, element: ET.Element) -> None:
        self.id = one_line(element.get("id", ""))
        self._element = element
        self._texts: dict[str, list[tuple[str, str]]] = {}
        for path, text in self._leaves():
            self._texts.setdefault(path.rpartition("/")[2], []).append((path, text))

    def _leaves(self) -> Iterator[tuple[str, str]]:
        open_: list[tuple[str, ET.Element]] = [("", self._element)]
        while open_:
            path, element = open_.pop()
            if element.text:
                yield path, element.text
            # In the order of the log.
            open_ += [
                (f"{path}/{child.tag}", child)
                for child in reversed(element)
                if child.tag not in (_PARTITION, _GPU)
            ]

    def text(self, path: str) -> str:
        """The text of the first element at this path, which may begin at any depth; empty where
        there is none.
        """
        for found, text in self._texts.get(path.rpartition("/")[2], []):
            if found.endswith(f"/{path}"):
                return one_line(text)
        return ""

    @property
    def empty(self) -> bool:
        return not self._texts

    def texts(self) -> Iterator[tuple[str, str]]:
        """All paths with their texts."""
        for found in self._texts.values():
            yield from found

    def parts(self, name: str) -> Iterator[Part]:
        """The elements of that name, each for itself."""
        for element in self._element.iter(name):
            yield Part(element)


class Log:
    """What nvidia-smi printed: the log itself, its GPUs, and what stands around it."""

    def __init__(self, answer: str) -> None:
        text = _ILLEGAL.sub("", answer)
        self.damaged = len(text) != len(answer)
        self._root = ET.Element(_ROOT)
        self._open = [self._root]
        self._began = self._ended = False
        around = self._read(text)
        self.damaged |= not self._ended or self._inside()
        self.around = one_line(" ".join(around))
        self.gpus = [Part(element) for element in self._root.findall(_GPU)]
        self.head = Part(self._root)

    def _read(self, text: str) -> list[str]:
        """Build the tree; returns the text outside of it."""
        around = []
        position = 0
        for markup in _MARKUP.finditer(text):
            around.append(self._text(text[position : markup.start()]))
            position = markup.end()
            name = markup["name"]
            if name is None or name == _ROOT:
                self._began |= name is not None
                self._ended |= bool(name and markup["end"])
            elif markup["end"]:
                self._close(name)
            elif name == _GPU and not _ID.search(markup["attributes"] or ""):
                self.damaged = True
            else:
                self._begin(name, markup["attributes"] or "")
                if markup["empty"]:
                    self._close(name)
        return [*around, text[position:]]

    def _text(self, text: str) -> str:
        """Give text to the innermost element; returns it where there is none."""
        if not text.strip():
            return ""
        top = self._open[-1]
        if not self._inside():
            self.damaged |= self._began and not self._ended
            return text
        if len(top):
            # A message between two elements.
            self.damaged = True
        else:
            top.text = (top.text or "") + _unescaped(text.strip())
        return ""

    def _begin(self, name: str, attributes: str) -> None:
        top = self._open[-1]
        if name == _GPU or len(self._open) > _MAX_DEPTH:
            self.damaged |= self._inside()
            del self._open[1:]
        elif name == top.tag == _FIRST:
            # Its end is damaged; a GPU says more of itself before the next one begins.
            self.damaged = True
            top.text = None
            self._open.pop()
        elif name == _FIRST and self._needs_gpu():
            # Its own beginning is damaged.
            self.damaged = True
            del self._open[1:]
            self._push(_GPU, "")
        elif top.text:
            # An element with text that never ended.
            self.damaged = True
            self._open.pop()
        self._push(name, attributes)

    def _inside(self) -> bool:
        """Whether an element is open that is neither the log nor a GPU."""
        return self._open[-1].tag not in (_ROOT, _GPU)

    def _needs_gpu(self) -> bool:
        for element in self._open:
            if element.tag == _GPU:
                return next(element.iter(_FIRST), None) is not None
        return True

    def _push(self, name: str, attributes: str) -> None:
        element = ET.SubElement(self._open[-1], name)
        if name == _GPU and (found := _ID.search(attributes)):
            element.set("id", found[1])
        self._open.append(element)

    def _close(self, name: str) -> None:
        names = [element.tag for element in self._open[1:]]
        if name not in names:
            self.damaged = True
            return
        depth = len(names) - names[::-1].index(name)
        self.damaged |= depth < len(names)
        # A GPU ends where the next one begins, or the log ends.
        del self._open[depth + (name == _GPU) :]


def _unescaped(text: str) -> str:
    """As xml.sax.saxutils does, whose import would cost each host as much as all of this module."""
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    return text
