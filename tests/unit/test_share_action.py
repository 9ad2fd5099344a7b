"""The action sgl_share: what goes from host to host by which way and under which name, what is
refused, and what it leaves behind.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible_collections.slice_bench.sglang.plugins.action import sgl_prep as sgl_prep_action
from ansible_collections.slice_bench.sglang.plugins.doc_fragments.options import ModuleDocFragment
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import stages
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.options import prep_spec
from ansible_collections.slice_bench.sglang.plugins.modules import sgl_prep

from tests.doubles.share_action import REGISTRY, Fleet, Work, digest

INDUCTOR: dict[str, Any] = {"name": "inductor-1f0c2a9b7d3e4f56", "stage": "inductor"}
TUNING: dict[str, Any] = {"name": "moe_tune-2f0c2a9b7d3e4f56", "stage": "moe_tune"}
IMAGE: dict[str, Any] = {
    "kind": "image",
    "name": "image-0123456789abcdef-aarch64",
    "image": "sglang-dev:gh200",
}
WAYS: dict[str, dict[str, Any]] = {
    "relay": {},
    "registry": {"through": "registry", "registry": REGISTRY},
}
CONTENT = os.urandom(4096)
ROLES = Path(__file__).resolve().parents[2] / "roles"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, {"one": {INDUCTOR["name"]: Work(CONTENT)}})


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    return WAYS[request.param]


def status(answer: dict[str, Any], item: dict[str, Any] = INDUCTOR) -> str:
    return str(answer["items"][item["name"]]["status"])


def left(fleet: Fleet) -> list[str]:
    """What lies on hosts, and what the controller's folder has beside whole archives."""
    on_hosts = [host for host in fleet.work if fleet.remote(host).exists()]
    assert fleet.most <= 1, "an archive makes room for the next one"
    store = [path.name for path in fleet.store.glob("*")] if fleet.store.exists() else []
    return on_hosts + [name for name in store if name.startswith(".") and name != ".lock"]


# --- caches ---------------------------------------------------------------------------------------


def test_what_one_host_gives_another_takes_byte_for_byte(fleet: Fleet, way: dict[str, Any]) -> None:
    given = fleet.run("one", "given", INDUCTOR, **way)
    assert given["changed"] is True and status(given) == "given"
    told = given["items"][INDUCTOR["name"]]
    assert (told["digest"], told["bytes"], told["finished"]) == (
        digest(CONTENT),
        len(CONTENT),
        True,
    )
    taken = fleet.run("two", "taken", INDUCTOR, **way)
    assert (
        taken["changed"] is True
        and status(taken) == "imported"
        and fleet.work["two"][INDUCTOR["name"]].content == CONTENT
    )
    source = (
        f"{REGISTRY}@{digest(CONTENT)}"
        if way
        else f"controller:{fleet.store / INDUCTOR['name']}.tar"
    )
    assert taken["items"][INDUCTOR["name"]] == {
        "status": "imported",
        "finished": True,
        "files": 1,
        "bytes": len(CONTENT),
        "digest": digest(CONTENT),
        "from": source,
    }
    assert left(fleet) == [] and fleet.warnings == []
    again = fleet.run("two", "taken", INDUCTOR, **way)
    assert again["changed"] is False and status(again) == "standing"


def test_it_is_given_once(fleet: Fleet, way: dict[str, Any]) -> None:
    fleet.run("one", "given", INDUCTOR, **way)
    fleet.steps()
    again = fleet.run("one", "given", INDUCTOR, **way)
    assert (
        again["changed"] is False
        and status(again) == "there"
        and fleet.steps() == (["look"] if way else [])
    )
    assert again["items"][INDUCTOR["name"]].get("from") == (
        f"{REGISTRY}@{digest(CONTENT)}" if way else None
    )


def test_what_nobody_gave_is_absent_and_what_is_not_finished_is_not_given(
    fleet: Fleet, way: dict[str, Any]
) -> None:
    taken = fleet.run("two", "taken", INDUCTOR, **way)
    assert taken["changed"] is False and taken["items"] == {INDUCTOR["name"]: {"status": "absent"}}
    given = fleet.run("two", "given", INDUCTOR, **way)
    assert (
        given["changed"] is False
        and status(given) == "unfinished"
        and fleet.registry == {}
        and left(fleet) == []
    )


