"""Stands for the package sglang: its folder, its version (the dist-info folders beside it) and the
server in launch_server.py.
"""
