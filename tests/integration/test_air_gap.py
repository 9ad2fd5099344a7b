"""docs/how-to/air-gap.md, walked: an image that was saved elsewhere, and a host whose network
reaches the controller only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.host import (
    ROOT,
    STACK_VARIABLES,
    TestHost,
    ansible,
    build_images,
    recap,
    run,
    write_inventory,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

# A name of its own: what other tests make meanwhile changes nothing here.
NAME = "sglang-dev:airgap"
IMAGE, PREP = (str(ROOT / "playbooks" / f"{name}.yml") for name in ("image", "prep"))
# No address of the test machine's networks: it is kept for documentation (RFC 5737).
ELSEWHERE = "192.0.2.1"


@pytest.fixture
def host() -> Iterator[TestHost]:
    build_images()
    made = TestHost("sglang-testhost-airgap", "127.0.0.24", 2224)
    made.up()
    try:
        made.execute("ip", "route", "del", "default")
        yield made
    finally:
        made.down()
        run("docker", "image", "rm", NAME, check=False)


def test_a_host_that_reaches_the_controller_only_gets_to_metrics_ready(
    host: TestHost, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    words = ("-i", str(ROOT / "inventories" / "local"), "-e", f"sgl_image={NAME}")
    saving = (*words, "-e", f"sgl_image_save={archive}", IMAGE)
    said = ansible(*saving).stdout
    digest = hashlib.file_digest(archive.open("rb"), "sha256").hexdigest()
    found = re.search(r"sgl_image_archive_sha256['\"]?: ['\"]?([0-9a-f]{64})", said)
    assert found is not None and found[1] == digest, said[-2000:]
    stamp = archive.stat().st_mtime_ns
    again = ansible(*saving).stdout
    assert recap(again)["localhost"]["changed"] == 0, again[-4000:]
    assert archive.stat().st_mtime_ns == stamp

    route = run("docker", "exec", host.name, "ip", "route", "get", ELSEWHERE, check=False)
    assert route.returncode != 0, "the host has a way to elsewhere"
    assert host.execute("docker", "image", "ls", "--quiet") == "", "it has an image before the prep"
    inventory = write_inventory(
        tmp_path / "inventory.yml",
        {"airgap": host.inventory_vars()},
        {
            **STACK_VARIABLES,
            "sgl_image": NAME,
            "sgl_image_source": "load",
            "sgl_image_archive": "/home/ops/image.tar",
            "sgl_image_archive_from": str(archive),
            "sgl_image_archive_sha256": digest,
        },
    )
    reports = {"SGL_REPORT_DIR": str(tmp_path / "reports")}
    said = ansible("-i", str(inventory), PREP, env=reports).stdout
    assert re.search(r"METRICS_READY['\"]?: true", said, re.IGNORECASE), said[-3000:]
    # The archive has done its work.
    host.execute("rm", "/home/ops/image.tar")
    again = ansible("-i", str(inventory), PREP, env=reports).stdout
    assert recap(again)["airgap"]["changed"] == 0, again[-4000:]
    assert host.execute("ls", "/home/ops").split().count("image.tar") == 0