def test_several_items_go_in_one_run_and_each_host_asks_for_its_stage_alone(
    fleet: Fleet, way: dict[str, Any]
) -> None:
    fleet.work["one"][TUNING["name"]] = Work(b"tuned")
    prep = {
        "model": "/models/m",
        "tp": 2,
        "moe": "ensure",
        "inductor": "rebuild",
        "server_args": ["--x"],
    }
    fleet.run("one", "given", INDUCTOR, TUNING, prep=prep, **way)
    taken = fleet.run("two", "taken", TUNING, INDUCTOR, prep=prep, **way)
    assert list(taken["items"]) == [TUNING["name"], INDUCTOR["name"]] and left(fleet) == []
    inductor, tuning, again, once_more = fleet.requests
    assert (again, once_more) == (tuning, inductor), "what is wanted is what was packed"
    assert inductor["stages"] == {**dict.fromkeys(stages.NAMES, "skip"), "inductor": "rebuild"}
    assert tuning["stages"]["moe_tune"] == "ensure" and tuning["stages"]["inductor"] == "skip"
    assert all(
        request["tp"] == 2 and request["server_args"] == ["--x"] for request in fleet.requests
    )


def test_what_is_known_by_its_digest_is_taken_by_it_whatever_the_name_stands_for(
    fleet: Fleet,
) -> None:
    source = fleet.run("one", "given", INDUCTOR, **WAYS["registry"])["items"][INDUCTOR["name"]][
        "from"
    ]
    fleet.registry[f"{REGISTRY}:{INDUCTOR['name']}"] = (b"moved", None, True)
    taken = fleet.run("two", "taken", {**INDUCTOR, "from": source}, **WAYS["registry"])
    assert (
        taken["items"][INDUCTOR["name"]]["from"] == source
        and fleet.work["two"][INDUCTOR["name"]].content == CONTENT
    )


def test_what_is_wanted_is_asked_for_as_a_prep_is() -> None:
    fragment = set(yaml.safe_load(ModuleDocFragment.PREP)["options"])
    own = set(yaml.safe_load(sgl_prep.DOCUMENTATION)["options"])
    assert fragment == set(prep_spec())
    assert own | fragment == set(sgl_prep_action.ARGUMENT_SPEC) and not own & fragment


def test_the_role_packs_and_takes_what_the_prep_is_asked_for() -> None:
    [task] = yaml.safe_load((ROLES / "provider_prep" / "tasks" / "main.yml").read_text())
    asked = task["slice_bench.sglang.sgl_prep"]
    shared = yaml.safe_load((ROLES / "settings" / "vars" / "main.yml").read_text())[
        "settings_prep_request"
    ]
    # Callers' keys and the profile's name are for the prep alone, and no variable says how long
    # Prometheus is waited for.
    own = {"server_api_key", "profile"}
    assert set(shared) == set(prep_spec()) - own - {"probe_timeout"}
    assert set(asked) & set(prep_spec()) == set(shared) | own
    assert {name: value for name, value in shared.items() if asked[name] == value} == {
        name: shared[name]
        for name in set(shared)
        # A share of a tuning has these of its own.
        - {*stages.OPTIONS.values(), "moe_batch_sizes", "probe", "model"}
    }


# --- batch sizes that are finished so far, and shares of them -------------------------------------


def test_batch_sizes_so_far_do_not_take_the_place_of_all(fleet: Fleet, way: dict[str, Any]) -> None:
    fleet.work["one"][TUNING["name"]] = Work(b"some", finished=False)
    for content in (b"some", b"some more"):
        fleet.work["one"][TUNING["name"]] = Work(content, finished=False)
        given = fleet.run("one", "given", TUNING, **way)
        assert (
            status(given, TUNING) == "given" and given["items"][TUNING["name"]]["finished"] is False
        ), "each time anew"
    taken = fleet.run("two", "taken", TUNING, **way)
    assert (
        status(taken, TUNING) == "imported" and taken["items"][TUNING["name"]]["finished"] is False
    )
    assert fleet.work["two"][TUNING["name"]].content == b"some more"
    fleet.work["two"][TUNING["name"]] = Work(b"all")
    assert status(fleet.run("two", "given", TUNING, **way), TUNING) == "given"
    taken = fleet.run("three", "taken", TUNING, **way)
    assert (
        taken["items"][TUNING["name"]]["finished"] is True
        and fleet.work["three"][TUNING["name"]].content == b"all"
    )


