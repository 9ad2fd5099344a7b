# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A download by the hub's own client, in a throw-away container of the image that has it, followed
by what it leaves on the disk.

The container goes on when the connection or the run that began it is gone; the next run attaches to
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import _model_digests as model_digests
from . import _model_files as model_files
from ._contract.texts import path_line
from ._docker_cli import DockerCli, DockerError
from ._model_digests import HUB_LOG, HUB_STATE, Digest
from ._model_files import ModelError
from ._model_staging import Request, SourceFile

PUBLIC_HUB = "https://huggingface.co"
_PYTHON = "/opt/sglang/bin/python"
_CA_BUNDLE = "/ca-bundle.pem"
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
PROXY_VARIABLES = tuple(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
)
_LAST_LINES = 5

# What a server of safetensors does not read.
_IGNORED = ("*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot")

# Arguments: folder, repository, revision, the run that asks, patterns to leave out.
# It pins the commit, notes what the hub says of each file, and downloads.
CLIENT = """
import json, os, shutil, sys, time, traceback
folder, repo, revision, run, *ignored = sys.argv[1:]
# A uid that the image does not know has no home, and the hub's client wants one.
os.environ["HOME"] = "/tmp"
state_file, token = os.path.join(folder, ".sgl-hub.json"), os.environ.get("HF_TOKEN") or None
log = open(os.path.join(folder, ".sgl-hub.log"), "a", buffering=1)
os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
state = {"repo": repo, "revision": revision, "run": run, "status": "running"}

def hidden(text):
    return text.replace(token, "***") if token else text

def note(**more):
    state.update(more)
    with open(state_file + ".tmp", "w") as stream:
        json.dump(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(state_file + ".tmp", state_file)

def fail(error):
    code = getattr(getattr(error, "response", None), "status_code", None)
    lines = [line.strip() for line in hidden(str(error) or repr(error)).splitlines() \
if line.strip()]
    note(status="failed", error={"kind": type(error).__name__, "code": code, "lines": lines[-5:]})
    print(hidden(traceback.format_exc()))
    sys.exit(1)

def have(name):
    try:
        return os.stat(os.path.join(folder, name)).st_size
    except OSError:
        return 0

try:
    import requests
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import filter_repo_objects
    info = HfApi(token=token or False).model_info(repo, revision=revision, files_metadata=True)
    names = set(filter_repo_objects([item.rfilename for item in info.siblings], \
ignore_patterns=ignored))
    files = {}
    for item in info.siblings:
        if item.rfilename in names:
            digest = {"sha256": item.lfs.sha256} if item.lfs else {"git_sha1": item.blob_id}
            files[item.rfilename] = {"size": item.size, **digest}
    note(commit=info.sha, files=files)
    needed = int(1.01 * sum(max(0, (file["size"] or 0) - have(name)) \
for name, file in files.items()))
    partial = os.path.join(folder, ".cache")
    there = sum(have(os.path.join(top, name)) for top, _, names_ in os.walk(partial) \
for name in names_ if name.endswith(".incomplete"))
    free = shutil.disk_usage(folder).free
    if free < needed - there:
        note(status="failed", error={"kind": "NoSpace", "free": free, "needed": needed - there})
        sys.exit(1)
    for attempt in range(5):
        try:
            snapshot_download(repo, revision=info.sha, local_dir=folder, token=token or False, \
ignore_patterns=ignored)
            lacking = [name for name, file in files.items() \
if file["size"] not in (None, have(name))]
            if lacking:
                raise requests.exceptions.ConnectionError("the download ended without " \
+ ", ".join(lacking[:5]))
            break
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout, \
requests.exceptions.ChunkedEncodingError) as error:
            if attempt == 4:
                raise
            print(hidden(repr(error)))
            time.sleep(2 ** attempt)
    note(status="done")
except Exception as error:
    fail(error)
"""


