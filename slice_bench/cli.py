"""`python -m slice_bench.cli`: what SLICE-Bench calls, without knowing Ansible."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def bootstrap() -> None:
    """Go on in the checkout's own environment, made where it is missing: this Python may have no
    Ansible, or another one.
    """
    environment = CHECKOUT / ".venv"
    if Path(sys.prefix).resolve() == environment.resolve():
        return
    if subprocess.run([str(CHECKOUT / "scripts" / "setup.sh"), "base"], check=False).returncode:
        sys.exit(f"slice_bench: {environment} could not be made; the lines above say why")
    python = str(environment / "bin" / "python")
    os.execve(
        python,
        [python, "-m", "slice_bench.cli", *sys.argv[1:]],
        {**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )


def parser() -> argparse.ArgumentParser:
    from slice_bench import caller, fleet

    top = argparse.ArgumentParser(
        prog="slice_bench",
        description=(
            "Prepare this machine, or a fleet, to benchmark SGLang, without knowing Ansible."
        ),
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name: str, text: str, manual: str = caller.MANUAL) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=manual,
            allow_abbrev=manual == caller.MANUAL,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    start = command(
        "start",
        "start the observability container; VALIDATE_ONLY=1 only makes and checks the directories",
    )
    stop = command(
        "stop", "stop and remove the container and its pointer; harmless where nothing runs"
    )
    stop.add_argument(
        "--force",
        action="store_true",
        help="end a prep, a benchmark's server or a smoke that runs in it too",
    )
    prep = command(
        "provider-prep", "warm the caches for a profile and prove that its server's metrics arrive"
    )
    _add_prep_arguments(prep)
    of_the_container = _add_commands_of_the_container(command)
    system = command(
        "system", "print a description of the host in the form of MLPerf's submissions, as JSON"
    )
    smoke = command("smoke", "ask the prepared server the questions of a scenario, and sum up")
    for of_one_host in (start, stop, prep, *of_the_container, system, smoke):
        caller.add_arguments(of_one_host)
    smoke.add_argument(
        "scenario", nargs="?", help="a YAML file (default: the one that the role smoke ships)"
    )
    smoke.add_argument("--json", action="store_true", help="print the summary as JSON")

    command("profiles", "list the profiles")

    fleet.add_arguments(
        command(
            "fleet", "prepare all hosts of an inventory, or sum up the report of that", fleet.MANUAL
        )
    )
    return top


def _add_commands_of_the_container(
    command: Callable[..., argparse.ArgumentParser],
) -> tuple[argparse.ArgumentParser, ...]:
    """Those that sgl-admin answers."""
    from slice_bench import caller

    server = command(
        "server",
        "start exactly the server that was prepared, ask after it, or stop it",
        f"Any other argument is that of `sgl-admin server`, such as --json.\n\n{caller.MANUAL}",
    )
    server.add_argument("action", choices=("start", "status", "stop"))
    server.add_argument(
        "profile", nargs="?", help="start: the profile whose server it is (default: the latest)"
    )

    ready = command(
        "ready",
        "say whether METRICS_READY holds now: exit code 0 where it does, 6 where not",
        f"Any other argument is that of `sgl-admin ready`, such as --json.\n\n{caller.MANUAL}",
    )
    perf = command(
        "perf",
        "measure whether the host is fast, for the server that was prepared: exit code 0 where it"
        " is, 14 where not",
        f"Any other argument is that of `sgl-admin perf`, such as --json.\n\n{caller.MANUAL}",
    )
    perf.add_argument(
        "profile", nargs="?", help="the profile that was prepared (default: the latest)"
    )
    perf.add_argument(
        "--rebuild", action="store_true", help="measure again, where a measurement stands"
    )
    prep = command(
        "prep",
        "end the prep that runs, in order: finished stages stay",
        f"Any other argument is that of `sgl-admin prep`, such as --json.\n\n{caller.MANUAL}",
    )
    prep.add_argument("action", choices=("cancel",))
    return ready, server, perf, prep


def _add_prep_arguments(prep: argparse.ArgumentParser) -> None:
    from sgl_admin.contract.stages import STAGES

    prep.add_argument(
        "profile",
        nargs="+",
        help="its name; `profiles` lists them. Several are prepared one after another",
    )
    prep.add_argument("--tune-moe", action="store_true", help="tune the mixture-of-experts kernel")
    for flag in dict.fromkeys(stage.skipped_by for stage in STAGES if stage.skipped_by):
        skipped = [stage.text for stage in STAGES if stage.skipped_by == flag]
        prep.add_argument(
            flag,
            dest="skipped",
            action="append_const",
            const=flag,
            default=[],
            help=f"leave {' and '.join(skipped)}",
        )
    prep.add_argument(
        "--skip-moe-fusion-cache",
        action="store_true",
        help="after tuning, do not compile the fused kernels with a server",
    )
    prep.add_argument("--tp", type=int, help="tensor parallel size, instead of the profile's")
    prep.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    prep.add_argument(
        "--json", action="store_true", help="print the prep_result before the RESULT lines"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command; not 0 where what it says could not be written."""
    from sgl_admin.contract.texts import say_lines, unwritten

    code = _run(argv)
    if (problem := unwritten()) is not None:
        say_lines(f"ERROR: {problem}", sys.stderr)
        return code or 1
    return code


def _run(argv: Sequence[str] | None) -> int:
    top = parser()
    arguments, further = top.parse_known_args(argv)
    from sgl_admin.contract.texts import say, say_lines
    from slice_bench import caller, commands
    from slice_bench.playbook import EXIT_FAILED, EXIT_USAGE, Failed

    # A fleet's other arguments are ansible-playbook's, those of the container sgl-admin's.
    if further and arguments.command not in ("fleet", *commands.IN_CONTAINER):
        top.error(f"unrecognized arguments: {' '.join(further)}")
    arguments.further = further

    try:
        found = caller.with_arguments(caller.from_environment(), arguments)
        return commands.COMMANDS[arguments.command](arguments, found)
    except caller.WrongUsage as error:
        say_lines(f"ERROR: {error}", sys.stderr)
        return EXIT_USAGE
    except Failed as failure:
        say_lines(f"ERROR: {failure}", sys.stderr)
        return failure.exit_code
    except OSError as error:
        say_lines(f"ERROR: {error}", sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        say(
            "ERROR: no longer followed; a prep that had begun goes on: ask the same again to attach"
            " to it, or end it (slice_bench prep cancel)",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    bootstrap()
    # Its playbook is ended in order too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