def test_only_batch_sizes_are_taken_in_part(fleet: Fleet, way: dict[str, Any]) -> None:
    fleet.work["one"][INDUCTOR["name"]] = Work(b"half", finished=False)
    fleet.run("one", "given", INDUCTOR, **way)
    assert status(fleet.run("two", "taken", INDUCTOR, **way)) == "absent"


def test_a_share_is_given_anew_each_time_by_its_own_name(fleet: Fleet, way: dict[str, Any]) -> None:
    share = {**TUNING, "name": f"{TUNING['name']}-shard-1-of-2", "whole": False}
    for content in (b"first", b"second"):
        fleet.work["one"][share["name"]] = Work(content, finished=False)
        assert status(fleet.run("one", "given", share, **way), share) == "given"
    other = {**share, "name": f"{TUNING['name']}-shard-2-of-2"}
    taken = fleet.run("two", "taken", share, other, **way)
    assert (
        status(taken, share) == "imported" and fleet.work["two"][share["name"]].content == b"second"
    )
    assert status(taken, other) == "absent"


# --- images ---------------------------------------------------------------------------------------


def test_an_image_goes_by_its_name_from_what_it_is_called_here_to_what_it_is_called_there(
    fleet: Fleet, way: dict[str, Any]
) -> None:
    fleet.work["one"][IMAGE["image"]] = Work(b"layers")
    given = fleet.run("one", "given", IMAGE, prep=None, **way)
    assert status(given, IMAGE) == "given" and fleet.steps() == (
        ["look", "push"] if way else ["pack"]
    )
    taken = fleet.run("two", "taken", {**IMAGE, "image": "mine:x"}, prep=None, **way)
    assert (
        taken["changed"] is True
        and status(taken, IMAGE) == "loaded"
        and fleet.work["two"]["mine:x"].content == b"layers"
    )
    assert taken["items"][IMAGE["name"]]["digest"] == given["items"][IMAGE["name"]]["digest"]
    assert fleet.steps() == (["fetch"] if way else ["take"]) and left(fleet) == []
    assert status(fleet.run("one", "given", IMAGE, prep=None, **way), IMAGE) == "there"
    assert (
        status(
            fleet.run("two", "taken", {**IMAGE, "name": "image-1"}, prep=None, **way),
            {"name": "image-1"},
        )
        == "absent"
    )


def test_an_image_in_a_registry_has_no_signature_and_is_refused_where_one_is_wanted(
    fleet: Fleet, tmp_path: Path
) -> None:
    answer = fleet.run(
        "two", "taken", IMAGE, verify_key=str(tmp_path / "lab.pub"), prep=None, **WAYS["registry"]
    )
    assert answer["failed"] is True and "sgl_image_pull" in answer["msg"] and fleet.steps() == []


