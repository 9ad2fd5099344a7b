"""SGLang imports transfer functions from here by name, for caches that no CPU server has: each says
so when called.
"""

from collections.abc import Callable


def __getattr__(name: str) -> Callable[..., None]:
    if name.startswith("__"):
        raise AttributeError(name)

    def unavailable(*_args: object, **_kwargs: object) -> None:
        raise NotImplementedError(
            f"sgl_kernel.kvcacheio.{name} needs sgl_kernel, which has no CPU build"
        )

    return unavailable
