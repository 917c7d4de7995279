"""One sample as tokens by a chat format: text pieces, special tokens and picture slots, in order.

Supervision is decided here, piece by piece, never by searching in finished ids. Text behind a special
token or a picture is tokenised anew, as LLaMA's tokenizer does; behind other text it continues. Knows
nothing of question formats (`prompts.py`) or batches (`packing.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.errors import DataError
from data.formats import FORMATS, Format
from data.sample import IMAGE, Sample, SlotsOf, TextTokenizer, Tokens, Turn

TEMPLATES: tuple[str, ...] = tuple(FORMATS)


@dataclass(frozen=True)
class _Piece:
    """A text, a special token (`special`) or the slots of pictures (`pictures`)."""

    text: str
    supervised: bool = False
    special: bool = False
    pictures: tuple[Path, ...] | None = None
    opens: int = 0  # of its characters (or 1 for all of the others) belong to the head


class Template:
    """Samples as tokens by one of `TEMPLATES`; a DataError where a sample does not fit the format."""

    def __init__(self, name: str, tokenizer: TextTokenizer, slots_of: SlotsOf) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.slots_of = slots_of
        self._format = FORMATS[name]
        self.stop: tuple[str, ...] = self._format.stop
        self.stop_ids: tuple[int, ...] = tuple(self._special(stop) for stop in self._format.stops)

    def tokens(self, sample: Sample, response: str | None = None) -> Tokens:
        """Ids of a sample with its own or another response; `""` leaves the response to be generated."""
        ids: list[int] = []
        supervised: list[bool] = []
        slots: list[int] = []
        counts: list[int] = []
        head = 0
        continues = False
        for piece in _joined(_pieces(self._format, sample, response)):
            start = len(ids)
            if piece.pictures is not None:
                counts += (own := [self.slots_of(path) for path in piece.pictures])
                slots += range(start, start + sum(own))
                ids += [0] * sum(own)
            elif piece.special:
                ids += [] if self._absent(piece.text) else [self._special(piece.text)]
            else:
                ids += self.tokenizer.encode(piece.text, continues=continues)
            before, continues = continues, piece.pictures is None and not piece.special
            supervised += [piece.supervised] * (len(ids) - start)
            if piece.opens:
                head = start + (self._opening(piece, before, ids[start:]) if continues else len(ids) - start)
        return Tokens(
            sample_id=sample.id,
            ids=tuple(ids),
            supervised=tuple(supervised),
            slots=tuple(slots),
            modality=sample.modality,
            images=sample.images,
            slot_counts=tuple(counts),
            head=head,
        )

    def text(self, sample: Sample, response: str | None = None) -> str:
        """The rendered string, with `<image>` where pictures stand and without the tokenizer's begin."""
        pieces = _pieces(self._format, sample, response)
        shown = pieces[1:] if self._format.start == "<s>" else pieces
        return "".join(IMAGE * len(p.pictures) if p.pictures is not None else p.text for p in shown)

    def _opening(self, piece: _Piece, continues: bool, ids: list[int]) -> int:
        """How many ids of a text are those of its opening, whatever follows that."""
        opening = self.tokenizer.encode(piece.text[: piece.opens], continues=continues)
        pairs = enumerate(zip(opening, ids, strict=False))
        return next((index for index, (one, other) in pairs if one != other), min(len(opening), len(ids)))

    def _absent(self, name: str) -> bool:
        return name == "<s>" and self.tokenizer.bos_id is None

    def _special(self, name: str) -> int:
        if name == "<s>" and self.tokenizer.bos_id is not None:
            return self.tokenizer.bos_id
        return self.tokenizer.eos_id if name == "</s>" else self.tokenizer.special(name)


def make_template(name: str, tokenizer: TextTokenizer, slots_of: SlotsOf) -> Template:
    """The template of a name; a DataError for an unknown one."""
    if name not in FORMATS:
        raise DataError(f"template {name!r} is unknown; choose one of {', '.join(TEMPLATES)}")
    return Template(name, tokenizer, slots_of)


