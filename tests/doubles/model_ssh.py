#!/usr/bin/env python3
"""OpenSSH's client as Ansible and rsync call it; the remote host is this one.

It stands for ssh to a host: options first, then the host, then the command, which the login shell
gets as one string. It notes its arguments in the file that SGL_TEST_SSH_LOG names, a line each.
Before an rsync it starts the command SGL_TEST_SSH_BEFORE, which stands for another connection's,
and goes on once that has written to the pipe SGL_TEST_SSH_HELD.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

_WITH_VALUE = set("bcDEeFIiJLlmOopQRSWw")


def main() -> None:
    words = sys.argv[1:]
    with open(os.environ["SGL_TEST_SSH_LOG"], "a", encoding="utf-8") as log:
        log.write(json.dumps(words) + "\n")
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        if word[-1] in _WITH_VALUE and len(word) == 2:
            words.pop(0)
    if len(words) < 2:
        sys.exit(255)
    if "SGL_TEST_SSH_BEFORE" in os.environ and "--server" in words:
        null = subprocess.DEVNULL
        subprocess.Popen(
            shlex.split(os.environ["SGL_TEST_SSH_BEFORE"]),
            stdin=null,
            stdout=null,
            stderr=null,
            start_new_session=True,
        )
        with open(os.environ["SGL_TEST_SSH_HELD"], encoding="ascii") as held:
            held.read()
    path = os.environ.get("SGL_TEST_SSH_PATH", os.environ["PATH"])
    os.execve("/bin/sh", ["/bin/sh", "-c", " ".join(words[1:])], {**os.environ, "PATH": path})


if __name__ == "__main__":
    main()
