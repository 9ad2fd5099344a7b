#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_host_info
short_description: Report what a run needs to know of a host, and what would stop it, in one round
  trip
version_added: 1.0.0
description:
  - Returns the service user, what Docker says, the container, its run and the image as they are,
    the host tree, the model, and the devices
    that kernels are for.
  - Takes the place of fact gathering, which costs a second a host and knows none of this. A host on
    which everything is as it should be
    needs no other look.
  - Changes nothing. RV(problems) has all that stops a run at once, each with its remedy.
options:
  ready_for:
    description:
      - Fail where something stops this. V(tree) needs the host tree with its owner, and does not
        ask Docker anything. V(stop) needs Docker;
        V(smoke) also a live run; V(start) Docker, the host tree, free ports and space; V(prep) also
        the model.
      - V(nothing) only looks.
    type: str
    choices: [nothing, tree, stop, smoke, start, prep]
    default: nothing
  ports:
    description:
      - Ports that must be free, by the name of their service. Looked at only while the container
        does not run, as it holds them then.
      - That of C(sglang) is the server's, which listens on loopback, and is looked at for a prep
        only.
    type: dict
    default: {}
  space_gb:
    description:
      - Free space that must be there before something is written, in units of 10^9 bytes, by what
        it is for. C(telemetry) and C(profiles)
        are looked at unless the run has proven its metrics, C(docker) (Docker's own folder) where
        the image is missing.
    type: dict
    default: {}
  gpus:
    description:
      - Whether the container is to use the host's GPUs. Then their health is looked at, and what
        keeps them from being used is refused. C(nvidia-smi) is asked even where the driver's device
        files are missing, since it makes them.
        V(tree) and V(stop) of O(ready_for) need no GPU, and do not look.
      - GPUs in MIG mode, GPUs that the driver lost, and a driver too old for the CUDA of the image
        are problems; so are GPUs of
        different kinds where O(tp) is more than 1, a Docker without the NVIDIA container
        toolkit, compute mode Prohibited, and GPUs that have not joined the fabric of their
        NVSwitches.
      - What may spoil a measurement is a warning. That is Xid errors, uncorrectable ECC errors, row
        remaps that wait for a reset, a
        slowdown, persistence mode that is off, an exclusive compute mode, a pending MIG mode, a
        vGPU without a license, processes of others on a GPU, and on Grace what NVIDIA advises
        against.
      - A part of C(nvidia-smi)'s answer that is missing or damaged costs that part; a warning says
        so.
    type: bool
    default: false
  visible_devices:
    description:
      - What CUDA_VISIBLE_DEVICES is in the container; other GPUs are not judged. UUIDs, or indexes
        as C(nvidia-smi) counts them.
      - CUDA itself counts the fastest first unless CUDA_DEVICE_ORDER is C(PCI_BUS_ID), so of GPUs
        of different kinds take UUIDs.
    type: str
  describe_system:
    description:
      - Whether to describe the host in the form of MLPerf Inference's submissions (RV(system)).
      - It asks C(lscpu) and C(nvidia-smi) once more, so a prep does not need it.
    type: bool
    default: false
    version_added: 1.3.0
extends_documentation_fragment:
  - slice_bench.sglang.options.host_info
attributes:
  check_mode:
    support: full
    description: >-
      It only looks. With O(ready_for), what a host lacks before its first prep, such as Docker, is
      a warning then and no failure.
  diff_mode:
    support: none
    description: Nothing is changed, so there is no difference to show.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Inspect the host
  slice_bench.sglang.sgl_host_info:
  register: host

- name: Refuse a host that cannot be prepared, before anything changes
  slice_bench.sglang.sgl_host_info:
    ready_for: prep
    model: Qwen/Qwen3-8B
    user: bench
    ports: {prometheus: 9090, sglang: 30000}
    space_gb: {telemetry: 1, profiles: 2}

- name: Inspect the GPUs too, one of which the container sees
  slice_bench.sglang.sgl_host_info:
    ready_for: start
    gpus: true
    visible_devices: GPU-c5533cd4-5a60-059e-348d-b6d7466932e4
    image_cuda: "13.0"
"""

RETURN = r"""
user:
  description: The service user.
  returned: always
  type: dict
  sample: {name: ubuntu, uid: 1000, gid: 1000, home: /home/ubuntu}
acting:
  description: The uid that the modules run with on the host.
  returned: always
  type: int
  sample: 1000
docker:
  description: >-
    Whether Docker can be used, and otherwise the reason with the remedy. The daemon, and with
    it its version, is asked only where the container does not run or the image is missing.
  returned: always
  type: dict
  sample: {available: true, version: 28.2.2, problem: null}
container:
  description: The container as it is, or null.
  returned: always
  type: dict
  sample: {id: 4b1f0c..., running: true, started_at: '2026-11-23T09:15:00Z', labels: {}}
container_leftovers:
  description: Whether a run that was killed while it replaced the container left one beside it.
  returned: always
  type: bool
container_name:
  description: The name of O(container), also where it is not there.
  returned: always
  type: str
  sample: sglang-dev
image:
  description: The image as it is, or null.
  returned: always
  type: dict
  sample: {id: 'sha256:...', labels: {}, architecture: arm64}
devices:
  description: The GPUs by the driver's own tool; a host without one counts its CPU as one device.
  returned: always
  type: dict
  sample: {count: 1, name: NVIDIA GH200 480GB, cuda: true, health: null}
  contains:
    count:
      description: How many there are.
      type: int
    name:
      description: Name of the first.
      type: str
    cuda:
      description: Whether they are GPUs.
      type: bool
    health:
      description: The GPUs' health with O(gpus), or null where it was not looked at or
        C(nvidia-smi) does not describe them.
      type: dict
      sample:
        driver: 580.105.08
        cuda: '13.0'
        gpus:
          - index: 0
            name: NVIDIA GH200 480GB
            uuid: GPU-c5533cd4-5a60-059e-348d-b6d7466932e4
            bus: '00000009:01:00.0'
            memory_mib: 97871
            lost: false
            persistence: true
            mig: false
            pending_mig: false
            compute_mode: Default
            fabric_state: N/A
            fabric_status: N/A
            licensed: null
            ecc: true
            uncorrectable: 0
            wants_reset: []
            broken: []
            slowdown: []
            coherent: true
        processes: [{gpu: 0, pid: 4242, name: /usr/bin/python3, memory_mib: 61234, own: false}]
        xid: [{code: 79, count: 1, where: [GPU 0]}]
        grace: {page_size: 65536, numa_balancing: false, init_on_alloc: false,
          transparent_hugepages: madvise}
      contains:
        driver:
          description: Version of the driver.
          type: str
        cuda:
          description: The newest version of CUDA that the driver supports, or null.
          type: str
        gpus:
          description: >-
            Each GPU; null where the driver reports nothing. C(uncorrectable) counts uncorrectable
            ECC errors since the driver was loaded,
            C(wants_reset) and C(broken) hold reasons, C(slowdown) the causes of one that is active
            now, C(coherent) is true on Grace, C(pending_mig) is what C(mig) becomes with the next
            reset, and C(licensed) is null on whatever is no vGPU.
          type: list
          elements: dict
        processes:
          description: The processes that compute on a GPU, and whether they are those of
            O(container) (C(own)).
          type: list
          elements: dict
        xid:
          description: >-
            Xid errors since the host was started, as far back as the kernel's messages are kept;
            null where this user may not read
            those.
          type: list
          elements: dict
        grace:
          description: What NVIDIA advises on for Grace, as it is; null on other hosts.
          type: dict
architecture:
  description: The host's CPU architecture.
  returned: always
  type: str
  sample: aarch64
tree:
  description: >-
    The host tree's folders and owner, and unless it is only for a stop whether
    M(slice_bench.sglang.sgl_host_dirs) has something to do
    (C(incomplete)), and what in it another user owns (C(foreign), or C(ignored) with
    O(ownership_ignore)).
  returned: always
  type: dict
  sample: {paths: {telemetry: /home/ubuntu/sglang-observability/telemetry}, owner: {uid: 1000, gid:
    1000}, incomplete: false, foreign: [], ignored: []}
model:
  description: >-
    What M(slice_bench.sglang.sgl_model) returns of the model; null unless O(ready_for=prep), or
    where it cannot be used. Also whether there
    are recorded digests (C(recorded)), whether its bytes are known to be those (C(verified)), and
    whether
    M(slice_bench.sglang.sgl_model_stage) has something to bring or to read (C(stage)).
  returned: always
  type: dict
run:
  description: What M(slice_bench.sglang.sgl_manifest) returns of the container's run.
  returned: always
  type: dict
system:
  description: >-
    The host in the form of MLPerf Inference's submissions, as C(schemas/system.schema.json) has it.
    What cannot be read is empty; C(slice_bench.to_fill_in) names what the operator adds.
  returned: with O(describe_system)
  type: dict
  sample: {system_name: 'Supermicro ARS-111GL-NHR', host_processors_per_node: '1'}
problems:
  description: What stops O(ready_for), each with its remedy.
  returned: always
  type: list
  elements: str
  sample: []
"""

from ..module_utils import _preflight as preflight
from ..module_utils import _server_arguments as server_arguments
from ..module_utils._docker_cli import DockerError
from ..module_utils._host_info_spec import SPEC
from ..module_utils._told import ToldModule

_ROOTS = ("root", "telemetry_root", "profiles_root", "models_root", "huggingface_root")


def main() -> None:
    module = ToldModule(
        argument_spec={
            "ready_for": {
                "type": "str",
                "choices": ["nothing", "tree", "stop", "smoke", "start", "prep"],
                "default": "nothing",
            },
            **SPEC,
            "ports": {"type": "dict", "default": {}},
            "space_gb": {"type": "dict", "default": {}},
            "gpus": {"type": "bool", "default": False},
            "visible_devices": {"type": "str"},
            "describe_system": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    arguments = server_arguments.take(module)
    given = {name: value for name, value in module.params.items() if name not in _ROOTS}
    given[server_arguments.NAME] = arguments
    try:
        given["ports"] = {name: int(port) for name, port in given["ports"].items()}
        given["space_gb"] = {name: float(size) for name, size in given["space_gb"].items()}
    except (TypeError, ValueError) as error:
        module.fail_json(msg=f"ports and space_gb take numbers: {error}")
    options = preflight.Options(
        roots={name.removesuffix("_root"): module.params[name] for name in _ROOTS}, **given
    )
    try:
        found = preflight.look(options, module.run_command)
    except (preflight.PreflightError, DockerError) as error:
        module.fail_json(msg=str(error))
    for warning in found.warnings:
        module.warn(warning)
    problems = [*found.lacking, *found.problems]
    stopping = found.problems if module.check_mode else problems
    if options.ready_for != "nothing":
        if stopping:
            # All the facts would bury the message.
            foreign = {"foreign": found.facts["tree"]["foreign"]}
            module.fail_json(
                msg="; ".join(stopping),
                problems=problems,
                tree=foreign,
                container_name=options.container,
            )
        if problems:
            module.warn(f"A run without --check would stop here: {'; '.join(problems)}")
    module.exit_json(changed=False, problems=problems, **found.facts)


if __name__ == "__main__":
    main()
