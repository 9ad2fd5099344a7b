# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every variable that a user sets, each once: type, default, choices and text.

Role defaults, the argument specification, docs/reference/variables.md, the modules' options and
their documentation follow from it. Texts have the markup of ansible-doc: V(value), C(code),
O(option).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import places, pruning, services, stages
from .pruning import A_DAY_S

PREFIX = "sgl_"
WATCH = "sgl_watch"
LAST_PORT, LAST_ID = 2**16 - 1, 2**32 - 2
# More than any server schedules or any kernel is tuned for.
LAST_BATCH_SIZE = 2**20


@dataclass(frozen=True)
class Option:
    """A variable, or a part of one.

    `jinja` is the expression that computes the default where it is no constant, `shown` its
    description for the manual. `module` lists the modules that have it as an option, by the name
    there; `variable` the container's environment variable that carries it; `profile` its key in a
    profile, dotted where it is in a part of its own. `kind` is a key of
    values.KINDS: what a text, each item of a list or a mapping must be; `minimum` and `maximum`
    bound a number, or each number of a list.
    """

    name: str
    type: str
    text: str
    default: Any = None
    choices: tuple[str, ...] = ()
    elements: str = ""
    parts: tuple[Option, ...] = ()
    no_log: bool = False
    required: bool = False
    jinja: str = ""
    shown: str = ""
    module: dict[str, str] = field(default_factory=dict)
    variable: str = ""
    profile: str = ""
    kind: str = ""
    minimum: float | None = None
    maximum: float | None = None

    def spec(self) -> dict[str, Any]:
        """As an argument specification of Ansible, without description."""
        spec: dict[str, Any] = {"type": self.type}
        if self.elements:
            spec["elements"] = self.elements
        if self.choices:
            spec["choices"] = list(self.choices)
        if self.required:
            spec["required"] = True
        elif self.default is not None:
            spec["default"] = self.default
        if self.no_log:
            spec["no_log"] = True
        if self.parts:
            spec["options"] = {part.name: part.spec() for part in self.parts}
        return spec

    def documented(self) -> dict[str, Any]:
        """As an option of a role's argument_specs or a module's documentation."""
        spec = {**self.spec(), "description": self.text}
        if self.parts:
            spec["options"] = {part.name: part.documented() for part in self.parts}
        return spec


# Modules that have variables as options.
INFO, PREP = "sgl_host_info", "sgl_prep"


def _mode(stage: stages.Stage) -> Option:
    text = f"What to do about {stage.text}."
    return Option(stage.option, "str", text, stage.default, stages.MODES)


def _shown_modes() -> str:
    others = [
        f"`{stage.option}` `{stage.default}`"
        for stage in stages.STAGES
        if stage.default != "ensure"
    ]
    return ", but ".join(["every stage `ensure`", *others])


STAGE_MODES = tuple(_mode(stage) for stage in stages.STAGES)

MODEL = (
    Option(
        "sgl_profiles",
        "list",
        "Profiles to prepare on the host, one after another: each is the one place for a model, its"
        " tensor parallel size, its stages and its server. What a profile names goes before the"
        " variables of the inventory, and C(-e) before both. C(sgl-admin server start NAME) starts"
        " the server of one.",
        [],
        elements="str",
        kind="profile",
    ),
    Option(
        "sgl_model",
        "str",
        "The model's folder under the models folder. A prep needs it; starting and stopping does"
        " not.",
        module={INFO: "model"},
        kind="model",
        profile="model.name",
    ),
    Option(
        "sgl_model_source",
        "str",
        "Where the model comes from. V(present) takes what is there; V(local) copies from a folder"
        " of the host, V(controller) from one of the controller by rsync, V(hub) downloads;"
        " V(tiny) makes a tiny random Qwen3 on the spot, for hosts without a GPU.",
        "present",
        ("present", "tiny", "local", "controller", "hub"),
        module={INFO: "model_source"},
        profile="model.source",
    ),
    Option(
        "sgl_model_from",
        "str",
        "The folder, or for V(hub) the repository such as C(Qwen/Qwen3-8B).",
        module={INFO: "model_from"},
        kind="line",
        profile="model.from",
    ),
    Option(
        "sgl_model_revision",
        "str",
        "The hub's branch, tag or commit. A model that was made from a branch is taken as it is;"
        " the branch is not followed.",
        "main",
        module={INFO: "model_revision"},
        kind="revision",
        profile="model.revision",
    ),
    Option(
        "sgl_hub_endpoint",
        "str",
        "Address of a mirror of the hub.",
        shown="the public hub",
        module={INFO: "model_endpoint"},
        kind="url",
    ),
    Option("sgl_hub_token", "str", "Access token for the hub.", no_log=True, kind="token"),
    Option(
        "sgl_model_verify",
        "str",
        "V(quick) reads only the model's files that changed since the last reading; V(full) reads"
        " all of them.",
        "quick",
        ("quick", "full"),
        module={INFO: "model_verify"},
    ),
    Option(
        "sgl_tp",
        "int",
        "Tensor parallel size; at most the number of GPUs, and 1 on a host without one.",
        1,
        module={INFO: "tp", PREP: "tp"},
        minimum=1,
        maximum=1024,
        profile="tp",
    ),
)

