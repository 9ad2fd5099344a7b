"""Tuned launch configurations of the fused mixture-of-experts kernel (NVIDIA GPUs only).

The server says in its log which file it looks up; that is the file which is made, and a server that
is started after that has to say that it read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from sgl_admin.base import files, paths, versions
from sgl_admin.base.engine import Lookup
from sgl_admin.base.errors import StageFailure
from sgl_admin.facts import devices, gpu_fit
from sgl_admin.moe import config_files, gain, space, tables
from sgl_admin.moe import shape as shapes
from sgl_admin.moe.shape import MoeShape
from sgl_admin.moe.tables import Pair
from sgl_admin.moe.tuner import Order, Tuner
from sgl_admin.records import caches
from sgl_admin.records.archive import Part
from sgl_admin.sglang import ENGINE
from sgl_admin.stages.base import Context, Offer, Stage

# What SLICE-Bench's provider-prep asks for.
BATCH_SIZES = (2, 4, 8, 16, 32, 48, 64, 96, 128, 256, 512, 1024, 4096)

# Changes with what a tuning does. Without it is what releases before 1.2 tuned: both projections
# as one, and against no rival.
_METHOD = 2
# The compute capability from which on a kernel can load by TMA.
_TMA_SINCE = 90

_RELEASE = re.compile(r"\d+(\.\d+)*")


class MoeTune(Stage):
    name = "moe_tune"
    server_made = False
    failure_type = "tuner_failed"

    def skip_reason(self, context: Context) -> str | None:
        return super().skip_reason(context) or (
            None if context.model.has_experts else "no_moe_layers"
        )

    def unsupported(self, context: Context) -> str | None:
        triton = versions.installed("triton") or "unknown"
        if not _RELEASE.fullmatch(triton):
            # SGLang reads the numbers in the names of all these folders, and fails at any other.
            return (
                f"Triton's version is {triton}, and a server cannot start beside a folder of that"
                " name: take an image with a release of Triton, or skip it (--moe skip)"
            )
        try:
            _by_config(context)
        except shapes.Untunable as error:
            return f"{error}; skip it (--moe skip)"
        return None

    def signature(self, context: Context) -> dict[str, Any]:
        return _tuning(context, _expected(context))

    def lacking(self, context: Context) -> str | None:
        shape = _expected(context)
        if config_files.replaced(_path(context, shape), _tuning(context, shape)):
            return "the file has the rows of another tuning, as of another image"
        if missing := _missing(context, shape):
            return f"no configuration for batch sizes {', '.join(map(str, missing))}"
        if not _is_filled(context, shape):
            return "the batch sizes between the tuned ones have not been measured"
        if context.request.moe_fusion == "ensure" and not _was_read(context, shape):
            return "no server has said yet that it reads the configurations"
        return None

    def missing_batch_sizes(self, context: Context) -> list[int] | None:
        return _to_tune(context, _expected(context))

    def content(self, context: Context) -> list[Path]:
        shape = _expected(context)
        # The other files came with SGLang, or are other models'.
        return _files(_path(context, shape))

    def standing(self, context: Context) -> dict[str, Any]:
        shape = _expected(context)
        return _artifacts(context, shape, new=[], verified=_was_read(context, shape) or None)

    def run(self, context: Context) -> dict[str, Any]:
        if why := self.unsupported(context):
            raise StageFailure("unsupported", why)
        if (named := dict(context.environment).get(ENGINE.moe.variable)) != str(
            config_files.root()
        ):
            raise StageFailure(
                "config_missing",
                f"the stage writes to {config_files.root()}, and {ENGINE.moe.variable}={named}"
                " has the server read another folder: leave that variable out (sgl_server_env),"
                " or skip the stage (--moe skip)",
            )
        shape = self._asked_for(context, _expected(context))
        tuned: dict[str, Any] = {}
        if context.request.stages[self.name] != "rebuild":
            config_files.take_back(_path(context, shape), _tuning(context, shape))
        missing = _to_tune(context, shape)
        if missing or not _is_filled(context, shape):
            tuned = self._tune(context, shape, missing)
        verified = None
        if context.request.moe_fusion == "ensure":
            self._verify(context, shape)
            verified = True
        return {
            **_artifacts(context, shape, new=missing, verified=verified),
            **({"tuning": tuned} if tuned else {}),
        }

    def _asked_for(self, context: Context, expected: MoeShape) -> MoeShape:
        """The shape as a server asks for it. Without one (--moe-fusion skip) that of an earlier
        prep, or the one that is expected.
        """
        if not context.warmup.started and context.request.moe_fusion == "skip":
            return expected
        context.progress(
            0, 1, "servers", "the server starts, and says which MoE configuration it looks up"
        )
        context.warmup.start()
        names = [
            Path(found).name for found in ENGINE.moe.looked_up(context.warmup.server.own_lines())
        ]
        lookups = [
            lookup
            for name in dict.fromkeys(names)
            if (lookup := ENGINE.moe.lookup(name)) is not None
        ]
        shape = shapes.seen(expected, lookups)
        if shape is None:
            named = ", ".join(dict.fromkeys(names)) or "none"
            wanted = ENGINE.moe.file_name(expected.lookup, "*")
            raise StageFailure(
                "unsupported",
                f"the server does not look up {wanted}, which would be tuned (it asks for {named}):"
                f" {shapes.mismatch(expected, names)}, so tuning would change nothing; skip it"
                " (--moe skip)",
            )
        config_files.remember(_settings(context), shape.lookup)
        return shape

    def _tune(self, context: Context, shape: MoeShape, batch_sizes: list[int]) -> dict[str, Any]:
        # Benchmarks want the GPU for themselves.
        context.warmup.rest()
        tuning, path = _tuning(context, shape), _path(context, shape)
        both = context.release.down_files
        tuner = Tuner(
            shape,
            _order(context, shape, batch_sizes),
            tuning,
            _sm(context),
            context.warmup.server.log,
            context.progress,
            context.on_group,
            dict(context.environment),
            gpu_fit.all_idle(context.devices, dict(context.environment).get(devices.VISIBLE)),
        )
        context.warmup.keep_place()
        # Until all is done again.
        config_files.filled(path, tuning, 0)

        def add(size: int, pair: Pair, row: dict[str, Any]) -> None:
            config_files.add(path, tuning, size, *pair, row, both)
            context.on_batch_size(size)

        outcome = tuner.run(batch_sizes, add)
        config_files.filled(path, tuning, _largest(context))
        return vars(outcome)

    def _verify(self, context: Context, shape: MoeShape) -> None:
        """Raises StageFailure where a server does not say that it read the file: one that runs was
        started since that was last changed.
        """
        path = str(_path(context, shape))
        context.progress(
            0, 1, "servers", "the server starts, to show that it reads the tuned configurations"
        )
        context.warmup.start()
        if path not in ENGINE.moe.read(context.warmup.server.own_lines()):
            raise StageFailure(
                "tuner_failed",
                f"the server started, but did not say that it read {path}: its log names what it"
                " looked up",
                context.warmup.server.log_tail(),
            )
        files.write_json(
            _proof(context, shape), {"schema_version": "1", **_what_is_read(context, shape)}
        )

    def key(self, context: Context) -> str:
        # What a server asks for, which the signature holds, a host knows only when it has started
        # one with its settings.
        return caches.digest(
            {**_tuning(context, _by_config(context)), "settings": _settings(context)}
        )

    def offer(self, context: Context) -> Offer | None:
        """Each batch size that is tuned, also while others are being tuned."""
        shape = _expected(context)
        tuning, path = _tuning(context, shape), _path(context, shape)
        if not config_files.tuned(path, tuning):
            return None
        record = self.record(tuning)
        finished = (
            caches.partial_info(self.name) is None
            and record.problem([]) is None
            and self.lacking(context) is None
        )
        lookup = config_files.remembered(_settings(context))
        hints = (
            {"settings": _settings(context), "lookup": ENGINE.moe.file_name(lookup, "*")}
            if lookup
            else {}
        )
        read = [_proof(context, shape)] if _was_read(context, shape) else []
        offered = [*_files(path), config_files.tuned_record(path), *read]
        return Offer(tuning, offered, finished, hints)

    def signature_given(self, context: Context, hints: dict[str, Any]) -> dict[str, Any]:
        return _tuning(context, _given(context, hints) or _expected(context))

    def learned(self, context: Context, hints: dict[str, Any]) -> dict[str, Any]:
        """What another host's server of the same settings asked for."""
        return (
            {key: hints[key] for key in ("settings", "lookup")}
            if _given(context, hints) is not None
            else {}
        )

    def foreign(self, context: Context, part: Part) -> str | None:
        shape = _given(context, part.hints) or _expected(context)
        path, given = _path(context, shape), {paths.PROFILES / entry.path for entry in part.files}
        own = {path, config_files.tuned_record(path)}
        if missing := own - given:
            return f"{min(missing).relative_to(paths.PROFILES)} is not among its files"
        if others := given - own - {_proof(context, shape), config_files.down_file(path)}:
            return files.printable(
                f"{min(others).relative_to(paths.PROFILES)} is no file of this tuning"
            )
        return None

    def adopt(self, part: Part, staged: Path) -> None:
        """Add the batch sizes that this host has not tuned itself to those that it has."""
        lookup = _lookup(part.hints)
        if lookup is not None:
            config_files.remember(part.hints["settings"], lookup)
        records = self.caches[0], config_files.TUNED
        entries = {entry.path: entry for entry in part.files}
        for name in entries:
            main = ENGINE.moe.main_name(name) == name
            if Path(name).parts[1] != ENGINE.moe.folder or not main:
                continue
            source, target = staged / name, paths.PROFILES / name
            for folder in (target.parent, config_files.tuned_record(target).parent):
                files.sweep_temporaries(folder)
            record = staged.joinpath(*records, target.name)
            if not config_files.tuned(source, part.signature, record):
                continue
            _take_rows(source, target, part, record)
            for each in _files(target):
                given = entries.get(str(each.relative_to(paths.PROFILES)))
                if given and hashlib.sha256(files.read_bytes(each)).hexdigest() == given.sha256:
                    os.utime(each, ns=(given.mtime_ns, given.mtime_ns))
            if part.finished:
                self.record(part.signature).write(_files(target))
                # Of a tuning that was killed here, and that no tuning takes up any more.
                shutil.rmtree(config_files.work(part.signature), ignore_errors=True)
            # Another host's server said that it reads such a file; this one's is the same only with
            # the same batch sizes.
            said = {"tuning": part.signature, "batch_sizes": sorted(config_files.read(target))}
            if _says(staged.joinpath(*records, f"read-{target.name}"), said):
                files.write_json(
                    paths.PROFILES.joinpath(*records, f"read-{target.name}"),
                    {"schema_version": "1", **said},
                )


