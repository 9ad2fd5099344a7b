"""What a compiling process does in the place of Triton, told by the launch's specialization; the
processes around it are real.

It stands for compile_launch and begin of sgl_admin.moe.compiling: they need Triton, and a compiler
does not crash or hang when it is asked to.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from sgl_admin.moe.compiling import Compilers, Launch


class DoesNotCompile(Exception):
    pass


def begin(sm: int, niceness: int) -> None:
    os.nice(niceness)
    os.environ["COMPILES_FOR"] = str(sm)


def work(launch: Launch) -> None:
    """`write FOLDER`, `sleep SECONDS`, `exit CODE`, `kill SIGNAL`, `raise TEXT`; `write` leaves a
    file named by the key.
    """
    what, _, word = launch.specialization.partition(" ")
    match what:
        case "write":
            Path(word, launch.key).write_text(f"sm_{os.environ['COMPILES_FOR']} {os.getpid()}")
        case "sleep":
            time.sleep(float(word))
        case "exit":
            os._exit(int(word))
        case "kill":
            os.kill(os.getpid(), signal.Signals[word])
        case "raise":
            raise DoesNotCompile(word)


def main() -> None:
    """A process with compilers: `close` them and end, or stay with both of them busy."""
    compilers = Compilers(90, [], 2, 600.0, work, begin)
    if sys.argv[1] == "close":
        launches = [Launch(f"{number}", "m", "f", f"write {sys.argv[2]}") for number in range(4)]
        print(dict(compilers.compile(launches, lambda done, total: None)), flush=True)
        compilers.close()
        return
    print("busy", flush=True)
    compilers.compile(
        [Launch("a", "m", "f", "sleep 600"), Launch("b", "m", "f", "sleep 600")],
        lambda done, total: None,
    )


if __name__ == "__main__":
    main()
