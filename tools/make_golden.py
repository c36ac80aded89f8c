#!/usr/bin/env python
"""Make the golden files of tests/golden from the code at hand: what a change of structure must not move.

    adapters/NAME/            an adapter folder of every method and predictive: 30 seeded steps on the embedded world
    results/results_NAME.json what lm-eval writes for an evaluation of one of them, and for every predictive
    results/expected.json     every metric of these files, for each number of draws that they hold
    tables/NAME.FORMAT        what `uqharness table` prints of them
    published/toyworld.parquet   some runs of the published file of that day, as it stood
    published/expected.json   metrics of every run in the published file that the package ships

tests/test_golden.py compares with them. It compares numbers and what the files promise, no whole JSON files: a new key
in a record breaks nothing. Dates, durations, memory and the machine are removed, and paths are relative, so that two
runs at one commit give the same bytes on one machine. `adapter_schema_1` beside them is older, and is left alone.

A number that moves is a defect, unless it was meant to move; then make only the part that it concerns again, and say so
in the commit. Adapters and results are of the day they were made: never make them again for a mere change of structure.
tools/golden_bits.py compares the training of two commits bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # before torch is imported

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHIPPED = ROOT / "leaderboard" / "published" / "toyworld.parquet"
EPILOG = """\
examples:
  python tools/make_golden.py                    # everything
  python tools/make_golden.py tables             # only the tables of the results that are there
  python tools/make_golden.py --out /tmp/golden  # elsewhere, to look at the difference

