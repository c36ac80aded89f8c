"""How standard deviations grow: in BLoB's Figure 2, and in the layers of a recorded training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uqharness.errors import InputError
from uqharness.plots.figure import Chart, Line, Panel

PRIOR, START, RATE, STEPS, MARKED = 1.0, 0.01, 1e-4, 100_000, 5_000


def kl_slope(std: float, prior: float = PRIOR) -> float:
    """d KL[N(m, σ²) ‖ N(0, σp²)] / dσ = σ/σp² - 1/σ."""
    return std / prior**2 - 1 / std


def growth(
    parameterization: str, steps: int = STEPS, start: float = START, rate: float = RATE, prior: float = PRIOR
) -> list[float]:
    """σ after 0 … steps steps of gradient descent on the KL alone (BLoB, Appendix A.2, Eqs. 62 and 63).

    σ = ρ² (`square`) or σ = log(1 + e^ρ) (`softplus`), both from σ = `start`.
    """
    std_of: Callable[[float], float]
    slope_of: Callable[[float], float]
    if parameterization == "square":
        rho, std_of, slope_of = math.sqrt(start), lambda r: r * r, lambda r: 2 * r
    elif parameterization == "softplus":
        rho, std_of, slope_of = math.log(math.expm1(start)), _softplus, lambda r: 1 / (1 + math.exp(-r))
    else:
        raise InputError(f"parameterization {parameterization!r}: use square or softplus")
    std = [start]
    for _ in range(steps):
        rho -= rate * kl_slope(std[-1], prior) * slope_of(rho)
        std.append(std_of(rho))
    return std


def _softplus(rho: float) -> float:
    return math.log1p(math.exp(-abs(rho))) + max(rho, 0.0)


def std_growth(points: int = 500) -> Chart:
    """BLoB's Figure 2: one σ under its KL alone; σp = 1, σ0 = 0.01, rate 1e-4 for ρ, 5,000 steps marked."""
    names = {"softplus": "σ = log(1 + exp ρ)", "square": "σ = ρ²"}
    places = sorted({round(STEPS * k / points) for k in range(points + 1)} | set(range(0, 2 * MARKED, 50)))
    lines = []
    for kind, name in names.items():
        std = growth(kind)
        lines.append(Line(name, [float(step) for step in places], [std[step] for step in places]))
    mark = [(float(MARKED), f"{MARKED:,} steps")]
    return Chart([Panel("KL alone", "training step", "σ", lines, marks=mark)], 1)


def std_layers(adapters: Sequence[tuple[str, Mapping[str, Any]]]) -> Chart:
    """The mean std of each layer's random weights against the step, from adapters' records, a panel for each.

    Args:
        adapters: (name, uq_config.json's content).
    """
    panels = []
    for name, record in adapters:
        curves = [curve for curve in record.get("training") or [] if curve.get("std")]
        if not curves:
            raise InputError(
                f"{name} records no std of its layers: train it with --record-every K (of methods that learn a std: "
                "blob, melora, bbb, scalabl)"
            )
        values = curves[0]["std"]  # {layer: [[step, std], …]}
        lines = [
            Line(layer, [step for step, _ in series], [std for _, std in series])
            for layer, series in short_names(values).items()
        ]
        panels.append(Panel(name, "training step", "mean std", lines))
    return Chart(panels, min(2, len(panels)))


def short_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """ "3.q_proj" in place of "base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight" where unique."""
    skipped = {"base_model", "model", "layers", "self_attn", "lora_A", "lora_B", "default", "weight", "mlp", "h"}
    skipped |= {"bert", "roberta", "deberta", "encoder", "layer", "attention", "self"}
    short = {name: ".".join(p for p in name.split(".") if p not in skipped) or name for name in values}
    alike = len(set(short.values())) < len(short)
    return {name if alike else short[name]: series for name, series in values.items()}
