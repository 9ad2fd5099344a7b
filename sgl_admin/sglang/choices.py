"""Arguments of the server that follow from the kernels which this image really has."""

from __future__ import annotations

from typing import Any

from sgl_admin.base import versions
from sgl_admin.base.engine import Choice
from sgl_admin.contract.model.config import language_parts

_HOPPER = "9.0"
_ATTENTION = "--attention-backend"
_BY_PHASE = ("--prefill-attention-backend", "--decode-attention-backend")
_VISION = "--mm-attention-backend"
_TOWERS = (
    "vision_config",
    "mm_vision_tower",
    "vision_n_layers",
    "audio_config",
    "audio_encoder_config",
)
_REASON = (
    "SGLang takes FlashAttention 3 on Hopper by default{where}, and sgl_kernel in this image has"
    " none (no flash_ops library, as in the wheels for arm64)"
)


def choices(
    arguments: tuple[str, ...], compute_capability: str | None, config: dict[str, Any]
) -> list[Choice]:
    """What to add to these arguments, and why. What the operator chose stays."""
    if compute_capability != _HOPPER or _has_fa3():
        return []
    flags = {word.partition("=")[0] for word in arguments}
    found = []
    if _ATTENTION not in flags and not flags.issuperset(_BY_PHASE):
        found.append(Choice((_ATTENTION, "flashinfer"), _REASON.format(where="")))
    if _VISION not in flags and _triton_reads_media(config):
        reason = _REASON.format(where=" for images and sound too")
        found.append(Choice((_VISION, "triton_attn"), reason))
    return found


def _triton_reads_media(config: dict[str, Any]) -> bool:
    """Towers for images and sound have a backend of their own: fa3 on Hopper, triton_attn on GPUs
    that have neither FlashAttention 3 nor 4. The latter leaves out sinks and windows without a
    word, so it is never chosen for a tower that has them: MiMo's, for sound with windows that its
    config.json does not name. Read in SGLang 0.5.23: layers/attention/vision.py, and the names of
    the towers in models.
    """
    names = config.get("architectures")
    if isinstance(names, list) and any(str(name).startswith("MiMo") for name in names):
        return False
    parts = language_parts(config)
    towers = [part[name] for part in parts for name in _TOWERS if part.get(name)]
    return bool(towers) and not any(
        isinstance(tower, dict) and tower.get("use_sink") for tower in towers
    )


def _has_fa3() -> bool:
    """True too where there is no sgl_kernel to look at: then nothing is known to be missing."""
    folder = versions.package_folder("sgl_kernel")
    return folder is None or any(folder.glob("flash_ops*.so"))
