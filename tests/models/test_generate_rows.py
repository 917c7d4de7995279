"""Prompts that share the rows of one cache: the answers of each alone, and nobody waits for the longest."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from data.packing import PackedBatch
from mma import LoraConfig, MMAConfig
from mma.bank import AdapterBank
from models import decode_step
from models.attention import PackedAttention
from models.build import System, build_new
from models.decode_step import DecodeStep
from models.generate import Queue, Sampling, answer_all, generate
from models.kv_cache import KVCache
from tests.models.test_generate import prompts, recomputed

WORDS = ("How", "warm", "is", "the", "water", "that", "lies", "in", "the", "long", "valley", "behind", "it")
TEXTS = [f"Question {n}: {' '.join(WORDS[: 1 + n * 5 % 13])}?\nResponse:" for n in range(12)]
TEXTS[3] = " ".join(WORDS * 4)  # far longer than the others
STEPS = 20


def queue_of(system: System, order: list[int], seen: bool = True) -> Queue:
    """The texts in an order; with pictures in every second one of each prefill."""

    def batch(group: list[int]) -> PackedBatch:
        return prompts(system, *(TEXTS[order[index]] for index in group), seen=False)

    def mixed(group: list[int]) -> PackedBatch:
        one_by_one = [prompts(system, TEXTS[order[index]], seen=order[index] % 2 == 0) for index in group]
        return joined(one_by_one)

    make = mixed if seen else batch
    return Queue([make([index]).lengths[0] for index in range(len(order))], make)


def joined(batches: list[PackedBatch]) -> PackedBatch:
    """Batches of one prompt each as one."""
    starts = torch.tensor([0, *(len(batch.ids) for batch in batches[:-1])]).cumsum(0)
    views = [batch.pictures for batch in batches if batch.pictures is not None]
    return replace(
        batches[0],
        ids=torch.cat([batch.ids for batch in batches]),
        positions=torch.cat([batch.positions for batch in batches]),
        lengths=tuple(batch.lengths[0] for batch in batches),
        modalities=tuple(batch.modalities[0] for batch in batches),
        slots=torch.cat([batch.slots + start for batch, start in zip(batches, starts, strict=True)]),
        pictures=torch.cat(views) if views else None,
        sizes=tuple(size for batch in batches for size in batch.sizes),
        sample_ids=tuple(batch.sample_ids[0] for batch in batches),
    )


def ended(ids: list[int], ends: tuple[int, ...]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def endings(answers: list[list[int]]) -> tuple[int, ...]:
    """Tokens that end the answers after unlike numbers of steps."""
    ends: tuple[int, ...] = ()
    for token in sorted({token for ids in answers for token in ids[2:]}):
        more = (*ends, token)
        if len({len(ended(ids, more)) for ids in answers}) > len({len(ended(ids, ends)) for ids in answers}):
            ends = more
    return ends


def plain(system: System, queue: Queue) -> tuple[Sampling, list[str]]:
    """One prompt after the other, the whole sequence run again for every token."""
    ids = [recomputed(system, queue.batch([index]), STEPS) for index in range(len(queue.lengths))]
    ends = endings(ids)
    cut = [ended(own, ends) for own in ids]
    assert len({len(own) for own in cut}) > 3, "the answers shall be of unlike lengths"
    return Sampling(STEPS, stop_ids=ends), [system.tokenizer.decode(own) for own in cut]


def answers(system: System, queue: Queue, sampling: Sampling, tokens: int) -> list[str]:
    found = dict(answer_all(system, queue, sampling, tokens))
    return [found[index] for index in range(len(queue.lengths))]


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_answers_are_those_of_each_prompt_alone(tiny_system, rows):
    system = tiny_system()
    queue = queue_of(system, list(range(len(TEXTS))))
    sampling, wanted = plain(system, queue)
    room = max(queue.lengths) + STEPS
    for seed in range(2):
        order = random.Random(seed).sample(range(len(TEXTS)), len(TEXTS))
        got = answers(system, queue_of(system, order), sampling, rows * room)
        assert got == [wanted[index] for index in order]
    assert answers(system, queue, sampling, 1) == wanted, "a prompt longer than the cache still has a row"


def test_sampled_answers_do_not_depend_on_the_rows(tiny_system):
    system = tiny_system()
    queue = queue_of(system, list(range(len(TEXTS))))
    sampling = Sampling(8, temperature=1.0, top_p=0.9, seed=3)
    alone = [generate(system, queue.batch([index]), sampling)[0] for index in range(len(TEXTS))]
    assert answers(system, queue, sampling, 300) == alone
    assert len(set(alone)) > 3


class Watched(KVCache):
    """Remembers what it was asked for."""

    all: list[Watched] = []  # noqa: RUF012

    def __init__(self, *shape: object, **more: object) -> None:
        super().__init__(*shape, **more)
        self.steps: list[tuple[int, int]] = []
        self.idle: list[int] = []  # free rows in each step
        self.places: set[int] = set()
        self.shapes = [(self.rows, self.room)]
        self.all.append(self)

    def attention(self, rows: int, span: int):
        self.steps.append((rows, span))
        self.idle.append(len(self.free))
        self.places |= {x.untyped_storage().data_ptr() for x in (*self.keys, *self.values)}
        assert max(self.held) == span
        return super().attention(rows, span)

    def arrange(self, rows: int, room: int) -> None:
        super().arrange(rows, room)
        self.shapes.append((rows, room))


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr("models.generate.KVCache", Watched)
    monkeypatch.setattr(Watched, "all", [])
    return Watched.all


def test_nobody_waits_for_the_longest_and_memory_is_taken_once(tiny_system, watched):
    system = tiny_system()
    queue = queue_of(system, list(range(len(TEXTS))))
    sampling, wanted = plain(system, queue)
    room = max(queue.lengths) + STEPS
    lengths = [len(system.tokenizer.encode(text)) for text in wanted]
    assert answers(system, queue, sampling, 2 * room) == wanted
    (cache,) = watched
    layers = system.model.decoder.config.n_layers
    assert len(cache.places) == 2 * layers, "keys and values of every layer, never anew"
    assert cache.shapes[0] == (2, room) and len(cache.shapes) > 1, "shorter prompts get more rows"
    assert all(rows * each <= 2 * room for rows, each in cache.shapes)
    assert cache.idle == sorted(cache.idle), "every row is taken again until nobody waits"
    computed = sum(rows for rows, _ in cache.steps)
    needed = sum(lengths)
    assert computed <= 1.35 * needed + STEPS, "hardly any row is computed that nobody writes in"
    watched.clear()
    generate(system, queue.batch(range(len(TEXTS))), sampling)
    assert watched[0].steps[0][0] == sum(bool(text) for text in wanted), "without those that ended at once"
    assert [rows for rows, _ in watched[0].steps] == sorted(
        (rows for rows, _ in watched[0].steps), reverse=True
    )


def test_a_long_room_costs_nothing(tiny_system, watched):
    system = tiny_system(trained=False)
    queue = queue_of(system, [0, 1, 2], seen=False)
    some = recomputed(system, queue.batch([0]), 3)
    answers(system, queue, Sampling(50, stop_ids=(some[2],)), 10_000)
    (cache,) = watched
    spans = [span for _, span in cache.steps]
    assert spans[0] == max(queue.lengths) + 1
    assert all(b <= a + 1 for a, b in pairwise(spans))


def test_nothing_to_answer(tiny_system):
    assert list(answer_all(tiny_system(), Queue([], lambda group: None), Sampling(), 100)) == []


def test_an_error_of_a_prompt_comes_through_and_ends_the_turn(tiny_system):
    system = tiny_system()

    def broken(group):
        raise OSError("the picture is gone")

    with pytest.raises(OSError, match="picture is gone"):
        list(answer_all(system, Queue([3], broken), Sampling(), 100))
    with system.model.adapters.turns.changing("see whether it is free"):
        pass


def test_rows_of_a_bank_keep_their_adapter(tiny_system):
    system = tiny_system()
    bank = AdapterBank(system.model.adapters, 3)
    generator = torch.Generator().manual_seed(11)
    for name in ("a", "b"):
        system.model.adapters.add_adapter(name, system.model.adapters.config)
        system.model.adapters.set_adapter(name)
        with torch.no_grad():
            for parameter in system.model.adapters.trainable_parameters().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        bank.put(name)
    system.model.adapters.set_adapter("default")
    plainly = queue_of(system, list(range(8)), seen=False)
    names = ["a", None, "b", "a", "b", None, "a", "b"]
    queue = Queue(
        plainly.lengths,
        lambda group: replace(plainly.batch(group), adapters=tuple(names[index] for index in group)),
    )
    sampling = Sampling(10)
    alone = [generate(system, queue.batch([index]), sampling)[0] for index in range(8)]
    assert answers(system, queue, sampling, 2 * (max(queue.lengths) + 10)) == alone
    unnamed = [generate(system, plainly.batch([index]), sampling)[0] for index in range(8)]
    assert sum(a != b for a, b in zip(alone, unnamed, strict=True)) > 4


@pytest.mark.parametrize("how", ["merged", "lora", "int8", "nf4", "bare"])
def test_every_kind_of_base_and_adapter_goes_through_the_same_loop(tiny_base, tiny_system, how):
    config = MMAConfig(dropout=0.0, temperature=1.0, projector_hidden=8)
    base = tiny_base
    if how in ("int8", "nf4"):
        if how == "nf4":
            pytest.importorskip("bitsandbytes")
        base = replace(tiny_base, quantise=how)
    system = build_new(base, LoraConfig(r=4, projector_hidden=8) if how == "lora" else config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in system.model.adapters.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    if how == "merged":
        system.model.adapters.merge_adapter("text")
    if how == "bare":
        system.model.adapters.delete_adapter("default")
    queue = queue_of(system, list(range(6)), seen=False)
    wanted = [
        system.tokenizer.decode(recomputed(system, queue.batch([index]), 10)) for index in range(6)
    ]  # fmt: skip
    got = answers(system, queue, Sampling(10, stop_ids=(-1,)), 3 * (max(queue.lengths) + 10))
    assert got == wanted


@pytest.fixture
def graphs(monkeypatch):
    """Stands for CUDA graphs: what is recorded is run when it is replayed, and reads the same tensors."""
    recorded = []

    def record(run, pool):
        written = torch.empty(0)

        def replay():
            result = run()
            written.resize_(result.shape).copy_(result)
            recorded[-1] += 1

        recorded.append(0)
        return written, replay

    monkeypatch.setattr(decode_step, "record", record)
    monkeypatch.setattr(decode_step, "can_capture", lambda device: True)
    monkeypatch.setattr(decode_step, "memory_pool", lambda: None)
    monkeypatch.setattr(decode_step, "SPAN", 16)
    return recorded


def test_captured_steps_give_the_same_answers(tiny_system, graphs):
    system = tiny_system()
    queue = queue_of(system, list(range(len(TEXTS))))
    sampling, wanted = plain(system, queue)
    room = max(queue.lengths) + STEPS
    for rows in (1, 3, 32):
        graphs.clear()
        assert answers(system, queue, sampling, rows * room) == wanted
        assert sum(graphs) > 3, "steps were replayed"


def test_a_captured_step_follows_who_answers_its_rows(tiny_system, graphs, monkeypatch):
    model = tiny_system().model
    batch = prompts(tiny_system(), *TEXTS[:2])  # the first one has a picture

    def last(segments: list[int]) -> torch.Tensor:
        """Logits of the row when its steps are those of these modalities."""
        cache = KVCache(model.decoder.config.n_layers, 2, 60)
        with torch.no_grad():
            prompt = model.embed(batch)
            model.decode(prompt, cache.prefill(PackedAttention(prompt.lengths), range(len(prompt.lengths))))
            step = DecodeStep(model, cache)
            for segment in segments:
                token = torch.tensor([segment * batch.lengths[0]] * 2)
                logits = step(torch.tensor([5, 6]), prompt.routes.select(token), cache.advance()).clone()
        return logits

    captured = last([0, 0, 0, 0, 0, 1])
    assert sum(graphs) == 3
    monkeypatch.setattr(decode_step, "can_capture", lambda device: False)
    torch.testing.assert_close(captured, last([0, 0, 0, 0, 0, 1]), atol=1e-5, rtol=1e-5)
    assert (captured - last([0] * 6)).abs().max() > 1e-3


def test_widths_of_captured_steps_are_few(tiny_system, graphs):
    step = DecodeStep(tiny_system().model, KVCache(2, 24, 8))
    assert [step.width(rows) for rows in (1, 2, 3, 5, 9, 17, 24)] == [1, 2, 4, 8, 16, 24, 24]


def test_where_a_step_cannot_be_captured_it_is_launched_as_ever(tiny_system, graphs, monkeypatch):
    tried = []

    def refused(run, pool):
        tried.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    system = tiny_system()
    queue = queue_of(system, list(range(len(TEXTS))))
    sampling, wanted = plain(system, queue)
    monkeypatch.setattr(decode_step, "record", refused)
    assert answers(system, queue, sampling, 300) == wanted
    assert len(tried) == 1, "not tried again"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
def test_graphs_give_the_answers_of_the_cpu(tiny_base, monkeypatch):
    found, captured = [], []
    real = decode_step.record
    monkeypatch.setattr(decode_step, "record", lambda run, pool: captured.append(run) or real(run, pool))
    for device in ("cpu", "cuda"):
        system = build_new(tiny_base, MMAConfig(dropout=0.0, projector_hidden=8), device)
        here = queue_of(system, list(range(len(TEXTS))))
        there = Queue(here.lengths, lambda group, here=here, device=device: here.batch(group).to(device))
        found.append(answers(system, there, Sampling(STEPS, stop_ids=(-1,)), 400))
    assert found[0] == found[1]
    assert captured, "steps were captured"