Takes about three minutes on one core. Exit codes: 0 made, 1 a command failed, 2 the input cannot be used."""

# ---------------------------------------------------------------- the recipe

TASK, LIMIT, SEED = "toyworld_uq", 40, 5
# Large steps and much noise: the draws have to differ by far more than what a comparison lets pass. With Adam's usual ε
# a gradient that is rounding becomes a full step: then two processors differ by 2e-4 after 30 of them, so by 5e-6.
STEPS = "--steps 30 --lr 1e-2 --adam-eps 1e-3 --batch-size 4 --max-length 64"
RUN = f"--task {TASK} {STEPS} --device cpu --dtype float32".split()
LORA = "--base toyworld --lora-r 2 --lora-alpha 16 --target-modules q_proj v_proj".split()


@dataclass(frozen=True)
class Training:
    """One `uqharness train` command."""

    method: str
    settings: tuple[str, ...] = ()  # of --set
    source: str | None = None  # the training that it builds on

    def command(self, out: Path | str, adapters: Path | str = "adapters") -> list[str]:
        """The words after `uqharness`; `adapters` is the folder that holds its source."""
        base = ["--adapter", f"{adapters}/{self.source}"] if self.source else LORA
        own = ["--set", *self.settings] if self.settings else []
        return ["train", self.method, *base, *RUN, "--seed", str(SEED), *own, "--out", str(out)]


def _laplace(*settings: str) -> Training:
    return Training("laplace", ("rank=3", "mc_samples=256", *settings), "mle")


# Sources come first. The variants of Laplace differ in more than their predictive, so that more of its code is frozen.
# gamma=1000: BLoB's weights of the KL grow over a cycle, of 26 steps then, and before its end they are 0 in effect.
TRAININGS: Mapping[str, Training] = {
    "mle": Training("mle"),
    "map": Training("map", ("weight_decay=3.0",)),
    "mcd": Training("mcd", ("p=0.4",)),
    "mcd-token": Training("mcd", ("p=0.4", "mask=token")),
    "ens": Training("ens", ("members=3",)),
    "ens-logits": Training("ens", ("members=2", "average=logits")),
    "bbb": Training("bbb", ("prior_std=0.1", "mu_init=lora")),
    "blob": Training("blob", ("kl_lr=0.04", "eps=0.3", "gamma=1000")),
    "melora": Training("melora", ("kl_lr=0.03", "eps=0.5")),
    "scalabl": Training("scalabl", ("kl_lr=0.1", "eps=0.5", "gamma=1000")),
    "swag": Training("swag", ("start=0.1", "every=4", "rank=4")),
    "laplace-joint": _laplace("predictive=joint"),
    "laplace-indep": _laplace("predictive=indep", "tokens=expand", "prior=layer"),
    "laplace-probit": _laplace("predictive=probit", "structure=diag"),
    "laplace-bridge": _laplace("predictive=bridge", "tokens=reduce", "layers=last"),
    "laplace-weights": _laplace("predictive=weights", "prior_precision=300"),
    "tfb": Training("tfb", ("samples=2", "halvings=2"), "mle"),
    "tempscale": Training("tempscale", ("samples=3",), "blob"),
}

# {results file: (adapter, model_args)}
EVALUATIONS: Mapping[str, tuple[str, str]] = {
    **{name: (name, "samples=3") for name in TRAININGS},
    "blob-mean": ("blob", "samples=0"),
    "blob-auto": ("blob", "samples=auto,tolerance=0.02"),
    "blob-antithetic": ("blob", "samples=4,sampling=antithetic"),
}

METHODS = (
    "mle",
    "map",
    "mcd",
    "ens",
    "bbb",
    "laplace-joint",
    "blob",
    "melora",
    "scalabl",
    "swag",
    "tfb",
    "tempscale",
)
# {table: (results files, flags)}
TABLES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "methods": (METHODS, ["--across-recipes"]),
    "predictives": (
        [name for name in TRAININGS if name.startswith(("laplace", "ens", "mcd", "temp"))],
        ["--across-recipes", "--metric", "acc,ece_debiased,brier,auroc,mutual_information,aurc"],
    ),
    "draws": (["blob", "mcd", "swag", "ens", "laplace-probit", "mle"], ["--samples", "0,1,3", "--across-recipes"]),
}
FORMATS = ("md", "csv", "latex", "json")

# ---------------------------------------------------------------- the doors to the code: nothing else here imports it


def run_command(words: Sequence[str]) -> str:
    """Run `uqharness` in this process; return what it prints to standard output."""
    from uqharness.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*words, "--debug"])
    if code:
        raise RuntimeError(f"uqharness {' '.join(words)}: exit code {code}")
    return out.getvalue()


def evaluate(adapter: Path | str, model_args: str, out: Path, dtype: str = "float64") -> Path:
    """Evaluate an adapter through lm-eval; return the results file that it writes below `out`.

    In float64, where processors agree to 1e-6; in float32 they differ by up to 3e-6.
    """
    import lm_eval.evaluator

    # The report of the machine runs pip and takes seconds.
    original, lm_eval.evaluator.add_env_info = lm_eval.evaluator.add_env_info, lambda results: None
    try:
        run_command(
            [
                "eval",
                str(adapter),
                "--tasks",
                TASK,
                "--limit",
                str(LIMIT),
                "--batch_size",
                "16",
                "--device",
                "cpu",
                "--model_args",
                f"{model_args},dtype={dtype}",
                "--output_path",
                str(out),
            ]
        )
    finally:
        lm_eval.evaluator.add_env_info = original
    (path,) = out.rglob("results_*.json")
    return path


@dataclass(frozen=True)
class Answers:
    """What a results file says of its task."""

    logp: Any  # [S + 1, items, choices]; row 0 is the mean's; NaN where there is nothing
    gold: Any
    combine: str
    metrics: dict[int, dict[str, float]]  # by number of draws
    reported: dict[str, float]  # what lm-eval wrote


def read_answers(path: Path) -> Answers:
    from uqharness.results.reading import read_results

    (run,) = read_results(path)
    held = run.record
    counts = range(0 if held.has_mean else 1, held.draws + 1)
    if held.combine == "given":  # one row beside the mean's
        counts = range(counts.start, 2)
    return Answers(held.logp, held.gold, held.combine, {n: run.metrics(n) for n in counts}, run.reported)


def published_numbers(path: Path) -> dict[str, dict[str, list[float]]]:
    """{run: {metric: [at the fewest draws, at all draws, mean over all numbers of draws]}} of a published file."""
    from uqharness.leaderboard.board import build
    from uqharness.metrics.registry import METRICS

    board = build([path])
    if board.problems:
        raise RuntimeError(f"{path}: {board.problems[0]}")
    numbers = {}
    for run in board.runs:
        values = {name: [run.number(name, n) for n in run.counts] for name in METRICS}
        numbers[run.run_id] = {name: [v[0], v[-1], math.fsum(v) / len(v)] for name, v in values.items()}
    return numbers


def tensors_of(folder: Path) -> dict[str, Any]:
    """All tensors of an adapter folder: `mean/NAME` and `posterior/NAME`."""
    from safetensors.torch import load_file

    files = {"mean": folder / "adapter_model.safetensors", "posterior": folder / "posterior.safetensors"}
    tensors = {f"{k}/{name}": t for k, path in files.items() if path.exists() for name, t in load_file(path).items()}
    # Tempered adapters once had their source's tensors under a name of their own.
    return {name.replace("posterior/source.", "posterior/"): tensor for name, tensor in tensors.items()}


def fitted_numbers(folder: Path) -> dict[str, list[float]]:
    """Numbers that training found and that lie in the record: a temperature, prior precisions, …, wherever they lie."""
    record = json.loads((folder / "uq_config.json").read_text())
    numbers: dict[str, list[float]] = {}

    def look(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else ():
            if key in ("temperature", "precision"):
                numbers.setdefault(key, []).extend(inner if isinstance(inner, list) else [inner])
            look(inner)

    look({key: record[key] for key in ("posterior", "predictive") if key in record})
    return numbers


def differences(folder: Path, other: Path, tolerance: float = 1e-5) -> list[str]:
    """What differs in the numbers of two adapter folders, a line for each tensor; empty where nothing does."""
    lines = []
    now, then = tensors_of(folder), tensors_of(other)
    for name in sorted({*now, *then}):
        if name not in now or name not in then:
            lines.append(f"{name}: {'missing' if name not in now else 'new'}")
        elif now[name].shape != then[name].shape or now[name].dtype != then[name].dtype:
            about = [f"{tensor.dtype} {[*tensor.shape]}" for tensor in (now[name], then[name])]
            lines.append(f"{name}: {about[0]}, was {about[1]}")
        elif now[name].numel():
            a, b = now[name].double(), then[name].double()
            size = max(1.0, float(b.abs().max()))
            if name.endswith((".out", ".inp")):  # eigenvectors as columns: signs are LAPACK's, close ones mix
                a, size = a * (a * b).sum(0).sign(), 10.0
            if not (moved := float((a - b).abs().max())) <= tolerance * size:
                lines.append(f"{name}: moved by up to {moved:.2g}, its largest number is {float(b.abs().max()):.3g}")
    numbers, before = fitted_numbers(folder), fitted_numbers(other)
    for name in sorted({*numbers, *before}):
        a, b = numbers.get(name, []), before.get(name, [])
        if len(a) != len(b) or not all(math.isclose(x, y, rel_tol=10 * tolerance) for x, y in zip(a, b, strict=True)):
            lines.append(f"{name}: {a}, was {b}")
    return lines


# ---------------------------------------------------------------- the same bytes at any time, on any machine

FIXED: Mapping[str, Any] = {
    "seconds": 0.0,
    "peak_memory_bytes": 0,
    "threads": 1,
    "start_time": 0.0,
    "end_time": 0.0,
    "git_hash": None,
    "total_evaluation_time_seconds": "0",
    "upper_git_hash": None,
    "pretty_env_info": None,
}
DATE, CLOCK = "2026-11-29T00:00:00Z", 1_795_910_400.0


def without_machine(value: Any) -> Any:
    """`value` with constants for what depends on the time and the machine."""
    if isinstance(value, list):
        return [without_machine(inner) for inner in value]
    if isinstance(value, str):
        return value.replace(f"{ROOT}/", "")
    if not isinstance(value, dict):
        return value
    fixed = {**FIXED, "date": DATE if isinstance(value.get("date"), str) else CLOCK}
    return {key: fixed[key] if key in fixed else without_machine(inner) for key, inner in value.items()}


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    content = change(json.loads(path.read_text()))
    path.write_text(json.dumps(content, ensure_ascii=False, sort_keys=path.name == "uq_config.json") + "\n")


def numbers_as_json(value: Any) -> Any:
    """To 12 digits; NaN, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {str(key): numbers_as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbers_as_json(inner) for inner in value]
    return None if math.isnan(value) else float(f"{value:.12g}")


