from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from data.errors import DataError
from data.mixture import Mixture, open_mixture
from data.order import keyed_order
from data.source import SourceSettings


def settings(folder: Path, name: str, rows: int, **given: float) -> SourceSettings:
    path = folder / f"{name}.jsonl"
    lines = [json.dumps({"id": f"{name}{n}", "instruction": "Q", "output": "A"}) for n in range(rows)]
    path.write_text("\n".join(lines))
    return SourceSettings(path, **given)  # type: ignore[arg-type]


def ids(mixture: Mixture) -> list[str]:
    return [sample.id for sample in mixture]


def test_the_order_of_a_key_is_pinned() -> None:
    # A change here would change what every recorded run and every resumed one sees.
    assert keyed_order(8, "0 0").tolist() == [7, 0, 5, 1, 2, 3, 6, 4]
    assert sorted(keyed_order(1000, "k").tolist()) == list(range(1000))
    assert keyed_order(0, "k").tolist() == []


def test_without_weights_every_row_comes_once(tmp_path: Path) -> None:
    mixture = open_mixture([settings(tmp_path, "a", 2), settings(tmp_path, "b", 3)], seed=0)
    assert ids(mixture) == ["a0", "a1", "b0", "b1", "b2"]
    assert (mixture[-1].id, [mixture[index].id for index in (1, 2)], mixture.origin(2)) == (
        "b2", ["a1", "b0"], (1, 0),
    )  # fmt: skip
    with pytest.raises(IndexError):
        mixture[5]


def test_take_chooses_by_the_seed(tmp_path: Path) -> None:
    sources = [settings(tmp_path, "a", 50, take=20), settings(tmp_path, "b", 50, take=20)]
    chosen = ids(open_mixture(sources, seed=0))
    assert len(set(chosen)) == 40 and chosen == ids(open_mixture(sources, seed=0))
    assert chosen != ids(open_mixture(sources, seed=1))
    assert [name[1:] for name in chosen[:20]] != [name[1:] for name in chosen[20:]]


def test_weights_share_an_epoch(tmp_path: Path) -> None:
    sources = [settings(tmp_path, "a", 10, weight=3), settings(tmp_path, "b", 40, weight=2)]
    mixture = open_mixture(sources, seed=0)
    assert mixture.counts == (30, 20) and len(mixture) == 50
    times = Counter(ids(mixture))
    assert [times[f"a{n}"] for n in range(10)] == [3] * 10
    assert sorted(times[f"b{n}"] for n in range(40)) == [0] * 20 + [1] * 20
    assert ids(mixture) != ids(open_mixture(sources, seed=1))


def test_a_share_that_is_no_whole_number_of_times_and_a_cap(tmp_path: Path) -> None:
    sources = [settings(tmp_path, "a", 9, weight=1, take=4), settings(tmp_path, "b", 8, weight=1)]
    mixture = open_mixture(sources, seed=0)
    assert mixture.counts == (6, 6)
    for seed in range(4):
        times = Counter(name for name in ids(open_mixture(sources, seed)) if name[0] == "a")
        assert sorted(times.values()) == [1, 1, 2, 2]
    thirds = [settings(tmp_path, name, 10, weight=1) for name in "abc"]
    assert sum(open_mixture([*thirds[:2], settings(tmp_path, "c", 11, weight=1)], 0).counts) == 31


def test_the_digest_follows_sources_and_seed(tmp_path: Path) -> None:
    a, b = settings(tmp_path, "a", 3), settings(tmp_path, "b", 3)
    mixtures = [([a, b], 0), ([b, a], 0), ([a], 0), ([a, b], 1)]
    assert len({open_mixture(sources, seed).digest() for sources, seed in mixtures}) == 4


def test_wrong_mixtures_are_refused(tmp_path: Path) -> None:
    a = settings(tmp_path, "a", 3)
    with pytest.raises(DataError, match="a mixture needs a source; add one"):
        open_mixture([], 0)
    with pytest.raises(DataError, match=r"take of the source .*b.jsonl is 4, but it has 3 rows; lower it"):
        open_mixture([a, settings(tmp_path, "b", 3, take=4)], 0)
    with pytest.raises(DataError, match=r"the source .*a.jsonl has no weight and others have; give all one"):
        open_mixture([a, settings(tmp_path, "b", 3, weight=1)], 0)
    weights = [settings(tmp_path, "a", 3, weight=1), settings(tmp_path, "b", 3, weight=1e-6)]
    with pytest.raises(DataError, match=r"weight of the source .*b.jsonl gives it no sample; raise it"):
        open_mixture(weights, 0)