def _pieces(form: Format, sample: Sample, response: str | None) -> list[_Piece]:
    """A whole sample, from the begin token to the end of its last answer."""
    turns = [*sample.earlier, Turn(sample.prompt, sample.response if response is None else response)]
    questions = _questions(form, sample, [turn.question for turn in turns])
    system = form.system if sample.system is None else sample.system
    system = system.strip() if system and form.strip else system
    pieces = [_Piece(form.start, special=True, opens=1)] if form.start else []
    pieces += _front(form, sample.images)
    pictures = iter(sample.images)
    for index, (turn, question) in enumerate(zip(turns, questions, strict=True)):
        opening = form.opening if index == 0 and system else ""
        before, _, behind = form.question.partition("{q}")
        pattern = ("" if index == 0 else form.again) + before.replace("{opening}", opening)
        pieces += _pattern(form, pattern, {"{system}": system or ""}, opens=index == 0)
        if form.keeps_question:
            marked = bool(sample.images) and form.before_pictures is None
            pieces += _question(question, pictures if marked else None, opens=index == 0)
        pieces += _pattern(form, behind, {})
        if index == len(turns) - 1 and not turn.answer:
            break  # it is to be generated
        answer = turn.answer.strip() if form.strip else turn.answer
        pieces += _pattern(form, form.answer, {"{a}": answer}, supervised=True)
        pieces += _pattern(form, form.after, {})
    return pieces


def _front(form: Format, images: tuple[Path, ...]) -> list[_Piece]:
    """The pictures of a format that has them in front of everything."""
    if form.before_pictures is None:
        return []
    if not images and not form.keeps_question:
        return []
    text = form.before_pictures if images else form.without_pictures
    return [_Piece(text, opens=len(text)), _Piece("", pictures=images, opens=1)]


def _questions(form: Format, sample: Sample, questions: list[str]) -> list[str]:
    """The questions with a mark for each picture, and without any where the format places them itself."""
    if not form.keeps_question:
        if not sample.images or sample.earlier:
            raise DataError(f"sample {sample.id}: this template is for captions of pictures; choose another")
        return [""] * len(questions)
    if form.strip:
        questions = [question.strip() for question in questions]
    if not sample.images:
        return questions
    marks = sum(question.count(IMAGE) for question in questions)
    if marks not in (0, len(sample.images)):
        raise DataError(
            f"sample {sample.id} has {marks} {IMAGE} marks for {len(sample.images)} pictures; "
            "put one mark for each picture, or none"
        )
    if form.before_pictures is not None:
        return [re.sub(rf"{IMAGE}\n?", "", question) for question in questions]
    if not marks:
        return [f"{IMAGE}\n" * len(sample.images) + questions[0], *questions[1:]]
    return questions


def _question(question: str, pictures: Iterator[Path] | None, *, opens: bool) -> list[_Piece]:
    """A question, with the slots of the next pictures at its marks if there are `pictures`."""
    if pictures is None:
        return [_Piece(question)]
    pieces = []
    for index, part in enumerate(question.split(IMAGE)):
        if index:
            pieces.append(_Piece("", pictures=(next(pictures),), opens=int(opens)))
        opens = opens and not part.strip()
        if part:
            pieces.append(_Piece(part, opens=len(part) * opens))
    return pieces


def _pattern(
    form: Format, pattern: str, values: dict[str, str], *, supervised: bool = False, opens: bool = False
) -> list[_Piece]:
    """The pieces of a pattern; texts put in are never searched for special tokens."""
    pieces = []
    tokens = "|".join(map(re.escape, (*form.specials, *values)))
    for part in re.split(f"({tokens})", pattern):
        special = part in form.specials
        if part:
            text = values.get(part, part)
            pieces.append(_Piece(text, supervised, special, opens=len(text) * opens))
    return pieces


def _joined(pieces: Sequence[_Piece]) -> list[_Piece]:
    """The pieces with neighbouring texts in one, since a word may span them; supervision parts them."""
    joined: list[_Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        texts = last is not None and not (last.special or piece.special or last.pictures is not None)
        if last is None or not texts or piece.pictures is not None or last.supervised != piece.supervised:
            joined.append(piece)
            continue
        opens = last.opens + (piece.opens if last.opens == len(last.text) else 0)
        joined[-1] = replace(last, text=last.text + piece.text, opens=opens)
    return joined
