"""A real browser, Debian's chromium, for what only a browser can say of a page."""

from __future__ import annotations

import html
import json
import subprocess
from pathlib import Path
from typing import Any

# A browser that hangs fails its test; one look takes two seconds.
LIMIT_S = 180

# Loads a page in a frame of a given width, which a window cannot have below 500 px, and puts what a
# function says of it in the title. The frame's document is of the outer one's origin, and the
# script stands outside it: the page's own policy holds inside.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><title></title>\
<style>body {{ margin: 0 }} iframe {{ border: 0; height: 900px }}</style>
<iframe width="{width}" srcdoc="{page}"></iframe>
<script>onload = () => {{ document.title = \
JSON.stringify(({look})(frames[0].document, frames[0])) }}</script>"""


class Browser:
    """Each call is a browser of its own, with a profile of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder

    def look(self, page: str, look: str, width: int = 1280, dark: bool = False) -> Any:
        """What the JavaScript function ``look(document, window)`` returns of a page of this width
        in px.
        """
        outer = self._write(
            "outer.html", FRAME.format(width=width, page=html.escape(page), look=look)
        )
        dom = self._run(
            "--dump-dom",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            outer.as_uri(),
        )
        return json.loads(html.unescape(dom.split("<title>")[1].split("</title>")[0]))

    def requests(self, page: str) -> list[str]:
        """Every address that the page makes the browser ask for when it is opened; the file itself
        is read without the network.

        What the browser asks for of its own accord has no origin, and is not the page's.
        """
        log = self._folder / "net-log.json"
        self._run(f"--log-net-log={log}", "--dump-dom", self._write("page.html", page).as_uri())
        found = json.loads(log.read_text(encoding="utf-8"))
        start = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
        asked = [
            event["params"]
            for event in found["events"]
            if event["type"] == start and "url" in event.get("params", {})
        ]
        return [params["url"] for params in asked if params["initiator"] != "not an origin"]

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def screenshot(
        self, page: str, picture: Path, width: int, height: int, dark: bool = False
    ) -> None:
        """A PNG of the top of a page, as a window of this size shows it."""
        self._run(
            f"--screenshot={picture}",
            f"--window-size={width},{height}",
            "--hide-scrollbars",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            self._write("page.html", page).as_uri(),
        )

    def _run(self, *arguments: str) -> str:
        # As root, and in a container, chromium's own sandbox cannot be made. It finds no other
        # machine to ask for updates.
        options = (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={self._folder / 'profile'}",
        )
        done = subprocess.run(
            [self._program, *options, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout
