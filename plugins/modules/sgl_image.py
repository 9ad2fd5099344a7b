#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_image
short_description: Build the image when its inputs have changed
version_added: 1.0.0
description:
  - The image carries a label with the digest of all that it is made from. Where that equals the digest of the build context on the
    controller and of the options here, nothing is done, in one round trip or, with O(found), in none.
  - Otherwise the image is made on the host in up to three steps, each told on the screen and each kept once it is done. A Debian base
    by debootstrap (needs root, once); the Python packages by the host's own pip, with its indexes, find-links, proxy and CA
    bundle, checked by digest; then C(docker build) with BuildKit.
  - An edit of sgl-admin alone repeats only the last layers.
options:
  name:
    description: Name of the image.
    type: str
    required: true
  context:
    description: The build context, a folder on the controller.
    type: path
    required: true
  flavour:
    description: Which components the image gets; a folder of this name is in the context's C(flavours).
    type: str
    required: true
  base_name:
    description: Name of the base image, made where it does not exist.
    type: str
    default: sglang-base:bookworm
  base_suite:
    description: The Debian release of the base.
    type: str
    default: bookworm
  build_dir:
    description: Folder on the host for downloads and for the build context. It holds about 0.5 GB of wheels for the next build.
    type: path
    default: ~/.cache/slice_bench.sglang
  found:
    description:
      - The image as M(slice_bench.sglang.sgl_host_info) has found it in the same run. Where it is current, the host is not asked again.
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
    choices: [check, base, wheels, build]
    default: check
  context_archive:
    description: The build context on the host. Set by the action plugin.
    type: path
attributes:
  check_mode:
    support: full
    description: Tells whether the image would be built, and builds nothing.
  diff_mode:
    support: full
    description: Shows the digest of the inputs before and after.
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
"""

RETURN = r"""
image:
  description: The image as it is, or null where it would have to be built.
  returned: always
  type: dict
  sample: {id: 'sha256:...', architecture: arm64, labels: {}}
inputs:
  description: Digest of all that the image is made from.
  returned: always
  type: str
  sample: sha256:...
next_step:
  description: The step that is to be done next, or null.
  returned: always
  type: str
  sample: build
"""

import shutil
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slice_bench.sglang.plugins.module_utils.docker_cli import INPUTS_LABEL, DockerError
from ansible_collections.slice_bench.sglang.plugins.module_utils.image_build import ImageBuild, ImageError, unpack


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "context": {"type": "path", "required": True},
            "flavour": {"type": "str", "required": True},
            "base_name": {"type": "str", "default": "sglang-base:bookworm"},
            "base_suite": {"type": "str", "default": "bookworm"},
            "build_dir": {"type": "path", "default": "~/.cache/slice_bench.sglang"},
            "found": {"type": "dict"},
            "git_revision": {"type": "str", "default": "unknown"},
            "inputs": {"type": "str"},
            "step": {"type": "str", "choices": ["check", "base", "wheels", "build"], "default": "check"},
            "context_archive": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    inputs = given["inputs"]
    if inputs is None:
        module.fail_json(
            msg="the digest of the inputs is missing: call this as slice_bench.sglang.sgl_image, whose action plugin computes it"
        )
    try:
        build = ImageBuild(
            module.run_command, given["name"], given["flavour"], inputs, given["base_name"], given["base_suite"], given["build_dir"]
        )
        before = build.found()
    except DockerError as error:
        if module.check_mode:
            module.exit_json(
                changed=True, image=None, inputs=inputs, next_step="base", msg=f"the image would be built once Docker works: {error}"
            )
        module.fail_json(msg=str(error))
    current = before if build.made_from_inputs(before) else None
    if module.check_mode or current is not None:
        module.exit_json(
            changed=current is None,
            image=current,
            inputs=inputs,
            next_step=None if current else "base",
            diff={"before": (before or {"labels": {}})["labels"].get(INPUTS_LABEL, "absent") + "\n", "after": inputs + "\n"},
        )
    try:
        with build.alone():
            module.exit_json(inputs=inputs, **make(build, given))
    except (DockerError, ImageError, OSError) as error:
        module.fail_json(msg=str(error), inputs=inputs)


def make(build: ImageBuild, given: dict[str, Any]) -> dict[str, Any]:
    """Do one step; tell the next."""
    image = context = None
    if given["context_archive"]:
        context = tempfile.mkdtemp(prefix="context-", dir=given["build_dir"])
    try:
        if context:
            unpack(given["context_archive"], context)
        if given["step"] == "base":
            build.make_base()
        elif given["step"] == "wheels" and context:
            build.fetch_wheels(context)
        elif given["step"] == "build" and context:
            image = build.build(context, given["git_revision"])
        return {"changed": image is not None, "image": image, "next_step": build.next_step(context)}
    finally:
        if context:
            shutil.rmtree(context, ignore_errors=True)


if __name__ == "__main__":
    main()
