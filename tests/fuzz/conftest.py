"""How many examples each test takes: the same few ones every time, or many new ones where
SGL_FUZZ_EXAMPLES says how many.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("SGL_FUZZ_EXAMPLES", "0"))

settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES or 200,
    # The fast lane may not fail by chance; the slow one is there to find what nobody thought of.
    derandomize=not EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
