"""One verdict of all that was measured and seen: `pass`, `warn` or `fail`, with the number that
decided it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sgl_admin.contract import perf
from sgl_admin.contract.perf import Judgement


@dataclass(frozen=True)
class Finding:
    """What was seen while it was measured: a sentence, and how much it weighs."""

    verdict: str
    sentence: str


@dataclass(frozen=True)
class Verdict:
    judgements: tuple[Judgement, ...]
    findings: tuple[Finding, ...]
    # By reference, why there is none.
    without: dict[str, str]

    @property
    def verdict(self) -> str:
        judged = [each.verdict for each in self.judgements]
        return perf.worst([*judged, *(each.verdict for each in self.findings)])

    @property
    def reason(self) -> str | None:
        """The measurements that are as bad as the verdict, three of them, and then all that was
        seen meanwhile, as that may be why; None where it is `pass`.
        """
        if self.verdict == perf.PASS:
            return None
        slow = [each.sentence for each in self.judgements if each.verdict == self.verdict]
        seen = [each.sentence for each in self.findings if each.verdict != perf.PASS]
        more = [f"{len(slow) - 3} more"] if len(slow) > 3 else []
        return "; ".join([*slow[:3], *more, *seen])

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "judgements": [asdict(each) for each in self.judgements],
            "findings": [asdict(each) for each in self.findings],
            "without": [
                {"reference": reference, "reason": why} for reference, why in self.without.items()
            ],
        }
