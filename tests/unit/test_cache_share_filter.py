"""Who takes, gives and makes what: the filters of the roles cache_share and image, over made-up
fleets.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.slice_bench.sglang.plugins.filter import fleet
from ansible_collections.slice_bench.sglang.plugins.filter.fleet import (
    FilterModule,
    cache_from,
    cache_group,
    cache_lacks,
    cache_left,
    cache_shard_items,
    cache_shares,
    image_round,
    image_state,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.labels import (
    INPUTS_LABEL,
)
from hypothesis import given, settings
from hypothesis import strategies as st

STAGES = ("deep_gemm", "moe_tune", "flashinfer", "inductor")
FOLDER = Path(fleet.__file__).parent
examples = settings(max_examples=300, derandomize=True)
States = dict[str, dict[str, Any]]
VARIABLES = {
    "done": "provider_prep_done",
    "lacks": "cache_share_lacks",
    "asked": "cache_share_asked",
}


def plan(status: str = "would_run", /, **keys: str | None) -> dict[str, Any]:
    return {
        "plan": {"stages": {stage: {"status": status, "key": key} for stage, key in keys.items()}}
    }


def result(**keys: str | None) -> dict[str, Any]:
    return {
        "result": {"stages": {stage: {"status": "ok", "key": key} for stage, key in keys.items()}}
    }


def named(*stages: str) -> list[dict[str, Any]]:
    return [{"stage": stage, "name": f"{stage}-1"} for stage in stages]


def cache_round(states: States, shards: int = 1) -> dict[str, dict[str, Any]]:
    """The round of hosts whose variables say so."""
    variables = {
        host: {VARIABLES[key]: value for key, value in state.items()}
        for host, state in states.items()
    }
    return fleet.cache_round(variables, shards)


# --- what a host wants, lacks and takes -----------------------------------------------------------


def test_hosts_that_want_the_same_are_a_group_whatever_is_done_there() -> None:
    one = cache_group(plan(inductor="a", moe_tune="b", deep_gemm=None))
    assert (
        cache_group(plan("noop", moe_tune="b", inductor="a"))
        == one
        == cache_group(result(inductor="a", moe_tune="b", flashinfer=None))
    )
    others = [
        cache_group(plan(**keys))
        for keys in ({"inductor": "b", "moe_tune": "a"}, {"inductor": "a"}, {"flashinfer": "a"}, {})
    ]
    assert len({one, *others}) == 5


@pytest.mark.parametrize(
    "done",
    [{}, {"plan": None}, {"result": {"stages": [1]}}, {"failed": True, "msg": "no container"}],
)
def test_what_is_no_prep_is_told(done: dict[str, Any]) -> None:
    with pytest.raises(AnsibleFilterError, match="registered as provider_prep_done"):
        cache_group(done)


def test_a_host_lacks_what_would_run_and_is_not_its_own_work() -> None:
    stages = {
        "deep_gemm": {"status": "would_run", "key": "a"},
        "moe_tune": {"status": "would_run", "key": "b"},
        "flashinfer": {"status": "noop", "key": "c"},
        "inductor": {"status": "would_run", "key": None},
    }
    done = {"plan": {"stages": stages}}
    assert cache_lacks(done, {}) == [
        {"stage": "deep_gemm", "name": "deep_gemm-a"},
        {"stage": "moe_tune", "name": "moe_tune-b"},
    ]
    # The variable sgl_stages calls the tuning moe.
    assert cache_lacks(done, {"moe": "rebuild", "deep_gemm": "ensure"}) == [
        {"stage": "deep_gemm", "name": "deep_gemm-a"}
    ]
    assert cache_lacks(result(inductor="a"), {}) == []


def test_a_host_with_whole_caches_lacks_nothing_and_can_give_them() -> None:
    """Its server only has to show that they are warm, which each host's own does."""
    cached = {"plan": {"stages": {"inductor": {"status": "would_run", "key": "a", "cached": True}}}}
    cold = plan(inductor="a")
    states = {
        host: {"done": done, "lacks": cache_lacks(done, {}), "asked": False}
        for host, done in (("cold", cold), ("cached", cached))
    }
    assert states["cached"]["lacks"] == []
    assert cache_round(states) == {"cold": {"maker": "cold", "giver": "cached", "shards": []}}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_that_is_to_be_rebuilt_is_not_taken(stage: str) -> None:
    done = plan(**dict.fromkeys(STAGES, "a"))
    mode = {"moe_tune": "moe"}.get(stage, stage)
    assert [item["stage"] for item in cache_lacks(done, {mode: "rebuild"})] == [
        name for name in STAGES if name != stage
    ]


