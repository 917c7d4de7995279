"""Adapter folders of every kind on the tiny base, for tests that look at folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mma import AdapterConfig
from models.build import BaseSettings, System, build_base

PROVENANCE = {
    "format": "QCM-A",
    "captions": False,
    "data_digest": "0123456789abcdef",
    "data_licence": "CC BY-NC-SA 4.0",
    "recipe": {"data": {"root": "questions", "train": "train"}, "optim": {"lr": 0.01}},
    "scores": {
        "accuracy": 0.75,
        "accuracy_interval": [0.6, 0.85],
        "loss": 0.25,
        "questions": 40,
        "split": "val",
    },
    "seed": 3,
    "step": 7,
    "steps": 12,
}


def save(
    path: Path,
    base: BaseSettings,
    config: AdapterConfig,
    *,
    trained: bool = True,
    provenance: Mapping[str, Any] = PROVENANCE,
) -> System:
    """Saves an adapter, of random values when it is trained, and gives the system it is on."""
    system = build_base(base)
    adapters = system.model.adapters
    adapters.add_adapter("default", config)
    if trained:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in adapters.trainable_parameters().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    adapters.save_pretrained(path, provenance)
    return system
