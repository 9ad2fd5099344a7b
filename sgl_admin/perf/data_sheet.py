"""What a GPU must reach at least, by its product's data sheet.

Peaks are NVIDIA's, without sparsity: "NVIDIA GH200 Grace Hopper Superchip" (HBM3 and HBM3e),
"NVIDIA H100 Tensor Core GPU" (SXM, NVL) and "NVIDIA H100 PCIe" and "NVIDIA H200 Tensor Core GPU"
(SXM, NVL) data sheets. Names are NVML's. The parts of a peak that a healthy GPU must reach are
below what two were seen to reach. An H200: BF16 780 of 989 TFLOP/s, FP8 1388 of 1979, copy 4217 of
4800 GB/s, host to device 55 of 64 GB/s. An H100 80GB HBM3, ten seconds long and held by its power
limit of 700 W: BF16 678, FP8 1212, copy 3009 of 3350 GB/s, host to device 53. Over NVLink-C2C a
GH200's copy engines were seen at 346 of 450 GB/s to the device, and about 15 % less from it
(NVIDIA/nvbandwidth, issue 23). A card whose power limit is far below its data sheet's largest
(PCIe, NVL) reaches a smaller part in a sustained multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass

from sgl_admin.contract import perf
from sgl_admin.contract.perf import Judgement

REFERENCE = "the data sheet's floor"
# The part of the peak that must be reached.
_PARTS = {"hbm_copy": 0.8, "hbm_read": 0.75, "h2d": 0.7, "d2h": 0.7}
_PARTS_C2C = {"h2d": 0.65, "d2h": 0.55}
_SXM = {"gemm_bf16": 0.6, "gemm_fp8": 0.5}
_CARD = {"gemm_bf16": 0.45, "gemm_fp8": 0.4}
# GB/s in one direction: PCIe 5.0 with 16 lanes, and NVLink-C2C.
_PCIE, _C2C = 64, 450


@dataclass(frozen=True)
class Product:
    """Peaks in TFLOP/s and GB/s."""

    bf16: float
    fp8: float
    memory: float
    link: float = _PCIE
    card: bool = False

    @property
    def floors(self) -> dict[str, float]:
        peaks = {
            "gemm_bf16": self.bf16,
            "gemm_fp8": self.fp8,
            "hbm_copy": self.memory,
            "hbm_read": self.memory,
            "h2d": self.link,
            "d2h": self.link,
        }
        parts = {
            **_PARTS,
            **(_CARD if self.card else _SXM),
            **(_PARTS_C2C if self.link == _C2C else {}),
        }
        return {name: peak * parts[name] for name, peak in peaks.items()}


PRODUCTS = {
    # 96 GB of HBM3; the name has the CPU's 480 GB.
    "NVIDIA GH200 480GB": Product(990, 1979, 4000, _C2C),
    "NVIDIA GH200 144G HBM3e": Product(990, 1979, 4900, _C2C),
    "NVIDIA H100 80GB HBM3": Product(989, 1979, 3350),
    "NVIDIA H100 PCIe": Product(756, 1513, 2000, card=True),
    "NVIDIA H100 NVL": Product(835, 1671, 3900, card=True),
    "NVIDIA H200": Product(989, 1979, 4800),
    "NVIDIA H200 NVL": Product(835, 1671, 4800, card=True),
}


def judge(device_name: str, values: dict[str, float]) -> tuple[list[Judgement], str | None]:
    """Each measurement beside its floor; or why there is none for this device."""
    product = PRODUCTS.get(device_name)
    if product is None:
        return [], f"there is no data sheet here for {device_name}"
    return [
        Judgement(
            name,
            REFERENCE,
            values[name],
            round(floor, 1),
            round(perf.worse_by(name, values[name], floor), 2),
            perf.FAIL if values[name] < floor else perf.PASS,
        )
        for name, floor in product.floors.items()
        if name in values
    ], None
