# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a prep is asked for, as options of the plugins that ask sgl-admin:
M(slice_bench.sglang.sgl_prep) documents them.
"""

from __future__ import annotations

from typing import Any

# By which option each stage is asked for, here and in the variable sgl_stages.
STAGE_OPTIONS = {
    "deep_gemm": "deep_gemm",
    "moe_tune": "moe",
    "flashinfer": "flashinfer",
    "inductor": "inductor",
}
_MODE = {"type": "str", "choices": ["ensure", "rebuild", "skip"], "default": "ensure"}
PREP_OPTIONS: dict[str, Any] = {
    "model": {"type": "str", "required": True},
    "tp": {"type": "int", "default": 1},
    "deep_gemm": _MODE,
    "moe": _MODE,
    "flashinfer": _MODE,
    "inductor": _MODE,
    "moe_batch_sizes": {"type": "list", "elements": "int", "default": []},
    "moe_dtype": {"type": "str", "default": "auto"},
    "probe": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
    "moe_fusion": {"type": "str", "choices": ["ensure", "skip"], "default": "ensure"},
    "server_args": {"type": "list", "elements": "str", "default": []},
    "server_env": {"type": "dict", "default": {}},
    "cuda_graph_batch_sizes": {"type": "list", "elements": "int", "default": []},
    "server_timeout": {"type": "float", "default": 1800},
    "probe_timeout": {"type": "float", "default": 30},
}
_SAME_IN_REQUEST = (
    "model",
    "tp",
    "moe_batch_sizes",
    "moe_dtype",
    "moe_fusion",
    "probe",
    "server_args",
    "cuda_graph_batch_sizes",
    "server_timeout",
    "probe_timeout",
)


def request_document(options: dict[str, Any]) -> dict[str, Any]:
    """The request that sgl-admin reads with C(--request), of these options."""
    return {
        **{name: options[name] for name in _SAME_IN_REQUEST},
        "stages": {stage: options[option] for stage, option in STAGE_OPTIONS.items()},
        "server_env": {str(name): str(value) for name, value in options["server_env"].items()},
    }
