"""Stands for the package sglang; only `python -m sglang.launch_server` is in it."""
