"""The controller's folder of shared work, and its signatures: minisign is the real one."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.share_signature import (
    SignatureError,
    sign,
    verify,
)
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.share_store import Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAME = "inductor-1f0c2a9b7d3e4f56"
DIGEST = f"sha256:{'5a' * 32}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "caches"))


def record(content: bytes, **more: Any) -> dict[str, Any]:
    return {
        "digest": f"sha256:{hashlib.sha256(b'manifest of ' + content).hexdigest()}",
        "finished": True,
        "signature": None,
        **more,
    }


def put(store: Store, content: bytes, name: str = NAME) -> None:
    written = store.incoming(name)
    written.write_bytes(content)
    store.put(name, written, record(content))


def files(store: Store) -> set[str]:
    return {path.name for path in store.folder.iterdir()} - {".lock"}


# --- the folder -----------------------------------------------------------------------------------


def test_what_is_stored_is_found_with_what_was_said_of_it(store: Store) -> None:
    written = store.incoming(NAME)
    written.write_bytes(b"one")
    store.put(NAME, written, record(b"one", finished=False, signature="c2ln"))
    found, warning = store.find(NAME)
    assert warning is None and found is not None
    assert found == {
        **record(b"one", finished=False, signature="c2ln"),
        "sha256": hashlib.sha256(b"one").hexdigest(),
        "bytes": 3,
    }
    assert store.archive(NAME).read_bytes() == b"one" and files(store) == {
        f"{NAME}.tar",
        f"{NAME}.json",
    }


def test_it_is_replaced_as_a_whole_and_others_are_left_alone(store: Store) -> None:
    put(store, b"another", "moe_tune-1")
    put(store, b"one")
    put(store, b"two")
    found, _ = store.find(NAME)
    assert (
        found is not None
        and found["digest"] == record(b"two")["digest"]
        and store.archive(NAME).read_bytes() == b"two"
    )
    assert store.find("moe_tune-1")[0] is not None


def test_where_nothing_was_stored_nothing_is_found_and_nothing_made(store: Store) -> None:
    assert store.find(NAME) == (None, None) and not store.folder.exists()


def test_the_folder_may_be_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/caches").archive(NAME) == tmp_path / "caches" / f"{NAME}.tar"


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "spoil",
    [flipped, lambda content: content[:-1], lambda content: content + b"x", lambda content: b""],
)
def test_an_archive_that_is_not_as_it_was_stored_is_set_aside_with_a_warning(
    store: Store, spoil: Callable[[bytes], bytes]
) -> None:
    put(store, b"as it was stored")
    spoiled = spoil(b"as it was stored")
    store.archive(NAME).write_bytes(spoiled)
    found, warning = store.find(NAME)
    aside = store.folder / f"{NAME}.tar.corrupt-1"
    assert (
        found is None
        and warning is not None
        and f"set aside as {aside}" in warning
        and str(store.archive(NAME)) in warning
    )
    assert files(store) == {aside.name} and aside.read_bytes() == spoiled
    assert store.find(NAME) == (None, None), "it is told once"
    put(store, b"made anew")
    assert store.find(NAME)[0] is not None
    store.archive(NAME).write_bytes(b"spoiled again")
    assert "corrupt-2" in str(store.find(NAME)[1]) and aside.read_bytes() == spoiled


@pytest.mark.parametrize("lost", [".tar", ".json"])
def test_one_without_the_other_is_as_good_as_nothing(store: Store, lost: str) -> None:
    put(store, b"one")
    (store.folder / f"{NAME}{lost}").unlink()
    assert store.find(NAME) == (None, None)
    put(store, b"two")
    assert store.find(NAME)[0] is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["digest", "sha256", "bytes", "finished"]), inner)
    ),
)


@settings(
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(written=JSON.map(json.dumps) | st.text() | st.just("[" * 100_000))
def test_a_record_of_another_form_is_as_good_as_none(store: Store, written: str) -> None:
    put(store, b"one")
    (store.folder / f"{NAME}.json").write_text(written, encoding="utf-8", errors="replace")
    found, _ = store.find(NAME)
    assert found is None


def test_a_folder_that_cannot_be_written_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        Store(str(tmp_path / "file" / "caches")).incoming(NAME)


def test_what_a_killed_controller_left_goes_a_day_later(store: Store) -> None:
    abandoned, beside = store.incoming("moe_tune-1"), store.incoming(NAME)
    for path in (abandoned, beside):
        path.write_bytes(b"half")
    day_ago = time.time() - 24 * 3600
    os.utime(abandoned, (day_ago - 60, day_ago - 60))
    os.utime(beside, (day_ago + 60, day_ago + 60))
    put(store, b"whole", "deep_gemm-2")
    assert files(store) == {"deep_gemm-2.tar", "deep_gemm-2.json", beside.name}


# --- processes: killed, and several at once -------------------------------------------------------


def fork(work: Callable[[], object]) -> int:
    """Do it in a process of its own; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def put_until(store: Store, content: bytes, operation: int) -> None:
    """Store it, and be killed before the file operation of that number."""
    left = operation

    def audit(event: str, _arguments: object) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "fcntl.flock"):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(audit)
    put(store, content)


