"""Bayesian LoRA in lm-eval. Imported at every start of Python (`uqharness.pth`): nothing heavy here.

The Python API (`load`, `train`, `evaluate`, `read_results`) is in `api.py`, which is imported on first use.
"""

import os

__version__ = "0.1.0"

# In a checkout adapters/, tasks/ and leaderboard/ lie beside this package, in a wheel inside it.
_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(_here + "/adapters"):
    __path__.append(os.path.dirname(_here))

__all__ = ["Answer", "Model", "TaskResult", "evaluate", "load", "read_results", "train"]


def __getattr__(name):  # type: ignore[no-untyped-def]
    if name in __all__:
        from uqharness import api

        return getattr(api, name)
    raise AttributeError(f"module 'uqharness' has no attribute {name!r}; its functions: {', '.join(__all__)}")


def __dir__():  # type: ignore[no-untyped-def]
    return sorted(__all__)
