"""Measures whether the host is as fast as it should be, and judges what was measured."""