def _take_rows(source: Path, target: Path, part: Part, record: Path) -> None:
    """Add another host's rows to the file that is here, or begin it with all of theirs."""
    given = config_files.tuned(source, part.signature, record)
    pairs, measured = config_files.rows(source), config_files.gains(source, part.signature, record)
    both = config_files.down_file(source).exists()
    if not target.exists():
        # With the batch sizes that came with SGLang: they are not added to a file of ours later.
        config_files.copy(source, target)
    have = config_files.tuned(target, part.signature)
    for size in sorted(set(given) - set(have)):
        pair = pairs.get(size, Pair(given[size], given[size]))
        config_files.add(target, part.signature, size, *pair, measured.get(size), both)
    if part.finished:
        largest = config_files.filled_to(source, part.signature, record)
        config_files.filled(target, part.signature, largest)


def _given(context: Context, hints: dict[str, Any]) -> MoeShape | None:
    """The shape by what another host's server of the same settings asked for, where this host has
    not learned it itself.
    """
    settings, lookup = _settings(context), _lookup(hints)
    if (
        config_files.remembered(settings) is not None
        or lookup is None
        or hints["settings"] != settings
    ):
        return None
    return shapes.seen(_by_config(context), [lookup])


def _lookup(hints: dict[str, Any]) -> Lookup | None:
    """What another host's server asked for, with the settings that it had."""
    settings, name = hints.get("settings"), hints.get("lookup")
    return ENGINE.moe.lookup(name) if isinstance(settings, str) and isinstance(name, str) else None


