# Generated from plugins/module_utils/_contract by `make generate`.
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Options of sgl_host_info that are variables too."""

from __future__ import annotations

from typing import Any

SPEC: dict[str, dict[str, Any]] = {
    "model": {"type": "str"},
    "model_source": {
        "type": "str",
        "choices": ["present", "tiny", "local", "controller", "hub"],
        "default": "present",
    },
    "model_from": {"type": "str"},
    "model_revision": {"type": "str", "default": "main"},
    "model_endpoint": {"type": "str"},
    "model_verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
    "tp": {"type": "int", "default": 1},
    "user": {"type": "str"},
    "allow_root": {"type": "bool", "default": False},
    "root": {"type": "path"},
    "telemetry_root": {"type": "path"},
    "profiles_root": {"type": "path"},
    "models_root": {"type": "path"},
    "huggingface_root": {"type": "path"},
    "ownership_ignore": {"type": "bool", "default": False},
    "owner_uid": {"type": "int"},
    "owner_gid": {"type": "int"},
    "pointer_uid": {"type": "int"},
    "pointer_gid": {"type": "int"},
    "group_writable": {"type": "bool", "default": False},
    "image": {"type": "str", "default": "sglang-dev:local"},
    "image_source": {
        "type": "str",
        "choices": ["build", "pull", "load", "share"],
        "default": "build",
    },
    "image_pull": {"type": "str"},
    "image_archive": {"type": "path"},
    "image_archive_from": {"type": "str", "default": ""},
    "image_cuda": {"type": "str"},
    "container": {"type": "str", "default": "sglang-dev"},
    "bind_address": {"type": "str", "default": "127.0.0.1"},
    "server_args": {"type": "list", "elements": "str", "default": [], "no_log": True},
    "perf_conditions": {"type": "str", "choices": ["warn", "refuse"], "default": "warn"},
}
