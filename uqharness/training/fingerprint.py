"""Identify the base model of an adapter by the base's weights. This module knows no adapter and no file."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def base_fingerprint(model: torch.nn.Module) -> str:
    """Return a checksum of the base that survives dtype and 4/8-bit loading: its vectors and first embedding rows."""
    digest = hashlib.sha256()
    foreign = (".lora_", ".uq_", "modules_to_save.")
    picked = {
        name.replace("base_layer.", "").replace("original_module.", ""): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 1 and not any(part in name for part in foreign)
    }
    tensors = [picked[name] for name in sorted(picked)]
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is not None:
        tensors.append(embeddings.weight.detach()[:4])
    for tensor in tensors:
        if not tensor.is_meta:
            digest.update(tensor.bfloat16().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