TREE = (
    Option(
        "sgl_user",
        "str",
        "The service user, who owns the tree and whose uid and gid the container runs with. By"
        " default the user who called sudo, or else the user who connects.",
        shown="who called sudo, or else who connects",
        module={INFO: "user"},
        kind="user",
    ),
    Option(
        "sgl_allow_root",
        "bool",
        "Let root be the service user, or own the tree. The container and the server in it run as"
        " uid 0 then, and what breaks out of the server can leave set-id programs of root's in the"
        " tree: only for a host on which you have the only account.",
        False,
        module={INFO: "allow_root"},
    ),
    Option(
        "sgl_root",
        "path",
        "Folder of the host tree. By default C(sglang-observability) in the service user's home.",
        shown="`~/sglang-observability` of that user",
        module={INFO: "root"},
        kind="mounted",
    ),
    Option(
        "sgl_telemetry_root",
        "path",
        "Metrics, traces, logs and the records of runs. By default C(telemetry) in O(sgl_root).",
        module={INFO: "telemetry_root"},
        kind="mounted",
    ),
    Option(
        "sgl_profiles_root",
        "path",
        "Kernel caches. By default C(profiles) in O(sgl_root).",
        module={INFO: "profiles_root"},
        kind="mounted",
    ),
    Option(
        "sgl_models_root",
        "path",
        "Models. By default C(models) in O(sgl_root).",
        module={INFO: "models_root"},
        kind="mounted",
    ),
    Option(
        "sgl_huggingface_root",
        "path",
        "The Hugging Face cache. By default C(huggingface) in O(sgl_root).",
        module={INFO: "huggingface_root"},
        kind="mounted",
    ),
    Option(
        "sgl_ownership_ignore",
        "bool",
        "Go on, with a warning, where something in the tree, or a parent of it, belongs to another"
        " user. HOST_DIR_OWNERSHIP_IGNORE=1 in the caller's environment does the same.",
        False,
        jinja="lookup('ansible.builtin.env', 'HOST_DIR_OWNERSHIP_IGNORE') == '1'",
        module={INFO: "ownership_ignore"},
    ),
    Option(
        "sgl_owner_uid",
        "int",
        "Uid that the tree must belong to and that the container runs with, where it is not the"
        " service user's.",
        shown="the service user's",
        module={INFO: "owner_uid"},
        minimum=0,
        maximum=LAST_ID,
    ),
    Option(
        "sgl_owner_gid",
        "int",
        "Gid that the tree must belong to and that the container runs with, where it is not the"
        " service user's.",
        shown="the service user's",
        module={INFO: "owner_gid"},
        minimum=0,
        maximum=LAST_ID,
    ),
    Option(
        "sgl_pointer_owner_uid",
        "int",
        "Uid that an existing pointer must belong to, where it is not the tree's.",
        shown="the tree's owner",
        module={INFO: "pointer_uid"},
        minimum=0,
        maximum=LAST_ID,
    ),
    Option(
        "sgl_pointer_owner_gid",
        "int",
        "Gid that an existing pointer must belong to, where it is not the tree's.",
        shown="the tree's group",
        module={INFO: "pointer_gid"},
        minimum=0,
        maximum=LAST_ID,
    ),
    Option(
        places.GROUP_WRITABLE,
        "bool",
        "Let the members of the tree's group write in it: its folders, caches and records are made"
        " for them too (umask 007). A user who may write there decides what the next server runs."
        " So each prep reads the caches whole then, and compares them with their records. By"
        " default the group reads results and logs, and only the service user gets to the caches.",
        False,
        module={INFO: "group_writable"},
        variable="SGL_GROUP_WRITABLE",
    ),
    Option(
        "sgl_space_gb",
        "dict",
        "Free space, in GB, that must be there before something is written. Name only the places"
        " that need another number than C(telemetry) 1, C(profiles) 2 and, where the image is"
        " missing, C(docker) 8, or 120 for an image with GPUs.",
        {},
        parts=tuple(
            Option(name, "float", "In GB.", minimum=0)
            for name in ("telemetry", "profiles", "docker")
        ),
        shown="`{telemetry: 1, profiles: 2, docker: 8}`, with `gh200` docker 120",
    ),
)

