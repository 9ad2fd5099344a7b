"""Runs at the start of every Python process of the fault image, by sgl_faults.pth; does nothing
that the environment does not ask for.
"""

import os
import sys

if os.environ.get("SGL_TEST_SERVER"):
    # Before site-packages, so that `python -m sglang.launch_server` is the double; the real
    # package's metadata is still found.
    sys.path.insert(0, "/opt/sgl-faults/doubles")
if os.environ.get("SGL_TEST_FAULTS"):
    import sgl_faults_shim  # type: ignore[import-not-found]

    sgl_faults_shim.install(os.environ["SGL_TEST_FAULTS"], sys.orig_argv)