def _expected(context: Context) -> MoeShape:
    """The shape by the model's config and what a server of these settings asked for before. Raises
    shapes.Untunable.
    """
    shape = _by_config(context)
    known = config_files.remembered(_settings(context))
    return (shapes.seen(shape, [known]) if known else None) or shape


def _by_config(context: Context) -> MoeShape:
    return shapes.of(
        context.model.config,
        context.request.tp,
        context.request.moe_dtype,
        context.arguments,
        context.release,
        context.model.modelopt,
    )


def _tuning(context: Context, shape: MoeShape) -> dict[str, Any]:
    """What the configurations depend on: the stage's signature. What an earlier release tuned
    stands, as long as it has every batch size and is not asked to be made again.
    """
    tuning = _tuning_now(context, shape)
    rebuilt = context.request.stages[MoeTune.name] == "rebuild"
    earlier = {key: value for key, value in tuning.items() if key != "method"}
    earlier["configurations"] = space.earlier_count(
        shape.lookup.block_shape, context.request.moe_sample
    )
    stands = _had(_path(context, shape), earlier)
    return earlier if not rebuilt and set(_wanted(context)) <= set(stands) else tuning


def _had(path: Path, tuning: dict[str, Any]) -> dict[int, space.Config]:
    """What a tuning has in the file, or would have once its rows are back in it."""
    return {**config_files.tuned(path, tuning), **config_files.replaced(path, tuning)}


