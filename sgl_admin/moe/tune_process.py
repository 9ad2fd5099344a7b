"""The process that tunes: the order comes on standard input, a line of JSON for each progress goes
to the descriptor in argv.

It is a process of its own because it imports torch, holds the GPU, and may be ended by a kernel
that crashes or hangs: its parent begins it again, and it goes on by its journal. What libraries
print goes to standard error, the run's log.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl_admin.base import ordered
from sgl_admin.contract.texts import say
from sgl_admin.moe import space, verdict
from sgl_admin.moe.claims import Claims
from sgl_admin.moe.compiling import Compilers, Launch
from sgl_admin.moe.journal import Journal, Settled
from sgl_admin.moe.search import CannotRun, Search
from sgl_admin.moe.shape import MoeShape
from sgl_admin.moe.tables import Pair, pair_of
from sgl_admin.moe.tuner import EXIT_CANNOT_RUN, EXIT_MEMORY
from sgl_admin.sglang import ENGINE

# Of what is compiled while a GPU measures.
_NICENESS = 10


def tune(order: dict[str, Any], tell: Any) -> int:
    """Tune as the order says, and report by `tell`; returns the exit code."""
    shape = MoeShape.from_json(order["shape"])
    journal = Journal(Path(order["journal"]), order["tuning"], map(Path, order["beside"]))
    # Where it is not known why that process ended, it may have been killed with all the others: the
    # configuration is tried again.
    if journal.open is not None and order["ended"]:
        journal.drop(*journal.open, f"the process that measured it ended: {order['ended']}")
    import torch

    from sgl_admin.moe.bench import FusedExperts

    compilers: list[Compilers] = []
    try:
        tell(phase="start", done=0, total=0)
        release, _ = ENGINE.release()
        shared = _folder(order, "compiling")
        begun = functools.partial(
            Compilers,
            order["sm"],
            [release.kernels],
            order["workers"],
            order["compile_limit_s"],
            shared=shared,
        )
        compilers.append(begun())
        if shared is not None:
            compilers.append(begun(niceness=_NICENESS))
        bench = FusedExperts(shape, release, tables_of(order["rivals"]))
        _search(order, shape, journal, bench, compilers, tell)
    except torch.cuda.OutOfMemoryError as error:
        say(f"sgl-admin: {error}", file=sys.stderr)
        return EXIT_MEMORY
    except CannotRun as error:
        say(f"sgl-admin: {error}", file=sys.stderr)
        return EXIT_CANNOT_RUN
    finally:
        for each in compilers:
            each.close()
        journal.close()
    return 0


def _search(
    order: dict[str, Any],
    shape: MoeShape,
    journal: Journal,
    bench: Any,
    compilers: Sequence[Compilers],
    tell: Any,
) -> None:
    """Tune the sizes that were asked for, and fill the sizes between them. Raises CannotRun."""
    sizes: list[int] = order["batch_sizes"]
    ladder: list[int] = order["ladder"]

    def launches(keys: Any) -> list[Launch]:
        wanted = [bench.known(key) for key in keys]
        # The part of this process first: it finds what the others have compiled meanwhile.
        first = wanted[order["number"] :: order["processes"]]
        return list(dict.fromkeys([*first, *wanted]))

    def compile_all(keys: Any, progress: Any) -> Any:
        wanted = launches(keys)
        started = time.monotonic()
        failed = compilers[0].compile(wanted, progress)
        tell(
            compiled=len(wanted),
            failed=len(failed),
            seconds=round(time.monotonic() - started, 3),
        )
        return failed

    search = Search(
        space.trials(order["configs"], order["up_tma"], order["down_tma"]),
        sizes,
        shape.chosen / (shape.routed * shape.ranks),
        journal,
        bench,
        compile_all,
        lambda phase, done, total: tell(phase=phase, done=done, total=total),
        Claims(_folder(order, "claims"), order["number"]),
        (lambda keys: compilers[1].begin(launches(keys))) if len(compilers) > 1 else None,
    )

    def found(size: int, settled: Settled) -> None:
        tell(
            batch_size=size,
            best=settled.pair.to_json(),
            row=settled.row,
            looked=search.looked,
            look_s=search.look_s,
        )

    tell(phase="launches", done=0, total=len(sizes))
    bench.warm(sorted({*sizes, *ladder}))
    tell(base={size: _base(bench.rivals(size)).to_json() for size in ladder})
    search.run(found)
    known = {int(size): pair_of(each) for size, each in order["known"].items()}
    tell(rows=search.fill(ladder, known, found))


def _folder(order: dict[str, Any], name: str) -> Path | None:
    """What the processes of several GPUs share beside their journals."""
    return Path(order["journal"]).with_name(name) if order["processes"] > 1 else None


def _base(rivals: Any) -> Pair:
    """What a server launches as long as nothing is tuned."""
    pair: Pair = rivals.get(verdict.SHIPPED) or rivals[verdict.DEFAULT]
    return pair


def tables_of(rivals: dict[str, Any]) -> dict[str, Any]:
    """JSON has no numbers for keys."""
    return {
        name: tuple(
            {int(size): config for size, config in table.items()} if table else None
            for table in (each["up"], each["down"])
        )
        for name, each in rivals.items()
    }


if __name__ == "__main__":
    sys.exit(ordered.obey(tune))
