"""Arguments of the server that follow from the kernels which this image really has."""

from __future__ import annotations

from sgl_admin.base import versions
from sgl_admin.base.engine import Choice

_HOPPER = "9.0"
_ATTENTION = "--attention-backend"
_BY_PHASE = ("--prefill-attention-backend", "--decode-attention-backend")


def choices(arguments: tuple[str, ...], compute_capability: str | None) -> list[Choice]:
    """What to add to these arguments, and why. What the operator chose stays."""
    if compute_capability != _HOPPER or _attention_is_chosen(arguments) or _has_fa3():
        return []
    reason = (
        "SGLang takes FlashAttention 3 on Hopper by default, and sgl_kernel in this image has none"
        " (no flash_ops library, as in the wheels for arm64)"
    )
    return [Choice((_ATTENTION, "flashinfer"), reason)]


def _attention_is_chosen(arguments: tuple[str, ...]) -> bool:
    flags = {word.partition("=")[0] for word in arguments}
    return _ATTENTION in flags or flags.issuperset(_BY_PHASE)


def _has_fa3() -> bool:
    """True too where there is no sgl_kernel to look at: then nothing is known to be missing."""
    folder = versions.package_folder("sgl_kernel")
    return folder is None or any(folder.glob("flash_ops*.so"))
