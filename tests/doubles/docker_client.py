"""A double of Docker's client and daemon for one host: containers by name, in memory.

It stands for a daemon that a test can stop at each call: `kill_at` names the call before which the
caller is killed, and `broken` the images whose program ends at once. Its words are those of Docker
20.10's daemon and 28.2's client, as they print them.
"""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, str, str]


class Killed(BaseException):
    """The caller is killed with SIGKILL: nothing of it runs any more."""


@dataclass
class Made:
    id: str
    name: str
    image: str
    labels: dict[str, str]
    status: str = "created"
    # The host's folders by where they are mounted.
    mounts: dict[str, str] = field(default_factory=dict)


@dataclass
class Docker:
    containers: dict[str, Made] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    # What `docker run` answers: the trial of an image.
    trial: Answer = (0, '{"problems": []}\n', "")
    # What `docker create` says of options that it refuses.
    refuses: str | None = None
    calls: list[list[str]] = field(default_factory=list)
    kill_at: int | None = None
    _numbers: Any = field(default_factory=itertools.count)

    def __call__(self, command: list[str], text: str = "") -> Answer:
        if self.kill_at is not None and len(self.calls) >= self.kill_at:
            raise Killed
        self.calls.append(command[1:])
        words = command[1:]
        if words[:2] == ["container", "inspect"]:
            return self._inspect(words[2:])
        answer: Answer = getattr(self, f"_{words[0]}")(words[1:])
        return answer

    def named(self, name: str) -> Made | None:
        return next(
            (each for each in self.containers.values() if name in (each.id, each.name)), None
        )

    @property
    def running(self) -> list[str]:
        return [each.name for each in self.containers.values() if each.status == "running"]

    def add(self, name: str, image: str, status: str = "running", **labels: str) -> Made:
        made = Made(f"{next(self._numbers):064x}", name, image, labels, status)
        self.containers[made.id] = made
        return made

    def _inspect(self, names: list[str]) -> Answer:
        found = [(name, self.named(name)) for name in names]
        missing = [name for name, made in found if made is None]
        described = [_described(made) for _name, made in found if made is not None]
        error = "".join(
            f"Error response from daemon: No such container: {name}\n" for name in missing
        )
        return int(bool(missing)), json.dumps(described), error

    def _create(self, words: list[str]) -> Answer:
        options = [word.partition("=")[::2] for word in words[:-1]]
        name = dict(options)["--name"]
        if self.refuses:
            return 1, "", self.refuses
        if (other := self.named(name)) is not None:
            return _conflict(name, other)
        labels = [value.partition("=")[::2] for key, value in options if key == "--label"]
        made = self.add(name, words[-1], "created", **dict(labels))
        for key, value in options:
            if key == "--mount":
                (line,) = csv.reader([value])
                mount = dict(part.split("=", 1) for part in line)
                made.mounts[mount["target"]] = mount["source"]
        return 0, f"{made.id}\n", ""

    def _ps(self, words: list[str]) -> Answer:
        """By moby's daemon/list.go (v20.10 and v28.2), the filter `volume` takes a path in the
        container, and shows only what runs unless all is asked for.
        """
        target = next(word for word in words if word.startswith("volume=")).partition("=")[2]
        found = [
            each.id
            for each in self.containers.values()
            if target in each.mounts and ("--all" in words or each.status == "running")
        ]
        return 0, "".join(f"{identity}\n" for identity in found), ""

    def _rename(self, words: list[str]) -> Answer:
        made, taken = self.named(words[0]), self.named(words[1])
        if made is None:
            return _gone(words[0])
        if taken is not None:
            return _conflict(words[1], taken)
        made.name = words[1]
        return 0, "", ""

    def _start(self, words: list[str]) -> Answer:
        made = self.named(words[-1])
        if made is None:
            return _gone(words[-1])
        assert not [name for name in self.running if name != made.name], "the network is the host's"
        made.status = "exited" if made.image in self.broken else "running"
        return 0, f"{words[-1]}\n", ""

    def _stop(self, words: list[str]) -> Answer:
        made = self.named(words[-1])
        if made is None:
            return _gone(words[-1])
        made.status = "exited"
        return 0, "", ""

    def _restart(self, words: list[str]) -> Answer:
        return self._start(words)

    def _rm(self, words: list[str]) -> Answer:
        made = self.named(words[-1])
        if made is not None:
            del self.containers[made.id]
        return 0, "", ""

    def _logs(self, words: list[str]) -> Answer:
        return 0, "", "sgl-init: ERROR: prometheus cannot listen on 10.99.99.99:9090\n"

    def _run(self, words: list[str]) -> Answer:
        return self.trial


def _conflict(name: str, other: Made) -> Answer:
    said = (
        f'Error response from daemon: Conflict. The container name "/{name}" is already in use by'
        f' container "{other.id}". You have to remove (or rename) that container to be able to'
        " reuse that name.\n"
    )
    return 1, "", said


def _gone(name: str) -> Answer:
    return 1, "", f"Error response from daemon: No such container: {name}\n"


def _described(made: Made) -> dict[str, Any]:
    return {
        "Id": made.id,
        "Name": f"/{made.name}",
        "Image": made.image,
        "Config": {"Labels": made.labels},
        "State": {
            "Running": made.status == "running",
            "Restarting": made.status == "restarting",
            "Status": made.status,
            "StartedAt": "2026-11-23T09:15:00.000000000Z",
            "ExitCode": 0,
            "Pid": 0,
        },
        "Mounts": [
            {"Type": "bind", "Source": source, "Destination": target}
            for target, source in made.mounts.items()
        ],
    }
