"""The folder of MoE configuration files: SGLang's own, which an upgrade replaces, and ours, which
it does not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import paths, versions
from sgl_admin.base.engine import Lookup
from sgl_admin.base.errors import StageFailure
from sgl_admin.moe import config_files
from sgl_admin.moe.tables import Pair
from sgl_admin.sglang import ENGINE, releases
from tests.unit.test_gpu_stages import measured

LOOKUP = Lookup(513, 512, "fp8_w8a8", (128, 128))
NAME = ENGINE.moe.file_name(LOOKUP, "NVIDIA GH200 480GB")
DOWN = NAME.replace(".json", "_down.json")
OTHER = "E=8,N=14336,device_name=NVIDIA_H200.json"
TUNING = {"E": 513, "sglang": "0.5.17"}
TILE = {
    "BLOCK_SIZE_M": 16,
    "BLOCK_SIZE_N": 64,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 1,
    "num_warps": 4,
    "num_stages": 3,
}


class Site:
    """A folder on sys.path with an installed SGLang of no code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.release, _ = releases.of("0.5.17")

    def install(self, version: str, contents: dict[str, Any]) -> None:
        """Install this version in the place of another; `contents` are its configurations, by name
        below `configs`.
        """
        for old in self.folder.glob("sglang-*.dist-info"):
            old.rmdir()
        (self.folder / f"sglang-{version}.dist-info").mkdir(parents=True)
        versions._distributions.cache_clear()
        self.release, _ = releases.of(version)
        package = self.folder / "sglang"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        configs = package / self.release.moe_configs / "configs"
        for file in [*configs.glob("*/*.json")]:
            file.unlink()
        for name, content in contents.items():
            (configs / name).parent.mkdir(parents=True, exist_ok=True)
            (configs / name).write_text(json.dumps(content))

    def place(self) -> int:
        return config_files.place_built_in(self.release)


@pytest.fixture
def site(container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    made = Site(folder)
    made.install(
        "0.5.17",
        {
            f"triton_3_6_0/{NAME}": {"1": TILE},
            f"triton_3_6_0/{DOWN}": {"1": TILE},
            f"triton_3_5_1/{OTHER}": {"64": TILE},
        },
    )
    yield made
    versions._distributions.cache_clear()


def placed() -> dict[str, Any]:
    configs = config_files.root() / "configs"
    return {
        str(path.relative_to(configs)): json.loads(path.read_text())
        for path in configs.rglob("*.json")
    }


def stamps() -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in config_files.root().rglob("*")
        if path.is_file()
    }


def ours() -> Path:
    return config_files.folder("3.6.0") / NAME


def test_the_folder_is_where_sglang_looks_for_this_triton(container: Path) -> None:
    assert (
        config_files.folder("3.6.0") == paths.PROFILES / "moe_configs" / "configs" / "triton_3_6_0"
    )


@pytest.mark.parametrize("version", ["0.5.3", "0.5.9", "0.5.17", "0.5.23"])
def test_sglangs_own_files_are_placed_once(site: Site, version: str) -> None:
    site.install(
        version, {f"triton_3_6_0/{NAME}": {"1": TILE}, f"triton_3_5_1/{OTHER}": {"64": TILE}}
    )
    assert site.place() == 2
    assert placed() == {f"triton_3_6_0/{NAME}": {"1": TILE}, f"triton_3_5_1/{OTHER}": {"64": TILE}}
    before = stamps()
    assert site.place() == 0 and stamps() == before, "a second call writes nothing"


def test_one_that_is_gone_is_placed_again(site: Site) -> None:
    site.place()
    expected = placed()
    ours().unlink()
    assert site.place() == 3 and placed() == expected


def test_an_upgrade_replaces_sglangs_own_files_and_removes_those_that_it_has_no_more(
    site: Site,
) -> None:
    site.place()
    site.install(
        "0.5.23", {f"triton_3_6_0/{NAME}": {"2": TILE}, f"triton_3_7_1/{OTHER}": {"64": TILE}}
    )
    assert site.place() == 2
    assert placed() == {f"triton_3_6_0/{NAME}": {"2": TILE}, f"triton_3_7_1/{OTHER}": {"64": TILE}}
    assert site.place() == 0


