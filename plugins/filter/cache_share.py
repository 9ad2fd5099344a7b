# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Decides, from what a prep found on each host, what a host may take from others and which host makes what nobody has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

# As the variable sgl_stages calls them.
_MODES = {"deep_gemm": "deep_gemm", "moe_tune": "moe", "flashinfer": "flashinfer", "inductor": "inductor"}


def cache_group(done: Mapping[str, Any]) -> str:
    """What hosts have in common that want equal stage signatures: such a group needs one host that makes them."""
    keys = {stage: found["key"] for stage, found in _stages(done).items() if found.get("key")}
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16]


def cache_lacks(done: Mapping[str, Any], modes: Mapping[str, str]) -> list[dict[str, Any]]:
    """The stages that are not finished on a host and that another host may have; what is to be built anew is each host's own work."""
    return [
        {"stage": stage, "name": f"{stage}-{found['key']}"}
        for stage, found in _stages(done).items()
        if found.get("key") and found["status"] == "would_run" and modes.get(_MODES[stage]) != "rebuild"
    ]


def cache_left(lacks: list[dict[str, Any]], taken: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is still lacking after others' work was taken: batch sizes that are finished so far are not all of it."""
    done = [name for name, what in taken["items"].items() if what["status"] in ("imported", "standing") and what["finished"]]
    return [item for item in lacks if item["name"] not in done]


def cache_state(known: Mapping[str, Any]) -> dict[str, Any]:
    """Of a host's variables, what `cache_round` decides by."""
    names = {"done": "provider_prep_done", "lacks": "cache_share_lacks", "asked": "cache_share_giver"}
    return {name: known.get(variable) for name, variable in names.items()}


def cache_round(states: Mapping[str, Mapping[str, Any]], shards: int = 1) -> dict[str, dict[str, Any]]:
    """For each host that lacks something: C(maker), the first such host of its group, C(giver), a host of the group that has it all, if any,
    and over which hosts (C(shards)) batch sizes are spread. A group asks for it once: where that was not enough, its maker makes it.
    """
    groups: dict[str, list[str]] = {}
    for host, state in states.items():
        if state["done"] and ("plan" in state["done"] or "result" in state["done"]):
            groups.setdefault(cache_group(state["done"]), []).append(host)
    decided: dict[str, dict[str, Any]] = {}
    for members in groups.values():
        lacking = [host for host in members if states[host]["lacks"]]
        having = [host for host in members if "result" in states[host]["done"]]
        giver = having[0] if having and not any(states[host]["asked"] for host in members) else ""
        for host in lacking:
            decided[host] = {"maker": lacking[0], "giver": giver, "shards": lacking[:shards] if shards > 1 and len(lacking) > 1 else []}
    return decided


def cache_shares(sizes: list[int], hosts: list[str], host: str) -> list[int]:
    """The batch sizes that a host tunes of those that are spread over several: small ones and large ones fall to each."""
    return sorted(sizes)[hosts.index(host) :: len(hosts)]


def cache_shard_items(lacks: list[dict[str, Any]], hosts: list[str], of: str | None = None) -> list[dict[str, Any]]:
    """What each of the hosts that batch sizes are spread over has tuned, as items; or what one of them has."""
    return [
        {"stage": item["stage"], "name": f"{item['name']}-shard-{number}-of-{len(hosts)}", "whole": False}
        for item in lacks
        if item["stage"] == "moe_tune"
        for number, host in enumerate(hosts, 1)
        if of in (None, host)
    ]


def cache_from(lacks: list[dict[str, Any]], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is lacking, by the very digests that a host of this run gave it with."""
    items = given.get("items", {})
    return [{**item, "from": items[item["name"]]["from"]} if items.get(item["name"], {}).get("from") else item for item in lacks]


def image_state(known: Mapping[str, Any]) -> dict[str, Any]:
    """Of a host's variables, what `image_builders` decides by."""
    return {"name": known.get("image_share_name"), "lacks": known.get("image_share_lacks") is True}


def image_builders(states: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """For each host that lacks the image, which host of its kind builds it: the first that lacks it."""
    first: dict[Any, str] = {}
    for host, state in states.items():
        if state["lacks"]:
            first.setdefault(state["name"], host)
    return {host: first[state["name"]] for host, state in states.items() if state["lacks"]}


def _stages(done: Mapping[str, Any]) -> Mapping[str, Any]:
    found = (done.get("plan") or done.get("result") or {}).get("stages")
    if not isinstance(found, Mapping):
        raise AnsibleFilterError("neither the plan nor the result of a prep: it is registered as provider_prep_done")
    return found


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        found = (
            cache_group,
            cache_lacks,
            cache_left,
            cache_state,
            cache_round,
            cache_shares,
            cache_shard_items,
            cache_from,
            image_state,
            image_builders,
        )
        return {each.__name__: each for each in found}
