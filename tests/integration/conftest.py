"""Real parts only: the real image, container, Prometheus, and a real server on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.integration.installation import CONTAINER, IMAGE, ROOT, Play, Site, docker, module, new_root, service_user


@pytest.fixture(scope="session")
def image() -> str:
    """The real image, made by the project's own module where it is missing or outdated; never removed."""
    arguments = {"name": IMAGE, "context": str(ROOT / "roles" / "image" / "files"), "flavour": "local"}
    answer = module("sgl_image", arguments)
    assert not answer.get("failed"), answer["msg"]
    return str(answer["image"]["id"])


@pytest.fixture(scope="session")
def site(image: str) -> Iterator[Site]:
    """The installation, taken from nothing to METRICS_READY once; what that play came to is in `first`."""
    base = new_root()
    made = Site(base / "sglang-observability", user=service_user())
    docker("rm", "--force", made.container, check=False)
    try:
        yield made
    finally:
        made.remove()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def first(site: Site) -> Play:
    """The first prep of this installation."""
    return site.must_play("prep")


@pytest.fixture
def prepared(site: Site, first: Play) -> Site:
    """The installation at METRICS_READY."""
    site.ensure_prepared()
    return site


@pytest.fixture
def bare(image: str) -> Iterator[Site]:
    """An installation of which nothing is there yet, with names and ports of its own."""
    base = new_root()
    made = Site(
        base / "sglang-observability",
        container=f"{CONTAINER}-bare",
        ports={"prometheus": 19391, "node_exporter": 19398, "sglang": 31391},
        user=service_user(),
    )
    docker("rm", "--force", made.container, check=False)
    try:
        yield made
    finally:
        made.remove()
        shutil.rmtree(base, ignore_errors=True)
