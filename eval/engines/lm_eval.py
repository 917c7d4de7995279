"""Our systems as a model of lm-evaluation-harness, so that its tasks of text run on them.

    python -m eval.engines lm_eval --adapter RUN --tasks mmlu --num_fewshot 5

The harness brings tasks, prompts and metrics; its caches work as with any model. This file turns its requests
into tokens. Where it could do otherwise, it does as the harness's own model for `transformers` does, so that
scores can be compared.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.formats import FORMATS
from data.picture_workers import Pictures
from data.pictures import Prepared
from data.sample import Sample, Tokens, Turn
from data.template import make_template
from eval.engines.likelihood import Asked, likelihoods
from eval.engines.opening import opened, parsed, template_of
from eval.engines.writing import Writing, room_for, writing_of, written
from eval.errors import EvalError
from models.build import System

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise EvalError("this engine needs the package lm_eval: pip install lm_eval") from error

_LOG = logging.getLogger(__name__)


@register_model("mma")
class MMALM(TemplateLM):  # type: ignore[misc]
    """A base, with an adapter or without one, that answers the requests of the harness.

    Args:
        tokens_per_batch: Tokens at once: memory and speed, not the scores.
        max_gen_toks: The longest answer where a task does not name one.
    """

    def __init__(self, system: System, tokens_per_batch: int = 4096, max_gen_toks: int = 256) -> None:
        super().__init__()
        self.system = system
        self.tokens_per_batch, self.max_gen_toks = tokens_per_batch, max_gen_toks
        self.max_length = system.model.decoder.config.max_positions
        self._device = system.model.device
        self._pictures = Pictures(_no_picture)
        # A base alone was trained with no format; its identity names the first one.
        self._template = make_template(template_of(system), system.tokenizer, lambda _: 0)
        self._format = FORMATS[self._template.name]
        names = (*self._format.specials, self._format.start)
        self._specials = {
            name: self._special(name) for name in names if name and self._special(name) is not None
        }

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> MMALM:
        """The model of `--model_args`: adapter=RUN, or the settings of a base, such as decoder=FOLDER."""
        # Batches are packed by tokens: the harness's number of requests in one says nothing here.
        system, numbers = opened(arg_dict, (additional_config or {}).get("device"))
        return cls(system, **numbers)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> MMALM:
        """The same from `name=value,name=value`."""
        return cls.create_from_arg_obj(parsed(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self.system.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by."""
        begin = self.system.tokenizer.bos_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """What tells prompts that the harness keeps from those of another tokenizer."""
        return f"mma-{self.system.tokenizer.digest[:16]}-{self._template.name}"

    def get_model_info(self) -> dict[str, str]:
        """What the harness writes beside the scores."""
        return {**self.system.digests, "template": self._template.name}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text behind the begin token, special tokens of the chat format among them."""
        # What this format says instead of pictures is followed by none of them, and then by text anew.
        opening = self._format.without_pictures
        opening = opening if string.startswith(opening) else ""
        ids = self.system.tokenizer.encode(opening)
        for part in re.split(f"({'|'.join(map(re.escape, self._specials))})", string[len(opening) :]):
            if part:
                special = self._specials.get(part)
                ids += self.system.tokenizer.encode(part) if special is None else [special]
        begin = self.system.tokenizer.bos_id
        if add_special_tokens is not False and begin is not None and ids[:1] != [begin]:
            ids.insert(0, begin)
        return ids

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The name of the chat format, which is the adapter's own."""
        if isinstance(chat_template, str) and chat_template != self._template.name:
            raise EvalError(
                f"--apply_chat_template {chat_template}: the adapter was trained with {self._template.name}; "
                "give no name"
            )
        return self._template.name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text up to the next answer, or to the end of one that has begun."""
        sample = _conversation(chat_history)
        text = self._template.text(sample, response="")
        if add_generation_prompt:
            return text
        return text + self._format.answer.partition("{a}")[0] + sample.response

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        for _, _, text in requests:
            if not 0 < len(text) <= self.max_length:
                raise EvalError(
                    f"a text of {len(text)} tokens is to be scored, but this decoder holds 1 to "
                    f"{self.max_length}; choose another task"
                )
        # Behind the last token nothing is predicted, so it takes no position.
        pairs = _cut([[*context, *text] for _, context, text in requests], self.max_length + 1)
        asked = [
            Asked(_tokens(index, ids[: -len(text)]), tuple(text))
            for index, (ids, (_, _, text)) in enumerate(zip(pairs, requests, strict=True))
        ]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
        answers = likelihoods(self.system, self._pictures, asked, self.tokens_per_batch)
        for index, likelihood in tqdm(
            answers, "Running loglikelihood requests", len(asked), disable=disable_tqdm
        ):
            found[index] = (likelihood.value, likelihood.greedy)
            if requests[index][0] is not None:  # a window of a long text is no request of its own
                self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, those too long in windows; every token counts once."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            # Without the begin token: it is what stands before the text, not a part of it.
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to the first end that a task names, or to the end of the text."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        found = [""] * len(requests)
        stop_ids = (self.eot_token_id, *self._template.stop_ids)
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for members in groups.values():
                writing = writing_of(
                    requests[members[0]].args[1], self.max_gen_toks, self._template.stop, stop_ids
                )
                for place, text in self._written(requests, members, writing):
                    index = members[place]
                    found[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
                    bar.update()
        return found

    def _written(
        self, requests: Sequence[Any], members: Sequence[int], writing: Writing
    ) -> Iterator[tuple[int, str]]:
        texts = [self.tok_encode(requests[index].args[0]) or [self.prefix_token_id] for index in members]
        fitted = _cut(texts, room_for(self.system, writing))
        prompts = [_tokens(index, ids) for index, ids in zip(members, fitted, strict=True)]
        return written(self.system, self._pictures, prompts, writing, self.tokens_per_batch)

    def _special(self, name: str) -> int | None:
        """The id of a special token of the format; None where the tokenizer has no such begin."""
        tokenizer = self.system.tokenizer
        if name in ("<s>", "</s>"):
            return tokenizer.bos_id if name == "<s>" else tokenizer.eos_id
        return tokenizer.special(name)


def _tokens(index: int, ids: Sequence[int]) -> Tokens:
    """A text without pictures; its name seeds the sampling of its answer."""
    return Tokens(str(index), tuple(ids), (False,) * len(ids), slots=(), modality="text")


def _cut(texts: Sequence[list[int]], room: int) -> list[list[int]]:
    """The end of what is too long; the begin token goes too, as it does in the harness's own model."""
    if long := sum(len(ids) > room for ids in texts):
        _LOG.warning(
            "%d of %d requests have more than %d tokens; their beginning is left out", long, len(texts), room
        )
    return [ids[-room:] for ids in texts]


def _no_picture(path: Path) -> Prepared:
    raise AssertionError(f"no request of text shows a picture, but {path} was asked for")


def _conversation(messages: Sequence[Mapping[str, str]]) -> Sample:
    """Messages as a sample, whose response is what the last answer begins with."""
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    turns = list(messages[system is not None :])
    begun = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
    roles = ["user" if place % 2 == 0 else "assistant" for place in range(len(turns))]
    if not turns or [turn["role"] for turn in turns] != roles:
        raise EvalError(
            f"a conversation of {', '.join(turn['role'] for turn in messages)} is asked for, but questions "
            "and answers must take turns; leave --apply_chat_template out"
        )
    pairs = zip(turns[:-1:2], turns[1::2], strict=True)
    earlier = tuple(Turn(question["content"], answer["content"]) for question, answer in pairs)
    return Sample("chat", turns[-1]["content"], begun, earlier=earlier, system=system)
