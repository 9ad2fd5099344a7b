"""What the collection says, in the words of callers that know no Ansible."""

from __future__ import annotations

import re

from sgl_admin.contract.profiles import VARIABLES as PROFILE
from slice_bench.caller import ENVIRONMENT

# What sets a variable in the front: its flag, the caller's environment, a profile's key.
_FLAGS = {
    "sgl_tp": "--tp",
    "sgl_stop_force": "--force",
    "sgl_moe_fusion": "--skip-moe-fusion-cache",
    "sgl_smoke_scenario": "the scenario",
}
NAMES = {
    **{option.name: f"{key} of the profile" for key, option in PROFILE.items()},
    **{variable: name for name, variable in ENVIRONMENT.items()},
    **_FLAGS,
}
COMMANDS = {"prep": "provider-prep", "validate": "start"}
# Sayings that are another one, and not only another name, for such a caller.
_SAYINGS = (
    (
        re.compile(
            r"^(?:(?:Task failed|Action failed|Finalization of task args for '[\w.]+' failed"
            r"|Validation of arguments failed):\s*)+"
        ),
        "",
    ),
    (re.compile(r"playbooks/stop\.yml with sgl_stop_force=true"), "slice_bench stop --force"),
    (re.compile(r"\bset sgl_stop_force to true\b"), "pass --force"),
    (re.compile(r"\bset sgl_ownership_ignore: true\b"), "set HOST_DIR_OWNERSHIP_IGNORE=1"),
    (re.compile(r"\bset ansible_become(?: to true)?\b"), "run this with sudo"),
)
_PLAYBOOK = re.compile(r"\bplaybooks/(\w+)\.yml\b")
_VARIABLE = re.compile(r"\bsgl_[a-z0-9_]+\b")
_NOTE = " (-e NAME=VALUE sets a variable sgl_..., and so does the inventory)"
# What a role is at while it works.
_DOING = {
    "preflight": "looking at the machine",
    "host_dirs": "making the directories",
    "image": "getting the image",
    "model": "checking the model",
    "stack": "starting or stopping the container",
    "provider_prep": "warming the caches",
    "cache_share": "sharing the caches",
    "smoke": "asking the server",
}
# How ansible-playbook tells why it did nothing, the best words first.
_ERRORS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^(?:\[ERROR\]:|ERROR[!:])\s*(.*)$",
        r"^\[WARNING\]: (Failed to parse inventory with 'yaml' plugin: .*)$",
        r"^\[WARNING\]: (Unable to parse .* as an inventory source)$",
    )
)
_NO_HOST = "skipping: no hosts matched"
_LIMIT = 600


def of_caller(text: str) -> str:
    """The text with the caller's flags, environment variables and commands in place of Ansible's
    names.
    """
    for pattern, saying in _SAYINGS:
        text = pattern.sub(saying, text)
    text = _PLAYBOOK.sub(lambda found: f"slice_bench {COMMANDS.get(found[1], found[1])}", text)
    text = _VARIABLE.sub(lambda found: NAMES.get(found[0], found[0]), text)
    first, *more = text.split("\n", 1)
    return "\n".join([first + (_NOTE if _VARIABLE.search(first) else ""), *more])


def doing(role: str | None) -> str:
    """What a task of this role is at; None is a task of the playbook itself."""
    return _DOING.get(role or "", "working")


def error_of(output: str) -> str:
    """The one sentence of what ansible-playbook printed that says why it ended."""
    found = next(filter(None, (pattern.search(output) for pattern in _ERRORS)), None)
    if found is None:
        if _NO_HOST in output:
            return "the inventory names no host of the group sglang (or --limit leaves none)"
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return lines[-1][:_LIMIT] if lines else "ansible-playbook ended without a message"
    lines = [found[1]]
    for line in output[found.end() :].splitlines()[1:]:
        if not line.strip() or line.startswith(("Origin:", "[", "ERROR!", "PLAY ")):
            break
        lines.append(line.strip())
    return " ".join(" ".join(lines).split())[:_LIMIT]
