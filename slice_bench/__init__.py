"""A front for callers that know no Ansible: `python -m slice_bench.cli --help`. It belongs to the
checkout, not to the built collection.
"""