def test_what_was_taken_whole_is_not_lacking_any_more() -> None:
    taken = {
        "deep_gemm-1": {"status": "standing", "finished": True},
        "moe_tune-1": {"status": "imported", "finished": False},
        "flashinfer-1": {"status": "absent"},
        "inductor-1": {"status": "imported", "finished": True},
    }
    assert cache_left(named(*STAGES), {"items": taken}) == named("moe_tune", "flashinfer")
    assert cache_left(named(*STAGES), {"items": {}}) == named(*STAGES)


def test_what_was_given_is_taken_by_its_digest() -> None:
    items = {
        "inductor-1": {"status": "given", "finished": True, "from": "r@sha256:1"},
        "deep_gemm-1": {"status": "there", "from": "r@sha256:2"},
        "flashinfer-1": {"status": "unfinished"},
    }
    by_digest = [
        {**item, "from": f"r@sha256:{number}"}
        for item, number in zip(named("inductor", "deep_gemm"), (1, 2), strict=True)
    ]
    assert cache_from(
        named("inductor", "deep_gemm", "flashinfer"), {"items": items}
    ) == by_digest + named("flashinfer")
    for nothing in (
        {},
        {"failed": True, "msg": "x"},
        {"items": {"inductor-1": {"status": "given", "digest": "sha256:3"}}},
    ):
        assert cache_from(named("inductor"), nothing) == named("inductor")


def test_batch_sizes_that_were_finished_so_far_are_looked_for_by_their_own_name() -> None:
    # They are signed by another name than that of all of them, which a digest does not tell.
    items = {"moe_tune-1": {"status": "given", "finished": False, "from": "r@sha256:1"}}
    assert cache_from(named("moe_tune"), {"items": items}) == named("moe_tune")


# --- batch sizes over several hosts ---------------------------------------------------------------

SEVERAL = st.lists(
    st.sampled_from([f"host-{number}" for number in range(9)]), unique=True, min_size=1
)


@pytest.mark.slow
@examples
@given(sizes=st.lists(st.integers(1, 10_000), unique=True), hosts=SEVERAL)
def test_each_batch_size_falls_to_one_host_and_each_host_gets_as_many(
    sizes: list[int], hosts: list[str]
) -> None:
    shares = {host: cache_shares(sizes, hosts, host) for host in hosts}
    assert sorted(itertools.chain.from_iterable(shares.values())) == sorted(sizes)
    assert max(map(len, shares.values())) - min(map(len, shares.values())) <= 1
    # A large size takes longer than a small one: no host gets all the large ones.
    for one, other in itertools.pairwise(hosts):
        assert all(
            earlier < later for earlier, later in zip(shares[one], shares[other], strict=False)
        )


@examples
@given(hosts=SEVERAL, stages=st.lists(st.sampled_from(STAGES), unique=True))
def test_each_host_gives_its_share_by_a_name_of_its_own(
    hosts: list[str], stages: list[str]
) -> None:
    everyones = cache_shard_items(named(*stages), hosts)
    each = [cache_shard_items(named(*stages), hosts, host) for host in hosts]
    assert list(itertools.chain.from_iterable(each)) == everyones
    assert (
        len({item["name"] for item in everyones})
        == len(everyones)
        == len(hosts) * stages.count("moe_tune")
    )
    assert all(item["stage"] == "moe_tune" and item["whole"] is False for item in everyones)


# --- rounds ---------------------------------------------------------------------------------------


@st.composite
def fleets(draw: st.DrawFn) -> States:
    """What `cache_round` decides by, of hosts of a few kinds: at all stages of a run, some of
    batches whose turn is not yet.
    """
    states = {}
    for number in range(draw(st.integers(0, 8))):
        keys = {
            "inductor": draw(st.sampled_from("ab")),
            "moe_tune": draw(st.sampled_from(["c", None])),
        }
        done = draw(
            st.sampled_from([None, {"failed": True}, plan(**keys), plan(**keys), result(**keys)])
        )
        lacks = cache_lacks(done, {}) if done and "plan" in done and draw(st.integers(0, 4)) else []
        states[f"host-{number}"] = {
            "done": done,
            "lacks": lacks,
            "asked": draw(st.sampled_from([None, False, False, True])),
        }
    return states


def members(states: States, host: str) -> list[str]:
    """The hosts that want the same as this one, in order."""
    return [
        name
        for name, state in states.items()
        if state["done"]
        and not state["done"].get("failed")
        and cache_group(state["done"]) == cache_group(states[host]["done"])
    ]


