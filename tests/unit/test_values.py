"""Each variable of the contract refuses what it cannot be, in one sentence, and takes its default
and the examples of its kind.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleValueOmittedError
from ansible_collections.slice_bench.sglang.plugins.action import sgl_values
from ansible_collections.slice_bench.sglang.plugins.plugin_utils import profile_files
from jinja2.nativetypes import NativeEnvironment

from sgl_admin.contract import options, values
from sgl_admin.contract.options import Option

LONGEST = 400
LONG = "x" * 5000

# Wrong values of each kind: of a text, of one item, or of the mapping.
WRONG_KINDS: dict[str, tuple[Any, ...]] = {
    "profile": ("../p", "/etc/p", "a//b", "a b", "-p", "p/", "p" * 201),
    "line": ("a\nb", "a\0b", "   ", "\x1b[31m", ["a"], None),
    "word": ("fp8 w8a8", "", "bf16\n", "--x", {}),
    "token": ("two words", "a\nb", "käse", ["t"], 3.5j),
    "model": ("/abs/model", "../model", "a//b", "a/./b", "~/m", "a\nb"),
    "revision": ("-f", "a b", "a..b", "refs/heads/", "x^", "a:b", "v1~2"),
    "user": ("a b", "root:root", "-u", "a/b", "x\n", ""),
    "host_path": ("relative/path", "a", "/a\nb", "/a\0b", "", ["/a"], "./x"),
    "mounted": ("relative", "/a:b", "/a\nb", "/", "//", "", "C:/x", {"p": 1}),
    "controller_path": ("a\nb", "a\0b", "  ", ["x"], {}),
    "controller_file": ("a\nb", "a\0b", "  ", ["x"], {}),
    "controller_key": ("a\nb", "a\0b", "  ", ["x"], {}),
    "url": (
        "https://user:pass@mirror.example.com",
        "https://mirror.example.com/x?token=abc",
        "hub",
        "ftp://x",
        "https://",
        "http://a b",
        "https://h:99999",
        "//x/y",
        "http:///p",
    ),
    "image": ("a/UPPER", "a b", "x:", "x@sha256:12", "-x", "a//b", ":tag"),
    "image_name": ("UPPER", "a b", "x@sha256:" + 64 * "a", "x:t:t", "/x", "x:" + 129 * "t"),
    "repository": ("caches", "reg.example.com/x:tag", "library/caches", "a b", "http://r.io/x"),
    "sha256": ("abc", "sha256:" + 64 * "a", 64 * "A", 63 * "a", "", 64 * "g"),
    "cuda_version": ("13", "cuda13", "13.0.1", "v13.0", "13.x"),
    "downloads": (
        {"jeager": {"sha256": 64 * "a"}},
        {"jaeger": {"sha": 1}},
        {"jaeger": {"sha256": "abc"}},
        {"jaeger": "1.73.0"},
        {"jaeger": {"version": "../x"}},
        "jaeger",
    ),
    "container_name": ("bad name", "a", "-ab", "a/b", "a:b", "ab\n", "käse", 200 * "a"),
    "address": ("[::1]", "300.1.1.1", "fe80::1%eth0", "a b", "127.0.0.1:9090", "x_y", "", "1.2"),
    "scrape_interval": ("often", "0", "0s", "1.5s", "5", "1h", "1s1h", "16s", "-1s", "1 s"),
    "prometheus_size": ("huge", "10", "10gb", "10 GB", "0GB", "-1GB", "1.5.GB", "10kB"),
    "go_duration": ("3d", "72", "0h", "h", "-1h", "1h 30m", "1w"),
    "capability": ("SYS_FOO", "SYS ADMIN", "", "CAP_", 7, None),
    "shm_size": ("", "lots", "-1g", "0", "32 g", "32x", "32gb", "1.g"),
    "ulimit": ("nofile", "nofile:1024", "nofiles=1", "nofile=10:5", "nofile=-1:5", "stack=x"),
    "environment": (
        {"A-B": "x"},
        {"1A": "x"},
        {"A": 1},
        {"A": None},
        {"A": "x\0"},
        {"A=B": "x"},
        {"SGL_PROMETHEUS_PORT": "1"},
        {"TRITON_CACHE_DIR": "/x"},
        "A=x",
        ["A=x"],
    ),
    "public_name": ("--", "-x", "--X", "A B", "1A", "A=x", "", "--a=b"),
    "server_environment": (
        {"A B": "x"},
        {"A": ["x"]},
        {"A": True},
        {1: "x"},
        {"TRITON_CACHE_DIR": "/x"},
        "A=x",
    ),
    "server_argument": (
        "--api-key=x",
        "--api-key",
        "--api-k=x",
        "--admin-api-key",
        "",
        "a\0b",
        "a\nb",
        7.5j,
    ),
    "batch": ("lots", "0", "0%", "101%", "-1", "1.5", "50 %", -3),
}
WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "int": ("one", "1.5", 1.5, True, None, "", [1], {}, "1e3", 10**30, math.inf, "٣"),
    "float": ("one", "nan", "inf", math.nan, math.inf, None, True, [1], "1,5", 10**400),
    "bool": ("maybe", 2, "", None, [True], "tru", 1.5),
}


def wrong_items(option: Option) -> list[Any]:
    """Wrong values of a text, a number or a choice, or of each item of a list."""
    kind = option.elements or option.type
    if option.choices:
        near = option.choices[0][:-1]
        return [f"{near}x", near.upper(), "", None, 3, [option.choices[0]], "x\ny"]
    if kind in WRONG_TYPES:
        wrong = list(WRONG_TYPES[kind])
        if option.minimum is not None:
            wrong += [option.minimum - 1, str(int(option.minimum) - 1)]
        if option.maximum is not None:
            wrong += [option.maximum + 1, str(int(option.maximum) + 1)]
        return wrong
    return list(WRONG_KINDS[option.kind])


def wrong_values(option: Option) -> list[Any]:
    if option.type == "list":
        other_types = [{"a": 1}, True, 1.5, None]
        # A comma in a text parts it into items.
        return [[item] for item in wrong_items(option)] + other_types
    if option.type == "dict":
        wrong: list[Any] = ["text", ["a"], 3, None]
        wrong += [{"no_such_key": 1}] if option.parts else []
        wrong += [{part.name: item} for part in option.parts for item in wrong_items(part)]
        return wrong + list(WRONG_KINDS.get(option.kind, ()))
    # What is left out, or empty as its default is, is right.
    return [item for item in wrong_items(option) if item is not None and item != option.default]


@pytest.mark.parametrize("name", sorted(options.BY_NAME))
def test_each_wrong_value_is_one_sentence(name: str) -> None:
    option = options.BY_NAME[name]
    wrong = wrong_values(option)
    assert len(wrong) >= 3
    for value in wrong:
        found = values.problems({name: value})
        assert len(found) == 1, (value, found)
        assert name in found[0] and len(found[0]) < LONGEST, (value, found)
        assert found[0].isprintable() and not found[0].endswith("."), found
        # It says what to do.
        assert any(word in found[0] for word in (": ", "must be")), found


@pytest.mark.parametrize("name", sorted(options.BY_NAME))
def test_a_long_value_is_cut_in_the_sentence(name: str) -> None:
    for value in (LONG + "\n", [LONG], {LONG: LONG}):
        assert all(len(text) < LONGEST for text in values.problems({name: value}))


def test_defaults_are_right() -> None:
    given = {option.name: option.default for option in options.OPTIONS if not option.jinja}
    assert (
        values.problems({name: value for name, value in given.items() if value is not None}) == []
    )


@pytest.mark.parametrize("flavour", ["local", "gh200"])
def test_defaults_that_follow_from_others_are_right(flavour: str) -> None:
    """As Ansible renders them, of which only its filter `bool` and its lookups are stood in for."""
    environment = NativeEnvironment()
    environment.filters["bool"] = bool
    facts = {
        "sgl_flavour": flavour,
        "sgl_gpus": flavour != "local",
        "sgl_cache_registry": "",
        "groups": {"sglang": ["a", "b"]},
        "lookup": lambda _name, _variable: "",
    }
    given = {
        option.name: environment.from_string(f"{{{{ {option.jinja} }}}}").render(facts)
        for option in options.OPTIONS
        if option.jinja
    }
    assert len(given) > 3 and values.problems(given) == []
    # Docker's client reads them by docker/go-units, ulimit.go, ParseUlimit: split once by "=".
    assert all(limit.count("=") == 1 for limit in given["sgl_ulimits"])


RIGHT: dict[str, tuple[Any, ...]] = {
    "sgl_model": ("", "Qwen/Qwen3-8B", "tiny/qwen3-tiny", "lab/m", "a.b_c"),
    "sgl_model_revision": ("main", "v1.0", 40 * "a", "feature/x"),
    "sgl_hub_token": ("", "hf_abc"),
    "sgl_hub_endpoint": ("http://127.0.0.1:8080", "https://mirror.example.com/hub"),
    "sgl_tp": (1, "2", 8),
    "sgl_root": ("/srv/x", "~/x", "$HOME/x", "/a b/c,d", "/data/é"),
    "sgl_user": ("bench", "dom\\user", "u.v-w", "svc$", "user@lab"),
    "sgl_owner_uid": (0, "1000", 2**32 - 2),
    "sgl_space_gb": ({"docker": 10**6, "telemetry": 0.5}, {"profiles": "1.5"}),
    "sgl_image": ("sglang-dev:local", "reg.example.com:5000/a/b:t", "localhost/x"),
    "sgl_image_pull": ("a/b@sha256:" + 64 * "a", "r.io/x:1", "[::1]:5000/x"),
    "sgl_image_cuda": ("13.0", 13.0, "12.9"),
    "sgl_image_downloads": ({"jaeger": {"sha256": 64 * "a", "version": "1.73.0"}},),
    "sgl_container": ("sglang-dev", "a1", "x_y.z"),
    "sgl_bind_address": ("127.0.0.1", "0.0.0.0", "::", "10.0.0.5", "gh200-01.lab", "localhost"),
    "sgl_prometheus_port": (1, "9091", 65535),
    "sgl_scrape_interval": ("1s", "500ms", "15s", "1s500ms"),
    "sgl_tsdb_retention_size": ("10GB", "512MB", "1TiB", "1024B"),
    "sgl_trace_retention": ("72h", "1h30m", "1.5h", "500ms"),
    "sgl_capabilities": (["SYS_ADMIN", "cap_sys_nice"], "SYS_ADMIN,NET_ADMIN", ["ALL"]),
    "sgl_shm_size": ("host", "32g", "512M", "1.5g", "64GB", 1073741824),
    "sgl_ulimits": (["memlock=-1", "nofile=1024:2048"], "stack=67108864"),
    "sgl_environment": ({"HF_TOKEN": "x", "A": "line\nline"},),
    "sgl_public_names": (["--my-plugin", "MY_MODE"], "A,--b"),
    "sgl_server_env": ({"SGLANG_X": 1, "B": "y"}, {"HF_TOKEN": "x", "PGPASS": "y"}),
    "sgl_server_args": (
        ["--ssl-keyfile", "/k.pem"],
        ["--attention-backend", "fa3", "--tokenizer-path=/x"],
        ["--json-model-override-args", '{"a": 1}'],
    ),
    "sgl_moe_batch_sizes": ([1, 2], "1,2,4", ["8"], 16),
    "sgl_cache_registry": ("r.example.com/x", "localhost:5000/x/y", "r:5000/caches"),
    "sgl_batch": ("25%", "100%", 5, "3"),
    "sgl_max_fail_percentage": (0, 100, "20", 12.5),
    "sgl_keep_running": (True, "yes", "False", 0, 1),
    "sgl_stages": ({"moe": "skip"}, {}),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, row in RIGHT.items() for value in row]
)
def test_a_right_value_passes(name: str, value: Any) -> None:
    assert values.problems({name: value}) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sgl_modle", "sgl_model"),
        ("sgl_protmetheus_port", "sgl_prometheus_port"),
        ("sgl_conatiner", "sgl_container"),
        ("sgl_promethues_port", "sgl_prometheus_port"),
        ("sgl_sever_args", "sgl_server_args"),
        ("sgl-model", "sgl_model"),
        ("slg_model", "sgl_model"),
        ("SGL_MODEL", "sgl_model"),
        ("sglang_container", "sgl_container"),
        ("sgl_stages.moe", '{"sgl_stages": {"moe": ...}}'),
        ("sgl_space_gb.docker", '{"sgl_space_gb": {"docker": ...}}'),
        ("sgl_volumes", "not a variable of this collection"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, meant: str) -> None:
    [problem] = values.problems({name: "x"})
    assert problem.startswith(name) and meant in problem and len(problem) < LONGEST


@pytest.mark.parametrize("name", ["lab_model", "vault_hub_token", "ansible_user", "sql_model", "x"])
def test_another_name_is_nobodys_business(name: str) -> None:
    assert values.problems({name: "x"}) == []


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("sgl_stages", {"inducter": "skip"}, "inductor"),
        ("sgl_stages", {"moe": "skipp"}, "did you mean skip?"),
        ("sgl_space_gb", {"dokcer": 1}, "docker"),
        ("sgl_flavour", "gh201", "did you mean gh200?"),
        ("sgl_capabilities", ["SYS_ADMN"], "did you mean SYS_ADMIN?"),
        ("sgl_image_source", "pul", "did you mean pull?"),
    ],
)
def test_the_nearest_choice_is_named(name: str, value: Any, meant: str) -> None:
    [problem] = values.problems({name: value})
    assert meant in problem


@pytest.mark.parametrize(
    "given",
    [
        {"sgl_hub_token": "hunter2 hunter2"},
        {"sgl_environment": {"A": "hunter2\0"}},
        {"sgl_environment": {"A-B": "hunter2"}},
        {"sgl_environment": "TOKEN=hunter2"},
        {"sgl_server_args": ["--api-key=hunter2"]},
        {"sgl_server_args": ["--admin-a=hunter2"]},
        {"sgl_server_args": ["hunter2\n"]},
        {"sgl_server_env": {"A": "hunter2\0"}},
        {"sgl_server_env": {"A-B": "hunter2"}},
        {"sgl_server_env": "TOKEN=hunter2"},
    ],
)
def test_a_secret_is_never_shown(given: dict[str, Any]) -> None:
    [problem] = values.problems(given)
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sgl_prometheus_port": 9100}, ("sgl_prometheus_port", "sgl_node_exporter_port", "9100")),
        ({"sgl_sglang_port": "9090"}, ("sgl_prometheus_port", "sgl_sglang_port", "9090")),
        (
            {"sgl_flavour": "gh200", "sgl_jaeger_ui_port": 9400},
            ("sgl_jaeger_ui_port", "sgl_dcgm_exporter_port"),
        ),
        (
            {"sgl_flavour": "gh200", "sgl_otlp_grpc_port": 30000},
            ("sgl_otlp_grpc_port", "sgl_sglang_port"),
        ),
        ({"sgl_model_source": "hub", "sgl_model_from": "/mnt/x"}, ("sgl_model_from", "hub")),
        ({"sgl_model_source": "local", "sgl_model_from": "x/y"}, ("sgl_model_from", "local")),
        ({"sgl_cache_share": "registry"}, ("sgl_cache_share", "sgl_cache_registry")),
    ],
)
def test_values_that_contradict_each_other(given: dict[str, Any], words: tuple[str, ...]) -> None:
    [problem] = values.problems(given)
    assert all(word in problem for word in words) and len(problem) < LONGEST


def test_a_port_of_another_flavour_does_not_collide() -> None:
    assert values.problems({"sgl_prometheus_port": 9400}) == []


def test_everything_wrong_is_said_at_once() -> None:
    found = values.problems({"sgl_tp": 0, "sgl_modle": "x", "sgl_capabilities": ["A", "B"]})
    assert len(found) == 4


class ValuesAction(sgl_values.ActionModule):
    """The action without Ansible around it."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._templar = SimpleNamespace(template=lambda value: value)
        self._loader = None
        self._task = SimpleNamespace(async_val=0, check_mode=False)
        self._connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nowhere"))
        self.warned: list[str] = []

    def warn(self, text: object) -> None:
        self.warned.append(str(text))

    def validate_argument_spec(self, argument_spec: Any = None, **_: Any) -> Any:
        given = {name: option.get("default") for name, option in argument_spec.items()}
        return None, {**given, **self._arguments}


