"""Installations on the fault image: real containers and Prometheus, a double of the server, faults
where a test wants them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.fault_site import FaultSite, build_fault_image
from tests.integration.installation import installation, make_image


@pytest.fixture(scope="session")
def fault_image() -> None:
    """The fault image, on the product's own as it is now."""
    make_image()
    build_fault_image()


@pytest.fixture(scope="session")
def fault_site(fault_image: None) -> Iterator[FaultSite]:
    """An installation that a real prep took to METRICS_READY with the double as its server."""
    with installation(FaultSite) as made:
        made.must_play("prep")
        yield made


@pytest.fixture
def faulty(fault_site: FaultSite) -> FaultSite:
    """The installation at METRICS_READY, whatever an earlier test did to it."""
    fault_site.ensure_prepared()
    return fault_site
