"""What `prepare` says of complete, incomplete and broken sets, and `score NAME` of official answer files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.answer_files import for_scoring
from eval.benchmark import find
from eval.errors import EvalError
from eval.scores import Score
from tests.eval.benchmarks.short_answer_files import picture, write_jsonl
from tests.eval.test_end_to_end import make_set

LISTS = ("random", "popular", "adversarial")


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """One picture with a question in each list, all of them to be answered with yes."""
    name = "COCO_val2014_000000000001.jpg"
    picture(tmp_path / "val2014" / name)
    for split in LISTS:
        row = {"question_id": 1, "image": name, "text": "Is there a cat in the image?", "label": "yes"}
        write_jsonl(tmp_path / "coco" / f"coco_pope_{split}.json", [row])
    return tmp_path


def test_what_is_missing_and_where_it_is_published(pope: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pope / "coco" / "coco_pope_popular.json").unlink()
    assert main(["prepare", "pope", str(pope)]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "pope, coco:",
        "  coco/coco_pope_popular.json is missing; it is published at "
        "https://github.com/RUCAIBox/POPE at commit e3e39262, output/coco",
    ]
    assert printed.err.endswith("not the whole official set, see above\n")


def test_a_set_that_is_smaller_than_the_official_one(pope: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "pope", str(pope)]) == 2
    assert "3 questions, the official set has 8,910" in capsys.readouterr().out


def test_a_broken_picture(pope: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pope / "val2014" / "COCO_val2014_000000000001.jpg").write_bytes(b"nothing")
    assert main(["prepare", "pope", str(pope)]) == 2
    assert "is not a picture in a known format" in capsys.readouterr().out


def test_a_complete_split(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "scienceqa", str(root), "--split", "minitest"]) == 2
    assert "no split 'minitest'" in capsys.readouterr().out
    splits = json.loads((root / "pid_splits.json").read_text())
    (root / "pid_splits.json").write_text(json.dumps({**splits, "minitest": splits["half"]}))
    assert main(["prepare", "scienceqa", str(root), "--split", "minitest"]) == 0
    assert capsys.readouterr().out == "scienceqa, minitest: complete\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pop", "."], "there is no benchmark 'pop'; choose one of"),
        (["pope", "nowhere"], "nowhere: is no folder"),
        (["pope", ".", "--split", "val"], "there is no split 'val'; pope has coco"),
    ],
)
def test_prepare_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *words]) == 2
    assert message in capsys.readouterr().err


def test_score_of_official_answers(pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = (10_000_001, 20_000_001, 1)
    lines = [{"question_id": pid, "text": text} for pid, text in zip(ids, ("Yes", "No.", "yes"), strict=True)]
    write_jsonl(tmp_path / "answers.jsonl", lines)
    out = tmp_path / "scores.json"
    words = ["score", "pope", str(tmp_path / "answers.jsonl"), "--data", str(pope), "--json", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["benchmark"] == "pope" and content["version"] == 1
    assert content["scores"]["mean F1"]["value"] == pytest.approx(2 / 3)
    right = content["scores"]["random Accuracy"]
    assert (right["value"], right["low"], right["high"]) == (1, Score.of(1, 1).low, 1)
    assert content["marks"]["20000001"] == {"read": "no", "score": 0.0}
    assert "mean F1" in printed and printed.endswith(f"wrote {out}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b", "c"], "score: 2 files are named; name one"),
        (["pop", "b"], "there is no benchmark 'pop'"),
        (["pope", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_score_refuses(
    pope: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", *words, "--data", str(pope)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_score_of_llavas_answers_to_scienceqa(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(
        tmp_path / "a.jsonl", [{"question_id": "1", "text": "A"}, {"question_id": "2", "text": "dog"}]
    )
    assert main(["score", "scienceqa", str(tmp_path / "a.jsonl"), "--data", str(root)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split()[-1] == "12.50"  # of all eight: a missing answer is wrong there
    assert "unparsable answers: 7" in printed


def test_official_answers_are_compared(
    pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = (10_000_001, 20_000_001, 1)
    files = []
    for name, texts in (("a", ("Yes", "Yes", "yes")), ("b", ("No", "no", "Yes"))):
        files.append(str(tmp_path / f"{name}.jsonl"))
        rows = [{"question_id": pid, "text": text} for pid, text in zip(ids, texts, strict=True)]
        write_jsonl(Path(files[-1]), rows)
    assert main(["compare", "pope", *files, "--data", str(pope)]) == 0
    out = capsys.readouterr().out
    assert "only A right  2" in out and "p = 0.5 (exact, two-sided)" in out
    for words, message in (
        (["compare", "pope", *files], "files of pope are scored first; name its official files with --data"),
        (["compare", *files, "x", "y"], "4 words are given; name two files"),
        (["compare", files[0]], "1 words are given; name two files"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pope", "mme", "gqa", "vqav2", "textvqa", "mathvista", "llava_bench"])
def test_answers_are_scored_without_pictures(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_set(name, tmp_path / "set")
    benchmark = find(name)
    questions = benchmark.load(data, benchmark.splits[0], tmp_path / "unpacked")
    answers = tmp_path / f"answers{benchmark.suffix}"
    benchmark.write(answers, questions, {question.id: "Yes" for question in questions})
    for path in {image for question in questions for image in question.images}:
        path.unlink()
    with pytest.raises(EvalError, match="pictures"):
        benchmark.load(data, benchmark.splits[0], tmp_path / "unpacked")
    assert main(["score", name, str(answers), "--data", str(data)]) == 0
    assert "scores" in capsys.readouterr().out or benchmark.name != "llava_bench"


def test_a_set_that_was_published_for_scoring(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((root / "problems.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps({pid: row["answer"] for pid, row in rows.items()}))
    for row in rows.values():
        row["question"] = ""
        for field in ("task", "category", "skill"):
            del row[field]
    (root / "problems.json").write_text(json.dumps(rows))
    assert main(["score", str(tmp_path / "p.json"), "--data", str(root)]) == 0
    assert main(["scienceqa", "--data", str(root), "--adapter", "x", "--out", str(tmp_path / "o")]) == 2
    assert "problem 1 has no field 'task'" in capsys.readouterr().err, "asking needs all of it"


def test_scoring_unpacks_no_pictures(tmp_path: Path) -> None:
    data = make_set("ai2d", tmp_path / "set")
    with for_scoring():
        questions = find("ai2d").load(data, "test", tmp_path / "unpacked")
    assert questions and not (tmp_path / "unpacked").exists()


def test_what_has_no_options_is_not_chosen(
    pope: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = make_set("vqav2", tmp_path / "vqa")
    for decode in ("choice", "both"):
        words = [
            "vqav2",
            "--data",
            str(data),
            "--adapter",
            "x",
            "--out",
            str(tmp_path / "o"),
            "--decode",
            decode,
        ]
        assert main(words) == 2
        assert "vqav2 has no options to choose from; take --decode generate" in capsys.readouterr().err


def test_commands_without_a_model_load_no_library_of_one() -> None:
    code = "import sys, eval.__main__; print([m for m in ('open_clip', 'torchvision') if m in sys.modules])"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
