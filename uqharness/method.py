"""The contract of a method: a frozen dataclass of hyper-parameters that makes a posterior.

Built-ins and third parties register in the entry-point group `uqharness.methods` (`uqharness.registry`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from uqharness.engine.predictive import DrawAverage, Predictive
from uqharness.posterior import Point, Posterior
from uqharness.settings import check_ranges

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.settings import Run
    from uqharness.training.data import ChoiceData


@dataclass(frozen=True)
class Method(ABC):
    """A method that makes a posterior; its fields are its hyper-parameters, with its paper's defaults.

    Example:
        >>> import torch
        >>> from uqharness.engine.lora import LoraStack
        >>> from uqharness.posterior import Gaussian
        >>> from uqharness.settings import option
        >>> from uqharness.testing import check_method
        >>> from uqharness.training.loop import fit_loop
        >>> @dataclass(frozen=True)
        ... class Smallest(Method):
        ...     name: ClassVar[str] = "smallest"
        ...     label: ClassVar[str] = "Smallest"
        ...     paper: ClassVar[str] = "none"
        ...     summary: ClassVar[str] = "LoRA with a Gaussian of one fixed std"
        ...     passes: ClassVar[str] = "N + 1 forwards"
        ...     posteriors: ClassVar[tuple[type[Posterior], ...]] = (Gaussian,)
        ...     std: float = option(0.1, "of every weight of A", low=0)
        ...
        ...     def fit(self, model, data, run, source=None):
        ...         stack = LoraStack(model)
        ...         fit_loop(stack, data, run, method=self)
        ...         mean = stack.mean()
        ...         std = {name: torch.full_like(t, self.std) for name, t in mean.items() if ".lora_A." in name}
        ...         return Gaussian(mean, std, train_seed=run.seed)
        >>> check_method(Smallest).kind
        'gaussian'
    """

    name: ClassVar[str]
    label: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    passes: ClassVar[str]  # cost of evaluating N draws, in forward passes
    suggests: ClassVar[Mapping[str, Any]] = {}  # run settings of the paper; what the user overrides is recorded
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Point,)  # what it makes, for the folder to be read again
    predictives: ClassVar[tuple[type[Predictive], ...]] = (DrawAverage,)
    if_inert: ClassVar[str] = "train for more steps, or with a higher --lr"  # what makes draws move the answers
    uses_tune: ClassVar[bool] = False  # reads `data.tune`, which is then held out of `data.train`
    uses_source: ClassVar[bool] = False  # can build on a trained adapter (`--adapter`), `source` of `fit`
    continues: ClassVar[bool] = False  # that adapter must be of the same recipe and seed: this method's first part

    def __post_init__(self) -> None:
        """Refuse settings outside their ranges; a method that checks more calls this first."""
        check_ranges(self)

    @abstractmethod
    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None) -> Posterior | Predictive:
        """Train `model`'s adapter on `data`, or build on `source`.

        Args:
            model: the base with a fresh LoRA, or with that of `source`.
            data: `train` to fit, `tune` (with `uses_tune`) to choose settings on; never an evaluated split.
            run: the settings that all methods share.
            source: the adapter that it builds on (`uses_source`), or None.

        Returns:
            The posterior, whose draws are averaged, or a predictive of another kind.
        """
