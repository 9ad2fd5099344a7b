"""The interface between sgl_admin and the inference server that it starts: one engine is one wing,
a folder that holds all that is the engine's own.

`sgl_admin.sglang.ENGINE` is the only one. All that other folders know of it is declared here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Where every engine's server listens: for the programs of this container only.
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Post:
    """A request to the server: a path, and the body that is sent there as JSON."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Lookup:
    """What a server looks launch configurations of its fused experts up by."""

    E: int
    N: int
    dtype: str | None
    block_shape: tuple[int, int] | None
    # Each row of a weight has a scale of its own, and so has each token.
    per_channel: bool = False


@dataclass(frozen=True)
class Split:
    """How a server splits the experts of a layer among its GPUs."""

    # Each GPU has the routed experts of one of so many ranks.
    ranks: int = 1
    # Of each expert it has one of so many parts.
    parts: int = 1
    # Copies of routed experts, which count as experts.
    redundant: int = 0
    # Why the server looks up no launch configurations at all; empty where it may.
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """Arguments of the server that were chosen for the operator, and why."""

    arguments: tuple[str, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As records have it."""
        return {"arguments": list(self.arguments), "reason": self.reason}


@dataclass(frozen=True)
class Death:
    """What a server died of: its type by the contract's list, the line that says so, and what to do
    about it; each of the last two may be empty.
    """

    error_type: str
    words: str
    remedy: str


class FusedExperts(Protocol):
    """The engine's fused experts in the tuner's own process, which has torch and a GPU."""

    def reading(
        self, up: Mapping[int, dict[str, Any]] | None, down: Mapping[int, dict[str, Any]] | None
    ) -> AbstractContextManager[None]:
        """Calls in it are launched as if these were the files of the two projections; without one
        for the up projection, with the engine's defaults.
        """

    def recorded(self) -> AbstractContextManager[list[dict[str, Any]]]:
        """Calls in it do not launch the two projections' kernels: what each would be launched with
        is kept, the up projection's first.
        """

    def launch(self, recorded: Mapping[str, Any], config: dict[str, Any]) -> None:
        """Launch a recorded kernel with this configuration."""

    def topk_output(self, weights: Any, ids: Any, logits: Any) -> Any:
        """The choice of experts that `call` takes."""

    def call(self, tokens: Any, w1: Any, w2: Any, topk_output: Any, **quantisation: Any) -> None:
        """Call them as the server does, in place."""


class Release(Protocol):
    """What depends on the engine's installed release."""

    @property
    def kernels(self) -> str:
        """The module of the Triton kernels that the fused experts launch."""

    def cuda_graph_arguments(self, batch_sizes: tuple[int, ...]) -> list[str]:
        """Of the server: which batch sizes it captures CUDA graphs for; none leave it its own."""

    def tracing_arguments(self, manifest: dict[str, Any]) -> list[str]:
        """Of the server, where the run's manifest says that tracing runs."""

    @property
    def down_files(self) -> bool:
        """Whether it reads configurations of the down projection alone, with TMA or without."""

    @property
    def up_tma(self) -> bool:
        """Whether the up projection can load by TMA."""

    @property
    def ungated(self) -> Collection[str]:
        """The methods of quantisation whose fused experts may lack the gate (Nemotron-H); the empty
        one is of those that are not quantised.
        """

    def fused_shared_experts(
        self, config: dict[str, Any], server_args: tuple[str, ...], ranks: int = 1
    ) -> int:
        """How many shared experts the server fuses into the routed ones, by the model's config and
        the ranks that these are spread over.
        """

    def built_in_moe_configs(self) -> Path | None:
        """The folder of the MoE configurations that came with it; None where it is not installed
        here.
        """

    def fused_experts(
        self, experts: int, everywhere: int | None = None, gated: bool = True
    ) -> FusedExperts:
        """The fused experts of one GPU, of `everywhere` on all ranks; imports the engine."""


class MoeConfigs(Protocol):
    """The files in which a server looks launch configurations of its fused experts up, and what its
    log says of them.
    """

    # Names the server the folder that holds `folder`.
    variable: str
    # Below the folder that the variable names.
    folder: str
    # All of them, below `folder`.
    pattern: str
    # Of the server: it chooses what runs the experts.
    backend_flag: str

    def triton_folder(self, triton: str) -> str:
        """Where those for this version of Triton are, below `folder`."""

    def file_name(self, lookup: Lookup, device_name: str) -> str:
        """The file that a server looks up on such a device."""

    def lookup(self, file_name: str) -> Lookup | None:
        """None for a name of another form, or one of the down projection alone."""

    def down_name(self, file_name: str) -> str:
        """Its neighbour, for the down projection alone."""

    def main_name(self, file_name: str) -> str:
        """The file whose neighbour for the down projection this is; any other file's own name."""

    def nearest_devices(self, device_name: str, sm: int) -> list[str]:
        """Other GPUs of its kind that the engine brings files for, the nearest first."""

    def most_tokens(self, arguments: Sequence[str]) -> int:
        """How many tokens a server of these arguments puts through its experts at once."""

    def looked_up(self, lines: Iterable[str]) -> list[str]:
        """The files that a server says in its log that it looked up, found or not."""

    def read(self, lines: Iterable[str]) -> list[str]:
        """The files that a server says in its log that it read."""


class Engine(Protocol):
    """An inference server."""

    # Also its key in records: manifest, signatures, facts of the image.
    name: str
    # They answer a GET.
    health_path: str
    metrics_path: str
    # Of the server, which has a metrics page only with it.
    metrics_flag: str

    @property
    def moe(self) -> MoeConfigs:
        """Where the server looks launch configurations of its fused experts up."""

    def version(self) -> str | None:
        """The installed version; None where it is not installed."""

    def packages_problem(self, environment: Mapping[str, str]) -> str | None:
        """Why packages of this image that hold kernels would not be taken by the library that they
        are for, in a server with this environment; None where they would.
        """

    def byte_code_environment(self, folder: Path) -> dict[str, str]:
        """Variables that lead Python's byte code to a folder, where the image lacks it."""

    def deep_gemm_version(self) -> str | None:
        """The version of the DeepGEMM that it brings."""

    def release(self) -> tuple[Release, str | None]:
        """What the installed release has, and a warning where that is not known."""

    def command(self, model: str, tp: int, port: int, arguments: list[str]) -> list[str]:
        """The server's command line."""

    def port(self, argv: list[str]) -> int:
        """The port in a command line. Raises ValueError or IndexError where it has none."""

    def key_arguments(self, api_key: str, admin_key: str) -> list[str]:
        """Of the server: the keys that it asks for, where they are not empty."""

    def api_key(self, argv: list[str]) -> str | None:
        """The key that a server with this command line asks its callers for."""

    def has_admin_key(self) -> bool:
        """Whether the installed server can ask for a key of its own at its admin calls."""

    def spans_hosts(self, argv: Sequence[str]) -> bool:
        """Whether a server with this command line has processes on other hosts too."""

    def network_environment(self, argv: Sequence[str]) -> dict[str, str]:
        """Variables that keep what its processes say to one another on this host."""

    def gpu_environment(self, moe_configs: Path) -> dict[str, str]:
        """What a server on a GPU has in its environment; its MoE configurations are below this
        folder.
        """

    def owned_argument(self, word: str) -> str | None:
        """Why an operator may not give this argument of the server, which sgl-admin sets itself;
        None where he may.
        """

    def argument_problem(
        self, arguments: tuple[str, ...], environment: Mapping[str, str]
    ) -> str | None:
        """Why the installed server does not take these arguments, by its own parser, in one
        sentence; None where it does. Takes as long as importing the server.
        """

    @property
    def lengths(self) -> frozenset[str]:
        """The server's arguments that say for how many and how long requests it has memory."""

    def kernel_arguments(
        self, arguments: Iterable[str], inert: frozenset[str] = ...
    ) -> list[list[str]]:
        """Those of the server's arguments that can change what is compiled, each with its values.
        `inert` are those that do not, beside what no compiler sees; by default `lengths`.
        """

    def kernel_environment(
        self, settings: Mapping[str, str], inherited: Mapping[str, str]
    ) -> dict[str, str]:
        """Those of the server's variables that can change what is compiled: of the ones that are
        set for it, and of the ones that it inherits.
        """

    def shown_arguments(self, words: Iterable[str], public: Collection[str] = ()) -> list[str]:
        """A command line as records and logs have it: without the values whose names are neither
        known as public nor among `public`.
        """

    def shown_environment(
        self, environment: Mapping[str, str], public: Collection[str] = ()
    ) -> dict[str, str]:
        """An environment as records and logs have it."""

    def inherited(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What a server inherits of this process's environment: not what is only sgl-admin's."""

    def experts_split(self, arguments: tuple[str, ...], tp: int) -> Split:
        """How a server with these arguments splits its experts."""

    def choices(
        self, arguments: tuple[str, ...], compute_capability: str | None, config: dict[str, Any]
    ) -> list[Choice]:
        """What to add to the server's arguments, by the kernels that the image has and the model's
        config.
        """

    def missing_tracing_packages(self) -> list[str]:
        """The packages without which the server of this image cannot send its traces."""

    def is_ready(self, status: int) -> bool:
        """Whether this HTTP status of the health page says that the server takes requests."""

    def completion(self, prompt: str, temperature: float, max_tokens: int) -> Post:
        """The request for a completion."""

    def timed_completion(self, prompt: str, tokens: int) -> Post:
        """The request for a completion of so many tokens, wherever the text would end."""

    def completion_tokens_used(self, answer: bytes) -> int:
        """The tokens that a completion says it has; raises as `prompt_tokens_used`."""

    def prompt_tokens_used(self, answer: bytes) -> int:
        """The prompt tokens that a completion says it took. Raises ValueError, KeyError, TypeError
        or OverflowError where it does not say.
        """

    def start_breakdown(
        self, lines: Iterable[str], page: str, began_at: float, ready_s: float
    ) -> dict[str, Any]:
        """Where a start of the server went, by its own log and its metrics page; it began at this
        time since the epoch and took `ready_s`. What neither says is left out.
        """

    def start_advice(
        self, starts: Sequence[Mapping[str, Any]], compiled: int
    ) -> list[dict[str, str]]:
        """Settings that would shorten the next start, of those whose gain was measured, by the
        starts of a prep that compiled so many files.
        """

    def fast_environment(
        self, done: Collection[str], environment: Mapping[str, str]
    ) -> dict[str, str]:
        """What a server is started with, beside its environment, where the caches of these stages
        are whole, so that its start leaves out what they make needless.
        """

    def prompt_tokens_total(self, metrics: str) -> float:
        """All prompt tokens so far, by the server's metrics page. Raises ValueError."""

    def total(self, series: Iterable[tuple[Mapping[str, str], float]]) -> float:
        """The count of Prometheus' series of that counter, by labels and value: no label makes the
        same tokens count twice.
        """

    def prompt_tokens_query(self, run_id: str, address: str) -> str:
        """The same counter, as Prometheus' series of a run's server at an address (host:port)."""

    def death(self, log_tail: list[str], exit_code: int | None = None, oom_kills: int = 0) -> Death:
        """What a server died of, by the last lines of its log, its exit code (negative for a
        signal), and how many processes the kernel ended for want of memory meanwhile.
        """
