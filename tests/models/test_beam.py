"""Beam search equals transformers, and a plain search without a cache, with pictures and adapters too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers as hf

from data.packing import PackedBatch
from mma.bank import AdapterBank
from models.beam import beam_search, search_all
from models.build import System, build_base
from models.errors import ModelError
from models.generate import Queue, Sampling, generate
from tests.models.test_generate import PROMPTS, favour, prompts
from tests.models.test_generate_rows import graphs  # noqa: F401

NEVER = 1699  # an end that no answer of these tests reaches


@pytest.fixture(scope="module")
def base(tiny_base) -> System:
    system = build_base(tiny_base)
    sharpened(system.model.decoder.head.weight)
    return system


@pytest.fixture(scope="module")
def oracle(tiny_base) -> hf.PreTrainedModel:
    model = hf.AutoModelForCausalLM.from_pretrained(tiny_base.decoder).eval()
    sharpened(model.lm_head.weight)
    return model


def sharpened(head: torch.Tensor) -> None:
    """Makes a random model as sure of its next token as a trained one."""
    with torch.no_grad():
        head.mul_(8)


def of_transformers(model: hf.PreTrainedModel, batch: PackedBatch, ends: tuple[int, ...], **settings) -> list:
    """The new tokens of every prompt, the end included."""
    wanted = []
    for ids in batch.ids.split(batch.lengths):
        written = model.generate(
            ids[None], attention_mask=torch.ones_like(ids[None]), do_sample=False, early_stopping=False,
            eos_token_id=list(ends), pad_token_id=0, **settings,
        )  # fmt: skip
        wanted.append(written[0, len(ids) :].tolist())
    return wanted


def texts(system: System, answers: list[list[int]], ends: tuple[int, ...]) -> list[str]:
    """The answers as text, without the end."""
    tokenizer = system.tokenizer
    return [tokenizer.decode(ids[:-1] if ids[-1] in ends else ids) for ids in answers]


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
def test_equals_transformers(base, oracle, beams, penalty):
    batch = prompts(base, *PROMPTS, "Context: N/A", seen=False)
    for ends in endings(base, batch, beams):
        if beams == 1 and penalty != 1.0:
            continue
        settings = {"length_penalty": penalty} if beams > 1 else {}
        wanted = of_transformers(oracle, batch, ends, num_beams=beams, max_new_tokens=12, **settings)
        found = beam_search(base, batch, beams, Sampling(12, stop_ids=ends), penalty)
        assert found == texts(base, wanted, ends)


def endings(system: System, batch: PackedBatch, beams: int) -> list[tuple[int, ...]]:
    """Ends that are never reached, and some that are: by the best beam early or late, by others, by many."""
    answers = beam_search(system, batch, beams, Sampling(12, stop_ids=(NEVER,)))
    said = [token for text in answers for token in system.tokenizer.encode(text)]
    assert NEVER not in said
    return [
        (NEVER,),
        (said[1],),
        (said[3], said[-2]),
        tuple(dict.fromkeys(said[::3])),
        tuple(range(0, 1700, 9)),
    ]


def test_some_answers_end_and_some_do_not(base, oracle):
    """Or the test above would show less than it says."""
    batch = prompts(base, *PROMPTS, "Context: N/A", seen=False)
    ends = endings(base, batch, 5)[3]
    answers = of_transformers(oracle, batch, ends, num_beams=5, max_new_tokens=12)
    assert {answer[-1] in ends for answer in answers} == {True, False} or len(set(map(len, answers))) > 1
    greedy = of_transformers(oracle, batch, (NEVER,), num_beams=1, max_new_tokens=12)
    assert greedy != of_transformers(oracle, batch, (NEVER,), num_beams=5, max_new_tokens=12)


def test_one_beam_is_greedy(base):
    batch = prompts(base, *PROMPTS, seen=False)
    for sampling in (Sampling(12), Sampling(12, stop=("e",)), Sampling(1)):
        assert beam_search(base, batch, 1, sampling) == generate(base, batch, sampling)


def searched(
    system: System, batch: PackedBatch, beams: int, steps: int, ends: tuple[int, ...], stop: str | None = None
) -> list[int]:
    """The best answer to a batch of one, every sequence run again in full for every token."""
    open_, closed = [(0.0, [])], []
    for length in range(1, steps + 1):
        grown = []
        for score, ids in open_:
            row = next_logits(system, batch, ids).log_softmax(-1)
            grown += [(score + float(value), [*ids, token]) for token, value in enumerate(row)]
        grown = sorted(grown, key=lambda one: -one[0])[: beams * (1 + len(ends))]
        over = [
            ids[-1] in ends or length == steps or (stop is not None and stop in system.tokenizer.decode(ids))
            for _, ids in grown
        ]
        closed += [
            (score / length, ids)
            for (score, ids), end in zip(grown[:beams], over[:beams], strict=True)
            if end
        ]
        closed = sorted(closed, key=lambda one: -one[0])[:beams]
        open_ = [one for one, end in zip(grown, over, strict=True) if not end][:beams]
        if not open_ or (len(closed) == beams and open_[0][0] / length <= closed[-1][0]):
            break
    return closed[0][1]


def next_logits(system: System, batch: PackedBatch, ids: list[int]) -> torch.Tensor:
    """Logits behind a batch of one and some more tokens."""
    length = len(batch.ids) + len(ids)
    grown = replace(
        batch,
        ids=torch.cat([batch.ids, torch.tensor(ids, dtype=torch.int64)]),
        positions=torch.arange(1, length + 1), lengths=(length,), sources=torch.tensor([length - 1]),
    )  # fmt: skip
    with torch.no_grad():
        return system.model(grown)[0]


def test_pictures_and_adapters_reach_the_beams(tiny_system):
    system = tiny_system()
    sharpened(system.model.decoder.head.weight)
    alone = [prompts(system, text) for text in PROMPTS]
    together = prompts(system, *PROMPTS)
    free = beam_search(system, together, 3, Sampling(6, stop_ids=(NEVER,)))
    end = system.tokenizer.encode(free[0])[2]
    for ends in ((NEVER,), (end,)):
        wanted = [searched(system, batch, 3, 6, ends) for batch in alone]
        sampling = Sampling(6, stop_ids=ends)
        assert [beam_search(system, batch, 3, sampling)[0] for batch in alone] == texts(system, wanted, ends)
    wanted = [system.tokenizer.decode(searched(system, batch, 3, 6, (NEVER,), "e")) for batch in alone]
    sampling = Sampling(6, stop=("e",), stop_ids=(NEVER,))
    found = [beam_search(system, batch, 3, sampling)[0] for batch in alone]
    assert found == [text.partition("e")[0] for text in wanted]
    blind = prompts(system, PROMPTS[0], seen=False)
    assert beam_search(system, blind, 3, Sampling(6, stop_ids=(NEVER,))) != free[:1]


def test_a_prompt_ignores_the_prompts_beside_it(tiny_system):
    system = tiny_system()
    sharpened(system.model.decoder.head.weight)
    sampling = Sampling(10, stop=("e",), stop_ids=(NEVER,))
    all_texts = [*PROMPTS, "Context: N/A"]
    together = beam_search(system, prompts(system, *all_texts, seen=False), 4, sampling)
    alone = [beam_search(system, prompts(system, text, seen=False), 4, sampling)[0] for text in all_texts]
    assert together == alone
    assert not any("e" in text for text in together)
    lengths = [prompts(system, text, seen=False).lengths[0] for text in all_texts]
    queue = Queue(lengths, lambda group: prompts(system, *(all_texts[i] for i in group), seen=False))
    for tokens in (1, 4 * (max(lengths) + 10) * 2, 10**6):
        assert dict(search_all(system, queue, 4, sampling, tokens)) == dict(enumerate(together))


def test_every_prompt_is_answered_by_the_adapter_it_names(tiny_system):
    system = tiny_system()
    sharpened(system.model.decoder.head.weight)
    adapters = system.model.adapters
    bank = AdapterBank(adapters, 2)
    generator = torch.Generator().manual_seed(11)
    for name in ("a", "b"):
        adapters.add_adapter(name, adapters.config)
        adapters.set_adapter(name)
        with torch.no_grad():
            for parameter in adapters.trainable_parameters().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        bank.put(name)
    adapters.set_adapter("default")
    texts = [*PROMPTS, "Context: N/A"]
    batch = replace(prompts(system, *texts, seen=False), adapters=("b", None, "a", "b"))
    sampling = Sampling(6, stop_ids=(NEVER,))
    alone = [replace(prompts(system, text, seen=False), adapters=(name,))
             for text, name in zip(texts, batch.adapters, strict=True)]  # fmt: skip
    wanted = [searched(system, one, 3, 6, (NEVER,)) for one in alone]
    assert beam_search(system, batch, 3, sampling) == [system.tokenizer.decode(ids) for ids in wanted]
    unnamed = beam_search(system, replace(batch, adapters=None), 3, sampling)
    assert sum(a != b for a, b in zip(beam_search(system, batch, 3, sampling), unnamed, strict=True)) == 4


def test_captured_steps_give_the_same_answers(tiny_system, graphs):  # noqa: F811
    system = tiny_system()
    sharpened(system.model.decoder.head.weight)
    batch = prompts(system, *PROMPTS, "Context: N/A")
    answers = beam_search(system, batch, 3, Sampling(14, stop_ids=(NEVER,)))
    ends = tuple(system.tokenizer.encode(text)[3] for text in answers[:2])  # so that some end before others
    captured = beam_search(system, batch, 3, Sampling(14, stop_ids=ends))
    assert sum(graphs) > 3, "steps were replayed"
    graphs.clear()
    alone = [beam_search(system, prompts(system, text, seen=row % 2 == 0), 3, Sampling(14, stop_ids=ends))[0]
             for row, text in enumerate([*PROMPTS, "Context: N/A"])]  # fmt: skip
    assert captured == alone


def test_the_likeliest_end_wins(tiny_system):
    system = tiny_system(trained=False)
    words = system.tokenizer.encode("The answer is")
    favour(system, *words, system.tokenizer.eos_id)
    assert (
        beam_search(system, prompts(system, *PROMPTS, seen=False), 5, Sampling(50)) == ["The answer is"] * 3
    )


@pytest.mark.parametrize(
    ("beams", "sampling", "message"),
    [(0, Sampling(), "beams is 0"), (2, Sampling(temperature=1.0), "temperature is 1.0")],
)
def test_wrong_settings_are_refused(base, beams, sampling, message):
    with pytest.raises(ModelError, match=message):
        beam_search(base, prompts(base, PROMPTS[0], seen=False), beams, sampling)
