"""Judges: an endpoint that is late, broken, limited or refusing; the cache; estimates; recorded replies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path

import pytest
from PIL import Image

from eval.errors import EvalError
from eval.judge import Estimate, FunctionJudge, Prices, RecordedJudge, Request, estimate
from eval.judge_http import Endpoint, HttpJudge
from tests.eval.judge_server import Act, Behaviour, judge_server

KEY = "sk-not-a-key-123"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def request(text: str, draw: int = 0) -> Request:
    return Request(({"role": "user", "content": text},), 0.2, 16, draw, f"id of {text}")


def requests(count: int) -> list[Request]:
    return [request(f"question {number}") for number in range(count)]


class Sleeps(list[float]):
    """Notes how long somebody would have slept."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def make(url: str, folder: Path, sleep: Sleeps | None = None, **how: object) -> HttpJudge:
    endpoint = Endpoint(url, "judge-1", folder / "cache", key="TEST_JUDGE_KEY", **how)  # type: ignore[arg-type]
    return HttpJudge(endpoint, announce=lambda found: None, sleep=Sleeps() if sleep is None else sleep)


def echo(number: int, text: str) -> Act:
    """Replies with the question; early questions take longer, so that replies come in another order."""
    return Act(text=f"reply to {text}", late=0.05 if text in ("question 0", "question 1") else 0.0)


def replies(count: int) -> list[str]:
    return [f"reply to question {number}" for number in range(count)]


