"""Finished caches go from one host to another: packed, verified and placed, never anything in
progress.
"""
