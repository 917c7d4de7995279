"""Generation settings of evaluation programs, and answers by them: greedy, sampled or by beams.

The programs name their settings as `transformers` does. Knows nothing of their requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.picture_workers import Pictures
from data.sample import Tokens
from eval.errors import EvalError
from models.beam import search_all
from models.build import System
from models.generate import Queue, Sampling, answer_all

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first given counts
KNOWN = (*LENGTHS, "until", "do_sample", "temperature", "top_p", "num_beams", "length_penalty")


@dataclass(frozen=True)
class Writing:
    """How answers are written."""

    sampling: Sampling
    beams: int = 1
    length_penalty: float = 1.0


def writing_of(
    settings: Mapping[str, Any], longest: int, stop: Sequence[str] = (), stop_ids: Sequence[int] = ()
) -> Writing:
    """The settings of a request; `longest` where it names no length, and ends beside those it names.

    A setting that would change the answers and is not known here is refused rather than passed over.
    """
    if unknown := [name for name, value in settings.items() if name not in KNOWN and value]:
        raise EvalError(
            f"generation setting {unknown[0]!r} is {settings[unknown[0]]!r}, which is unknown here; leave it "
            f"out, known are {', '.join(KNOWN)}"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    until = given.get("until", ())
    ends = (*((until,) if isinstance(until, str) else until), *stop)
    temperature = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0))
    # Greedy answers do not ask for the nucleus, and the programs then write what they like for it.
    drawn = temperature > 0 and given.get("do_sample") is not False
    sampling = Sampling(
        max_new_tokens=next((int(given[name]) for name in LENGTHS if name in given), longest),
        temperature=temperature if drawn else 0.0,
        top_p=float(given.get("top_p", 1.0)) if drawn else 1.0,
        stop=tuple(dict.fromkeys(end for end in ends if end)),
        stop_ids=tuple(dict.fromkeys(stop_ids)),
    )
    return Writing(sampling, int(given.get("num_beams", 1)), float(given.get("length_penalty", 1.0)))


def written(
    system: System, pictures: Pictures, prompts: Sequence[Tokens], writing: Writing, budget: int
) -> Iterator[tuple[int, str]]:
    """Every answer with the index of its prompt, as they end, with a cache of `budget` tokens."""
    queue = Queue(
        [len(prompt) for prompt in prompts],
        lambda group: pictures.batch([prompts[index] for index in group]).to(system.model.device),
    )
    if writing.beams == 1:
        return answer_all(system, queue, writing.sampling, budget)
    return search_all(system, queue, writing.beams, writing.sampling, budget, writing.length_penalty)


def room_for(system: System, writing: Writing) -> int:
    """How long a prompt may be for its answer to fit the decoder's positions."""
    positions = system.model.decoder.config.max_positions
    longest = writing.sampling.max_new_tokens
    if longest >= positions:
        raise EvalError(
            f"an answer of {longest} tokens leaves no room for its question in the {positions} positions of "
            "this decoder; lower max_gen_toks (--gen_kwargs max_gen_toks=N)"
        )
    return positions - longest
