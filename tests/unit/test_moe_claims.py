"""Which of several processes works at a batch size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sgl_admin.moe import claims as claims_module
from sgl_admin.moe.claims import Claims


def test_one_process_works_at_a_size_and_others_may_once_it_is_done(tmp_path: Path) -> None:
    first, second = (Claims(tmp_path / "claims", number) for number in (0, 1))
    assert not first.is_alone
    with first.claim("16") as mine:
        assert mine
        with second.claim("16") as others, second.claim("(16, 32)") as other_work:
            assert not others and other_work
    with second.claim("16") as later:
        assert later


HOLDER = """
import sys, time
from pathlib import Path
from sgl_admin.moe.claims import Claims
with Claims(Path(sys.argv[1])).claim("16") as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_killed_process_claims_nothing(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims")
    sources = str(Path(claims_module.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "claims")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": sources},
    ) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"True\n"
            with claims.claim("16") as meanwhile:
                assert not meanwhile
        finally:
            holder.kill()
    with claims.claim("16") as mine:
        assert mine


def test_a_process_without_others_claims_all_and_writes_nothing(tmp_path: Path) -> None:
    with Claims().claim("16") as first, Claims().claim("16") as second:
        assert first and second and Claims().is_alone and list(tmp_path.iterdir()) == []
