"""What a server died of: the table of what SGLang and the libraries below it say, with the type and
the remedy of each.

The samples are in tests/fixtures/deaths.json, each with its source (docs/decisions/deaths.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sgl_admin.base.engine import Death
from sgl_admin.sglang import last_words
from sgl_admin.sglang.last_words import Statement

_UNKNOWN = "server_start_failed"
# What may be said of a death when a process that was needed has been killed.
_OF_KILLED = ("compile_failed", _UNKNOWN)
# A signal, and the same as a shell counts it.
_KILLED = (-9, 128 + 9)
_MEMORY = "free memory on the host, or raise the container's limit"
_PERHAPS_MEMORY = f"most often that is the kernel's out-of-memory killer (see dmesg): {_MEMORY}"
_PACKAGES = "make that folder writable for the container's user in the image, or change its owner"
_COMPILER = "the image's compiler failed: its output is in the log"


@dataclass(frozen=True)
class Cause:
    error_type: str
    # Regular expressions on one line, in any case; one that is found is enough.
    phrases: tuple[str, ...]
    remedy: str


# The first that one statement matches counts: a compiler that fails for want of space is a full
# disk. Within a type the particular comes before the general.
CAUSES = (
    Cause(
        "unsupported",
        (r"flashinfer-(cubin|jit-cache) version .* does not match",),
        "the image's flashinfer-python, flashinfer-cubin and flashinfer-jit-cache have to be of one"
        " version: take an image in which they are",
    ),
    Cause(
        "insufficient_disk",
        (r"disk quota exceeded",),
        "the quota of that folder's owner is used up: raise it, or free some",
    ),
    Cause(
        "insufficient_disk",
        # DeepGEMM says only where it was writing (csrc/jit/compiler.hpp).
        (r"no space left on device", r"\bout\.write\("),
        "free space there, or inodes (df -h, df -i), and run again",
    ),
    Cause(
        "permissions_unexpected",
        (r"read-only file system",),
        "mount it writable, or keep the caches elsewhere",
    ),
    Cause(
        "permissions_unexpected",
        (r"permission denied.*flashinfer_(cubin|jit_cache)",),
        f"FlashInfer writes into its own package: {_PACKAGES}",
    ),
    Cause(
        "permissions_unexpected",
        (r"permission denied", r"\[errno 1\] operation not permitted"),
        "let the container's user write there (chown), or point the server to another folder",
    ),
    Cause(
        "unsupported",
        (
            r"no locks available",
            r"\[errno (38|95)\].*lock",
            r"does not appear to support flock",
        ),
        "that file system has no locks: keep the caches on a local one, or start the NFS server's"
        " lock service",
    ),
    Cause(
        _UNKNOWN,
        (r"stale file handle", r"transport endpoint is not connected"),
        "the mount below that path is gone: mount it again, and recreate the container",
    ),
    Cause(
        _UNKNOWN,
        (r"\[errno 5\]|input/output error",),
        "that disk or mount fails: see dmesg",
    ),
    Cause(
        _UNKNOWN,
        (r"too many open files",),
        "raise the limit of open files (ulimit -n) of the container",
    ),
    Cause(
        _UNKNOWN,
        (r"can't start new thread", r"(fork|thread).*resource temporarily unavailable"),
        "raise the limit of processes (pids limit, ulimit -u) of the container",
    ),
    Cause(
        "oom",
        (r"\bout of shared memory", r"unable to allocate shared memory"),
        "the shared memory is full: free some (df -h /dev/shm), or make it larger",
    ),
    Cause(
        "oom",
        (
            r"cannot allocate memory",
            r"defaultcpuallocator",
            r"std::bad_alloc",
            r"^memoryerror\b",
        ),
        f"the memory of the host or the container is used up: {_MEMORY}",
    ),
    Cause(
        "oom",
        (
            r"died due to signal 9\b",
            r"killed signal terminated program",
            r"exit code: -9\)",
            r"crashed with exit code -9\b",
        ),
        _PERHAPS_MEMORY,
    ),
    Cause(
        "oom",
        (r"not enough memory.*increase --mem-fraction-static",),
        "the model leaves the KV cache no memory: raise --mem-fraction-static (sgl_server_args), or"
        " use more GPUs (sgl_tp)",
    ),
    Cause(
        "compile_failed",
        # Of a kernel's shared memory; torch calls it OutOfMemoryError all the same.
        (r"out of resources?: ",),
        "a kernel wants more than this GPU has: choose another backend (sgl_server_args)",
    ),
    Cause(
        "oom",
        (
            r"out of memory",
            r"outofmemoryerror",
            r"not enough memory",
            r"cudaerrormemoryallocation",
            r"cuda_error_out_of_memory",
            r"cublas_status_alloc_failed",
        ),
        "free the GPU's memory, or lower --mem-fraction-static (sgl_server_args)",
    ),
    Cause(
        "gpu_busy",
        (
            r"devices? ?(\(s\))? (is/)?are busy or unavailable",
            r"cudaerrordevicesunavailable",
            r"cuda_error_device_unavailable",
        ),
        "end what else uses the GPU (nvidia-smi), or allow several (nvidia-smi -c DEFAULT)",
    ),
    Cause(
        _UNKNOWN,
        (r"system not yet initialized",),
        "start nvidia-fabricmanager of the driver's version on the host, and wait until"
        " nvidia-smi -q says that the fabric is completed",
    ),
    Cause(
        _UNKNOWN,
        (r"uncorrectable ecc error", r"gpu is lost"),
        "the GPU failed: see its Xid in dmesg, and reset it or reboot the host",
    ),
    Cause(
        _UNKNOWN,
        (
            r"no cuda-capable device is detected",
            r"no cuda gpus are available",
            r"found no nvidia driver",
            r"driver/library version mismatch",
            r"invalid device ordinal",
            r"libcuda\.so\.1: cannot open shared object",
        ),
        "show the server as many GPUs as sgl_tp wants (nvidia-smi in the container,"
        " CUDA_VISIBLE_DEVICES)",
    ),
    Cause(
        "unsupported",
        (
            r"driver version is insufficient",
            r"nvidia driver on your system is too old",
            r"forward compatibility was attempted on non supported hw",
        ),
        "update the host's driver, or take an image for an older CUDA",
    ),
    Cause(
        "unsupported",
        (r"no kernel image is available for execution",),
        "the image has no kernels for this GPU: take one that has",
    ),
    Cause("port_busy", (r"address already in use",), "end what listens there, or change the port"),
    Cause(
        "unsupported",
        (
            r"error: unrecognized arguments",
            r"error: ambiguous option",
            r"error: argument [-\w/]+",
            r"error: the following arguments are required",
        ),
        "correct sgl_server_args: python -m sglang.launch_server --help lists what this release"
        " takes",
    ),
    Cause(
        "unsupported",
        # Of the exception alone: servers log the same words for every model that they cannot load.
        (r"^importerror: can not import fa3",),
        "choose another attention backend (--attention-backend flashinfer; for images there is"
        " --mm-attention-backend)",
    ),
    Cause(
        "unsupported",
        (
            r"^valueerror: model architectures .* not supported",
            r"does not recognize this architecture",
            r"^valueerror: (invalid|unknown) quantization method",
        ),
        "this release of SGLang does not know the model: take a newer image",
    ),
    Cause(
        _UNKNOWN,
        (r"edge\.urm\.nvidia\.com", r"artifact not found locally"),
        "FlashInfer wants to download a kernel that the image lacks: take one whose"
        " flashinfer-cubin is of flashinfer-python's version",
    ),
    Cause(
        _UNKNOWN,
        # As DeepGEMM says it (csrc/utils/exception.hpp).
        (r"cuda (driver|runtime) error \(.*cuda_?error_?illegal_?address",),
        "a kernel of DeepGEMM crashed: leave it out (SGLANG_ENABLE_JIT_DEEPGEMM=0 in"
        " sgl_server_env)",
    ),
    Cause(
        _UNKNOWN,
        # Whose kernel it was, is not said: it shows at a later call. DeepGEMM's do it on GH200
        # (vllm#49183, open).
        (r"illegal memory access was encountered",),
        "a kernel crashed, on a GH200 perhaps DeepGEMM's: leave that out"
        " (SGLANG_ENABLE_JIT_DEEPGEMM=0 in sgl_server_env), or choose another --attention-backend",
    ),
    Cause(
        _UNKNOWN,
        (r"safetensorerror", r"headertoolarge", r"while deserializing header"),
        "a file of the model is damaged: stage the model again (sgl_model_stage)",
    ),
    Cause(
        "compile_failed",
        (r"unsupported gpu architecture", r"value 'sm_\w+' is not defined"),
        "nvcc is older than this GPU: take an image with a newer CUDA",
    ),
    Cause(
        "compile_failed",
        (
            r"could not find nvcc",
            r"\bnvcc: not found",
            r"no such file or directory: 'ninja'",
            r"could not find cuda installation",
            r"failed to find c compiler",
            r"missingjitcacheerror",
        ),
        "the image lacks what compiles kernels: take one with the CUDA toolkit, ninja and a C"
        " compiler",
    ),
    Cause(
        "compile_failed",
        (r"corrupted jit cache directory",),
        "rebuild DeepGEMM's kernels (sgl_stages: {deep_gemm: rebuild})",
    ),
    Cause(
        "compile_failed",
        (
            r"ninja exited with status",
            r"ninja build failed",
            r"failed to build jit module",
            r"nvcc (ptx )?compilation failed",
            r"nvrtc error",
            r"ptxaserror",
            r"compilationerror",
            r"passmanager::run failed",
            r"inductorerror",
            r"backendcompilerfailed",
        ),
        _COMPILER,
    ),
)
_COMPILED = [(cause, re.compile("|".join(cause.phrases), re.IGNORECASE)) for cause in CAUSES]
# Who says so was not killed for want of memory.
_CRASH = re.compile(r"segmentation fault|core dumped|\baborted\b", re.IGNORECASE)
# So much of a line is quoted for certain.
_WORDS = 120
# Among what a compiler said, the line that tells why.
_DETAIL = re.compile(r"nvcc (fatal|error)|\b(fatal )?error ?:|: not found", re.IGNORECASE)


def death(log_tail: list[str], exit_code: int | None = None, oom_kills: int = 0) -> Death:
    """What a server died of, by the last lines of its log.

    `exit_code` is negative for a signal, None where it is not known; `oom_kills` is how many
    processes the kernel's out-of-memory killer ended meanwhile.
    """
    by_signal = exit_code is not None and (exit_code < 0 or exit_code in _KILLED)
    by_signal = by_signal and not last_words.ended_itself(log_tail)
    groups = last_words.statements(log_tail, by_signal)
    found = _first_cause(groups)
    if found is not None and not (oom_kills and found.error_type in _OF_KILLED):
        return found
    if found is None:
        found = Death(_UNKNOWN, next((one.last for group in groups for one in group), ""), "")
    certain = any(one.certain for group in groups for one in group)
    crashed = _CRASH.search(found.words) is not None
    if by_signal and exit_code in _KILLED and not certain and not crashed:
        found = Death("oom", "", _PERHAPS_MEMORY)
    if not oom_kills:
        return found
    killed = f"the kernel's out-of-memory killer ended {oom_kills} of its processes: {_MEMORY}"
    return Death("oom", found.words, killed)


def _first_cause(groups: list[list[Statement]]) -> Death | None:
    for group in groups:
        for statement in group:
            if (found := _cause(statement)) is not None:
                return found
        if any(one.certain and not one.of_child and not one.is_consequence for one in group):
            # What these said is unknown here; it is not what others say after them.
            return None
    return None


def _cause(statement: Statement) -> Death | None:
    for cause, phrases in _COMPILED:
        matching = [line for line in statement.lines if phrases.search(line)]
        if not matching:
            continue
        words = statement.last if statement.last in matching else matching[0]
        if cause.remedy == _COMPILER:
            words = next(filter(_DETAIL.search, statement.lines), words)
        return Death(cause.error_type, _short(words, phrases), cause.remedy)
    return None


def _short(line: str, phrases: re.Pattern[str]) -> str:
    """The line from where it says why, if that comes late in it, with the exception's name."""
    found = phrases.search(line)
    if found is None or found.end() <= _WORDS:
        return line
    return f"{line.partition(': ')[0][:60]}: ...{line[max(0, found.start() - 20) :]}"
