"""p(y | x) = 1/K Σ_k p(y | x, θ_k), each θ_k trained separately from its own seed (deep ensembles,
arXiv:1612.01474, of LoRA adapters, arXiv:2310.00035).

`average=logits` averages the members' logits before the softmax, as the BLoB paper's ENS row does (Sec. 4.1).
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import DrawAverage, Predictive
from uqharness.errors import InputError
from uqharness.method import Method
from uqharness.posterior import Members, Posterior
from uqharness.settings import Run, option
from uqharness.training.base_model import init_adapter, init_head
from uqharness.training.loop import fit_loop

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData


@dataclass(frozen=True)
class Ensemble(Method):
    """K independently trained adapters."""

    name: ClassVar[str] = "ens"
    label: ClassVar[str] = "ENS"
    paper: ClassVar[str] = "Lakshminarayanan et al. 2017, arXiv:1612.01474"
    summary: ClassVar[str] = "K adapters trained from different seeds"
    passes: ClassVar[str] = "K forwards"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Members,)
    uses_source: ClassVar[bool] = True
    continues: ClassVar[bool] = True  # the source is member 0

    members: int = option(3, "how many adapters are trained (BLoB paper: 3)", low=1, high=1000)
    average: Literal["probs", "logits"] = option("probs", "what is averaged; the BLoB paper's ENS averages logits")

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Predictive:
        if source is not None and source.mean_is_member:
            raise InputError(f"ens takes one trained LoRA as its first member, found {source.finite}: give an MLE")
        members = [] if source is None else [source.posterior.mean]
        for k in range(len(members), self.members):
            member = member_run(run, k)
            init_adapter(model, member.seed)
            init_head(model, member.seed)
            stack = LoraStack(model)
            fit_loop(stack, data, member, method=self)
            members.append(stack.mean())
        return DrawAverage(Members(members, train_seed=run.seed), self.average)


def member_run(run: Run, k: int) -> Run:
    """Return the run of a member: member 0 has the run's own seed (so it equals that seed's MLE), others hash it."""
    digest = hashlib.sha256(f"member {k} of {run.seed}".encode()).digest()
    seed = run.seed if k == 0 else int.from_bytes(digest[:4], "little") >> 1
    return dataclasses.replace(run, seed=seed, out=f"{run.checkpoints}/member{k}" if run.out else "")
