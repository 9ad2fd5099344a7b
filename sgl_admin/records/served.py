"""Which server has run: one string for all that its process is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence


def identity(
    model_identity: str, argv: Sequence[str], environment: Mapping[str, str], image: str
) -> str:
    """`sha256:` and the digest over a model, a command line, variables and an image."""
    parts = [model_identity, list(argv), sorted(environment.items()), image]
    return f"sha256:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"
