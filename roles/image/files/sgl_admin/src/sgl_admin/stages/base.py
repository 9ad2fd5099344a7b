"""What a stage is: when it does not apply, what its work depends on, which caches it fills, and the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgl_admin.devices import Devices
from sgl_admin.errors import StageFailure
from sgl_admin.model import Model

if TYPE_CHECKING:
    from sgl_admin.request import Request
    from sgl_admin.warmup import Warmup


@dataclass(frozen=True)
class Context:
    """All that a stage may know."""

    request: Request
    model: Model
    devices: Devices
    batch_sizes: tuple[int, ...]
    warmup: Warmup
    progress: Callable[[int, int, str, str], None]


class Stage:
    """One stage. Subclasses set `name` and `caches` and override what differs."""

    name: str
    caches: tuple[str, ...]

    def skip_reason(self, context: Context) -> str | None:
        """Why this stage does not apply here, by the contract's list; None when it does."""
        return None if context.devices.cuda else "no_cuda_device"

    def signature(self, context: Context) -> dict[str, Any]:
        """All that changes this stage's cache, and nothing else; what every stage shares."""
        return {
            "schema_version": "1",
            "stage": self.name,
            "device_name": context.devices.name,
            "compute_capability": context.devices.compute_capability,
            "cpu_arch": context.devices.cpu_arch,
        }

    def run(self, context: Context) -> dict[str, Any]:
        """Do the work; returns artifacts beyond the files. Raises StageFailure."""
        raise StageFailure(
            "unsupported", f"this release of sgl-admin cannot do stage {self.name} on a CUDA device; skip it (--{self.option} skip)"
        )

    def standing(self, context: Context) -> dict[str, Any]:
        """Artifacts beyond the files of work that stands: what a no-op reports."""
        return {}

    @property
    def option(self) -> str:
        """The command-line flag without its dashes."""
        return self.name.replace("_", "-")
