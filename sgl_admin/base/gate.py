"""A server's process until the prep that started it has noted it: then it becomes the server, and
ends with that prep.

One whose word is "d" (detached) is a benchmark's, and outlives the process that started it.

A prep may be killed at any moment. Killed before it noted its server, it must leave none: no record
would say which one to end. This is run by its path, so it imports nothing of ours.

argv: the prep's pid, the descriptor on which its word comes, the server's command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this signal when the parent ends; 0 for none."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def main() -> None:
    parent, word = int(sys.argv[1]), int(sys.argv[2])
    # Asked of the kernel before the word is awaited: so there is no moment at which the prep's end
    # would go unseen.
    end_with_parent()
    noted = os.read(word, 1)
    if not noted or os.getppid() != parent:
        sys.exit("sgl-admin: the prep is gone, so its server does not begin")
    if noted == b"d":
        end_with_parent(0)
    # The process that started a detached one waits for this before it ends.
    os.close(word)
    os.execvp(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
