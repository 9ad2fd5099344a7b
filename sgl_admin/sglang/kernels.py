"""Which of the server's arguments and environment variables can change what is compiled.

The lists name what does not; whatever they do not name counts, so an argument or a variable that
is unknown here keeps two servers' kernels apart. Read in the packages of SGLang 0.5.9, 0.5.17 and
0.5.23 (`server_args.py`, `environ.py`); tests/unit/test_inputs.py holds each name to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sgl_admin.contract.options import OPTIONS
from sgl_admin.contract.places import CACHE_VARIABLES
from sgl_admin.sglang import moe_configs

# They are about the HTTP server, its logs, its metrics and its traces, or about what an answer
# looks like. The schedulers, which compile, read none of them, or only to report.
ARGUMENTS = frozenset(
    """
    --host --port --nccl-port --fastapi-root-path --api-key --admin-api-key
    --ssl-certfile --ssl-keyfile --ssl-ca-certs --ssl-keyfile-password
    --served-model-name --weight-version --file-storage-path --tool-server
    --log-level --log-level-http --log-requests --log-requests-level --log-requests-format
    --log-requests-target --uvicorn-access-log-exclude-prefixes --show-time-cost
    --decode-log-interval --crash-dump-folder --gc-warning-threshold-secs
    --enable-request-time-stats-logging
    --enable-metrics --enable-metrics-for-all-schedulers --collect-tokens-histogram
    --prompt-tokens-buckets --generation-tokens-buckets --bucket-time-to-first-token
    --bucket-inter-token-latency --bucket-e2e-request-latency --extra-metric-labels
    --tokenizer-metrics-custom-labels-header --tokenizer-metrics-allowed-custom-labels
    --export-metrics-to-file --export-metrics-to-file-dir
    --enable-trace --otlp-traces-endpoint --oltp-traces-endpoint
    --watchdog-timeout --soft-watchdog-timeout --dist-timeout --max-queued-requests
    --chat-template --completion-template --hf-chat-template-name --reasoning-parser
    --tool-call-parser --enable-cache-report
    --stream-interval --stream-output --incremental-streaming-output
    --tokenizer-worker-num --random-seed
    """.split()
)
# How much memory the server takes, for how many and how long requests. DeepGEMM compiles for N, K
# and a range of M that follows from --chunked-prefill-size (deep_gemm_wrapper/compile_utils.py);
# FlashInfer's kernels and SGLang's own (kernels/ops, make_cpp_args) have heads, types and page size
# for parameters, and lengths only as sizes of buffers (flashinfer_backend.py, max_context_len).
# What torch.compile makes may hold them: they are sizes of tensors.
LENGTHS = frozenset(
    """
    --context-length --mem-fraction-static --max-total-tokens --max-running-requests
    --cuda-graph-bs --cuda-graph-bs-decode --cuda-graph-max-bs --cuda-graph-max-bs-decode
    """.split()
)

# This package's own variables begin with SGL_, as older ones of SGLang do: those that the container
# gets of the contract, and others.
_OWN = r"""
    SGL_(ADMIN|HOST|REPORT)_\w+
    | SGL_(ADMIN|IMAGE|IMAGE_ID|PYTHON|REPETITIONS|\w+_PORT)
    | SGL_(RETENTION|TSDB_RETENTION\w*|FUZZ_EXAMPLES|BENCH_CALLS)
    | {contract}
    """.replace("{contract}", "|".join(option.variable for option in OPTIONS if option.variable))
_OWN_VARIABLES = re.compile(_OWN, re.VERBOSE)
# Places, logs, downloads, credentials, telemetry, who talks to whom: nothing that is compiled
# depends on them.
_INERT_VARIABLES = re.compile(
    r"""
    (HF|HUGGINGFACE)_(HOME|HUB_.*|TOKEN|ENDPOINT|DATASETS_.*|XET_.*) | HUGGING_FACE_HUB_TOKEN
    | TRANSFORMERS_(CACHE|OFFLINE|VERBOSITY|NO_ADVISORY_WARNINGS) | TOKENIZERS_PARALLELISM
    | (\w+_)?(LOG_LEVEL|LOGLEVEL|VERBOSITY) | NCCL_DEBUG(_\w+)? | (NCCL|GLOO)_SOCKET_IFNAME
    | NCCL_IB_HCA | SGLANG_LOG_(GC|MS|REQUEST_\w+|SCHEDULER_\w+|FORWARD_ITERS)
    | SGLANG_(TORCH_PROFILER_DIR|OTLP_\w+|WARMUP_TIMEOUT|TIMEOUT_KEEP_ALIVE)
    | SGLANG_(PORT|GRPC_PORT|TCP_STORE_PORT|BACKUP_PORT_BASE) | MASTER_(ADDR|PORT)
    | OTEL_\w+ | PROMETHEUS_MULTIPROC_DIR | (EXA|OPENAI|WANDB)_API_KEY
    | (http|https|no|all)_proxy | (HTTP|HTTPS|NO|ALL)_PROXY
    | PYTHON(UNBUFFERED|WARNINGS|DONTWRITEBYTECODE|PYCACHEPREFIX|FAULTHANDLER)
    | NO_COLOR | TERM | TQDM_\w+ | LANG | LC_\w+ | TZ | HOSTNAME
    | CUDA_(VISIBLE_DEVICES|DEVICE_ORDER) | SGL_TEST_\w+ | {own}
    """.replace("{own}", _OWN),
    re.VERBOSE,
)
# 0.5.9 reads SGLANG_DG_CACHE_DIR, and takes the old name for it with a warning.
_OLD_NAMES, _NEW_NAMES = frozenset(("SGL_DG_CACHE_DIR",)), (0, 5, 9)
_PLACES = frozenset((*CACHE_VARIABLES, moe_configs.VARIABLE))
# Of the environment that a server inherits: what SGLang, the compilers and the libraries that
# compile read.
_INHERITED = re.compile(
    r"(SGLANG|SGL|FLASHINFER|FLASH_ATTENTION|B12X|QUACK|DG|DEEP_GEMM|TORCH\w*|PYTORCH|TRITON|TVM"
    r"|CUTE|CUTLASS|TILELANG|NVCC"
    r"|CUDA|NVIDIA_TF32|USE_TRITON|USE_ROCM)_\w+|CUDAARCHS|(NVCC|HOST|CUDAHOST)?(CC|CXX)"
    r"|(CPP|C|CXX|LD)FLAGS"
)


def kernel_arguments(arguments: Iterable[str], inert: frozenset[str] = LENGTHS) -> list[list[str]]:
    """The arguments that can change what is compiled, each flag with its values, in the order of
    the flags' names; flags that are given twice keep their order, as the last one counts.
    """
    groups: list[list[str]] = [[]]
    for word in arguments:
        if re.match("--?[A-Za-z]", word):
            flag, equals, value = word.partition("=")
            groups.append([flag, value] if equals else [flag])
        else:
            groups[-1].append(word)
    return sorted(
        (group for group in groups if group and group[0] not in ARGUMENTS | inert),
        key=lambda group: group[0],
    )


def kernel_environment(settings: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables that can change what is compiled: of the server's settings all that are not
    known to be inert, of what it inherits those of SGLang and of compilers.
    """
    taken = {name: value for name, value in inherited.items() if _INHERITED.fullmatch(name)}
    return {
        name: value
        for name, value in sorted({**taken, **settings}.items())
        if name not in _PLACES and not _INERT_VARIABLES.fullmatch(name)
    }


def inherited(environment: Mapping[str, str], since: tuple[int, int, int]) -> dict[str, str]:
    """What a server of the release that is known since then inherits. SGLang takes every SGL_
    variable for an old name of its own, and warns of each in each process (0.5.23, environ.py).
    """
    dropped = _OLD_NAMES if since >= _NEW_NAMES else frozenset()
    return {
        name: value
        for name, value in environment.items()
        if name not in dropped and not _OWN_VARIABLES.fullmatch(name)
    }
