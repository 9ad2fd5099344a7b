"""Timestamps and ids of the contract files: UTC, whole seconds."""

from __future__ import annotations

import os
import time


def utc(seconds: float | None = None) -> str:
    """`2026-11-23T09:15:00Z` of seconds since the epoch, now by default."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def new_id(kind: str) -> str:
    """`<kind>-20261123T091500Z-3fa9c1d2`"""
    return f"{kind}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(4).hex()}"
