# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host tree: what it consists of, whose it must be, and how it is made.

:func:`inspect` only reads; everything that can be refused is refused there, so a refused run has
changed nothing. :func:`apply` then does what the plan says. Nothing that existed is ever chowned.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import random
import re
import shlex
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from . import _safe_tree as safe_tree
from ._contract import places

TEMP_NAME = re.compile(re.escape(safe_tree.TEMP_PREFIX) + ".+")
NAMED_MISMATCHES = 10
# The parent, and what lies in it by default.
ROOTS = ("root", "telemetry", "profiles", "models", "huggingface")
# How often a folder is tried that another run makes at the same time, and the longest pause.
_TRIES, _PAUSE_S = 20, 0.05


class HostTreeError(Exception):
    """The tree cannot be used or made as it is; the text names the path and the remedy."""


class ForeignOwner(HostTreeError):
    """Something belongs to another uid:gid; ``paths`` are those things."""

    def __init__(self, text: str, paths: list[str]) -> None:
        super().__init__(text)
        self.paths = paths


@dataclass(frozen=True)
class Spec:
    """What is wanted. Paths are absolute, ids are numeric.

    ``pointer_uid`` and ``pointer_gid`` are the expected owner of the pointer alone, where that is
    not the tree's.
    """

    root: str
    telemetry: str
    profiles: str
    models: str
    huggingface: str
    uid: int
    gid: int
    group_writable: bool = False
    ownership_ignore: bool = False
    pointer_uid: int | None = None
    pointer_gid: int | None = None

    @property
    def pointer(self) -> str:
        return os.path.join(self.telemetry, places.POINTER)

    def of_pointer(self) -> Spec:
        """The same with the pointer's expected owner."""
        return replace(
            self,
            uid=self.uid if self.pointer_uid is None else self.pointer_uid,
            gid=self.gid if self.pointer_gid is None else self.pointer_gid,
        )

    def roots(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ROOTS}


@dataclass(frozen=True)
class Foreign:
    """An entry that another uid:gid owns. ``top`` is the root that holds it; ``recursive`` says
    whether ``chown -R`` is safe on it.
    """

    path: str
    uid: int
    gid: int
    top: str
    recursive: bool = True


@dataclass
class Plan:
    """What :func:`apply` will do, and what :func:`inspect` saw."""

    spec: Spec
    create: list[str] = field(default_factory=list)
    chmod: dict[str, tuple[int, int]] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    foreign: list[Foreign] = field(default_factory=list)
    foreign_pointer: Foreign | None = None
    entries_checked: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.create or self.chmod)

    def new_mode(self, path: str) -> int:
        """The mode of a folder that is made; those above the roots are as the parent is."""
        return self.modes.get(path, places.PARENT_RIGHTS.new)

    def diff(self) -> dict[str, dict[str, str]]:
        """Before and after of each path that changes, for ``--diff``."""
        owner = f"{self.spec.uid}:{self.spec.gid}"
        before: dict[str, str] = {}
        after: dict[str, str] = {}
        for path, (old, new) in self.chmod.items():
            before[printable(path)] = f"directory {old:04o} {owner}"
            after[printable(path)] = f"directory {new:04o} {owner}"
        for path in self.create:
            before[printable(path)] = "absent"
            after[printable(path)] = f"directory {self.new_mode(path):04o} {owner}"
        return {"before": before, "after": after}

    def result(self) -> dict[str, object]:
        """What the module returns; the same in check mode."""
        return {
            "changed": self.changed,
            "created": [printable(path) for path in self.create],
            "mode_changed": [printable(path) for path in self.chmod],
            "paths": self.spec.roots(),
            "owner": {"uid": self.spec.uid, "gid": self.spec.gid},
            "foreign_count": len(self.foreign),
            "entries_checked": self.entries_checked,
        }

    def foreign_paths(self) -> list[str]:
        """What another user owns, the pointer too."""
        return [printable(item.path) for item in (*self.foreign, self.foreign_pointer) if item]


