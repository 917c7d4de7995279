"""Generation equals recomputation, stops where it should, and ignores the rows beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.packing import PackedBatch, collate
from data.pictures import Prepared, slot_counter
from data.sample import Sample
from data.template import make_template
from models.build import System
from models.errors import ModelError
from models.generate import Chooser, Sampling, generate, stream

PROMPTS = ("Question: How warm is it?\nResponse:", "Response:", "Question: Which word names the shape?")


def picture(_: Path) -> Prepared:
    return Prepared(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)), (16, 16))


def prompts(system: System, *texts: str, seen: bool = True) -> PackedBatch:
    template = make_template("lavin", system.tokenizer, slot_counter(system.image_slots))
    samples = [
        Sample(id=text, prompt=text, response="", images=(Path("p.png"),) if seen and i % 2 == 0 else (),
               options=(), gold=None)
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return collate([template.tokens(sample, response="") for sample in samples], picture)


def recomputed(system: System, batch: PackedBatch, steps: int) -> list[int]:
    """Greedy ids of a batch of one, the whole sequence run again for every token."""
    ids: list[int] = []
    for _ in range(steps):
        grown = PackedBatch(
            ids=torch.cat([batch.ids, torch.tensor(ids, dtype=torch.int64)]),
            positions=torch.arange(1, len(batch.ids) + len(ids) + 1),
            lengths=(len(batch.ids) + len(ids),), modalities=batch.modalities, slots=batch.slots,
            pictures=batch.pictures, sizes=batch.sizes, sources=torch.tensor([len(batch.ids) + len(ids) - 1]),
            targets=batch.targets, sample_ids=batch.sample_ids,
        )  # fmt: skip
        with torch.no_grad():
            ids.append(int(system.model(grown)[0].argmax()))
    return ids


def test_cached_equals_recomputed(tiny_system):
    system = tiny_system()
    for text in PROMPTS:
        batch = prompts(system, text)
        ids = recomputed(system, batch, 12)
        if system.tokenizer.eos_id in ids:
            ids = ids[: ids.index(system.tokenizer.eos_id)]
        assert generate(system, batch, Sampling(max_new_tokens=12)) == [system.tokenizer.decode(ids)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_ignores_the_rows_beside_it(tiny_system, temperature):
    system = tiny_system()
    sampling = Sampling(max_new_tokens=10, temperature=temperature, top_p=0.9, seed=3)
    texts = [*PROMPTS, "Context: N/A"]
    together = generate(system, prompts(system, *texts, seen=False), sampling)
    alone = [generate(system, prompts(system, text, seen=False), sampling)[0] for text in texts]
    assert together == alone
    assert len(set(together)) > 1


def test_the_adapter_and_the_modality_reach_generation(tiny_system):
    system = tiny_system()
    batch = prompts(system, PROMPTS[0], seen=False)
    tuned = generate(system, batch, Sampling(max_new_tokens=8))
    with system.model.adapters.disable_adapter():
        base = generate(system, batch, Sampling(max_new_tokens=8))
    assert tuned != base


def favour(system: System, *ids: int) -> None:
    """Makes the model say these ids in turn, again and again, whatever the prompt."""
    dim = system.model.decoder.config.dim
    with torch.no_grad():
        embed, head = system.model.decoder.embed.weight, system.model.decoder.head.weight
        for block in system.model.decoder.blocks:
            block.attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        directions = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)))[0]
        embed.copy_(directions[0].expand_as(embed))
        head.zero_()
        for place, token in enumerate(ids):
            embed[token] = directions[(place + 1) % len(ids)]
            head[token] = directions[place] * 10
        system.model.decoder.norm.weight.fill_(1.0)


def test_stops_at_end_of_text(tiny_system):
    system = tiny_system(trained=False)
    words = system.tokenizer.encode("The answer is")
    favour(system, *words, system.tokenizer.eos_id)
    answers = generate(system, prompts(system, *PROMPTS, seen=False), Sampling(max_new_tokens=50))
    assert answers == ["The answer is"] * 3


@pytest.mark.parametrize(
    ("stop", "wanted"), [(("answer",), "The "), (("er is", "x"), "The answ"), ((), None)]
)
def test_stops_before_a_stop_string(tiny_system, stop, wanted):
    system = tiny_system(trained=False)
    favour(system, *system.tokenizer.encode("The answer is blue"))
    batch = prompts(system, PROMPTS[0], seen=False)
    text = generate(system, batch, Sampling(max_new_tokens=8, stop=stop))[0]
    assert text == wanted if wanted is not None else text.startswith("The answer is blue")
    assert text == "".join(piece for _, piece in stream(system, batch, Sampling(max_new_tokens=8, stop=stop)))


def test_streams_pieces_as_they_come(tiny_system):
    system = tiny_system(trained=False)
    favour(system, *system.tokenizer.encode("The answer is blue"))
    batch = prompts(system, *PROMPTS[:2], seen=False)
    pieces = list(stream(system, batch, Sampling(max_new_tokens=4)))
    assert [row for row, _ in pieces] == [0, 1] * 4
    assert [piece for row, piece in pieces if row == 0] == ["The", " answer", " is", " blue"]


def test_sampling_follows_the_nucleus_of_the_distribution():
    probability = torch.tensor([0.4, 0.05, 0.25, 0.2, 0.1])
    choose = Chooser(Sampling(temperature=2.0, top_p=0.8, seed=3), "sample")
    drawn = torch.bincount(
        torch.tensor([choose(2.0 * probability.log()) for _ in range(4000)]), minlength=5
    ) / 4000  # fmt: skip
    wanted = torch.tensor([0.4, 0.0, 0.25, 0.2, 0.0]) / 0.85  # the fewest that reach 0.8
    assert (drawn - wanted).abs().max() < 0.03
    assert drawn[1] == drawn[4] == 0


def test_nucleus_of_almost_nothing_is_greedy(tiny_system):
    system = tiny_system()
    batch = prompts(system, *PROMPTS)
    greedy = generate(system, batch, Sampling(max_new_tokens=6))
    assert generate(system, batch, Sampling(max_new_tokens=6, temperature=1.0, top_p=1e-9)) == greedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        Sampling(**change)
