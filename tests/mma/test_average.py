"""Averages of adapter folders: what they hold, where they are exact by computation, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mma import AdapterError, LoraConfig
from mma import folder as adapter_folder
from mma.average import average, exactness
from mma.folder import CARD, CONFIG, TENSORS
from models.build import build_base

SITE = "tower.visual.transformer.resblocks.0.ln_1"
LINEAR = (".up", ".up_bias", "projector.up.weight", "projector.up.bias")


@pytest.fixture
def save(tiny_system, tmp_path):
    """Saves an adapter whose tensors of these endings are drawn anew with a seed; the others are shared."""
    model = tiny_system().model
    start = {name: p.detach().clone() for name, p in model.adapters.trainable_parameters().items()}

    def saved(name: str, seed: int, endings: tuple[str, ...] = LINEAR, **provenance: object) -> Path:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.adapters.trainable_parameters().items():
                drawn = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(drawn if key.endswith(endings) else start[key])
        model.adapters.save_pretrained(tmp_path / name, provenance)
        return tmp_path / name

    return saved


@pytest.fixture
def compute(tiny_base):
    """What the adapter in a folder computes at a tower site, and in the projector, for fixed inputs."""
    x, features = (
        torch.randn(shape, generator=torch.Generator().manual_seed(5)) for shape in ((3, 5, 32), (2, 2, 32))
    )

    def computed(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
        model = build_base(tiny_base).model.eval()
        model.adapters.load_adapter(folder)
        with torch.no_grad():
            return model.get_submodule(SITE)(x), model.adapters.part("projector")(features)

    return computed


def edit(folder: Path, **changes: object) -> None:
    content = {**json.loads((folder / CONFIG).read_text()), **changes}
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


def test_a_mean_of_up_projections_is_the_mean_of_what_the_adapters_compute(save, compute, tmp_path):
    folders, weights = [save("a", 1), save("b", 2), save("c", 3)], [0.5, 0.2, 0.3]
    assert average(folders, tmp_path / "mean", weights) is None
    outputs = [compute(folder) for folder in folders]
    for index, mean in enumerate(compute(tmp_path / "mean")):
        expected = sum(weight * output[index] for weight, output in zip(weights, outputs, strict=True))
        assert torch.allclose(mean, expected, atol=1e-5)
        assert not torch.allclose(mean, outputs[0][index], atol=1e-2)


def test_a_sum_of_up_projections_adds_the_sum_of_what_the_adapters_add(tiny_base, save, compute, tmp_path):
    folders, weights = [save("a", 1), save("b", 2)], [1.0, 0.7]
    assert average(folders, tmp_path / "sum", weights, weighted_sum=True) is None
    model = build_base(tiny_base).model
    x = torch.randn((3, 5, 32), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        bare = model.get_submodule(SITE)(x)
    added = [compute(folder)[0] - bare for folder in folders]
    assert torch.allclose(compute(tmp_path / "sum")[0] - bare, added[0] + 0.7 * added[1], atol=1e-5)


@pytest.mark.parametrize(
    ("endings", "message"),
    [
        (("down.weight",), r"differ in down \(7 tensors, multiplied with up\);"),
        (("router.weight", "router.bias"), r"differ in router \(12 tensors, in a softmax\);"),
        (("",), r"differ in down \(14 .*\), modality \(1 tensors, read by the routers\), router \(12"),
    ],
)
def test_where_other_tensors_differ_it_is_no_mean_and_says_so(save, compute, tmp_path, endings, message):
    folders = [save("a", 1, (*LINEAR, *endings)), save("b", 2, (*LINEAR, *endings))]
    sentence = average(folders, tmp_path / "mean")
    assert re.search(message, sentence)
    assert "\n" not in sentence
    outputs = [compute(folder)[0] for folder in folders]
    assert not torch.allclose(compute(tmp_path / "mean")[0], (outputs[0] + outputs[1]) / 2, atol=1e-3)
    description = adapter_folder.read_description(tmp_path / "mean")
    assert description["provenance"]["exact"] is False
    assert "weighted sum of their tensors" in sentence


def test_every_tensor_is_the_weighted_mean(save, tmp_path):
    folders = [save("a", 1, ("",)), save("b", 2, ("",))]
    average(folders, tmp_path / "mean", [0.25, 0.75])
    a, b, mean = (load_file(folder / TENSORS) for folder in (*folders, tmp_path / "mean"))
    assert mean.keys() == a.keys()
    for name, tensor in mean.items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, 0.25 * a[name] + 0.75 * b[name], atol=1e-6), name


def test_without_weights_all_weigh_the_same_and_shared_tensors_keep_their_bits(save, tmp_path):
    folders = [save(str(seed), seed) for seed in range(3)]
    average(folders, tmp_path / "mean")
    tensors = [load_file(folder / TENSORS) for folder in (*folders, tmp_path / "mean")]
    for name, mean in tensors[3].items():
        if name.endswith(LINEAR):
            assert torch.allclose(
                mean, (tensors[0][name] + tensors[1][name] + tensors[2][name]) / 3, atol=1e-6
            )
        else:
            assert torch.equal(mean, tensors[0][name])


def test_the_mean_is_loaded_as_any_adapter_and_tells_where_it_comes_from(save, tiny_base, tmp_path):
    shared = {"recipe": {"lr": 1}, "scores": {"loss": 0.5}}
    folders = [save("a", 1, ("",), step=10, **shared), save("b", 2, ("",), step=20, **shared)]
    sentence = average(folders, tmp_path / "mean", [0.5, 0.5])
    build_base(tiny_base).model.adapters.load_adapter(tmp_path / "mean")
    first = adapter_folder.read_description(folders[0])
    description = adapter_folder.read_description(tmp_path / "mean")
    assert description["provenance"] == {
        "recipe": {"lr": 1},
        "made": "weighted mean of 2 adapters",
        "sources": [str(folder) for folder in folders],
        "weights": [0.5, 0.5],
        "exact": sentence is None,
    }
    # It is evaluated from the tensors, on the base.
    assert description.keys() == first.keys() - {"routing_table"}
    kept = description.keys() - {"provenance"}
    assert {key: description[key] for key in kept} == {key: first[key] for key in kept}
    card = (tmp_path / "mean" / CARD).read_text()
    assert "weighted mean of 2 adapters" in card
    assert "loss" not in card


def test_half_precision_is_averaged_in_full(save, tmp_path):
    folders = [save("a", 1), save("b", 2)]
    for folder in folders:
        edit_tensors(folder, lambda tensors: tensors.update({k: t.bfloat16() for k, t in tensors.items()}))
    average(folders, tmp_path / "mean")
    a, b, mean = (load_file(folder / TENSORS) for folder in (*folders, tmp_path / "mean"))
    name = f"{SITE}.up"
    assert torch.equal(mean[name], (a[name].double() + b[name].double()).div(2).float())
    assert mean[f"{SITE}.down.weight"].dtype == torch.float32


def test_the_base_may_have_lain_elsewhere_and_a_later_setting_be_missing(save, tmp_path):
    folders = [save("a", 1), save("b", 2)]
    base = json.loads((folders[1] / CONFIG).read_text())["base"]
    edit(folders[1], base={**base, "decoder": "/elsewhere"}, layers=None, format_version="1.0")
    average(folders, tmp_path / "mean")


REFUSALS = {
    "rank": ({"r": 4}, r"a and .*b differ in r \(8 and 4\); average adapters of one base and the same"),
    "base": ({"base_digest": "0" * 64}, r"a and .*b differ in base_digest \('\w+\.\.\. .* and '0+\.\.\. "),
    "kind": ({"peft_type": "BOTTLENECK"}, r"differ in peft_type \('MMA' and 'BOTTLENECK'\)"),
    "slots": ({"base": {"tower_every": 9}}, r"differ in base\.tower_every \(2 and 9\)"),
    "added": ({"warmth": 3}, r"differ in warmth \(None and 3\)"),
    "several": ({"r": 4, "scale": 2.0}, r"differ in r \(8 and 4\), scale \(1\.0 and 2\.0\);"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_other_settings_are_refused(save, tmp_path, name):
    changes, message = REFUSALS[name]
    folders = [save("a", 1), save("b", 2)]
    edit(folders[1], **changes)
    refused(folders, tmp_path, message)


def refused(folders, tmp_path, message, *weights, **options):
    with pytest.raises(AdapterError, match=message) as caught:
        average(folders, tmp_path / "mean", *weights, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("turned", [False, True])
def test_other_tensors_are_refused(save, tmp_path, turned):
    folders = [save("a", 1), save("b", 2)]
    edit_tensors(folders[1], lambda tensors: tensors.pop("modality.weight"))
    refused(
        folders[::-1] if turned else folders, tmp_path, r"b has no tensor modality\.weight, .*a has one; "
    )
    edit_tensors(folders[1], lambda tensors: tensors.update({"modality.weight": torch.zeros(3, 32)}))
    refused(folders, tmp_path, r"modality\.weight is \(2, 32\) in .*a and \(3, 32\) in .*b; average")


def test_tensors_that_are_no_finite_floats_are_refused(save, tmp_path):
    folders = [save("a", 1), save("b", 2)]
    edit_tensors(folders[1], lambda tensors: tensors["modality.weight"].fill_(float("nan")))
    refused(folders, tmp_path, r"modality\.weight in .*b is not finite")
    zeros = torch.zeros(2, 32, dtype=torch.int64)
    edit_tensors(folders[1], lambda tensors: tensors.update({"modality.weight": zeros}))
    refused(folders, tmp_path, r"modality\.weight in .*b is of torch\.int64")


def test_requests_that_make_no_sense_are_refused(save, tmp_path):
    folders = [save("a", 1), save("b", 2)]
    refused(folders[:1], tmp_path, r"there are 1 adapters to average; name two or more")
    refused([], tmp_path, r"there are 0 adapters to average; name two or more")
    refused(folders, tmp_path, r"there are 3 weights for 2 adapters; give one each", [0.5, 0.3, 0.2])
    refused(
        folders, tmp_path, r"the weights sum to 1\.5, a mean's to 1; change them, or ask for a", [1.0, 0.5]
    )
    refused(folders, tmp_path, r"the weight nan is not a finite number", [1.0, float("nan")])
    refused(
        folders,
        tmp_path,
        r"with these weights .* does not stay finite; lower",
        [1e39, 1.0],
        weighted_sum=True,
    )
    with pytest.raises(AdapterError, match=r"a is one of the adapters to average; choose another name"):
        average(folders, tmp_path / "x" / ".." / "a")
    refused([folders[0], tmp_path / "none"], tmp_path, r"none has no adapter_config\.json")


def test_exactness_of_tensors_alone():
    tensors = {"a.down.weight": torch.ones(2), "a.up": torch.ones(2), "a.up_bias": torch.ones(2)}
    assert exactness([tensors, {**tensors, "a.up": torch.zeros(2), "a.up_bias": torch.zeros(2)}]) is None
    lora = {"q.lora_A.weight": torch.ones(2), "q.lora_B.weight": torch.ones(2)}
    assert exactness([lora, {**lora, "q.lora_B.weight": torch.zeros(2)}]) is None
    sentence = exactness([lora, {**lora, "q.lora_A.weight": torch.zeros(2)}])
    assert sentence is not None
    assert sentence.startswith(
        "not exact: the adapters also differ in lora_A (1 tensors, multiplied with lora_B);"
    )
    # A site may be called like a tensor: the last part of the name decides.
    norm = {"net.up.norm.down.weight": torch.ones(2)}
    assert exactness([norm, {"net.up.norm.down.weight": torch.zeros(2)}]) is not None


def lora_folder(folder: Path, seed: int, targets: list[str]) -> Path:
    """A LoRA as PEFT writes it."""
    generator = torch.Generator().manual_seed(seed)
    name = "base_model.model.layers.0.self_attn.q_proj"
    folder.mkdir()
    save_file(
        {
            f"{name}.lora_A.weight": torch.ones(2, 4),
            f"{name}.lora_B.weight": torch.randn(4, 2, generator=generator),
        },
        folder / TENSORS,
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets, "peft_version": seed}
    (folder / CONFIG).write_text(json.dumps(settings))
    return folder


def test_folders_that_peft_wrote_stay_such_folders(tmp_path):
    targets = ["q_proj", "v_proj"]
    folders = [lora_folder(tmp_path / "a", 1, targets), lora_folder(tmp_path / "b", 2, targets[::-1])]
    assert average(folders, tmp_path / "mean") is None
    assert {path.name for path in (tmp_path / "mean").iterdir()} == {CONFIG, TENSORS, CARD}
    assert adapter_folder.read_description(tmp_path / "mean") == adapter_folder.read_description(folders[0])
    a, b, mean = (load_file(folder / TENSORS) for folder in (*folders, tmp_path / "mean"))
    for name, tensor in mean.items():
        assert torch.allclose(tensor, (a[name] + b[name]) / 2)
    assert "weighted mean of 2 adapters" in (tmp_path / "mean" / CARD).read_text()


def test_a_lora_with_parts_is_averaged_in_all_its_files(tiny_base, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        adapters = build_base(tiny_base).model.adapters
        adapters.add_adapter("lora", LoraConfig(r=2))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapters.trainable_parameters().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        adapters.save_pretrained(folder, {"seed": 3, "step": seed})
    sentence = average(folders, tmp_path / "mean")
    assert "lora_A" in sentence
    assert "down (2 tensors, multiplied with up)" in sentence
    held = []
    for folder in (*folders, tmp_path / "mean"):
        adapters = build_base(tiny_base).model.adapters
        adapters.load_adapter(folder)
        held.append(adapters.trainable_parameters())
    for name, mean in held[2].items():
        assert torch.allclose(mean, (held[0][name] + held[1][name]) / 2, atol=1e-6), name
    ours = adapter_folder.read_json(tmp_path / "mean" / "mma_config.json")
    assert ours["provenance"]["seed"] == 3
    assert ours["provenance"]["sources"] == [str(folder) for folder in folders]
    assert "provenance" not in adapter_folder.read_description(tmp_path / "mean")
