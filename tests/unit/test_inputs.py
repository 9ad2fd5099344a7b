"""What the work of each stage depends on, and for which server it stands: on planning level, with
H100s, SGLang and models that are a config and the files beside it.

tests/fixtures/upstream_names.json holds the names that real models, servers and environments have.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_admin.base import files, paths
from sgl_admin.contract import options
from sgl_admin.contract.places import CACHE_VARIABLES
from sgl_admin.prep.plan import Plan
from sgl_admin.records import caches, prepared, run
from sgl_admin.sglang import kernels, releases
from sgl_admin.stages import STAGES, inputs
from tests.unit.sharing import Host, lay, on_a_gpu, wipe

STAGE = {stage.name: stage for stage in STAGES}
COMPILED = tuple(name for name, stage in STAGE.items() if stage.server_made)
NAMES = json.loads(
    (Path(__file__).resolve().parents[1] / "fixtures" / "upstream_names.json").read_text()
)
CONFIG_KEYS = frozenset(NAMES["config_keys"].split())
READ_BY_SGLANG = frozenset(NAMES["config_keys_read"].split())
FLAGS = {version: frozenset(flags.split()) for version, flags in NAMES["flags"].items()}
VARIABLES = frozenset(NAMES["variables"].split())

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 4,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
MODELOPT_FP8 = {
    "producer": {"name": "modelopt", "version": "0.33.0"},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["a"]},
}


def compressed(bits: int, kind: str, group: int | None) -> dict[str, Any]:
    """As llm-compressor writes it."""
    weights = {"num_bits": bits, "type": kind, "strategy": "channel", "group_size": group}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized" if kind == "float" else "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


@dataclass(frozen=True)
class Ask:
    """A request: a model, a command line, environments and an image."""

    config: Mapping[str, Any] = field(default_factory=lambda: CONFIG)
    # Beside the config, as JSON or as text.
    files: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    inherited: Mapping[str, str] = field(default_factory=dict)
    image: str = "sha256:one"
    port: int = 30000


@dataclass
class Site:
    """A host with GPUs on which any request can be planned, and its stages finished."""

    patch: pytest.MonkeyPatch

    def plan(self, ask: Ask) -> Plan:
        model = paths.MODELS / "model"
        shutil.rmtree(model, ignore_errors=True)
        model.mkdir()
        for name, content in {"config.json": ask.config, **ask.files}.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (model / name).write_text(text)
        files.write_json(paths.IMAGE_FACTS, {"image_inputs": ask.image})
        words = (f"--server-arg={word}" for word in ask.arguments)
        settings = (f"--server-env={each}" for each in ask.environment)
        with self.patch.context() as patch:
            for name, value in ask.inherited.items():
                patch.setenv(name, value)
            port = ("--port", str(ask.port))
            return Host(model, *words, *settings, *port, "--probe", "auto").prep()

    def serve(self, ask: Ask) -> Plan:
        """As after a prep in which a server ran, filled the caches and was proven."""
        plan = self.plan(ask)
        for decision in plan.decisions:
            if decision.stage.name in COMPILED:
                kernel = lay(f"{decision.stage.caches[0]}/kernel", b"kernel")
                decision.record.write([kernel], served=plan.context.served_identity)
        server = {
            "identity": plan.server,
            "argv": plan.server_argv,
            "env": plan.server_environment,
        }
        proof = {"ok": True, "server": plan.server}
        prepared.write(
            plan.run.run_id,
            {"server": server, "model": plan.request.model, "prep_id": "prep-1", "profile": None},
            proof,
            plan.command,
        )
        return plan

    def forget(self) -> None:
        """As before the first prep."""
        wipe()
        shutil.rmtree(prepared.folder(run.live().run_id), ignore_errors=True)

    def signatures(self, ask: Ask) -> dict[str, str]:
        plan = self.plan(ask)
        return {
            decision.stage.name: caches.digest(decision.signature)
            for decision in plan.decisions
            if decision.signature is not None
        }

    def changed(self, one: Ask, other: Ask) -> set[str]:
        before, after = self.signatures(one), self.signatures(other)
        assert before.keys() == after.keys() >= set(COMPILED)
        return {name for name in before if before[name] != after[name]}


def actions(plan: Plan) -> dict[str, str]:
    return {each.stage.name: each.action for each in plan.decisions if each.stage.name in COMPILED}


ALL_RUN, ALL_STAND = dict.fromkeys(COMPILED, "run"), dict.fromkeys(COMPILED, "noop")


@pytest.fixture
def site(live_run: str, monkeypatch: pytest.MonkeyPatch) -> Site:
    on_a_gpu(monkeypatch)
    flavour = {"flavour": "gh200", "services": []}
    server = {"args": [], "env": {"HF_HUB_OFFLINE": "1"}, "batch_sizes": [1, 2]}
    files.write_json(paths.FLAVOUR, {**flavour, "server": server})
    return Site(monkeypatch)


# --- what changes the compiled code -------------------------------------------------------------

FP8_DYNAMIC = {**CONFIG, "quantization_config": compressed(8, "float", None)}
W4A16 = {**CONFIG, "quantization_config": compressed(4, "int", 128)}
EAGLE = ("--speculative-algorithm", "EAGLE")

CHANGES: dict[str, tuple[Ask, Ask]] = {
    "BF16, then ModelOpt FP8 of the same sizes": (
        Ask(),
        Ask(files={"hf_quant_config.json": MODELOPT_FP8}),
    ),
    "ModelOpt FP8, then NVFP4": (
        Ask(files={"hf_quant_config.json": MODELOPT_FP8}),
        Ask(files={"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4"}}}),
    ),
    "FP8-dynamic and w4a16 of compressed-tensors": (Ask(FP8_DYNAMIC), Ask(W4A16)),
    "groups of 128 and of 32": (
        Ask(W4A16),
        Ask({**CONFIG, "quantization_config": compressed(4, "int", 32)}),
    ),
    "a logit soft cap": (Ask(), Ask({**CONFIG, "attn_logit_softcapping": 50.0})),
    "a final soft cap": (Ask(), Ask({**CONFIG, "final_logit_softcapping": 30.0})),
    "a sliding window": (Ask(), Ask({**CONFIG, "sliding_window": 4096})),
    "which layers have the window": (
        Ask({**CONFIG, "layer_types": ["full_attention"] * 4}),
        Ask({**CONFIG, "layer_types": ["sliding_attention"] * 4}),
    ),
    "an argument that nobody knows": (Ask(), Ask(arguments=("--nonsense-flag",))),
    # Further ones of the kind.
    "quantisation within the text's config": (
        Ask({**CONFIG, "text_config": {"quantization_config": compressed(8, "float", None)}}),
        Ask({**CONFIG, "text_config": {"quantization_config": compressed(4, "int", 128)}}),
    ),
    "an ignored key within the quantisation": (
        Ask({**CONFIG, "quantization_config": {"quant_method": "x", "dropout": 1}}),
        Ask({**CONFIG, "quantization_config": {"quant_method": "x", "dropout": 2}}),
    ),
    "one module more that is not quantised, at the end of a long list": (
        Ask({**CONFIG, "quantization_config": {"ignore": ["layer"] * 500}}),
        Ask({**CONFIG, "quantization_config": {"ignore": ["layer"] * 500 + ["lm_head"]}}),
    ),
    "GPTQ's own file": (Ask(), Ask(files={"quantize_config.json": {"bits": 4, "group_size": 128}})),
    "Mistral's own config": (Ask(), Ask(files={"params.json": {"dim": 4096}})),
    "the model's own code": (
        Ask(files={"configuration_x.py": "A = 1"}),
        Ask(files={"configuration_x.py": "A = 2"}),
    ),
    "how many labels a classifier has": (
        Ask({**CONFIG, "id2label": {"0": "no"}}),
        Ask({**CONFIG, "id2label": {"0": "no", "1": "yes"}}),
    ),
    "true and 1": (Ask({**CONFIG, "x": True}), Ask({**CONFIG, "x": 1})),
    "which of two is the last": (
        Ask(arguments=("--attention-backend", "fa3", "--attention-backend", "triton")),
        Ask(arguments=("--attention-backend", "triton", "--attention-backend", "fa3")),
    ),
    "one value with a space, and two": (
        Ask(arguments=("--lora-target-modules", "q k")),
        Ask(arguments=("--lora-target-modules", "q", "k")),
    ),
    "weights that are quantised while they are loaded": (
        Ask(),
        Ask(arguments=("--load-format", "bitsandbytes")),
    ),
    "a flag whose name begins as an inert one": (
        Ask(),
        Ask(arguments=("--log-level-kernels", "1")),
    ),
    "a variable of the server": (Ask(), Ask(environment=("SGLANG_ENABLE_JIT_DEEPGEMM=0",))),
    "a variable that nobody knows": (Ask(), Ask(environment=("NONSENSE=1",))),
    "a variable that the server inherits": (
        Ask(),
        Ask(inherited={"SGLANG_ENABLE_JIT_DEEPGEMM": "0"}),
    ),
    "an older name of one": (Ask(), Ask(inherited={"SGL_USE_DEEPGEMM_BMM": "1"})),
    "the compiler": (Ask(), Ask(inherited={"CXX": "clang++"})),
    "a switch whose name ends as an inert one": (
        Ask(),
        Ask(inherited={"SGLANG_USE_AITER_FP8_PER_TOKEN": "1"}),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_compiled_code_splits(site: Site, name: str) -> None:
    one, other = CHANGES[name]
    assert site.changed(one, other) == set(COMPILED)
    site.serve(one)
    plan = site.plan(other)
    assert actions(plan) == ALL_RUN and not any(decision.cached for decision in plan.decisions)
    assert actions(site.plan(one)) == ALL_STAND


@pytest.mark.parametrize(
    "content", [("config.json", '{"hidden_size": 64}', '{"hidden_size": 128}'),
                ("hf_quant_config.json", "{}", json.dumps(MODELOPT_FP8)),
                ("adapter_config.json", '{"r": 8}', '{"r": 16}')],
)  # fmt: skip
@pytest.mark.parametrize(
    "arguments",
    [
        (*EAGLE, "--speculative-draft-model-path", "@"),
        (*EAGLE, "--speculative-draft-model-path=@"),
        ("--lora-paths", "name=@"),
        ("--lora-paths", '{"lora_name": "name", "lora_path": "@"}'),
    ],
)
def test_another_model_behind_the_same_path_splits(
    site: Site, tmp_path: Path, arguments: tuple[str, ...], content: tuple[str, str, str]
) -> None:
    name, before, after = content
    folder = tmp_path / "other"
    folder.mkdir()
    ask = Ask(arguments=tuple(word.replace("@", str(folder)) for word in arguments))
    (folder / name).write_text(before)
    (folder / "tokenizer.json").write_text("{}")
    site.serve(ask)
    one = site.signatures(ask)
    (folder / "tokenizer.json").write_text('{"x": 1}')
    assert site.signatures(ask) == one and actions(site.plan(ask)) == ALL_STAND
    (folder / name).write_text(after)
    assert actions(site.plan(ask)) == ALL_RUN
    assert all(site.signatures(ask)[stage] != one[stage] for stage in COMPILED)


def test_another_content_of_a_file_of_arguments_or_settings_splits(
    site: Site, tmp_path: Path
) -> None:
    """Arguments and variables may name files that the server reads."""
    file = tmp_path / "server.yaml"
    for ask in (
        Ask(arguments=("--modelopt-config", str(file))),
        Ask(environment=(f"SOME_PLAN={file}",)),
    ):
        file.write_text("attention-backend: fa3\n")
        site.serve(ask)
        assert actions(site.plan(ask)) == ALL_STAND
        file.write_text("attention-backend: triton\n")
        assert actions(site.plan(ask)) == ALL_RUN


# --- what does not ------------------------------------------------------------------------------

INERT_ARGUMENTS = (
    ("--log-level", "debug"), ("--served-model-name", "name"), ("--enable-cache-report",),
    ("--watchdog-timeout", "900"), ("--tool-call-parser=qwen",), ("--random-seed", "7"),
)  # fmt: skip
INERT_VARIABLES = (
    "HF_HUB_DISABLE_XET=1", "NCCL_DEBUG=INFO", "SGLANG_LOG_MS=1", "HF_HOME=/elsewhere",
    "TORCH_CPP_LOG_LEVEL=INFO",
)  # fmt: skip
IGNORED_KEYS = ("transformers_version", "attention_dropout", "use_cache", "initializer_range")
# What a host gives its container, and no server.
OWN_VARIABLES = tuple(option.variable for option in options.OPTIONS if option.variable)

SAMES: dict[str, Ask] = {
    **{" ".join(words): Ask(arguments=words) for words in INERT_ARGUMENTS},
    **{word: Ask(environment=(word,)) for word in INERT_VARIABLES},
    **{key: Ask({**CONFIG, key: "another"}) for key in IGNORED_KEYS},
    "within the text's config": Ask({**CONFIG, "text_config": {"use_cache": True}}),
    "a variable of nobody's": Ask(inherited={"EDITOR": "vi", "SGL_HOST_MODELS_ROOT": "/data"}),
    **{name: Ask(inherited={name: "another"}) for name in OWN_VARIABLES},
    "an argument's form": Ask(arguments=("--page-size=64",)),
    "the arguments' order": Ask(arguments=("--dtype", "half", "--page-size", "64")),
    "the keys' order": Ask(dict(reversed(CONFIG.items()))),
    "what the model answers": Ask(files={"generation_config.json": {"top_k": 20}}),
}
_PLAIN = {
    "within the text's config": Ask({**CONFIG, "text_config": {}}),
    "an argument's form": Ask(arguments=("--page-size", "64")),
    "the arguments' order": Ask(arguments=("--page-size", "64", "--dtype", "half")),
}


@pytest.mark.parametrize("name", SAMES)
def test_what_does_not_change_the_compiled_code_is_shared(site: Site, name: str) -> None:
    assert site.changed(_PLAIN.get(name, Ask()), SAMES[name]) == set()


@pytest.mark.parametrize(
    "ask",
    [
        Ask(arguments=("--context-length", "8192")),
        Ask({**CONFIG, "max_position_embeddings": 8192}),
        Ask({**CONFIG, "eos_token_id": [1, 2]}),
        Ask(arguments=("--mem-fraction-static", "0.7")),
    ],
)
def test_a_context_length_costs_no_kernel(site: Site, ask: Ask) -> None:
    assert site.changed(Ask(), ask) == {"inductor"}


def test_a_value_that_is_not_itself_is_the_same_value(site: Site) -> None:
    """JSON's NaN, which Python's == takes for different each time."""
    ask = Ask({**CONFIG, "x": float("nan"), "y": [float("inf")]})
    site.serve(ask)
    assert actions(site.plan(ask)) == ALL_STAND


def test_a_signature_stays_readable(site: Site) -> None:
    """Lists of thousands of modules are digests, and no secret is in a record."""
    long = {**CONFIG, "quantization_config": {"ignore": ["model.layers.0.mlp"] * 5000}}
    secrets = {"HF_TOKEN": "s3cret", "SGLANG_X_API_KEY": "s3cret"}
    ask = Ask(long, inherited=secrets)
    for decision in site.plan(ask).decisions:
        text = json.dumps(decision.to_json())
        assert len(text) < 4000 and "s3cret" not in text


# --- a server that has not run with the caches ---------------------------------------------------


@pytest.mark.parametrize("name", SAMES)
def test_another_server_runs_once_even_where_nothing_is_compiled(site: Site, name: str) -> None:
    plain, other = _PLAIN.get(name, Ask()), SAMES[name]
    site.serve(plain)
    same_server = name in ("a variable of nobody's", "what the model answers", *OWN_VARIABLES)
    plan = site.plan(other)
    assert actions(plan) == (ALL_STAND if same_server else ALL_RUN)
    if not same_server:
        [why] = {each.explanation for each in plan.decisions if each.stage.name in COMPILED}
        assert why is not None and "has not run with these caches yet" in why and len(why) < 400
        stages_of_plan = plan.to_json()["stages"]
        assert all(stages_of_plan[stage]["cached"] for stage in COMPILED), "nothing is to be taken"
    site.serve(other)
    assert actions(site.plan(other)) == actions(site.plan(plain)) == ALL_STAND, "both have run"


def test_another_image_runs_once(site: Site) -> None:
    site.serve(Ask())
    assert actions(site.plan(Ask(image="sha256:two"))) == ALL_RUN
    assert site.changed(Ask(), Ask(image="sha256:two")) == set()


def test_a_record_that_lost_a_file_forgets_who_ran_with_it(site: Site) -> None:
    site.serve(Ask())
    other = Ask(arguments=("--log-level", "debug"))
    lay("deep_gemm/kernel", b"torn")
    assert actions(site.plan(Ask()))["deep_gemm"] == "run"
    plan = site.plan(other)
    decision = next(each for each in plan.decisions if each.stage.name == "deep_gemm")
    decision.record.write(served=plan.context.served_identity)
    assert actions(site.plan(other))["deep_gemm"] == "noop"
    assert actions(site.plan(Ask()))["deep_gemm"] == "run"


@pytest.mark.slow
def test_a_record_names_the_last_servers_only(site: Site) -> None:
    for number in range(70):
        site.serve(Ask(arguments=("--served-model-name", str(number))))
    assert actions(site.plan(Ask(arguments=("--served-model-name", "0")))) == ALL_RUN
    assert actions(site.plan(Ask(arguments=("--served-model-name", "69")))) == ALL_STAND


@pytest.mark.parametrize("served", [None, 5, "sha256:x", [5, None], {}])
def test_a_record_without_servers_is_trusted_by_nobody(site: Site, served: object) -> None:
    plan = site.serve(Ask())
    for decision in plan.decisions:
        if decision.stage.name in COMPILED:
            record = {**(files.read_json(decision.record.path) or {}), "served": served}
            files.write_json(decision.record.path, record)
    assert actions(site.plan(Ask())) == ALL_RUN


# Read by SGLang 0.5.23 (environ.py), DeepGEMM, FlashInfer 0.7.2, PyTorch, Triton, flash-attn-4.
COMPILING_VARIABLES = (
    "SGLANG_JIT_DEEPGEMM_PRECOMPILE", "SGLANG_ENABLE_JIT_DEEPGEMM", "SGLANG_DG_USE_NVRTC",
    "DG_JIT_USE_NVRTC", "FLASHINFER_CUDA_ARCH_LIST", "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TRITON_DEFAULT_FP_FUSION", "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "B12X_DENSE_FUSED_QUANT",
    "CUTE_DSL_ARCH", "TILELANG_TARGET",
)  # fmt: skip


@pytest.mark.parametrize("inherits", [False, True])
@pytest.mark.parametrize("name", COMPILING_VARIABLES)
def test_a_variable_that_changes_what_is_compiled_is_never_nothing_to_do(
    site: Site, name: str, inherits: bool
) -> None:
    without = Ask()
    other = Ask(inherited={name: "0"}) if inherits else Ask(environment=(f"{name}=0",))
    for served, asked in ((without, other), (other, without)):
        wipe()
        site.serve(served)
        assert actions(site.plan(served)) == ALL_STAND
        assert actions(site.plan(asked)) == ALL_RUN
        assert site.changed(served, asked) >= set(COMPILED)


# --- any two requests ----------------------------------------------------------------------------

CONFIGS = (
    CONFIG, FP8_DYNAMIC, W4A16, {**CONFIG, "sliding_window": 4096}, {**CONFIG, "head_dim": 64},
    {**CONFIG, "max_position_embeddings": 1}, {**CONFIG, "use_cache": False},
)  # fmt: skip
ARGUMENTS = (
    *INERT_ARGUMENTS, ("--attention-backend", "fa3"), ("--context-length", "8192"),
    ("--nobody", "1"),
    ("--quantization", "fp8"), ("--enable-torch-compile",), ("--chunked-prefill-size", "4096"),
)  # fmt: skip
ENVIRONMENT = (*INERT_VARIABLES, "SGLANG_MOE_PADDING=1", "NOBODY=1", "FLASHINFER_X=1")
ASKS = st.builds(
    Ask,
    config=st.sampled_from(CONFIGS),
    files=st.sampled_from(
        ({}, {"hf_quant_config.json": MODELOPT_FP8}, {"quant.json": {"bits": 4}})
    ),
    arguments=st.lists(st.sampled_from(ARGUMENTS), max_size=3, unique=True).map(
        lambda groups: tuple(word for group in groups for word in group)
    ),
    environment=st.lists(st.sampled_from(ENVIRONMENT), max_size=2, unique=True).map(tuple),
    inherited=st.sampled_from(({}, {"SGLANG_FORCE_FP8_MARLIN": "1"}, {"EDITOR": "vi"})),
    image=st.sampled_from(("sha256:one", "sha256:two")),
    port=st.sampled_from((30000, 30001)),
)
_SMALL_CHANGES: tuple[Callable[[Ask], Ask], ...] = (
    lambda ask: ask,
    lambda ask: replace(ask, port=ask.port + 1),
    lambda ask: replace(ask, config={**ask.config, "rope_theta": 7.0}),
    lambda ask: replace(ask, files={**ask.files, "hf_quant_config.json": {"a": 1}}),
    lambda ask: replace(ask, arguments=(*ask.arguments, "--page-size", "64")),
    lambda ask: replace(ask, environment=(*ask.environment, "SGLANG_CUTLASS_MOE=1")),
    lambda ask: replace(ask, image="sha256:three"),
)
PAIRS = st.one_of(
    st.tuples(ASKS, ASKS),
    st.tuples(ASKS, st.sampled_from(_SMALL_CHANGES)).map(lambda pair: (pair[0], pair[1](pair[0]))),
)


def server_of(ask: Ask) -> object:
    """All that the server of a request is made of."""
    inherited = {name: value for name, value in ask.inherited.items() if name != "EDITOR"}
    environment = {**inherited, **dict(word.split("=", 1) for word in ask.environment)}
    return json.dumps(ask.config), json.dumps(ask.files), ask.arguments, environment, ask.image


def compiled_by(ask: Ask, stage: str) -> object:
    """By the tables above, what of a request a stage's compiled code depends on."""
    lengths = ("--context-length",) if stage != "inductor" else ()
    inert = {words[0] for words in INERT_ARGUMENTS} | set(lengths)
    groups: list[list[str]] = []
    for word in ask.arguments:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    ignored = {"use_cache", *(["max_position_embeddings"] if stage != "inductor" else [])}
    return (
        {key: value for key, value in ask.config.items() if key not in ignored},
        dict(ask.files),
        sorted(group for group in groups if group[0] not in inert),
        sorted(set(ask.environment) - set(INERT_VARIABLES)),
        ask.inherited.get("SGLANG_FORCE_FP8_MARLIN"),
    )


