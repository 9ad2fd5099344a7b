# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Gives a host's finished work to others, or brings it theirs: through a registry, or through a
folder of the controller.
"""

from __future__ import annotations

import re
from typing import Any

from ansible.errors import AnsibleActionFail

from ..module_utils._contract import stages
from ..module_utils._contract.locks import LockTimeout
from ..module_utils._contract.options import prep_spec, request_document
from ..plugin_utils import share_signature
from ..plugin_utils.share_signature import SignatureError
from ..plugin_utils.share_store import Store
from ..plugin_utils.told_action import ToldAction

_ITEM = {
    "kind": {"type": "str", "choices": ["caches", "image"], "default": "caches"},
    "name": {"type": "str", "required": True},
    "stage": {"type": "str", "choices": list(stages.SHARED)},
    "image": {"type": "str"},
    "from": {"type": "str"},
    "whole": {"type": "bool", "default": True},
}
ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "required": True, "choices": ["given", "taken"]},
    "items": {"type": "list", "elements": "dict", "required": True, "options": _ITEM},
    "through": {"type": "str", "choices": ["relay", "registry"], "default": "relay"},
    "registry": {"type": "str"},
    "directory": {"type": "str", "default": "~/.cache/slice_bench.sglang/caches"},
    "sign_key": {"type": "path"},
    "verify_key": {"type": "path"},
    "container": {"type": "str", "default": "sglang-dev"},
    "prep": {"type": "dict", "options": prep_spec()},
}
# A tag's, so that it is a file's too.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class ActionModule(ToldAction):
    def act(self) -> dict[str, Any]:
        _ignored, given = self.validate_argument_spec(
            argument_spec=ARGUMENT_SPEC, required_if=[("through", "registry", ["registry"])]
        )
        if self._task.check_mode:
            return {"changed": bool(given["items"]), "items": {}, "skipped": not given["items"]}
        self._given = given
        self._registry = given["through"] == "registry"
        self._store = Store(given["directory"])
        try:
            items = [self._complete(item) for item in given["items"]]
            return self._give(items) if given["state"] == "given" else self._take(items)
        except SignatureError as error:
            return {"failed": True, "msg": str(error)}
        except LockTimeout as error:
            return {"failed": True, "msg": f"on the controller, {error}"}
        except OSError as error:
            return {"failed": True, "msg": f"on the controller, {error.filename}: {error.strerror}"}

    def _complete(self, item: dict[str, Any]) -> dict[str, Any]:
        """Raises AnsibleActionFail where something is missing, or the name does not fit a registry
        and a folder.
        """
        if not _NAME.fullmatch(item["name"]):
            raise AnsibleActionFail(
                f"item {item['name']} has to be named by letters, digits, dots, dashes and"
                " underscores"
            )
        if item["kind"] == "image" and not item["image"]:
            raise AnsibleActionFail(f"item {item['name']} names no image")
        if item["kind"] == "caches" and not (item["stage"] and self._given["prep"]):
            raise AnsibleActionFail(
                f"item {item['name']} needs its stage, and prep, which says what is wanted"
            )
        return item

    # --- giving -----------------------------------------------------------------------------------

    def _give(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Pack each item and put it where others find it; what is there already is not put there
        again.
        """
        status = {item["name"]: self._there(item) or self._give_one(item) for item in items}
        return {
            "changed": any(each["status"] == "given" for each in status.values()),
            "items": status,
        }

    def _there(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """What others find under the item's name already; a part of a stage is given again each
        time.
        """
        if not item["whole"]:
            return None
        if self._registry:
            found = self._module("look", item).get("source")
            return {"status": "there", "from": found} if found else None
        record = self._stored(item["name"])
        return {"status": "there", "digest": record["digest"]} if record else None

    def _give_one(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["kind"] == "image" and self._registry:
            # Docker pushes it layer by layer: there is nothing to pack, and nothing that a
            # signature of ours would go with.
            source = self._module("push", item)["source"]
            return {
                "status": "given",
                "digest": source.partition("@")[2],
                "from": source,
                "finished": True,
            }
        try:
            return self._give_packed(item)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _give_packed(self, item: dict[str, Any]) -> dict[str, Any]:
        answer = self._module("pack", item)
        if (packed := answer["packed"]) is None:
            return {"status": "unfinished"}
        # Batch sizes are given as they come; who looks for all of them must not find these in their
        # place.
        target = (
            item
            if packed["finished"] or not item["whole"]
            else {**item, "name": _partial(item["name"])}
        )
        digest, name, key = packed["digest"], target["name"], self._given["sign_key"]
        signature = share_signature.sign(name, digest, key) if key else None
        given = {
            "status": "given",
            "digest": digest,
            "bytes": packed["bytes"],
            "finished": packed["finished"],
        }
        if self._registry:
            return {
                **given,
                "from": self._module(
                    "push", target, path=answer["path"], digest=digest, signature=signature
                )["source"],
            }
        local = self._store.incoming(name)
        try:
            self._connection.fetch_file(answer["path"], str(local))
            self._store.put(
                name,
                local,
                {"digest": digest, "finished": packed["finished"], "signature": signature},
            )
        finally:
            local.unlink(missing_ok=True)
        return given

    # --- taking -----------------------------------------------------------------------------------

    def _take(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        status = {item["name"]: self._take_first(item) for item in items}
        changed = any(each["status"] in ("imported", "loaded") for each in status.values())
        return {"changed": changed, "items": status}

    def _take_first(self, item: dict[str, Any]) -> dict[str, Any]:
        """All of it or, where no host gave that, what is finished so far."""
        found = self._take_one(item)
        if found["status"] == "absent" and item["stage"] == "moe_tune" and item["whole"]:
            return self._take_one({**item, "name": _partial(item["name"])})
        return found

    def _take_one(self, item: dict[str, Any]) -> dict[str, Any]:
        found = self._fetched(item) if self._registry else self._relayed(item)
        if found is None:
            return {"status": "absent"}
        digest, source = found["digest"], found["source"]
        if item["kind"] == "image" and self._registry:
            return {"status": "loaded", "digest": digest, "from": source}
        taken = self._module("take", item, digest=digest)["taken"]
        self._remove_tmp_path(self._connection._shell.tmpdir)
        if item["kind"] == "image":
            return {"status": "loaded", "digest": digest, "from": source}
        stage = taken["stages"].get(item["stage"])
        if stage is None:
            raise AnsibleActionFail(
                f"{item['name']}, from {source}, holds no stage {item['stage']}: remove it there,"
                " and run this again"
            )
        if stage["status"] == "imported" and stage["finished"] and stage["reason"]:
            self.warn(f"{item['stage']}: {stage['reason']}")
        kept = {key: stage[key] for key in ("finished", "files", "bytes")}
        return {**kept, "status": stage["status"], "digest": digest, "from": source}

    def _fetched(self, item: dict[str, Any]) -> dict[str, Any] | None:
        if item["kind"] == "image" and self._given["verify_key"]:
            raise SignatureError(
                "an image in a registry has no signature of ours, and sgl_cache_verify_key is set:"
                " set sgl_image_source to pull and sgl_image_pull to its name@sha256:..., or"
                " sgl_cache_share to relay"
            )
        found: dict[str, Any] | None = self._module("fetch", item)["fetched"]
        if found is not None:
            self._check(item["name"], found["digest"], found["signature"])
        return found

    def _relayed(self, item: dict[str, Any]) -> dict[str, Any] | None:
        record = self._stored(item["name"])
        if record is None:
            return None
        self._check(item["name"], record["digest"], record.get("signature"))
        archive, remote = str(self._store.archive(item["name"])), self._path_of(item)
        self._transfer_file(archive, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return {"digest": record["digest"], "source": f"controller:{archive}"}

    def _stored(self, name: str) -> dict[str, Any] | None:
        record, warning = self._store.find(name)
        if warning:
            self.warn(warning)
        return record

    def _check(self, name: str, digest: str | None, signature: str | None) -> None:
        if self._given["verify_key"]:
            share_signature.verify(name, digest, signature, self._given["verify_key"])

    # --- the host's part --------------------------------------------------------------------------

    def _module(self, step: str, item: dict[str, Any], **more: Any) -> dict[str, Any]:
        """One step of the module on the host. Raises AnsibleActionFail with its reason."""
        arguments = {
            "state": self._given["state"],
            "items": [],
            "container": self._given["container"],
            "step": step,
            "path": self._path_of(item) if step in ("pack", "fetch", "take") else None,
            "reference": item["from"] or f"{self._given['registry']}:{item['name']}",
            "item": {
                "kind": item["kind"],
                "name": item["name"],
                "image": item["image"],
                "request": self._request(item),
            },
            **more,
        }
        answer: dict[str, Any] = self._execute_module(
            "slice_bench.sglang.sgl_share", arguments, task_vars=self._vars
        )
        if answer.get("failed") or answer.get("unreachable"):
            raise AnsibleActionFail(str(answer.get("msg")), result=answer)
        return answer

    def _request(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """The request of the prep with this stage alone: what is packed, and what is wanted on the
        host that takes it.
        """
        if item["kind"] != "caches":
            return None
        modes = {
            flag: self._given["prep"][flag] if stage == item["stage"] else "skip"
            for stage, flag in stages.OPTIONS.items()
        }
        return request_document({**self._given["prep"], **modes})

    def _path_of(self, item: dict[str, Any]) -> str:
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        return str(
            self._connection._shell.join_path(self._connection._shell.tmpdir, f"{item['name']}.tar")
        )


def _partial(name: str) -> str:
    """Under which name the batch sizes lie that are finished so far."""
    return f"{name}-partial"