@pytest.mark.parametrize(
    ("given", "ready_for", "named"),
    [
        (["one", "two"], "prep", ["one", "two"]),
        ([], "prep", []),
        (["one"], "stop", []),
    ],
)
def test_a_host_says_which_profiles_it_will_prepare(
    monkeypatch: pytest.MonkeyPatch, given: object, ready_for: str, named: list[str]
) -> None:
    monkeypatch.setattr(sgl_values.profile_files, "problems", lambda *_: [])
    monkeypatch.setattr(sgl_values.profile_files, "covered", lambda *_: [])
    known = {"sgl_profiles": given, "inventory_hostname": "h", "hostvars": {"h": {}}}
    answer = ValuesAction(ready_for=ready_for).run(None, known)
    assert (answer["changed"], answer["profiles"]) == (False, named)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sgl_model": "other/model", "sgl_model_source": "hub"}, "sgl_model, sgl_model_source"),
        ({"sgl_tp": 4, "sgl_stages": {"perf": "ensure"}}, "sgl_stages, sgl_tp"),
        # What a profile leaves to the inventory, or says alike, has its effect.
        ({"sgl_model_revision": "main", "sgl_tp": 1}, None),
        ({}, None),
    ],
)
def test_what_a_profile_covers_of_the_inventory_is_named(
    given: dict[str, object], named: str | None
) -> None:
    name = "custom/sglang/qwen3-next-80b-fp8-baseline"
    said = profile_files.covered([name], None, given)
    assert len(said) == (named is not None)
    for sentence in said:
        assert f"not used from the inventory: {named}. Profile" in sentence and name in sentence


def test_a_host_warns_of_what_its_inventory_sets_and_its_profile_sets_too() -> None:
    known = {
        "sgl_profiles": ["custom/sglang/qwen3-next-80b-fp8-baseline"],
        "sgl_model": "other/model",
        # By a role's defaults, not by the inventory.
        "sgl_tp": 4,
        "inventory_hostname": "h",
        "hostvars": {"h": {"sgl_model": "other/model"}},
    }
    action = ValuesAction()
    answer = action.run(None, known)
    assert "failed" not in answer, answer
    [warning] = action.warned
    assert warning.startswith("not used from the inventory: sgl_model. Profile")


def test_a_host_without_profiles_says_none() -> None:
    assert ValuesAction().run(None, {})["profiles"] == []


def test_what_another_host_omits_is_as_if_it_were_not_set() -> None:
    class Variables(dict):
        def __getitem__(self, name: str) -> Any:
            if (value := super().__getitem__(name)) is None:
                raise AnsibleValueOmittedError
            return value

    other = Variables(sgl_model=None, sgl_tp=0)
    answer = ValuesAction(hosts=["other"]).run(None, {"hostvars": {"other": other}})
    assert answer["msg"] == "host other: sgl_tp is 0: set it to a whole number from 1 to 1024"
