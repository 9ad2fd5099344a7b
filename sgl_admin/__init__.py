"""sgl-admin: warms and inspects the kernel caches of an SGLang container, and proves that its
metrics arrive.

A folder imports from the folders before it only; tests/unit/test_layers.py holds their order.
"""

__version__ = "1.1.0"
