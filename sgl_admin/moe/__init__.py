"""Tuning of SGLang's fused mixture-of-experts kernel: what is looked up, the search, its processes,
and the files that come of it.
"""
