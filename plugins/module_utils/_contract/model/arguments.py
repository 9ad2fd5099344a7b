# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the server's arguments say of the files that it reads.

SGLang's flags (`sglang.launch_server --help`, the same from 0.5.3 to 0.5.23).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..texts import read_json_text

# Formats that read the weights as transformers writes them. Others have files of their own, or
# none ("dummy").
_READ_HERE = ("auto", "safetensors", "fastsafetensors", "instanttensor", "layered")


def flag_value(arguments: Sequence[str], *names: str) -> str | None:
    """The value that a flag has in a command line: of several the last one, as for argparse."""
    value = None
    for place, word in enumerate(arguments):
        name, equals, rest = word.partition("=")
        if name not in names:
            continue
        if equals:
            value = rest
        elif place + 1 < len(arguments):
            value = arguments[place + 1]
    return value


def reads_weights(arguments: Sequence[str]) -> bool:
    """Whether the server reads weights from the model's folder in the format of transformers."""
    return (flag_value(arguments, "--load-format") or "auto") in _READ_HERE


def reads_tokenizer(arguments: Sequence[str]) -> bool:
    """Whether the server reads a tokenizer from the model's folder."""
    return (
        "--skip-tokenizer-init" not in arguments
        and flag_value(arguments, "--tokenizer-path") is None
    )


def overridden(config: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The config as the server has it: `--json-model-override-args` replaces keys of it."""
    try:
        changes = read_json_text(flag_value(arguments, "--json-model-override-args") or "{}")
    except ValueError:
        return config
    return {**config, **changes} if isinstance(changes, dict) else config