def printable(path: str) -> str:
    """The path as text that JSON can carry; bytes that are no UTF-8 become ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def owner_text(uid: int, gid: int, *, with_group: bool = False) -> str:
    """``1000:1000 (ubuntu)``; with_group adds the group's name, for a mismatch that is the group's
    alone.
    """
    try:
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        name = "no such user"
    if with_group:
        try:
            name += ":" + grp.getgrgid(gid).gr_name
        except (KeyError, OverflowError):
            name += ":no such group"
    return f"{uid}:{gid} ({name})"


def clean_path(path: str) -> str:
    """The path without doubled or trailing slashes, ``.`` and ``..``."""
    return os.path.normpath(re.sub("^//+", "/", path)) if path else path


_INSIDE = {"telemetry": places.TELEMETRY_FOLDERS, "profiles": places.PROFILES_FOLDERS}


def _wanted(spec: Spec) -> Iterator[tuple[str, str, places.Rights]]:
    """Each directory of the tree, parents first: (option or root that it belongs to, path, its
    rights).
    """
    yield "root", spec.root, places.PARENT_RIGHTS
    for folder, top in spec.roots().items():
        if folder == "root":
            continue
        for name in ("", *_INSIDE.get(folder, ())):
            rights = places.folder_rights(folder, name, spec.group_writable)
            yield f"{folder}_root", os.path.join(top, name) if name else top, rights


def _check_spec(spec: Spec) -> None:
    for name, number in (("owner_uid", spec.uid), ("owner_gid", spec.gid)):
        if not 0 <= number < 2**32 - 1:
            raise HostTreeError(
                f"{name} {number} is not a user or group id: set it to the number that `id` prints"
                " for the service user"
            )
    named = {
        ("root" if key == "root" else f"{key}_root"): path for key, path in spec.roots().items()
    }
    for option, path in named.items():
        _check_root(option, path)
    for option, path in named.items():
        for other, top in named.items():
            if option != other:
                _check_apart(option, path, other, top)


def _check_root(option: str, path: str) -> None:
    if not os.path.isabs(path) or "\0" in path:
        raise HostTreeError(
            f"{option} '{printable(path)}' is not an absolute path: set it to one such as"
            " /srv/sglang-observability"
        )
    if problem := places.unmountable(path):
        raise HostTreeError(f"{option} {problem}")
    if path == "/":
        raise HostTreeError(
            f"{option} is the root of the filesystem: set it to a directory of its own"
        )


def _check_apart(option: str, path: str, other: str, top: str) -> None:
    if path == top:
        raise HostTreeError(
            f"{option} and {other} are both {path}: give each a directory of its own"
        )
    if other != "root" and path.startswith(top + "/"):
        raise HostTreeError(
            f"{option} {path} lies inside {other} {top}: give each a directory of its own"
        )


def _check_parents(plan: Plan) -> None:
    """Raises HostTreeError where another user can exchange a root by one of its parents, or warns
    where that is ignored, or where members of a group can.
    """
    spec = plan.spec
    texts: dict[str, tuple[str, bool]] = {}
    # The owner of a root is checked by itself, and so is its mode where nothing else is in it.
    checked = {*spec.roots().values()} - ({spec.root} if _holds_strangers(spec) else set())
    for option, path in spec.roots().items():
        name = "sgl_root" if option == "root" else f"sgl_{option}_root"
        try:
            found = list(safe_tree.exchangeable(path, spec.uid))
        except OSError:
            # Reading the root itself says what is wrong.
            continue
        for item in found:
            foreign_root = item.path == spec.root and item.info.st_uid != spec.uid
            if item.path not in checked and not foreign_root:
                text = _exchangeable_text(spec, name, item)
                texts.setdefault(item.path, (text, item.by_group))
    for text, by_group in texts.values():
        if not by_group and not spec.ownership_ignore:
            raise HostTreeError(
                f"{text}, or set sgl_ownership_ignore: true to proceed all the same"
            )
        plan.warnings.append(text)


def _exchangeable_text(spec: Spec, option: str, item: safe_tree.Holder) -> str:
    """Who can exchange a root, and what to do about it."""
    shown = printable(item.path)
    mode = stat.S_IMODE(item.info.st_mode)
    owner = owner_text(item.info.st_uid, item.info.st_gid)
    elsewhere = f"set {option} to a folder whose parents belong to root or {spec.uid}"
    if item.by_group:
        return (
            f"members of the group {item.info.st_gid} can exchange the tree, and so decide what the"
            f" server runs: they may write in {shown} (mode {mode:04o}); run `chmod g-w"
            f" {shlex.quote(shown)}`, or {elsewhere}"
        )
    if mode & 0o002 and not mode & stat.S_ISVTX:
        return (
            f"every user can exchange the tree, and so decide what the server runs: {shown} has the"
            f" mode {mode:04o}; run `chmod +t {shlex.quote(shown)}`, or {elsewhere}"
        )
    if mode & stat.S_ISVTX:
        return (
            f"another user owns a folder or link in {shown} on the way to the tree, and so decides"
            f" what the server runs: {elsewhere}"
        )
    return (
        f"{owner}, who owns {shown}, can exchange the tree in it, and so decide what the server"
        f" runs: {elsewhere}"
    )


def _check_process(spec: Spec) -> None:
    euid = os.geteuid()
    if euid not in (0, spec.uid):
        raise HostTreeError(
            f"the task runs as {owner_text(euid, os.getegid())}, which cannot make directories for"
            f" {owner_text(spec.uid, spec.gid)}: run it with become: true, or set sgl_user to the"
            " user who connects"
        )


def _remedy(exc: OSError) -> str:
    if isinstance(exc, safe_tree.UntrustedLink):
        return "name the folder that it leads to, or have root own the folder that holds the link"
    if exc.errno in (errno.EACCES, errno.EPERM):
        return (
            "run the task with become: true, or set the root to a directory that its owner may"
            " write"
        )
    if exc.errno == errno.EROFS:
        return "the filesystem is mounted read-only: remount it, or set the root elsewhere"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space, inodes or quota there"
    if exc.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT):
        return "something else changed the tree at the same time: run again"
    return "check the filesystem that holds it"


def _os_error(doing: str, path: str, exc: OSError) -> HostTreeError:
    return HostTreeError(f"cannot {doing} {printable(path)}: {exc.strerror or exc}: {_remedy(exc)}")


def _stat_directory(option: str, path: str, *, follow: bool) -> os.stat_result | None:
    """The directory's stat; None when it, or a parent, is missing.

    follow: roots may be symbolic links (the runtime resolves them before it mounts); what lies
    inside a mount may not. Raises HostTreeError for anything that is not a directory.
    """
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise _os_error("read", path, exc) from exc
    shown = printable(path)
    if stat.S_ISLNK(info.st_mode):
        target = printable(os.readlink(path))
        if not follow:
            raise HostTreeError(
                f"{shown} is a symbolic link to {target}, which the container cannot follow:"
                " replace it by a directory"
            )
        try:
            info = os.stat(path)
            with safe_tree.folder(path):
                pass
        except FileNotFoundError:
            raise HostTreeError(
                f"{option} {shown} is a dangling symbolic link to {target}: make that directory, or"
                " remove the link"
            ) from None
        except OSError as exc:
            raise HostTreeError(
                f"{option} {shown} is a symbolic link that cannot be followed ({exc.strerror}):"
                " remove it"
            ) from exc
    if not stat.S_ISDIR(info.st_mode):
        what = "a file" if stat.S_ISREG(info.st_mode) else "not a directory"
        raise HostTreeError(
            f"{shown} is {what}, but {option} needs a directory there: move it away, or set"
            f" {option} elsewhere"
        )
    return info


def missing_directories(option: str, path: str) -> tuple[list[str], str]:
    """The missing directories down to path, parents first, and the nearest directory that exists.

    Raises HostTreeError when a parent is something else than a directory.
    """
    missing = [path]
    parent = os.path.dirname(path)
    while _stat_directory(option, parent, follow=True) is None:
        missing.append(parent)
        parent = os.path.dirname(parent)
    return missing[::-1], parent


def _may(path: str, how: int) -> bool:
    return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)


def _scan(top: str, spec: Spec, plan: Plan) -> None:
    """Look at each entry below top, without following links; a foreign directory is named and not
    entered.
    """
    owner = spec.uid, spec.gid
    pointer_owner = spec.of_pointer().uid, spec.of_pointer().gid
    lost_and_found = os.path.join(top, "lost+found") if os.path.ismount(top) else None
    in_profiles = top == spec.profiles

    def visit(holder: int, path: str, name: str, info: os.stat_result) -> bool:
        """Whether to enter it."""
        plan.entries_checked += 1
        entry_owner = info.st_uid, info.st_gid
        is_directory = stat.S_ISDIR(info.st_mode)
        if is_directory and _is_begun(holder, path, spec):
            return False
        if path == spec.pointer and pointer_owner != owner:
            if entry_owner != pointer_owner:
                plan.foreign_pointer = Foreign(path, *entry_owner, top, recursive=False)
        elif entry_owner != owner:
            # mkfs makes it, for root, at the top of each ext4; no service goes there.
            if path != lost_and_found:
                plan.foreign.append(Foreign(path, *entry_owner, top))
        else:
            _note_inner(plan, path, info, in_profiles)
            return is_directory
        return False

    try:
        with safe_tree.folder(top) as descriptor:
            safe_tree.walk(descriptor, top, visit)
    except FileNotFoundError:
        return
    except safe_tree.UntrustedLink as exc:
        raise _os_error("read", top, exc) from exc
    except OSError as exc:
        shown = printable(str(exc.filename or top))
        raise HostTreeError(
            f"{shown} cannot be read ({exc.strerror}), so its ownership cannot be checked: run"
            f" `chmod u+rwx {shlex.quote(shown)}`"
        ) from exc


def _is_begun(holder: int, path: str, spec: Spec) -> bool:
    """Whether another run makes a folder of the tree here, or was killed before it gave the folder
    its owner or its name: it has a temporary name, and nothing is known to be in it.
    """
    where, name = os.path.split(path)
    if not name.startswith(safe_tree.TEMP_PREFIX) or not any(
        where == os.path.dirname(wanted) and safe_tree.is_temporary(name, os.path.basename(wanted))
        for _option, wanted, _rights in _wanted(spec)
    ):
        return False
    try:
        return not safe_tree.names(holder, name)
    except (PermissionError, FileNotFoundError):
        # Still 0700 of another owner, and rmdir refuses it where it holds something; or it has its
        # own name by now.
        return True
    except OSError:
        return False


def _holds_strangers(spec: Spec) -> bool:
    """True when the parent holds things that are not the tree's: a recursive chown of it would hit
    them too.
    """
    ours = {
        os.path.basename(path)
        for path in spec.roots().values()
        if os.path.dirname(path) == spec.root
    }
    try:
        with safe_tree.folder(spec.root) as fd:
            return any(
                name not in ours and not TEMP_NAME.fullmatch(name) for name in os.listdir(fd)
            )
    except OSError:
        return True


def chown_command(uid: int, gid: int, paths: Iterable[str], *, recursive: bool = True) -> str:
    """The command that gives the paths to uid:gid, quoted for a shell."""
    words = ["chown", *(["-R"] if recursive else []), f"{uid}:{gid}"]
    return " ".join([*words, *(shlex.quote(printable(path)) for path in paths)])


def ownership_text(spec: Spec, foreign: list[Foreign]) -> str:
    """One sentence: what belongs to whom, to whom it should, and the command that repairs it."""
    expected = owner_text(spec.uid, spec.gid)
    listed = foreign[:NAMED_MISMATCHES]

    def owned(item: Foreign) -> str:
        return (
            f"{printable(item.path)} is owned by"
            f" {owner_text(item.uid, item.gid, with_group=item.uid == spec.uid)}"
        )

    commands = []
    plain = [item.path for item in foreign if not item.recursive]
    if plain:
        commands.append(chown_command(spec.uid, spec.gid, plain, recursive=False))
    deep = [item for item in foreign if item.recursive]
    if deep:
        # Beyond what the sentence can name, the roots that hold them: everything below those has
        # one owner anyway.
        chosen = (
            [item.path for item in deep]
            if len(foreign) <= NAMED_MISMATCHES
            else list(dict.fromkeys(item.top for item in deep))
        )
        # A recursive chown of a parent repairs what lies below it; of a link it would change the
        # link alone, so name its target.
        chosen = [
            path for path in chosen if not any(path.startswith(other + "/") for other in chosen)
        ]
        resolved = [
            os.path.realpath(path) if path in spec.roots().values() else path for path in chosen
        ]
        commands.append(chown_command(spec.uid, spec.gid, resolved))
    command = " && ".join(commands)
    if len(foreign) == 1:
        return f"{owned(foreign[0])}, not {expected}: run `{command}` as root"
    more = f" and {len(foreign) - len(listed)} more" if len(foreign) > len(listed) else ""
    return (
        f"{len(foreign)} paths are owned by others, not {expected}:"
        f" {', '.join(map(owned, listed))}{more}: run `{command}` as root"
    )


def inspect(spec: Spec) -> Plan:
    """Read the host and decide. Raises HostTreeError, with nothing changed, for whatever must be
    refused.
    """
    _check_spec(spec)
    _check_process(spec)
    plan = Plan(spec)
    _check_parents(plan)
    bases = _inspect_directories(plan)
    unscanned = {*plan.create, *(item.path for item in plan.foreign)}
    for top in (spec.telemetry, spec.profiles):
        if top not in unscanned:
            _scan(top, spec, plan)
    plan.foreign.sort(key=lambda item: item.path)
    _check_ownership(plan)
    for base, option in bases.items():
        if base not in plan.chmod and not _may(base, os.W_OK | os.X_OK):
            raise HostTreeError(
                f"{option} cannot be made: uid {os.geteuid()} may not write in {printable(base)}:"
                f" run the task with become: true, or set {option} elsewhere"
            )
    groups = {os.getegid(), *os.getgroups()}
    if plan.changed and os.geteuid() != 0 and spec.gid not in groups:
        raise HostTreeError(
            f"uid {os.geteuid()} is not in group {spec.gid}, so it cannot make directories for"
            f" {owner_text(spec.uid, spec.gid)}: add the user to that group, set owner_gid to one"
            " of its groups, or run the task with become: true"
        )
    return plan


def _inspect_directories(plan: Plan) -> dict[str, str]:
    """Plan what to make and which modes to change, and note the roots that others own.

    Returns the existing directories in which something is to be made, with the option that needs
    it.
    """
    spec = plan.spec
    roots = set(spec.roots().values())
    create: dict[str, None] = {}
    bases: dict[str, str] = {}
    for option, path, rights in _wanted(spec):
        plan.modes[path] = rights.new
        is_root = path in roots
        info = _stat_directory(option, path, follow=is_root)
        if info is None:
            missing, base = missing_directories(option, path)
            create.update(dict.fromkeys(missing))
            bases.setdefault(base, option)
            continue
        plan.entries_checked += is_root
        if (info.st_uid, info.st_gid) != (spec.uid, spec.gid):
            if is_root:
                recursive = path != spec.root or not _holds_strangers(spec)
                plan.foreign.append(Foreign(path, info.st_uid, info.st_gid, path, recursive))
            continue
        mode = stat.S_IMODE(info.st_mode)
        if path == spec.root and mode & rights.refused and _holds_strangers(spec):
            rights = replace(rights, refused=0)
        # A folder of models, or of the hub's files, may be a read-only export.
        elif is_root and path not in (spec.telemetry, spec.profiles) and not _may(path, os.W_OK):
            rights = replace(rights, refused=0)
        _note_mode(plan, path, mode, rights)
        if is_root and path != spec.root and not _may(path, os.R_OK | os.X_OK):
            raise HostTreeError(
                f"{option} {path} cannot be read by uid {os.geteuid()}: run `chmod u+rwx"
                f" {shlex.quote(path)}`"
            )
    plan.create = list(create)
    return bases


def _note_mode(plan: Plan, path: str, mode: int, rights: places.Rights) -> None:
    """Plan the change of a folder's mode; set-id and sticky bits stay as they are."""
    wanted = (mode | rights.needed) & ~rights.refused
    if wanted != mode:
        plan.chmod[path] = (mode, wanted)


