"""The joined model equals the public LaVIN code on its own outputs (MMA_GOLDEN/lavin/*)."""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data.packing import PackedBatch
from mma.lavin import from_lavin, load_lavin, read_lavin, rename, to_lavin
from models.build import BaseSettings, layout_of
from models.multimodal import MultimodalLM
from models.tower import Features, Tower, load_tower_weights
from models.tower_spec import TowerSpec
from models.weights import load_decoder

ROOT = Path(os.environ.get("MMA_GOLDEN", "../shared/golden"))
CASES = sorted(path.parent for path in ROOT.glob("**/case.safetensors"))
pytestmark = pytest.mark.skipif(not CASES, reason=f"no golden cases under {ROOT} (set MMA_GOLDEN)")


def build_base(folder: Path, weights: str = ".") -> MultimodalLM:
    settings = json.loads((folder / "config.json").read_text())
    decoder = load_decoder(folder / weights, dtype=torch.float32)
    tensors = load_file(folder / "clip_visual.safetensors")
    vision = {
        "image_size": settings["image_size"],
        "layers": settings["vision_layers"],
        "width": settings["vision_width"],
        "head_width": settings["vision_width"] // settings["vision_heads"],
        "patch_size": settings["patch_size"],
    }
    model = {
        "embed_dim": tensors["visual.proj"].shape[1],
        "vision_cfg": vision,
        "quick_gelu": settings["activation"] == "QuickGELU",
    }
    spec = TowerSpec(model, {})
    tower = Tower(spec, Features(every=4))
    load_tower_weights(tower, folder / "clip_visual.safetensors")
    return MultimodalLM(decoder, tower, layout_of(BaseSettings(), spec, tower))


def build_model(folder: Path, weights: str = ".") -> MultimodalLM:
    model = build_base(folder, weights)
    checkpoint = next(folder.glob("checkpoint-*.pth"))
    config = read_lavin(checkpoint).config
    assert config is not None
    load_lavin(model.adapters, checkpoint, replace(config, dropout=0.0))
    return model.eval()


def build_batch(folder: Path, slots_per_picture: int) -> PackedBatch:
    """The case's inputs with prefix and picture slots put in, cut as the public code cuts them."""
    case = load_file(folder / "case.safetensors")
    room = json.loads((folder / "config.json").read_text())["max_seq_len"] - 1  # less the modality token
    ids, labels, slots, modalities, lengths = [], [], [], [], []
    for row, label, seen in zip(case["tokens"], case["labels"], case["indicators"], strict=True):
        prefix = case["prefix_image" if seen else "prefix_text_only"].tolist()
        inserted = prefix + [0] * (slots_per_picture if seen else 0)
        start = len(ids)
        ids += [*row[:1].tolist(), *inserted, *row[1:].tolist()][:room]
        labels += [*label[:1].tolist(), *[0] * len(inserted), *label[1:].tolist()][:room]
        if seen:
            first = start + 1 + len(prefix)
            slots += range(first, first + slots_per_picture)
        lengths.append(len(ids) - start)
        modalities.append("image" if seen else "text")
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    targets = torch.tensor(labels)
    supervised = targets.nonzero()[:, 0]
    supervised = supervised[~torch.isin(supervised, starts)]
    return PackedBatch(
        ids=torch.tensor(ids),
        positions=torch.cat([torch.arange(1, length + 1) for length in lengths]),
        lengths=tuple(lengths),
        modalities=tuple(modalities),
        slots=torch.tensor(slots),
        pictures=case["images"][case["indicators"].bool()],
        sizes=((224, 224),) * int(case["indicators"].sum()),
        sources=supervised - 1,
        targets=targets[supervised],
        sample_ids=tuple(str(row) for row in range(len(lengths))),
    )


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-12)).item()


@pytest.fixture(params=CASES, ids=lambda path: path.name)
def folder(request) -> Path:
    return request.param