_COUNTED = [f"C({kind.name})" for kind in pruning.KINDS if kind.counted]
SPACE = (
    Option(
        "sgl_keep",
        "dict",
        "What C(playbooks/prune.yml) keeps. Name only the kinds that need another number than"
        f" {', '.join(f'C({kind.name}) {kind.default}' for kind in pruning.KINDS)}."
        f" {', '.join(_COUNTED[:-1])} and {_COUNTED[-1]} are counted, the others are days. What is"
        " in use stays in any case, and so do tuned configurations.",
        {},
        parts=tuple(
            Option(
                kind.name,
                "int",
                kind.text,
                # The newest run may be about to start.
                minimum=1 if kind.name == "runs" else 0,
                maximum=100000,
            )
            for kind in pruning.KINDS
        ),
        shown=f"`{{{', '.join(f'{kind.name}: {kind.default}' for kind in pruning.KINDS)}}}`",
    ),
    Option(
        "sgl_prune",
        "bool",
        "Prune a host at the end of C(playbooks/prep.yml), as C(playbooks/prune.yml) does.",
        False,
    ),
    Option(
        "sgl_uninstall_caches",
        "bool",
        "Let C(playbooks/uninstall.yml) remove the kernel caches too.",
        False,
    ),
    Option(
        "sgl_uninstall_models",
        "bool",
        "Let C(playbooks/uninstall.yml) remove the models and the Hugging Face cache too, where"
        " they are in O(sgl_root).",
        False,
    ),
)

IMAGE = (
    Option(
        "sgl_flavour",
        "str",
        "Which components the image gets. V(gh200) is for hosts with NVIDIA GPUs, V(local) for"
        " those without one.",
        "local",
        ("gh200", "local"),
    ),
    Option(
        "sgl_image",
        "str",
        "Name of the image. By default C(sglang-dev) with the flavour as its tag.",
        "sglang-dev:local",
        jinja="'sglang-dev:' ~ sgl_flavour",
        shown="`sglang-dev:<flavour>`",
        module={INFO: "image"},
        kind="image_name",
    ),
    Option(
        "sgl_gpus",
        "bool",
        "Give the container the host's GPUs, and refuse a host that has none. By default with"
        " every flavour other than V(local).",
        jinja="sgl_flavour != 'local'",
        shown="`true` with `gh200`",
    ),
    Option(
        "sgl_image_source",
        "str",
        "Where the image comes from: built on the host, pulled from a registry, loaded from an"
        " archive on the host, or, with V(share), built on one host of each kind and taken by the"
        " others.",
        "build",
        ("build", "pull", "load", "share"),
        module={INFO: "image_source"},
    ),
    Option(
        "sgl_image_pull",
        "str",
        "What to pull, best with its digest (C(registry/name@sha256:...)); a tag is taken with a"
        " warning, as it moves.",
        module={INFO: "image_pull"},
        kind="image",
    ),
    Option(
        "sgl_image_archive",
        "path",
        "Path on the host of the archive to load, as C(docker save) writes it. With containerd's"
        " image store (Docker 29) save an image that a registry has for several platforms with"
        " C(--platform linux/arm64).",
        module={INFO: "image_archive"},
        kind="host_path",
    ),
    Option("sgl_image_archive_sha256", "str", "Digest that the archive must have.", kind="sha256"),
    Option(
        "sgl_image_archive_from",
        "str",
        "Path on the controller of the archive: a host that lacks the image gets it from there, as"
        " O(sgl_image_archive), for hosts that cannot reach any other place.",
        "",
        module={INFO: "image_archive_from"},
        kind="controller_file",
    ),
    Option(
        "sgl_image_save",
        "str",
        "Path on the host where C(playbooks/image.yml) saves the image as an archive, for hosts"
        " that cannot build or pull it.",
        "",
        kind="host_path",
    ),
    Option(
        "sgl_image_platform",
        "str",
        "Platform of the image. By default the host's own; to build for another one the host needs"
        " an emulator (qemu-user-static).",
        choices=("linux/amd64", "linux/arm64"),
        shown="the host's own",
    ),
    Option(
        "sgl_image_base",
        "str",
        "The image that SGLang comes from, best with its digest"
        " (C(lmsysorg/sglang@sha256:...)). By default the flavour's; one that is on the host is"
        " taken as it is.",
        shown="the flavour's",
        kind="image",
    ),
    Option(
        "sgl_image_dcgm",
        "str",
        "The image that dcgm-exporter comes from. By default the flavour's.",
        shown="the flavour's",
        kind="image",
    ),
    Option(
        "sgl_image_cuda",
        "str",
        "The image's version of CUDA, such as V(13.0), so that a driver too old for it is refused"
        " before anything changes. By default that of the flavour's own base where the image is"
        " built from it, and else what the image itself says, once it is on the host.",
        shown="what the image says",
        module={INFO: "image_cuda"},
        kind="cuda_version",
    ),
    Option(
        "sgl_image_downloads",
        "dict",
        "Versions and sha256 digests of release archives in place of the flavour's, by name, such"
        " as C({jaeger: {sha256: ...}}).",
        {},
        kind="downloads",
    ),
    Option(
        "sgl_image_require_digests",
        "bool",
        "Refuse a release archive whose digest is not pinned. By default such an archive is checked"
        " against the sums file that its release publishes, fetched over TLS, with a warning that"
        " says how to pin it.",
        False,
    ),
    Option(
        "sgl_download_mirror",
        "str",
        "Address of a mirror of C(https://github.com), with the same paths below it, for release"
        " archives.",
        kind="url",
    ),
    Option(
        "sgl_download_dir",
        "path",
        "Folder on the host with downloaded release archives, for a lab without internet access,"
        " and with the sums files of those whose digest is not pinned.",
        kind="host_path",
    ),
    Option(
        "sgl_image_build_dir",
        "path",
        "Folder on the host that keeps what the next build needs, about 0.5 GB.",
        "~/.cache/slice_bench.sglang",
        kind="host_path",
    ),
)

