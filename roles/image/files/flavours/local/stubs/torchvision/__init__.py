"""A stand-in for torchvision, which has no CPU build for this torch: SGLang imports it in one
multimodal config.
"""

from torchvision import transforms

__all__ = ["transforms"]
