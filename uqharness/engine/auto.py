"""samples=auto: a question is drawn for until its averaged answer is settled.

With n of S draws taken, the average over all S lies within t · s · √((S − n) / (S n)) of the average over those n, at
95 %: the Student interval for the mean of a finite population without replacement (Cochran 1977, Sampling Techniques,
ch. 2), s the standard deviation over draws of a choice's probability, t the 97.5 % quantile with n − 1 degrees of
freedom. A question is settled when this is at most `tolerance` for each of its choices. The level is that of one look,
and there is one after every draw from the third; what that comes to in all was measured: benchmarks/NOTES.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.special import stdtrit
from torch import Tensor

FIRST_LOOK = 3  # s of two draws says nothing
LEVEL = 0.95


class Auto(NamedTuple):
    """How many draws there are at most, and how far an averaged probability may still move."""

    most: int = 10
    tolerance: float = 0.1

    def unsettled(self, logp: Tensor) -> Tensor:
        """From `[n, Q, C]` log p(choice | question), −inf where there is no such choice: `[Q]` bool.

        A question with one choice has no averaged answer that could settle, so it gets all draws.
        """
        n, p = len(logp), logp.softmax(-1)
        spread = p.std(0).amax(-1)  # [Q]
        reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * math.sqrt((self.most - n) / (self.most * n))
        alone = (logp[0] > -math.inf).sum(-1) < 2
        return alone | ~(reach * spread <= self.tolerance)  # NaN is never settled