@settings(
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(pair=PAIRS)
@pytest.mark.slow
def test_of_any_two_requests_the_second_stands_only_where_it_is_the_first_ones_server(
    site: Site, pair: tuple[Ask, Ask]
) -> None:
    """Its stages are no-ops only for that server, and its proof also belongs to the port."""
    first, second = pair
    site.forget()
    site.serve(first)
    plan = site.plan(second)
    same_server = server_of(first) == server_of(second)
    assert actions(plan) == (ALL_STAND if same_server else ALL_RUN)
    proven = same_server and first.port == second.port
    assert plan.nothing_to_do is proven and plan.probe_wanted is not proven
    one, other = site.signatures(first), site.signatures(second)
    for stage in COMPILED:
        same = compiled_by(first, stage) == compiled_by(second, stage)
        assert (one[stage] == other[stage]) is same, stage
    site.serve(second)
    assert site.plan(second).nothing_to_do and site.plan(first).nothing_to_do, "each keeps its own"


# --- the declaration and the names of real models and servers ------------------------------------

# Of the keys that are ignored, those that SGLang's code reads, and why they may be.
READ_AND_IGNORED = {
    "_name_or_path": "set to the model's path when a config is loaded, which argv holds",
    "activation_dropout": "of nn.Dropout, which does nothing outside of training",
    "attention_dropout": "of the encoders' nn.Dropout and of their attention's signature",
    "dropout": "of nn.Dropout",
    "embedding_dropout": "of nn.Dropout",
    "hidden_dropout": "kept and never used (chatglm.py)",
    "initializer_factor": "the value of a parameter until its weights are loaded",
    "initializer_range": "the value of parameters until their weights are loaded",
    "max_position_embeddings": "how many rows a table has that kernels look positions up in",
}


def nested(config: dict[str, Any], key: str, value: object) -> Iterator[dict[str, Any]]:
    """The config with this key, at the top and in the text's config."""
    yield {**config, key: value}
    yield {**config, "text_config": {**config["text_config"], key: value}}


@pytest.mark.slow
@pytest.mark.parametrize("stage", COMPILED)
def test_each_key_of_a_real_config_is_an_input_or_known_to_change_nothing(
    site: Site, stage: str
) -> None:
    """All keys of the architectures that SGLang and transformers register."""
    ignored = STAGE[stage].depends_on.ignored_config
    config = {**CONFIG, "text_config": {"hidden_size": 1024}}
    context = site.plan(Ask(config)).context
    assert len(CONFIG_KEYS) > 900

    def signature(changed: dict[str, Any]) -> str:
        model = replace(context.model, config=changed)
        return caches.digest(STAGE[stage].signature(replace(context, model=model)))

    before = signature(config)
    for key in sorted(CONFIG_KEYS - {"text_config"}):
        for value in (0, "x", {"a": 1}):
            for changed in nested(config, key, value):
                assert (signature(changed) == before) is (key in ignored), (key, value)


def test_an_ignored_key_is_one_that_real_configs_have_and_kernels_never_read() -> None:
    assert inputs.ALWAYS_IGNORED < inputs.IGNORED_BY_KERNELS <= CONFIG_KEYS
    of_kernels = inputs.IGNORED_BY_KERNELS - inputs.ALWAYS_IGNORED
    tokens = {key for key in of_kernels if re.search("_token_(id|index)$", key)}
    assert tokens == of_kernels - {"max_position_embeddings", "n_positions"}
    assert (inputs.IGNORED_BY_KERNELS & READ_BY_SGLANG) - tokens == set(READ_AND_IGNORED)


def test_no_size_is_ignored() -> None:
    sizes = re.compile(
        r"(_size|_heads|_dim|_rank|_experts|_per_tok|_groups?|_layers|_types?|_window|cap\w*"
        r"|_act|_norm|_eps|_bits|_scale|_scaling|_theta|dtype|labels?|2label)$"
    )
    assert [key for key in CONFIG_KEYS if sizes.search(key)], "the pattern finds some"
    of_generate = {"no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_beam_groups"}
    assert {key for key in inputs.IGNORED_BY_KERNELS if sizes.search(key)} == of_generate


def test_an_inert_flag_is_one_that_a_release_of_sglang_has() -> None:
    older = {release.otlp_flag for release in releases.RELEASES if release.since < (0, 5, 9)}
    assert kernels.ARGUMENTS | kernels.LENGTHS <= frozenset().union(*FLAGS.values()) | older


@pytest.mark.parametrize("version", FLAGS)
def test_an_inert_flag_is_no_other_flags_beginning(version: str) -> None:
    """Python's parser takes a beginning for the whole, where one flag alone has it."""
    inert = kernels.ARGUMENTS | kernels.LENGTHS
    assert len(FLAGS[version]) > 300
    for flag in inert - FLAGS[version]:
        longer = {other for other in FLAGS[version] if other.startswith(flag)}
        assert len(longer) != 1 or longer <= inert, flag


def test_of_each_flag_of_sglang_the_inert_ones_alone_are_left_out() -> None:
    flags = sorted(frozenset().union(*FLAGS.values()))
    words = [word for flag in flags for word in (flag, "value")]
    for inert in (frozenset(), kernels.LENGTHS):
        taken = {group[0] for group in kernels.kernel_arguments(words, inert)}
        assert taken == set(flags) - kernels.ARGUMENTS - inert
    assert "--chunked-prefill-size" in taken and "--sampling-defaults" in taken


# What the pattern of inert variables may take of SGLang's own.
INERT_SGLANG = re.compile(
    r"\w*(PORT|_PORT_BASE|LOG_\w+|OTLP_\w+|PROFILER_DIR|WARMUP_TIMEOUT|KEEP_ALIVE)"
    "|EXA_API_KEY|HF_HUB_DISABLE_XET"
)


def test_of_each_variable_of_sglang_the_inert_ones_alone_are_left_out() -> None:
    values = dict.fromkeys(VARIABLES, "1")
    left = VARIABLES - kernels.kernel_environment(values, {}).keys() - kernels._PLACES
    assert len(VARIABLES) > 700 and 10 < len(left) < 30
    assert [name for name in left if not INERT_SGLANG.fullmatch(name)] == []
    inherited = kernels.kernel_environment({}, values)
    ours = {name for name in VARIABLES if name.startswith(("SGLANG_", "FLASHINFER_"))}
    assert ours - inherited.keys() <= left | kernels._PLACES


# Where each writes without its variable (see places.py for where that was read): a new container
# has none of these folders.
UNLED = {
    "CUDA_CACHE_PATH": "~/.nv/ComputeCache",
    "CUTE_DSL_CACHE_DIR": "/tmp/<user>/cutlass_python_cache",
    "FLASHINFER_WORKSPACE_BASE": "~/.cache/flashinfer",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "/tmp/<user>/flash_attention_cute_dsl_cache",
    "TILELANG_CACHE_DIR": "~/.tilelang/cache",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor_<user>",
    "TORCH_EXTENSIONS_DIR": "~/.cache/torch_extensions",
    "TRITON_CACHE_DIR": "~/.triton/cache",
    "TVM_FFI_CACHE_DIR": "~/.cache/tvm-ffi",
}
# Below SGLANG_CACHE_DIR by default (0.5.23, environ.py).
BELOW_ANOTHER = {"SGLANG_CUTE_AOT_CACHE_DIR"}


def test_each_variable_that_leads_to_a_cache_leads_into_the_profiles() -> None:
    """FIRST_CONTACT 11: what lies elsewhere is gone with the container, and never shared."""
    of_sglang = {name for name in VARIABLES if re.fullmatch(r"SGLANG_\w*CACHE_DIR", name)}
    assert {"SGLANG_CACHE_DIR", *BELOW_ANOTHER} <= of_sglang, "the pattern finds them"
    assert (of_sglang - BELOW_ANOTHER) | UNLED.keys() <= CACHE_VARIABLES.keys()


def test_a_server_fills_every_released_stage_but_the_tuning() -> None:
    assert {"deep_gemm", "flashinfer", "inductor"} <= set(COMPILED) <= set(STAGE) - {"moe_tune"}


def test_a_signature_does_not_depend_on_what_is_passed_over(site: Site) -> None:
    """Reading a signature changes neither the config nor the context."""
    plan = site.plan(Ask(FP8_DYNAMIC))
    config = copy.deepcopy(plan.context.model.config)
    first = [decision.signature for decision in plan.decisions]
    assert plan.context.model.config == config
    assert [decision.signature for decision in site.plan(Ask(FP8_DYNAMIC)).decisions] == first
