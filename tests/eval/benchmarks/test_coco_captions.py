"""COCO captions: loading of both layouts, words, scores worked out by hand, official and broken files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from eval.benchmark import Question, find
from eval.errors import EvalError
from eval.scorers.captions import bleu
from eval.scorers.ptb import tokenize_all
from tests.eval.benchmarks.short_answer_files import edit, load, picture, write_json

BENCH = find("coco_captions")
CAPTIONS = {7: ["A dog runs.", "The dog is running."], 9: ["A red bus"], 12: ["Two cats sleep", "cats"]}
ANSWERS = {"7": "A dog runs.", "9": "a blue bus", "12": "Sleep"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of val2014; their captions stand in another order than the pictures."""
    images = [{"id": id_, "file_name": f"COCO_val2014_{id_:012}.jpg"} for id_ in (9, 7, 12)]
    texts = [(id_, text) for id_, some in CAPTIONS.items() for text in some]
    annotations = [{"id": place, "image_id": id_, "caption": text} for place, (id_, text) in enumerate(texts)]
    write_json(
        tmp_path / "annotations" / "captions_val2014.json", {"images": images, "annotations": annotations}
    )
    for id_ in CAPTIONS:
        picture(tmp_path / "val2014" / f"COCO_val2014_{id_:012}.jpg")
    return tmp_path


def karpathy(folder: Path) -> None:
    """Two pictures in Karpathy's file, one of them of his test split."""
    rows: list[dict[str, Any]] = [
        {
            "cocoid": id_,
            "filepath": "val2014",
            "filename": f"COCO_val2014_{id_:012}.jpg",
            "split": split,
            "sentences": [{"raw": text, "tokens": []} for text in CAPTIONS[id_]],
        }
        for id_, split in ((7, "val"), (9, "test"))
    ]
    write_json(folder / "dataset_coco.json", {"dataset": "coco", "images": rows})


def test_questions_are_in_the_order_of_the_pictures(folder: Path) -> None:
    questions = load("coco_captions", folder, "val2014")
    assert [question.id for question in questions] == ["9", "7", "12"]
    assert questions[1].prompt == "Provide a one-sentence caption for the provided image."
    assert questions[1].gold == ("A dog runs.", "The dog is running.")
    assert questions[1].images == (folder / "val2014" / "COCO_val2014_000000000007.jpg",)


def test_karpathys_test_split(folder: Path) -> None:
    karpathy(folder)
    (question,) = load("coco_captions", folder)
    assert (question.id, question.gold) == ("9", ("A red bus",))


