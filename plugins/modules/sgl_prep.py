#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_prep
short_description: Warm the kernel caches in the container and prove that the server's metrics arrive
version_added: 1.0.0
description:
  - Runs C(sgl-admin caches ensure) in the container as a detached job and follows it, showing its progress. The prep goes on when the
    connection or the controller is lost; the same task run again attaches to it.
  - Where every cache is warm and the run's proof stands, it is one round trip and nothing changes.
options:
  container:
    description: Name of the container, which must run.
    type: str
    default: sglang-dev
  model:
    description: The model's folder in the container.
    type: str
    required: true
  tp:
    description: Tensor parallel size; at most the number of GPUs, and 1 on a CPU.
    type: int
    default: 1
  deep_gemm:
    description: What to do about DeepGEMM's kernels.
    type: str
    choices: [ensure, rebuild, skip]
    default: ensure
  moe:
    description: What to do about the tuned configurations of the mixture-of-experts kernel.
    type: str
    choices: [ensure, rebuild, skip]
    default: ensure
  flashinfer:
    description: What to do about FlashInfer's kernels.
    type: str
    choices: [ensure, rebuild, skip]
    default: ensure
  inductor:
    description: What to do about TorchInductor's and Triton's kernels.
    type: str
    choices: [ensure, rebuild, skip]
    default: ensure
  moe_batch_sizes:
    description: Batch sizes to tune the mixture-of-experts kernel for.
    type: list
    elements: int
    default: []
  moe_dtype:
    description: Data type of the expert weights.
    type: str
    default: auto
  probe:
    description: Whether to prove METRICS_READY. V(auto) does while the run has no proof.
    type: str
    choices: [auto, always, never]
    default: auto
  server_args:
    description: More arguments of the server, the same as in serving.
    type: list
    elements: str
    default: []
  server_timeout:
    description: Seconds for the server to become healthy.
    type: float
    default: 1800
  probe_timeout:
    description: Seconds for Prometheus to account for the tokens sent.
    type: float
    default: 30
  assume_started:
    description: In check mode, whether the container would be running by now; where it would have to be started first, a prep would follow.
    type: bool
    default: true
  poll_prep_id:
    description: The prep to follow. Set by the action plugin.
    type: str
  poll_wait:
    description: Seconds that one round trip waits for the prep's end. Set by the action plugin.
    type: float
    default: 5
attributes:
  check_mode:
    support: full
    description: Asks sgl-admin for a dry run.
  diff_mode:
    support: full
    description: Shows each stage's state before and after.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Warm the caches
  slice_bench.sglang.sgl_prep:
    model: /models/Qwen/Qwen3-Next-80B-A3B-Thinking-FP8
    tp: 1

- name: Tune the mixture-of-experts kernel for two batch sizes
  slice_bench.sglang.sgl_prep:
    model: /models/Qwen/Qwen3-Next-80B-A3B-Thinking-FP8
    moe: ensure
    moe_batch_sizes: [512, 4096]
"""

RETURN = r"""
prep_id:
  description: Id of the prep.
  returned: when a prep was run
  type: str
  sample: prep-20261123T091600Z-77aa01bc
status:
  description: V(ok), V(partial) or V(error).
  returned: when a prep has ended
  type: str
stages:
  description: Each stage's state.
  returned: always
  type: dict
  sample: {deep_gemm: skipped, moe_tune: skipped, flashinfer: skipped, inductor: noop}
metrics_ready:
  description: Whether Prometheus accounts for the tokens that were sent.
  returned: when a prep has ended
  type: bool
result:
  description: The whole C(prep_result).
  returned: when a prep has ended
  type: dict
job:
  description: The job's record.
  returned: when a prep was run
  type: dict
running:
  description: Whether the prep still runs; only the action plugin sees V(true).
  returned: always
  type: bool
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slice_bench.sglang.plugins.module_utils.docker_cli import DockerError
from ansible_collections.slice_bench.sglang.plugins.module_utils.prep_client import PrepClient, PrepError, command_line, did_work, failure

_MODE = {"type": "str", "choices": ["ensure", "rebuild", "skip"], "default": "ensure"}


def report(module: AnsibleModule, envelope: dict[str, Any]) -> None:
    """Exit with what is known of the prep."""
    job, result = envelope["job"], envelope["result"]
    if job is None:
        module.fail_json(msg="sgl-admin has no record of the prep that it began; run this again", running=False)
    if job["state"] == "running":
        module.exit_json(changed=False, running=True, prep_id=job["prep_id"], job=job, stages={})
    stages = {name: stage["status"] for name, stage in result["stages"].items()} if result else {}
    outcome: dict[str, Any] = {"changed": result is not None and did_work(result), "running": False, "prep_id": job["prep_id"], "job": job}
    if result:
        outcome.update(status=result["status"], stages=stages, metrics_ready=result["telemetry_probe"]["ok"], result=result)
        for warning in result["warnings"]:
            module.warn(warning)
    problem = failure(job, result)
    if problem:
        module.fail_json(msg=problem, **outcome)
    module.exit_json(**outcome, diff=diff({name: stage["ran"] for name, stage in result["stages"].items()}))


def diff(ran: dict[str, bool]) -> dict[str, str]:
    return {
        "before": "".join(f"{name}: {'cold' if did else 'unchanged'}\n" for name, did in ran.items()),
        "after": "".join(f"{name}: {'warm' if did else 'unchanged'}\n" for name, did in ran.items()),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "default": "sglang-dev"},
            "model": {"type": "str", "required": True},
            "tp": {"type": "int", "default": 1},
            "deep_gemm": _MODE,
            "moe": _MODE,
            "flashinfer": _MODE,
            "inductor": _MODE,
            "moe_batch_sizes": {"type": "list", "elements": "int", "default": []},
            "moe_dtype": {"type": "str", "default": "auto"},
            "probe": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
            "server_args": {"type": "list", "elements": "str", "default": []},
            "server_timeout": {"type": "float", "default": 1800},
            "probe_timeout": {"type": "float", "default": 30},
            "assume_started": {"type": "bool", "default": True},
            "poll_prep_id": {"type": "str"},
            "poll_wait": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    given = module.params
    if module.check_mode and not given["assume_started"]:
        module.exit_json(changed=True, running=False, stages={}, msg="a prep would follow the start of the container")
    try:
        client = PrepClient(module.run_command, given["container"])
        if module.check_mode:
            plan = client.dry_run(command_line(given))
            stages = {name: stage["status"] for name, stage in plan["stages"].items()}
            ran = {name: status == "would_run" for name, status in stages.items()}
            for warning in plan["warnings"]:
                module.warn(warning)
            module.exit_json(changed=plan["would_change"], running=False, stages=stages, diff=diff(ran))
        if given["poll_prep_id"]:
            report(module, client.follow(given["poll_prep_id"], given["poll_wait"]))
        report(module, client.start(command_line(given), given["poll_wait"]))
    except (DockerError, PrepError) as error:
        module.fail_json(msg=str(error), running=False)
    except (KeyError, TypeError, AttributeError) as error:
        module.fail_json(msg=f"sgl-admin's answer breaks the contract: {error!r}; is the image older than this collection?", running=False)


if __name__ == "__main__":
    main()
