"""The toy world's table: worlds that were not designed on, several training seeds, settings frozen before.

    python -m uqharness.toyworld --full --seed 1 --out worlds/w1       (and 2, 3)
    python benchmarks/toyworld_report.py worlds/w1 worlds/w2 worlds/w3 --out report [--seeds 3] [--methods …]

Every world is a `uqharness demo` of its own (resumable); this adds the MLE whose learning rate and steps were chosen on
validation, and averages over worlds and seeds. Writes OUT/report.json and prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from uqharness import demo
from uqharness.metrics import METRICS
from uqharness.results import read_results

METHODS = ["mle", "tempscale", "map", "mcd", "ens", "laplace", "bbb", "blob", "melora"]
SHOWN = ("acc", "ece", "ece_debiased", "ece_floor", "nll", "brier", "auroc")
Key = tuple[str, int, str]  # row, draws, task


def run_world(world: Path, out: Path, args: argparse.Namespace, suite: dict[str, Any]) -> None:
    os.environ["UQHARNESS_TOYWORLD"] = str(world.resolve())
    wanted = argparse.Namespace(
        out=out, all=False, methods=args.methods, seeds=args.seeds, quick=False, limit=args.limit
    )
    cells = demo.plan(wanted, suite)
    tuned = {**suite["run"], **suite["mle_tuned"]}
    limit = args.limit or None
    cells += [demo.Cell(f"mle-tuned/seed{s}", "mle", s, tuned, limit) for s in range(args.seeds)]
    demo.run_cells(out, [cell for cell in cells if not demo.is_done(out, cell)], args.workers)


def collect(out: Path) -> dict[Key, dict[str, list[float]]]:
    """{(row, draws, task): {metric: values over worlds and seeds}}."""
    found: dict[Key, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for marker in sorted(out.glob("w*/results/**/demo.json")):
        name = json.loads(marker.read_text())["cell"]["name"].split("/")[0]
        for run in read_results(marker.parent):
            have = run.record.draws
            finite = ((run.config.get("uqharness") or {}).get("record") or {}).get("posterior", {}).get("finite", 1)
            for n in [have] if finite is not None or run.record.combine == "given" else [0, 5, have]:
                values = run.metrics(n)
                for metric in SHOWN:
                    found[name, n, run.task][metric].append(values[metric])
    return found


def markdown(found: dict[Key, dict[str, list[float]]]) -> str:
    tasks = [t for t in demo.TASKS if any(key[2] == t for key in found)]
    rows = list(dict.fromkeys((name, n) for name, n, _ in found))
    order = ["oracle", "zero-shot", "mle", "mle-tuned", "tempscale"]
    rows.sort(key=lambda row: (order.index(row[0]) if row[0] in order else 9, row[0], row[1]))
    lines = [f"| | N | {' | '.join(f'{t} ACC / ECE / NLL' for t in tasks)} |", "|---|---|" + "---|" * len(tasks)]
    for name, n in rows:
        cells = [" / ".join(text(found[name, n, t].get(m, []), m) for m in ("acc", "ece", "nll")) for t in tasks]
        lines.append(f"| {name} | {n} | {' | '.join(cells)} |")
    floors = [f"{t} {100 * mean(found['oracle', 1, t]['ece_floor']):.1f}" for t in tasks if ("oracle", 1, t) in found]
    return "\n".join([*lines, "", f"ECE floor at the oracle's confidences: {', '.join(floors)}"])


def text(values: list[float], metric: str) -> str:
    if not values:
        return "–"
    scale, digits = METRICS[metric].scale, 1 if METRICS[metric].scale > 1 else 3
    spread = f" ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * mean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+", type=Path, help="folders made by python -m uqharness.toyworld --full")
    parser.add_argument("--out", type=Path, default=Path("report"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1500, help="questions per test set; 0: all 6000")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    suite = yaml.safe_load(files("uqharness.suites").joinpath("toyworld.yaml").read_text(encoding="utf-8"))
    for world in args.worlds:
        run_world(world, args.out / f"w{world.name.lstrip('w')}", args, suite)
    found = collect(args.out)
    rows = [{"row": k[0], "draws": k[1], "task": k[2], **values} for k, values in found.items()]
    (args.out / "report.json").write_text(json.dumps(rows) + "\n")
    print(markdown(found))


if __name__ == "__main__":
    main()