class ContainerClient:
    """In a container of ``image``, as uid:gid. ``docker_with`` makes a Docker client whose process
    has some more variables.
    """

    def __init__(
        self,
        docker_with: Callable[[Mapping[str, str]], DockerCli],
        image: str,
        path: str,
        uid: int,
        gid: int,
    ) -> None:
        self._docker_with = docker_with
        self._image = image
        self._user = f"{uid}:{gid}"
        self.name = (
            f"sgl-stage-{hashlib.sha256(os.fsencode(os.path.normpath(path))).hexdigest()[:12]}"
        )

    def running(self) -> bool:
        """Raises ModelError where Docker cannot tell."""
        try:
            container = self._docker_with({}).container(self.name)
        except DockerError as error:
            raise ModelError(str(error)) from error
        return bool(container and container["running"])

    def start(self, folder: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        """Raises ModelError. A variable goes by its name, its value through the environment of
        Docker's client: no list shows it.
        """
        bundle = next(
            (
                os.environ[name]
                for name in _CA_VARIABLES
                if os.path.isfile(os.environ.get(name, ""))
            ),
            None,
        )
        named = [*environment, *(name for name in PROXY_VARIABLES if name in os.environ)]
        options = [option for name in named for option in ("--env", name)]
        if bundle:
            options += [
                "--volume",
                f"{bundle}:{_CA_BUNDLE}:ro",
                *(f"--env={name}={_CA_BUNDLE}" for name in _CA_VARIABLES),
            ]
        try:
            docker = self._docker_with(environment)
            if docker.image(self._image) is None:
                raise ModelError(
                    f"there is no image {self._image}, which has the hub's client: build it first"
                    " (playbooks/prep.yml does)"
                )
            # One that has ended and is not removed yet would have the name.
            self._remove(docker)
            docker.call(
                *("container", "run", "--rm", "--detach", "--pull", "never", "--name", self.name),
                *(
                    "--user",
                    self._user,
                    "--network",
                    "host",
                    "--volume",
                    f"{folder}:/staging",
                    *options,
                ),
                *("--entrypoint", _PYTHON, self._image, "-c", CLIENT, "/staging", *arguments),
            )
        except DockerError as error:
            raise ModelError(f"the hub's client cannot be started: {error}") from error

    def stop(self) -> None:
        """Raises ModelError where Docker cannot do it."""
        try:
            self._remove(self._docker_with({}))
        except DockerError as error:
            raise ModelError(f"the hub's client cannot be stopped: {error}") from error

    def _remove(self, docker: DockerCli) -> None:
        if docker.container(self.name):
            docker.call("container", "rm", "--force", self.name)


@dataclass(frozen=True)
class Followed:
    """How far a download is, in bytes; the total is 0 until the hub has told it. ``files`` and
    ``commit`` are there once it is done.
    """

    bytes_done: int
    bytes_total: int
    commit: str | None = None
    files: dict[str, SourceFile] | None = None


def follow(folder: str, request: Request, client: ContainerClient) -> Followed:
    """Begin the download where none is under way, and say how far it is. Raises ModelError with the
    remedy where it failed.
    """
    # In this order: what a client that has ended left is then its last word.
    running = client.running()
    state = _state(folder)
    same = (state.get("repo"), state.get("revision")) == (request.origin, request.revision)
    if running and not state:
        # It downloads into a folder that was thrown away.
        client.stop()
        running = False
    if running and not same:
        raise ModelError(
            f"{path_line(str(state.get('repo')))} is on its way to the place of this model: run"
            " this again when it is there"
        )
    if not running:
        if same and state.get("status") == "done":
            return _finished(folder, state)
        if same and state.get("run") == request.run:
            raise ModelError(_why(folder, state, request))
        _begin(folder, request, client)
        state = {}
    return Followed(_on_disk(folder), sum(size or 0 for size, _digest in _listed(state).values()))


def _state(folder: str) -> dict[str, Any]:
    file = os.path.join(folder, HUB_STATE)
    try:
        return model_files.json_object(file, model_files.load(file))
    except ModelError:
        return {}


def _begin(folder: str, request: Request, client: ContainerClient) -> None:
    environment = {
        # Files of known digest only: no other protocol, no other place.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_ENDPOINT": request.endpoint} if request.endpoint else {}),
        **({"HF_TOKEN": request.token} if request.token else {}),
    }
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, HUB_LOG))
    state = {
        "repo": request.origin,
        "revision": request.revision,
        "run": request.run,
        "status": "started",
    }
    try:
        model_digests.write_json(os.path.join(folder, HUB_STATE), state)
    except OSError as error:
        raise ModelError(
            f"{path_line(folder)} cannot be written ({error.strerror}): free space there, and run"
            " this again"
        ) from error
    client.start(folder, [request.origin, request.revision, request.run, *_IGNORED], environment)


