"""Building a system: what belongs together, what is counted as trained, and digests that see every change."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from data.packing import collate
from data.pictures import Prepared
from data.sample import Tokens
from mma import AdapterError, MMAConfig
from mma.digest import digest
from mma.folder import CONFIG
from models.build import BaseSettings, build_base, build_new, current_digests, layout_of, load
from models.decoder import Decoder
from models.errors import ModelError
from models.multimodal import MultimodalLM
from models.named import NAMED
from models.tower import Features, Tower
from models.tower_files import read_spec


@pytest.fixture
def batch():
    """One sample with a picture and one without."""
    seen = Tokens(
        "a", (5, 0, 0, 7, 9, 11), (False,) * 4 + (True,) * 2, (1, 2), "image", (Path("a.png"),), (2,)
    )
    read = Tokens("b", (5, 6, 8), (False, True, True), (), "text")
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return collate([seen, read], lambda _: Prepared(pixels, (16, 16)))


@pytest.fixture
def base(tiny_base, tmp_path) -> BaseSettings:
    """A copy of the tiny base, to be damaged."""
    for part in ("decoder", "tower"):
        shutil.copytree(getattr(tiny_base, part), tmp_path / part)
    return replace(tiny_base, decoder=str(tmp_path / "decoder"), tower=str(tmp_path / "tower"))


@pytest.mark.parametrize(
    ("decoder", "tower", "projector"),
    [
        ("llama-7b", "ViT-L-14", 3_781_296),
        ("llama-13b", "ViT-L-14-quickgelu", 5_390_080),
    ],
)
def test_trained_parameters_of_the_published_sizes(decoder, tower, projector):
    with torch.device("meta"):
        spec = read_spec(tower)
        seen = Tower(spec, Features())
        model = MultimodalLM(Decoder(NAMED[decoder]), seen, layout_of(BaseSettings(), spec, seen))
        model.adapters.add_adapter("default", MMAConfig())
    assert model.tower.tokens == 6
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == projector
    assert sum(line.parameters for line in model.adapters.report()) == projector


def test_the_base_alone(tiny_base, batch):
    system = build_base(tiny_base)
    assert system.model.adapters.names == ()
    assert not any(p.requires_grad for p in system.model.parameters())
    assert not system.model.training
    assert system.image_slots == 2
    with torch.no_grad():
        assert system.model(batch).shape == (4, 1700)


def test_a_new_adapter_starts_as_the_base(tiny_base, batch):
    system = build_new(tiny_base, MMAConfig())
    assert system.model.adapters.names == ("default",)
    with torch.no_grad():
        with system.model.adapters.disable_adapter():
            bare = system.model(batch)
        assert torch.equal(bare, build_base(tiny_base).model(batch))


def test_a_folder_names_its_base(tiny_system, tiny_base, batch, tmp_path):
    system = tiny_system()
    system.model.adapters.save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path / "adapter")
    tokenizer = str(Path(tiny_base.decoder) / "tokenizer.model")
    assert loaded.settings == replace(tiny_base, tokenizer=tokenizer)
    assert loaded.digests == system.digests
    with torch.no_grad():
        assert torch.equal(loaded.model(batch), system.model(batch))


def test_a_moved_base_is_found_by_its_settings(tiny_system, base, batch, tmp_path):
    system = tiny_system()
    system.model.adapters.save_pretrained(tmp_path / "adapter")
    moved = load(tmp_path / "adapter", base)
    with torch.no_grad():
        assert torch.equal(moved.model(batch), system.model(batch))


def test_a_folder_that_does_not_name_its_base(tiny_system, tiny_base, tmp_path):
    tiny_system().model.adapters.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / CONFIG
    content = json.loads(path.read_text())

    def write(base: object) -> None:
        path.write_text(json.dumps({**content, "base": base}))

    write(None)
    with pytest.raises(ModelError, match="does not say which base it was made for; pass its settings"):
        load(tmp_path / "adapter")
    assert load(tmp_path / "adapter", tiny_base).model.adapters.names == ("default",)
    write({**content["base"], "colour": "red"})
    with pytest.raises(ModelError, match=r"names its base by unknown settings \(.*'colour'\)"):
        load(tmp_path / "adapter")
    write({**content["base"], "precision": "int3"})
    with pytest.raises(ModelError, match="precision is 'int3'; choose fp32 or bf16"):
        load(tmp_path / "adapter")
    write({**content["base"], "decoder": str(tmp_path / "gone")})
    with pytest.raises(ModelError, match=r"there is no folder .*gone"):
        load(tmp_path / "adapter")


def test_a_tower_read_otherwise_is_refused(tiny_system, tiny_base, tmp_path):
    """It would fit: the projector does not depend on the number of class tokens."""
    tiny_system().model.adapters.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        ModelError, match=r"was trained with tower_every 2, not 1; set base\.tower_every to 2"
    ):
        load(tmp_path / "adapter", replace(tiny_base, tower_every=1))


def test_another_base_is_refused(tiny_system, base, tmp_path):
    tiny_system().model.adapters.save_pretrained(tmp_path / "adapter")
    path = Path(base.decoder) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="was made for another decoder"):
        load(tmp_path / "adapter", base)


def test_a_tokenizer_of_another_decoder_is_refused(base):
    path = Path(base.decoder) / "config.json"
    content = {**json.loads(path.read_text()), "vocab_size": 800}
    path.write_text(json.dumps(content))
    weights = Path(base.decoder) / "model.safetensors"
    tensors = load_file(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:800].clone()
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"has \d+ pieces, but the decoder in .* embeds 800; name the tokenizer"
    ):
        build_base(base)


def test_a_smaller_tokenizer_may_be_named(base, tmp_path):
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 20), model_writer=made, vocab_size=10, minloglevel=9
    )
    path = tmp_path / "other.model"
    path.write_bytes(made.getvalue())
    system = build_base(replace(base, tokenizer=str(path)))
    assert system.tokenizer.path == path
    assert system.digests["tokenizer_digest"] != build_base(base).digests["tokenizer_digest"]


def test_a_tower_without_weights_and_an_odd_precision(tiny_base):
    with pytest.raises(ModelError, match="'ViT-B-32' brings no weights"):
        build_base(replace(tiny_base, tower="ViT-B-32", tower_every=3))
    with pytest.raises(ModelError, match="precision is 'fp8'; choose fp32 or bf16"):
        BaseSettings(precision="fp8")


@pytest.mark.parametrize("placement", ["attn", "both"])
def test_digests_do_not_change_by_attaching_or_training(tiny_base, batch, placement):
    bare = build_base(tiny_base)
    system = build_new(tiny_base, MMAConfig(placement=placement))
    assert system.digests == bare.digests
    optimizer = torch.optim.AdamW(system.model.adapters.trainable_parameters().values(), lr=0.1)
    system.model.train()
    system.model.loss(batch).backward()
    optimizer.step()
    for name, value in current_digests(system.model).items():
        assert value == bare.digests[name], name


def test_every_changed_weight_changes_a_digest(tiny_base):
    system = build_new(tiny_base, MMAConfig())
    declared = {id(p) for p in system.model.adapters.trainable_parameters().values()}
    before = current_digests(system.model)
    for name, parameter in system.model.named_parameters():
        if id(parameter) in declared:
            continue
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        part = "tower_digest" if name.startswith("tower.") else "base_digest"
        assert {key for key, value in current_digests(system.model).items() if value != before[key]} == {part}
        with torch.no_grad():
            parameter.copy_(kept)
    assert current_digests(system.model) == before


def test_digests_see_names_shapes_and_types():
    one = torch.arange(4.0)
    same = digest([("a", one), ("b", one)])
    assert digest([("b", one), ("a", one)]) == same  # the order of the names, not of arrival
    others = [("a", one.view(2, 2)), ("c", one), ("a", one.view(torch.int32))]
    assert len({same, *(digest([other, ("b", one)]) for other in others)}) == 4
    assert digest([("a", one.view(2, 2).T)]) == digest([("a", one.view(2, 2).T.contiguous())])


def test_identity_is_what_the_folder_needs(tiny_base):
    identity = build_base(tiny_base).model.adapters.identity
    assert identity["base"] == asdict(
        replace(tiny_base, tokenizer=str(Path(tiny_base.decoder) / "tokenizer.model"))
    )
    assert identity["template"] == "lavin"
    assert identity["preprocess"]["size"] == 16
    assert list(identity["preprocess"]["mean"]) == [0.5, 0.5, 0.5]
    assert json.dumps(identity)


@pytest.mark.parametrize("tower", ["token", "modality", "none"])
def test_bf16_forward_and_backward_with_fp32_trainables(tiny_base, batch, tower):
    system = build_new(replace(tiny_base, precision="bf16"), MMAConfig(placement="both", tower=tower))
    trained = system.model.adapters.trainable_parameters()
    declared = {id(p) for p in trained.values()}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in system.model.parameters() if id(p) not in declared} == {torch.bfloat16}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    system.model.train()
    losses = []
    for _ in range(5):
        loss = system.model.loss(batch)
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert system.model(batch).dtype == torch.float32


def test_bf16_is_close_to_fp32(tiny_base, batch):
    with torch.no_grad():
        exact = build_base(tiny_base).model(batch)
        rounded = build_base(replace(tiny_base, precision="bf16")).model(batch)
    assert 0 < ((rounded - exact).abs().max() / exact.abs().max()).item() < 0.05