CONTAINER = (
    Option(
        "sgl_container",
        "str",
        "Name of the container.",
        "sglang-dev",
        module={INFO: "container", PREP: "container"},
        variable="SGL_CONTAINER_NAME",
        kind="container_name",
    ),
    Option(
        "sgl_keep_running",
        "bool",
        "Leave a container whose run is live as it is, also where its image or its options have"
        " changed since, so that a benchmark keeps the container that it measures.",
        False,
    ),
    Option(
        "sgl_bind_address",
        "str",
        "Address that Prometheus, Jaeger and the exporters listen on. They have no password, so"
        " think before you open them.",
        services.LOOPBACK,
        module={INFO: "bind_address"},
        variable=services.ADDRESS_VARIABLE,
        kind="address",
    ),
    *(
        Option(
            port.option,
            "int",
            port.text,
            port.default,
            variable=port.variable,
            minimum=1,
            maximum=LAST_PORT,
        )
        for port in services.PORTS
    ),
    Option(
        "sgl_scrape_interval",
        "str",
        "How often Prometheus scrapes.",
        "1s",
        variable="SGL_SCRAPE_INTERVAL",
        kind="scrape_interval",
    ),
    Option(
        "sgl_tsdb_retention_size",
        "str",
        "Size above which Prometheus drops the oldest samples of a run.",
        "10GB",
        variable="SGL_TSDB_RETENTION_SIZE",
        kind="prometheus_size",
    ),
    Option(
        "sgl_log_size",
        "str",
        "What the log of a run takes of the disk at most. Above it the middle of the log is freed;"
        " its beginning and its end stay.",
        "1GB",
        variable="SGL_LOG_SIZE",
        kind="prometheus_size",
    ),
    Option(
        WATCH,
        "bool",
        "Watch the host once a second while the container runs, for what disturbs a benchmark: a"
        " GPU that is throttled, programs of others on the GPUs and the CPUs. A smoke's summary"
        " then says whether it was C(undisturbed).",
        False,
        variable="SGL_WATCH",
    ),
    Option(
        "sgl_trace_retention",
        "str",
        "Time after which Jaeger drops a trace of a run.",
        "72h",
        variable="SGL_TRACE_RETENTION",
        kind="go_duration",
    ),
    Option(
        "sgl_capabilities",
        "list",
        "Linux capabilities that the container's programs may have; all others are dropped.",
        [],
        elements="str",
        kind="capability",
    ),
    Option(
        "sgl_shm_size",
        "str",
        "How large the container's own /dev/shm may become, for NCCL. With V(host) it shares the"
        " host's IPC and /dev/shm, where any user can leave files for the server to read.",
        "32g",
        kind="shm_size",
    ),
    Option(
        "sgl_ulimits",
        "list",
        "Limits of the container's processes, as C(docker run --ulimit) takes them. By default"
        " locked memory without limit, a stack of 64 MiB and 1048576 open files where it gets"
        " GPUs, and else those of the Docker daemon.",
        elements="str",
        jinja="['memlock=-1', 'stack=67108864', 'nofile=1048576'] if sgl_gpus | bool else []",
        shown="with GPUs: memlock unlimited, stack 64 MiB, nofile 1048576",
        kind="ulimit",
    ),
    Option(
        "sgl_environment",
        "dict",
        "More environment variables of the container; a token (C(HF_TOKEN)) may be among them.",
        {},
        no_log=True,
        kind="environment",
    ),
    Option(
        "sgl_stop_timeout",
        "int",
        "Seconds in which the container ends a running prep and its services before Docker kills"
        " it.",
        60,
        minimum=1,
        maximum=A_DAY_S,
    ),
    Option(
        "sgl_stop_force",
        "bool",
        "Let C(playbooks/stop.yml) end a prep, a benchmark's server or a smoke that runs in the"
        " container, instead of refusing to stop.",
        False,
    ),
    Option(
        "sgl_start_timeout",
        "int",
        "Seconds for the container to publish its run, and again for Prometheus to become ready.",
        60,
        minimum=1,
        maximum=A_DAY_S,
    ),
)