def _listed(state: dict[str, Any]) -> dict[str, tuple[int | None, Digest | None]]:
    """Size and digest of each file as the hub lists them, where it does; a name that leads out of
    the folder is left out.
    """
    files = state.get("files")
    found: dict[str, tuple[int | None, Digest | None]] = {}
    for name, file in files.items() if isinstance(files, dict) else ():
        if not isinstance(file, dict) or not model_digests.may_count(name):
            continue
        size = file.get("size")
        size = size if model_digests.is_number(size) else None
        kinds = (
            kind
            for kind in (model_digests.SHA256, model_digests.GIT_SHA1)
            if model_digests.is_digest(kind, file.get(kind))
        )
        kind = next(kinds, None)
        found[name] = (size, Digest(kind, file[kind], size) if kind else None)
    return found


def _finished(folder: str, state: dict[str, Any]) -> Followed:
    """The files with their digests: from the hub's list, or, of a mirror whose list has none, from
    what the client noted.
    """
    noted = model_digests.read_record(folder).files
    files = {}
    for name, (size, digest) in _listed(state).items():
        digest = digest or noted.get(name)
        if digest is None:
            raise ModelError(
                f"{state.get('repo')} has no digest of {path_line(name)}: stage the model from the"
                " hub itself, or from a folder"
            )
        try:
            there = os.lstat(os.path.join(folder, name)).st_size
        except OSError:
            there = -1
        if there < 0 or there != (there if size is None else size):
            os.unlink(os.path.join(folder, HUB_STATE))
            raise ModelError(
                f"{path_line(name)} is gone from {path_line(folder)}, where it was downloaded to:"
                " run this again"
            )
        files[name] = SourceFile(there, -1, digest)
    total = sum(file.size for file in files.values())
    return Followed(total, total, str(state.get("commit")), files)


def _on_disk(folder: str) -> int:
    total = 0
    for place, _folders, names in os.walk(folder):
        for name in names:
            if not model_digests.is_ours(name):
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(place, name)).st_size
    return total


def _why(folder: str, state: dict[str, Any], request: Request) -> str:
    """Why the client failed, in a sentence with the remedy."""
    error = state.get("error")
    error = error if isinstance(error, dict) else {}
    hub, what = request.endpoint or PUBLIC_HUB, f"{request.origin} at {request.revision}"
    lines = error.get("lines") if isinstance(error.get("lines"), list) else None
    said = " / ".join(path_line(str(line)) for line in lines or _log(folder))
    if request.token:
        said = said.replace(request.token, "***")
    code, kind = error.get("code"), error.get("kind")
    if kind == "NoSpace":
        return (
            f"{path_line(folder)} has {_gb(error.get('free'))} free and the download needs"
            f" {_gb(error.get('needed'))} more: free space there, or move the models root"
            " (sgl_models_root)"
        )
    if kind == "GatedRepoError" or code == 403:
        return (
            f"{hub} does not let this token's account read {what} ({code}): accept the model's"
            " terms on its page, or use another token"
        )
    if code == 401:
        token = (
            "the token is not valid for it or it"
            if request.token
            else "it is private, which needs a token, or it"
        )
        return f"{hub} shows no {what} (401): {token} does not exist: check the name and the token"
    if code == 404:
        return f"{hub} has no {what} (404): check the name and the revision"
    if kind in (
        "ConnectionError",
        "ProxyError",
        "SSLError",
        "ConnectTimeout",
        "ReadTimeout",
        "LocalEntryNotFoundError",
    ):
        return (
            f"{hub} cannot be reached from this host, or breaks off ({said}): check its proxy, or"
            " run this again, which goes on from here"
        )
    if state.get("status") != "failed":
        return (
            f"the hub's client ended before its end, its last words: {said or 'none'}: run this"
            " again, which goes on from here"
        )
    return (
        f"the download of {what} from {hub} failed: {said or kind}: run this again, which goes on"
        " from here"
    )


def _gb(value: object) -> str:
    return (
        f"{value / 1e9:.1f} GB" if isinstance(value, (int, float)) else "an unknown number of bytes"
    )


def _log(folder: str) -> list[str]:
    try:
        with open(
            os.open(os.path.join(folder, HUB_LOG), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW),
            encoding="utf-8",
            errors="replace",
        ) as log:
            return [line.strip() for line in log.read(1 << 20).splitlines() if line.strip()][
                -_LAST_LINES:
            ]
    except OSError:
        return []
