"""Captions against the official tokenizer and scores."""

from __future__ import annotations

from typing import Any

import pytest

from eval.scorers.captions import score_captions
from eval.scorers.ptb import tokenize_all
from tests.golden.cases import Case, cases

CASES = cases("coco_caption")
NO_CASES = pytest.param(None, marks=pytest.mark.skip(reason="no golden captions (MMA_GOLDEN)"))


def check_words(case: Case) -> None:
    lines = case.lines()
    assert len(lines) == case.official["n"]
    # one at a time: each was cut alone or in another order
    found = {line["id"]: tokenize_all([line["caption"]])[0] for line in lines}
    assert found == {line["id"]: line["tokens"] for line in lines}


def check_cider(case: Case) -> None:
    pytest.importorskip("pycocoevalcap")
    for line in case.lines():
        captions = {picture: texts[0] for picture, texts in line["res"].items()}
        found = score_captions(line["gts"], captions)
        expected = [line["per_image"][picture] for picture in line["gts"]]
        assert found.cider == pytest.approx(expected, abs=1e-9), line["id"]
        assert sum(found.cider) / len(found.cider) == pytest.approx(line["cider"], abs=1e-9)


def check_set(case: Case) -> None:
    pytest.importorskip("pycocoevalcap")
    files = dict(zip(case.files, map(case.json, range(len(case.files))), strict=True))
    by_shape: dict[str, Any] = {shape(content): content for content in files.values()}
    tokenized, per_picture = by_shape["tokenized"], by_shape["per picture"]
    check_tokens(by_shape["annotations"], by_shape["results"], tokenized)
    references = tokenized["gts"]
    captions = {
        picture: texts[0] if isinstance(texts, list) else texts for picture, texts in tokenized["res"].items()
    }
    found = score_captions(references, captions)
    assert sum(found.cider) / len(found.cider) == pytest.approx(case.official["CIDEr"], rel=1e-12)
    assert sum(found.rouge) / len(found.rouge) == pytest.approx(case.official["ROUGE_L"], rel=1e-12)
    bleus = [found.bleu(n) for n in (1, 2, 3, 4)]
    assert bleus == pytest.approx(case.official["Bleu"], rel=1e-12)
    assert found.cider == pytest.approx([per_picture[picture] for picture in references], abs=6e-9)


def check_tokens(annotations: Any, results: Any, tokenized: Any) -> None:
    """Our words are those of the official tokenizer, for every reference and every caption."""
    words = iter(tokenize_all([item["caption"] for item in annotations["annotations"]]))
    ours: dict[str, list[str]] = {}
    for item in annotations["annotations"]:
        ours.setdefault(str(item["image_id"]), []).append(next(words))
    assert {picture: ours[picture] for picture in tokenized["gts"]} == tokenized["gts"]
    words = iter(tokenize_all([item["caption"] for item in results]))
    found = {str(item["image_id"]): [next(words)] for item in results}
    assert {picture: found[picture] for picture in tokenized["res"]} == tokenized["res"]


def shape(content: Any) -> str:
    if isinstance(content, list):
        return "results"
    if content.keys() >= {"gts", "res"}:
        return "tokenized"
    if content.keys() >= {"images", "annotations"}:
        return "annotations"
    assert all(isinstance(value, float | int) for value in content.values()), "unknown shape"
    return "per picture"


@pytest.mark.parametrize("case", CASES or [NO_CASES], ids=str)
def test_captions_are_the_official_ones(case: Case) -> None:
    if case.official.keys() & {"CIDEr", "Bleu", "ROUGE_L"}:
        check_set(case)
        return
    fields = case.lines()[0].keys()
    if fields >= {"caption", "tokens"}:
        check_words(case)
    elif fields >= {"gts", "res", "cider", "per_image"}:
        check_cider(case)
    else:
        pytest.fail(f"{case}: unknown shape {sorted(fields)}")
