"""Pre-trains the mini image tower on drawings and words that are true of them; writes an open_clip folder.

    python -m assets.mini.pretrain_tower assets/mini/tower --minutes 15

The picture side is open_clip's vision transformer and the objective open_clip's contrastive loss. The
text side is a bag of words, one learned vector per word, so that every fact becomes a direction of the
picture's embedding. An auxiliary loss reads the same words linearly from the class token of every block,
because that is what the projector of the adapter will read. Only combinations of the training pool are
drawn, and all combinations in a batch differ, so no pair is a negative of an equal one. Those few
combinations tie attributes together (a thermometer at 10 degrees is always blue), and a tower trained on
them alone fails on the others. So attributes also take spare values that no question uses, such as pink:
they break the ties without showing a combination that is reserved for evaluation. The gate at the end
prints how well a linear probe reads every attribute from pictures of the evaluation pool.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import open_clip
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from data.mini.drawing import draw
from data.mini.families import COLOURS, FAMILIES, Facts, Family
from data.mini.problems import Pool, draw_facts

WIDTH, LAYERS, SIDE = 128, 6, 72
MODEL: dict[str, Any] = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "head_width": 32, "patch_size": 12},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 1, "layers": 1},  # unused
}
PREPROCESS: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
SPARE_COLOURS = ("pink", "brown", "grey", "turquoise", "olive")
SPARE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("liquid", "rim", "stand", "tint", "tallest", "coat"), (*COLOURS, *SPARE_COLOURS)),
    **dict.fromkeys(("main", "paint"), SPARE_COLOURS),
    **dict.fromkeys(("sky", "ground", "animal", "landmark"), SPARE_COLOURS),
    **dict.fromkeys(("producer", "predator"), SPARE_COLOURS),
    "season": ("grey", "turquoise"),  # pink and brown crowns are spring and autumn
    "direction": ("northwest", "southwest", "southeast"),
}
SPARE_SHARE = 0.5
WORDS = sorted(
    {word for family in FAMILIES for values in family.attributes.values() for word in values}
    | {word for values in SPARE.values() for word in values}
    | {family.name for family in FAMILIES}
)


@dataclass
class Drawn:
    """A picture and what is true of it."""

    family: Family
    facts: Facts
    image: Image.Image


def with_spares(family: Family, facts: Facts, rng: random.Random) -> Facts:
    """The facts with some values replaced by spare ones of the same attribute."""
    result = dict(facts)
    for name, values in family.attributes.items():
        spare = [value for value in SPARE.get(name, ()) if value not in values]
        if spare and rng.random() < SPARE_SHARE:
            result[name] = rng.choice(spare)
    # With one value spare the combination is in nobody's pool; with none it is the one that was drawn.
    return result


def drawn(family: Family, count: int, rng: random.Random, pool: Pool) -> list[Drawn]:
    """Pictures of one family with facts of the pool."""
    combinations = [draw_facts(family, rng, pool) for _ in range(count)]
    return [Drawn(family, facts, draw(family, facts, rng)) for facts in combinations]


def distinct(family: Family, most: int, rng: random.Random) -> list[Drawn]:
    """Pictures of one family of which no two have the same facts, spare values among them."""
    combinations = [with_spares(family, draw_facts(family, rng, "training"), rng) for _ in range(most)]
    unique = {tuple(facts.values()): facts for facts in combinations}.values()
    return [Drawn(family, facts, draw(family, facts, rng)) for facts in unique]


def pixels(pictures: Sequence[Drawn]) -> Tensor:
    """Pictures as float[B, 3, H, W], prepared as PREPROCESS says."""
    small = [item.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for item in pictures]
    stacked = torch.from_numpy(numpy.stack([numpy.asarray(image) for image in small]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def true_words(pictures: Sequence[Drawn]) -> Tensor:
    """float[B, words], 1 where a word is true of the picture."""
    result = torch.zeros(len(pictures), len(WORDS))
    for row, item in enumerate(pictures):
        for word in (item.family.name, *item.facts.values()):
            result[row, WORDS.index(word)] = 1
    return result


class Pretrainer(nn.Module):
    """open_clip's tower beside a bag of words, with a linear reader of words on every block."""

    def __init__(self) -> None:
        super().__init__()
        clip = open_clip.CLIP(**MODEL)
        self.visual = clip.visual
        self.logit_scale = clip.logit_scale
        self.bag = nn.Linear(len(WORDS), WIDTH, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        self.readers = nn.ModuleList(nn.Linear(WIDTH, len(WORDS)) for _ in range(LAYERS))
        self.contrast = ClipLoss()
        self._tokens: list[Tensor] = []
        for block in self.visual.transformer.resblocks:
            block.register_forward_hook(lambda _, __, output: self._tokens.append(output[:, 0]))

    def class_tokens(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The embedding float[B, D] and the class token float[B, D] after every block."""
        self._tokens.clear()
        embedding = self.visual(images)
        return embedding, list(self._tokens)

    def forward(self, images: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """The contrastive loss, and the mean loss of the readers."""
        embedding, tokens = self.class_tokens(images)
        contrastive = self.contrast(
            functional.normalize(embedding.float(), dim=-1),
            functional.normalize(self.bag(words).float(), dim=-1),
            self.logit_scale.exp().clamp(max=100),
        )
        target = words / words.sum(dim=-1, keepdim=True)
        read = [
            functional.cross_entropy(reader(norm(token)).float(), target)
            for reader, norm, token in zip(self.readers, self.norms, tokens, strict=True)
        ]
        return contrastive, torch.stack(read).mean()


@torch.no_grad()
def features(model: Pretrainer, pictures: Sequence[Drawn]) -> Tensor:
    """Class tokens of all blocks side by side, float[B, blocks * D]."""
    parts = [
        torch.cat(model.class_tokens(pixels(pictures[start : start + 256]))[1], dim=-1)
        for start in range(0, len(pictures), 256)
    ]
    return torch.cat(parts)


def probe(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Classes int[B] that ridge regression, fitted on one-hot labels, gives to the test rows."""
    mean, std = train.mean(0), train.std(0) + 1e-4
    train, test = (train - mean) / std, (test - mean) / std
    target = functional.one_hot(labels).float()
    target_mean = target.mean(0)
    # the dual form: fewer pictures than features
    kernel = train @ train.T + 0.05 * train.shape[1] * torch.eye(len(train))
    weights = torch.linalg.solve(kernel, target - target_mean)
    return (test @ train.T @ weights + target_mean).argmax(-1)


def gate(model: Pretrainer, fit: int = 200, few: int = 40) -> dict[str, tuple[float, float, float]]:
    """Probe accuracy per attribute on the evaluation pool: all blocks, last block, all blocks with few."""
    model.eval()
    rng = random.Random(999)
    result = {}
    for family in FAMILIES:
        train = drawn(family, fit, rng, "training")
        test = drawn(family, 100, rng, "evaluation")
        x, y = features(model, train), features(model, test)
        for name, values in family.attributes.items():
            labels = torch.tensor([values.index(item.facts[name]) for item in train])
            right = torch.tensor([values.index(item.facts[name]) for item in test])
            guesses = (
                probe(x, labels, y),
                probe(x[:, -WIDTH:], labels, y[:, -WIDTH:]),
                probe(x[:few], labels[:few], y),
            )
            shares = [(guess == right).float().mean().item() for guess in guesses]
            result[f"{family.name}.{name}"] = (shares[0], shares[1], shares[2])
    model.train()
    return result


def report(model: Pretrainer) -> None:
    """Prints the gate."""
    shares = gate(model)
    print(f"{'gate: probe accuracy':28s} all blocks  last block  40 pictures")
    for name, row in shares.items():
        print(f"{name:28s}" + "".join(f"{share:12.3f}" for share in row))
    columns = torch.tensor(list(shares.values()))
    print(f"{'mean':28s}" + "".join(f"{share:12.3f}" for share in columns.mean(0).tolist()))
    print(f"{'minimum':28s}" + "".join(f"{share:12.3f}" for share in columns.amin(0).tolist()), flush=True)


def save(model: Pretrainer, folder: Path) -> None:
    """Writes configuration and fp16 weights of the picture side alone."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {
        f"visual.{name}": value.half().contiguous() for name, value in model.visual.state_dict().items()
    }
    save_file(weights, folder / "open_clip_model.safetensors")


def optimizer_of(model: Pretrainer, lr: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def pretrain(model: Pretrainer, options: argparse.Namespace) -> None:
    """Trains for the given time, with a learning rate that falls to zero at its end."""
    rng = random.Random(options.seed)
    optimizer = optimizer_of(model, options.lr)
    began, step, seen = time.time(), 0, 0
    while (done := (time.time() - began) / (60 * options.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        batch: list[Drawn] = []
        for family in rng.sample(FAMILIES, options.families):
            batch += distinct(family, options.each, rng)
        contrastive, read = model(pixels(batch), true_words(batch))
        loss = contrastive + options.readers * read
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + len(batch)
        if step % 50 == 0:
            print(
                f"{step:6d} {time.time() - began:6.0f} s {seen:7d} pictures "
                f"contrastive {contrastive.item():.3f} readers {read.item():.3f}",
                flush=True,
            )


def main() -> None:
    """Trains, writes the folder, and prints the gate of what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--families", type=int, default=4, help="families in a batch")
    parser.add_argument("--each", type=int, default=18, help="most pictures of a family in a batch")
    parser.add_argument("--readers", type=float, default=1.0, help="weight of the loss on every block")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = Pretrainer()
    print(
        f"{sum(p.numel() for p in model.visual.parameters()):,} parameters in the tower, {len(WORDS)} words"
    )
    pretrain(model, options)
    save(model, options.folder)
    model.visual.half().float()  # the gate judges the weights as written
    report(model)


if __name__ == "__main__":
    main()
