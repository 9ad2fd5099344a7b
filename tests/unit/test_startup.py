"""Where a server's start goes, by lines and gauges as SGLang 0.5.17 and 0.5.23 write them.

The formats are those of srt/distributed/bootstrap.py, srt/model_executor/model_runner.py,
srt/model_executor/model_runner_components/cuda_graph_setup.py,
srt/layers/deep_gemm_wrapper/compile_utils.py and srt/observability/metrics_collector.py of each.
"""

from __future__ import annotations

import random
import time
from datetime import datetime
from typing import Any

import pytest

from sgl_admin.sglang import startup

BEGAN = datetime(2026, 11, 28, 14, 0, 0).timestamp()
# Two ranks; what a start says beside that is left out.
BY_RELEASE = {
    "0.5.17": """
[2026-11-28 14:00:17] server_args=ServerArgs(model_path='/model', tp_size=2)
[2026-11-28 14:00:34 TP0] Init torch distributed begin.
[2026-11-28 14:00:35 TP1] Init torch distributed begin.
[2026-11-28 14:00:37 TP1] Init torch distributed ends. elapsed=2.31 s, mem usage=0.55 GB
[2026-11-28 14:00:37 TP0] Init torch distributed ends. elapsed=2.60 s, mem usage=0.55 GB
[2026-11-28 14:00:38 TP0] Load weight begin. avail mem=139.05 GB
[2026-11-28 14:00:40 TP0] Load weight end. elapsed=1.84 s, type=Qwen3NextForCausalLM, \
quant=fp8, avail mem=131.20 GB, mem usage=7.85 GB.
[2026-11-28 14:00:41 TP0] Capture target prefill CUDA graph begin. backend=x, avail mem=20.10 GB
[2026-11-28 14:00:42 TP0] Entering DeepGEMM JIT Pre-Compile session. It may take a long time
[2026-11-28 14:00:42 TP0] Try DeepGEMM JIT Compiling for <GEMM_NT_F8F8BF16> N=2048, K=2048
DeepGEMM warmup:   0%|          | 0/16384 [00:00<?, ?it/s]\rDeepGEMM warmup: 100%|##########| \
16384/16384 [00:03<00:00, 4987.20it/s]\rDeepGEMM warmup: 100%|##########| 16384/16384 \
[00:03<00:00, 4987.01it/s]
[2026-11-28 14:00:46 TP0] Try DeepGEMM JIT Compiling for <GEMM_NT_F8F8BF16> N=4096, K=2048
DeepGEMM warmup: 100%|##########| 16384/16384 [01:01<00:00, 12000.00it/s]
[2026-11-28 14:00:52 TP0] Capture target prefill CUDA graph end. elapsed=11.80 s, \
mem usage=0.20 GB, avail mem=19.90 GB.
[2026-11-28 14:00:53 TP0] Capture target decode CUDA graph end. elapsed=1.10 s, \
mem usage=0.20 GB, avail mem=19.70 GB.
[2026-11-28 14:00:53 TP0] Capture draft decode cuda graph end. elapsed=0.10 s, \
mem usage=0.20 GB, avail mem=19.70 GB.
""",
    "0.5.23": """
[2026-11-28 14:00:17.214] server_args={'model_path': '/model'}
[2026-11-28 14:00:34.001 TP0] Init parallel begin.
[2026-11-28 14:00:37.001 TP0] Init parallel ends. elapsed=2.60 s
[2026-11-28 14:00:40.001 TP0] Load weight end. Committed real weights after CUDA graph capture \
in 1.84 s while the graphs were captured
[2026-11-28 14:00:42.001 TP0] Try DeepGEMM JIT Compiling for <GEMM_NT_F8F8BF16> N=2048, K=2048
DeepGEMM warmup: 100%|##########| 16384/16384 [00:03<00:00, 4987.20it/s]
[2026-11-28 14:00:46.001 TP0] Try DeepGEMM JIT Compiling for <GEMM_NT_F8F8BF16> N=4096, K=2048
DeepGEMM warmup: 100%|##########| 16384/16384 [01:01<00:00, 12000.00it/s]
[2026-11-28 14:00:52.001 TP0] Capture target prefill CUDA graph end. elapsed=11.80 s, \
mem usage=0.20 GB, avail mem=19.90 GB.
[2026-11-28 14:00:53.001 TP0] Capture target decode CUDA graph end. elapsed=1.20 s, \
mem usage=0.20 GB, avail mem=19.70 GB.
""",
}
EXPECTED = {
    "imports": 17.0,
    "worker_imports": 17.0,
    "process_group": 2.6,
    "weights": 1.84,
    "prefill_graphs": 11.8,
    "decode_graphs": 1.2,
}
PAGE = """
# TYPE sglang:startup_time_seconds gauge
sglang:startup_time_seconds{model_name="m",tp_rank="0",phase="load_weight"} 1.8412
sglang:startup_time_seconds{model_name="m",tp_rank="1",phase="load_weight"} 1.9
sglang:startup_time_seconds{model_name="m",phase="kv_cache_allocation"} 0.312
sglang:startup_time_seconds{model_name="m",phase="scheduler_e2e"} 30.5
sglang:startup_cuda_graph_time_seconds{model_name="m",phase="prefill"} 11.823
sglang:startup_cuda_graph_time_seconds{model_name="m",phase="decode"} 0.0
sglang:startup_cuda_graph_time_seconds{model_name="m",phase="of tomorrow"} 9.0
"""


