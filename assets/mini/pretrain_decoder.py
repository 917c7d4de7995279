"""Pre-trains the mini decoder on generated text; writes a Hugging Face LLaMA folder.

    python -m assets.mini.pretrain_decoder assets/mini/decoder --steps 2000

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

from assets.mini.documents import LETTERS, Document, Phase, Writer
from assets.mini.initialise import Lookups, fit_lookup, lookup_heads
from models.attention import PackedAttention
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.export import write_hf

CONFIG = {"dim": 192, "n_layers": 6, "n_heads": 6, "n_kv_heads": 6, "ffn_dim": 512, "max_positions": 2048}
EARLY = 4  # blocks that train first; the others join them to look up what these have found
# Steps at which training changes. Every stage is learned in minutes and is what the next one stands on.
OPEN_AT = 120  # until then drills only: find an option again, say its letter
OPTIONS_AT = 500  # until then problems without options, answered in words
JOIN_AT = 700  # until then the early blocks name the right option in words, with all options before them
ALL_AT = 950  # until then the last blocks learn to turn that into a letter; afterwards everything trains


def phase_of(step: int) -> Phase:
    """Which documents a step has."""
    return "drill" if step < OPEN_AT else "open" if step < OPTIONS_AT else "all"


def rate_of(step: int, steps: int) -> float:
    """Factor of the learning rate: a warmup at every stage that brings new weights, at last a cosine."""
    if step < ALL_AT:
        return min(1.0, (step % JOIN_AT + 1) / 100)
    done = (step - ALL_AT) / max(1, steps - ALL_AT)
    return 0.3 * min(1.0, (step - ALL_AT + 1) / 200) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))


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


def hidden_states(
    decoder: Decoder, documents: list[Document], step: int, final_norm: bool = True
) -> tuple[Tensor, Tensor]:
    """Hidden states float[N, D] behind the first `EARLY` blocks and behind all in use, through the norm.

    While the last blocks are new, the blocks below are only run, not trained.
    """
    lengths = [len(document.ids) for document in documents]
    cos, sin = decoder.rotary(torch.cat([torch.arange(1, length + 1) for length in lengths]))
    attend = PackedAttention(lengths)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not JOIN_AT <= step < ALL_AT):
        x = embed(decoder, documents)
        for layer in range(EARLY):
            x = decoder.blocks[layer](layer, x, cos, sin, attend)
    early = x
    for layer in range(EARLY, len(decoder.blocks) if step >= JOIN_AT else EARLY):
        x = decoder.blocks[layer](layer, x, cos, sin, attend)
    return (decoder.norm(early), decoder.norm(x)) if final_norm else (early, x)


def step_loss(decoder: Decoder, documents: list[Document], step: int) -> tuple[Tensor, dict[str, float]]:
    """Weighted cross-entropy of the next token, and its mean by kind of token.

    Where a letter is asked, the early blocks are asked for the answer in words too: the last blocks can
    only look up what has been found before them.
    """
    early, hidden = hidden_states(decoder, documents, step)
    found: dict[str, list[tuple[int, int, float]]] = {}  # kind -> (source, target, weight)
    words: list[tuple[int, int, float]] = []
    start = 0
    for document in documents:
        letters = {letter.position: letter for letter in document.letters}
        for place in range(1, len(document.ids)):
            if weight := document.weights[place]:
                kind = "words" if weight == Writer.LETTER else "text"
                if place in letters:
                    kind = document.kind
                    if kind == "problem":
                        words.append((start + place - 1, letters[place].word, 1.0))
                        if step < JOIN_AT:
                            continue
                found.setdefault(kind, []).append((start + place - 1, document.ids[place], weight))
        start += len(document.ids)
    losses, total, parts = torch.zeros(()), 0.0, {}
    for kind, states, rows in (
        ("early", early, words),
        *((kind, hidden, rows) for kind, rows in found.items()),
    ):
        if rows:
            sources, targets, weights = zip(*rows, strict=True)
            logits = decoder.head(states[torch.tensor(sources)]).float()
            loss = functional.cross_entropy(logits, torch.tensor(targets), reduction="none")
            losses = losses + (loss * torch.tensor(weights)).sum()
            total += sum(weights)
            parts[kind] = loss.mean().item()
    return losses / total, parts


@torch.no_grad()
def join_last_blocks(decoder: Decoder, writer: Writer) -> None:
    """Puts the last blocks to use: the first of them looks up what the blocks below have found."""
    labels = {writer.tokenizer.piece_to_id(f"▁({letter})"): letter for letter in LETTERS}
    asked, answers, options, words, letters, others = [], [], [], [], [], []
    for _ in range(30):
        documents = [writer.problem() for _ in range(50)]
        early, _ = hidden_states(decoder, documents, 0, final_norm=False)
        states = decoder.blocks[EARLY].attn_norm(early)
        start = 0
        for document in documents:
            for letter in document.letters:
                asked.append(states[start + letter.position - 1])
                answers.append(letter.word)
            for place, token in enumerate(document.ids):
                if token not in labels and document.ids[place - 1] not in labels and place % 4 == 0:
                    others.append(states[start + place])
                if token in labels:
                    options.append(states[start + place + 1])
                    words.append(document.ids[place + 1])
                    letters.append(writer.tokenizer.encode(labels[token])[0])
            start += len(document.ids)
    found = Lookups(
        torch.stack(asked),
        torch.tensor(answers),
        torch.stack(options),
        torch.tensor(words),
        torch.tensor(letters),
        torch.stack(others),
    )
    fit_lookup(decoder, decoder.blocks[EARLY], found)
    for block in decoder.blocks[EARLY + 1 :]:
        block.attn.o_proj.weight.mul_(0.1)


@torch.no_grad()
def letter_accuracy(
    decoder: Decoder, write: Callable[[], Document], letters: list[int]
) -> tuple[float, float]:
    """Share of right letters among 400 fresh documents, and the share that guessing gets."""
    right = chance = 0.0
    count = 0
    for _ in range(10):
        documents = [write() for _ in range(40)]
        _, hidden = hidden_states(decoder, documents, ALL_AT)
        start = 0
        for document in documents:
            for letter in document.letters:
                logits = decoder.head(hidden[start + letter.position - 1])[letters[: letter.options]]
                right += letters[int(logits.argmax())] == document.ids[letter.position]
                chance += 1 / letter.options
                count += 1
            start += len(document.ids)
    return right / count, chance / count


def means(window: list[dict[str, float]]) -> str:
    """The mean of every part of the loss over some steps."""
    names = sorted({name for parts in window for name in parts})
    columns = {name: [parts[name] for parts in window if name in parts] for name in names}
    return "  ".join(f"{name} {sum(x) / len(x):.3f}" for name, x in columns.items())


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


def new_decoder(tokenizer: SentencePieceProcessor) -> Decoder:
    """A decoder at the start of training."""
    decoder = Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size(), **CONFIG))
    pairs = [(f"▁({letter})", f"▁{letter}") for letter in LETTERS]
    lookup_heads(decoder, [(tokenizer.piece_to_id(a), tokenizer.piece_to_id(b)) for a, b in pairs])
    return decoder


def new_optimizer(decoder: Decoder) -> torch.optim.Optimizer:
    """AdamW without decay on gains."""
    matrices = [p for p in decoder.parameters() if p.ndim > 1]
    vectors = [p for p in decoder.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))


def pretrain(decoder: Decoder, writer: Writer, options: argparse.Namespace, step: int) -> None:
    """Trains from a step to the last one, with a draft and the gate now and then."""
    optimizer = new_optimizer(decoder)
    began, tokens = time.time(), 0
    window: list[dict[str, float]] = []
    while step < options.steps:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate_of(step, options.steps)
        if step == JOIN_AT:
            join_last_blocks(decoder, writer)
        documents = [writer.document(phase_of(step)) for _ in range(options.batch)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, parts = step_loss(decoder, documents, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        step, tokens = step + 1, tokens + sum(len(d.ids) for d in documents)
        window.append(parts)
        if step % 50 == 0:
            left = (time.time() - began) / len(window) * (options.steps - step)
            print(
                f"{step:6d} {tokens / 1e6:6.2f} M tokens, {left / 60:.0f} min left, {means(window)}",
                flush=True,
            )
            began, window = time.time(), []
        if step % 200 == 0:
            print(
                "       gate",
                {k: round(v, 3) for k, v in gate(decoder, writer.tokenizer).items()},
                flush=True,
            )
            torch.save({"decoder": decoder.state_dict(), "step": step}, options.draft)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64, help="documents per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draft", type=Path, default=Path("build/decoder.pt"), help="saved now and then")
    parser.add_argument("--resume", type=Path, help="a draft that an earlier run saved")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = SentencePieceProcessor(model_file=str(options.folder / "tokenizer.model"))
    decoder, step = new_decoder(tokenizer), 0
    if options.resume:
        saved = torch.load(options.resume, weights_only=True)
        decoder.load_state_dict(saved["decoder"])
        step = saved["step"]
    options.draft.parent.mkdir(parents=True, exist_ok=True)
    pretrain(decoder, Writer(tokenizer, random.Random(options.seed + step)), options, step)
    print("gate", gate(decoder, tokenizer))
    write_hf(decoder, options.folder, torch.float16)


if __name__ == "__main__":
    main()
