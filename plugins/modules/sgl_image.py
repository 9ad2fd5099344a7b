#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_image
short_description: Build, pull or load the image where the one that is there is not the wanted one
version_added: 1.0.0
description:
  - With O(source=build), the image carries a label with the digest of all that it is made from.
    Where that equals the digest of the build
    context on the controller and of the options here, nothing is done, in one round trip or, with
    O(found), in none.
  - Otherwise the image is made on the host in up to four steps, each shown on the screen and each
    kept once it is done. Its bases are
    pulled, or for the local flavour a Debian base is made by debootstrap (needs root, once); the
    Python packages come by the host's own
    pip, with its indexes, find-links, proxy and CA bundle, or by the controller's where the host's
    cannot fetch them, checked by digest; the programs of the
    services from their release archives,
    checked by digest; then C(docker build) with BuildKit.
  - With O(source=pull) or O(source=load), it comes from a registry or from an archive.
  - In each case the architecture of the image and of the programs in it is checked, without running
    anything of it.
  - An edit of sgl-admin alone repeats only the last layers.
options:
  name:
    description: Name of the image.
    type: str
    required: true
  source:
    description: Where the image comes from.
    type: str
    choices: [build, pull, load]
    default: build
  context:
    description: The build context, a folder on the controller.
    type: path
    required: true
  flavour:
    description: Which components the image gets; a folder of this name is in the context's
      C(flavours).
    type: str
    required: true
  platform:
    description: The platform of the image. By default the host's own; for another one the host
      needs an emulator.
    type: str
    choices: [linux/amd64, linux/arm64]
  base_name:
    description:
      - Name of the base image, best with its digest (C(name@sha256:...)). By default the one that
        the flavour's recipe names; for V(local)
        C(sglang-base) with O(base_suite) as its tag, made where it does not exist.
      - One that is on the host is taken as it is, so a tag that moves is not followed. The digest
        that was taken is recorded.
    type: str
  base_suite:
    description: The Debian release of a base that is made.
    type: str
    default: bookworm
  dcgm_image:
    description: The image that dcgm-exporter is taken from. By default the one that the flavour's
      recipe names.
    type: str
  downloads:
    description:
      - Versions and digests of release archives, by the name that the flavour's recipe has for
        them, in place of those of the recipe.
      - An archive of another version needs its own C(sha256).
    type: dict
    default: {}
  download_mirror:
    description: Address of a mirror of C(https://github.com), with the same paths below it.
    type: str
  download_dir:
    description: Folder on the host with downloaded release archives, under their own
      names, and with the sums files of releases whose digests are not pinned. They are checked all
      the same.
    type: path
  require_digests:
    description:
      - Whether a release archive whose digest neither the recipe nor O(downloads) has is refused.
      - By default it is checked against the sums file that its release publishes, fetched over TLS
        once and then kept, with a warning that says how to pin it.
    type: bool
    default: false
  pull:
    description:
      - Reference of the image for O(source=pull), best with its digest
        (C(registry/name@sha256:...)).
      - A tag is taken with a warning. It is not followed once its image is on the host.
    type: str
  archive:
    description: Path on the host of the archive for O(source=load), as C(docker save) writes it,
      packed by gzip or not.
    type: path
  archive_sha256:
    description: Digest that the archive must have.
    type: str
  build_dir:
    description: Folder on the host for downloads and for the build context. It holds about 0.5 GB
      of wheels for the next build.
    type: path
    default: ~/.cache/slice_bench.sglang
  found:
    description:
      - The image as M(slice_bench.sglang.sgl_host_info) has found it in the same run. Where it is
        current, the host is not asked again.
    type: dict
  git_revision:
    description: Revision of the checkout, recorded in the image.
    type: str
    default: unknown
  inputs:
    description: Digest of the inputs. Set by the action plugin.
    type: str
  step:
    description: What this call does. Set by the action plugin.
    type: str
    choices: [check, base, wheels, downloads, build, pull, load]
    default: check
  context_archive:
    description: The build context on the host. Set by the action plugin.
    type: path
  wheels_archive:
    description: The Python packages on the host, where its own pip cannot fetch them. Set by the
      action plugin.
    type: path
attributes:
  check_mode:
    support: full
    description: Tells whether the image would be built, pulled or loaded, and changes nothing.
  diff_mode:
    support: full
    description: Shows the digest of the inputs before and after; of an image that is pulled or
      loaded its id, and what it would come from.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Build the image
  slice_bench.sglang.sgl_image:
    name: sglang-dev:local
    context: "{{ role_path }}/files"
    flavour: local
    found: "{{ preflight_host.image }}"

- name: Pull an image that was built elsewhere
  slice_bench.sglang.sgl_image:
    name: sglang-dev:gh200
    source: pull
    pull:
      registry.example.com/sglang-dev@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    context: "{{ role_path }}/files"
    flavour: gh200

- name: Load it from an archive, in a lab without a registry
  slice_bench.sglang.sgl_image:
    name: sglang-dev:gh200
    source: load
    archive: /srv/images/sglang-dev-gh200.tar
    context: "{{ role_path }}/files"
    flavour: gh200
"""

RETURN = r"""
image:
  description: The image as it is, or null where it would have to be built, pulled or loaded.
  returned: always
  type: dict
  sample: {id: 'sha256:...', architecture: arm64, labels: {}, repo_digests: []}
inputs:
  description: Digest of all that the image is made from; null where it is not built here.
  returned: always
  type: str
  sample: sha256:...
next_step:
  description: The step that is to be done next, or null.
  returned: always
  type: str
  sample: build
"""

import tempfile
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._contract.labels import INPUTS_LABEL
from ..module_utils._contract.locks import LockTimeout
from ..module_utils._docker_cli import DockerError
from ..module_utils._image_build import ImageBuild, Sources, check_build_dir, unpack
from ..module_utils._image_parts import ImageError, alone
from ..module_utils._image_sources import Loaded, Pulled
from ..module_utils._image_wheels import NoWheels
from ..module_utils._told import ToldModule


def main() -> None:
    module = _module()
    given = module.params
    inputs, builds = given["inputs"], given["source"] == "build"
    try:
        check_build_dir(given["build_dir"])
        answer = build_image(module) if builds else take_image(module)
    except LockTimeout as error:
        # The action plugin says so, and calls again.
        module.exit_json(
            changed=False, image=None, inputs=inputs, next_step=given["step"], waits_for=str(error)
        )
    except NoWheels as error:
        wheels = {"requirements": error.requirements, "machine": error.machine}
        module.fail_json(msg=str(error), inputs=inputs, wheels=wheels)
    except DockerError as error:
        if module.check_mode:
            made, step = ("be built", "base") if builds else ("come", given["source"])
            words = f"the image would {made} once Docker works: {error}"
            module.exit_json(changed=True, image=None, inputs=inputs, next_step=step, msg=words)
        module.fail_json(msg=str(error), inputs=inputs)
    except (ImageError, OSError) as error:
        module.fail_json(msg=str(error), inputs=inputs)
    module.exit_json(inputs=inputs, **answer)


def _module() -> AnsibleModule:
    return ToldModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "source": {"type": "str", "choices": ["build", "pull", "load"], "default": "build"},
            "context": {"type": "path", "required": True},
            "flavour": {"type": "str", "required": True},
            "platform": {"type": "str", "choices": ["linux/amd64", "linux/arm64"]},
            "base_name": {"type": "str"},
            "base_suite": {"type": "str", "default": "bookworm"},
            "dcgm_image": {"type": "str"},
            "downloads": {"type": "dict", "default": {}},
            "download_mirror": {"type": "str"},
            "download_dir": {"type": "path"},
            "require_digests": {"type": "bool", "default": False},
            "pull": {"type": "str"},
            "archive": {"type": "path"},
            "archive_sha256": {"type": "str"},
            "build_dir": {"type": "path", "default": "~/.cache/slice_bench.sglang"},
            "found": {"type": "dict"},
            "git_revision": {"type": "str", "default": "unknown"},
            "inputs": {"type": "str"},
            "step": {
                "type": "str",
                "choices": ["check", "base", "wheels", "downloads", "build", "pull", "load"],
                "default": "check",
            },
            "context_archive": {"type": "path"},
            "wheels_archive": {"type": "path"},
        },
        required_if=[("source", "pull", ("pull",)), ("source", "load", ("archive",))],
        supports_check_mode=True,
    )


def take_image(module: AnsibleModule) -> dict[str, Any]:
    """The image from a registry or an archive."""
    given = module.params
    asked = (module.run_command, given["name"], given["flavour"], given["platform"])
    source: Pulled | Loaded
    if given["source"] == "pull":
        source = Pulled(*asked, given["pull"])
    else:
        source = Loaded(*asked, given["archive"], given["archive_sha256"], given["build_dir"])
    before = source.found()
    current = source.is_current(before)
    image = before if current else None
    if current and not module.check_mode:
        source.settle()
    if not current and not module.check_mode and given["step"] == source.step:
        with alone(given["build_dir"]):
            # Another run may have brought it meanwhile.
            before = source.found()
            image = before if source.is_current(before) else source.make()
    if image is not None and (warning := source.warning(image)):
        module.warn(warning)
    before_id = before["id"] if before else "absent"
    after = image["id"] if image else f"from {source.wanted}"
    return {
        "changed": image["id"] != before_id if image else True,
        "image": image,
        "next_step": None if image else source.step,
        "diff": {"before": before_id + "\n", "after": after + "\n"},
    }


def build_image(module: AnsibleModule) -> dict[str, Any]:
    given = module.params
    if given["inputs"] is None:
        raise ImageError(
            "the digest of the inputs is missing: call this as slice_bench.sglang.sgl_image, whose"
            " action plugin computes it"
        )
    build = ImageBuild(
        module.run_command,
        given["name"],
        given["flavour"],
        given["inputs"],
        given["base_name"],
        given["base_suite"],
        given["build_dir"],
        given["platform"],
        sources(given),
    )
    before = build.found()
    current = before if build.made_from_inputs(before) else None
    if module.check_mode or current is not None:
        labels = before["labels"] if before else {}
        old = labels.get(INPUTS_LABEL, "absent")
        return {
            "changed": current is None,
            "image": current,
            "next_step": None if current else "base",
            "diff": {"before": old + "\n", "after": given["inputs"] + "\n"},
        }
    with build.alone():
        return make(build, given, module.warn)


def sources(given: dict[str, Any]) -> Sources:
    return Sources(
        {"DCGM_IMAGE": given["dcgm_image"]} if given["dcgm_image"] else {},
        given["downloads"],
        given["download_mirror"],
        given["download_dir"],
        given["require_digests"],
    )


def make(build: ImageBuild, given: dict[str, Any], warn: Callable[[str], None]) -> dict[str, Any]:
    """Do one step; tell the next."""
    if not given["context_archive"]:
        return {"changed": False, "image": None, "next_step": build.next_step(None)}
    image, step = None, given["step"]
    with tempfile.TemporaryDirectory(prefix="context-", dir=given["build_dir"]) as context:
        unpack(given["context_archive"], context)
        if step == "base":
            build.make_base(context)
        elif step == "wheels":
            build.fetch_wheels(context, given["wheels_archive"])
        elif step == "downloads":
            build.fetch_programs(context)
        elif step == "build":
            image = build.build(context, given["git_revision"])
            for warning in build.warnings(context):
                warn(warning)
        return {"changed": image is not None, "image": image, "next_step": build.next_step(context)}


if __name__ == "__main__":
    main()
