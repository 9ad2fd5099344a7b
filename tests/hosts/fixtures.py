"""The test host that every test of a session shares: making it takes minutes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.fault_site import build_fault_image
from tests.hosts.host import FAULT_IMAGE, STACK_IMAGE, STACK_IMAGES, TestHost, build_images


@pytest.fixture(scope="session")
def machine() -> Iterator[TestHost]:
    """A host with the product's image, and with the fault image on top of it."""
    build_images()
    build_fault_image(STACK_IMAGE, FAULT_IMAGE)
    with TestHost("sglang-testhost-users", "127.0.0.22", 2222) as made:
        made.load(*STACK_IMAGES, FAULT_IMAGE)
        yield made