def _note_inner(plan: Plan, path: str, info: os.stat_result, in_profiles: bool) -> None:
    """The same for what services and programs made in the tree's folders."""
    if not stat.S_ISDIR(info.st_mode) or path in plan.modes:
        return
    shared = plan.spec.group_writable
    if not in_profiles:
        rights = places.Rights(0, 0, 0o002 if shared else 0o022)
    elif shared and os.path.basename(path) in (places.SIGNATURES, places.INCOMING):
        rights = places.RECORD_RIGHTS
    else:
        # It is behind the rights of the folder profiles.
        return
    _note_mode(plan, path, stat.S_IMODE(info.st_mode), rights)


def _check_ownership(plan: Plan) -> None:
    """Raises ForeignOwner where others own a part of the tree, or warns where that is ignored."""
    spec = plan.spec
    texts = [ownership_text(spec, plan.foreign)] if plan.foreign else []
    if plan.foreign_pointer:
        texts.append(ownership_text(spec.of_pointer(), [plan.foreign_pointer]))
    if not texts:
        return
    text = "; ".join(texts)
    if not spec.ownership_ignore:
        raise ForeignOwner(
            f"{text}, or set sgl_ownership_ignore: true to proceed all the same",
            plan.foreign_paths(),
        )
    plan.warnings.append(
        f"ownership is ignored as asked: {text}, or the services may be unable to write there"
    )


