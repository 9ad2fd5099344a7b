"""A prep of all hosts of an inventory, or the report of one: a summary in lines or as JSON, and an
exit code for whether all are ready.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from sgl_admin.contract import texts
from slice_bench.caller import Caller, WrongUsage
from slice_bench.collection import part
from slice_bench.playbook import EXIT_FAILED, EXIT_USAGE, Failed, play_fleet

EXIT_INTERRUPTED = 130
# What sums up a report.
_REPORT_FLEET = "plugin_utils.report_fleet"
# How ansible-playbook ends when a person interrupts it, and on an error of its own.
_INTERRUPTED = (99, -signal.SIGINT, -signal.SIGTERM)
_UNEXPECTED = 250
MANUAL = """\
Any other argument is ansible-playbook's, such as --check, --forks 200 or \
-e sgl_cache_share=registry. What the hosts are, their
inventory says; HOST_OBS_ROOT and the like in the environment are not asked.

environment:
  ANSIBLE_INVENTORY            the inventory, where no -i is given (default: \
inventories/local, this machine)
  ANSIBLE_CONFIG               a lab's own ansible.cfg (default: the checkout's)
  SGL_REPORT_DIR               where the report goes (default: reports/ in the checkout)

exit codes: 0 every host is METRICS_READY (with --check: nothing would fail), 1 some host is not,
            2 wrong usage, or nothing could be run (no inventory, no host matched), 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--inventory",
        action="append",
        default=[],
        help="the hosts: a file, a folder, or names separated by commas",
    )
    parser.add_argument("-l", "--limit", help="only these of them")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the summary as JSON, and all else on standard error",
    )
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="run nothing: sum up this report (its JSON)"
    )


def run(arguments: argparse.Namespace, caller: Caller) -> int:
    if arguments.report:
        if arguments.inventory or arguments.limit or arguments.further:
            raise WrongUsage("--report runs nothing, so it takes nothing to run with")
        report = read(arguments.report)
    else:
        report = prepare(arguments, caller)
    return say(report, arguments.json)


def prepare(arguments: argparse.Namespace, caller: Caller) -> dict[str, Any]:
    """Run the playbook; returns its report. Raises Failed where there is none, or where it says
    nothing of why the run failed.
    """
    words = (*caller.flags, *arguments.further)
    code, report = play_fleet("prep", *words, output_on_stderr=arguments.json)
    if code in _INTERRUPTED:
        raise Failed(
            "the run was interrupted; a prep that had begun goes on: ask the same again to attach"
            " to it",
            EXIT_INTERRUPTED,
        )
    if report is None and (code < 0 or code == _UNEXPECTED):
        raise Failed(
            f"ansible-playbook broke off (exit code {code}), so it is not known which hosts are"
            " ready: run this again"
        )
    if report is None or not report["hosts"]:
        raise Failed(
            "nothing was run: no host matched, or what is said above (ansible-playbook ended with"
            f" exit code {code})",
            EXIT_USAGE,
        )
    if code and exit_code(report) == 0:
        raise Failed(
            f"all hosts are ready, but ansible-playbook ended with exit code {code}: the lines"
            " above say why"
        )
    return report


def read(path: Path) -> dict[str, Any]:
    """The report in a file, also one of an older release. Raises WrongUsage."""
    try:
        report = texts.read_json_text(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongUsage(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise WrongUsage(f"{path} is not JSON: {error}") from error
    if (
        not isinstance(report, dict)
        or not isinstance(report.get("hosts"), list)
        or "report_id" not in report
    ):
        raise WrongUsage(f"{path} is no report: name the report-....json that lies beside the page")
    if not report["hosts"]:
        raise WrongUsage(f"{path} has no host")
    return report


def say(report: dict[str, Any], as_json: bool) -> int:
    """Print the summary; returns the exit code. Raises WrongUsage where the report breaks its
    schema.
    """
    try:
        of_fleet = part(_REPORT_FLEET)
        lines, found = of_fleet.summary(report), of_fleet.of_report(report)
        code = exit_code(report)
        about = {
            key: report[key]
            for key in ("report_id", "check_mode", "started_at", "finished_at", "duration_s")
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise WrongUsage(f"{report.get('report_id')} is no whole report: {error!r}") from error
    for line in lines:
        texts.say(line, sys.stderr if as_json else sys.stdout)
    if as_json:
        texts.say_json({**about, "exit_code": code, **found}, indent=2)
    return code


def exit_code(report: dict[str, Any]) -> int:
    fleet = part(_REPORT_FLEET).of_report(report)
    if report["check_mode"]:
        return EXIT_FAILED if fleet["failures"] or fleet["not_finished"] else 0
    ready = fleet["metrics_ready"]
    return 0 if ready["ready"] == ready["of"] > 0 else EXIT_FAILED