@pytest.mark.slow
@pytest.mark.parametrize("before", [b"old", None])
def test_a_write_that_is_killed_leaves_the_old_one_or_nothing(
    store: Store, before: bytes | None
) -> None:
    seen: list[bytes | None] = []
    for operation in range(100):
        shutil.rmtree(store.folder, ignore_errors=True)
        if before is not None:
            put(store, before)
        code = ended(fork(lambda number=operation: put_until(store, b"new", number)))  # type: ignore[misc]
        found, warning = store.find(NAME)
        assert warning is None
        content = store.archive(NAME).read_bytes() if found is not None else None
        assert found is None or found["digest"] == record(content or b"")["digest"]
        seen.append(content)
        put(store, b"next")
        assert store.find(NAME)[0] is not None, "nobody waits for who is gone"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    # Old, then nothing, then new.
    assert seen[0] == before and seen[-1] == b"new" and len(seen) > 6, seen
    assert sorted(seen, key=[before, None, b"new"].index) == seen


@pytest.mark.slow
def test_many_at_once_leave_one_of_theirs_and_nobody_finds_less(store: Store) -> None:
    contents = [bytes([number]) * (20_000 + number) for number in range(6)]
    begin = multiprocessing.Barrier(9)
    digests = {record(content)["digest"] for content in contents}
    put(store, contents[0])

    def look() -> None:
        begin.wait()
        for _ in range(200):
            found, warning = store.find(NAME)
            # Between one and the next there is none for a moment.
            assert warning is None and (found is None or found["digest"] in digests)

    def give(content: bytes) -> None:
        begin.wait()
        for _ in range(100):
            put(store, content)

    work: list[Callable[[], object]] = [
        *(functools.partial(give, content) for content in contents),
        *[look] * 3,
    ]
    pids = [fork(each) for each in work]
    assert [ended(pid) for pid in pids] == [0] * len(pids)
    found, warning = store.find(NAME)
    assert found is not None and warning is None
    assert found["digest"] == record(store.archive(NAME).read_bytes())["digest"]
    assert files(store) == {f"{NAME}.tar", f"{NAME}.json"}


@pytest.mark.slow
def test_of_many_that_find_a_broken_one_at_once_one_sets_it_aside(
    store: Store, tmp_path: Path
) -> None:
    for attempt in range(10):
        put(store, b"as it was stored" * 10_000)
        store.archive(NAME).write_bytes(b"spoiled" * 10_000)
        begin = multiprocessing.Barrier(6)

        def look(told: Path = tmp_path / f"{attempt}", begin: Barrier = begin) -> None:
            begin.wait()
            found, warning = store.find(NAME)
            assert found is None
            if warning:
                told.with_suffix(f".{os.getpid()}").touch()

        assert [ended(pid) for pid in [fork(look) for _ in range(6)]] == [0] * 6
        assert len(list(tmp_path.glob(f"{attempt}.*"))) == 1
        assert sum(name.startswith(f"{NAME}.tar.corrupt-") for name in files(store)) == attempt + 1


