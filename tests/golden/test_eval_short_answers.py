"""The scorers of short answers give what the official evaluators gave for the golden files.

Needs the golden files (MMA_GOLDEN, default ../shared/golden); skipped without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.benchmark import SHORT, find
from eval.errors import EvalError
from eval.scorers import gqa, mme, pope, textvqa, vqa
from tests.golden.cases import Case, cases

Fields = frozenset[str]


def parametrised(group: str) -> pytest.MarkDecorator:
    """Every case of a group; one that skips where there is none."""
    found = cases(group) or [
        pytest.param(None, marks=pytest.mark.skip(reason=f"needs golden files of {group}"))
    ]
    return pytest.mark.parametrize("case", found, ids=str)


def fields(case: Case, place: int = 0) -> Fields:
    """The fields that every line of a file has."""
    lines = case.lines(place)
    assert lines, f"{case}: {case.files[place]} holds no line"
    return frozenset.intersection(*(frozenset(line) for line in lines))


def unknown(case: Case) -> AssertionError:
    return AssertionError(f"{case}: no test knows these files: {', '.join(case.files)}")


def differing(case: Case, column: str, function: Callable[[dict[str, Any]], Any]) -> list[tuple[Any, Any]]:
    """The lines on which a function differs from a column, with what it gives."""
    return [(line, ours) for line in case.lines() if (ours := function(line)) != line[column]]


def close(found: float, official: float) -> bool:
    return found == pytest.approx(official, abs=1e-9)


NORMALISERS = {
    "vqaeval": vqa.vqa_official,
    "m4c": vqa.m4c,
    "m4c_without_wordtokenize": vqa.m4c_without_tokenizer,
}


@parametrised("answer_normalisation")
def test_normalisers(case: Case) -> None:
    columns = fields(case) & NORMALISERS.keys()
    if "raw" not in fields(case) or not columns:
        raise unknown(case)
    for column in columns:
        found = differing(case, column, lambda line, column=column: NORMALISERS[column](line["raw"]))
        assert found == [], column


@parametrised("vqav2")
def test_vqav2(case: Case) -> None:
    if not {"answers", "prediction", "official_percent"} <= fields(case):
        raise unknown(case)
    lines = case.lines()
    shares = [vqa.official(line["prediction"], line["answers"]).accuracy for line in lines]
    for line, share in zip(lines, shares, strict=True):
        assert round(100 * share, 2) == line["official_percent"], line
        if "lmms_eval" in line:
            assert close(vqa.lmms(line["prediction"], line["answers"]).accuracy, line["lmms_eval"]), line
    for name, column in (
        ("overall", None),
        ("perAnswerType", "answer_type"),
        ("perQuestionType", "question_type"),
    ):
        kinds = ["all" if column is None else line[column] for line in lines]
        found = {kind: _percent(shares, kinds, kind) for kind in kinds}
        expected = case.official[name]
        assert found == ({"all": expected} if column is None else expected), name


@parametrised("vqav2")
def test_vqav2_as_a_benchmark(case: Case, tmp_path: Path) -> None:
    """The predictions in an official result file are scored as they stand."""
    lines, benchmark = case.lines(), find("vqav2")
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000001.jpg").touch()
    asked = [{"question_id": place, "image_id": 1, "question": "?"} for place in range(len(lines))]
    humans = [
        {
            "question_id": place,
            "answer_type": line["answer_type"],
            "question_type": line["question_type"],
            "answers": [{"answer": text, "answer_id": number} for number, text in enumerate(line["answers"])],
        }
        for place, line in enumerate(lines)
    ]
    given = [{"question_id": place, "answer": line["prediction"]} for place, line in enumerate(lines)]
    for name, content in (
        ("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked}),
        ("v2_mscoco_val2014_annotations.json", {"annotations": humans}),
        ("given.json", given),
    ):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    answers = benchmark.read(tmp_path / "given.json")
    scored = benchmark.score(benchmark.load(tmp_path, "val", tmp_path), answers)
    assert round(100 * (scored.scores["Overall"].value or 0.0), 2) == case.official["overall"]
    assert scored.notes["official"] == {
        name: case.official[name] for name in ("overall", "perAnswerType", "perQuestionType")
    }


def _percent(shares: list[float], kinds: list[str], kind: str) -> float:
    some = [share for share, of in zip(shares, kinds, strict=True) if of == kind]
    return round(100 * sum(some) / len(some), 2)


@parametrised("textvqa")
def test_textvqa(case: Case) -> None:
    names = fields(case)
    if {"prompt", "question_key"} <= names:
        assert differing(case, "question_key", _key) == []
    elif {"answers", "prediction", "official"} <= names:
        shares = [textvqa.accuracy(line["prediction"], line["answers"]).accuracy for line in case.lines()]
        for line, share in zip(case.lines(), shares, strict=True):
            assert close(share, line["official"]), line
        assert close(sum(shares) / len(shares), case.official["accuracy"])
    else:
        raise unknown(case)


def _key(line: dict[str, Any]) -> str:
    """The question of a prompt; of one that the official script fails on, the mark of its failure."""
    try:
        return textvqa.question_key(line["prompt"])
    except EvalError:
        expected = line["question_key"]
        return expected if expected.startswith("__") else "refused"


@parametrised("gqa")
def test_gqa(case: Case) -> None:
    names = fields(case)
    if {"text", "prediction"} <= names:
        assert differing(case, "prediction", lambda line: gqa.prediction(line["text"])) == []
    elif {"prediction_raw", "prediction_converted", "answer", "isBalanced", "semantic", "groups"} <= names:
        raw = "prediction_raw"
        assert differing(case, "prediction_converted", lambda line: gqa.prediction(line[raw])) == []
        right = [gqa.prediction(line[raw]) == line["answer"] for line in case.lines()]
        assert right == [line["correct_official"] for line in case.lines()]
        assert (
            differing(case, "lmms_exact_match", lambda line: float(gqa.lmms_match(line[raw], line["answer"])))
            == []
        )
        _check_gqa_figures(case)
    else:
        raise unknown(case)


def _check_gqa_figures(case: Case) -> None:
    lines = [line for line in case.lines() if line["isBalanced"]]
    for line in lines:
        line["right"] = gqa.prediction(line["prediction_raw"]) == line["answer"]
    binary = [line for line in lines if line["types"]["structural"] != "query"]
    for name, some in (
        ("Accuracy", lines),
        ("Binary", binary),
        ("Open", [line for line in lines if line not in binary]),
    ):
        assert _right(some)[0] == case.official[name], name
    groups: dict[str, Callable[[dict[str, Any]], str]] = {
        "Accuracy / structural type": lambda line: line["types"]["structural"],
        "Accuracy / semantic type": lambda line: line["types"]["semantic"],
        "Accuracy / steps number": lambda line: str(
            gqa.steps([(step["operation"], step["argument"]) for step in line["semantic"]])
        ),
        "Accuracy / words number": lambda line: str(gqa.words(line["question"])),
    }
    for name, group in groups.items():
        kinds = {group(line) for line in lines}
        assert {
            kind: _right([line for line in lines if group(line) == kind]) for kind in kinds
        } == case.official[name]
    spread = gqa.Spread(
        [
            (line["groups"]["global"], line["answer"], gqa.prediction(line["prediction_raw"]))
            for line in lines
            if line["groups"]["global"] is not None
        ]
    )
    assert round(spread.distribution(np.array(spread.counts)), 2) == case.official["Distribution"]


def _right(lines: list[dict[str, Any]]) -> list[float]:
    return [round(100 * sum(line["right"] for line in lines) / len(lines), 2) if lines else 0.0, len(lines)]


POPE_LISTS = {"random", "popular", "adversarial"}
POPE_READERS = {"official": pope.read, "vlmevalkit": pope.vlmevalkit, "lmms_exact": pope.lmms}


@parametrised("pope")
def test_pope(case: Case) -> None:
    if {"text", "label", "official"} <= fields(case):
        for column in fields(case) & POPE_READERS.keys():
            read = POPE_READERS[column]
            assert differing(case, column, lambda line, read=read: read(line["text"])) == [], column
        lines = case.lines()
        if "TP" in case.official:
            counts = pope.Counts.of((pope.read(line["text"]), line["label"]) for line in lines)
            _check_pope(counts, case.official)
    else:
        _check_pope_splits(case)


def _check_pope_splits(case: Case) -> None:
    """Answers are paired with labels by the order of their lines."""
    found = {}
    for split, expected in _pope_expected(case).items():
        answers, labels = _pope_files(case, split)
        rows = zip(case.lines(answers), case.lines(labels), strict=True)
        found[split] = pope.Counts.of((pope.read(answer["text"]), label["label"]) for answer, label in rows)
        _check_pope(found[split], expected)
    if not found:
        raise unknown(case)
    if "mean_F1" in case.official:
        assert close(sum(counts.f1 for counts in found.values()) / len(found), case.official["mean_F1"])


def _pope_expected(case: Case) -> dict[str, dict[str, float]]:
    """The figures of each split; a case of one split may have them without its name."""
    if "TP" in case.official:
        return {"": case.official}
    return {name: value for name, value in case.official.items() if isinstance(value, dict) and "TP" in value}


def _pope_files(case: Case, split: str) -> tuple[int, int]:
    """The places of answers and labels: only labels have the column of this name."""
    places = range(len(case.paths()))
    of_split = [
        place
        for place in places
        if split in case.paths()[place].name or split == case.lines(place)[0].get("category")
    ]
    labels = [place for place in of_split if "label" in fields(case, place)]
    answers = [place for place in of_split if place not in labels]
    assert len(labels) == len(answers) == 1, f"{case}: {split}: one file of answers and one of labels"
    return answers[0], labels[0]


@parametrised("pope")
def test_pope_as_a_benchmark(case: Case, tmp_path: Path) -> None:
    """The official files are loaded, and the answers read and scored, as a user would have it."""
    if "mean_F1" not in case.official or not case.official.keys() >= POPE_LISTS:
        pytest.skip("does not hold the three files of the benchmark")
    benchmark = find("pope")
    (tmp_path / "coco").mkdir()
    (tmp_path / "val2014").mkdir()
    answers: dict[str, str] = {}
    for split in POPE_LISTS:
        given, labels = (case.paths()[place] for place in _pope_files(case, split))
        answers |= benchmark.read(given)
        (tmp_path / "coco" / f"coco_pope_{split}.json").symlink_to(labels.resolve())
        for line in labels.read_text(encoding="utf-8").splitlines():
            (tmp_path / "val2014" / json.loads(line)["image"]).touch()
    scored = benchmark.score(benchmark.load(tmp_path, "coco", tmp_path), answers)
    assert close(scored.scores["mean F1"].value or 0.0, case.official["mean_F1"])
    for split in POPE_LISTS:
        for name in ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio"):
            assert close(scored.scores[f"{split} {name}"].value or 0.0, case.official[split][name]), name


def _check_pope(counts: pope.Counts, official: dict[str, float]) -> None:
    tp, fp, tn, fn = counts
    assert {"TP": tp, "FP": fp, "TN": tn, "FN": fn} == {
        name: official[name] for name in ("TP", "FP", "TN", "FN")
    }
    for name, value in {
        "Accuracy": counts.accuracy,
        "Precision": counts.precision,
        "Recall": counts.recall,
        "F1 score": counts.f1,
        "Yes ratio": counts.yes_ratio,
    }.items():
        assert close(value, official[name]), name


@parametrised("mme")
def test_mme(case: Case) -> None:
    files = case.paths()
    if case.official.keys() & mme.TASKS.keys():
        answers = [place for place, path in enumerate(files) if path.suffix == ".jsonl"]
        tasks = {path.stem: _mme_rows(path) for path in files if path.suffix == ".txt"}
        if answers:
            tasks = _mme_answered(tasks, case.lines(answers[0]))
        _check_mme(tasks, case.official)
    elif {"response", "official"} <= fields(case):
        readers = {
            "official": lambda line: mme.read(line["response"] + "\n"),
            "official_no_newline": lambda line: mme.read(line["response"]),
            "lmms_eval": lambda line: mme.lmms(line["response"]),
        }
        for column in readers.keys() & fields(case):
            assert differing(case, column, readers[column]) == [], column
    else:
        raise unknown(case)


def _mme_rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]


def _mme_answered(
    tasks: dict[str, list[list[str]]], lines: list[dict[str, Any]]
) -> dict[str, list[list[str]]]:
    """Rows of result files from templates and LLaVA's answers, in the order of the answers."""
    right = {
        (task, image.split(".")[0], mme.bare(question)): answer
        for task, rows in tasks.items()
        for image, question, answer in rows
    }
    found: dict[str, list[list[str]]] = {}
    for line in lines:
        task, *_, image = line["question_id"].split("/")
        assert line["prompt"] == f"{mme.bare(line['prompt'])}\n{SHORT}"  # as the benchmark asks
        truth = right[task, image.split(".")[0], mme.bare(line["prompt"])]
        found.setdefault(task, []).append([image, line["prompt"], truth, line["text"]])
    return found


