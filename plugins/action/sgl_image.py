# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Computes the digest of the image's inputs on the controller and, where the image differs, has it
made or brought step by step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any

from ..module_utils import _image_wheels as image_wheels
from ..module_utils._contract.labels import INPUTS_LABEL
from ..module_utils._contract.texts import one_line
from ..module_utils._image_parts import fits
from ..module_utils._image_sources import pulled_by_digest
from ..plugin_utils.image_context import digest, pack
from ..plugin_utils.told_action import ToldAction

_SAYS = {
    "base": (
        "the base, pulled or by debootstrap (once, about half a minute or, for another"
        " architecture, a minute and a half)"
    ),
    "wheels": "the Python packages, by the host's pip (about 0.5 GB for the local flavour)",
    "downloads": "the programs of the services, from their projects' releases (about 0.2 GB)",
    "build": "docker build (about a minute the first time)",
    "pull": "docker pull",
    "load": "docker load",
}
# An image for GPUs may take an hour, and more on a slow network.
_PATIENCE_S = 2 * 3600.0
_BUILD_STEPS = ("base", "wheels", "downloads", "build")
# What makes another image even where the build context is the same.
_INPUT_OPTIONS = ("flavour", "base_name", "base_suite")
# And, where they are set at all:
_MORE_INPUT_OPTIONS = ("platform", "dcgm_image", "downloads", "require_digests")


class ActionModule(ToldAction):
    def act(self) -> dict[str, Any]:
        arguments = dict(self._task.args)
        for name in ("inputs", "step", "context_archive", "wheels_archive"):
            arguments.pop(name, None)
        found = arguments.pop("found", None)
        if arguments.get("source", "build") != "build":
            return self._taken(arguments, found)
        archive = pack(str(arguments.get("context", "")), str(arguments.get("flavour", "")))
        options = {name: arguments.get(name) for name in _INPUT_OPTIONS}
        options.update(
            {name: arguments[name] for name in _MORE_INPUT_OPTIONS if arguments.get(name)}
        )
        arguments["inputs"] = digest(archive, options)

        if found and (found["name"], found["labels"].get(INPUTS_LABEL)) == (
            arguments.get("name"),
            arguments["inputs"],
        ):
            return {
                "changed": False,
                "image": found,
                "inputs": arguments["inputs"],
                "next_step": None,
            }

        result = self._module(arguments)
        if result.get("failed") or result.get("image") or self._task.check_mode:
            return result
        diff = result.get("diff")
        remote = self._send(archive)
        try:
            result = self._steps({**arguments, "context_archive": remote})
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        if not result.get("failed") and not result.get("image"):
            return {
                **result,
                "failed": True,
                "msg": (
                    f"image {arguments['name']} is not made after each step ran once; next would be"
                    f" {result.get('next_step')}"
                ),
            }
        if diff and not result.get("failed"):
            result["diff"] = diff
        return result

    def _steps(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Each step tells the next; the limit keeps a host on which nothing ever gets done from
        going round for ever.
        """
        result = self._module(arguments)
        for _attempt in range(len(_BUILD_STEPS)):
            step = result.get("next_step")
            if result.get("failed") or step is None:
                break
            self._say(arguments, step)
            result = self._module({**arguments, "step": step})
            if result.get("failed") and result.get("wheels"):
                result = self._bring_wheels({**arguments, "step": step}, result)
        return result

    def _taken(self, arguments: dict[str, Any], found: dict[str, Any] | None) -> dict[str, Any]:
        """The image from a registry or an archive."""
        if found and arguments["source"] == "pull" and found["name"] == arguments.get("name"):
            reference = str(arguments.get("pull"))
            # Where no platform is named, the host knows its own; a digest may be that of an image
            # for several.
            architecture = (
                arguments.get("platform") or f"linux/{found['architecture']}"
            ).partition("linux/")[2]
            if (
                "@" in reference
                and fits(found, architecture, str(arguments.get("flavour")))
                and pulled_by_digest(found, reference)
            ):
                return {"changed": False, "image": found, "inputs": None, "next_step": None}
        result = self._module(arguments)
        if result.get("failed") or result.get("image") or self._task.check_mode:
            return result
        self._say(arguments, result["next_step"])
        return self._module({**arguments, "step": result["next_step"]})

    def _say(self, arguments: dict[str, Any], step: str) -> None:
        self.say(f"image {arguments['name']}: {_SAYS[step]}")

    def _module(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The module's answer; it is called again while another run has the host's build folder."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            answer: dict[str, Any] = self._execute_module(
                module_name="slice_bench.sglang.sgl_image",
                module_args=arguments,
                task_vars=self._vars,
            )
            held = answer.pop("waits_for", None)
            if held is None:
                return answer
            if time.monotonic() >= deadline:
                return {**answer, "failed": True, "msg": one_line(held)}
            self.say(f"image {arguments['name']} waits: {one_line(held)}")

    def _bring_wheels(self, arguments: dict[str, Any], refused: dict[str, Any]) -> dict[str, Any]:
        """The wheels that the host's pip could not fetch (Ubuntu Server has none), by the
        controller's.
        """
        wheels = refused["wheels"]
        why = image_wheels.reason(str(refused.get("msg")))
        self.say(
            f"image {arguments['name']}: the Python packages, by the"
            f" controller's pip, as the host's cannot fetch them ({why})"
        )
        with tempfile.TemporaryDirectory() as folder:
            path, fetched = os.path.join(folder, "requirements.txt"), os.path.join(folder, "wheels")
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(wheels["requirements"])
            done = subprocess.run(
                image_wheels.download_command(sys.executable, wheels["machine"], path, fetched),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if done.returncode:
                also = image_wheels.reason(done.stdout.decode(errors="replace"))
                return {
                    **refused,
                    "msg": (
                        f"the image's Python packages can be fetched neither by the host's pip"
                        f" ({why}) nor by the controller's ({also}): `apt-get install python3-pip`"
                        " on one of them, and give it an index (pip config)"
                    ),
                }
            archive = os.path.join(folder, "wheels.tar")
            with tarfile.open(archive, "w") as packed:
                for name in sorted(os.listdir(fetched)):
                    packed.add(os.path.join(fetched, name), name)
            remote = self._transfer(archive, "wheels.tar")
        return self._module({**arguments, "wheels_archive": remote})

    def _send(self, archive: bytes) -> str:
        with tempfile.NamedTemporaryFile() as local:
            local.write(archive)
            local.flush()
            return self._transfer(local.name, "context.tar")

    def _transfer(self, path: str, name: str) -> str:
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        remote = self._connection._shell.join_path(self._connection._shell.tmpdir, name)
        self._transfer_file(path, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return str(remote)