def test_an_upgrade_leaves_ours(site: Site) -> None:
    site.place()
    config_files.add(ours(), TUNING, 16, TILE)
    mine = config_files.folder("3.6.0") / OTHER
    config_files.add(mine, TUNING, 4, TILE)
    site.install(
        "0.5.23",
        {
            f"triton_3_6_0/{NAME}": {"2": TILE},
            f"triton_3_6_0/{DOWN}": {"2": TILE},
            f"triton_3_6_0/{OTHER}": {"2": TILE},
        },
    )
    assert site.place() == 0
    assert placed() == {
        f"triton_3_6_0/{NAME}": {"1": TILE, "16": TILE},
        f"triton_3_6_0/{DOWN}": {"1": TILE, "16": TILE},
        f"triton_3_6_0/{OTHER}": {"4": TILE},
        f"triton_3_6_0/{OTHER.replace('.json', '_down.json')}": {"4": TILE},
    }
    assert sorted(config_files.tuned(ours(), TUNING)) == [16], (
        "what was SGLang's own in it is not ours"
    )


@pytest.mark.parametrize("killed_at", range(6))
def test_what_a_killed_placing_leaves_does_not_pass_for_ours(
    site: Site, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Killed at each of its writes, of a first placing and of an upgrade; the file that was being
    written is torn.
    """
    real, calls = Path.write_bytes, []

    class Killed(Exception):
        pass

    def write_bytes(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) == killed_at + 1:
            real(self, content[:5])
            raise Killed
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    upgraded = {
        f"triton_3_6_0/{NAME}": {"2": TILE},
        f"triton_3_6_0/{OTHER}": {"2": TILE},
        f"triton_3_7_1/{OTHER}": {"64": TILE},
    }
    downs = 0
    for version, contents in (("0.5.17", None), ("0.5.23", upgraded)):
        if contents:
            site.install(version, contents)
        try:
            site.place()
        except Killed:
            downs += 1
            site.place()
    assert downs == 1 and placed() == upgraded
    assert site.place() == 0


def test_the_union_of_old_and_new_batch_sizes_is_written_as_sglang_reads_it(site: Site) -> None:
    site.install(
        "0.5.17",
        {f"triton_3_6_0/{NAME}": {"1": {**TILE, "num_warps": 8}, "16": TILE, "1024": TILE}},
    )
    site.place()
    better = {**TILE, "num_stages": 4}
    config_files.add(ours(), TUNING, 16, better)
    config_files.add(ours(), TUNING, 2, better)
    text = ours().read_text()
    found = json.loads(text)
    assert found == {"1": {**TILE, "num_warps": 8}, "2": better, "16": better, "1024": TILE}
    assert list(found) == ["1", "2", "16", "1024"] and text == json.dumps(found, indent=4) + "\n"
    # As SGLang takes it in: its keys as numbers, its values as the kernel's keywords.
    assert {int(size): config for size, config in found.items()} == config_files.read(ours())
    assert config_files.tuned(ours(), TUNING) == {2: better, 16: better}


def test_the_down_projections_shipped_rows_stay_beside_ours(site: Site) -> None:
    """Their TMA path, too: as SGLang ships it for an H200 (0.5.17, triton_3_6_0)."""
    by_tma = {**TILE, "USE_TMA": True}
    shipped = {str(size): TILE for size in (1, 512, 1024)}
    site.install(
        "0.5.17",
        {f"triton_3_6_0/{NAME}": shipped, f"triton_3_6_0/{DOWN}": dict.fromkeys(shipped, by_tma)},
    )
    site.place()
    better = {**TILE, "num_stages": 4}
    config_files.add(ours(), TUNING, 512, better, {**better, "USE_TMA": True})
    assert placed() == {
        f"triton_3_6_0/{NAME}": {**shipped, "512": better},
        f"triton_3_6_0/{DOWN}": {"1": by_tma, "512": {**better, "USE_TMA": True}, "1024": by_tma},
    }
    site.install("0.5.23", {f"triton_3_6_0/{NAME}": {"2": TILE}})
    before = placed()
    site.place()
    assert placed() == before, "both are ours from now on"


def test_a_row_that_has_none_for_the_down_projection_keeps_its_meaning(site: Site) -> None:
    """SGLang takes the up projection's where there is no other file, and the nearest row of one
    that is there: one row of ours alone would answer for every size.
    """
    wide = {**TILE, "BLOCK_SIZE_M": 64}
    site.install("0.5.17", {f"triton_3_6_0/{NAME}": {"1": TILE, "1024": wide}})
    site.place()
    config_files.add(ours(), TUNING, 16, TILE, {**TILE, "USE_TMA": True})
    assert placed()[f"triton_3_6_0/{DOWN}"] == {
        "1": TILE,
        "16": {**TILE, "USE_TMA": True},
        "1024": wide,
    }


@pytest.mark.parametrize("torn", [None, "", "{}", '{"32": {"BLOCK_SIZE_M": 16}}'])
def test_without_its_neighbour_for_the_down_projection_nothing_is_tuned(
    site: Site, torn: str | None
) -> None:
    """SGLang would take the up projection's rows for it, which were never measured."""
    config_files.add(ours(), TUNING, 16, TILE, {**TILE, "USE_TMA": True})
    assert list(config_files.tuned(ours(), TUNING)) == [16]
    down = config_files.down_file(ours())
    if torn is None:
        down.unlink()
    else:
        down.write_text(torn)
    assert config_files.tuned(ours(), TUNING) == {}
    config_files.add(ours(), TUNING, 16, TILE, both=False)
    down.unlink(missing_ok=True)
    assert list(config_files.tuned(ours(), TUNING)) == [16], "a release that reads none needs none"


def test_a_release_that_reads_no_file_of_the_down_projection_gets_none(site: Site) -> None:
    config_files.add(ours(), TUNING, 16, TILE, both=False)
    assert set(placed()) == {f"triton_3_6_0/{NAME}"}


# --- what stands until something is tuned


def test_rows_that_stand_meanwhile_are_not_ours_and_give_way(site: Site) -> None:
    site.install("0.5.17", {f"triton_3_5_1/{OTHER}": {"64": TILE}})
    site.place()
    default = {name: TILE[name] for name in list(TILE)[:4]}
    config_files.lay(ours(), {1: Pair(default, default), 64: Pair(default, default)}, True)
    both = {f"triton_3_6_0/{name}": {"1": default, "64": default} for name in (NAME, DOWN)}
    assert {name: placed()[name] for name in both} == both
    assert config_files.tuned(ours(), TUNING) == {} and site.place() == 0
    assert "previous" not in config_files.rivals(ours(), site.release, ["x"], "3.6.0")
    config_files.lay(ours(), {2: Pair(TILE, TILE)}, True)
    assert {name: placed()[name] for name in both} == both, "laid once"
    site.install("0.5.23", {f"triton_3_6_0/{NAME}": {"2": TILE}})
    site.place()
    assert placed() == {f"triton_3_6_0/{NAME}": {"2": TILE}}, "SGLang has one now"


def test_rows_that_stand_meanwhile_answer_where_nothing_is_tuned_yet(site: Site) -> None:
    site.install("0.5.17", {f"triton_3_5_1/{OTHER}": {"64": TILE}})
    site.place()
    slow = {**TILE, "num_warps": 8}
    config_files.lay(ours(), {1: Pair(slow, slow), 64: Pair(slow, slow)}, True)
    config_files.add(ours(), TUNING, 64, TILE)
    assert config_files.read(ours()) == {1: slow, 64: TILE}
    assert list(config_files.tuned(ours(), TUNING)) == [64]


# --- rivals


def test_the_rivals_are_what_sglang_would_read_and_what_stands(site: Site) -> None:
    """As `get_moe_configs` finds a file (0.5.17): of this Triton, or of the newest that has it,
    each projection's by itself.
    """
    h200, h100 = (
        ENGINE.moe.file_name(LOOKUP, name) for name in ("NVIDIA H200", "NVIDIA H100 80GB HBM3")
    )
    names = ["NVIDIA GH200 480GB", "NVIDIA H200", "NVIDIA H100 80GB HBM3"]
    old, new, newest = ({**TILE, "num_stages": stages} for stages in (2, 3, 4))
    site.install(
        "0.5.17",
        {
            f"triton_3_1_0/{h200}": {"1": old},
            f"triton_3_10_0/{h200}": {"1": newest},
            f"triton_3_5_1/{ENGINE.moe.down_name(h200)}": {"1": new},
            f"triton_3_6_0/{h100}": {"8": new},
        },
    )
    site.place()
    found = config_files.rivals(ours(), site.release, names, "3.6.0")
    assert found == {
        "default": {"up": None, "down": None},
        "nearest:NVIDIA H200": {"up": {1: newest}, "down": {1: new}},
        "nearest:NVIDIA H100 80GB HBM3": {"up": {8: new}, "down": None},
    }
    config_files.add(ours(), TUNING, 4, old)
    found = config_files.rivals(ours(), site.release, names, "3.6.0")
    assert found["previous"] == {"up": {4: old}, "down": {4: old}}
    mine = ours().with_name(h200)
    found = config_files.rivals(mine, site.release, names[1:], "3.6.0")
    assert list(found) == ["default", "shipped", "nearest:NVIDIA H100 80GB HBM3"]


# --- what was measured


def test_what_was_measured_stays_with_its_batch_sizes(site: Site) -> None:
    row = measured(16)
    config_files.add(ours(), TUNING, 16, TILE, TILE, row)
    config_files.add(ours(), TUNING, 32, TILE)
    assert config_files.gains(ours(), TUNING) == {16: row}
    assert config_files.gains(ours(), {**TUNING, "E": 1}) == {}
    assert config_files.filled_to(ours(), TUNING) == 0
    config_files.filled(ours(), TUNING, 4096)
    config_files.add(ours(), TUNING, 64, TILE)
    assert config_files.filled_to(ours(), TUNING) == 4096
    assert config_files.filled_to(ours(), {**TUNING, "E": 1}) == 0


@pytest.mark.parametrize("wrong", [{"after": None}, {"after": 0}, {"source": "x"}, {"default": -1}])
def test_a_measured_row_of_another_form_is_none(site: Site, wrong: dict[str, Any]) -> None:
    config_files.add(ours(), TUNING, 16, TILE, TILE, {**measured(16), **wrong})
    assert config_files.gains(ours(), TUNING) == {}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"16": []}', '{"sixteen": {}}', '{"16": {}', "\xff"]
)
def test_a_file_of_ours_that_cannot_be_read_is_made_anew(site: Site, content: str) -> None:
    config_files.add(ours(), TUNING, 2, TILE)
    config_files.add(ours(), TUNING, 16, TILE)
    ours().write_text(content)
    assert config_files.read(ours()) == {} and config_files.tuned(ours(), TUNING) == {}
    config_files.add(ours(), TUNING, 16, TILE)
    assert json.loads(ours().read_text()) == {"16": TILE} and config_files.tuned(
        ours(), TUNING
    ) == {16: TILE}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"files": [[]], "sglang": "0.5.17"}', '{"files": 3}']
)
def test_a_record_of_sglangs_files_that_cannot_be_read_makes_all_of_them_ours(
    site: Site, content: str
) -> None:
    """None of ours is lost that way; SGLang's own are what they were."""
    site.place()
    before = placed()
    (config_files.root() / ".built_in.json").write_text(content)
    config_files.add(ours(), TUNING, 16, TILE)
    site.place()
    both = {f"triton_3_6_0/{name}": {"1": TILE, "16": TILE} for name in (NAME, DOWN)}
    assert placed() == {**before, **both}


