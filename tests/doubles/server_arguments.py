"""Arguments of SGLang's server: what its parser makes of them, and a double of that parser.

The texts, types, choices and defaults are those of sglang 0.5.9's
`sglang.srt.server_args.ServerArgs.add_cli_args`; the double has the arguments that the cases name.
"""

from __future__ import annotations

# Set by sgl-admin itself: by name, alias, `=` form and abbreviation.
OWNED: list[tuple[list[str], str]] = [
    (["--port", "30001"], "sgl_sglang_port"),
    (["--port=30001"], "sgl_sglang_port"),
    (["--por=30001"], "short for --port"),
    (["--host", "0.0.0.0"], "loopback"),  # noqa: S104 - refused
    (["--hos=::"], "short for --host"),
    (["--model-path", "/models/other"], "sgl_model"),
    (["--model=/models/other"], "sgl_model"),
    (["--model-pa", "/models/other"], "short for --model-path"),
    (["--tp-size", "2"], "sgl_tp"),
    (["--tp=2"], "short for --tp-size"),
    (["--tensor-parallel-size=2"], "sgl_tp"),
    (["--tensor-par", "2"], "short for --tensor-parallel-size"),
    (["--enable-metrics"], "set by sgl-admin"),
    (["--config", "/models/server.yaml"], "whose content no record has"),
    (["--conf=/models/server.yaml"], "short for --config"),
    (["--help"], "starts no server"),
    (["-h"], "starts no server"),
]

# The keys that callers show, which sgl-admin gives the server itself.
KEYS = [
    "--api-key",
    "--api-key=hunter2",
    "--api_key=hunter2",
    "--api-k=hunter2",
    "--ap=hunter2",
    "--admin-api-key=hunter2",
    "--admin-a=hunter2",
]

REFUSED: list[tuple[list[str], str]] = [
    (["--nonsense-flag"], "does not know --nonsense-flag"),
    (["--mem-fraction-staic", "0.5"], "does not know --mem-fraction-staic; nearest: --mem-frac"),
    (["--kv_cache_dtype", "auto"], "nearest: --kv-cache-dtype"),
    (["--mem-fraction-static", "lots"], "--mem-fraction-static: invalid float value: 'lots'"),
    (["--context-length=4k"], "--context-length: invalid int value: '4k'"),
    (["--cuda-graph-bs", "1", "two"], "--cuda-graph-bs: invalid int value: 'two'"),
    (["--attention-backend", "tritn"], "--attention-backend: invalid choice: 'tritn'"),
    (["--mem-fraction-static"], "--mem-fraction-static: expected one argument"),
    (["--trust-remote-code=yes"], "--trust-remote-code: ignored explicit argument 'yes'"),
    (["--attention-b", "triton"], "as short for --attention-backend: write that"),
    (["--speculative-num", "2"], "short for any of --speculative-num-steps"),
    (["--mem-fraction-static 0.5"], "does not know --mem-fraction-static 0.5"),
    (["--json-model-override-args", "{bad"], "reads --json-model-override-args as JSON"),
    (["--json-model-override-args", "lots"], "reads --json-model-override-args as JSON"),
    (["--json-model-override-args", "[1]"], "it is not an object"),
    (["--model-loader-extra-config", "{'a': 1}"], "reads --model-loader-extra-config as JSON"),
    (["--kv-events-config", "zmq"], "reads --kv-events-config as JSON"),
    (["--deepep-config", "{bad"], "reads --deepep-config as JSON"),
    (["--preferred-sampling-params", "{x"], "--preferred-sampling-params: invalid loads value"),
    (["positional"], "unrecognized arguments: positional"),
    (["-tp", "2"], "unrecognized arguments: -tp 2"),
    (["--"], "does not know --"),
]

ACCEPTED: list[list[str]] = [
    [],
    ["--mem-fraction-static", "0.5"],
    ["--context-length", "-1"],
    ["--cuda-graph-bs", "1", "2", "4"],
    ["--attention-backend=triton", "--trust-remote-code"],
    ["--json-model-override-args", '{"rope_scaling": null}'],
    ["--kv-events-config", '{"publisher": "zmq"}'],
    ["--hicache-storage-backend-extra-config", "@/models/hicache.toml"],
    ["--constrained-json-whitespace-pattern", r"[\n\t ]*"],
    ["--enable-metrics-for-all-schedulers", "--nccl-port", "29500"],
    ["--page-size=16"],
]


def server_args_source() -> str:
    """The source of a module in the place of `sglang.srt.server_args`."""
    return """
import json


class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        add = parser.add_argument
        add("--model-path", "--model", type=str, required=True)
        add("--tensor-parallel-size", "--tp-size", type=int, default=1)
        add("--host", type=str, default="127.0.0.1")
        add("--port", type=int, default=30000)
        add("--nccl-port", type=int)
        add("--enable-metrics", action="store_true")
        add("--enable-metrics-for-all-schedulers", action="store_true")
        add("--api-key", type=str)
        add("--admin-api-key", type=str)
        add("--config", type=str)
        add("--device", type=str)
        add("--trust-remote-code", action="store_true")
        add("--mem-fraction-static", type=float)
        add("--context-length", type=int,
            help="The model's maximum context length. Defaults to None (will use the value from the"
                 " model's config.json instead).")
        add("--page-size", type=int)
        add("--kv-cache-dtype", type=str, choices=["auto", "fp8_e5m2", "fp8_e4m3"])
        add("--cuda-graph-bs", type=int, nargs="+")
        add("--attention-backend", type=str,
            choices=["triton", "torch_native", "flex_attention", "fa3", "fa4", "flashinfer"])
        add("--speculative-num-steps", type=int)
        add("--speculative-num-draft-tokens", type=int)
        add("--json-model-override-args", type=str, default="{}",
            help="A dictionary in JSON string format used to override default model"
                 " configurations.")
        add("--model-loader-extra-config", type=str, default="{}",
            help="Extra config for model loader.")
        add("--kv-events-config", type=str,
            help="Config in json format for NVIDIA dynamo KV event publishing.")
        add("--deepep-config", type=str,
            help="Tuned DeepEP config suitable for your own cluster. It can be either a string with"
                 " JSON content or a file path.")
        add("--hicache-storage-backend-extra-config", type=str,
            help="A dictionary in JSON string format, or a string starting with a leading '@' and a"
                 " config file in JSON/YAML/TOML format.")
        add("--constrained-json-whitespace-pattern", type=str,
            help="Regex pattern for syntactic whitespaces allowed in JSON constrained output.")
        add("--preferred-sampling-params", type=json.loads,
            help="json-formatted sampling settings")
"""
