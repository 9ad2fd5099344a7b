# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The contract: what the modules on the host, sgl-admin in the container and the front on the
controller must know alike.

Standard library only, Python 3.9 and later. sgl_admin has it as `sgl_admin.contract`. What can
follow from it is generated: `make generate`.
"""