def make_directory(path: str, uid: int, gid: int, mode: int, top: str | None = None) -> None:
    """Make one directory that from its first moment has this owner and mode, or take the one that
    another run makes at the same time. No link is followed below ``top``. Raises OSError.
    """
    parent, name = os.path.split(path)
    for left in reversed(range(_TRIES)):
        try:
            with safe_tree.folder(parent, top) as descriptor:
                safe_tree.make_folder(descriptor, name, uid, gid, mode)
            return
        except OSError as error:
            if not safe_tree.another_made(error) or not left:
                raise
        if _is_made(path, top, (uid, gid, mode)):
            return
        # Two runs that go on in step would undo each other's work again and again.
        time.sleep(random.uniform(0, _PAUSE_S))  # noqa: S311


def _is_made(path: str, top: str | None, wanted: tuple[int, int, int]) -> bool:
    try:
        with safe_tree.folder(path, top) as descriptor:
            info = os.fstat(descriptor)
    except OSError:
        return False
    return (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == wanted


def _top(spec: Spec, path: str) -> str | None:
    """Inside telemetry/ and profiles/: the root below which no link on the way is followed, so that
    nothing can be slipped in between.
    """
    return next(
        (top for top in (spec.telemetry, spec.profiles) if path.startswith(top + "/")), None
    )


def apply(plan: Plan) -> None:
    """Do what the plan says. Raises HostTreeError; a second run then takes up where this one
    stopped.
    """
    spec = plan.spec
    tops = (spec.telemetry + "/", spec.profiles + "/")
    for path, (_old, new) in plan.chmod.items():
        try:
            with safe_tree.folder(path, _top(spec, path)) as fd:
                # Its files first: a run that is killed in between finds the folder as it was.
                if path.startswith(tops):
                    safe_tree.close_files(fd, spec.uid, ~new & 0o066)
                if not safe_tree.change_mode(fd, spec.uid, spec.gid, new):
                    raise HostTreeError(f"{path} changed its owner while the task ran: run again")
        except OSError as exc:
            raise _os_error(f"set mode {new:04o} on", path, exc) from exc
    for path in plan.create:
        try:
            make_directory(
                path, spec.uid, spec.gid, plan.new_mode(path), _top(spec, os.path.dirname(path))
            )
        except OSError as exc:
            raise _os_error("make", path, exc) from exc
