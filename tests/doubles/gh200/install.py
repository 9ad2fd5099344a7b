"""Runs once, in the build of the replica of SGLang's image, by the environment's Python: installs
the packages that stand_ins.py put into `packages`.

The wheel has no pyproject.toml, so one is written from its metadata: flat, as upstream's is, which
makes setuptools leave a finder and no folder on Python's path.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

METADATA = "{name}-{version}.dist-info"
# Image generation and upstream's tests: a third of the code, which no server of ours imports and
# whose byte code the image's build would make.
THINNED = ("sglang/multimodal_gen/", "sglang/test/")


def metadata(name: str, version: str) -> None:
    folder = Path(
        sysconfig.get_path("purelib"), METADATA.format(name=name.replace("-", "_"), version=version)
    )
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")


def install_editable(workspace: Path, wheel: Path, tools: Path) -> None:
    project = workspace / "sglang" / "python"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(
            project,
            [
                name
                for name in archive.namelist()
                if name.startswith("sglang/") and not name.startswith(THINNED)
            ],
        )
    version = wheel.name.split("-")[1]
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "sglang"\nversion = "{version}"\n'
        '[tool.setuptools.packages.find]\ninclude = ["sglang*"]\n',
        encoding="utf-8",
    )
    with tempfile.TemporaryDirectory() as path:
        for found in [*tools.glob("setuptools*"), *tools.glob("_distutils_hack*")]:
            shutil.copytree(found, Path(path, found.name))
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
             "--no-build-isolation", "--editable", str(project)],
            env={**os.environ, "PYTHONPATH": path},
            check=True,
        )  # fmt: skip


def main() -> None:
    workspace, tools = Path(sys.argv[1]), Path(sys.argv[2])
    packages = workspace / "packages"
    [wheel] = packages.glob("*.whl")
    install_editable(workspace, wheel, tools)
    site = Path(sysconfig.get_path("purelib"))
    for name in (packages / "kernels.txt").read_text(encoding="utf-8").splitlines():
        if not name.endswith("/"):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).touch()
    for line in (packages / "metadata.txt").read_text(encoding="utf-8").splitlines():
        metadata(*line.split("=="))


main()
