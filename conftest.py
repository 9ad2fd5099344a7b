"""Makes `import ansible_collections.slice_bench.sglang...` mean this checkout in every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import tools

pytest_plugins = ["tests.hosts.fixtures"]

# A busy machine is no fault of what is tested.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).resolve().parent
COLLECTIONS = ROOT / ".ansible" / "collections"

# ansible_collections is a namespace package: this adds to the one that the Python package "ansible"
# installs, and comes before it.
sys.path.insert(0, str(COLLECTIONS))


def pytest_configure(config: pytest.Config) -> None:
    link = COLLECTIONS / "ansible_collections" / "slice_bench" / "sglang"
    if link.resolve() != ROOT:
        raise pytest.UsageError(
            f"{link} does not lead to this checkout: run `make setup`, which makes that link."
        )
    # The folders that are named: collecting their tests takes seconds.
    if config.args_source is config.ArgsSource.ARGS:
        _require(config, (Path(arg.partition("::")[0]) for arg in config.args))


def pytest_collection_finish(session: pytest.Session) -> None:
    _require(session.config, (item.path for item in session.items))


def _require(config: pytest.Config, paths: Iterable[Path]) -> None:
    """Say at once what the chosen tests need and this machine lacks."""
    if config.option.collectonly:
        return
    places = {tools.place_of(path) for path in paths} - {None}
    if message := tools.lacking(place for place in places if place):
        raise pytest.UsageError(message)


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """The usual one: sgl-admin sets its process's umask, and one test must not set another's."""
    umask = os.umask(0o022)
    yield
    os.umask(umask)
