"""Adapters on the Hub: found and published through huggingface_hub, against a small Hub on this machine."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from mma import AdapterError, LoraConfig
from mma.folder import CARD, CONFIG, TENSORS, read_description
from mma.hub import find, push_to_hub
from mma.peft_folder import OUR_CONFIG, OUR_TENSORS
from models.build import build_base
from tests.mma.hub_server import TOKEN, Hub

# huggingface_hub sends large files in a way its HTTP library would have otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub which huggingface_hub takes for the real one, and an empty cache."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # that storage has a protocol of its own
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()  # what it keeps open
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def saved(tiny_system, tmp_path) -> Path:
    """An adapter folder of random values, full of paths of this machine."""
    provenance = {"recipe": {"data": {"root": tmp_path / "my data"}}, "note": f"from {tmp_path}/notes.txt"}
    tiny_system().model.adapters.save_pretrained(
        tmp_path / "saved", json.loads(json.dumps(provenance, default=str))
    )
    return tmp_path / "saved"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(message: str, ask, *arguments, **named) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        ask(*arguments, **named)
    assert "\n" not in str(caught.value)


def test_a_published_adapter_is_found_and_answers_the_same(hub, saved, tiny_system, tiny_base, batch):
    url = push_to_hub(saved, "owner/name", commit_message="the first")
    assert url == f"{hub.url}/owner/name"
    repository = hub.repositories["owner/name"]
    assert repository.private
    assert repository.messages == ["", "the first"]
    assert repository.files.keys() == {".gitattributes", CONFIG, TENSORS, CARD}
    repository.commit({**repository.files, "optimizer.bin": b"never asked for"})
    found = find("owner/name")
    assert files_of(found).keys() == {CONFIG, TENSORS, CARD}
    assert (found / TENSORS).read_bytes() == (saved / TENSORS).read_bytes()
    system = build_base(tiny_base)
    system.model.adapters.load_adapter(found)
    with torch.no_grad():
        assert torch.equal(system.model(batch), tiny_system().model(batch))


def test_no_place_of_this_machine_is_published(hub, saved, tmp_path, tiny_base):
    before = files_of(saved)
    assert str(tmp_path).encode() in before[CONFIG]
    assert str(Path(tiny_base.decoder).parent).encode() in before[CONFIG]
    (saved / CARD).write_text(f"Mine.\n\n```\ncp {tmp_path}/x `{tmp_path}/y`\n```\n[a](https://a.org/b/c)\n")
    push_to_hub(saved, "owner/name", private=False)
    repository = hub.repositories["owner/name"]
    assert not repository.private
    content = json.loads(repository.files[CONFIG])
    local = json.loads(before[CONFIG])
    assert content["base"] == {
        **local["base"],
        "decoder": "decoder",
        "tower": "tower",
        "tokenizer": "tokenizer.model",
    }
    assert content["provenance"] == {"recipe": {"data": {"root": "my data"}}, "note": "from notes.txt"}
    kept = content.keys() - {"base", "provenance"}
    assert {key: content[key] for key in kept} == {key: local[key] for key in kept}
    assert repository.files[CARD].decode() == "Mine.\n\n```\ncp x `y`\n```\n[a](https://a.org/b/c)\n"
    (saved / CARD).unlink()
    push_to_hub(saved, "owner/name")
    assert repository.files[CARD].startswith(b"---\nlibrary_name: mma\n")
    assert not any(
        b"/tmp" in content or str(tmp_path).encode() in content for content in repository.files.values()
    )
    assert (saved / CONFIG).read_bytes() == before[CONFIG]


def test_a_path_that_is_there_wins_and_nothing_is_asked(hub, saved, tmp_path):
    push_to_hub(saved, "owner/name")
    hub.requests.clear()
    (tmp_path / "owner").mkdir()
    saved.rename(tmp_path / "owner/name")
    for path in ("owner/name", Path("owner/name"), str(tmp_path / "owner/name")):
        assert find(path) == Path(path)
        assert find(path, revision="main") == Path(path)
    assert hub.requests == []


def test_revisions(hub, saved, tiny_system):
    push_to_hub(saved, "owner/name")
    first = hub.repositories["owner/name"].newest
    tiny_system(r=4).model.adapters.save_pretrained(saved)
    push_to_hub(saved, "owner/name")
    assert read_description(find("owner/name"))["r"] == 4
    assert read_description(find("owner/name", revision="main"))["r"] == 4
    assert read_description(find(f"owner/name@{first}"))["r"] == 8
    assert find(Path("owner/name"), revision=first) == find(f"owner/name@{first}")


def test_where_the_hub_does_not_answer_the_cache_is_asked(hub, saved, monkeypatch):
    push_to_hub(saved, "owner/name")
    found = find("owner/name")
    hub.instead = (503, {}, b"")
    assert find("owner/name") == found
    hub.instead = None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    hub.requests.clear()
    assert find("owner/name") == found
    refused("owner/other cannot be fetched .*: HF_HUB_OFFLINE is set, .*; unset it", find, "owner/other")
    refused("owner/name cannot be written .*: HF_HUB_OFFLINE is set", push_to_hub, saved, "owner/name")
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    huggingface_hub.close_session()
    assert find("owner/name") == found
    refused(r"refused; check the network and HF_ENDPOINT", find, "owner/other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "runs/x/adapter",
            "there is no folder 'runs/x/adapter', and it is no repository id .*; correct the path",
        ),
        ("./runs/x", "there is no folder './runs/x', and it is no repository id"),
        ("adapter", "there is no folder 'adapter', and it is no repository id"),
        ("a\nb/c", r"there is no folder 'a\\nb/c', and it is no"),
        (
            "runs/x",
            "no folder runs/x here, and the repository runs/x cannot be fetched .*: there is none that you",
        ),
        ("owner/gated", "owner/gated cannot be fetched .*: its owner has to let you in; ask"),
        ("owner/name@v2", "owner/name cannot be fetched .*: it has no such revision; name another"),
        ("owner/name@", "'' is no revision of owner/name; name a branch"),
        ("owner/name@../../x", r"'\.\./\.\./x' is no revision of owner/name"),
        (f"owner/{'n' * 99}", "cannot be fetched"),
        ("owner/name", f"the repository owner/name has no {CONFIG} and no {TENSORS}; name one of an adapter"),
    ],
)
def test_what_cannot_be_found_is_one_line(hub, name, message):
    hub.add("owner/gated", gated=True)
    hub.add("owner/name")
    refused(message, find, name)


def test_two_revisions_are_one_too_many(hub):
    refused("owner/name@v1 and 'v2' both name a revision", find, "owner/name@v1", revision="v2")
    assert hub.requests == []


def test_a_private_repository_is_for_those_who_may(hub, saved, monkeypatch):
    push_to_hub(saved, "owner/name")
    monkeypatch.delenv("HF_TOKEN")
    refused("there is none that you may see; correct the name, or set HF_TOKEN", find, "owner/name")
    refused(
        "owner/name cannot be written .*: access is refused; set HF_TOKEN", push_to_hub, saved, "owner/name"
    )
    assert push_to_hub(saved, "owner/name", token=TOKEN)


@pytest.mark.parametrize("status", [200, 401, 403, 404, 500])
@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"{}", b'{"id": "owner/name", "sha": null}'])
def test_what_is_no_hub_is_one_line(hub, saved, status, body):
    hub.instead = (status, {}, body)
    refused(
        "there is no folder owner/name here, and the repository owner/name cannot be fetched",
        find,
        "owner/name",
    )
    refused("the repository owner/name cannot be written", push_to_hub, saved, "owner/name")


def test_a_full_disk_is_named(hub, saved, monkeypatch):
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    refused("the disk is full; free some space, or set HF_HOME", find, "owner/name")


def test_what_is_no_whole_adapter_is_not_published(hub, saved, tmp_path):
    refused("'name' is no repository id; name it owner/name", push_to_hub, saved, "name")
    refused(f"has no {CONFIG}; name an adapter folder", push_to_hub, tmp_path, "owner/name")
    whole = (saved / TENSORS).read_bytes()
    (saved / TENSORS).write_bytes(whole[:-1])
    refused("it may be truncated", push_to_hub, saved, "owner/name")
    (saved / TENSORS).unlink()
    refused(f"has no {TENSORS}; the folder is incomplete", push_to_hub, saved, "owner/name")
    (saved / TENSORS).write_bytes(whole)
    (saved / CARD).write_bytes(b"\xff")
    refused(f"{CARD} cannot be read .*; remove it to get a new one", push_to_hub, saved, "owner/name")
    assert hub.requests == []


def test_a_card_that_the_hub_does_not_take_is_one_line(hub, saved):
    (saved / CARD).write_text("---\nlicense: x\n---\n")
    refused(
        'Invalid metadata in README.md. - "license" must be one of those', push_to_hub, saved, "owner/name"
    )
    assert len(hub.repositories["owner/name"].commits) == 1


def test_a_lora_comes_with_its_parts_and_leaves_none_behind(hub, saved, tiny_base, tmp_path):
    adapters = build_base(tiny_base).model.adapters
    adapters.add_adapter("default", LoraConfig(r=2, projector_hidden=4))
    adapters.save_pretrained(tmp_path / "lora")
    push_to_hub(tmp_path / "lora", "owner/name")
    found = find("owner/name")
    assert files_of(found).keys() == {CONFIG, TENSORS, CARD, OUR_CONFIG, OUR_TENSORS}
    assert json.loads((found / CONFIG).read_text())["base_model_name_or_path"] == "decoder"
    assert json.loads((found / OUR_CONFIG).read_text())["base"]["tower"] == "tower"
    build_base(tiny_base).model.adapters.load_adapter(found)
    push_to_hub(saved, "owner/name")
    assert files_of(find("owner/name")).keys() == {CONFIG, TENSORS, CARD}


def test_importing_loads_nothing_and_the_environment_is_heeded(hub, saved, tmp_path):
    push_to_hub(saved, "owner/name")
    hub.requests.clear()
    program = (
        "import sys, mma.hub\n"
        "print(sorted({'huggingface_hub.hf_api', 'httpx2', 'httpx', 'requests'} & sys.modules.keys()))\n"
        "print(mma.hub.find('owner/name'))\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    loaded, found = done.stdout.splitlines()
    assert loaded == "[]"
    assert Path(found).is_relative_to(tmp_path / "home")
    assert (Path(found) / TENSORS).read_bytes() == (saved / TENSORS).read_bytes()