# What a prep is asked for. sgl-admin has each as a flag too.
REQUEST = (
    Option(
        "sgl_moe_batch_sizes",
        "list",
        "Batch sizes to tune the mixture-of-experts kernel for.",
        [],
        elements="int",
        module={PREP: "moe_batch_sizes"},
        minimum=1,
        maximum=LAST_BATCH_SIZE,
        profile="moe.batch_sizes",
    ),
    Option(
        "sgl_moe_dtype",
        "str",
        "Data type of the expert weights.",
        "auto",
        module={PREP: "moe_dtype"},
        kind="word",
        profile="moe.dtype",
    ),
    Option(
        "sgl_moe_fusion",
        "str",
        "After tuning the mixture-of-experts kernel, whether the fused kernels are compiled and"
        " verified with a server.",
        "ensure",
        ("ensure", "skip"),
        module={PREP: "moe_fusion"},
    ),
    Option(
        "sgl_probe",
        "str",
        "Whether to prove METRICS_READY; V(auto) does while the run has no proof.",
        "auto",
        stages.PROBES,
        module={PREP: "probe"},
    ),
    Option(
        "sgl_server_args",
        "list",
        "More arguments of the SGLang server, the same as in serving. Records, logs and command"
        " lines show only the values of arguments that are known to be public.",
        [],
        elements="str",
        module={INFO: "server_args", PREP: "server_args"},
        no_log=True,
        kind="server_argument",
        profile="server.args",
    ),
    Option(
        "sgl_server_env",
        "dict",
        "More environment variables of the server, the same as in serving. Records, logs and"
        " command lines show only the values of variables that are known to be public.",
        {},
        module={PREP: "server_env"},
        no_log=True,
        kind="server_environment",
        profile="server.env",
    ),
    Option(
        "sgl_server_fast_start",
        "bool",
        "Whether the server that C(sgl-admin server start) starts leaves out what a prep has made"
        " needless, such as DeepGEMM's loop over all shapes. A kernel that the caches lack is then"
        " compiled at the first request that needs it.",
        False,
        module={PREP: "server_fast_start"},
        profile="server.fast_start",
    ),
    Option(
        "sgl_server_api_key_file",
        "path",
        "A file on the controller with the key that the server asks its callers for. By default it"
        " asks for none.",
        "",
        kind="controller_file",
    ),
    Option(
        "sgl_server_open_admin",
        "bool",
        "Let every user of the host make the server's admin calls, such as flushing its cache,"
        " without the key that C(sgl-admin server admin-key) prints.",
        False,
        module={PREP: "server_open_admin"},
    ),
    Option(
        "sgl_public_names",
        "list",
        "Arguments (C(--name)) and variables of the server that records may show, beside those that"
        " are known to be public. Caches that depend on a hidden value fit this host alone.",
        [],
        elements="str",
        module={PREP: "public_names"},
        kind="public_name",
    ),
    Option(
        "sgl_cuda_graph_batch_sizes",
        "list",
        "Batch sizes that the server captures CUDA graphs for, and that it is warmed with. By"
        " default those of the image.",
        [],
        elements="int",
        shown="those of the image",
        module={PREP: "cuda_graph_batch_sizes"},
        minimum=1,
        maximum=LAST_BATCH_SIZE,
        profile="server.cuda_graph_batch_sizes",
    ),
    Option(
        "sgl_server_timeout",
        "float",
        "Seconds for the server to become healthy.",
        1800,
        module={PREP: "server_timeout"},
        minimum=1,
        maximum=A_DAY_S,
        profile="server.timeout_s",
    ),
    Option(
        "sgl_perf_conditions",
        "str",
        "What to do about conditions that make a host with GPUs slow: a power limit below the"
        " default, application clocks, ECC that is off, a PCIe link below what it could be, a"
        " slowdown, no persistence mode, another program on a GPU, a governor of the CPUs other"
        " than C(performance). V(warn) says so, V(refuse) ends the preflight of a start or a prep.",
        "warn",
        ("warn", "refuse"),
        module={INFO: "perf_conditions"},
    ),
    Option(
        "sgl_perf_required",
        "bool",
        "Fail the prep of a host that stage C(perf) finds too slow, by itself or beside the hosts"
        " that were prepared with it. By default the prep warns.",
        False,
        module={PREP: "perf_required"},
    ),
    Option(
        "sgl_perf_max_age",
        "float",
        "Days after which stage C(perf) measures the host again. A change of the driver, the VBIOS,"
        " the power limit or the image, and a reboot, have it measured again before that.",
        7,
        module={PREP: "perf_max_age"},
        minimum=0,
        maximum=3650,
    ),
    Option(
        "sgl_perf_warn_percent",
        "float",
        "By how many percent a measurement may be worse than the median of the fleet, or of the"
        " host's own history, before stage C(perf) warns. Where these scatter more, three times"
        " their scatter.",
        5,
        module={PREP: "perf_warn_percent"},
        minimum=0,
        maximum=100,
    ),
    Option(
        "sgl_perf_fail_percent",
        "float",
        "The same for a measurement that makes a host too slow.",
        10,
        module={PREP: "perf_fail_percent"},
        minimum=0,
        maximum=100,
    ),
)

