"""A sharded base: each process keeps its share of the blocks, and the run is the one with a whole base."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

import training.sharding
from tests.training.test_parallel import assert_same, finish, result, start
from training.errors import RunError
from training.parallel import World
from training.sharding import shard_base

TWO = World(0, 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_base):
    """Four runs of two processes: whole and sharded, everything trained and the projector alone."""
    folder = tmp_path_factory.mktemp("sharded")
    processes = start(2, folder, module="workers_sharded", base=asdict(tiny_base))
    for code, text in finish(processes):
        assert code == 0, text
    return folder


@pytest.mark.parametrize("what", ["all", "projector"])
def test_a_sharded_base_trains_as_a_whole_one(runs, what):
    assert_same(runs / f"{what}-sharded", runs / f"{what}-whole")
    assert len(set(result(runs / f"{what}-whole")[0])) == 4, "the loss must move"
    for run in ("sharded", "whole"):
        config = json.loads((runs / f"{what}-{run}" / "adapter" / "adapter_config.json").read_text())
        assert config["provenance"]["scores"]["loss"] > 0


def test_every_process_keeps_its_share_only(runs):
    facts = [json.loads((runs / f"all-{rank}.json").read_text()) for rank in (0, 1)]
    assert facts[0]["whole"] == facts[1]["whole"] == sum(each["here"] for each in facts)
    assert all(0.4 < each["here"] / each["whole"] < 0.6 for each in facts)


def test_one_process_has_nothing_to_shard():
    block = nn.Linear(2, 2)
    assert shard_base(block, [block], [], world=World(), device=torch.device("cpu")) == {}
    assert type(block) is nn.Linear


def test_a_quantised_base_is_refused():
    block = nn.Linear(2, 2)
    block.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(RunError, match="run.shard: a quantised base cannot be sharded; turn off one"):
        shard_base(block, [block], [], world=TWO, device=torch.device("cpu"))


def test_an_old_pytorch_is_refused(monkeypatch):
    monkeypatch.setattr(training.sharding, "fully_shard", lambda module, *, mesh: None)
    block = nn.Linear(2, 2)
    with pytest.raises(RunError, match=r"run.shard: PyTorch .* cannot leave trained parameters whole"):
        shard_base(block, [block], [], world=TWO, device=torch.device("cpu"))
