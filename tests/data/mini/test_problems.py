"""Pools of facts are disjoint and complete, and answers are right and in random places."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from data.mini.families import FAMILIES, Family
from data.mini.language import TABLES, WordTable
from data.mini.problems import ask_about, draw_facts, picture_problem, word_problem


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_reserved_combinations_leave_every_value_in_training(family: Family) -> None:
    rows = [
        dict(zip(family.attributes, row, strict=True))
        for row in itertools.product(*family.attributes.values())
    ]
    assert len(rows) == family.combinations()
    training = [facts for facts in rows if not family.reserved(facts)]
    assert 0 < len(rows) - len(training) < len(rows) / 3
    for name, values in family.attributes.items():
        assert {facts[name] for facts in training} == set(values)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_facts_come_from_the_pool_that_is_asked_for(family: Family) -> None:
    rng = random.Random(0)
    assert not any(family.reserved(draw_facts(family, rng, "training")) for _ in range(50))
    assert all(family.reserved(draw_facts(family, rng, "evaluation")) for _ in range(50))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_exactly_one_option_is_right(family: Family) -> None:
    rng = random.Random(1)
    for _ in range(100):
        facts = draw_facts(family, rng, "training")
        question, options, index, _ = ask_about(family, facts, rng)
        (ask,) = [ask for ask in family.asks if question in ask.wordings]
        assert options[index] == ask.answer(facts[ask.attribute])
        assert len(set(options)) == len(options) >= 2


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_word_problems_keep_their_pools_apart(table: WordTable) -> None:
    rng = random.Random(2)
    pools = {}
    for pool in ("training", "evaluation"):
        rows = [word_problem(table, rng, pool).row for _ in range(200)]
        assert all(row["choices"][row["answer"]] in table.pairs.values() for row in rows)
        pools[pool] = {(row["question"], frozenset(row["choices"])) for row in rows}
    assert not pools["training"] & pools["evaluation"]


def test_the_right_answer_is_everywhere_equally_often() -> None:
    rng = random.Random(3)
    places: dict[int, Counter[int]] = {}
    for index in range(3000):
        row = picture_problem(FAMILIES[index % len(FAMILIES)], rng, "training").row
        places.setdefault(len(row["choices"]), Counter())[row["answer"]] += 1
    for count, seen in places.items():
        expected = seen.total() / count
        assert set(seen) == set(range(count))
        assert all(abs(times - expected) < 4 * expected**0.5 for times in seen.values())