# --- what cannot be, and what breaks --------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "options", "said"),
    [
        ({"name": "inductor-1"}, {}, "inductor-1 needs its stage, and prep"),
        (INDUCTOR, {"prep": None}, "needs its stage, and prep"),
        ({"kind": "image", "name": "image-1"}, {}, "image-1 names no image"),
        ({**INDUCTOR, "name": "../inductor"}, {}, "../inductor has to be named by letters"),
        ({**INDUCTOR, "name": "a/b"}, {}, "a/b has to be named by letters"),
        ({**INDUCTOR, "name": ".hidden"}, {}, "has to be named by letters"),
        ({**INDUCTOR, "name": "x" * 129}, {}, "has to be named by letters"),
        ({**INDUCTOR, "stage": "triton"}, {}, "must be one of"),
        (INDUCTOR, {"through": "registry"}, "registry"),
        (INDUCTOR, {"prep": {"model": "/m", "inductor": "perhaps"}}, "must be one of"),
        (INDUCTOR, {"folder": "x"}, "Unsupported parameters"),
    ],
)
@pytest.mark.parametrize("state", ["given", "taken"])
def test_what_cannot_be_meant_is_told_before_any_host_is_asked(
    fleet: Fleet, state: str, item: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(AnsibleActionFail, match=said):
        fleet.run("one", state, item, **options)
    assert fleet.steps() == [] and not fleet.store.exists()


@pytest.mark.parametrize("step", ["pack", "look", "push"])
def test_a_step_that_fails_fails_with_its_words(fleet: Fleet, step: str) -> None:
    fleet.failing = step
    with pytest.raises(AnsibleActionFail, match="it broke here: run this again"):
        fleet.run("one", "given", INDUCTOR, **WAYS["registry"])
    assert fleet.registry == {} and left(fleet) == []


@pytest.mark.parametrize("step", ["fetch", "take"])
def test_a_host_that_cannot_take_says_why(fleet: Fleet, step: str) -> None:
    fleet.run("one", "given", INDUCTOR, **WAYS["registry"])
    fleet.failing = step
    with pytest.raises(AnsibleActionFail, match="it broke here: run this again"):
        fleet.run("two", "taken", INDUCTOR, **WAYS["registry"])


def test_a_connection_that_breaks_leaves_what_was_stored_before(fleet: Fleet) -> None:
    fleet.run("one", "given", TUNING)
    fleet.breaks = True
    answer = fleet.run("one", "given", INDUCTOR)
    assert answer["failed"] is True and "the connection broke" in answer["msg"]
    fleet.breaks = False
    assert left(fleet) == [] and status(fleet.run("two", "taken", INDUCTOR)) == "absent"


def test_a_folder_that_cannot_be_made_is_told_by_its_path(fleet: Fleet) -> None:
    fleet.store.write_text("a file")
    answer = fleet.run("one", "given", INDUCTOR)
    assert (
        answer["failed"] is True
        and str(fleet.store) in answer["msg"]
        and answer["msg"].startswith("on the controller, ")
    )


def test_a_broken_archive_is_set_aside_with_a_warning_and_given_anew(fleet: Fleet) -> None:
    fleet.run("one", "given", INDUCTOR)
    archive = fleet.store / f"{INDUCTOR['name']}.tar"
    archive.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    fleet.steps()
    taken = fleet.run("two", "taken", INDUCTOR)
    assert status(taken) == "absent" and fleet.steps() == [] and "two" not in fleet.work
    [warning] = fleet.warnings
    assert f"{archive}.corrupt-1" in warning
    assert status(fleet.run("one", "given", INDUCTOR)) == "given"
    assert (
        status(fleet.run("two", "taken", INDUCTOR)) == "imported"
        and fleet.work["two"][INDUCTOR["name"]].content == CONTENT
    )


def test_an_archive_of_another_stage_is_told(fleet: Fleet) -> None:
    wrong = {**INDUCTOR, "name": TUNING["name"]}
    fleet.work["one"][TUNING["name"]] = Work(b"tuned")
    fleet.run("one", "given", wrong)
    with pytest.raises(AnsibleActionFail, match="holds no stage inductor: remove it there"):
        fleet.run("two", "taken", wrong)


def test_what_was_taken_and_is_not_all_that_is_wanted_is_warned_of(
    fleet: Fleet, way: dict[str, Any]
) -> None:
    fleet.work["one"][INDUCTOR["name"]].reason = "something is still to be done: signature_changed"
    fleet.run("one", "given", INDUCTOR, **way)
    fleet.run("two", "taken", INDUCTOR, **way)
    assert fleet.warnings == ["inductor: something is still to be done: signature_changed"]


@pytest.mark.parametrize("state", ["given", "taken"])
def test_check_mode_asks_nobody(fleet: Fleet, state: str, way: dict[str, Any]) -> None:
    answer = fleet.run("one", state, INDUCTOR, check_mode=True, **way)
    assert answer["changed"] is True and answer["items"] == {} and fleet.steps() == []
    assert fleet.run("one", state, check_mode=True, **way)["changed"] is False


# --- signed ---------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """The options of who gives and who takes, and another lab's public key; minisign is the real
    one.
    """
    for name in ("lab", "other"):
        words = [
            "minisign",
            "-G",
            "-W",
            "-s",
            str(tmp_path / f"{name}.key"),
            "-p",
            str(tmp_path / f"{name}.pub"),
        ]
        subprocess.run(words, check=True, capture_output=True)
    return {
        "sign_key": str(tmp_path / "lab.key"),
        "verify_key": str(tmp_path / "lab.pub"),
        "other": str(tmp_path / "other.pub"),
    }


def refused(fleet: Fleet, item: dict[str, Any], key: str, way: dict[str, Any]) -> str:
    """Why it is not taken; no byte of it went to the cache."""
    fleet.steps()
    answer = fleet.run("two", "taken", item, verify_key=key, **way)
    assert answer["failed"] is True and "take" not in fleet.steps()
    return str(answer["msg"])


@pytest.mark.slow
def test_what_is_signed_is_taken_with_its_key_and_with_no_other(
    fleet: Fleet, keys: dict[str, str], way: dict[str, Any]
) -> None:
    fleet.run("one", "given", INDUCTOR, sign_key=keys["sign_key"], **way)
    assert f"the signature of {INDUCTOR['name']} is not one of {keys['other']}" in refused(
        fleet, INDUCTOR, keys["other"], way
    )
    assert (
        status(fleet.run("two", "taken", INDUCTOR, verify_key=keys["verify_key"], **way))
        == "imported"
    )


@pytest.mark.slow
def test_what_is_not_signed_is_refused(
    fleet: Fleet, keys: dict[str, str], way: dict[str, Any]
) -> None:
    fleet.run("one", "given", INDUCTOR, **way)
    assert f"{INDUCTOR['name']} is not signed" in refused(fleet, INDUCTOR, keys["verify_key"], way)


@pytest.mark.slow
def test_parts_are_signed_by_their_own_names(
    fleet: Fleet, keys: dict[str, str], way: dict[str, Any]
) -> None:
    share = {**TUNING, "name": f"{TUNING['name']}-shard-1-of-2", "whole": False}
    fleet.work["one"].update(
        {
            TUNING["name"]: Work(b"some", finished=False),
            share["name"]: Work(b"a share", finished=False),
        }
    )
    fleet.run("one", "given", TUNING, share, sign_key=keys["sign_key"], **way)
    taken = fleet.run("two", "taken", TUNING, share, verify_key=keys["verify_key"], **way)
    assert status(taken, TUNING) == status(taken, share) == "imported"


@pytest.mark.slow
def test_another_archive_under_a_signed_name_is_refused(
    fleet: Fleet, keys: dict[str, str], way: dict[str, Any]
) -> None:
    other = {**INDUCTOR, "name": "inductor-ffffffffffffffff"}
    fleet.work["one"][other["name"]] = Work(b"signed too")
    fleet.run("one", "given", INDUCTOR, other, sign_key=keys["sign_key"], **way)
    if way:
        fleet.registry[f"{REGISTRY}:{INDUCTOR['name']}"] = fleet.registry[
            f"{REGISTRY}:{other['name']}"
        ]
    else:
        for end in (".tar", ".json"):
            shutil.copy(
                fleet.store / f"{other['name']}{end}", fleet.store / f"{INDUCTOR['name']}{end}"
            )
    assert "Signature verification failed" in refused(fleet, INDUCTOR, keys["verify_key"], way)


@pytest.mark.slow
def test_who_can_write_to_the_folder_cannot_say_another_digest(
    fleet: Fleet, keys: dict[str, str]
) -> None:
    fleet.run("one", "given", INDUCTOR, sign_key=keys["sign_key"])
    record = fleet.store / f"{INDUCTOR['name']}.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "digest": digest(b"theirs")}))
    assert "Signature verification failed" in refused(fleet, INDUCTOR, keys["verify_key"], {})


@pytest.mark.slow
def test_who_can_write_to_the_folder_cannot_put_another_archive_to_a_signed_digest(
    fleet: Fleet, keys: dict[str, str]
) -> None:
    fleet.run("one", "given", INDUCTOR, sign_key=keys["sign_key"])
    record, archive = (fleet.store / f"{INDUCTOR['name']}{end}" for end in (".json", ".tar"))
    archive.write_bytes(b"theirs")
    document = json.loads(record.read_text())
    record.write_text(
        json.dumps({**document, "sha256": digest(b"theirs").partition(":")[2], "bytes": 6})
    )
    # The host compares it with the digest that was signed.
    with pytest.raises(AnsibleActionFail, match="is not taken: another digest"):
        fleet.run("two", "taken", INDUCTOR, verify_key=keys["verify_key"])


@pytest.mark.slow
def test_a_key_that_is_not_there_is_told_before_anything_is_pushed(
    fleet: Fleet, tmp_path: Path, way: dict[str, Any]
) -> None:
    answer = fleet.run("one", "given", INDUCTOR, sign_key=str(tmp_path / "none.key"), **way)
    assert (
        answer["failed"] is True
        and "none.key" in answer["msg"]
        and fleet.registry == {}
        and left(fleet) == []
    )
