"""Only what SGLang imports by name."""

from torchvision.transforms.functional import InterpolationMode

__all__ = ["InterpolationMode"]
