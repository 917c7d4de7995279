"""Our model inside lm-evaluation-harness gives the numbers of the harness's own model for transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf

pytest.importorskip("lm_eval", reason="the harness is an extra: pip install lm_eval")

from lm_eval.models.huggingface import HFLM

from eval.engines.lm_eval import MMALM
from eval.errors import EvalError
from models.build import System, build_base
from models.errors import ModelError
from models.generate import Sampling, generate
from tests.eval.engines.requests_of import requests
from tests.models.test_beam import sharpened
from tests.models.test_generate import prompts


@pytest.fixture(scope="module")
def base(tiny_base) -> System:
    system = build_base(tiny_base)
    sharpened(system.model.decoder.head.weight)
    return system


@pytest.fixture(scope="module")
def theirs(tiny_base) -> hf.PreTrainedModel:
    model = hf.AutoModelForCausalLM.from_pretrained(tiny_base.decoder).float().eval()
    sharpened(model.lm_head.weight)
    return model


def harness(model: hf.PreTrainedModel, decoder: str, **settings: Any) -> HFLM:
    tokenizer = hf.LlamaTokenizer.from_pretrained(decoder, add_bos_token=True)
    tokenizer.pad_token_id = 0
    settings = {"add_bos_token": True, "batch_size": 3, **settings}
    return HFLM(pretrained=model, tokenizer=tokenizer, softmax_dtype=torch.float32, **settings)


def short(system: System, positions: int) -> System:
    """The same model as if it had been trained with fewer positions."""
    decoder = system.model.decoder
    decoder.config = replace(decoder.config, max_positions=positions)
    return system


PAIRS = (
    ("The capital of", " France"),
    ("The capital of", " Spain"),
    ("The capital of", " France is Paris, of course"),
    ("The capital of", " France is Lyon"),
    ("Question: which is warm?\nA. ice\nB. steam\nAnswer:", " A"),
    ("Question: which is warm?\nA. ice\nB. steam\nAnswer:", " B"),
    ("", "hello there"),
    ("The answer is ", "blue"),  # the space goes to the text
    ("con", "tinuation"),  # one word over the border
    ("ends with a special token</s>", "</s>"),
    ("a lonely context", " 1"),
)


def test_log_likelihoods_equal_transformers(base, theirs, tiny_base):
    wanted = harness(theirs, tiny_base.decoder).loglikelihood(requests(*PAIRS), disable_tqdm=True)
    for tokens in (1, 64, 4096):
        found = MMALM(base, tokens).loglikelihood(requests(*PAIRS), disable_tqdm=True)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_what_greedy_decoding_writes_is_greedy(base, theirs):
    lm = MMALM(base)
    context = lm.tok_encode("Question: which is warm?")
    with torch.no_grad():
        whole = theirs.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False, pad_token_id=0)
        logits = theirs(whole).logits[0].log_softmax(-1)
    ids = whole[0].tolist()
    wanted = sum(float(logits[place - 1, ids[place]]) for place in range(len(context), len(ids)))
    other = [*ids[len(context) : -1], 5]
    found = lm._loglikelihood_tokens([(None, context, ids[len(context) :]), (None, context, other)], True)
    assert found[0] == (pytest.approx(wanted, abs=1e-4), True)
    assert found[1][1] is False


def test_what_is_too_long_loses_its_beginning(tiny_base, theirs, caplog):
    system = short(build_base(tiny_base), 24)
    sharpened(system.model.decoder.head.weight)
    pairs = (("warm and cold " * 9, " steam"), ("warm and cold " * 9, " steam and ice"), ("warm", " ice"))
    wanted = harness(theirs, tiny_base.decoder, max_length=24).loglikelihood(
        requests(*pairs), disable_tqdm=True
    )
    found = MMALM(system).loglikelihood(requests(*pairs), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-4)
    assert "2 of 3 requests have more than 25 tokens" in caplog.text
    with pytest.raises(EvalError, match="this decoder holds 1 to 24"):
        MMALM(system).loglikelihood(requests(("a", " long text" * 40)), disable_tqdm=True)


def test_rolling_log_likelihoods_equal_transformers(tiny_base, theirs):
    system = short(build_base(tiny_base), 24)
    sharpened(system.model.decoder.head.weight)
    texts = [("warm and cold " * 12,), ("ice",), ("",), ("Steam is " * 7,)]
    # The harness's own model counts the begin token as text where it is asked to put it.
    own = harness(theirs, tiny_base.decoder, max_length=24, add_bos_token=False)
    wanted = own.loglikelihood_rolling(requests(*texts), disable_tqdm=True)
    found = MMALM(system, 60).loglikelihood_rolling(requests(*texts), disable_tqdm=True)
    assert found == pytest.approx(wanted, abs=2e-4)
    ids = MMALM(system).tok_encode("ice")
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
    plain = sum(float(logits[place, token]) for place, token in enumerate(ids[1:]))
    assert found[1] == pytest.approx(plain, abs=1e-4)


CONTEXTS = ("Question: How warm is it?\nResponse:", "The answer", "Which word names the shape of this?")


def test_answers_equal_those_of_transformers_and_ours(base, theirs, tiny_base):
    own = harness(theirs, tiny_base.decoder, batch_size=1)
    for settings in (
        {"max_gen_toks": 9},
        {"until": ["e"], "max_gen_toks": 9},
        {"until": "\n", "max_gen_toks": 5, "do_sample": False, "temperature": 0.7},
        {"until": [], "max_new_tokens": 6, "temperature": 0.0, "top_p": 0},
    ):
        asked = requests(*((context, settings) for context in CONTEXTS))
        found = MMALM(base).generate_until(asked, disable_tqdm=True)
        if "top_p" not in settings:
            assert found == own.generate_until(asked, disable_tqdm=True)
        length = settings.get("max_gen_toks") or settings["max_new_tokens"]
        until = settings.get("until", [])
        plain = Sampling(length, stop=(until,) if isinstance(until, str) else tuple(until))
        lm = MMALM(base)
        for context, text in zip(CONTEXTS, found, strict=True):
            (batch,) = [replace(prompts(base, "x", seen=False), **packed(lm.tok_encode(context)))]
            assert generate(base, batch, plain) == [text]


def packed(ids: Sequence[int]) -> dict[str, Any]:
    """What a packed batch of one text holds."""
    return {
        "ids": torch.tensor(ids),
        "positions": torch.arange(1, len(ids) + 1),
        "lengths": (len(ids),),
    }


def test_beams_and_sampling_are_asked_for_as_in_transformers(base, theirs, tiny_base):
    beams = {"max_gen_toks": 8, "num_beams": 3}
    asked = requests(*((context, beams) for context in CONTEXTS), (CONTEXTS[0], {"max_gen_toks": 2}))
    own = harness(theirs, tiny_base.decoder, batch_size=1)
    wanted = own.generate_until(asked, disable_tqdm=True)
    assert MMALM(base).generate_until(asked, disable_tqdm=True) == wanted
    drawn = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "top_p": 0.95}
    several = MMALM(base).generate_until(requests(*[(CONTEXTS[0], drawn)] * 6), disable_tqdm=True)
    assert len(set(several)) > 1
    assert several == MMALM(base, 64).generate_until(requests(*[(CONTEXTS[0], drawn)] * 6), disable_tqdm=True)


def test_a_context_too_long_for_its_answer_loses_its_beginning(tiny_base, theirs):
    system = short(build_base(tiny_base), 24)
    sharpened(system.model.decoder.head.weight)
    asked = requests(("warm and cold " * 9, {"max_gen_toks": 6}), ("ice", {"max_gen_toks": 6}))
    own = harness(theirs, tiny_base.decoder, max_length=24, batch_size=1)
    wanted = own.generate_until(asked, disable_tqdm=True)
    assert MMALM(system).generate_until(asked, disable_tqdm=True) == wanted
    with pytest.raises(EvalError, match="an answer of 24 tokens leaves no room"):
        MMALM(system).generate_until(requests(("a", {"max_gen_toks": 24})), disable_tqdm=True)


def test_the_adapter_answers(tiny_system):
    system = tiny_system()
    lm = MMALM(system)
    found = lm.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    context, text = PAIRS[2]
    whole, start = lm.tok_encode(context + text), len(lm.tok_encode(context))
    batch = replace(
        prompts(system, "x", seen=False), **packed(whole), sources=torch.arange(start - 1, len(whole) - 1)
    )
    with torch.no_grad():
        logits = system.model(batch).log_softmax(-1)
    wanted = sum(float(row[token]) for row, token in zip(logits, whole[start:], strict=True))
    assert found[2][0] == pytest.approx(wanted, abs=1e-4)
    with system.model.adapters.disable_adapter():
        assert abs(lm.loglikelihood(requests(PAIRS[2]), disable_tqdm=True)[0][0] - wanted) > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 1.2}, "'repetition_penalty' is 1.2, which is unknown"),
        ({"num_beams": 0}, "beams is 0"),
        ({"num_beams": 2, "do_sample": True}, "temperature is 1.0, but beams"),
        ({"max_gen_toks": 0}, "max_new_tokens is 0"),
    ],
)
def test_generation_settings_that_would_not_hold_are_refused(base, settings, message):
    with pytest.raises((EvalError, ModelError), match=message):
        MMALM(base).generate_until(requests(("a", settings)), disable_tqdm=True)