# --- signatures -----------------------------------------------------------------------------------


class Keys(NamedTuple):
    secret: str
    public: str


def keys(folder: Path, name: str = "lab") -> Keys:
    made = Keys(str(folder / f"{name}.key"), str(folder / f"{name}.pub"))
    subprocess.run(
        ["minisign", "-G", "-W", "-s", made.secret, "-p", made.public],
        check=True,
        capture_output=True,
    )
    return made


@pytest.mark.slow
def test_what_is_signed_is_verified_and_the_signature_is_one_word(tmp_path: Path) -> None:
    lab = keys(tmp_path)
    signature = sign(NAME, DIGEST, lab.secret)
    assert signature.isascii() and len(signature.split()) == 1
    verify(NAME, DIGEST, signature, lab.public)
    assert b"sgl-caches inductor-1f0c2a9b7d3e4f56" in base64.b64decode(signature)


@pytest.mark.slow
def test_another_key_name_or_digest_is_refused(tmp_path: Path) -> None:
    lab, other = keys(tmp_path), keys(tmp_path, "other")
    signature = sign(NAME, DIGEST, lab.secret)
    for name, digest, given_signature, key in (
        (NAME, DIGEST, signature, other.public),
        (NAME, DIGEST, sign(NAME, DIGEST, other.secret), lab.public),
        ("inductor-another", DIGEST, signature, lab.public),
        (NAME, f"sha256:{'5b' * 32}", signature, lab.public),
        # One line must not be read as another.
        (f"{NAME} {DIGEST}", "", signature, lab.public),
    ):
        with pytest.raises(SignatureError, match=name):
            verify(name, digest, given_signature, key)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "no base64 at all!",
        lambda text: "",
        lambda text: text[:-8],
        lambda text: base64.b64encode(b"\xff\x00 no signature").decode(),
        lambda text: base64.b64encode(
            base64.b64decode(text).replace(b"sgl-caches", b"sgl-cachez")
        ).decode(),
        lambda text: base64.b64encode(b"x" * 5_000_000).decode(),
    ],
    ids=["words", "empty", "cut", "bytes", "comment", "long"],
)
def test_what_is_no_signature_is_refused_in_words(
    tmp_path: Path, spoil: Callable[[str], str]
) -> None:
    lab = keys(tmp_path)
    with pytest.raises(SignatureError, match=NAME) as refused:
        verify(NAME, DIGEST, spoil(sign(NAME, DIGEST, lab.secret)), lab.public)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 1000


@pytest.mark.parametrize(("digest", "signature"), [(DIGEST, None), (DIGEST, ""), (None, "c2ln")])
def test_what_is_not_signed_is_refused_with_the_remedy(
    digest: str | None, signature: str | None
) -> None:
    with pytest.raises(
        SignatureError, match=f"{NAME} is not signed.*remove it.*sgl_cache_sign_key"
    ):
        verify(NAME, digest, signature, "/none.pub")


@pytest.mark.slow
def test_a_key_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    lab = keys(tmp_path)
    signature = sign(NAME, DIGEST, lab.secret)
    with pytest.raises(SignatureError, match="none.key"):
        sign(NAME, DIGEST, str(tmp_path / "none.key"))
    with pytest.raises(SignatureError, match="none.pub"):
        verify(NAME, DIGEST, signature, str(tmp_path / "none.pub"))
    with pytest.raises(SignatureError, match="minisign"):
        sign(NAME, DIGEST, lab.public)
    locked = tmp_path / "locked.key"
    asked = ["minisign", "-G", "-s", str(locked), "-p", str(tmp_path / "locked.pub")]
    subprocess.run(asked, input=b"secret\nsecret\n", check=True, capture_output=True)
    with pytest.raises(SignatureError, match="has a password.*minisign -G -W"):
        sign(NAME, DIGEST, str(locked))


def test_without_minisign_its_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(SignatureError, match="apt-get install minisign"):
        sign(NAME, DIGEST, "/none.key")
    with pytest.raises(SignatureError, match="apt-get install minisign"):
        verify(NAME, DIGEST, "c2ln", "/none.pub")
