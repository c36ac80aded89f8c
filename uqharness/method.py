"""The contract of a method: a frozen dataclass of hyper-parameters that makes a posterior.

Built-ins and third parties register in the entry-point group `uqharness.methods` (`uqharness.registry`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from uqharness.errors import InputError
from uqharness.posterior import Point, Posterior, Tensors

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.settings import Run
    from uqharness.training.data import ChoiceData


@dataclass(frozen=True)
class Method(ABC):
    """One way to make a posterior: its fields are its hyper-parameters, the defaults are its paper's."""

    name: ClassVar[str]
    label: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    passes: ClassVar[str]  # cost of evaluating N draws, in forward passes
    suggests: ClassVar[Mapping[str, Any]] = {}  # run settings of the paper; what the user overrides is recorded
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Point,)
    if_inert: ClassVar[str] = "train for more steps, or with a higher --lr"  # what makes draws move the answers
    uses_tune: ClassVar[bool] = False  # reads `data.tune`, which is then held out of `data.train`
    uses_source: ClassVar[bool] = False  # can build on a trained adapter (`--adapter`), `source` of `fit`
    continues: ClassVar[bool] = False  # that adapter must be of the same recipe and seed: this method's first part

    @abstractmethod
    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Posterior | None) -> Posterior:
        """Train `model`'s adapter on `data` (or start from `source`) and say what the posterior is."""

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Posterior:
        """The posterior that `fit` made, from its saved parts."""
        kinds = {posterior.kind: posterior for posterior in cls.posteriors}
        kind = str(settings.get("kind", ""))
        if kind not in kinds:
            raise InputError(f"method {cls.name} makes posteriors of kind {', '.join(kinds)}; found {kind!r}")
        return kinds[kind].restore(mean, state, settings, train_seed)
