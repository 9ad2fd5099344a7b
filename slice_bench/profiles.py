"""Profiles: all that must be the same in a prep and in serving, by name. They become the
collection's variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sgl_admin.contract import options, stages
from slice_bench.caller import WrongUsage

SHIPPED = Path(__file__).with_name("profiles")
_STAGES = tuple(stages.OPTIONS.values())
_SPECULATIVE = ("algorithm", "draft_model_path", "num_steps", "eagle_topk", "num_draft_tokens")
# The variable that a key becomes; a dotted key is in a part of its own.
VARIABLES = {
    "model.name": "sgl_model",
    "model.source": "sgl_model_source",
    "model.from": "sgl_model_from",
    "model.revision": "sgl_model_revision",
    "tp": "sgl_tp",
    "moe.batch_sizes": "sgl_moe_batch_sizes",
    "moe.dtype": "sgl_moe_dtype",
    "server.timeout_s": "sgl_server_timeout",
    "server.cuda_graph_batch_sizes": "sgl_cuda_graph_batch_sizes",
}
_TYPES: dict[str, type] = {"str": str, "int": int, "float": int, "list": list}
_OTHER = ("description", "stages", "server.args", "server.env", "server.speculative")


def folders() -> list[Path]:
    """Where profiles are looked for, in this order: SLICE_BENCH_PROFILES (folders, parted by
    colons), the user's own, the shipped ones.
    """
    named = [
        Path(folder).expanduser()
        for folder in os.environ.get("SLICE_BENCH_PROFILES", "").split(os.pathsep)
        if folder
    ]
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [*named, config / "slice_bench" / "profiles", SHIPPED]


def known() -> list[str]:
    return sorted({_name(path, folder) for folder in folders() for path in folder.rglob("*.yml")})


def load(name: str) -> dict[str, Any]:
    """A profile's content. Raises WrongUsage: there is none of that name, or it cannot be read."""
    for folder in folders():
        path = folder / f"{name}.yml"
        if path.is_relative_to(folder) and ".." not in path.parts and path.is_file():
            try:
                document = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise WrongUsage(
                    f"profile {path} is not YAML: {' '.join(str(error).split())}"
                ) from error
            _check(document, path)
            return dict(document)
    listed = "\n".join(f"  {found}" for found in known())
    raise WrongUsage(
        f"there is no profile {name!r}. Known are:\n{listed}\nA profile of yours goes to"
        f" {folders()[0]}/<name>.yml"
    )


def variables(profile: dict[str, Any]) -> dict[str, Any]:
    """The collection's variables for a profile."""
    given = dict(_leaves(profile))
    found = {variable: given[key] for key, variable in VARIABLES.items() if key in given}
    server = profile.get("server", {})
    # The inventory's own model may be made on the spot; a profile's is what it says.
    found.setdefault("sgl_model_source", "present")
    found["sgl_stages"] = {
        stage.option: profile.get("stages", {}).get(stage.option, stage.default)
        for stage in stages.STAGES
    }
    found["sgl_server_args"] = [str(word) for word in server.get("args", [])] + _speculative(
        server.get("speculative", {})
    )
    found["sgl_server_env"] = {name: str(value) for name, value in server.get("env", {}).items()}
    return found


def _speculative(settings: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for key in _SPECULATIVE:
        if key in settings:
            words += [f"--speculative-{key.replace('_', '-')}", str(settings[key])]
    return words


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _leaves(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each value with its key; those of `model`, `moe` and `server` with a dotted one."""
    for key, value in document.items():
        if key in ("model", "moe", "server") and isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield str(key), value


def _type(key: str) -> type:
    """The Python type of a key's value; object where any may stand there."""
    variable = VARIABLES.get(key)
    return _TYPES[options.BY_NAME[variable].type] if variable else object


def _check(document: Any, path: Path) -> None:
    """Raises WrongUsage where a profile is not as docs/how-to says."""

    def demand(holds: bool, what: str) -> None:
        if not holds:
            raise WrongUsage(f"profile {path}: {what}")

    demand(isinstance(document, dict), "it is no mapping of keys")
    given = dict(_leaves(document))
    for key, value in given.items():
        demand(
            key in VARIABLES or key in _OTHER,
            f"{key} is no key of a profile; there are {', '.join([*VARIABLES, *_OTHER])}",
        )
        kind = _type(key)
        demand(
            isinstance(value, kind) and not (kind is int and isinstance(value, bool)),
            f"{key} is not of type {kind.__name__}",
        )
    demand("model.name" in given, "it names no model (model: {name: <folder under models/>})")
    sources = options.BY_NAME["sgl_model_source"].choices
    demand(
        given.get("model.source", "present") in sources,
        f"model.source is not one of {', '.join(sources)}",
    )
    for key in ("moe.batch_sizes", "server.cuda_graph_batch_sizes"):
        demand(
            all(type(size) is int and size > 0 for size in given.get(key, [])),
            f"{key} holds other things than whole numbers above 0",
        )
    for key, names in (("stages", _STAGES), ("server.speculative", _SPECULATIVE)):
        part = given.get(key, {})
        demand(
            isinstance(part, dict) and set(part) <= set(names), f"{key} takes {', '.join(names)}"
        )
    demand(
        all(mode in stages.MODES for mode in given.get("stages", {}).values()),
        f"a stage is not one of {', '.join(stages.MODES)}",
    )
    demand(isinstance(given.get("server.args", []), list), "server.args is no list")
    demand(isinstance(given.get("server.env", {}), dict), "server.env is no mapping")
