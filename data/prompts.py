"""The named prompt formats of ScienceQA, such as QCM-ALE, and how a problem looks in each.

A name is the parts of the prompt in order, a dash, and the parts of the response in order: Q question,
C context (hint and caption), M options, L lecture, E explanation (the `solution` field), A answer.

The texts equal those of the public code byte for byte, except for two of its slips. There AL writes the
explanation and AE the lecture; here each letter writes its own part. And where a problem has neither
lecture nor explanation nothing is announced by a "BECAUSE:" that leads nowhere.

Every option is the bare sentence "The answer is X.", whatever the format. Where the answer comes first
(A, AL, AE, ALE) comparing the options' likelihoods after the prompt asks what the model was trained to
say there. Where it comes last (LA, EA, LEA, ELA) the comparison skips the reasoning, so it measures the
answer without it; to score such a format as trained, generate and read the answer from the text.

Knows nothing of files or tokens.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from data.errors import DataError
from data.sample import Sample
from data.scienceqa import LETTERS, Problem

_RESPONSES = ("A", "LA", "EA", "LEA", "ELA", "AL", "AE", "ALE")
# The last row is the "upper bound": the prompt itself gives the reasons.
FORMATS: tuple[str, ...] = (
    *(f"CQM-{response}" for response in _RESPONSES),
    *(f"QCM-{response}" for response in _RESPONSES),
    *("QCML-A", "QCME-A", "QCMLE-A", "QCLM-A", "QCEM-A", "QCLEM-A", "QCML-AE"),
)
PROMPT_END = "Response:"


def render(problem: Problem, format: str, image_path: Path | None, captions: bool = False) -> Sample:
    """The sample of a problem in a named format; `captions` adds the picture's caption to the context."""
    require_format(format)
    prompt_parts, response_parts = format.split("-")
    options = tuple(f"The answer is {letter}." for letter in LETTERS[: len(problem.choices)])
    return Sample(
        id=problem.pid,
        prompt=_prompt(problem, prompt_parts, captions),
        response=_response(problem, response_parts, options[problem.answer]),
        images=() if image_path is None else (image_path,),
        options=options,
        gold=problem.answer,
    )


def require_format(format: str) -> None:
    """Refuses a name that is not in the table."""
    if format not in FORMATS:
        near = get_close_matches(format.upper(), FORMATS, n=3, cutoff=0.0)
        raise DataError(f"there is no prompt format {format!r}; the nearest are {', '.join(near)}")


def context(problem: Problem, captions: bool) -> str:
    """The hint, with the caption if wanted, or N/A where there is neither."""
    if captions and problem.image is not None and problem.caption is None:
        raise DataError(
            f"problem {problem.pid} has a picture but no caption; "
            "add it to captions.json or turn captions off"
        )
    caption = (problem.caption or "") if captions else ""
    return f"{problem.hint} {caption}".strip() or "N/A"


def _prompt(problem: Problem, parts: str, captions: bool) -> str:
    options = " ".join(f"({LETTERS[index]}) {text}" for index, text in enumerate(problem.choices))
    lines = {
        "Q": f"Question: {problem.question}",
        "C": f"Context: {context(problem, captions)}",
        "M": f"Options: {options}",
    }
    written = [lines[part] for part in parts if part in lines]
    reasons = _reasons(problem, parts)
    if reasons:
        # The reasons stand in one line, where the first of their letters is.
        place = min(parts.index(part) for part in "LE" if part in parts)
        written.insert(place, f"BECAUSE: {reasons}")
    return _squeezed("\n".join([*written, PROMPT_END]))


def _response(problem: Problem, parts: str, answer: str) -> str:
    reasons = _reasons(problem, parts)
    if not reasons:
        return answer
    joined = f"{answer} BECAUSE: {reasons}" if parts.startswith("A") else f"{reasons} {answer}"
    return _squeezed(joined)


def _reasons(problem: Problem, parts: str) -> str:
    """Lecture and explanation in the order of their letters, on one line; empty where both are blank."""
    texts = {"L": problem.lecture, "E": problem.solution}
    reasons = " ".join(texts[part].replace("\n", "\\n") for part in parts if part in texts)
    return reasons if reasons.strip() else ""


def _squeezed(text: str) -> str:
    """Double blanks made single, in one pass as in the public code: of three blanks two are left."""
    return text.replace("  ", " ").strip()