PREPARATION = (
    Option(
        "sgl_stages",
        "dict",
        "What to do about each stage; a stage that is not named has its own default.",
        {},
        parts=STAGE_MODES,
        shown=_shown_modes(),
        profile="stages",
    ),
    *REQUEST,
    Option(
        "sgl_smoke_scenario",
        "path",
        "A YAML file on the controller with the tests of a smoke. By default the one that the role"
        " smoke has.",
        "",
        shown="that of the role `smoke`",
        kind="controller_file",
    ),
)

FLEET = (
    Option(
        "sgl_cache_share",
        "str",
        "How hosts share kernel caches and, with O(sgl_image_source=share), the image. By default"
        " V(registry) where one is named, V(none) where there is one host, and else V(relay), a"
        " folder of the controller. With V(none) no host gives or takes anything: each builds the"
        " image and makes its caches itself.",
        choices=("none", "relay", "registry"),
        jinja="'registry' if sgl_cache_registry else"
        " 'relay' if groups['sglang'] | default([]) | length > 1 else 'none'",
        shown="`relay` with several hosts, else `none`",
    ),
    Option(
        "sgl_cache_registry",
        "str",
        "A repository in an OCI registry, without a tag, for what hosts share.",
        "",
        kind="repository",
    ),
    Option(
        "sgl_cache_dir",
        "str",
        "Folder on the controller for what hosts share.",
        "~/.cache/slice_bench.sglang/caches",
        kind="controller_path",
    ),
    Option(
        "sgl_cache_sign_key",
        "path",
        "A secret key of minisign, without a password, on the controller. It signs what hosts"
        " share, and each report.",
        "",
        kind="controller_key",
    ),
    Option(
        "sgl_cache_verify_key",
        "path",
        "A public key of minisign on the controller. Hosts take only what its secret key signed.",
        "",
        kind="controller_key",
    ),
    Option(
        "sgl_tune_shards",
        "int",
        "Over how many hosts of a group the batch sizes of the mixture-of-experts kernel are"
        " spread.",
        1,
        minimum=1,
    ),
    Option(
        "sgl_canary",
        "int",
        "How many hosts go first, up to METRICS_READY, before the others begin. The first host of"
        " the group decides.",
        0,
        minimum=0,
    ),
    Option(
        "sgl_batch",
        "str",
        "How many hosts go at once after that, as a number or a share such as V(25%). The first"
        " host of the group decides.",
        "100%",
        kind="batch",
    ),
    Option(
        "sgl_max_fail_percentage",
        "float",
        "The percentage of a batch's hosts that may fail. Above it, no further batch begins. The"
        " first host of the group decides.",
        100,
        minimum=0,
        maximum=100,
    ),
    Option(
        "sgl_throttle",
        "int",
        "How many hosts at once get an image, a model or caches; V(0) is no limit.",
        0,
        minimum=0,
    ),
)

