"""How many examples each test takes, which SGL_FUZZ_EXAMPLES says: up to FEW the same ones every
time, and new ones beyond.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

FEW = 100
EXAMPLES = int(os.environ.get("SGL_FUZZ_EXAMPLES") or FEW)

settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES,
    # The fast lane may not fail by chance; the slow one is there to find the unforeseen.
    derandomize=EXAMPLES <= FEW,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
