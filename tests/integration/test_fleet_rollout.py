"""Who makes what in a fleet, and when: the real playbook and roles over hosts that are names (see
tests/doubles/fleet).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.fleet.checkout import FleetCheckout

pytestmark = pytest.mark.slow

SIZES = [1, 2, 4, 8, 16, 32, 64]


@pytest.fixture
def fleet(tmp_path: Path) -> FleetCheckout:
    return FleetCheckout(tmp_path)


def tuned(fleet: FleetCheckout, host: str) -> list[int]:
    """The batch sizes that a host tuned itself, in all its preps."""
    path = fleet.states / host / "tuned"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def has(fleet: FleetCheckout, host: str) -> list[int]:
    return sorted(
        int(path.name.rpartition("-")[2]) for path in (fleet.states / host).glob("moe_tune-size-*")
    )


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_batch_sizes_are_spread_over_hosts_and_all_get_the_union(
    fleet: FleetCheckout, shards: int
) -> None:
    """Each size is tuned once in the whole fleet, by as many hosts as were asked for, and nearly as
    many by each.
    """
    hosts = ["a", "b", "c"]
    fleet.hosts({name: {} for name in hosts}, double_sizes=SIZES, sgl_tune_shards=shards)
    done = fleet.run()
    assert done.code == 0, done.output
    by_host = [tuned(fleet, name) for name in hosts]
    assert sorted(size for sizes in by_host for size in sizes) == SIZES
    shares = sorted(len(sizes) for sizes in by_host if sizes)
    assert len(shares) == min(shards, len(hosts)) and shares[-1] - shares[0] <= 1
    assert all(has(fleet, name) == SIZES for name in hosts)
    again = fleet.run()
    assert again.code == 0 and [tuned(fleet, name) for name in hosts] == by_host, again.output


def test_the_share_of_a_host_that_fails_is_tuned_by_another(fleet: FleetCheckout) -> None:
    fleet.hosts(
        {"a": {}, "b": {"tuner_fails": True}, "c": {}}, double_sizes=SIZES, sgl_tune_shards=3
    )
    done = fleet.run()
    assert done.code == 2 and done.report is not None, done.output
    assert [host["host"] for host in done.report["hosts"] if host["metrics_ready"]] == ["a", "c"]
    assert sorted(tuned(fleet, "a") + tuned(fleet, "c")) == SIZES and tuned(fleet, "b") == []


def test_a_host_that_lacks_only_its_proof_gives_what_it_has(fleet: FleetCheckout) -> None:
    """As after its container was recreated: its caches stand, and no host makes them once more."""
    warm = fleet.states / "a"
    warm.mkdir()
    for stage in ("moe_tune", "inductor"):
        (warm / stage).touch()
    fleet.hosts({"a": {}, "b": {}})
    done = fleet.run()
    assert done.code == 0 and done.report is not None, done.output
    assert done.report["fleet"]["tuning_s"] == 0 and done.report["fleet"]["metrics_ready"] == {
        "ready": 2,
        "of": 2,
    }


def test_the_canary_makes_it_and_the_batches_take_it(fleet: FleetCheckout) -> None:
    names = [f"h{number}" for number in range(6)]
    fleet.hosts({name: {} for name in names}, double_sizes=SIZES, sgl_canary=1, sgl_batch=2)
    done = fleet.run()
    assert done.code == 0, done.output
    assert [tuned(fleet, name) for name in names] == [SIZES, *([[]] * 5)]
    assert done.output.count("PLAY [Prepare hosts to benchmark]") == 4


def test_a_canary_that_is_refused_is_followed_by_another(fleet: FleetCheckout) -> None:
    """What the preflight refused takes no place in a batch: the next host goes first, alone."""
    names = ["h0", "h1", "h2", "h3"]
    fleet.hosts(
        {"h0": {"refused": "foreign tree"}, **{name: {} for name in names[1:]}}, sgl_canary=1
    )
    done = fleet.run()
    assert done.code == 2, done.output
    first_batch = done.output.split("PLAY [Prepare hosts to benchmark]")[1]
    assert "[h1]" in first_batch and "[h2]" not in first_batch, first_batch


def test_more_refusals_than_allowed_stop_all_before_anything_changes(fleet: FleetCheckout) -> None:
    fleet.hosts(
        {"a": {"refused": "foreign tree"}, "b": {}, "c": {}, "d": {}}, sgl_max_fail_percentage=20
    )
    done = fleet.run()
    assert done.code == 2 and "1 of 4 hosts were refused" in done.output, done.output
    assert "PLAY [Prepare hosts to benchmark]" not in done.output
    fleet.hosts(
        {"a": {"refused": "foreign tree"}, "b": {}, "c": {}, "d": {}}, sgl_max_fail_percentage=25
    )
    done = fleet.run()
    assert done.report is not None and done.report["fleet"]["metrics_ready"] == {
        "ready": 3,
        "of": 4,
    }, done.output


def test_each_profile_is_prepared_on_each_host_with_a_proof_of_its_own(
    fleet: FleetCheckout, tmp_path: Path
) -> None:
    """One after another, with what the first one made: no stage is done twice."""
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    for name in ("one", "two"):
        (profiles / f"{name}.yml").write_text(f"model: {{name: of/{name}}}\n")
    fleet.hosts({"a": {}, "b": {}}, sgl_profiles=["one", "two"], double_sizes=SIZES)
    before = fleet.run("--check")
    assert before.code == 0 and before.report is not None, before.output
    assert all(
        [row["metrics_ready"] for row in host["profiles"]] == [None, None]
        for host in before.report["hosts"]
    )
    done = fleet.run()
    assert done.code == 0 and done.report is not None, done.output
    assert [tuned(fleet, name) for name in ("a", "b")] == [SIZES, []]
    for host in done.report["hosts"]:
        rows = [(row["profile"], row["metrics_ready"]) for row in host["profiles"]]
        assert rows == [("one", True), ("two", True)]
    assert "profile one: 2 of 2" in done.output and "profile two: 2 of 2" in done.output
    models = set((fleet.states / "b" / "asked").read_text().split("\n")) - {""}
    assert models == {"one /models/of/one", "two /models/of/two"}
    again = fleet.run()
    assert again.code == 0 and "changed=0" in again.output, again.output
    assert fleet.run("-e", "sgl_model=of/three").code == 0
    assert "two /models/of/three" in (fleet.states / "a" / "asked").read_text()


def test_a_wrong_profile_is_refused_by_name_before_anything_changes(
    fleet: FleetCheckout, tmp_path: Path
) -> None:
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "fine.yml").write_text("model: {name: m}\n")
    for content, why in (
        ("model: {name: m}\nsever: {}", "sever is not a key of a profile"),
        ("model: {name: m}\ntp: one", "tp must be a whole number"),
        (None, "there is no profile 'wrong'"),
    ):
        path = profiles / "wrong.yml"
        path.unlink(missing_ok=True)
        if content:
            path.write_text(content)
        fleet.hosts({"a": {}}, sgl_profiles=["fine", "wrong"])
        done = fleet.run()
        assert done.code == 2 and why in " ".join(done.output.split()), done.output
        assert not (fleet.states / "a" / "asked").exists(), "nothing was begun"