def phases(found: dict[str, Any]) -> dict[str, float]:
    return {one["phase"]: one["seconds"] for one in found["phases"]}


def breakdown(text: str, page: str = "", ready_s: float = 52.7) -> dict[str, Any]:
    # Lines as a log is read: what a bar repeats stays on its line.
    return startup.breakdown(text.split("\n"), page, BEGAN, ready_s)


@pytest.mark.parametrize("release", BY_RELEASE)
def test_a_start_is_broken_down_by_the_servers_own_lines(release: str) -> None:
    found = breakdown(BY_RELEASE[release])
    assert phases(found) == EXPECTED and found["ready_s"] == 52.7
    assert found["other_s"] == pytest.approx(52.7 - sum(EXPECTED.values()))
    assert found["deep_gemm"] == {"shapes": 2, "seconds": 64.0}


def test_the_servers_gauges_are_more_exact_and_unknown_ones_say_nothing() -> None:
    found = phases(breakdown(BY_RELEASE["0.5.17"], PAGE))
    assert found == {**EXPECTED, "weights": 1.9, "kv_cache": 0.312, "prefill_graphs": 11.823}
    assert list(found) == [phase for phase in startup.PHASES if phase in found]
    assert phases(breakdown("", PAGE.replace("sglang:", "sglang_")))["kv_cache"] == 0.312


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no line of these",
        "[2026-13-45 99:00:00] server_args=1",
        "[2026-11-28 14:00:17] Init torch distributed ends. elapsed= s",
        "Load weight end. elapsed=1.2.3 s",
        "DeepGEMM warmup: 100%|",
        f"Load weight end. elapsed={'9' * 400} s",
    ],
)
@pytest.mark.parametrize("page", ["", 'sglang:startup_time_seconds{phase="load_weight"} many'])
def test_what_is_not_known_is_left_out_and_breaks_nothing(text: str, page: str) -> None:
    found = breakdown(text, page, 5.0)
    assert found["phases"] == [] and found["other_s"] == 5.0
    assert found["deep_gemm"] == {"shapes": 0, "seconds": 0.0}


def test_a_phase_is_never_negative_and_none_is_made_of_another_servers_lines() -> None:
    early = "[2026-11-28 13:59:59] server_args=ServerArgs()"
    assert phases(breakdown(early, ready_s=5.0)) == {"imports": 0.0}


def test_long_lines_and_torn_ones_are_read_in_passing() -> None:
    letters = random.Random(1)
    whole = BY_RELEASE["0.5.17"]
    started = time.monotonic()
    for _ in range(300):
        place = letters.randrange(len(whole))
        breakdown(whole[:place] + "\x00" * 3 + whole[place + letters.randrange(40) :])
    breakdown("Load weight end. " * 5000 + "\nCapture " + "a" * 100_000 + "\n[" * 20_000)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("starts", "compiled", "advised"),
    [([], 0, 0), (["0.5.17"], 0, 1), (["0.5.17"], 3, 0), (["0.5.17", ""], 0, 0)],
)
def test_only_a_start_with_whole_caches_is_advised_to_skip_the_loop(
    starts: list[str], compiled: int, advised: int
) -> None:
    found = [breakdown(BY_RELEASE.get(name, name)) for name in starts]
    advice = startup.advice(found, compiled)
    assert len(advice) == advised
    for one in advice:
        assert one["setting"] == "sgl_server_fast_start: true"
        assert "SGLANG_JIT_DEEPGEMM_PRECOMPILE=0" in one["reason"]
        assert "2 shapes in 64 s" in one["reason"] and "52.7 s to 48.2 s" in one["measured"]


@pytest.mark.parametrize(
    ("done", "environment", "expected"),
    [
        (["deep_gemm", "inductor"], {}, {"SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0"}),
        (["inductor"], {}, {}),
        ([], {}, {}),
        (["deep_gemm"], {"SGLANG_JIT_DEEPGEMM_PRECOMPILE": "1"}, {}),
    ],
    ids=["whole", "another stage", "nothing", "the operator's"],
)
def test_the_loop_is_left_out_where_its_work_is_done(
    done: list[str], environment: dict[str, str], expected: dict[str, str]
) -> None:
    assert startup.fast_environment(done, environment) == expected
