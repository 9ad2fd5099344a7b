"""Arguments that are chosen for the operator: by the files that the sglang-kernel wheels have."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl_admin.base import versions
from sgl_admin.sglang import ENGINE

# Of sglang-kernel 0.4.10: the wheel for x86_64 has the first, that for aarch64 does not.
FLASH_OPS, OTHERS = "flash_ops.abi3.so", ("__init__.py", "flash_attn.py", "common_ops.abi3.so")
FLASHINFER = ("--attention-backend", "flashinfer")
TRITON = ("--mm-attention-backend", "triton_attn")
TEXT = {"architectures": ["Qwen3ForCausalLM"], "vision_config": None}
VISION = {"architectures": ["Qwen3VLForConditionalGeneration"], "vision_config": {"depth": 27}}


@pytest.fixture
def arm64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sgl_kernel as the wheel for aarch64 has it."""
    folder = tmp_path / "sgl_kernel"
    folder.mkdir()
    for name in OTHERS:
        (folder / name).touch()
    monkeypatch.setattr(
        versions, "package_folder", lambda name: folder if name == "sgl_kernel" else None
    )
    return folder


def test_without_fa3_a_hopper_gets_another_attention_backend(arm64: Path) -> None:
    [choice] = ENGINE.choices(("--tp-size", "1"), "9.0", TEXT)
    assert choice.arguments == FLASHINFER
    assert "FlashAttention 3" in choice.reason and "arm64" in choice.reason


def test_with_fa3_nothing_is_chosen(arm64: Path) -> None:
    (arm64 / FLASH_OPS).touch()
    assert ENGINE.choices((), "9.0", VISION) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--attention-backend", "triton"),
        ("--attention-backend=fa3",),
        ("--prefill-attention-backend", "triton", "--decode-attention-backend", "flashinfer"),
    ],
)
def test_what_the_operator_chose_stays(arm64: Path, arguments: tuple[str, ...]) -> None:
    assert ENGINE.choices(arguments, "9.0", TEXT) == []


def test_one_phase_alone_leaves_the_other_without_a_kernel(arm64: Path) -> None:
    assert ENGINE.choices(("--decode-attention-backend", "triton"), "9.0", TEXT) != []


@pytest.mark.parametrize("capability", ["8.0", "10.0", None])
def test_other_devices_do_not_take_fa3(arm64: Path, capability: str | None) -> None:
    assert ENGINE.choices((), capability, VISION) == []


def test_where_there_is_no_sgl_kernel_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "package_folder", lambda name: None)
    assert ENGINE.choices((), "9.0", VISION) == []


@pytest.mark.parametrize(
    "config",
    [
        VISION,
        {"thinker_config": {"vision_config": {"depth": 27}}},
        {"mm_vision_tower": "openai/clip-vit-large-patch14-336"},
        {"vision_n_layers": 24},
        {"thinker_config": {"audio_config": {"encoder_layers": 32}}},
        {"audio_encoder_config": {"embed_dim": 1280}},
    ],
    ids=["vision_config", "thinker", "llava", "layers", "qwen3_asr", "midashenglm"],
)
def test_a_model_that_reads_images_or_sound_gets_a_backend_for_them_too(
    arm64: Path, config: dict[str, object]
) -> None:
    attention, images = ENGINE.choices((), "9.0", config)
    assert (attention.arguments, images.arguments) == (FLASHINFER, TRITON)
    assert "images" in images.reason and "images" not in attention.reason
    [attention] = ENGINE.choices(("--mm-attention-backend=sdpa",), "9.0", config)
    assert attention.arguments == FLASHINFER
    [images] = ENGINE.choices(FLASHINFER, "9.0", config)
    assert images.arguments == TRITON


@pytest.mark.parametrize(
    "config",
    [
        {"vision_config": {"depth": 28, "use_sink": True}},
        {"architectures": ["MiMoV2ASRForCausalLM"], "audio_config": {"group_size": 4}},
    ],
    ids=["images", "sound"],
)
def test_a_tower_with_sinks_or_windows_is_never_given_a_backend_that_leaves_them_out(
    arm64: Path, config: dict[str, object]
) -> None:
    """MiMo-V2 (SGLang 0.5.23, models/mimo_vl.py and mimo_audio.py): VisionTritonAttention takes no
    s_aux and no window_size.
    """
    assert [choice.arguments for choice in ENGINE.choices((), "9.0", config)] == [FLASHINFER]


FA3 = "ImportError: Can not import FA3 in sgl_kernel. Please check your installation."
IGNORED = (
    "Ignore import error when loading sglang.srt.models.mimo_v2: Can not import FA3 in sgl_kernel."
    " Please check your installation."
)


def test_a_server_that_dies_for_want_of_fa3_is_told_apart() -> None:
    assert ENGINE.death(["Traceback (most recent call last):", FA3]).error_type == "unsupported"
    assert ENGINE.death([IGNORED, "Killed"]).error_type == "server_start_failed"
    memory = "torch.OutOfMemoryError: CUDA out of memory"
    assert ENGINE.death([IGNORED, memory]).error_type == "oom"