def test_an_sglang_without_a_version_has_its_files_placed(site: Site) -> None:
    for folder in site.folder.glob("*.dist-info"):
        folder.rmdir()
    versions._distributions.cache_clear()
    assert versions.installed("sglang") is None
    assert site.place() == 3 and site.place() == 0


@pytest.mark.parametrize("missing", ["configs", "sglang"])
def test_an_sglang_without_its_configurations_is_told(site: Site, missing: str) -> None:
    package = site.folder / "sglang"
    if missing == "sglang":
        (package / "__init__.py").unlink()
    else:
        site.release, _ = releases.of("0.5.3")
    with pytest.raises(StageFailure, match="the server would not start without them") as caught:
        site.place()
    assert caught.value.error_type == "config_missing" and placed() == {}


def test_another_tunings_batch_sizes_are_not_counted_as_tuned(site: Site) -> None:
    config_files.add(ours(), TUNING, 16, TILE)
    config_files.add(ours(), TUNING, 32, TILE)
    newer = {**TUNING, "sglang": "0.5.23"}
    assert (
        sorted(config_files.tuned(ours(), TUNING)) == [16, 32]
        and config_files.tuned(ours(), newer) == {}
    )
    other = {**TILE, "num_warps": 8}
    config_files.add(ours(), newer, 16, other)
    assert (
        config_files.tuned(ours(), newer) == {16: other}
        and config_files.tuned(ours(), TUNING) == {}
    )
    assert config_files.read(ours()) == {
        16: other,
        32: TILE,
    }, "the other one's stay where ours has none"


