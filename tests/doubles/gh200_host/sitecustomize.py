"""Stands for the architecture of a Grace host: loaded by each Python of the test host, as Debian's
own file of that name is (/etc/python3.11/sitecustomize.py).

Python calls this machine aarch64, as a Grace kernel does (`uname -m`), and Docker's client takes
images for it. What such an image holds is run by QEMU.
"""

import os
import platform

platform.machine = lambda: "aarch64"
os.environ.setdefault("DOCKER_DEFAULT_PLATFORM", "linux/arm64")
