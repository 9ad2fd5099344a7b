# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One reading of a model's folder, for the modules on the host and for sgl-admin in the container:
which files the server reads, whether they are whole, and what the config says of the experts.

Nothing here writes. Of the weights only the headers are read.
"""
