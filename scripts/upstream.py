"""Prints which of this product's assumptions about SGLang a release does not fulfil:
`make upstream`, or `make upstream VERSIONS="0.5.17 0.5.23"`.

Every name and pattern is taken from the product's own modules, and held against the wheels on the
package index: sglang's sources, and the lists of files of its kernels' wheels. The exit code is 1
where an assumption is broken.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sgl_admin.base.engine import Lookup  # noqa: E402
from sgl_admin.contract import places  # noqa: E402
from sgl_admin.sglang import (  # noqa: E402
    api,
    arguments,
    choices,
    command_line,
    last_words,
    metrics,
    moe_configs,
    releases,
    split,
    startup,
    tracing,
)
from sgl_admin.sglang.releases import Release  # noqa: E402
from tests import upstream_packages as upstream  # noqa: E402
from tests.upstream_packages import Package  # noqa: E402

_FLAG = re.compile(r"--[a-z][a-z0-9-]+")
_VARIABLE = re.compile(r"\bSGLANG_[A-Z][A-Z0-9_]*[A-Z0-9]\b")
_KERNELS = "sglang-kernel"
# What SGLang may format into its log lines: nothing, a file, an exit code.
_FORMATTED = ("", "/a/b.json", "-9", "1.25", "target decode")
# The library of FlashAttention 3, and where it is: choices.py goes by the file, and its reason
# names the architecture that lacks it.
_FA3 = re.compile(r"sgl_kernel/flash_ops[^/]*\.so")
_HAVE_FA3 = {"x86_64": True, "aarch64": False}


# Data types and blocks of experts; without blocks, or with groups along a row alone, the server
# looks up by a pair of which one is zero or nothing.
_DEVICE = "NVIDIA GH200 480GB"
_DTYPES = (None, "fp8_w8a8", "int8_w8a8", "int8_w8a16", "int4_w4a16")
_BLOCKS = (None, (128, 128), (64, 32))
_NO_BLOCKS: tuple[list[int | None], ...] = ([0, 0], [0, 128], [0, None])


@dataclass(frozen=True)
class Assumption:
    kind: str
    name: str
    holds: bool


def assumptions(sglang: Package) -> Iterator[Assumption]:
    release, _ = releases.of(sglang.version)
    checks = (_paths, _names, _flags, _variables, _metrics, _log_lines, _kernels, _moe_files)
    for check in checks:
        kind = check.__name__.strip("_").replace("_", " ")
        for name, holds in check(sglang, release):
            yield Assumption(kind, name, holds)


_Found = Iterator[tuple[str, bool]]


def _paths(sglang: Package, release: Release) -> _Found:
    modules = {
        release.fused_moe,
        release.moe_look_up,
        release.kernels,
        "sglang.srt.server_args",
        "sglang.launch_server",
    }
    for module in sorted(modules):
        yield module, sglang.module(module) is not None
    folder = f"sglang/{release.moe_configs}/{moe_configs.FOLDER}"
    configs = [name for name in sglang.names if name.startswith(f"{folder}/")]
    yield f"{folder}/triton_*", any("/triton_" in name for name in configs)
    known = moe_configs.MoeConfigs()
    readable = [name for name in configs if known.lookup(name.rpartition("/")[2])]
    yield f"names of files in {folder}", bool(readable)


def _names(sglang: Package, release: Release) -> _Found:
    """What the tuner calls."""
    wanted = {
        (release.fused_moe, "fused_experts"),
        ("sglang.srt.layers.moe.topk", "StandardTopKOutput"),
        ("sglang.srt.layers.moe.moe_runner", "MoeRunnerConfig"),
        (release.fused_moe, "invoke_fused_moe_kernel"),
        (release.moe_look_up, "get_moe_configs"),
    }
    for module, name in sorted(wanted):
        text = sglang.files.get(sglang.module(module) or "", "")
        yield f"{module}.{name}", re.search(rf"\b{name}\b", text) is not None


def _flags(sglang: Package, release: Release) -> _Found:
    """Those that the product gives a server, refuses or reads."""
    found = set(upstream.flags(sglang)) | {"--help"}
    aliases = set(_FLAG.findall("\n".join(sglang.matching(r"sglang/srt/server_args\.py"))))
    set_by_us = {
        *_FLAG.findall(" ".join(command_line.command("", 1, 1, []))),
        release.cuda_graph_flag,
        release.otlp_flag,
        metrics.FLAG,
        moe_configs.MoeConfigs.backend_flag,
    }
    for module in (arguments, choices, command_line, split, tracing):
        set_by_us.update(_constants(str(module.__file__), _FLAG))
    # Each of these has several spellings, by release.
    synonyms = (split._TP, split._EP, split._DP)
    single = set_by_us - _of_other_releases(release) - set().union(*synonyms)
    for flag in sorted(single):
        yield flag, flag in found | aliases
    for spellings in synonyms:
        yield " or ".join(spellings), not found.isdisjoint(spellings)


def _of_other_releases(release: Release) -> set[str]:
    named = {flag for row in releases.RELEASES for flag in (row.cuda_graph_flag, row.otlp_flag)}
    return named - {release.cuda_graph_flag, release.otlp_flag}


def _variables(sglang: Package, release: Release) -> _Found:
    wanted: set[str] = set()
    for file in (ROOT / "sgl_admin").rglob("*.py"):
        wanted |= _constants(str(file), _VARIABLE)
    known = set(re.findall(r"\w+", "\n".join(sglang.files.values())))
    for name in sorted(wanted - set(places.CACHE_VARIABLES)):
        yield name, name in known
    for cache, names in places.CACHES.items():
        # Where another library reads one of them too, its package would have to be asked.
        if names and all(name.startswith(("SGLANG_", "SGL_")) for name in names):
            yield f"one of {', '.join(names)} ({cache})", not known.isdisjoint(names)


def _metrics(sglang: Package, release: Release) -> _Found:
    counter = re.compile(metrics._COUNTER)
    yield metrics._COUNTER, any(counter.fullmatch(text) for text in upstream.texts(sglang, ""))
    for path in (metrics.PATH, api.HEALTH_PATH):
        yield path, any(text == path for text in upstream.texts(sglang, ""))


def _log_lines(sglang: Package, release: Release) -> _Found:
    said = {text for value in _FORMATTED for text in upstream.texts(sglang, value)}
    for pattern in (moe_configs._READ, moe_configs._LOOKED_UP, last_words._FATAL):
        yield pattern.pattern, any(pattern.search(text) for text in said)
    for pattern in (
        startup._ARGUMENTS,
        startup._BEGINS,
        startup._COMPILES,
        *startup._ENDS.values(),
    ):
        yield pattern.pattern, any(pattern.search(text) for text in said)
    begins = "DeepGEMM warmup"
    yield f"{begins} (tqdm's bar)", begins in said and startup._BAR.pattern.startswith(begins)
    yield startup._GRAPHS.pattern, any(_is_of_graphs(text) for text in said)
    for gauge in ("startup_time_seconds", "startup_cuda_graph_time_seconds"):
        yield f"sglang:{gauge}", {f"sglang:{gauge}", f"sglang_{gauge}"} & said != set()
    for kind, phase in startup._BY_METRIC:
        yield f"phase {kind}{phase}", phase in said
    for alternative in last_words._CHILD.pattern.split("|"):
        yield alternative, any(re.search(alternative, text) for text in said)


def _is_of_graphs(text: str) -> bool:
    """Whether a text with one value in every place is the line of captured graphs: what is captured
    and the seconds are of two kinds.
    """
    return startup._GRAPHS.search(re.sub(r"(?<=elapsed=)[^,]*", "1.25 s", text)) is not None


def _kernels(sglang: Package, release: Release) -> _Found:
    version = sglang.required(_KERNELS)
    yield f"sglang pins {_KERNELS}", version is not None
    for architecture in upstream.ARCHITECTURES if version else ():
        files = upstream.kernel_files(_KERNELS, str(version), architecture)
        has_fa3 = any(_FA3.fullmatch(name) for name in files)
        expected = _HAVE_FA3[architecture]
        name = f"{_KERNELS} {version} for {architecture}"
        yield (
            f"{name}: FlashAttention 3 is {'there' if expected else 'absent'}",
            (has_fa3 == expected),
        )
        yield f"{name}: kernels for Hopper", any("/sm90/" in file for file in files)


def _moe_files(sglang: Package, release: Release) -> _Found:
    """The names that its own function makes."""
    theirs = sglang.function(
        release.moe_look_up, "get_config_file_name", get_device_name=lambda: _DEVICE
    )
    ours = moe_configs.MoeConfigs()
    for dtype, block, channel in itertools.product(_DTYPES, _BLOCKS, (False, True)):
        lookup = Lookup(161, 192, dtype, block, channel)
        expected = ours.file_name(lookup, _DEVICE)
        for sizes in [list(block)] if block else _NO_BLOCKS:
            made = theirs(161, 192, dtype, sizes, channel)
            yield f"{expected} for {sizes}", made == expected and ours.lookup(made) == lookup
        if release.down_files:
            down = theirs(161, 192, dtype, list(block or (0, 0)), channel, down_moe=True)
            yield f"its neighbour of {expected}", down == ours.down_name(expected)


def _constants(file: str, pattern: re.Pattern[str]) -> set[str]:
    """What of the pattern stands in the texts of a module of ours, its docstrings aside."""
    found: set[str] = set()
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documentation:
                found.update(pattern.findall(node.value))
    return found


def table(found: dict[str, list[Assumption]]) -> str:
    kinds = list(dict.fromkeys(one.kind for held in found.values() for one in held))
    rows = [["assumption", *(f"sglang {version}" for version in found)]]
    for kind in kinds:
        cells = [[one for one in held if one.kind == kind] for held in found.values()]
        rows.append(
            [kind, *(f"{sum(one.holds for one in cell)} of {len(cell)} hold" for cell in cells)]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    for version, held in found.items():
        lines += [f"broken in {version}: {one.kind}: {one.name}" for one in held if not one.holds]
    return "\n".join(lines)


def main(versions: list[str], read: Callable[[str], Package] = upstream.sources) -> int:
    try:
        packages = [read(version) for version in versions or [upstream.NEWEST]]
        found = {package.version: list(assumptions(package)) for package in packages}
    except (OSError, RuntimeError) as error:
        sys.exit(f"upstream: {error}")
    print(table(found))
    return int(any(not one.holds for held in found.values() for one in held))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
