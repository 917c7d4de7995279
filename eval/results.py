"""The result file of an evaluation, and the prediction files that others publish.

A broken or foreign file is refused with one line. Knows nothing of models or of how to score.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.files import shown
from eval.scores import Score, Scores

FORMAT = "mma-eval-1"
_PARTS = ("scores", "unparsable", "predictions", "settings", "versions", "digests")
_PACKAGES = {"torch": "torch", "open_clip": "open_clip_torch", "safetensors": "safetensors"}
_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


@dataclass(frozen=True)
class Prediction:
    """What was answered to one question."""

    option: int | None  # None: the answer named no option, or there is none to name
    gold: Any = None  # an option's index, or what the benchmark compares with; None: the file does not say
    text: str | None = None  # of a generated answer
    likelihoods: tuple[float, ...] | None = None  # natural logarithm, per option; of a choice
    read: str | int | None = None  # what the scorer read in the answer; None: nothing, or it is the option
    score: float | None = None  # in [0, 1]; None: right where the option is the gold one


@dataclass(frozen=True)
class Result:
    """Everything the result file holds."""

    scores: Scores
    predictions: dict[str, Prediction]
    settings: dict[str, Any]
    versions: dict[str, str]
    digests: dict[str, str]
    checks: dict[str, Any] = field(default_factory=dict)  # cut prompts, unreadable pictures, leaks


def said(prediction: Prediction, options: Sequence[str]) -> str:
    """An answer as text: what was written, or the option that was likeliest."""
    if prediction.text is not None or prediction.option is None:
        return prediction.text or ""
    return options[prediction.option]


def versions() -> dict[str, str]:
    """The versions a result may depend on."""
    found = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    # evaluation runs from the checkout, so what is installed may be another version
    line = re.search(r'^version = "(.+)"$', _PROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    return {**found, "project": line.group(1) if line else "unknown"}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_result(path: Path, result: Result) -> None:
    """Write the file whole or not at all."""
    content = {
        "format": FORMAT,
        "scores": {name: _told(score, scale=100.0) for name, score in result.scores.categories.items()},
        "unparsable": result.scores.unparsable,
        "notes": dict(result.scores.notes),
        "checks": result.checks,
        "predictions": {pid: _prediction_told(made) for pid, made in result.predictions.items()},
        "settings": result.settings,
        "versions": result.versions,
        "digests": result.digests,
    }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _told(value: Score | Prediction, **usual: Any) -> dict[str, Any]:
    """The fields of a value; some are left out where they say what is usual."""
    return {key: item for key, item in asdict(value).items() if key not in usual or item != usual[key]}


def _prediction_told(made: Prediction) -> dict[str, Any]:
    """A mark of None says that nobody knows; it is left out where an option's index tells."""
    told = _told(made, read=None)
    if made.score is None and isinstance(made.gold, int):
        del told["score"]
    return told


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before hours are spent on what it is to hold."""
    try:
        if path.is_dir():
            raise EvalError(f"{path}: is a folder; name a file to write")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=parent):
            pass
    except NotADirectoryError:
        raise EvalError(f"{path}: cannot be written: {parent} is a file; name another file") from None
    except OSError as error:
        raise EvalError(f"{path}: cannot be written: {error.strerror}; name another file") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under another name first, so that nobody ever sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise EvalError(
            f"{path}: cannot be written: {error.strerror}; make room or name another file"
        ) from None


def read_result(path: Path) -> Result:
    """The result file of an earlier evaluation."""
    content = _read_object(path)
    if content.get("format") != FORMAT:
        raise EvalError(f"{path}: not a result of `python -m eval` (no format {FORMAT!r} in it)")
    return _result(path, content)


def read_predictions(path: Path) -> dict[str, Prediction]:
    """The predictions of a result file, or of a published one: question id -> index of the option.

    Published are a bare object, and an object holding it as `results` with the texts as `outputs`;
    -1 stands there for an answer that named no option.
    """
    content = _read_object(path)
    if content.get("format") == FORMAT:
        return _result(path, content).predictions
    options, texts = content, None
    if isinstance(content.get("results"), dict):
        options, texts = content["results"], content.get("outputs")
    outputs: dict[str, Any] = texts if isinstance(texts, dict) else {}
    if not options:
        raise EvalError(f"{path}: no predictions in it")
    for pid, option in options.items():
        if not isinstance(option, int) or isinstance(option, bool) or option < -1:
            raise EvalError(
                f"{path}: neither a result of `python -m eval` nor question id -> index of the option "
                f"(-1: none): {pid!r} has {shown(option)}"
            )
    return {
        pid: Prediction(None if option == -1 else option, text=outputs.get(pid))
        for pid, option in options.items()
    }


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvalError(f"{path}: no such file; name a result file or published predictions") from None
    except OSError as error:
        raise EvalError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise EvalError(f"{path}: not a JSON file (it is not text in UTF-8)") from None
    except RecursionError:
        raise EvalError(f"{path}: not a file of predictions (nested too deep)") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise EvalError(f"{path}: broken JSON at {where}: {error.msg}; write the file anew") from None
    except ValueError as error:
        raise EvalError(f"{path}: holds a number that is none ({error})") from None
    if not isinstance(content, dict):
        raise EvalError(f"{path}: holds {shown(content)} where an object was expected")
    return content


def _result(path: Path, content: Mapping[str, Any]) -> Result:
    missing = [part for part in _PARTS if part not in content]
    if missing:
        raise EvalError(f"{path}: a result file without {', '.join(missing)}; evaluate again")
    try:
        categories = {name: _score(value) for name, value in content["scores"].items()}
        predictions = {pid: _prediction(value) for pid, value in content["predictions"].items()}
        scores = Scores(categories, int(content["unparsable"]), dict(content.get("notes", {})))
        parts = [dict(content[part]) for part in ("settings", "versions", "digests")]
        parts.append(dict(content.get("checks", {})))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise EvalError(f"{path}: a damaged result file ({reason}); evaluate again") from None
    return Result(scores, predictions, *parts)


def _score(value: Mapping[str, Any]) -> Score:
    """One score of a result file; what does not fit raises one of Python's own errors."""
    count, scale = int(value["count"]), float(value.get("scale", 100.0))
    if count == 0:
        return Score(None, None, None, 0, scale)
    return Score(float(value["value"]), float(value["low"]), float(value["high"]), count, scale)


def _prediction(value: Mapping[str, Any]) -> Prediction:
    """One prediction of a result file; what does not fit raises one of Python's own errors."""
    option, gold, likelihoods = value["option"], value["gold"], value["likelihoods"]
    read, score = value.get("read"), value.get("score")
    unmarked = "score" not in value and not isinstance(gold, int)  # nothing says whether it is right
    if not isinstance(option, int | None) or unmarked or (option or 0) < 0:
        raise ValueError(f"option {shown(option)}, right answer {shown(gold)}")
    if likelihoods is not None:
        likelihoods = tuple(float(number) for number in likelihoods)
        if not all(math.isfinite(number) for number in likelihoods):
            raise ValueError("a likelihood that is not a number")
    return Prediction(option, gold, value["text"], likelihoods, read, None if score is None else float(score))
