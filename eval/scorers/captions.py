"""CIDEr, Bleu and ROUGE-L of captions that are already cut into words.

The scores are those of the package pycocoevalcap, the public Python port of the official COCO code; none of
its Java parts is used. Knows nothing of files; `eval.scorers.ptb` cuts captions into words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import EvalError

LONGEST = 4  # n-grams of 1 to 4 words


@dataclass(frozen=True)
class CaptionScores:
    """The figures of each picture, in the order of the pictures.

    Args:
        cider: Between 0 and 10. Rare words weigh more, and which are rare is counted over the references of
            the pictures scored, so a part of a set has other values; one picture alone has 0.
        rouge: Between 0 and 1.
        counts: Pictures x 10: words of the caption, words of the reference nearest in length, n-grams of
            the caption for n = 1..4, and those of them that a reference has.
    """

    cider: list[float]
    rouge: list[float]
    counts: NDArray[np.float64]

    def bleu(self, longest: int, times: Sequence[float] | NDArray[Any] | None = None) -> float:
        """Bleu of n-grams up to `longest`, each picture counted so many times (default: once)."""
        summed = self.counts.sum(0) if times is None else np.asarray(times) @ self.counts
        return bleu(summed, longest)


def score_captions(references: Mapping[str, Sequence[str]], captions: Mapping[str, str]) -> CaptionScores:
    """The scores of one caption for each picture; both arguments have the same pictures in the same order."""
    cider, rouge, scorer = _scorers()
    expected = {picture: list(texts) for picture, texts in references.items()}
    given = {picture: [captions[picture]] for picture in expected}
    _, ciders = cider.compute_score(expected, given)
    _, rouges = rouge.compute_score(expected, given)
    for picture, texts in expected.items():
        scorer += (captions[picture], texts)
    return CaptionScores(
        [float(value) for value in ciders],
        [float(value) for value in rouges],
        np.array([_counts(found) for found in scorer.ctest], dtype=float),
    )


def _scorers() -> tuple[Any, Any, Any]:
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer  # noqa: PLC0415
        from pycocoevalcap.cider.cider import Cider  # noqa: PLC0415
        from pycocoevalcap.rouge.rouge import Rouge  # noqa: PLC0415
    except ImportError:
        raise EvalError(
            "scoring captions needs the package pycocoevalcap: pip install pycocoevalcap"
        ) from None
    return Cider(LONGEST), Rouge(), BleuScorer(LONGEST)


def _counts(found: Mapping[str, Any]) -> list[float]:
    length = found["testlen"]
    nearest = min((abs(reference - length), reference) for reference in found["reflen"])[1]
    return [length, nearest, *found["guess"], *found["correct"]]


def bleu(counts: Sequence[float] | NDArray[np.float64], longest: int) -> float:
    """Bleu from summed counts, with the official tool's two small numbers against division by 0."""
    length, nearest = counts[0], counts[1]
    product = 1.0
    for n in range(longest):
        product *= (counts[2 + LONGEST + n] + 1e-15) / (counts[2 + n] + 1e-9)
    ratio = (length + 1e-15) / (nearest + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return float(product ** (1 / longest) * penalty)
