"""Pre-trains the mini decoder on generated text; writes a Hugging Face LLaMA folder.

    python -m assets.mini.pretrain_decoder assets/mini/decoder --minutes 60

Loss falls on answer letters first; the gate at the end prints the share of held-out questions that are
answered with the right letter, in words, with captions and with mixtures in the place of the picture.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.nn import functional

from assets.mini.documents import LETTERS, Document, Writer
from assets.mini.initialise import lookup_heads
from models.attention import PackedAttention
from models.decoder import Decoder, DecoderConfig

CONFIG = {"dim": 192, "n_layers": 4, "n_heads": 6, "n_kv_heads": 6, "ffn_dim": 512, "max_positions": 512}

DRILL_STEPS = 200  # first learn to look an option up, then everything else beside it


def embed(decoder: Decoder, documents: list[Document]) -> Tensor:
    """Embeddings float[N, D] of the packed documents, mixtures in place."""
    ids = torch.tensor([i for document in documents for i in document.ids])
    x = decoder.embed(ids)
    rows, words, weights, start = [], [], [], 0
    for document in documents:
        for mixture in document.mixtures:
            rows += [start + mixture.position] * len(mixture.words)
            words += mixture.words
            weights += mixture.weights
        start += len(document.ids)
    if not rows:
        return x
    at = torch.tensor(rows)
    x = x.index_fill(0, at.unique(), 0.0)
    return x.index_add(0, at, decoder.embed(torch.tensor(words)) * torch.tensor(weights)[:, None])


def hidden_states(decoder: Decoder, documents: list[Document]) -> Tensor:
    """Final hidden states float[N, D] of the packed documents."""
    lengths = [len(document.ids) for document in documents]
    positions = torch.cat([torch.arange(1, length + 1) for length in lengths])
    return decoder(embed(decoder, documents), positions, PackedAttention(lengths))


def step_loss(decoder: Decoder, documents: list[Document]) -> tuple[Tensor, float]:
    """Weighted cross-entropy of the next token, and the mean loss of the answer letters outside drills."""
    hidden = hidden_states(decoder, documents)
    only_drills = all(document.kind == "drill" for document in documents)
    sources, targets, weights, letters, start = [], [], [], [], 0
    for document in documents:
        counted = only_drills or document.kind != "drill"
        places = {place for place, _ in document.letters} if counted else set()
        for place in range(1, len(document.ids)):
            if document.weights[place]:
                sources.append(start + place - 1)
                targets.append(document.ids[place])
                weights.append(document.weights[place])
                letters.append(place in places)
        start += len(document.ids)
    logits = decoder.head(hidden[torch.tensor(sources)]).float()
    loss = functional.cross_entropy(logits, torch.tensor(targets), reduction="none")
    weight = torch.tensor(weights)
    return (loss * weight).sum() / weight.sum(), loss[torch.tensor(letters)].mean().item()


@torch.no_grad()
def letter_accuracy(decoder: Decoder, write: Callable[[], Document], letters: list[int]) -> tuple[float, float]:
    """Share of right letters among 400 fresh documents, and the share that guessing gets."""
    right = chance = 0.0
    count = 0
    for _ in range(10):
        documents = [write() for _ in range(40)]
        hidden = hidden_states(decoder, documents)
        start = 0
        for document in documents:
            for place, options in document.letters:
                logits = decoder.head(hidden[start + place - 1])[letters[:options]]
                right += letters[int(logits.argmax())] == document.ids[place]
                chance += 1 / options
                count += 1
            start += len(document.ids)
    return right / count, chance / count


def gate(decoder: Decoder, tokenizer: SentencePieceProcessor) -> dict[str, float]:
    """Letter accuracy on questions of the evaluation pool, by the place of the facts."""
    writer = Writer(tokenizer, random.Random(999))
    letters = [tokenizer.encode(letter)[0] for letter in LETTERS]
    kinds: dict[str, Callable[[], Document]] = {
        "hint": lambda: writer.problem("evaluation", "hint"),
        "words": lambda: writer.problem("evaluation", "words"),
        "caption": lambda: writer.captioned("evaluation"),
        "mixture": lambda: writer.mixed("evaluation"),
    }
    result = {}
    for name, write in kinds.items():
        result[name], result[f"{name}_chance"] = letter_accuracy(decoder, write, letters)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=48, help="documents per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = SentencePieceProcessor(model_file=str(options.folder / "tokenizer.model"))
    config = DecoderConfig(vocab_size=tokenizer.vocab_size(), **CONFIG)
    decoder = Decoder(config)
    pairs = [(f"▁({letter})", f"▁{letter}") for letter in LETTERS]
    lookup_heads(decoder, [(tokenizer.piece_to_id(a), tokenizer.piece_to_id(b)) for a, b in pairs])
    writer = Writer(tokenizer, random.Random(options.seed))
    matrices = [p for p in decoder.parameters() if p.ndim > 1]
    vectors = [p for p in decoder.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=options.lr, betas=(0.9, 0.98),
    )
    began, step, tokens = time.time(), 0, 0
    window: list[float] = []
    while (done := (time.time() - began) / (60 * options.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        documents = sorted((writer.document(step < DRILL_STEPS) for _ in range(options.batch)), key=lambda d: len(d.ids))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, letter_loss = step_loss(decoder, documents)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        step, tokens = step + 1, tokens + sum(len(d.ids) for d in documents)
        window.append(letter_loss)
        if step % 50 == 0:
            print(f"{step:6d} {time.time() - began:6.0f} s {tokens / 1e6:6.2f} M tokens "
                  f"loss {loss.item():.3f} letters {sum(window) / len(window):.3f}", flush=True)
            window = []
        if step % 500 == 0:
            print("       gate", {k: round(v, 3) for k, v in gate(decoder, tokenizer).items()}, flush=True)
            torch.save(decoder.state_dict(), options.folder / "decoder.pt")
    print("gate", gate(decoder, tokenizer))
    torch.save(decoder.state_dict(), options.folder / "decoder.pt")


if __name__ == "__main__":
    main()
