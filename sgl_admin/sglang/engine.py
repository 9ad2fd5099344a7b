"""SGLang behind the interface of base/engine.py: each part is a module beside this one."""

from __future__ import annotations

from collections.abc import Mapping

from sgl_admin.sglang import (
    api,
    arguments,
    choices,
    command_line,
    deaths,
    disclosure,
    kernels,
    metrics,
    packages,
    releases,
    split,
    startup,
    tracing,
)
from sgl_admin.sglang.moe_configs import MoeConfigs


class SGLang:
    """As base.engine.Engine says."""

    name = packages.NAME
    moe = MoeConfigs()

    version = staticmethod(packages.version)
    packages_problem = staticmethod(packages.mismatch)
    byte_code_environment = staticmethod(packages.byte_code_environment)
    deep_gemm_version = staticmethod(packages.deep_gemm_version)
    release = staticmethod(releases.installed)

    command = staticmethod(command_line.command)
    port = staticmethod(command_line.port)
    key_arguments = staticmethod(command_line.key_arguments)
    api_key = staticmethod(command_line.api_key)
    has_admin_key = staticmethod(command_line.has_admin_key)
    spans_hosts = staticmethod(command_line.spans_hosts)
    network_environment = staticmethod(command_line.network_environment)
    gpu_environment = staticmethod(command_line.gpu_environment)
    lengths = kernels.LENGTHS
    owned_argument = staticmethod(arguments.owned)
    argument_problem = staticmethod(arguments.problem)
    kernel_arguments = staticmethod(kernels.kernel_arguments)
    kernel_environment = staticmethod(kernels.kernel_environment)
    shown_arguments = staticmethod(disclosure.shown_arguments)
    shown_environment = staticmethod(disclosure.shown_environment)

    @staticmethod
    def inherited(environment: Mapping[str, str]) -> dict[str, str]:
        return kernels.inherited(environment, releases.installed()[0].since)

    experts_split = staticmethod(split.split)
    choices = staticmethod(choices.choices)
    missing_tracing_packages = staticmethod(tracing.missing_packages)

    health_path = api.HEALTH_PATH
    is_ready = staticmethod(api.is_ready)
    completion = staticmethod(api.completion)
    timed_completion = staticmethod(api.timed_completion)
    prompt_tokens_used = staticmethod(api.prompt_tokens_used)
    completion_tokens_used = staticmethod(api.completion_tokens_used)

    metrics_path = metrics.PATH
    metrics_flag = metrics.FLAG
    prompt_tokens_total = staticmethod(metrics.prompt_tokens_total)
    total = staticmethod(metrics.total)
    prompt_tokens_query = staticmethod(metrics.prompt_tokens_query)

    death = staticmethod(deaths.death)
    start_breakdown = staticmethod(startup.breakdown)
    start_advice = staticmethod(startup.advice)
    fast_environment = staticmethod(startup.fast_environment)
