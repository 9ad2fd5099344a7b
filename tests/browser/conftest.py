"""A real browser for the tests of a page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.browser.browser import Browser


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    program = shutil.which("chromium")
    if program is None:
        pytest.fail(
            "there is no chromium, which looks at the report's page: run `apt-get install chromium`"
        )
    return Browser(program, tmp_path)