def write_numbers(path: Path, numbers: Mapping[str, Any]) -> None:
    """One line for each run: a difference shows which one moved."""
    lines = (f"{json.dumps(name)}: {json.dumps(numbers_as_json(value))}" for name, value in numbers.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


# ---------------------------------------------------------------- the parts


def make_adapters() -> None:
    for name, training in TRAININGS.items():
        run_command(training.command(f"adapters/{name}"))
        rewrite(Path("adapters", name, "uq_config.json"), without_machine)
        # A set, in an order that depends on Python's hash seed; what builds on the adapter records a hash of this file.
        rewrite(
            Path("adapters", name, "adapter_config.json"),
            lambda config: {**config, "target_modules": sorted(config["target_modules"])},
        )


def make_results() -> None:
    expected = {}
    for name, (adapter, model_args) in EVALUATIONS.items():
        target = Path("results", f"results_{name}.json")
        with tempfile.TemporaryDirectory() as folder:
            shutil.move(evaluate(f"adapters/{adapter}", model_args, Path(folder)), target)
        rewrite(target, without_machine)
        expected[name] = read_answers(target).metrics
    write_numbers(Path("results", "expected.json"), expected)


def table(name: str, format: str) -> str:
    """What `uqharness table` prints of a table, in the folder of the golden files."""
    results, flags = TABLES[name]
    return run_command(["table", *(f"results/results_{each}.json" for each in results), *flags, "--format", format])


def make_tables() -> None:
    for name in TABLES:
        for format in FORMATS:
            Path("tables", f"{name}.{format}").write_text(table(name, format), encoding="utf-8")


def make_published() -> None:
    """The expected numbers of the shipped file, and of its runs one seed on the task of the training."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    write_numbers(Path("published", "expected.json"), published_numbers(SHIPPED))
    rows = pq.read_table(SHIPPED)
    first = pc.or_kleene(pc.equal(rows["seed"], 0), pc.is_null(rows["seed"]))
    some = rows.filter(pc.and_(first, pc.equal(rows["task"], TASK)))
    target = Path("published", "toyworld.parquet")
    pq.write_table(some, target, compression="zstd", compression_level=19, write_statistics=False)


PARTS: Mapping[str, Callable[[], None]] = {
    "adapters": make_adapters,
    "results": make_results,
    "tables": make_tables,
    "published": make_published,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} [all]")
    parser.add_argument("--out", type=Path, default=GOLDEN, metavar="DIR", help="where to [tests/golden]")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {sorted(unknown)[0]!r}: there are {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(args.out) if sys.version_info >= (3, 11) else _within(args.out):
        for name in args.parts or PARTS:
            shutil.rmtree(name, ignore_errors=True)
            Path(name).mkdir()
            PARTS[name]()
            print(f"{args.out / name}: made")
    return 0


@contextlib.contextmanager
def _within(folder: Path) -> Any:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    sys.exit(main())
