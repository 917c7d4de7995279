"""Our systems as a model of lmms-eval, so that its tasks of pictures run on them.

    python -m eval.engines lmms_eval --adapter RUN --tasks pope,mmbench_en_dev

The program brings tasks, prompts and metrics. This file puts its texts and pictures into the adapter's own
chat format. Pictures are prepared for some requests at a time, so that never more are held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from data.lengths import fit
from data.picture_workers import Pictures
from data.pictures import Prepared, to_rgb
from data.sample import Sample, Tokens
from data.template import make_template
from eval.engines.likelihood import Asked, likelihoods
from eval.engines.opening import opened, parsed, template_of
from eval.engines.writing import Writing, room_for, writing_of, written
from eval.errors import EvalError
from models.build import System

try:
    from lmms_eval.api.instance import GenerationResult, unwrap_generation_output
    from lmms_eval.api.model import lmms
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest
except ImportError as error:
    raise EvalError("this engine needs the package lmms_eval: pip install lmms_eval") from error

TOGETHER = 64  # requests whose pictures are held at a time
PASSED_OVER = ("image_aspect_ratio",)  # how other models show a picture; ours do it as they were trained
# Stands where a task names no end, and would cut every long answer behind its first paragraph. Other models
# of this program pass it over too.
NO_END = "\n\n"


class MMALMM(lmms):  # type: ignore[misc]
    """A base with an adapter that answers the requests of the program.

    Args:
        tokens_per_batch: Tokens at once: memory and speed, not the scores.
        max_gen_toks: The longest answer where a task does not name one.
    """

    is_simple = True  # asked by text and pictures, not by messages

    def __init__(self, system: System, tokens_per_batch: int = 4096, max_gen_toks: int = 1024) -> None:
        super().__init__()
        self.system = system
        self.tokens_per_batch, self.max_gen_toks = tokens_per_batch, max_gen_toks
        self._held: dict[Path, Prepared] = {}  # by what stands for the name of a file
        self._pictures = Pictures(self._held.__getitem__)
        self._template = make_template(template_of(system), system.tokenizer, self._slots)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> MMALMM:
        """The model of `--model_args`: adapter=RUN, or the settings of a base, such as decoder=FOLDER."""
        system, numbers = opened(parsed(arg_string), (additional_config or {}).get("device"))
        return cls(system, **numbers)

    @property
    def device(self) -> Any:
        """Where the model computes."""
        return self.system.model.device

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """The mean loss over an answer's tokens and its end, and whether greedy decoding writes it.

        A loss, because the program takes the option with the smallest number for the answer.
        """
        found = [(0.0, False)] * len(requests)
        for some in self._shown(requests, range(len(requests))):
            asked = [self._asked(index, requests[index].args) for index in some]
            for place, made in likelihoods(self.system, self._pictures, asked, self.tokens_per_batch):
                found[some[place]] = (-made.value / len(asked[place].text), made.greedy)
        return [_kept(pair) for pair in found]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers up to the first end that a task names, or to that of the chat format."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        found = [""] * len(requests)
        for members in groups.values():
            writing = self._writing(requests[members[0]].args[1])
            room = room_for(self.system, writing)
            for some in self._shown(requests, members):
                whole = [self._tokens(index, requests[index].args, "") for index in some]
                prompts = fit(whole, room, "truncate").tokens
                answers = written(self.system, self._pictures, prompts, writing, self.tokens_per_batch)
                for place, text in answers:
                    found[some[place]] = text
        return found

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Tasks that ask on after an answer are not run."""
        raise EvalError(
            f"task {requests[0].args[-2]!r} asks in several rounds, which this model does not do; "
            "choose another task"
        )

    def _writing(self, settings: Mapping[str, Any]) -> Writing:
        until = settings.get("until") or ()
        ends = [end for end in ((until,) if isinstance(until, str) else until) if end != NO_END]
        known = {name: value for name, value in settings.items() if name not in PASSED_OVER}
        template = self._template
        stop_ids = template.stop_ids or (self.system.tokenizer.eos_id,)
        return writing_of({**known, "until": ends}, self.max_gen_toks, template.stop, stop_ids)

    def _shown(self, requests: Sequence[Any], indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """Some requests at a time, whose pictures are held until the next ones."""
        with tqdm(total=len(indices), desc="Model Responding", disable=self.rank != 0) as bar:
            for start in range(0, len(indices), TOGETHER):
                some = indices[start : start + TOGETHER]
                self._held.clear()
                for index in some:
                    self._hold(requests[index].args)
                yield some
                bar.update(len(some))
        self._held.clear()

    def _hold(self, args: Sequence[Any]) -> None:
        """Prepares the pictures of a request, unless another request has shown them."""
        if self._images(args):
            return
        _, _, pictures_of, document, task, split = args
        for place, picture in enumerate(pictures_of(self.task_dict[task][split][document]) or ()):
            if not isinstance(picture, Image.Image):
                raise EvalError(
                    f"task {task!r} shows a {type(picture).__name__} in document {document}, but this model "
                    "sees pictures only; choose another task"
                )
            plain = to_rgb(picture)
            self._held[_folder(args) / str(place)] = Prepared(self.system.preprocess(plain), plain.size)

    def _images(self, args: Sequence[Any]) -> tuple[Path, ...]:
        return tuple(path for path in self._held if path.parent == _folder(args))

    def _slots(self, path: Path) -> int:
        return self.system.model.slots(*self._held[path].size)

    def _tokens(self, index: int, args: Sequence[Any], response: str) -> Tokens:
        """A request in the chat format; its name seeds the sampling of its answer."""
        sample = Sample(f"{_folder(args)}/{index}", args[0], "", images=self._images(args))
        return self._template.tokens(sample, response=response)

    def _asked(self, index: int, args: Sequence[Any]) -> Asked:
        _, answer, _, document, task, split = args
        text = answer if isinstance(answer, str) else answer(self.task_dict[task][split][document])
        if not str(text).strip():
            raise EvalError(f"task {task!r} has an empty answer in document {document}; choose another task")
        whole = self._tokens(index, args, str(text).strip())
        (tokens,) = fit([whole], self.system.model.decoder.config.max_positions, "truncate").tokens
        said = [place for place, supervised in enumerate(tokens.supervised) if supervised]
        start, end = said[0], said[-1] + 1
        context = replace(tokens, ids=tokens.ids[:start], supervised=(False,) * start)
        return Asked(context, tokens.ids[start:end])


def _kept(pair: tuple[float, bool]) -> Any:
    """The pair as the program keeps it: version 0.7.3 makes a text of all but what such a result holds."""
    return pair if unwrap_generation_output(pair)[0] == pair else GenerationResult(text=pair)


def _folder(args: Sequence[Any]) -> Path:
    """What stands for the folder of a document's pictures."""
    *_, document, task, split = args
    return Path(str(task)) / str(split) / str(document)


# The class of a name is given as a path, which the program imports.
MODEL_REGISTRY_V2.register_manifest(
    ModelManifest("mma", simple_class_path=f"eval.engines.lmms_eval.{MMALMM.__name__}"), overwrite=True
)
