"""Stands for `python -m sglang.launch_server` on an NVIDIA GPU, where there is none and seconds
matter.

It answers what sgl-admin asks of the real one: /health (503 until it is ready), /v1/completions
with `usage`, and /metrics with the counter of prompt tokens, born with its first value. Its helper
is a process of its group that outlives it when it is killed. As the real one:

- it takes the flags of its release, whose version is its dist-info folder's, and ends with exit
  code 2 at others (FLAGS);
- a start and the first sampled request leave a file in each cache that the environment names, where
  it is not there yet (COMPILED);
- it fuses a shared expert that is as large as a routed one, gives each rank of expert parallelism
  its part of the routed ones, whole (FusedMoE.__init__), looks the MoE configuration of that
  shape up in SGLANG_MOE_CONFIG_DIR, once for each start, and says what it found in a release's own
  words (seen in 0.5.17 on an H100); without `configs` there it dies.

SGL_TEST_GPU_SERVER names a JSON file, read at the start, that says what else; each key may be left
out:

    journal     a file that gets a line for each start: {"pid", "argv", "env": the caches' variables
                and CUDA's}
    ready_s     seconds until /health says 200 (0.15)
    dies        ends while it starts: says this text as its scheduler's traceback, then what the
                real one says after any death
    silent      says nothing and never becomes ready
    holds_port  SIGTERM does nothing, to it and its helper
    device_name what torch calls the GPU, where that is not what NVML calls it
    moe_kind    what the name of the MoE configuration says of the experts' data type
    plants      a file that it writes as it starts, where no cache is
    http_500    answers HTTP 500 to completions
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VARIABLE = "SGL_TEST_GPU_SERVER"
_KEPT = (
    "SGLANG_JIT_DEEPGEMM_PRECOMPILE",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
    "SGLANG_DG_CACHE_DIR",
    "SGL_DG_CACHE_DIR",
    "TVM_FFI_CACHE_DIR",
    "SGLANG_JIT_CACHE_DIR",
    "SGLANG_CACHE_DIR",
    "TILELANG_CACHE_DIR",
    "CUTE_DSL_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    "B12X_COMPILE_CACHE_DIR",
    "TORCH_EXTENSIONS_DIR",
    "PYTORCH_KERNEL_CACHE_PATH",
    "CUDA_CACHE_PATH",
    "SGLANG_MOE_CONFIG_DIR",
    "CUDA_DEVICE_ORDER",
)
# variable -> the file that a start compiles
COMPILED = {
    "SGLANG_DG_CACHE_DIR": "cache/kernel.fp8_gemm.1f2e/kernel.cubin",
    "TRITON_CACHE_DIR": "KEY/fused_moe_kernel.cubin",
    "TORCHINDUCTOR_CACHE_DIR": "fxgraph/ab/graph",
    "TVM_FFI_CACHE_DIR": "silu_and_mul__arch_9.0a/silu_and_mul.so",
    "FLASHINFER_WORKSPACE_BASE": ".cache/flashinfer/0.6.15/90a/cached_ops/attention/attention.so",
    # As SGLang 0.5.23 (flashinfer_autotune.py) and TileLang 0.1.12 (cache/kernel_cache.py) name
    # theirs; of the driver's cache only the folder is documented.
    "SGLANG_CACHE_DIR": "flashinfer/autotune/0.6.15/90a/1f2e/rank_tp0_pp0_dp0.json",
    "TILELANG_CACHE_DIR": "0.1.12/1f2e/kernel_lib.so",
    "CUTE_DSL_CACHE_DIR": "1f2e.mlir",
    "TORCH_EXTENSIONS_DIR": "py312_cu130/x/x.so",
    "CUDA_CACHE_PATH": "a/b/1f2e",
}
SAMPLED = {
    "FLASHINFER_WORKSPACE_BASE": ".cache/flashinfer/0.6.15/90a/cached_ops/sampling/sampling.so",
    # Without the pre-compilation DeepGEMM compiles when it is called.
    "SGLANG_DG_CACHE_DIR": "cache/kernel.fp8_gemm.2e3f/kernel.cubin",
}
_COMMON = (
    "--model-path",
    "--tp-size",
    "--ep-size",
    "--host",
    "--port",
    "--load-format",
    "--mem-fraction-static",
    "--context-length",
    "--moe-runner-backend",
    "--served-model-name",
    "--attention-backend",
    "--mm-attention-backend",
    "--chunked-prefill-size",
    "--kv-cache-dtype",
)
# (since this version, flags with one value, flags with several)
FLAGS: tuple[tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    ((0, 5, 3), ("--oltp-traces-endpoint",), ("--cuda-graph-bs",)),
    ((0, 5, 9), ("--otlp-traces-endpoint", "--admin-api-key"), ("--cuda-graph-bs",)),
    (
        (0, 5, 17),
        ("--otlp-traces-endpoint", "--admin-api-key"),
        ("--cuda-graph-bs-decode", "--cuda-graph-bs-prefill"),
    ),
)


def installed(distribution: str) -> str:
    """A version by the dist-info folders beside this package, or of the environment that has it
    installed (the replica of SGLang's image).
    """
    folders = list(HERE.parent.glob(f"{distribution}-*.dist-info"))
    if not folders:
        return importlib.metadata.version(distribution)
    [folder] = folders
    return folder.name.removesuffix(".dist-info").partition("-")[2]


def parser(version: str) -> argparse.ArgumentParser:
    number = tuple(map(int, version.split(".")[:3]))
    _, single, several = next(row for row in reversed(FLAGS) if row[0] <= number)
    made = argparse.ArgumentParser(prog="launch_server.py")
    for flag in (*_COMMON, *single):
        made.add_argument(flag)
    for flag in several:
        made.add_argument(flag, type=int, nargs="+")
    for flag in ("--enable-metrics", "--enable-trace", "--disable-shared-experts-fusion"):
        made.add_argument(flag, action="store_true")
    return made


def say(line: str) -> None:
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {line}", flush=True)


def compile_into(caches: dict[str, str]) -> None:
    """Leave what a compiler leaves, by temp file and rename, where it is not there yet."""
    for variable, name in caches.items():
        if variable in os.environ and not (path := Path(os.environ[variable]) / name).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
            temporary.write_text(f"compiled {name}\n" * 20)
            temporary.replace(path)


class Experts:
    """The lookup of a MoE model's configuration, and what the server says of it."""

    def __init__(
        self,
        config: dict[str, Any],
        tp: int,
        ep: int,
        fusion: bool,
        device_name: str,
        kind: str | None,
    ) -> None:
        same_size = config.get("shared_expert_intermediate_size") == config["moe_intermediate_size"]
        experts = config["num_experts"] // ep + (1 if fusion and same_size else 0)
        quantised = config.get("quantization_config")
        if kind is None and quantised:
            kind = f",dtype=fp8_w8a8,block_shape={quantised['weight_block_size']}"
        self.stem = (
            f"E={experts},N={config['moe_intermediate_size'] // (tp // ep)}"
            f",device_name={device_name.replace(' ', '_')}{kind or ''}"
        )

    def look_up(self, version: str, triton: str) -> None:
        """Raises FileNotFoundError as the real one does, where the folder has no `configs`."""
        layer = (
            "srt/layers/moe/fused_moe_triton"
            if version.startswith(("0.5.3", "0.5.9"))
            else "srt/layers/moe/moe_runner/triton_utils"
        )
        configs = Path(os.environ.get("SGLANG_MOE_CONFIG_DIR", HERE / layer)) / "configs"
        if self._one(configs, triton, f"{self.stem}.json"):
            say(
                "Down MoE config file not found at"
                f" {configs / folder_of(triton) / f'{self.stem}_down.json'}; reusing the tuned"
                " up-projection config without TMA. Performance might be sub-optimal."
            )
        else:
            self._one(configs, triton, f"{self.stem}_down.json")

    @staticmethod
    def _one(configs: Path, triton: str, name: str) -> bool:
        wanted = configs / folder_of(triton) / name
        if wanted.exists():
            json.loads(wanted.read_text())
            say(f"Using MoE kernel config from {wanted}.")
            return True
        versions = (
            tuple(map(int, entry.removeprefix("triton_").split("_")))
            for entry in os.listdir(configs)
        )
        for other in sorted(versions, reverse=True):
            dotted = ".".join(map(str, other))
            if (found := configs / folder_of(dotted) / name).exists():
                say(
                    f"Config file not found at {wanted}. Fallback to triton version {dotted} and"
                    f" use MoE kernel config from {found}. Performance might be sub-optimal!"
                )
                return True
        say(
            "Using default MoE kernel config. Performance might be sub-optimal! Config file not"
            f" found at {wanted}, you can create them with"
            " https://github.com/sgl-project/sglang/tree/main/benchmark/kernels/fused_moe_triton"
        )
        return False


def folder_of(triton: str) -> str:
    return f"triton_{triton.replace('.', '_')}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ready_at: float
    fails: bool
    lock = threading.Lock()
    tokens = 0

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200 if time.monotonic() >= self.ready_at else 503, "")
        elif self.path == "/metrics":
            counted = (
                f'sglang:prompt_tokens_total{{model_name="m"}} {float(Handler.tokens)}\n'
                if Handler.tokens
                else ""
            )
            self.answer(200, f"# TYPE sglang:prompt_tokens_total counter\n{counted}")
        else:
            self.answer(404, "")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.fails:
            self.answer(
                500,
                json.dumps({"object": "error", "message": "Internal server error", "code": 500}),
            )
            return
        if body["temperature"] > 0:
            with self.lock:
                compile_into(SAMPLED)
        tokens = len(body["prompt"].split())
        with self.lock:
            Handler.tokens += tokens
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        self.answer(
            200,
            json.dumps(
                {
                    "choices": [{"index": 0, "text": " words", "finish_reason": "length"}],
                    "usage": usage,
                }
            ),
        )

    def answer(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        # Prometheus 3 refuses a page without a type; prometheus_client's is this one.
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


class Listener(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def start_helper() -> None:
    if os.fork() == 0:
        while True:
            signal.pause()


def die(text: str) -> None:
    say(f"Scheduler hit an exception: Traceback (most recent call last):\n{text}\n")
    say("Received sigquit from a child process. It usually means the child failed.")
    print("RuntimeError: Rank 0 scheduler died during initialization (exit code: 1).")
    print(
        "If exit code is -9 (SIGKILL), a common cause is the OS OOM killer. Run `dmesg -T | grep -i"
        " oom` to check.",
        flush=True,
    )
    sys.exit(1)


def main() -> None:
    told: dict[str, Any] = (
        json.loads(Path(os.environ[VARIABLE]).read_text()) if VARIABLE in os.environ else {}
    )
    if journal := told.get("journal"):
        started = {
            "pid": os.getpid(),
            "argv": sys.argv[1:],
            "env": {
                name: os.environ[name]
                for name in sorted(os.environ)
                if name in _KEPT or name.startswith("SGL_")
            },
        }
        with open(journal, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(started) + "\n")
    version = installed("sglang")
    arguments = parser(version).parse_args()
    if told.get("holds_port"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_helper()
    if told.get("silent"):
        signal.pause()
    say(
        f"server_args=ServerArgs(model_path={arguments.model_path!r},"
        f" moe_runner_backend={arguments.moe_runner_backend!r})"
    )
    Handler.ready_at = time.monotonic() + float(told.get("ready_s", 0.15))
    Handler.fails = bool(told.get("http_500"))
    compile_into(COMPILED)
    if planted := told.get("plants"):
        Path(planted).parent.mkdir(parents=True, exist_ok=True)
        Path(planted).write_text("compiled")
    if text := told.get("dies"):
        die(text)
    config = json.loads((Path(arguments.model_path) / "config.json").read_text())
    triton_runs_them = arguments.moe_runner_backend in (None, "auto", "triton")
    if (
        "num_experts" in config
        and triton_runs_them
        and config.get("quantization_config", {}).get("quant_method", "fp8") == "fp8"
    ):
        machine = json.loads(Path(os.environ["SGL_TEST_NVML"]).read_text())
        device_name = told.get("device_name") or machine.get("gpus", [{}])[0].get(
            "name", "NVIDIA H100 80GB HBM3"
        )
        say(
            "FlashInfer TRTLLM MoE deferred finalize is disabled (moe_runner_backend=auto,"
            " quant_method=Fp8MoEMethod)."
        )
        experts = Experts(
            config,
            int(arguments.tp_size),
            int(arguments.ep_size or 1),
            not arguments.disable_shared_experts_fusion,
            device_name,
            told.get("moe_kind"),
        )
        experts.look_up(version, installed("triton"))
    listener = Listener((arguments.host, int(arguments.port)), Handler)
    say(f"Uvicorn running on http://{arguments.host}:{arguments.port} (Press CTRL+C to quit)")
    listener.serve_forever()


if __name__ == "__main__":
    main()
