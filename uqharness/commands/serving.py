"""README.md of exported draws: the vLLM command that serves them, a client that averages, a known problem of vLLM."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import LoraConfig

    from uqharness.posterior import Posterior

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank of vLLM takes
LISTED = 32  # draws that are named one by one
HEADS = ("lm_head", "embed_out", "output_layer")

CLIENT = '''\
import json, math, urllib.request

def probabilities(prompt, choices, draws={count}, url="http://localhost:8000"):
    """p(choice | prompt) of the answers in `choices`, single tokens such as " A", averaged over the draws."""
    total = [0.0] * len(choices)
    for i in range(draws):
        body = {{"model": f"draw{{i}}", "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20}}
        request = urllib.request.Request(
            f"{{url}}/v1/completions", json.dumps(body).encode(), {{"Content-Type": "application/json"}}
        )
        answer = json.load(urllib.request.urlopen(request))["choices"][0]
        top = answer["logprobs"]["top_logprobs"][0]  # of the generated position
        missing = [choice for choice in choices if choice not in top]
        if missing:
            raise LookupError(f"draw{{i}}: {{missing}} not among the {{len(top)}} most probable tokens")
        logp = [top[choice] for choice in choices]
{add}
    return {result}
'''
PROBS = """\
        z = sum(math.exp(value) for value in logp)
        total = [sum_ + math.exp(value) / z / draws for sum_, value in zip(total, logp)]"""
LOGITS = """\
        total = [sum_ + value / draws for sum_, value in zip(total, logp)]"""
SOFTMAX = "[math.exp(value) / sum(math.exp(other) for other in total) for value in total]"


def readme(adapter: str, base: str, config: LoraConfig, posterior: Posterior, rule: str, count: int, seed: int) -> str:
    """Return the README.md of a folder with draw0 … draw{count - 1}."""
    ranks = [tensor.shape[0] for name, tensor in posterior.mean.items() if ".lora_A." in name]
    logits = rule == "logits"
    average = (
        "softmax of the mean of the draws' logits, as this posterior combines its members"
        if logits
        else "mean of the draws' probabilities, never of their weights or logits"
    )
    client = CLIENT.format(count=count, add=LOGITS if logits else PROBS, result=SOFTMAX if logits else "total")
    return f"""# {count} draw{"s" * (count > 1)} of {adapter}

`draw0` … `draw{count - 1}` are plain PEFT LoRA adapters of `{base}`, written by `uqharness export`: the draws that
`bayeslora` takes with `adapter={adapter},samples={count},seed={seed}`. Their combined answer is the
{average}.

## Serve them with vLLM

In this folder:

    {_command(base, count, max(ranks, default=8))}

`--max-loras` is the number of draws that may be in one batch; each takes additional memory.
{_limits(config, max(ranks, default=8))}

## Average on the client

One request per draw, with its name as `model`; `prompt` is the whole text, a chat template included:

```python
{client}```

For answers of several tokens, multiply the probabilities of an answer's tokens within each draw first, and average over
the draws last.

## A known problem

{_trap(posterior)}

The command and the client follow vLLM's documentation; uqharness does not run vLLM in its tests. Compare a few
questions with `lm_eval --model bayeslora` on the adapter itself before you rely on a server.
"""


def _command(base: str, count: int, rank: int) -> str:
    served = next((r for r in RANKS if r >= rank), rank)
    if os.path.isdir(base):
        base = os.path.abspath(base)
    if count <= LISTED:
        modules = " ".join(f"draw{i}=./draw{i}" for i in range(count))
    else:
        modules = f"$(for i in $(seq 0 {count - 1}); do echo draw$i=./draw$i; done)"
    cpu = f" --max-cpu-loras {count}" if count > LISTED else ""
    options = f"--max-lora-rank {served} --max-loras {min(count, LISTED)}{cpu}"
    return f"vllm serve {shlex.quote(base)} --enable-lora {options} \\\n        --lora-modules {modules}"


def _limits(config: LoraConfig, rank: int) -> str:
    """Return the features of this adapter that vLLM does not support."""
    problems = []
    if rank > RANKS[-1]:
        problems.append(f"its rank is {rank}, and vLLM takes at most {RANKS[-1]}")
    if getattr(config, "use_dora", False):
        problems.append("it is a DoRA adapter")
    if config.modules_to_save:
        problems.append(f"it holds whole modules ({', '.join(config.modules_to_save)})")
    if problems:
        return f"**vLLM refuses this adapter**: {'; '.join(problems)}."
    return f"vLLM has to support LoRA on the targets, {', '.join(sorted(config.target_modules or ()))}, for this base."


def _trap(posterior: Posterior) -> str:
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in posterior.mean if ".lora_" in name}
    heads = sorted(modules & set(HEADS))
    issue = "[vllm#51594](https://github.com/vllm-project/vllm/issues/51594)"
    if not heads:
        return f"""These draws have no LoRA on the output head, so {issue} does not concern them: there,
vLLM leaves the head's LoRA out of `prompt_logprobs`."""
    return f"""These draws have a LoRA on `{heads[0]}`. By {issue},
vLLM leaves the head's LoRA out of `prompt_logprobs`, without a warning: the numbers look plausible and are those of
another model. It was reported with measurements on 10 August 2026 for a development version of 0.26.1; it and a pull
request that fixes it were open when this was written. Log-probabilities of *generated* tokens are right, so the client
above generates one token. Do not score answers by `prompt_logprobs` or `echo`, or train with attention targets only
(`--target-modules q_proj v_proj`)."""
