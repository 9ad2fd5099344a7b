"""Real parts only: the real image, container, Prometheus, and a real server on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.installation import CONTAINER, Play, Site, installation, make_image


@pytest.fixture(scope="session")
def image() -> str:
    """The real image, made by the project's own module where it is missing or outdated; never
    removed.
    """
    return make_image()


@pytest.fixture(scope="session")
def site(image: str) -> Iterator[Site]:
    """The installation, taken from nothing to METRICS_READY once; what that play came to is in
    `first`.
    """
    with installation(Site) as made:
        yield made


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
def live(site: Site, first: Play) -> Site:
    """The installation with a live run, its caches warm; its metrics may not be proven."""
    site.ensure_live()
    return site


@pytest.fixture
def bare(image: str) -> Iterator[Site]:
    """An installation of which nothing is there yet, with names and ports of its own."""
    with installation(Site, container=f"{CONTAINER}-bare") as made:
        yield made
