"""Makes docs/images/report*.png with the browser of tests/browser:
`.venv/bin/python scripts/screenshots.py`. They show the page of an example, three hosts.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / ".ansible" / "collections")]

from ansible_collections.slice_bench.sglang.plugins.plugin_utils.report_page import (  # noqa: E402
    render,
)

from tests.browser import reports  # noqa: E402
from tests.browser.browser import Browser  # noqa: E402

IMAGES = ROOT / "docs" / "images"
HOSTS, MAX_BYTES = 3, 200_000
# Name of the picture, and its size in px: one for a desk, one for a phone.
SIZES = {"report": (1120, 960), "report-narrow": (500, 350)}


def main() -> None:
    program = shutil.which("chromium")
    if program is None:
        sys.exit("there is no chromium, which takes the pictures: run `make test-tools-up`")
    page = render(reports.fleet(HOSTS))
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(program, Path(folder))
        for name, scheme in itertools.product(SIZES, ("light", "dark")):
            picture = IMAGES / f"{name}-{scheme}.png"
            browser.screenshot(page, picture, *SIZES[name], dark=scheme == "dark")
            size = picture.stat().st_size
            if size > MAX_BYTES:
                sys.exit(f"{picture} has {size} bytes, more than {MAX_BYTES}: make it smaller")
            print(f"written: {picture.relative_to(ROOT)} ({size // 1000} kB)")


if __name__ == "__main__":
    main()