@pytest.mark.slow
@examples
@given(states=fleets(), shards=st.integers(1, 4))
def test_a_round_gives_every_host_that_lacks_something_a_maker_of_its_group(
    states: States, shards: int
) -> None:
    decided = cache_round(states, shards)
    assert set(decided) == {host for host, state in states.items() if state["lacks"]}
    for host, part in decided.items():
        group = members(states, host)
        lacking = [name for name in group if states[name]["lacks"]]
        having = [name for name in group if "result" in states[name]["done"]]
        assert part["maker"] == lacking[0]
        asked = any(states[name]["asked"] for name in group)
        assert part["giver"] == (having[0] if having and not asked else ""), (
            "once, and by one that has it"
        )
        assert part["giver"] not in lacking
        assert part["shards"] in ([], lacking[:shards]) and len(part["shards"]) != 1
        assert bool(part["shards"]) == (shards > 1 and len(lacking) > 1)
        assert all(decided[name] == part for name in lacking), "they all know the same"


def test_a_host_that_has_it_and_lacks_something_itself_is_not_asked() -> None:
    states = {
        "one": {"done": result(inductor="a"), "lacks": named("inductor"), "asked": None},
        "two": {"done": plan(inductor="a"), "lacks": named("inductor"), "asked": None},
    }
    assert [part["giver"] for part in cache_round(states).values()] == ["", ""]


@pytest.mark.slow
@examples
@given(
    states=fleets(), fails=st.lists(st.booleans(), min_size=20, max_size=20), gives=st.booleans()
)
def test_rounds_come_to_an_end_and_each_group_makes_it_once(
    states: States, fails: list[bool], gives: bool
) -> None:
    """The tasks of roles/cache_share/tasks/round.yml: makers may fail, and so may the host that is
    asked.
    """
    outcomes = iter(fails + [False] * 20)
    made: dict[str, int] = {}
    asked: dict[str, int] = {}
    had = {
        cache_group(state["done"])
        for state in states.values()
        if state["done"] and "result" in state["done"]
    }
    asked_before = {
        cache_group(s["done"])
        for s in states.values()
        if s["done"] and not s["done"].get("failed") and s["asked"]
    }
    for _ in range(30):
        lacking = {host for host, state in states.items() if state["lacks"]}
        if not lacking:
            break
        for host, part in cache_round(states).items():
            states[host]["asked"] = states[host]["asked"] or bool(part["giver"])
            group = cache_group(states[host]["done"])
            if host != part["maker"]:
                continue
            if part["giver"]:
                asked[group] = asked.get(group, 0) + 1
                if gives:
                    for name in members(states, host):
                        states[name]["lacks"] = []
            elif next(outcomes):
                states[host]["done"], states[host]["lacks"] = {"failed": True}, []
            else:
                made[group] = made.get(group, 0) + 1
                for name in members(states, host):
                    states[name]["lacks"] = []
    assert not any(state["lacks"] for state in states.values())
    assert set(made.values()) <= {1} and set(asked.values()) <= {1}
    assert not gives or not set(made) & (had - asked_before), (
        "nothing is made that a host has and gives"
    )


# --- the image ------------------------------------------------------------------------------------

INPUTS = f"sha256:{'0123456789abcdef' * 4}"
NAME = "image-0123456789abcdef-aarch64"
HOST = {"architecture": "aarch64", "image": None}


def image(inputs: str = INPUTS, name: str = "sglang-dev:gh200") -> dict[str, Any]:
    return {"name": name, "id": "sha256:1", "labels": {INPUTS_LABEL: inputs}}


@pytest.mark.parametrize(
    ("known", "name", "has"),
    [
        (
            {
                "image_built": {"inputs": INPUTS, "image": None},
                "preflight_host": {**HOST, "image": image("sha256:old")},
            },
            NAME,
            None,
        ),
        (
            {"image_built": {"inputs": INPUTS, "image": image()}, "preflight_host": HOST},
            NAME,
            "sglang-dev:gh200",
        ),
        # Its turn comes later, it pulled its image, or it keeps its container and needs none.
        ({"preflight_host": {**HOST, "image": image()}}, NAME, "sglang-dev:gh200"),
        (
            {"image_built": {"inputs": None, "image": image()}, "preflight_host": HOST},
            NAME,
            "sglang-dev:gh200",
        ),
        (
            {
                "image_built": {"skipped": True, "changed": False},
                "preflight_host": {**HOST, "image": image()},
            },
            NAME,
            "sglang-dev:gh200",
        ),
        ({"preflight_host": HOST}, None, None),
        (
            {"preflight_host": {**HOST, "image": {**image(), "labels": {}}}},
            None,
            "sglang-dev:gh200",
        ),
        ({}, None, None),
    ],
    ids=["lacks", "has", "later", "pulled", "kept", "nothing", "another's", "unknown"],
)
def test_a_host_is_known_by_its_image_or_by_the_one_that_it_wants(
    known: dict[str, Any], name: str | None, has: str | None
) -> None:
    assert image_state(known) == {"name": name, "image": has, "lacks": False, "asked": False}


