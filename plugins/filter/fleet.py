# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Decides, from what a prep found on each host, what a host may take from others, which host makes
what no host has, and which one is slower than the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ..module_utils._contract import perf, stages
from ..module_utils._contract.labels import INPUTS_LABEL


def cache_group(done: Mapping[str, Any]) -> str:
    """What hosts have in common that want equal stage signatures: such a group needs one host that
    makes them.
    """
    keys = {stage: found["key"] for stage, found in _stages(done).items() if found.get("key")}
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16]


def cache_lacks(done: Mapping[str, Any], modes: Mapping[str, str]) -> list[dict[str, Any]]:
    """The stages that are not finished on a host and that another host may have. A rebuild is each
    host's own work, and so is the start that shows that whole caches are warm.
    """
    return [
        {"stage": stage, "name": f"{stage}-{found['key']}"}
        for stage, found in _stages(done).items()
        if found.get("key")
        and found["status"] == "would_run"
        and not found.get("cached")
        and modes.get(stages.OPTIONS[stage]) != "rebuild"
    ]


def cache_left(lacks: list[dict[str, Any]], taken: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is still lacking after others' work was taken: batch sizes that are finished so far are
    not all of it.
    """
    done = [
        name
        for name, what in taken["items"].items()
        if what["status"] in ("imported", "standing") and what["finished"]
    ]
    return [item for item in lacks if item["name"] not in done]


def _cache_state(known: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "done": "provider_prep_done",
        "lacks": "cache_share_lacks",
        "asked": "cache_share_asked",
    }
    return {name: known.get(variable) for name, variable in names.items()}


def cache_round(
    hosts: Mapping[str, Mapping[str, Any]], shards: int = 1
) -> dict[str, dict[str, Any]]:
    """By the hosts' variables, for each host that lacks something: C(maker), the first such host of
    its group, C(giver), a host of the group that has all, if any, and over which hosts (C(shards))
    batch sizes are spread. A group asks for it once: where that was not enough, its maker makes it.
    """
    # Ansible templates a variable each time that it is read.
    states = {host: _cache_state(known) for host, known in hosts.items()}
    groups: dict[str, list[str]] = {}
    for host, state in states.items():
        if state["done"] and ("plan" in state["done"] or "result" in state["done"]):
            groups.setdefault(cache_group(state["done"]), []).append(host)
    decided: dict[str, dict[str, Any]] = {}
    for members in groups.values():
        lacking = [host for host in members if states[host]["lacks"]]
        having = [
            host for host in members if _has_all(states[host]["done"]) and not states[host]["lacks"]
        ]
        giver = having[0] if having and not any(states[host]["asked"] for host in members) else ""
        for host in lacking:
            decided[host] = {
                "maker": lacking[0],
                "giver": giver,
                "shards": lacking[:shards] if shards > 1 and len(lacking) > 1 else [],
            }
    return decided


def _has_all(done: Mapping[str, Any]) -> bool:
    """Whether all that it wants stands on a host; that its metrics are still to be proven does not
    matter.
    """
    return all(
        found["status"] in ("noop", "ok") or found.get("cached")
        for found in _stages(done).values()
        if found.get("key")
    )


def cache_shares(sizes: list[int], hosts: list[str], host: str) -> list[int]:
    """The batch sizes that a host tunes of those that are spread over several: small ones and large
    ones fall to each.
    """
    return sorted(sizes)[hosts.index(host) :: len(hosts)]


def cache_shard_items(
    lacks: list[dict[str, Any]], hosts: list[str], of: str | None = None
) -> list[dict[str, Any]]:
    """What each of the hosts that batch sizes are spread over has tuned, as items; or what one of
    them has.
    """
    return [
        {
            "stage": item["stage"],
            "name": f"{item['name']}-shard-{number}-of-{len(hosts)}",
            "whole": False,
        }
        for item in lacks
        if item["stage"] == "moe_tune"
        for number, host in enumerate(hosts, 1)
        if of in (None, host)
    ]


def cache_from(lacks: list[dict[str, Any]], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is lacking, by the digests that a host of this run gave it with; batch sizes that were
    finished so far have another name.
    """
    items = given.get("items", {})
    whole = {
        name: what["from"]
        for name, what in items.items()
        if what.get("from") and what.get("finished", True)
    }
    return [
        {**item, "from": whole[item["name"]]} if item["name"] in whole else item for item in lacks
    ]


def image_state(known: Mapping[str, Any]) -> dict[str, Any]:
    """Of a host's variables, what `image_round` decides by. By C(name) hosts of its kind find the
    image that it has or wants.
    """
    built, host = known.get("image_built") or {}, known.get("preflight_host") or {}
    # A host whose turn comes later was only looked at so far.
    image = built["image"] if "image" in built else host.get("image")
    inputs = built.get("inputs") or (image["labels"].get(INPUTS_LABEL) if image else None)
    return {
        "name": f"image-{inputs.partition(':')[2][:16]}-{host['architecture']}" if inputs else None,
        "image": image["name"] if image else None,
        "lacks": known.get("image_share_lacks") is True,
        "asked": known.get("image_share_asked") is True,
    }


def image_round(states: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each host that lacks the image: C(builder), the first such host of its kind, and
    C(giver), the first that has it, if any, with the name that the C(image) has there. A kind asks
    for it once: where that was not enough, its builder builds it.
    """
    kinds: dict[str, list[str]] = {}
    for host, state in states.items():
        if state["name"]:
            kinds.setdefault(state["name"], []).append(host)
    decided: dict[str, dict[str, Any]] = {}
    for members in kinds.values():
        lacking = [host for host in members if states[host]["lacks"]]
        having = [host for host in members if states[host]["image"] and not states[host]["lacks"]]
        giver = having[0] if having and not any(states[host]["asked"] for host in members) else ""
        for host in lacking:
            decided[host] = {
                "builder": lacking[0],
                "giver": giver,
                "image": states[giver]["image"] if giver else "",
            }
    return decided


def perf_outliers(done: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of the hosts with these results of sgl_prep, those that fail beside the others, each with its
    reason.
    """
    probes = {
        host: probe
        for host, each in done.items()
        if (probe := ((each or {}).get("result") or {}).get("perf_probe") or {}).get("tolerance")
    }
    if not probes:
        return {}
    outliers, _without = perf.of_fleet(probes)
    found: dict[str, list[str]] = {}
    for host, judgement in outliers:
        if judgement.verdict == perf.FAIL:
            found.setdefault(host, []).append(judgement.sentence)
    return {host: "; ".join(sentences) for host, sentences in found.items()}


def _stages(done: Mapping[str, Any]) -> Mapping[str, Any]:
    found = (done.get("plan") or done.get("result") or {}).get("stages")
    if not isinstance(found, Mapping):
        raise AnsibleFilterError(
            "neither the plan nor the result of a prep: it is registered as provider_prep_done"
        )
    return found


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        found = (
            cache_lacks,
            cache_left,
            cache_round,
            cache_shares,
            cache_shard_items,
            cache_from,
            image_state,
            image_round,
            perf_outliers,
        )
        return {each.__name__: each for each in found}
