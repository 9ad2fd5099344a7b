"""What a prep waits for, and what it does not begin without: a free GPU, and room for what is
compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgl_admin.base import paths
from sgl_admin.base.errors import StageFailure
from sgl_admin.facts import devices, gpu_fit
from sgl_admin.facts.devices import GpuProcess

OTHER = GpuProcess(4711, "vllm", 71680)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Says what each look at the GPUs sees, the last for good; returns the times of the looks, by a
    clock that only sleeping moves.
    """
    clock = [0.0]
    seen_at: list[float] = []

    def will_see(*each: list[GpuProcess]) -> list[float]:
        def processes(visible: str | None) -> list[GpuProcess]:
            seen_at.append(clock[0])
            return each[min(len(seen_at), len(each)) - 1]

        monkeypatch.setattr(devices, "processes", processes)
        return seen_at

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(gpu_fit, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    return will_see


def test_a_free_gpu_is_not_waited_for(looks: Callable[..., list[float]]) -> None:
    seen_at = looks([])
    gpu_fit.wait_until_free()
    assert seen_at == [0.0]


def test_memory_that_the_driver_lets_go_of_in_a_moment_is_waited_for(
    looks: Callable[..., list[float]],
) -> None:
    seen_at = looks([OTHER], [OTHER], [OTHER], [])
    gpu_fit.wait_until_free()
    assert len(seen_at) == 4 and seen_at[-1] < 5


def test_a_gpu_that_stays_in_use_is_busy_by_whom_it_names(
    looks: Callable[..., list[float]],
) -> None:
    seen_at = looks([OTHER], [OTHER, GpuProcess(9, "python3", 300)])
    with pytest.raises(
        StageFailure,
        match=r"in use by vllm \(pid 4711, 71680 MiB\), python3 \(pid 9, 300 MiB\): end that",
    ) as busy:
        gpu_fit.wait_until_free()
    assert busy.value.error_type == "gpu_busy"
    assert 10 <= seen_at[-1] <= 20, "a little, and no longer"


@pytest.mark.parametrize(
    ("free", "fits"), [(gpu_fit._CACHE_BYTES, True), (gpu_fit._CACHE_BYTES - 1, False), (0, False)]
)
def test_cold_caches_need_room(
    container: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    asked: list[object] = []

    def disk_usage(path: object) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(gpu_fit, "shutil", SimpleNamespace(disk_usage=disk_usage))
    if fits:
        gpu_fit.check_free_space()
    else:
        with pytest.raises(
            StageFailure, match=f"/host/profiles has {free >> 20} MiB free.*free some"
        ) as full:
            gpu_fit.check_free_space()
        assert full.value.error_type == "insufficient_disk"
    assert asked == [paths.PROFILES]


@pytest.mark.parametrize(
    ("arch", "driver", "memory", "said"),
    [
        ("aarch64", "550.90.07", [(20480, 98304)], "page cache"),
        ("aarch64", "570.124.06", [(20480, 98304)], "no process that this container sees"),
        ("x86_64", "550.90.07", [(20480, 81559)], "no process that this container sees"),
        ("aarch64", None, [(20480, 98304)], "no process that this container sees"),
        ("aarch64", "550.90.07", [(97000, 98304)], None),
        ("aarch64", "550.90.07", [], None),
    ],
)
def test_memory_that_is_not_free_is_explained(
    monkeypatch: pytest.MonkeyPatch,
    arch: str,
    driver: str | None,
    memory: list[tuple[int, int]],
    said: str | None,
) -> None:
    """NVML counts a Grace host's page cache as used before R570 (eth-cscs/cscs-docs#216)."""
    found = devices.Devices("NVIDIA GH200 480GB", 1, True, driver_version=driver, cpu_arch=arch)
    monkeypatch.setattr(devices, "memory", lambda visible: memory)
    text = gpu_fit.held_memory(found)
    assert (text is None) if said is None else (text is not None and said in text), text
    assert text is None or len(text) < 400
