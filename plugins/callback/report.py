# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: report
type: notification
short_description: One page for each prep, hosts by stages, and the same as JSON
version_added: 1.0.0
description:
  - After a playbook that prepares hosts, writes a self-contained HTML page (hosts and stages,
    timings, cache sizes before and after,
    warnings, METRICS_READY) and the same as JSON, on the controller. Hosts that failed, were
    unreachable or were stopped are in it too.
  - Of more than one host, it says last on the screen how many are METRICS_READY, and why each other
    one is not.
  - A playbook prepares hosts where one of its plays has M(slice_bench.sglang.sgl_prep) in it.
    Others get no page.
  - With C(sgl_cache_sign_key) of a host, the JSON is signed. C(minisign -V -p KEY -m FILE) verifies
    it.
  - Each line of a playbook is shown when it is said, also in a pipe or a file.
requirements:
  - Enabled in the configuration, as in this collection's own ansible.cfg.
options:
  directory:
    description: Folder on the controller for the pages, by its path or from the current folder;
      made where it is missing. Empty for none.
    type: str
    default: reports
    ini:
      - section: callback_sglang_report
        key: directory
    env:
      - name: SGL_REPORT_DIR
  outcome:
    description: File that gets the JSON of whatever playbook is run, for a program that runs one,
      which sums up itself.
    type: path
    env:
      - name: SGL_REPORT_OUTCOME
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

import atexit
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

from ..module_utils._contract.texts import printable
from ..plugin_utils.report_data import KNOWN, Report
from ..plugin_utils.report_fleet import summary


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "slice_bench.sglang.report"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        # The playbook's own takes its place before any task runs.
        self._report = Report("", False)
        # Hosts whose prep is followed now.
        self._followed: set[str] = set()
        self._sign_key: str | None = None
        atexit.register(self._say_what_goes_on)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self._report = Report(
            os.path.basename(playbook._file_name), bool(context.CLIARGS.get("check"))
        )
        # Known before any play runs: where all hosts are refused, the play that prepares them never
        # begins.
        self._report.of_a_prep = any("sgl_prep" in _modules(play) for play in playbook.get_plays())
        # Ansible flushes between tasks: in a pipe or a file, a prep's progress would come too late.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        # Ansible announces each batch of a play as a play. Hosts of plays of other collections do
        # not count.
        known = (
            play.get_variable_manager().get_vars(play=play) if _modules(play) & set(KNOWN) else {}
        )
        self._report.play(
            str(play._uuid),
            list(known.get("ansible_play_hosts_all", [])),
            list(known.get("ansible_play_batch", [])),
        )

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        self._report.stop()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._report.begin(host.get_name(), str(task._uuid))
        if _module(task) == "sgl_prep" and not context.CLIARGS.get("check"):
            self._followed.add(host.get_name())

    def v2_runner_on_ok(self, result: Any) -> None:
        self._ended(result, "changed" if result.result.get("changed") else "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._ended(result, "ok" if ignore_errors else "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._ended(result, "ok" if result.task.ignore_unreachable is True else "unreachable")

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._ended(result, "skipped")

    def _ended(self, result: Any, status: str) -> None:
        if _module(result.task) == "sgl_prep":
            self._followed.discard(result.host.get_name())
        if _module(result.task) == "sgl_values":
            self._sign_key = result.result.get("sign_key") or self._sign_key
        task = result.task
        # Such a failure is one of all hosts.
        if status in ("failed", "unreachable") and (
            task.run_once is True or task.any_errors_fatal is True
        ):
            self._report.stop(str(task._uuid))
        role = task._role.get_name() if task._role else None
        self._report.end(
            result.host.get_name(),
            str(task._uuid),
            _module(task),
            role and role.rpartition(".")[2],
            task.name or str(task.action),
            status,
            result.result,
            task.delegate_to,
        )

    def _say_what_goes_on(self) -> None:
        """Ctrl-C ends ansible-playbook before any host's prep is over."""
        if self._followed:
            self._display.display(
                f"A prep that has begun on {printable(', '.join(sorted(self._followed)))} goes on"
                " by itself: run the same again to attach to it; in the container `sgl-admin"
                " status --watch` follows it, and `sgl-admin prep cancel` ends it."
            )

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._report.settle(set(stats.failures), set(stats.dark))
        if not self._report.is_ours:
            return
        pages: list[str] = []
        publishes = self._report.of_a_prep and self.get_option("directory")
        document = self._report.document(_page_into(pages) if publishes else lambda document: None)
        text = json.dumps(document, indent=2) + "\n"
        try:
            if outcome := self.get_option("outcome"):
                _write(Path(outcome), text)
            elif self._report.of_a_prep and document["fleet"]["metrics_ready"]["of"] > 1:
                self._display.display("\n".join(map(printable, summary(document))))
            if publishes and pages:
                self._publish(Path(publishes).expanduser(), document, text, pages[-1])
        except OSError as error:
            self._display.warning(
                f"no report: {error.filename}: {error.strerror}; set SGL_REPORT_DIR to a folder"
                " that you may write"
            )

    def _publish(self, directory: Path, document: dict[str, Any], text: str, rendered: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        page = directory / f"{document['report_id']}.html"
        _write(page.with_suffix(".json"), text)
        _write(page, rendered)
        if self._sign_key:
            self._sign(page.with_suffix(".json"), os.path.expanduser(self._sign_key))
        self._display.display(f"Report: {page}")

    def _sign(self, path: Path, key: str) -> None:
        # Imported here: few sign.
        from ..plugin_utils import share_signature

        try:
            share_signature.sign_file(path, key)
        except share_signature.SignatureError as error:
            self._display.warning(printable(f"{path} is not signed: {error}"))


def _page_into(pages: list[str]) -> Callable[[dict[str, Any]], None]:
    """Makes the page of a report, and puts it there."""
    # Imported here: without a page, compiling its template costs nothing.
    from ..plugin_utils.report_page import render

    return lambda document: pages.append(render(document))


def _module(task: Any) -> str:
    return str(task.action).rpartition(".")[2]


def _modules(play: Any) -> set[str]:
    return {_module(task) for task in _tasks(play.get_tasks())}


def _tasks(entries: Iterable[Any]) -> Iterator[Any]:
    """The tasks of a play that are there before it runs; blocks, as imported roles are, hold
    others.
    """
    for entry in entries:
        if isinstance(entry, list):
            yield from _tasks(entry)
        elif hasattr(entry, "block"):
            yield from _tasks([*entry.block, *entry.rescue, *entry.always])
        else:
            yield entry


def _write(path: Path, text: str) -> None:
    """Whole or not at all; like the results in it, it is for the owner and the group."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, flags, 0o640), "w", encoding="utf-8") as stream:
            stream.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
