"""What a prep is asked for, as arguments of the command line: those who plan a prep take the same
ones.
"""

from __future__ import annotations

import argparse

from sgl_admin.commands import argument_types
from sgl_admin.contract.stages import MODES, PROBES
from sgl_admin.records.request import Request
from sgl_admin.records.run import Run
from sgl_admin.stages import STAGES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="the model's folder in the container, under /models"
    )
    parser.add_argument(
        "--tp",
        type=argument_types.positive,
        default=1,
        help="tensor parallel size (default: %(default)s)",
    )
    for stage in STAGES:
        parser.add_argument(
            stage.contract.flag, choices=MODES, dest=stage.name, help=f"stage {stage.name}"
        )
    parser.add_argument(
        "--moe-batch-sizes",
        type=argument_types.batch_sizes,
        default=(),
        metavar="N,N,...",
        help="batch sizes to tune the MoE kernel for",
    )
    parser.add_argument(
        "--moe-sample",
        type=argument_types.positive,
        metavar="N",
        help="try only a fixed sample of so many configurations (default: all)",
    )
    parser.add_argument(
        "--moe-dtype", default="auto", help="data type of the expert weights (default: %(default)s)"
    )
    parser.add_argument(
        "--probe",
        choices=PROBES,
        help=(
            "prove METRICS_READY (default: auto, only while this run has no proof; with --root:"
            " never)"
        ),
    )
    parser.add_argument(
        "--server-arg",
        action="append",
        type=argument_types.server_argument,
        default=[],
        metavar="ARG",
        help="one more argument of the server; may be repeated",
    )
    parser.add_argument(
        "--server-env",
        action="append",
        type=argument_types.server_setting,
        default=[],
        metavar="KEY=VALUE",
        help="one more environment variable of the server; may be repeated",
    )
    parser.add_argument(
        "--cuda-graph-bs",
        type=argument_types.batch_sizes,
        default=(),
        metavar="N,N,...",
        help=(
            "batch sizes that the server captures CUDA graphs for, and that it is warmed with"
            " (default: the image's)"
        ),
    )
    parser.add_argument(
        "--moe-fusion",
        choices=("ensure", "skip"),
        default="ensure",
        help=(
            "after tuning the MoE kernel, compile and verify the fused kernels with a server"
            " (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--server-timeout",
        type=argument_types.seconds,
        default=1800.0,
        metavar="S",
        help="for the server to become healthy (default: %(default)s)",
    )
    parser.add_argument(
        "--probe-timeout",
        type=argument_types.seconds,
        default=30.0,
        metavar="S",
        help="for Prometheus to account for the tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=argument_types.port,
        help="the server's port while it warms up (default: the one that Prometheus scrapes)",
    )


def of(arguments: argparse.Namespace, live: Run) -> Request:
    """The request that these arguments make of the live run."""
    given = {stage.name: getattr(arguments, stage.name) for stage in STAGES}
    default = "skip" if any(given.values()) else "ensure"
    return Request(
        model=arguments.model.rstrip("/"),
        tp=arguments.tp,
        stages={name: mode or default for name, mode in given.items()},
        moe_batch_sizes=arguments.moe_batch_sizes,
        moe_dtype=arguments.moe_dtype,
        moe_sample=arguments.moe_sample,
        probe=arguments.probe or ("never" if arguments.root else "auto"),
        server_args=tuple(arguments.server_arg),
        server_env=tuple(arguments.server_env),
        cuda_graph_batch_sizes=arguments.cuda_graph_bs,
        moe_fusion=arguments.moe_fusion,
        server_timeout_s=arguments.server_timeout,
        probe_timeout_s=arguments.probe_timeout,
        warmup_port=arguments.port or int(live.manifest["services"]["sglang"]["port"]),
    )
