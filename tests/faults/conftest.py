"""Installations on the fault image: real containers and Prometheus, a double of the server, faults where a test wants them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.faults.fault_site import FaultSite, build_fault_image
from tests.integration.installation import IMAGE, ROOT, docker, module, new_root, service_user


@pytest.fixture(scope="session")
def fault_image() -> None:
    """The fault image, on the product's own as it is now."""
    arguments = {"name": IMAGE, "context": str(ROOT / "roles" / "image" / "files"), "flavour": "local"}
    answer = module("sgl_image", arguments)
    assert not answer.get("failed"), answer["msg"]
    build_fault_image()


@pytest.fixture(scope="session")
def fault_site(fault_image: None) -> Iterator[FaultSite]:
    """An installation that a real prep took to METRICS_READY with the double as its server."""
    base = new_root()
    made = FaultSite(base / "sglang-observability", user=service_user())
    docker("rm", "--force", made.container, check=False)
    try:
        made.must_play("prep")
        yield made
    finally:
        made.remove()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def faulty(fault_site: FaultSite) -> FaultSite:
    """The installation at METRICS_READY, whatever an earlier test did to it."""
    fault_site.ensure_prepared()
    return fault_site
