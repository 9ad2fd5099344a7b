"""How fast the prepared server answers one request, while it answers no other."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from sgl_admin.base.errors import StageFailure

if TYPE_CHECKING:
    from sgl_admin.serving.warmup import Warmup

_TOKENS, _ROUNDS = 64, 5
_TEXT = " ".join(f"After {number} comes {number + 1}." for number in range(40))


def measure(
    warmup: Warmup, batch_sizes: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, str]]:
    """The median of some rounds, and what was not measured and why. Raises StageFailure."""
    warmup.ensure_requests(batch_sizes[:1])
    first, rest = [], []
    tokens = _TOKENS
    for number in range(_ROUNDS + 1):
        # Each begins otherwise, so that the server has no prefix of it.
        one = warmup.timed(f"Text {number} a. {_TEXT}", 1)
        many = warmup.timed(f"Text {number} b. {_TEXT}", _TOKENS)
        if number:
            # The round before the first one warms.
            first.append(one.seconds)
            rest.append(many.seconds - one.seconds)
            tokens = min(tokens, many.tokens)
    seconds, took = statistics.median(first), statistics.median(rest)
    if seconds <= 0:
        raise StageFailure("measurement_failed", "the server's first token took no time")
    values = {"first_token": 1000 * seconds}
    if tokens < _TOKENS or took <= 0:
        why = f"the server answered with {tokens} of {_TOKENS} tokens in {took:.3f} s more"
        return values, {"decode": why}
    return {**values, "decode": (_TOKENS - 1) / took}, {}
