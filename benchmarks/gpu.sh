#!/usr/bin/env bash
# What has to be known of a CUDA card, by benchmarks/gpu.py, in under ten minutes (docs/gpu.md).
#   bash benchmarks/gpu.sh prepare    where there is a package index: the packages a bare card machine lacks, into .gpu/
#   bash benchmarks/gpu.sh [FLAGS]    on the machine with the card; needs nothing from outside, writes $OUT/gpu.json
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ "${1:-}" = prepare ]; then
  # Pure Python or built for the card machine's Python 3.12; its own image has torch, transformers, peft and accelerate.
  rm -rf .gpu
  "$python" -m pip install --quiet --no-deps --no-compile --target .gpu --only-binary=:all: --python-version 3.12 \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux2014_x86_64 \
    "lm-eval==0.4.13" "datasets==5.2.0" "dill==0.4.1" "multiprocess==0.70.19" "bitsandbytes==0.50.2" \
    "gguf==0.19.0"
  # Left out: kernels for other cards and CUDA releases, and the files of 15,000 tasks.
  find .gpu/bitsandbytes -name 'libbitsandbytes_*.so' ! -name '*cpu*' ! -name '*cuda130*' -delete
  find .gpu/lm_eval/tasks -mindepth 1 -maxdepth 1 -type d ! -name '_*' -exec rm -rf {} +
  du -sh .gpu
  exit
fi
if [ -d .gpu ]; then
  export PYTHONPATH="$PWD/.gpu${PYTHONPATH:+:$PYTHONPATH}"
fi
if ! "$python" -c 'import importlib.metadata as m; m.version("uqharness")' 2>/dev/null; then
  # Methods and tasks come in by entry points, which a checkout that is not installed lacks.
  meta="$(mktemp -d)"
  trap 'rm -rf "$meta"' EXIT
  "$python" - "$meta" <<'PY'
import sys, tomllib
from pathlib import Path
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
folder = Path(sys.argv[1], f"uqharness-{project['version']}.dist-info")
folder.mkdir()
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: uqharness\nVersion: {project['version']}\n")
groups = {"console_scripts": project["scripts"], **project["entry-points"]}
lines = [line for group, names in groups.items() for line in (f"[{group}]", *(f"{n} = {v}" for n, v in names.items()))]
(folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
PY
  export PYTHONPATH="$meta${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
mkdir -p "${OUT:=results}"
"$python" -m benchmarks.gpu --json "$OUT/gpu.json" "$@"