GRAFANA = (
    Option(
        "sgl_grafana_prometheus_url",
        "str",
        "The address of this host's Prometheus as Grafana reaches it, such as the end of an SSH"
        " tunnel on Grafana's machine. By default C(http://), the host's O(sgl_bind_address) and"
        " O(sgl_prometheus_port); where Prometheus listens on all addresses, the host's"
        " C(ansible_host) or its name in the inventory.",
        default="",
        shown="at `sgl_bind_address`",
        kind="url",
    ),
    Option(
        "sgl_grafana_provisioning_dir",
        "path",
        "The folder that Grafana's setting C(paths.provisioning) names.",
        "/etc/grafana/provisioning",
        kind="host_path",
    ),
    Option(
        "sgl_grafana_dashboards_dir",
        "path",
        "Folder for the dashboards.",
        "/var/lib/grafana/dashboards/sglang",
        kind="host_path",
    ),
    Option(
        "sgl_grafana_folder",
        "str",
        "Folder in Grafana that shows the dashboards.",
        "SGLang",
        kind="line",
    ),
    Option(
        "sgl_grafana_restart",
        "bool",
        "Restart Grafana's systemd unit where a datasource or a provider has changed.",
        True,
    ),
)

GROUPS = (
    ("The model", MODEL),
    ("The host", TREE),
    ("Space", SPACE),
    ("The image", IMAGE),
    ("The container", CONTAINER),
    ("The prep", PREPARATION),
    ("Many hosts", FLEET),
    ("Grafana", GRAFANA),
)
OPTIONS = tuple(option for _title, options in GROUPS for option in options)
BY_NAME = {option.name: option for option in OPTIONS}


def of_module(module: str) -> Iterator[tuple[str, Option]]:
    """Name in the module and option, of the variables that a module has as options."""
    for option in OPTIONS:
        if module in option.module:
            yield option.module[module], option


# What sgl_prep has beside the variables' options.
_PREP_ONLY = (
    Option("model", "str", "The model's folder in the container.", required=True),
    *STAGE_MODES,
    Option("profile", "str", "The profile that it is of; it names the server in the records."),
    Option("server_api_key", "str", "The key that the server asks for.", "", no_log=True),
    Option("probe_timeout", "float", "Seconds for Prometheus to account for the tokens sent.", 30),
)


def prep_options() -> dict[str, Option]:
    """What a prep is asked for, as options of the plugins that ask sgl-admin."""
    named = dict(of_module(PREP))
    del named["container"]
    return {**{option.name: option for option in _PREP_ONLY}, **named}


def prep_spec() -> dict[str, Any]:
    """Their argument specification."""
    return {name: option.spec() for name, option in prep_options().items()}


def request_document(given: dict[str, Any]) -> dict[str, Any]:
    """The request that sgl-admin reads with `--request`, of values by `prep_options`. One without
    a value is left out.
    """
    modes = {stage.name: given[stage.option] for stage in stages.STAGES}
    fields = [name for name in prep_options() if name not in stages.OPTIONS.values()]
    return {
        **{name: given[name] for name in fields if given[name] is not None},
        "stages": modes,
        "server_env": {str(name): str(value) for name, value in given["server_env"].items()},
    }
