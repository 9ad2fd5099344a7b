"""Finished caches go from one host to another: `sgl-admin caches export`, `import` and `verify`, over the real stages."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sgl_admin import caches, cli, devices, files, paths, run
from sgl_admin.caches import SignatureRecord
from sgl_admin.request_cli import of
from sgl_admin.stages import STAGES

FILES = {
    "torchinductor/ab/graph.py": b"x = 1\n",
    "triton/AB12/kernel.so": os.urandom(300_000),
    "triton/AB12/empty.json": b"",
    "triton/copy.json": b"x = 1\n",
}


class Host:
    """The container's file system of one host, with a finished inductor stage or none."""

    def __init__(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model = model
        self._capsys = capsys

    def admin(self, *words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def share(self, action: str, archive: Path | str, *words: str) -> tuple[int, dict[str, Any], str]:
        code, out, error = self.admin("caches", action, str(archive), "--model", str(self.model), "--json", *words)
        return code, json.loads(out) if out else {}, error

    def finish(self) -> None:
        """Lay a finished stage's files and record there, as a prep does."""
        for number, (name, content) in enumerate(FILES.items()):
            path = paths.PROFILES / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o755 if name.endswith(".so") else 0o664)
            os.utime(path, ns=(10**18 + number, 10**18 + number))
        self.record().write()

    def record(self) -> SignatureRecord:
        parsed = cli._parser().parse_args(["caches", "ensure", "--model", str(self.model)])
        live = run.live()
        from sgl_admin.prep import Prep

        prep = Prep(live, of(parsed, live))
        inductor = STAGES[3]
        return SignatureRecord(inductor.name, inductor.caches, inductor.signature(prep.context))

    def wipe(self) -> None:
        for cache in caches.CACHES:
            shutil.rmtree(paths.PROFILES / cache)
            (paths.PROFILES / cache).mkdir()


@pytest.fixture
def host(live_run: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Host:
    monkeypatch.setattr(devices, "find", lambda: devices.Devices(name="cpu", count=1, cuda=False, cpu_isa="avx2"))
    return Host(model_folder, capsys)


def state() -> dict[str, tuple[bytes, int, int]]:
    """Content, time and mode of each file of the caches."""
    return {
        str(path.relative_to(paths.PROFILES)): (path.read_bytes(), status.st_mtime_ns, status.st_mode & 0o777)
        for cache in caches.CACHES
        for path, status in caches.cache_files(cache)
    }


def test_what_is_taken_is_what_was_packed_and_ensure_has_nothing_to_do(host: Host, tmp_path: Path) -> None:
    host.finish()
    before = state()
    archive = tmp_path / "caches.tar"
    code, packed, _ = host.share("export", archive)
    assert code == 0 and packed["stages"]["inductor"]["files"] == 4 and packed["bytes"] == archive.stat().st_size
    host.wipe()
    code, taken, _ = host.share("import", archive, "--digest", packed["digest"])
    assert code == 0 and taken["stages"]["inductor"]["status"] == "imported" and taken["stages"]["inductor"]["reason"] is None
    assert state() == before and host.record().problem([]) is None
    assert not list(paths.INCOMING.iterdir())
    code, out, _ = host.admin("caches", "ensure", "--model", str(host.model), "--probe", "never", "--dry-run")
    assert "inductor:noop" in out
    assert host.share("import", archive)[1]["stages"]["inductor"]["status"] == "standing"
    again = tmp_path / "again.tar"
    assert host.share("export", again)[1]["digest"] == packed["digest"] and again.read_bytes() == archive.read_bytes()
    code, out, _ = host.admin("caches", "verify", str(archive))
    assert code == 0 and packed["digest"] in out
    assert files.read_json(paths.PROFILES / "nothing") is None