def test_a_file_that_is_gone_has_nothing_tuned(site: Site) -> None:
    config_files.add(ours(), TUNING, 16, TILE)
    ours().unlink()
    assert config_files.tuned(ours(), TUNING) == {}


@pytest.mark.parametrize("lookup", [LOOKUP, Lookup(8, 64, None, None)])
def test_what_a_server_asked_for_is_remembered_by_its_settings(
    container: Path, lookup: Lookup
) -> None:
    config_files.remember("a1", lookup)
    assert config_files.remembered("a1") == lookup and config_files.remembered("b2") is None
    (config_files.root() / config_files.TUNED / "lookup-a1.json").write_text("{")
    assert config_files.remembered("a1") is None


# --- rows that give way to another tuning's, and come back


NEXT = {**TUNING, "sglang": "0.5.23"}
FAST, SLOW = {**TILE, "num_stages": 5}, {**TILE, "num_stages": 2}


def two_tunings() -> Path:
    """A file that one image tuned, and then another one."""
    path = config_files.folder("3.6.0") / NAME
    for size in (8, 64):
        config_files.add(path, TUNING, size, FAST, SLOW, measured(size))
    config_files.filled(path, TUNING, 4096)
    config_files.add(path, NEXT, 8, SLOW, FAST, measured(8))
    return path