@pytest.mark.parametrize("weights", [".", "sharded"])
def test_features_hidden_states_logits_and_loss(folder, weights):
    model = build_model(folder, weights)
    case = load_file(folder / "case.safetensors")
    batch = build_batch(folder, model.tower.tokens)
    seen = case["indicators"].bool()
    hidden: dict[int, Tensor] = {}
    for index, block in enumerate(model.decoder.blocks):
        block.register_forward_hook(lambda _, __, out, index=index: hidden.update({index: out}))
    with torch.enable_grad():
        loss = model.loss(batch) / len(batch.targets)
        normed = model.hidden(batch)
        features = model.tower(batch.pictures)
    assert error(features, case["vision_features"][seen]) < 1e-5
    assert error(model.project(batch.pictures), case["image_embeds"][seen].flatten(0, 1)) < 1e-5
    token = torch.tensor([{"text": 0, "image": 1}[name] for name in batch.modalities])

    def with_token(packed: Tensor) -> Tensor:
        """Rows as the public code has them: the modality token, then the sample."""
        rows = packed[2:].view(len(batch.lengths), batch.lengths[0], -1)
        return torch.cat([packed[token][:, None], rows], dim=1)

    for index, packed in hidden.items():
        assert error(with_token(packed), case[f"hidden.{index}"]) < 1e-5
    samples = normed.view(len(batch.lengths), batch.lengths[0], -1)
    assert error(samples, case["norm"][:, 1:]) < 1e-5
    assert error(model.decoder.head(samples), case["logits"][:, 1:]) < 1e-5
    assert error(loss, case["loss"][0]) < 1e-5


def test_router_table_gives_the_same_logits(folder):
    model = build_model(folder)
    batch = build_batch(folder, model.tower.tokens)
    with torch.enable_grad():
        by_tokens = model(batch)
    with torch.no_grad():
        by_table = model(batch)
    assert error(by_table, by_tokens.detach()) < 1e-5


def test_every_gradient(folder):
    model = build_model(folder)
    case = load_file(folder / "case.safetensors")
    batch = build_batch(folder, model.tower.tokens)
    (model.loss(batch) / len(batch.targets)).backward()
    wanted = rename({n.removeprefix("grad."): x for n, x in case.items() if n.startswith("grad.")})
    trained = model.adapters.trainable_parameters()
    assert trained.keys() == wanted.keys()
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert error(parameter.grad, wanted[name]) < 1e-4, name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_training_trace(folder):
    trace = json.loads((folder / "config.json").read_text())["trace"]
    model = build_model(folder)
    batch = build_batch(folder, model.tower.tokens)
    trained = model.adapters.trainable_parameters()
    decayed = [p for p in trained.values() if p.ndim > 1]
    flat = [p for p in trained.values() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": flat, "weight_decay": 0.0}],
        lr=0.0,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    model.train()
    for step, wanted in enumerate(trace["losses"]):
        rate = 9e-3 * (step + 1) / 5 if step < 5 else 9e-3 * 0.5 * (1 + math.cos(math.pi * (step - 5) / 15))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model.loss(batch) / len(batch.targets)
        assert loss.item() == pytest.approx(wanted, rel=1e-4), f"step {step}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def stored(path: Path) -> dict[str, object]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def test_a_checkpoint_comes_back_from_a_folder(folder, tmp_path):
    checkpoint = next(folder.glob("checkpoint-*.pth"))
    from_lavin(checkpoint, tmp_path / "adapter")
    to_lavin(tmp_path / "adapter", tmp_path / "back.pth")
    before, after = stored(checkpoint), stored(tmp_path / "back.pth")
    assert list(before["model"]) == list(after["model"])
    for name, tensor in before["model"].items():
        assert (tensor.dtype, tensor.shape) == (after["model"][name].dtype, after["model"][name].shape)
        assert tensor.numpy().tobytes() == after["model"][name].numpy().tobytes(), name
    assert before["args"] == after["args"]
    assert before["epoch"] == after["epoch"]


def test_logits_from_a_converted_folder(folder, tmp_path):
    from_lavin(next(folder.glob("checkpoint-*.pth")), tmp_path / "adapter")
    model = build_base(folder)
    model.adapters.load_adapter(tmp_path / "adapter")
    model.eval()
    case = load_file(folder / "case.safetensors")
    batch = build_batch(folder, model.tower.tokens)
    with torch.no_grad():
        logits = model.decoder.head(model.hidden(batch))
    rows = logits.view(len(batch.lengths), batch.lengths[0], -1)
    assert error(rows, case["logits"][:, 1:]) < 1e-5
    assert model.adapters.config.dropout == 0.1
