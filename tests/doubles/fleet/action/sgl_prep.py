"""Stands for a container that preps: what is warm on a host is a file below the folder
`double_folder`, and a tuning takes no time.

Two stages have work to do, moe_tune and inductor. On a host whose variable `double` says
`tuner_fails`, the tuner fails when it has finished a part; `prep_refused` is why no prep begins,
and one that `hangs` says that it goes on, and never ends. The result is the contract's example with
these stages. With the variable `double_sizes`, a tuning is one of these batch sizes: each that is
tuned is a file, and a line of `tuned`. Each profile has a proof of its own, and `asked` has a line
for each prep.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import stages

EXAMPLE = Path(__file__).resolve().parents[3] / "contract" / "examples" / "prep_result.json"
KEYS = {"moe_tune": "aaaaaaaaaaaaaaaa", "inductor": "bbbbbbbbbbbbbbbb"}
OPTIONS = {"moe_tune": "moe", "inductor": "inductor"}
SECONDS = {"moe_tune": 100.0, "inductor": 20.0}
# Of a tuning: until it fails, and of what is left then.
PART_S, REST_S = 60.0, 40.0


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        known = task_vars or {}
        result: dict[str, Any] = {**super().run(tmp, task_vars), "changed": False}
        profile = self._task.args.get("profile")
        if profile:
            result["profile"] = profile
        self._told, self._host = known.get("double", {}), known["inventory_hostname"]
        self._folder = Path(known["double_folder"]) / self._host
        self._folder.mkdir(parents=True, exist_ok=True)
        self._proof = self._folder / f"proof{str(profile or '').replace('/', '-')}"
        with open(self._folder / "asked", "a", encoding="utf-8") as asked:
            asked.write(f"{profile} {self._task.args['model']}\n")
        if "prep_refused" in self._told:
            return {**result, "failed": True, "msg": self._told["prep_refused"], "exit_code": 5}
        if "hangs" in self._told:
            (self._folder / "hangs").touch()
            self._display.display("the prep goes on")
            time.sleep(600)
        self._sizes = [
            int(size)
            for size in self._task.args.get("moe_batch_sizes") or known.get("double_sizes", [])
        ]
        cold = [
            stage
            for stage in KEYS
            if self._task.args.get(OPTIONS[stage]) != "skip" and not self._is_warm(stage)
        ]
        statuses = {
            **dict.fromkeys(stages.NAMES, "skipped"),
            **{stage: "would_run" if stage in cold else "noop" for stage in KEYS},
        }
        if self._task.check_mode:
            stands = not cold and self._proof.exists()
            return {
                **result,
                "changed": not stands,
                "stages": statuses,
                "probe": "stands" if stands else "would_run",
                "exit_code": 0,
            }
        if self._task.args.get("standing") in (True, "True") and (cold or not self._proof.exists()):
            plan: dict[str, Any] = {
                stage: {"status": status, "key": self._key(stage)}
                for stage, status in statuses.items()
            }
            plan["moe_tune"]["missing_batch_sizes"] = self._missing()
            return {**result, "plan": {"stages": plan}, "stages": statuses, "exit_code": 0}
        return {**result, **self._prep(cold)}

    def _prep(self, cold: list[str]) -> dict[str, Any]:
        found = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        number = len(list(self._folder.glob("prep-*")))
        (self._folder / f"prep-{number}").touch()
        found["run"]["prep_id"] = prep_id = f"prep-20261123T09160{number}Z-77aa01bc"
        failed = "tuner_fails" in self._told and "moe_tune" in cold
        for name, stage in found["stages"].items():
            ran = name in cold
            status = "ok" if ran else "noop" if name in KEYS else "skipped"
            reason = None if ran else "valid_signature" if name in KEYS else "requested"
            stage.update(
                ran=ran,
                status=status,
                reason=reason,
                key=self._key(name),
                duration_s=SECONDS[name] if ran else 0.0,
            )
        tuning = found["stages"]["moe_tune"]
        part = self._folder / "moe_tune-part"
        if failed:
            tuning.update(
                status="error",
                status_code=11,
                error_type="tuner_failed",
                errors=["out of memory"],
                duration_s=PART_S,
            )
            found["telemetry_probe"].update(ok=False, reason="a stage failed")
            found["status"] = "partial"
            part.touch()
        elif tuning["ran"] and part.exists():
            tuning["duration_s"] = REST_S
        for size in self._missing() if "moe_tune" in cold and not failed else []:
            (self._folder / f"moe_tune-size-{size}").touch()
            with open(self._folder / "tuned", "a", encoding="utf-8") as tuned:
                tuned.write(f"{size}\n")
        for stage in cold:
            if stage != "moe_tune" or not failed:
                (self._folder / stage).touch()
        if not failed:
            self._proof.touch()
        answer = {
            "changed": bool(cold),
            "prep_id": prep_id,
            "stages": {name: stage["status"] for name, stage in found["stages"].items()},
            "status": found["status"],
            "exit_code": 11 if failed else 0,
            "metrics_ready": not failed,
            "result": found,
        }
        problem = "stage moe_tune failed, tuner_failed: out of memory\nthe last line of its log"
        return {**answer, "failed": True, "msg": problem} if failed else answer

    def _is_warm(self, stage: str) -> bool:
        if stage == "moe_tune" and self._sizes:
            return not self._missing()
        return (self._folder / stage).exists()

    def _missing(self) -> list[int]:
        return [
            size for size in self._sizes if not (self._folder / f"moe_tune-size-{size}").exists()
        ]

    def _key(self, stage: str) -> str | None:
        """Hosts of one kind, which the variable `double` may name, want the same."""
        return f"{self._told.get('kind', '')}{KEYS[stage]}"[:16] if stage in KEYS else None
