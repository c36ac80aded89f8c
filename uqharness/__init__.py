"""Bayesian LoRA in lm-eval. Imported at every start of Python (`uqharness.pth`): nothing heavy here."""

import os

__version__ = "0.1.0"

# In a checkout adapters/, tasks/ and leaderboard/ lie beside this package, in a wheel inside it.
_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(_here + "/adapters"):
    __path__.append(os.path.dirname(_here))