def test_scores(folder: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    scored = BENCH.score(load("coco_captions", folder, "val2014"), ANSWERS)
    assert [*scored.scores] == ["CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"]
    # words of the captions found in a reference: 3 of 3, "a" and "bus" of 3, 1 of 1; nearest lengths 3, 3, 1
    assert scored.scores["Bleu_1"].value == pytest.approx(6 / 7)
    # pairs of words: 2 of 2, 0 of 2, none
    assert scored.scores["Bleu_2"].value == pytest.approx(math.sqrt(6 / 7 * 2 / 4))
    # longest common parts: all of 3; 2 of 3; 1 of 1 with 1 of 3 in the first reference
    parts = [1.0, 2 / 3, (1 + 1.44) * 1 / 3 / (1 / 3 + 1.44)]
    assert scored.scores["ROUGE_L"].value == pytest.approx(sum(parts) / 3)
    assert scored.marks["7"].read == "a dog runs"
    assert scored.notes["pictures"] == "3 of 3"
    assert scored.unparsable == 0


def test_cider_of_two_pictures_by_hand() -> None:
    pytest.importorskip("pycocoevalcap")
    questions = [Question("1", "", gold=("a dog",)), Question("2", "", gold=("a cat",))]
    scored = BENCH.score(questions, {"1": "a dog", "2": "a dog"})
    # "a" is in both pictures and weighs nothing; "dog" and "a dog" are right once, out of four lengths
    assert scored.marks["1"].score == pytest.approx(0.5)
    assert scored.marks["2"].score == pytest.approx(0.0)
    assert scored.scores["CIDEr"].value == pytest.approx(2.5)


def test_a_part_of_the_pictures_scores_alone_and_one_has_no_cider(folder: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    questions = load("coco_captions", folder, "val2014")
    scored = BENCH.score(questions, {"7": "A dog runs."})
    assert scored.scores["CIDEr"].value == 0
    assert scored.scores["Bleu_1"].count == 1
    assert scored.notes["pictures"] == "1 of 3"
    with pytest.raises(EvalError, match="there are no captions to score"):
        BENCH.score(questions, {})
    with pytest.raises(EvalError, match=r"1 captions belong to no picture \(the first is '8'\)"):
        BENCH.score(questions, {"8": "a"})


def test_an_empty_caption_is_scored_and_counted(folder: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    scored = BENCH.score(load("coco_captions", folder, "val2014"), {**ANSWERS, "9": " ... "})
    assert scored.unparsable == 1
    assert (scored.marks["9"].read, scored.marks["9"].score) == (None, 0.0)


def test_short_captions_are_punished() -> None:
    counts = [3.0, 6.0, 3.0, 2.0, 1.0, 0.0, 3.0, 2.0, 1.0, 0.0]
    assert bleu(counts, 1) == pytest.approx(math.exp(-1))
    # no four words in a row: two small numbers stand for 0 of 0
    assert bleu(counts, 4) == pytest.approx((1e-15 / 1e-9) ** 0.25 / math.e, rel=1e-6)


def test_the_official_file_comes_back(folder: Path) -> None:
    questions = load("coco_captions", folder, "val2014")
    BENCH.write(folder / "results.json", questions, ANSWERS)
    first = json.loads((folder / "results.json").read_text(encoding="utf-8"))[0]
    assert first == {"image_id": 9, "caption": "a blue bus"}
    assert BENCH.read(folder / "results.json") == ANSWERS


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"image_id": 12', '"image_id": 13', r"annotations 4: picture 13 is not in images"),
        ('"caption": "A red bus"', '"caption": null', r"annotations 3: caption is None, not a text"),
        ('"image_id": 9', '"image_id": 7', r"picture 9 has no caption"),
        ('"images"', '"pictures"', r"captions_val2014.json: has no 'images'"),
        ("000000000009.jpg", "000000000019.jpg", r"1 of 3 pictures are missing"),
    ],
)
def test_broken_annotations(folder: Path, old: str, new: str, said: str) -> None:
    edit(folder / "annotations" / "captions_val2014.json", old, new)
    with pytest.raises(EvalError, match=said):
        load("coco_captions", folder, "val2014")


def test_other_broken_files(folder: Path) -> None:
    karpathy(folder)
    edit(folder / "dataset_coco.json", '"cocoid": 9, ', "")
    with pytest.raises(EvalError, match=r"dataset_coco.json, images 2: has no 'cocoid'"):
        load("coco_captions", folder)
    edit(folder / "dataset_coco.json", '"test"', '"train"')
    with pytest.raises(EvalError, match=r"karpathy: holds no pictures"):
        load("coco_captions", folder)
    write_json(folder / "results.json", [{"image_id": 7, "caption": "a"}, {"image_id": 7, "caption": "b"}])
    with pytest.raises(EvalError, match=r"item 2: '7' is answered a second time"):
        BENCH.read(folder / "results.json")


WORDS = [
    ("A man's hat; it isn't his, they've said!", "a man 's hat it is n't his they 've said"),
    ("You can't, and we cannot. I'm gonna go", "you ca n't and we can not i 'm gon na go"),
    ("two dogs' bowls (one is full)", "two dogs bowls -lrb- one is full -rrb-"),  # brackets stay (quirk)
    ("a [sic] {set}", "a -lsb- sic -rsb- -lcb- set -rcb-"),
    ('He says "stop" and `go\'', "he says stop and go"),
    ("a black-and-white t-shirt -- old - or not", "a black-and-white t-shirt old or not"),
    ("Mr. Smith of St. Louis, U.S.A. at 7:30 p.m.", "mr. smith of st. louis u.s.a. at 7:30 p.m."),
    ("the end. Of the road. no. no. 5", "the end of the road no no. 5"),
    ("a bat., a ball.", "a bat. a ball"),  # a period before a comma stays (quirk)
    ("1,500 of 3.5 and 1/2 at 25% for $20", "1,500 of 3.5 and 1/2 at 25 % for $ 20"),
    ("rock & roll by AT&T, R&B", "rock & roll by at&t r&b"),
    ("wait... what?! no!! ok?", "wait what ?! no !! ok"),  # several signs are one token, and stay
    ("man.The bat hits a.m", "man.the bat hits a.m"),
    ("rock 'n' roll at nine o'clock, '90s 'em", "rock 'n' roll at nine o'clock '90s 'em"),
    ("caf\u00e9 \u2013 na\u00efve \u201cquote\u201d it\u2019s\u2026", "caf\u00e9 na\u00efve quote it 's"),
    ("\U0001f436 dog \u00bd \u00a35", "dog 1/2 # 5"),
    ("see www.example.com or @you #tag <b>bold</b>", "see www.example.com or @you #tag <b> bold </b>"),
    ("tab\there\nand  there", "tab here and there"),
    ("", ""),
]


@pytest.mark.parametrize(("caption", "words"), WORDS)
def test_words(caption: str, words: str) -> None:
    assert tokenize_all([caption]) == [words]


def test_a_single_letter_keeps_its_period_unless_a_sentence_begins() -> None:
    assert tokenize_all(["vitamin C. The end", "vitamin C. for all"]) == [
        "vitamin c the end",
        "vitamin c. for all",
    ]
    # also where it begins in the next caption, which the official tool sees
    assert tokenize_all(["vitamin C.", "The end"]) == ["vitamin c", "the end"]
    assert tokenize_all(["vitamin C.", "an end"]) == ["vitamin c.", "an end"]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("see Http://X.com/a now", "see http://x.com/a now"),
        ("http://x.com' b", "http://x.com' b"),
        ("http://x.com: b", "http://x.com: b"),
        ("http://x.com, b", "http://x.com b"),
        ("call 555-1234 555-1234 now", "call 555-1234\xa0555-1234 now"),
        ("800 555 1234", "800\xa0555\xa01234"),
        ("10 555", "10 555"),
        ("I. Mr. Jones", "i mr. jones"),
        ("A. MS. x", "a ms. x"),
        ("A. Dr. x", "a. dr. x"),
        ("हिन्दी", "हिन्दी"),
        ("cafe\u0301", "cafe\u0301"),
        ("1\u0301", "1 \u0301"),
        ("a\u0488b", "a b"),
    ],
)
def test_words_that_the_official_tool_gave(caption: str, words: str) -> None:
    assert tokenize_all([caption]) == [words]