def test_a_host_says_what_it_lacks_and_whom_it_asked() -> None:
    known = {"image_built": {"inputs": INPUTS, "image": None}, "preflight_host": HOST}
    assert image_state({**known, "image_share_lacks": True, "image_share_asked": True}) == {
        "name": NAME, "image": None, "lacks": True, "asked": True,
    }  # fmt: skip
    shares: dict[str, Any] = {
        "cache_share_lacks": [],
        "cache_share_asked": True,
        "provider_prep_done": {"plan": {}},
    }
    assert fleet._cache_state(shares) == {"done": {"plan": {}}, "lacks": [], "asked": True}
    assert fleet._cache_state({}) == {"done": None, "lacks": None, "asked": None}


@st.composite
def kinds(draw: st.DrawFn) -> States:
    states = {}
    for number in range(draw(st.integers(0, 8))):
        has = draw(st.sampled_from([None, None, f"sglang-dev:{number}"]))
        states[f"host-{number}"] = {
            "name": draw(st.sampled_from([NAME, NAME, "image-1-x86_64", None])),
            "image": has,
            "lacks": False,
            "asked": draw(st.integers(0, 9)) == 0,
        }
    for state in states.values():
        state["lacks"] = (
            state["name"] is not None and state["image"] is None and draw(st.booleans())
        )
    return states


@examples
@given(states=kinds())
def test_a_round_has_an_image_given_before_anybody_builds_it(states: States) -> None:
    decided = image_round(states)
    assert set(decided) == {host for host, state in states.items() if state["lacks"]}
    for host, part in decided.items():
        kind = [name for name, state in states.items() if state["name"] == states[host]["name"]]
        having = [name for name in kind if states[name]["image"]]
        assert part["builder"] == next(name for name in kind if states[name]["lacks"])
        asked = any(states[name]["asked"] for name in kind)
        assert part["giver"] == (having[0] if having and not asked else "")
        assert part["image"] == (states[part["giver"]]["image"] if part["giver"] else ""), (
            "by the name that it has there"
        )


@pytest.mark.slow
@examples
@given(states=kinds(), fails=st.lists(st.booleans(), min_size=20, max_size=20), gives=st.booleans())
def test_rounds_end_with_an_image_on_each_host_that_has_not_failed(
    states: States, fails: list[bool], gives: bool
) -> None:
    """The tasks of roles/image/tasks/share_round.yml, where what is built can be given."""
    outcomes = iter(fails + [False] * 20)
    built: dict[str, int] = {}
    asked: dict[str, int] = {}
    had = {state["name"] for state in states.values() if state["image"]}
    asked_before = {state["name"] for state in states.values() if state["asked"]}
    for _ in range(30):
        if not any(state["lacks"] for state in states.values()):
            break
        for host, part in image_round(states).items():
            states[host]["asked"] = states[host]["asked"] or bool(part["giver"])
            if host != part["builder"]:
                continue
            name = states[host]["name"]
            if part["giver"]:
                asked[name] = asked.get(name, 0) + 1
            elif next(outcomes):
                del states[host]
                continue
            else:
                built[name] = built.get(name, 0) + 1
            if gives or not part["giver"]:
                for state in states.values():
                    state["lacks"] = state["lacks"] and state["name"] != name
    assert not any(state["lacks"] for state in states.values())
    assert set(built.values()) <= {1} and set(asked.values()) <= {1}
    assert not gives or not set(built) & (had - asked_before), (
        "nobody builds what a host has and gives"
    )


# --- what ansible-doc says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", FilterModule().filters().values(), ids=FilterModule().filters()
)
def test_each_filter_is_documented_as_it_is_called(function: Callable[..., Any]) -> None:
    document = yaml.safe_load((FOLDER / f"{function.__name__}.yml").read_text(encoding="utf-8"))
    about, options = document["DOCUMENTATION"], document["DOCUMENTATION"]["options"]
    first, *others = inspect.signature(function).parameters.values()
    assert about["name"] == function.__name__ and list(options) == [
        "_input",
        *(each.name for each in others),
    ]
    assert about.get("positional", "") == ", ".join(each.name for each in others)
    assert options["_input"]["required"] is True
    for each in others:
        assert options[each.name].get("required", False) is (
            each.default is inspect.Parameter.empty
        )
        if each.default not in (inspect.Parameter.empty, None):
            assert options[each.name]["default"] == each.default
    assert function.__name__ in document["EXAMPLES"] and document["RETURN"]["_value"]["type"]


def test_no_document_is_of_a_filter_that_is_gone() -> None:
    filters = set(FilterModule().filters())
    assert {path.stem for path in FOLDER.glob("*.yml")} == filters
