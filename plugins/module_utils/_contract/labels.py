# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Labels by which images and containers say what they were made of."""

from __future__ import annotations

# The build inputs of an image; the Dockerfile sets it.
INPUTS_LABEL = "org.slice-bench.image-inputs"
# The name for which an image was built: it tells an image that has lost its name from those of
# another installation.
NAME_LABEL = "org.slice-bench.image-name"
# A digest of all that makes a container; one that the role stack created has it.
CONTAINER_LABEL = "org.slice-bench.container-inputs"