def _check_mme(tasks: dict[str, list[list[str]]], official: dict[str, dict[str, float]]) -> None:
    for half in official.keys() & mme.TASKS.keys():
        expected = official[half]
        names = [name for name in mme.TASKS[half] if name in expected]
        assert expected.keys() == {*names, "total"} and names
        for name in names:
            pairs = [(mme.read(response), truth.lower()) for _, _, truth, response in tasks[name]]
            assert len(pairs) % 2 == 0, name
            found = mme.task([pairs[start : start + 2] for start in range(0, len(pairs), 2)])
            assert close(found.score, expected[name]), name
        assert close(sum(expected[name] for name in names), expected["total"])


@parametrised("mme")
def test_mme_as_a_benchmark(case: Case, tmp_path: Path) -> None:
    """Official result files are read and scored as a user would have it."""
    files = case.paths()
    every = {name for names in mme.TASKS.values() for name in names}
    if any(path.suffix != ".txt" for path in files) or {path.stem for path in files} != every:
        pytest.skip("does not hold the result files of all subtasks")
    benchmark, release = find("mme"), tmp_path / "MME_Benchmark_release_version"
    for path in files:
        (release / path.stem).mkdir(parents=True)
        texts: dict[str, str] = {}
        for image, question, truth, _ in _mme_rows(path):
            stem = image.split(".")[0]
            (release / path.stem / f"{stem}.jpg").touch()
            texts[stem] = texts.get(stem, "") + f"{question}\t{truth}\n"
        for stem, text in texts.items():
            (release / path.stem / f"{stem}.txt").write_text(text, encoding="utf-8")
    scored = benchmark.score(benchmark.load(tmp_path, "test", tmp_path), benchmark.read(files[0].parent))
    for half in case.official.keys() & mme.TASKS.keys():
        for name, value in case.official[half].items():
            found = scored.scores[half if name == "total" else name].value
            assert close(found or 0.0, value), name
