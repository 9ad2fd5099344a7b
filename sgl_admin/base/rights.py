"""What the processes of the container grant to other users in the host's tree."""

from __future__ import annotations

import os

from sgl_admin.contract import options, places

_VARIABLE = options.BY_NAME[places.GROUP_WRITABLE].variable


def group_writable() -> bool:
    """By the container's environment, or the caller's where there is no container."""
    return os.environ.get(_VARIABLE, "").lower() == "true"


def umask() -> int:
    return places.umask(group_writable())


def begin() -> None:
    """Have this process and its children make files so."""
    os.umask(umask())
