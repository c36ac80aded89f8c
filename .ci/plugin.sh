#!/usr/bin/env bash
# The example plugin as a third party would have it: its own package, check_method, train, eval.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$PWD/.venv/bin/python"
plugin=docs/examples/uqharness-sgld-noise
"$python" -m pip install --quiet --no-deps "./$plugin"
work="$(mktemp -d)"
trap 'cd /; rm -rf "$work"; "$python" -m pip uninstall --quiet --yes uqharness-sgld-noise' EXIT
"$python" -m pytest -q -p no:cacheprovider --rootdir "$plugin" -c /dev/null "$plugin/tests"
cd "$work"
"$python" -m uqharness methods | grep sgld-noise
"$python" -m uqharness train sgld-noise --base toyworld --task toyworld_uq --out sgld --steps 20 --batch-size 8 \
  --max-length 64 --target-modules q_proj v_proj --set snapshots=3
"$python" -m lm_eval --model bayeslora --model_args adapter=sgld --tasks toyworld_uq --limit 50 --batch_size 16 \
  --output_path results
"$python" -m uqharness table results | grep SGLD
