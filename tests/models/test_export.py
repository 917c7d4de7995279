"""A merged decoder is a plain LLaMA to everyone else, and its folder is whole or not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from data.packing import collate
from data.pictures import Prepared
from data.sample import Tokens
from mma import AdapterError, BottleneckConfig, LoraConfig, MMAConfig
from models import export
from models.attention import PackedAttention
from models.build import build_base, current_digests
from models.export import export_merged
from models.generate import Sampling, generate
from models.prompt_notes import PREFIX_CODE
from tests.mma.conftest import picture, sample
from tests.mma.oracles import BASES, close, logits, make_system, shake, their_logits

READ = collate([sample("read", 6, 0), sample("more", 11, 0)], picture)
SEEN = collate([sample("seen", 9, 2), sample("too", 7, 2)], picture)
WITH_BIAS = {"self_attn": "attention_bias", "mlp": "mlp_bias"}
ADAPTERS = {
    "attn": MMAConfig(temperature=1.0, dropout=0.0),
    "both": MMAConfig(temperature=0.3, placement="both", tower="modality", r=4, groups=1, routes=3),
    "mlp, one layer": BottleneckConfig(placement="mlp", layers=(1,), scale=2.0),
    "lora": LoraConfig(r=2, targets=("o_proj", "gate_proj")),
    "lora with a bias": LoraConfig(r=2, bias=True, placement="attn", layers=(0,)),
}


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """A system on each kind of base, without an adapter."""
    return {name: make_system(tmp_path_factory.mktemp("base"), name) for name in BASES}


@pytest.fixture
def system(tmp_path):
    """The usual one with a trained adapter, on a base of its own."""
    (tmp_path / "base").mkdir()
    system = make_system(tmp_path / "base")
    system.model.adapters.add_adapter("a", ADAPTERS["attn"])
    shake(system.model.adapters)
    return system


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a Hugging Face folder."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("base", sorted(BASES))
@pytest.mark.parametrize("config", ADAPTERS.values(), ids=list(ADAPTERS))
def test_transformers_alone_computes_the_same(systems, base, config, tmp_path):
    system = systems[base]
    model, adapters = system.model, system.model.adapters
    adapters.add_adapter("a", config)
    try:
        shake(adapters)
        held = dict(model.named_parameters())
        for modality, batch in (("text", READ), ("image", SEEN)):
            wanted = logits(model, batch)
            folder = tmp_path / modality
            report = export_merged(system, folder, modality)
            assert (report.modalities, report.taken) == ((modality,), ("a",))
            assert adapters.merged is None
            assert all(p is held[name] for name, p in model.named_parameters())
            assert torch.equal(logits(model, batch), wanted)
            with torch.no_grad():
                entering = model.embed(batch).x
            theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
            assert close(their_logits(theirs, batch, entering), wanted, 1e-4)
            again = build_base(replace(system.settings, decoder=str(folder))).model  # a base of this project
            found = again.decoder.head(_run(again, entering, batch)).float()
            assert close(found, wanted, 1e-4)
            assert current_digests(again)["base_digest"] != current_digests(model)["base_digest"]
    finally:
        adapters.delete_adapter("a")


def _run(model, entering, batch):
    """Hidden states at the supervised positions for what enters the decoder."""
    with torch.no_grad():
        stream = replace(model.embed(batch), x=entering)
        return model.decode(stream, PackedAttention(stream.lengths, torch.device("cpu"))).index_select(
            0, batch.sources
        )


@pytest.mark.parametrize(("placement", "kinds"), [("attn", {"self_attn"}), ("both", {"self_attn", "mlp"})])
def test_layers_without_a_bias_get_zeros(system, tmp_path, placement, kinds):
    """Hugging Face has one switch for all the layers of a kind."""
    adapters = system.model.adapters
    adapters.add_adapter("b", replace(ADAPTERS["attn"], placement=placement, layers=(1,)))
    shake(adapters)
    export_merged(system, tmp_path / "merged", "text")
    settings = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert {kind for kind, switch in WITH_BIAS.items() if settings[switch]} == kinds
    biases = {name: x for name, x in stored(tmp_path / "merged").items() if name.endswith(".bias")}
    assert {name.split(".")[3] for name in biases} == kinds
    assert len(biases) == 2 * sum({"self_attn": 4, "mlp": 3}[kind] for kind in kinds)
    for name, bias in biases.items():
        read_by_norm = name.split(".")[-2] not in ("o_proj", "down_proj")
        assert bool(bias.any()) == (read_by_norm and ".layers.1." in name)


def test_a_lora_without_a_bias_asks_for_none(system, tmp_path):
    """The folder has the very settings and tensors of the base's own."""
    adapters = system.model.adapters
    adapters.add_adapter("lora", LoraConfig())
    shake(adapters)
    export_merged(system, tmp_path / "merged")
    base = Path(system.settings.decoder)
    assert (tmp_path / "merged" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert stored(tmp_path / "merged").keys() == stored(base).keys()


def test_what_the_folder_holds(system, tmp_path):
    (Path(system.settings.decoder) / "generation_config.json").write_text('{"max_length": 9}')
    export_merged(system, tmp_path / "merged", "image")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.model", "generation_config.json", "README.md"),
    }
    for name in ("tokenizer.model", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (
            Path(system.settings.decoder) / name
        ).read_bytes()
    assert {x.dtype for x in stored(tmp_path / "merged").values()} == {torch.float32}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_in_the_type_of_the_base(tmp_path):
    system = make_system(tmp_path, precision="bf16")
    system.model.adapters.add_adapter("a", ADAPTERS["attn"])
    export_merged(system, tmp_path / "merged", "text")
    assert {x.dtype for x in stored(tmp_path / "merged").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_readme_tells_how_samples_are_laid_out(system, tmp_path):
    export_merged(system, tmp_path / "image", "image")
    card = (tmp_path / "image" / "README.md").read_text()
    for said in (
        "# Decoder with a merged for `image`",
        "Exported from: Mixture-of-modality adapter",
        "## How a sample with `image` is laid out",
        "2 embeddings of the picture",
        "image prefix",
    ):
        assert said in card
    assert "sample with `text`" not in card
    assert str(tmp_path) not in card  # it is there to be published
    export_merged(system, tmp_path / "text", "text")
    card = (tmp_path / "text" / "README.md").read_text()
    assert "[bos] Image: N/A" in card
    assert "image prefix" not in card
    system.model.adapters.add_adapter("lora", LoraConfig())
    export_merged(system, tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "# Decoder with lora merged for `text` or `image`" in card


def test_the_code_of_the_readme_answers_about_a_picture(system, tmp_path, capsys, monkeypatch):
    """Its prefix stands where the picture's embeddings do here."""
    adapters = system.model.adapters
    adapters.save_pretrained(tmp_path / "ADAPTER")
    export_merged(system, tmp_path / "merged", "image")
    card = (tmp_path / "merged" / "README.md").read_text()
    code = card.split("```python\n")[-1].split("```")[0]
    assert code.strip() == PREFIX_CODE.format(slots=system.image_slots)
    _a_picture().save(tmp_path / "picture.png")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    given, answer = [], theirs.generate

    def four_tokens(inputs_embeds):
        given.append(inputs_embeds)
        return answer(inputs_embeds=inputs_embeds, max_new_tokens=4, do_sample=False)

    monkeypatch.setattr(theirs, "generate", four_tokens)
    monkeypatch.chdir(tmp_path)
    names = {"model": theirs}
    exec(compile(code, "README.md", "exec"), names)
    head, prompt, slots = len(names["head"]), len(names["prompt"]), system.image_slots
    assert given[0].shape[1] == head + slots + prompt
    ids = (*names["head"], *[0] * slots, *names["prompt"])
    places = tuple(range(head, head + slots))
    tokens = Tokens("x", ids, (False,) * len(ids), places, "image", (Path("picture.png"),), (slots,))
    batch = collate([tokens], lambda _: Prepared(system.preprocess(_a_picture()), (40, 30)))
    with torch.no_grad():
        assert torch.equal(given[0][0], system.model.embed(batch).x)
    (said,) = generate(system, batch, Sampling(4))
    assert said == capsys.readouterr().out.rstrip("\n")


def _a_picture():
    return Image.new("RGB", (16, 16), (200, 30, 90))


def test_the_code_of_the_readme_that_loads_it_runs(system, tmp_path, monkeypatch):
    export_merged(system, tmp_path / "merged", "text")
    card = (tmp_path / "merged" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "merged")
    names: dict[str, object] = {}
    exec(compile(card.split("```python\n")[1].split("```")[0], "README.md", "exec"), names)
    assert (
        names["tokenizer"]("a round thing")["input_ids"][-2:] == system.tokenizer.encode("a round thing")[-2:]
    )


def test_what_is_merged_is_exported_and_stays_merged(system, tmp_path):
    """A sum of adapters, too: only that can be asked for."""
    model, adapters = system.model, system.model.adapters
    adapters.add_adapter("b", ADAPTERS["both"])
    shake(adapters, 8)
    adapters.add_adapter("c", ADAPTERS["both"])
    shake(adapters, 9)
    report = adapters.merge_adapter(["image", "text"], ["b", "c"], [0.5, 2.0])
    wanted = logits(model, READ)
    export_merged(system, tmp_path / "merged", "text")
    assert adapters.merged.report == report
    assert torch.equal(logits(model, READ), wanted)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert close(their_logits(theirs, READ), wanted, 1e-4)
    assert "Decoder with b and c merged" in (tmp_path / "merged" / "README.md").read_text()
    adapters.unmerge_adapter()
    assert adapters.active == "c"


def test_what_cannot_be_exported_is_refused(system, tmp_path):
    adapters = system.model.adapters
    for modality, match in ((None, "name the one modality; choose text or image"), ("x", "no modality 'x'")):
        with pytest.raises(AdapterError, match=match):
            export_merged(system, tmp_path / "merged", modality)
    adapters.save_pretrained(tmp_path / "kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for name, match in (
        ("kept", "kept holds an adapter, which the decoder would replace; choose another name"),
        ("full", "full exists and is not an adapter folder; choose another name"),
    ):
        before = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        with pytest.raises(AdapterError, match=match):
            export_merged(system, tmp_path / name, "text")
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == before
    adapters.add_adapter("relu", BottleneckConfig(activation="relu"))
    with pytest.raises(AdapterError, match="activation 'relu' is not linear"):
        export_merged(system, tmp_path / "merged", "text")
    adapters.delete_adapter("relu")
    with pytest.raises(AdapterError, match="none is active"):
        export_merged(system, tmp_path / "merged", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "full", "kept"]


@pytest.mark.parametrize("merged", [None, "image"])
@pytest.mark.parametrize(
    ("error", "match"),
    [
        (SafetensorError("No space left on device"), "merged cannot be written .*; free some space"),
        (OSError(28, "No space left on device"), "the disk is full, .* free some space"),
        (PermissionError(13, "Permission denied"), "merged cannot be written \\(Permission denied\\)"),
    ],
)
def test_nothing_half_written_is_left(system, tmp_path, monkeypatch, error, match, merged):
    model, adapters = system.model, system.model.adapters
    if merged is not None:
        adapters.merge_adapter(merged)
    batch = SEEN if merged else READ
    wanted = logits(model, batch)
    held = dict(model.named_parameters()) if merged is None else {}

    def failing(tensors, folder, **_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(export, "save_torch_state_dict", failing)
    with pytest.raises(AdapterError, match=match):
        export_merged(system, tmp_path / "merged", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert (adapters.merged is None) == (merged is None)
    assert all(p is held.get(name, p) for name, p in model.named_parameters())
    assert torch.equal(logits(model, batch), wanted)
    adapters.unmerge_adapter()
    assert not any(
        isinstance(m, nn.Linear) and m.bias is not None for m in model.decoder.blocks[0].attn.children()
    )
