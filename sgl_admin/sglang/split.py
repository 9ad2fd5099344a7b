"""How the server splits its experts among its GPUs, by its arguments.

As in every release from 0.5.3 to 0.5.23 (`FusedMoE.__init__`, `initialize_model_parallel`): with
expert parallelism a rank holds that part of the routed experts, and each expert is divided among
the GPUs that are left: tp / (ep * moe_dp).
"""

from __future__ import annotations

from sgl_admin.base.engine import Split
from sgl_admin.contract.model.arguments import flag_value

_TP = ("--tensor-parallel-size", "--tp", "--tp-size")
_EP = ("--expert-parallel-size", "--ep", "--ep-size")
_DP = ("--moe-data-parallel-size", "--moe-dp-size")
_REDUNDANT = "--ep-num-redundant-experts"
_DISPATCH, _RUNNER = "--moe-a2a-backend", "--moe-runner-backend"
_DETERMINISTIC = "--enable-deterministic-inference"
# They change the sizes above while the server starts.
_RESIZING = ("--dwdp-size", "--max-ep-size", "--elastic-ep-backend")
_TRITON = ("auto", "triton")


def split(arguments: tuple[str, ...], tp: int) -> Split:
    """The split that these arguments ask for, and why the server looks nothing up, if so."""
    if why := _looks_up_nothing(arguments):
        return Split(reason=why)
    try:
        tp, ranks, copies, redundant = (
            _number(arguments, names, default)
            for names, default in ((_TP, tp), (_EP, 1), (_DP, 1), ((_REDUNDANT,), 0))
        )
    except ValueError as error:
        return Split(reason=str(error))
    if tp % (ranks * copies):
        return Split(
            reason=f"the {tp} GPUs cannot be divided among {ranks} parts of the experts"
            f" ({_EP[-1]}) with {copies} copies of each ({_DP[-1]})"
        )
    return Split(ranks, tp // (ranks * copies), redundant)


def _looks_up_nothing(arguments: tuple[str, ...]) -> str | None:
    dispatch = flag_value(arguments, _DISPATCH) or "none"
    if dispatch != "none":
        return (
            f"with {_DISPATCH} {dispatch} the experts are run behind that dispatcher, by kernels"
            " that look up no MoE configuration"
        )
    runner = flag_value(arguments, _RUNNER) or "auto"
    if runner not in _TRITON:
        return (
            f"with {_RUNNER} {runner} the experts are not run by the Triton kernel, which alone"
            " looks up MoE configurations"
        )
    if _DETERMINISTIC in arguments:
        return f"with {_DETERMINISTIC} the server looks up no MoE configuration"
    resizing = next((name for name in _RESIZING if flag_value(arguments, name)), None)
    if resizing:
        return f"with {resizing} the server chooses the split of its experts while it starts"
    return None


def _number(arguments: tuple[str, ...], names: tuple[str, ...], default: int) -> int:
    """Raises ValueError, in words."""
    word = flag_value(arguments, *names)
    if word is None:
        return default
    if not (word.isascii() and word.isdigit() and len(word) < 7) or (int(word) < 1 and default):
        raise ValueError(f"{names[-1]} {word[:20]} is not a number of GPUs")
    return int(word)
