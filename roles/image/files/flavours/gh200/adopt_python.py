"""Runs once, in the image's build, by the Python that has SGLang: gives it a name of ours and the
packages that sgl-admin needs.

The wheels are unpacked into a folder that comes last on that Python's path: a package that the base
image has stays the one in use.
"""

import compileall
import importlib.metadata
import importlib.util
import os
import site
import sys
import zipfile

PACKAGES = "/opt/sgl-packages"
NAME = "/opt/sglang/bin/python"


def compile_packages() -> None:
    """Write byte code beside the sources, which belong to root: the server's user could write none,
    and would compile them at each start. What has it already is passed over.
    """
    folders = [folder for folder in (*site.getsitepackages(), PACKAGES) if os.path.isdir(folder)]
    # SGLang's own images install it editable, outside of these folders.
    spec = importlib.util.find_spec("sglang")
    if spec is not None:
        folders += spec.submodule_search_locations or []
    for folder in folders:
        # Templates and tests for other Pythons do not compile; nothing imports them.
        compileall.compile_dir(folder, quiet=2, workers=0)


def main() -> None:
    wheels = sys.argv[1]
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever the base image has
        sys.exit(
            f"SGLang's Python in the base image is {sys.version.split()[0]}, and sgl-admin needs"
            " 3.11 or later: set sgl_image_base"
        )
    for wheel in sorted(os.listdir(wheels)):
        distribution = wheel.split("-")[0]
        try:
            print(f"{distribution}: {importlib.metadata.version(distribution)} of the base image")
        except importlib.metadata.PackageNotFoundError:
            print(f"{distribution}: {wheel}")
            zipfile.ZipFile(os.path.join(wheels, wheel)).extractall(PACKAGES)
    # Debian's Python has several such folders, and reads them in order.
    folder = [folder for folder in site.getsitepackages() if os.path.isdir(folder)][-1]
    with open(os.path.join(folder, "zz-sgl-admin.pth"), "w", encoding="utf-8") as path:
        path.write(f"{PACKAGES}\n")
    # A base image that has it there needs no other name for it.
    if os.path.dirname(sys.executable) != os.path.dirname(NAME) or not os.path.exists(NAME):
        os.makedirs(os.path.dirname(NAME), exist_ok=True)
        # Of another Python, whose program would be written over through it.
        if os.path.islink(NAME):
            os.unlink(NAME)
        # No link: an environment knows its packages by where its interpreter was called.
        with open(NAME, "w", encoding="utf-8") as script:
            script.write(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        os.chmod(NAME, 0o755)  # noqa: S103 - a program
    compile_packages()
    print(f"SGLang {importlib.metadata.version('sglang')} in {sys.executable}")


main()