def seen(path: Path) -> tuple[Any, ...]:
    record = json.loads(config_files.tuned_record(path).read_text())
    return config_files.rows(path), record


def test_a_replaced_tuning_comes_back_as_it_was_and_so_does_the_other(site: Site) -> None:
    path = config_files.folder("3.6.0") / NAME
    for size in (8, 64):
        config_files.add(path, TUNING, size, FAST, SLOW, measured(size))
    config_files.filled(path, TUNING, 4096)
    first = seen(path)
    assert config_files.replaced(path, TUNING) == {}
    config_files.add(path, NEXT, 8, SLOW, FAST, measured(8))
    second = seen(path)
    for tuning, expected in [(TUNING, first), (NEXT, second), (TUNING, first)]:
        assert sorted(config_files.replaced(path, tuning)) == sorted(expected[1]["batch_sizes"])
        config_files.take_back(path, tuning)
        assert seen(path) == expected and config_files.replaced(path, tuning) == {}
    assert config_files.filled_to(path, TUNING) == 4096


def test_what_stands_is_not_taken_back_over(site: Site) -> None:
    path = two_tunings()
    before = seen(path)
    for tuning in (NEXT, {"E": 1}):
        config_files.take_back(path, tuning)
        assert seen(path) == before


@pytest.mark.parametrize("at", ["rows", "record"])
def test_one_that_is_killed_while_it_comes_back_comes_back_the_next_time(
    site: Site, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = two_tunings()
    name = {"rows": "_write", "record": "_forget_built_in"}[at]
    with monkeypatch.context() as patch:
        patch.setattr(config_files, name, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            config_files.take_back(path, TUNING)
    config_files.take_back(path, TUNING)
    rows, record = seen(path)
    assert rows == {8: Pair(FAST, SLOW), 64: Pair(FAST, SLOW)} and record["tuning"] == TUNING
    config_files.take_back(path, NEXT)
    assert config_files.rows(path)[8] == Pair(SLOW, FAST)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tuning": 1}', "{" * 200])
def test_a_replaced_tuning_whose_record_cannot_be_read_is_none(site: Site, content: str) -> None:
    path = two_tunings()
    (record,) = config_files.root().glob(".tuned/replaced/*/record-*")
    record.write_text(content)
    before = seen(path)
    config_files.take_back(path, TUNING)
    assert config_files.replaced(path, TUNING) == {} and seen(path) == before
