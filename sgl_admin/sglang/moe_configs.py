"""The files in which SGLang looks launch configurations of its fused experts up, and what its log
says of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sgl_admin.base.engine import Lookup
from sgl_admin.contract.model.arguments import flag_value

VARIABLE = "SGLANG_MOE_CONFIG_DIR"
FOLDER = "configs"
_SUFFIX, _DOWN_SUFFIX = ".json", "_down.json"
_CHANNEL = ",per_channel_quant=True"
_NAME = re.compile(
    r"E=(?P<E>\d{1,9}),N=(?P<N>\d{1,9}),device_name=(?P<device>[^,]+?)(?:,dtype=(?P<dtype>\w+?))?"
    r"(?:,block_shape=\[(?P<n>\d{1,9}),"
    r" ?(?P<k>\d{1,9})\])?(?P<channel>,per_channel_quant=True)?(?P<down>_down)?\.json"
)
# As every release since 0.5.3 says it (releases.py): read, taken from another Triton's folder, or
# not found.
_READ = re.compile(r"Using MoE kernel config from (\S.*?\.json)")
_LOOKED_UP = re.compile(r"(?:Using MoE kernel config from|Config file not found at) (\S.*?\.json)")

# The GPUs of each compute capability that most files are shipped for (0.5.23), the fastest memory
# first: a GH200, for which none is, has the processor of both of the first.
_SHIPPED_FOR = {
    80: ("NVIDIA A100-SXM4-80GB",),
    90: ("NVIDIA H200", "NVIDIA H100 80GB HBM3"),
    100: ("NVIDIA B200",),
    103: ("NVIDIA GB300", "NVIDIA B300 SXM6 AC", "NVIDIA B200"),
}
# As its server sets them for itself, by the GPU's memory; the largest of them (0.5.3 to 0.5.23).
_CHUNK, _PREFILL = "--chunked-prefill-size", "--max-prefill-tokens"
_MOST_TOKENS = 16384
# Beyond it the time grows with the number of tokens, and rows are no better for being more.
_ENOUGH_TOKENS = 32768


class MoeConfigs:
    """As base.engine.MoeConfigs says."""

    variable = VARIABLE
    folder = FOLDER
    pattern = f"triton_*/*{_SUFFIX}"
    backend_flag = "--moe-runner-backend"

    def triton_folder(self, triton: str) -> str:
        return f"triton_{triton.replace('.', '_')}"

    def file_name(self, lookup: Lookup, device_name: str) -> str:
        device = device_name.replace(" ", "_")
        dtype = f",dtype={lookup.dtype}" if lookup.dtype else ""
        block = ""
        if lookup.block_shape:
            block = f",block_shape=[{lookup.block_shape[0]}, {lookup.block_shape[1]}]"
        channel = _CHANNEL if lookup.per_channel else ""
        return f"E={lookup.E},N={lookup.N},device_name={device}{dtype}{block}{channel}{_SUFFIX}"

    def lookup(self, file_name: str) -> Lookup | None:
        found = _NAME.fullmatch(file_name)
        if found is None or found["down"]:
            return None
        block = (int(found["n"]), int(found["k"])) if found["n"] else None
        by_channel = found["channel"] is not None
        return Lookup(int(found["E"]), int(found["N"]), found["dtype"], block, by_channel)

    def down_name(self, file_name: str) -> str:
        return file_name.removesuffix(_SUFFIX) + _DOWN_SUFFIX

    def main_name(self, file_name: str) -> str:
        return file_name.replace(_DOWN_SUFFIX, _SUFFIX)

    def nearest_devices(self, device_name: str, sm: int) -> list[str]:
        return [name for name in _SHIPPED_FOR.get(sm, ()) if name != device_name]

    def most_tokens(self, arguments: Sequence[str]) -> int:
        for flag in (_CHUNK, _PREFILL):
            word = flag_value(arguments, flag) or ""
            # Of -1 the server does not cut its prefills.
            if word.isascii() and word.isdigit() and 0 < int(word[:9]):
                return min(int(word[:9]), _ENOUGH_TOKENS)
        return _MOST_TOKENS

    def looked_up(self, lines: Iterable[str]) -> list[str]:
        return [name for line in lines for name in _LOOKED_UP.findall(line)]

    def read(self, lines: Iterable[str]) -> list[str]:
        return [name for line in lines for name in _READ.findall(line)]