def _tuning_now(context: Context, shape: MoeShape) -> dict[str, Any]:
    return {
        **Stage.signature(MoeTune(), context),
        "triton": versions.installed("triton"),
        "E": shape.lookup.E,
        "N": shape.lookup.N,
        "hidden_size": shape.hidden_size,
        "rows_per_token": shape.rows_per_token,
        "dtype": shape.lookup.dtype or shape.torch_dtype,
        "block_shape": list(shape.lookup.block_shape) if shape.lookup.block_shape else None,
        "tp": context.request.tp,
        "method": _METHOD,
        "configurations": space.count(shape.lookup.block_shape, context.request.moe_sample),
        **({"ep": shape.ranks} if shape.ranks > 1 else {}),
        **({} if shape.gated else {"gated": False}),
        **({"per_channel": True} if shape.lookup.per_channel else {}),
        **({"group": shape.group, "zero_points": shape.zero_points} if shape.group else {}),
    }


def _order(context: Context, shape: MoeShape, batch_sizes: list[int]) -> Order:
    """What is to be tuned: the sizes that were asked for, those between them, and what both have
    to beat.
    """
    release, path, tuning = context.release, _path(context, shape), _tuning(context, shape)
    devices = [
        context.devices.name, *ENGINE.moe.nearest_devices(context.devices.name, _sm(context))
    ]  # fmt: skip
    rivals = config_files.rivals(path, release, devices, str(versions.installed("triton")))
    others = {size for each in rivals.values() for size in each["up"] or ()}
    rebuilt = context.request.stages[MoeTune.name] == "rebuild"
    done = config_files.tuned(path, tuning)
    rows = config_files.rows(path)
    tma = shape.by_tma and _sm(context) >= _TMA_SINCE

    def lay(base: dict[int, Pair]) -> None:
        config_files.lay(path, base, release.down_files)

    return Order(
        space.configs(shape.lookup.block_shape, context.request.moe_sample),
        tables.ladder([*_wanted(context), *batch_sizes, *done], others, _largest(context)),
        {size: rows[size] for size in done if size in rows and not rebuilt},
        rivals,
        up_tma=tma and release.up_tma,
        down_tma=tma and release.down_files,
        base=lay,
    )


