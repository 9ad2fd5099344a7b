"""`make docs` builds the site without a warning, with each page and each module."""

from __future__ import annotations

import subprocess

import pytest

from tests.integration.installation import ROOT

# Its tools are installed first, which takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_the_site_has_every_page_and_module() -> None:
    done = subprocess.run(
        ["make", "docs"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / ".cache" / "site" / "html"
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    modules = [path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")]
    expected = [site / page.with_suffix(".html") for page in pages]
    expected += [site / "collection" / f"{module}_module.html" for module in modules]
    assert [path for path in expected if not path.is_file()] == []
    # The pictures that HTML in README.md shows.
    assert (site / "docs" / "images" / "report-dark.png").is_file()
