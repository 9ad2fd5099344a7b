"""SGLang's wing: all that is SGLang's own, by release, behind the interface of base/engine.py.

Other folders import ENGINE from here and nothing else. Another server would be a second folder like
this one.
"""

from __future__ import annotations

from sgl_admin.base.engine import Engine
from sgl_admin.sglang.engine import SGLang

ENGINE: Engine = SGLang()

__all__ = ["ENGINE"]