def _largest(context: Context) -> int:
    """The largest number of tokens that the file answers for."""
    return max(ENGINE.moe.most_tokens(context.arguments), *_wanted(context))


def _is_filled(context: Context, shape: MoeShape) -> bool:
    path, tuning = _path(context, shape), _tuning(context, shape)
    # An earlier release filled none.
    return "method" not in tuning or config_files.filled_to(path, tuning) >= _largest(context)


def _files(path: Path) -> list[Path]:
    """A file and, where it has one, its neighbour for the down projection."""
    down = config_files.down_file(path)
    return [path, *([down] if down.exists() else [])]


def _sm(context: Context) -> int:
    return int((context.devices.compute_capability or "0").replace(".", ""))


def _settings(context: Context) -> str:
    """Names the server's settings that what it looks up depends on."""
    parts = [
        context.model.identity,
        context.request.tp,
        ENGINE.version(),
        [" ".join(group) for group in ENGINE.kernel_arguments(context.keyed_arguments)],
        *([dict(context.model_files)] if context.model_files else []),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _path(context: Context, shape: MoeShape) -> Path:
    name = ENGINE.moe.file_name(shape.lookup, context.devices.name)
    return config_files.folder(str(versions.installed("triton"))) / name


def _proof(context: Context, shape: MoeShape) -> Path:
    """Where it stands that a server said that it read the file."""
    return config_files.root() / config_files.TUNED / f"read-{_path(context, shape).name}"


def _what_is_read(context: Context, shape: MoeShape) -> dict[str, Any]:
    return {
        "tuning": _tuning(context, shape),
        "batch_sizes": sorted(config_files.read(_path(context, shape))),
    }


def _was_read(context: Context, shape: MoeShape) -> bool:
    """Whether a server said that it read the file as it is now."""
    return _says(_proof(context, shape), _what_is_read(context, shape))


def _says(path: Path, what: dict[str, Any]) -> bool:
    """Whether a record says this."""
    record = files.read_valid(path)
    return all(record.get(key) == value for key, value in what.items())


def _wanted(context: Context) -> tuple[int, ...]:
    return context.request.moe_batch_sizes or BATCH_SIZES


def _missing(context: Context, shape: MoeShape) -> list[int]:
    have = _had(_path(context, shape), _tuning(context, shape))
    return [size for size in _wanted(context) if size not in have]


def _to_tune(context: Context, shape: MoeShape) -> list[int]:
    """A rebuild tunes all that is wanted once more; each configuration stays until its own
    replacement is found, and those of other batch sizes and models stay.
    """
    if context.request.stages[MoeTune.name] == "rebuild":
        return list(_wanted(context))
    return _missing(context, shape)


def _artifacts(
    context: Context, shape: MoeShape, new: list[int], verified: bool | None
) -> dict[str, Any]:
    path = _path(context, shape)
    return {
        "config_file": {"container_path": str(path), "host_path": paths.to_host(path)},
        "available_batch_sizes": sorted(config_files.read(path)),
        "new_batch_sizes": new,
        "skipped_batch_sizes": [size for size in _wanted(context) if size not in new],
        "verified_in_log": verified,
        "gain": gain.summary(config_files.gains(path, _tuning(context, shape))),
    }
