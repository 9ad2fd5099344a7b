# Generated from plugins/module_utils/_contract by `make generate`.
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations


class ModuleDocFragment:
    HOST_INFO = r"""
options:
  model:
    type: str
    description: The model's folder under the models folder. A prep needs it;
      starting and stopping does not.
  model_source:
    type: str
    choices:
      - present
      - tiny
      - local
      - controller
      - hub
    default: present
    description: Where the model comes from. V(present) takes what is there; V(local)
      copies from a folder of the host, V(controller) from one of the controller
      by rsync, V(hub) downloads; V(tiny) makes a tiny random Qwen3 on the spot,
      for hosts without a GPU.
  model_from:
    type: str
    description: The folder, or for V(hub) the repository such as C(Qwen/Qwen3-8B).
  model_revision:
    type: str
    default: main
    description: The hub's branch, tag or commit. A model that was made from a
      branch is taken as it is; the branch is not followed.
  model_endpoint:
    type: str
    description: Address of a mirror of the hub.
  model_verify:
    type: str
    choices:
      - quick
      - full
    default: quick
    description: V(quick) reads only the model's files that changed since the
      last reading; V(full) reads all of them.
  tp:
    type: int
    default: 1
    description: Tensor parallel size; at most the number of GPUs, and 1 on a
      host without one.
  user:
    type: str
    description: The service user, who owns the tree and whose uid and gid the
      container runs with. By default the user who called sudo, or else the user
      who connects.
  allow_root:
    type: bool
    default: false
    description: 'Let root be the service user, or own the tree. The container
      and the server in it run as uid 0 then, and what breaks out of the server
      can leave set-id programs of root''s in the tree: only for a host on which
      you have the only account.'
  root:
    type: path
    description: Folder of the host tree. By default C(sglang-observability) in
      the service user's home.
  telemetry_root:
    type: path
    description: Metrics, traces, logs and the records of runs. By default C(telemetry)
      in C(sgl_root).
  profiles_root:
    type: path
    description: Kernel caches. By default C(profiles) in C(sgl_root).
  models_root:
    type: path
    description: Models. By default C(models) in C(sgl_root).
  huggingface_root:
    type: path
    description: The Hugging Face cache. By default C(huggingface) in C(sgl_root).
  ownership_ignore:
    type: bool
    default: false
    description: Go on, with a warning, where something in the tree, or a parent
      of it, belongs to another user. HOST_DIR_OWNERSHIP_IGNORE=1 in the caller's
      environment does the same.
  owner_uid:
    type: int
    description: Uid that the tree must belong to and that the container runs
      with, where it is not the service user's.
  owner_gid:
    type: int
    description: Gid that the tree must belong to and that the container runs
      with, where it is not the service user's.
  pointer_uid:
    type: int
    description: Uid that an existing pointer must belong to, where it is not
      the tree's.
  pointer_gid:
    type: int
    description: Gid that an existing pointer must belong to, where it is not
      the tree's.
  group_writable:
    type: bool
    default: false
    description: 'Let the members of the tree''s group write in it: its folders,
      caches and records are made for them too (umask 007). A user who may write
      there decides what the next server runs. So each prep reads the caches whole
      then, and compares them with their records. By default the group reads results
      and logs, and only the service user gets to the caches.'
  image:
    type: str
    default: sglang-dev:local
    description: Name of the image. By default C(sglang-dev) with the flavour
      as its tag.
  image_source:
    type: str
    choices:
      - build
      - pull
      - load
      - share
    default: build
    description: 'Where the image comes from: built on the host, pulled from a
      registry, loaded from an archive on the host, or, with V(share), built on
      one host of each kind and taken by the others.'
  image_pull:
    type: str
    description: What to pull, best with its digest (C(registry/name@sha256:...));
      a tag is taken with a warning, as it moves.
  image_archive:
    type: path
    description: Path on the host of the archive to load, as C(docker save) writes
      it. With containerd's image store (Docker 29) save an image that a registry
      has for several platforms with C(--platform linux/arm64).
  image_archive_from:
    type: str
    default: ''
    description: 'Path on the controller of the archive: a host that lacks the
      image gets it from there, as C(sgl_image_archive), for hosts that cannot
      reach any other place.'
  image_cuda:
    type: str
    description: The image's version of CUDA, such as V(13.0), so that a driver
      too old for it is refused before anything changes. By default that of the
      flavour's own base where the image is built from it, and else what the image
      itself says, once it is on the host.
  container:
    type: str
    default: sglang-dev
    description: Name of the container.
  bind_address:
    type: str
    default: 127.0.0.1
    description: Address that Prometheus, Jaeger and the exporters listen on.
      They have no password, so think before you open them.
  server_args:
    type: list
    elements: str
    default: []
    description: More arguments of the SGLang server, the same as in serving.
      Records, logs and command lines show only the values of arguments that are
      known to be public.
  perf_conditions:
    type: str
    choices:
      - warn
      - refuse
    default: warn
    description: 'What to do about conditions that make a host with GPUs slow:
      a power limit below the default, application clocks, ECC that is off, a
      PCIe link below what it could be, a slowdown, no persistence mode, another
      program on a GPU, a governor of the CPUs other than C(performance). V(warn)
      says so, V(refuse) ends the preflight of a start or a prep.'
"""
    PREP = r"""
options:
  model:
    type: str
    required: true
    description: The model's folder in the container.
  deep_gemm:
    type: str
    choices:
      - ensure
      - rebuild
      - skip
    default: ensure
    description: What to do about DeepGEMM's kernels.
  moe:
    type: str
    choices:
      - ensure
      - rebuild
      - skip
    default: ensure
    description: What to do about tuned configurations of the mixture-of-experts
      kernel.
  flashinfer:
    type: str
    choices:
      - ensure
      - rebuild
      - skip
    default: ensure
    description: What to do about FlashInfer's kernels.
  inductor:
    type: str
    choices:
      - ensure
      - rebuild
      - skip
    default: ensure
    description: What to do about TorchInductor's and Triton's kernels.
  perf:
    type: str
    choices:
      - ensure
      - rebuild
      - skip
    default: skip
    description: What to do about the measurement of whether the host is as fast
      as it should be.
  profile:
    type: str
    description: The profile that it is of; it names the server in the records.
  server_api_key:
    type: str
    default: ''
    description: The key that the server asks for.
  probe_timeout:
    type: float
    default: 30
    description: Seconds for Prometheus to account for the tokens sent.
  tp:
    type: int
    default: 1
    description: Tensor parallel size; at most the number of GPUs, and 1 on a
      host without one.
  moe_batch_sizes:
    type: list
    elements: int
    default: []
    description: Batch sizes to tune the mixture-of-experts kernel for.
  moe_dtype:
    type: str
    default: auto
    description: Data type of the expert weights.
  moe_fusion:
    type: str
    choices:
      - ensure
      - skip
    default: ensure
    description: After tuning the mixture-of-experts kernel, whether the fused
      kernels are compiled and verified with a server.
  probe:
    type: str
    choices:
      - auto
      - always
      - never
    default: auto
    description: Whether to prove METRICS_READY; V(auto) does while the run has
      no proof.
  server_args:
    type: list
    elements: str
    default: []
    description: More arguments of the SGLang server, the same as in serving.
      Records, logs and command lines show only the values of arguments that are
      known to be public.
  server_env:
    type: dict
    default: {}
    description: More environment variables of the server, the same as in serving.
      Records, logs and command lines show only the values of variables that are
      known to be public.
  server_fast_start:
    type: bool
    default: false
    description: Whether the server that C(sgl-admin server start) starts leaves
      out what a prep has made needless, such as DeepGEMM's loop over all shapes.
      A kernel that the caches lack is then compiled at the first request that
      needs it.
  server_open_admin:
    type: bool
    default: false
    description: Let every user of the host make the server's admin calls, such
      as flushing its cache, without the key that C(sgl-admin server admin-key)
      prints.
  public_names:
    type: list
    elements: str
    default: []
    description: Arguments (C(--name)) and variables of the server that records
      may show, beside those that are known to be public. Caches that depend on
      a hidden value fit this host alone.
  cuda_graph_batch_sizes:
    type: list
    elements: int
    default: []
    description: Batch sizes that the server captures CUDA graphs for, and that
      it is warmed with. By default those of the image.
  server_timeout:
    type: float
    default: 1800
    description: Seconds for the server to become healthy.
  perf_required:
    type: bool
    default: false
    description: Fail the prep of a host that stage C(perf) finds too slow, by
      itself or beside the hosts that were prepared with it. By default the prep
      warns.
  perf_max_age:
    type: float
    default: 7
    description: Days after which stage C(perf) measures the host again. A change
      of the driver, the VBIOS, the power limit or the image, and a reboot, have
      it measured again before that.
  perf_warn_percent:
    type: float
    default: 5
    description: By how many percent a measurement may be worse than the median
      of the fleet, or of the host's own history, before stage C(perf) warns.
      Where these scatter more, three times their scatter.
  perf_fail_percent:
    type: float
    default: 10
    description: The same for a measurement that makes a host too slow.
"""
