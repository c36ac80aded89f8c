"""Bayesian LoRA in lm-eval: a posterior is a distribution over forward functions.

Python imports this file at every start (`uqharness.pth`), so it imports nothing that is not there already.
"""
import os

__version__ = "0.1.0"

# In a checkout `adapters/`, `tasks/` and `leaderboard/` lie beside this package and not inside it, as they do
# in a wheel: look for `uqharness.adapters` there too.
_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "adapters")):
    __path__.append(os.path.dirname(_here))
