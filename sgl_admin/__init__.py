"""sgl-admin: warms and inspects the kernel caches of an SGLang container, and proves that its
metrics arrive.
"""

__version__ = "1.0.0"