def misbehaving(number: int, text: str) -> Act:
    """Every second call goes wrong in another way."""
    faults = [
        Act(status=500),
        Act(body=b'{"choices": [{"mess'),
        Act(status=429, headers={"Retry-After": "3"}),
        Act(drop=True),
        Act(body=b"[]"),
        Act(body=b'{"choices": [{"message": {"content": null}}]}'),
        Act(status=503, headers={"Retry-After": "soon"}),
        Act(late=0.7, status=504),  # beyond the timeout
    ]
    return faults[number // 2 % len(faults)] if number % 2 else echo(number, text)


def test_replies_come_in_the_order_of_the_requests_and_several_at_once(tmp_path: Path) -> None:
    with judge_server(lambda number, text: Act(text=f"reply to {text}", late=0.05)) as server:
        assert make(server.url, tmp_path, connections=3).ask(requests(6)) == replies(6)
    assert server.most_at_once == 3
    call = server.calls[0]
    assert call["path"] == "/v1/chat/completions"
    assert (call["model"], call["temperature"], call["max_tokens"]) == ("judge-1", 0.2, 16)
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_a_run_completes_whatever_the_judge_does_and_nothing_is_judged_twice(tmp_path: Path) -> None:
    sleeps = Sleeps()
    with judge_server(misbehaving) as server:
        judge = make(server.url, tmp_path, sleeps, timeout=0.3, attempts=20)
        assert judge.ask(requests(12)) == replies(12)
        assert set(server.judged.values()) == {1}
        calls = len(server.calls)
        assert calls > 20
        # the second run is free, in another process too
        again = make(server.url, tmp_path, sleeps)
        assert again.estimate(requests(12)) == Estimate(0, 12, 0, 0)
        assert again.ask(requests(12)) == replies(12)
        assert len(server.calls) == calls
    assert any(pause >= 3 for pause in sleeps)  # as the rate limit asked


def test_waits_grow_and_half_of_each_is_random(tmp_path: Path) -> None:
    sleeps = Sleeps()
    with (
        judge_server(lambda number, text: Act(status=502)) as server,
        pytest.raises(
            EvalError, match=r"no reply to question 'id of question 0' after 5 attempts .*HTTP status 502"
        ),
    ):
        make(server.url, tmp_path, sleeps, attempts=5).ask(requests(1))
    assert len(server.calls) == 5
    assert len(sleeps) == 4
    assert all(longest / 2 <= pause <= longest for pause, longest in zip(sleeps, (1, 2, 4, 8), strict=True))


def test_a_date_in_retry_after_is_honoured(tmp_path: Path) -> None:
    def limited(number: int, text: str) -> Act:
        later = {"Retry-After": formatdate(time.time() + 60, usegmt=True)}
        return Act(status=429, headers=later) if number == 1 else echo(number, text)

    sleeps = Sleeps()
    with judge_server(limited) as server:
        make(server.url, tmp_path, sleeps).ask(requests(1))
    assert 50 < sleeps[0] <= 60


REFUSALS = {
    401: r"the judge refuses the key \(HTTP status 401\).*environment variable TEST_JUDGE_KEY",
    403: r"the judge refuses the key \(HTTP status 403\)",
    404: r"nothing there answers for the model 'judge-1' \(HTTP status 404\); check the address",
    400: r"the judge refuses the request \(HTTP status 400\): no such (?:.*) key \(key\) here",
    302: r"the judge refuses the request \(HTTP status 302\)",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_ends_it_at_once_without_showing_the_key(status: int, tmp_path: Path) -> None:
    body = f"no such\n parameter; key {KEY} here".encode()
    act = Act(status=status, body=body, headers={"Location": "http://127.0.0.1:9/elsewhere"})
    with (
        judge_server(lambda number, text: act) as server,
        pytest.raises(EvalError, match=REFUSALS[status]) as caught,
    ):
        make(server.url, tmp_path).ask(requests(1))
    assert len(server.calls) == 1
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_there(tmp_path: Path) -> None:
    with judge_server(echo) as server:
        pass
    with pytest.raises(EvalError, match=r"no reply .* after 2 attempts \(the last: no connection: .*refused"):
        make(server.url, tmp_path, attempts=2).ask(requests(1))


def test_what_was_judged_before_an_error_is_kept(tmp_path: Path) -> None:
    def breaking(number: int, text: str) -> Act:
        return Act(status=401) if number > 4 else echo(number, text)

    with judge_server(breaking) as server, pytest.raises(EvalError, match="refuses the key"):
        make(server.url, tmp_path, connections=1).ask(requests(12))
    with judge_server(echo) as second:
        assert make(second.url, tmp_path).ask(requests(12)) == replies(12)
    assert len(server.calls) < 12
    assert len(second.calls) == 12 - 4


CHILD = """
import sys
from pathlib import Path
from tests.eval.test_judge import make, requests
make(sys.argv[1], Path(sys.argv[2]), connections=2).ask(requests(8))
"""


def test_nothing_is_judged_twice_after_a_kill(tmp_path: Path) -> None:
    stuck: Behaviour = lambda number, text: Act(text=f"reply to {text}", late=0.0 if number <= 4 else 3600.0)  # noqa: E731
    root = Path(__file__).parents[2]
    with judge_server(stuck) as server:
        command = [sys.executable, "-c", CHILD, server.url, str(tmp_path)]
        child = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
        try:
            deadline = time.monotonic() + 60
            while len(server.calls) < 6 and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    assert len(server.calls) == 6
    with judge_server(echo) as second:
        assert make(second.url, tmp_path).ask(requests(8)) == replies(8)
    # a call that was under way at the kill is asked again: its reply never came
    assert len(second.calls) == 4
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_equal_requests_are_asked_once_and_draws_apart(tmp_path: Path) -> None:
    same = [request("a"), request("a"), request("a", draw=1)]
    with judge_server(lambda number, text: Act(text=str(number))) as server:
        first, second, third = make(server.url, tmp_path, connections=1).ask(same)
    assert len(server.calls) == 2
    assert first == second != third


def test_other_models_and_settings_are_other_requests() -> None:
    one = request("a")
    others = [
        request("b"),
        request("a", draw=1),
        Request(one.messages, 0.0, 16),
        Request(one.messages, 0.2, 17),
    ]
    assert len({one.digest("m"), one.digest("n"), *(other.digest("m") for other in others)}) == 6
    assert one.digest("m") == Request(one.messages, 0.2, 16, id="another").digest("m")


def test_a_broken_file_in_the_cache_is_named(tmp_path: Path) -> None:
    with judge_server(echo) as server:
        judge = make(server.url, tmp_path)
        judge.ask(requests(1))
        (path,) = (tmp_path / "cache").rglob("*.json")
        kept = json.loads(path.read_text(encoding="utf-8"))
        assert (kept["reply"], kept["model"], kept["messages"][0]["content"]) == (
            *replies(1),
            "judge-1",
            "question 0",
        )
        path.write_text("{}", encoding="utf-8")
        with pytest.raises(EvalError, match="a kept reply of the judge: has no 'reply'"):
            judge.ask(requests(1))


def test_an_estimate_comes_before_the_first_call(tmp_path: Path) -> None:
    shown: list[tuple[Estimate, int]] = []
    with judge_server(echo) as server:
        prices = Prices(10.0, 30.0)
        endpoint = Endpoint(server.url, "judge-1", tmp_path, key="TEST_JUDGE_KEY", prices=prices)
        judge = HttpJudge(endpoint, announce=lambda found: shown.append((found, len(server.calls))))
        judge.ask([request("x" * 400)])
        judge.ask([request("x" * 400), request("y" * 800)])
    first, second = shown
    assert first == (Estimate(1, 0, 108, 16, (108 * 10 + 16 * 30) / 1e6), 0)
    assert second == (Estimate(1, 1, 208, 16, (208 * 10 + 16 * 30) / 1e6), 1)
    assert str(second[0]).startswith(
        "1 calls to the judge (1 replies are known already): about 208 tokens in"
    )


def red(folder: Path) -> Request:
    """A request with a picture."""
    Image.new("RGB", (4, 4), (200, 10, 10)).save(folder / "red.png")
    return Request(({"role": "user", "content": "What?"},), 0.0, 8, id="p", pictures=(folder / "red.png",))


def test_a_picture_is_sent_and_counted_but_not_kept(tmp_path: Path) -> None:
    shown = red(tmp_path)
    assert estimate([shown], 0).tokens_in == 809
    with judge_server(echo) as server:
        assert make(server.url, tmp_path).ask([shown]) == ["reply to What?"]
    text, part = server.calls[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    assert part["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    (path,) = (tmp_path / "cache").rglob("*.json")
    assert "base64" not in path.read_text(encoding="utf-8")


def test_another_picture_is_another_request(tmp_path: Path) -> None:
    shown = red(tmp_path)
    before = shown.digest("m")
    Image.new("RGB", (5, 4), (10, 200, 10)).save(tmp_path / "red.png")
    assert shown.digest("m") != before


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    shown = red(tmp_path)
    (tmp_path / "red.png").write_bytes(b"no picture")
    with (
        judge_server(echo) as server,
        pytest.raises(EvalError, match=r"red.png: cannot be read as a picture"),
    ):
        make(server.url, tmp_path).ask([shown])
    (tmp_path / "red.png").unlink()
    with pytest.raises(EvalError, match=r"red.png: cannot be read: No such file"):
        shown.digest("m")


def test_a_server_without_keys_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY")
    with judge_server(echo) as server:
        make(server.url, tmp_path).ask(requests(1))
    assert server.keys == [None]


@pytest.mark.parametrize("key", ["sk-\nX-Evil: 1", "sk-é"])
def test_a_key_that_cannot_be_sent(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", key)
    with pytest.raises(EvalError, match="environment variable TEST_JUDGE_KEY holds no key") as caught:
        make("http://127.0.0.1:9", tmp_path)
    assert key not in str(caught.value)


def test_an_address_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="'localhost:8000': not an address of a judge"):
        make("localhost:8000", tmp_path)


def test_recorded_replies_by_digest_and_by_question(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    known = request("question 1").digest("recorded")
    lines: list[dict[str, str]] = [
        {"id": "id of question 0", "reply": "first"},
        {"id": "id of question 0", "reply": "second"},
        {"digest": known, "reply": "by digest"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    judge = RecordedJudge(path)
    assert judge.ask([*requests(2), request("question 0")]) == ["first", "by digest", "second"]
    assert judge.estimate(requests(3)) == Estimate(0, 3, 0, 0)
    with pytest.raises(EvalError, match=r"no recorded reply number 3 for question 'id of question 0'"):
        judge.ask(requests(1))


def test_a_function_judges(tmp_path: Path) -> None:
    def answer(texts: list[str]) -> Sequence[str]:
        return [text.upper() for text in texts]

    judge = FunctionJudge("ours", answer)
    assert (judge.name, judge.ask(requests(2))) == ("ours", ["QUESTION 0", "QUESTION 1"])
    assert judge.estimate(requests(2)).calls == 2
    with pytest.raises(EvalError, match="ours: 0 answers to 1 requests"):
        FunctionJudge("ours", lambda texts: []).ask(requests(1))
    with pytest.raises(EvalError, match=r"reads text only, and question 'p' shows it a picture"):
        judge.ask([red(tmp_path)])
