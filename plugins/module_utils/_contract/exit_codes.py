# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The exit codes of sgl-admin. Those of failed stages are in `stages`."""

from __future__ import annotations

EXIT_OK = 0
EXIT_NO_RESULT = 1
EXIT_USAGE = 2
EXIT_PERMISSION = 3
EXIT_NO_LIVE_RUN = 4
EXIT_BUSY = 5
EXIT_PROOF_FAILED = 6
EXIT_SERVER_FAILED = 7
EXIT_SMOKE_FAILED = 8
EXIT_ARCHIVE = 9
# What a shell reports for a program that SIGINT ended.
EXIT_SIGINT = 130

MEANINGS = {
    EXIT_OK: "done",
    EXIT_NO_RESULT: "it ended without a result, for example by a full disk or a kill",
    EXIT_USAGE: "wrong usage",
    EXIT_PERMISSION: "ownership or permission",
    EXIT_NO_LIVE_RUN: "no run is live",
    EXIT_BUSY: "another prep is busy",
    EXIT_PROOF_FAILED: "the stages are fine, but the proof failed",
    EXIT_SERVER_FAILED: "a server could not be started or did not become healthy",
    EXIT_SMOKE_FAILED: "a test of a smoke failed",
    EXIT_ARCHIVE: "an archive of caches was refused",
    EXIT_SIGINT: "Ctrl-C ended the command",
}

# Why a prep did not begin, in one or two words.
REFUSALS = {
    EXIT_USAGE: "usage",
    EXIT_PERMISSION: "permission",
    EXIT_NO_LIVE_RUN: "no live run",
    EXIT_BUSY: "busy",
}
