"""Chat formats: rendered byte for byte, what is supervised, and the ids of the whole string."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data.errors import DataError
from data.formats import FORMATS
from data.pictures import slot_counter
from data.sample import Sample, Tokens, Turn
from data.template import TEMPLATES, Template, make_template
from models.tokenizer import JsonTokenizer, load_tokenizer

MINI = Path(__file__).parents[2] / "assets/mini/decoder/tokenizer.model"
SPECIALS = (
    "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
S1 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
S2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that "
    "the user provides, and assist the user with a variety of tasks using natural language."
)
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
_LLAMA_3 = "".join(
    _HEADER.format(*turn)
    for turn in (("system", S2), ("user", "q1"), ("assistant", "a1!"), ("user", "q2"), ("assistant", "a2"))
)
_CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1!<|im_end|>\n"
    "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n"
)
_VICUNA = f"{S1} USER: q1 ASSISTANT: a1!</s>USER: q2 ASSISTANT: a2</s>"
_ZEPHYR = (
    "<|user|>\nq1<|endoftext|>\n<|assistant|>\na1!<|endoftext|>\n"
    "<|user|>\nq2<|endoftext|>\n<|assistant|>\na2<|endoftext|>\n"
)
_HUMAN = _VICUNA.replace("curious user", "curious human").replace("the user's", "the human's")
_DIRECT = _CHATML.replace("<|im_end|>\n", "<|im_end|>")
RENDERED = {
    "vicuna_v1": _VICUNA,
    "llava_v1": _HUMAN,
    "llava_v0": _HUMAN[: _HUMAN.index(" USER")]
    + "###Human: q1###Assistant: a1!###Human: q2###Assistant: a2###",
    "mpt": _DIRECT.replace(
        "You are a helpful assistant.",
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest "
        "answers.",
    ),
    "tinyllama": _VICUNA,
    "phi": _VICUNA.replace("</s>", "<|endoftext|>"),
    "llava_llama_2": f"[INST] <<SYS>>\n{S2}\n<</SYS>>\n\nq1 [/INST] a1! </s><s>[INST] q2 [/INST] a2 </s>",
    "llama_3": "<|begin_of_text|>" + _LLAMA_3,
    "chatml": _CHATML,
    "chatml_direct": _DIRECT.replace("You are a helpful assistant.", "Answer the questions."),
    "qwen2_5": _CHATML.replace("You are a", "You are Qwen, created by Alibaba Cloud. You are a"),
    "mistral": "[INST] q1 [/INST] a1! </s>[INST] q2 [/INST] a2 </s>",
    "mistral_chat": "[INST] q1 [/INST] a1!</s>[INST] q2 [/INST] a2</s>",
    "phi_instruct": "Instruct: q1\nOutput: a1!<|endoftext|>\nInstruct: q2\nOutput: a2<|endoftext|>\n",
    "tinyllama_chat": _ZEPHYR.replace("<|endoftext|>", "</s>"),
    "stablelm": _ZEPHYR,
    "zephyr": _ZEPHYR,
    "lavin": "Image: N/Aq1a1!</s>q2a2</s>",
    "lavin_chat": ("Image: N/AInstruction: q1\nResponse:a1!</s>Instruction: q2\nResponse:a2</s>"),
}
SUPERVISED = {
    "llava_llama_2": " a1! </s> a2 </s>",
    "llama_2": " a1! </s> a2 </s>",
    "mistral": " a1! </s> a2 </s>",
    "mistral_chat": " a1!</s> a2</s>",
    "qwen2_5": "a1!<|im_end|>a2<|im_end|>",
    "vicuna_v1": " a1!</s> a2</s>",
    "llava_v1": " a1!</s> a2</s>",
    "llava_v0": " a1!### a2###",
    "mpt": "a1!<|im_end|>a2<|im_end|>",
    "tinyllama": " a1!</s> a2</s>",
    "phi": " a1!<|endoftext|> a2<|endoftext|>",
    "phi_instruct": " a1!<|endoftext|> a2<|endoftext|>",
    "llama_3": "a1!<|eot_id|>a2<|eot_id|>",
    "chatml": "a1!<|im_end|>a2<|im_end|>",
    "chatml_direct": "a1!<|im_end|>a2<|im_end|>",
    "tinyllama_chat": "a1!</s>a2</s>",
    "stablelm": "a1!<|endoftext|>a2<|endoftext|>",
    "zephyr": "a1!<|endoftext|>a2<|endoftext|>",
    "lavin": "a1!</s>a2</s>",
    "lavin_chat": "a1!</s>a2</s>",
}
CHATS = tuple(name for name in TEMPLATES if name != "plain")
CHAT = Sample("7", "q2", "a2", earlier=(Turn("q1", "a1!"),))
PICTURE = replace(CHAT, images=(Path("a.png"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of all bytes ("!" is id 0) and the special tokens of every family."""
    made: Path = tmp_path_factory.mktemp("bytes")
    vocab = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(made / "tokenizer.json"))
    config = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> Tokenizer:
    """The library's own tokenizer, which reads special tokens in a whole string."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def made(folder: Path, name: str) -> Template:
    return make_template(name, JsonTokenizer(folder / "tokenizer.json"), slot_counter(3))


def supervised_text(whole: Tokenizer, tokens: Tokens) -> str:
    ids = [i for i, is_target in zip(tokens.ids, tokens.supervised, strict=True) if is_target]
    return str(whole.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("name", RENDERED)
def test_rendered(folder: Path, name: str) -> None:
    assert made(folder, name).text(CHAT) == RENDERED[name]


def test_llama_2_has_metas_system_prompt(folder: Path) -> None:
    text = made(folder, "llama_2").text(CHAT)
    assert text.startswith("[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always")
    assert text.endswith("false information.\n<</SYS>>\n\nq1 [/INST] a1! </s><s>[INST] q2 [/INST] a2 </s>")


@pytest.mark.parametrize("name", CHATS)
def test_ids_are_those_of_the_whole_string(folder: Path, whole: Tokenizer, name: str) -> None:
    template = made(folder, name)
    text = template.text(CHAT)
    begin = "<s>" if name not in ("llama_3", "chatml", "chatml_direct", "mpt", "qwen2_5") else ""
    assert list(template.tokens(CHAT).ids) == whole.encode(begin + text).ids


@pytest.mark.parametrize("name", CHATS)
def test_supervised_are_the_answers_and_their_ends(folder: Path, whole: Tokenizer, name: str) -> None:
    for sample in (CHAT, PICTURE):
        assert supervised_text(whole, made(folder, name).tokens(sample)) == SUPERVISED[name]


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("sample", [CHAT, PICTURE])
def test_a_prompt_is_where_the_answer_begins(folder: Path, name: str, sample: Sample) -> None:
    full, prompt = made(folder, name).tokens(sample), made(folder, name).tokens(sample, response="")
    assert prompt.ids == full.ids[: len(prompt)]
    assert full.supervised[len(prompt)]
    assert full.supervised[: len(prompt)] == prompt.supervised


def test_plain_is_the_picture_and_its_caption(folder: Path, whole: Tokenizer) -> None:
    template = made(folder, "plain")
    sample = Sample("7", "dropped", "a dog", (Path("a.png"),))
    tokens = template.tokens(sample)
    assert template.text(sample) == "<image>a dog\n"
    assert (supervised_text(whole, tokens), tokens.slots, template.stop) == ("a dog\n", (1, 2, 3), ("\n",))
    with pytest.raises(DataError, match="sample 7: this template is for captions of pictures"):
        template.tokens(CHAT)


def test_stops(folder: Path, whole: Tokenizer) -> None:
    stops = {
        "llama_3": ["<|eot_id|>", "<|end_of_text|>"],
        **{key: ["<|im_end|>", "<|endoftext|>"] for key in ("chatml", "qwen2_5")},
        **{key: ["<|im_end|>"] for key in ("chatml_direct", "mpt")},
        **{key: ["<|endoftext|>"] for key in ("phi", "phi_instruct", "stablelm", "zephyr")},
    }
    for name in TEMPLATES:
        assert [whole.id_to_token(i) for i in made(folder, name).stop_ids] == stops.get(name, ["</s>"])


def test_pictures_stand_in_front_or_at_their_marks(folder: Path) -> None:
    template = made(folder, "vicuna_v1")
    assert "USER: <image>\nq1 ASSISTANT" in template.text(PICTURE)
    two = replace(
        CHAT, prompt="and <image>?", images=(Path("a"), Path("b")), earlier=(Turn("<image>q", "a"),)
    )
    tokens = template.tokens(two)
    assert "USER: <image>q ASSISTANT: a</s>USER: and <image>? ASS" in template.text(two)
    assert (tokens.slot_counts, len(tokens.slots), tokens.modality) == ((3, 3), 6, "images")
    assert [tokens.ids[slot] for slot in tokens.slots] == [0] * 6
    assert tokens.slots[3] > tokens.slots[2] + 1
    with pytest.raises(DataError, match="sample 7 has 2 <image> marks for 1 pictures; put one mark for each"):
        template.tokens(replace(two, images=(Path("a"),)))


def test_lavin_moves_pictures_behind_its_prefix(folder: Path) -> None:
    sample = Sample("7", "<image>\nq", "a", (Path("a"),))
    assert made(folder, "lavin_chat").text(sample) == "Image: <image>Instruction: q\nResponse:a</s>"


@pytest.mark.parametrize("name", CHATS)
def test_what_a_user_types_stays_text(folder: Path, whole: Tokenizer, name: str) -> None:
    typed = "".join(SPECIALS) + "<image>{q}{a}{system}"
    count = made(folder, name).tokens(replace(CHAT, prompt="q"))
    tokens = made(folder, name).tokens(replace(CHAT, prompt=typed, system=None))
    ids = {whole.token_to_id(special) for special in SPECIALS}
    assert sum(i in ids for i in tokens.ids) == sum(i in ids for i in count.ids)
    assert typed in made(folder, name).text(replace(CHAT, prompt=typed)) and tokens.slots == ()


def test_a_samples_own_system_prompt(folder: Path) -> None:
    own = replace(CHAT, system="Be brief.")
    assert made(folder, "vicuna_v1").text(own).startswith("Be brief. USER: q1")
    assert made(folder, "zephyr").text(own).startswith("<|system|>\nBe brief.<|endoftext|>\n<|user|>\nq1")
    assert made(folder, "chatml").text(replace(own, system="")).startswith("<|im_start|>user\nq1")


def test_exclamation_marks_survive_where_they_are_id_0(folder: Path, whole: Tokenizer) -> None:
    tokens = made(folder, "llama_3").tokens(Sample("7", " q! ", " a!! "))
    assert whole.token_to_id("!") == 0
    assert (tokens.ids.count(0), tokens.slots) == (3, ())
    assert supervised_text(whole, tokens) == "a!!<|eot_id|>"


def test_the_head_holds_system_and_leading_pictures(folder: Path, whole: Tokenizer) -> None:
    tokens = made(folder, "vicuna_v1").tokens(CHAT)
    assert whole.decode(list(tokens.ids[: tokens.head])).endswith("questions. USER: ")
    tokens = made(folder, "chatml").tokens(PICTURE)
    assert tokens.head == tokens.slots[-1] + 1
    tokens = make_template("vicuna_v1", load_tokenizer(MINI), slot_counter(3)).tokens(CHAT)
    assert load_tokenizer(MINI).decode(tokens.ids[: tokens.head]).endswith(" USER: ")


@pytest.mark.parametrize("name", ["vicuna_v1", "llama_2", "mistral", "mistral_chat", "tinyllama_chat"])
def test_sentencepiece_text_is_that_of_the_string_between_special_tokens(name: str) -> None:
    tokenizer = load_tokenizer(MINI)
    template = make_template(name, tokenizer, slot_counter(3))
    expected = [tokenizer.special("<s>")]
    for chunk in filter(None, re.split("(</?s>)", template.text(CHAT))):
        is_special = chunk in ("<s>", "</s>")
        expected += [tokenizer.special(chunk)] if is_special else tokenizer.encode(chunk)
    assert list(template.tokens(CHAT).ids) == expected


# What the vendors publish with their tokenizers, less what refuses a wrong order of turns.
_H4 = (  # HuggingFaceH4/zephyr-7b-beta; TinyLlama-1.1B-Chat-v1.0 and stablelm-2-zephyr-1_6b have it too
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
_QWEN = (  # Qwen/Qwen2-7B-Instruct; Qwen2.5's differs in the system prompt, and where there are tools
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_JINJA = {
    "chatml": _QWEN,
    "qwen2_5": _QWEN.replace("You are a", "You are Qwen, created by Alibaba Cloud. You are a"),
    # meta-llama/Meta-Llama-3-8B-Instruct
    "llama_3": "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    # meta-llama/Llama-2-7b-chat-hf
    "llama_2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + "
    "'\n<</SYS>>\n\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}",
    # mistralai/Mistral-7B-Instruct-v0.2, less the space in front of each "[INST]": there it says that a
    # sentence begins, which SentencePiece says itself
    "mistral_chat": "{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system_message = messages[0]['content'] %}\n    {%- set loop_messages = messages[1:] %}\n"
    "{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n\n{{- bos_token }}\n"
    "{%- for message in loop_messages %}\n    {%- if message['role'] == 'user' %}\n"
    "        {%- if loop.first and system_message is defined %}\n"
    "            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}\n"
    "        {%- else %}\n            {{- '[INST] ' + message['content'] + ' [/INST]' }}\n"
    "        {%- endif %}\n    {%- elif message['role'] == 'assistant' %}\n"
    "        {{- ' ' + message['content'] + eos_token}}\n    {%- endif %}\n{%- endfor %}\n",
    "tinyllama_chat": _H4,
    "zephyr": _H4,
}
_WITHOUT_DEFAULT = ("llama_2", "llama_3")  # the vendor has no system prompt of its own in the template
_QUESTIONS = [{"role": "user", "content": "q1"}, {"role": "user", "content": "q2"}]
_ANSWERS = [{"role": "assistant", "content": "a1!"}, {"role": "assistant", "content": "a2"}]


@pytest.mark.parametrize("system", [None, " Be brief. "])
@pytest.mark.parametrize("name", _JINJA)
def test_equal_to_the_chat_template_of_the_vendor(
    folder: Path, whole: Tokenizer, name: str, system: str | None
) -> None:
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token="<|begin_of_text|>" if name == "llama_3" else "<s>",
        eos_token="<|endoftext|>" if name == "zephyr" else "</s>",
        chat_template=_JINJA[name],
    )
    template, sample = made(folder, name), replace(CHAT, system=system)
    shown = FORMATS[name].system if system is None and name in _WITHOUT_DEFAULT else system
    turns = [turn for pair in zip(_QUESTIONS, _ANSWERS, strict=True) for turn in pair]
    messages = [*([{"role": "system", "content": shown}] if shown else []), *turns]
    start = ["<s>"] if FORMATS[name].start == "<s>" else []
    of_template = start if "bos_token" not in _JINJA[name] else []
    begin = [whole.token_to_id(token) for token in of_template]
    told = oracle.apply_chat_template(messages, tokenize=False)
    assert "".join(start) + template.text(sample) == "".join(of_template) + told
    assert list(template.tokens(sample).ids) == begin + oracle.apply_chat_template(
        messages, return_dict=False
    )
    asked = oracle.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert list(template.tokens(sample, response="").ids) == begin + asked


def test_no_begin_token_where_the_family_has_none(folder: Path) -> None:
    tokenizer = JsonTokenizer(folder / "tokenizer.json")
    tokenizer.bos_id = None
    tokens = make_template("phi", tokenizer, slot_counter(3)).tokens(CHAT)
    assert tokens.ids == made(folder, "phi").tokens(CHAT).ids[1:]


def test_an_unknown_name() -> None:
    with pytest.raises(DataError, match="template 'vicuna' is unknown; choose one of vicuna_v1, llava_v1"):
        make_template("vicuna", load_tokenizer(MINI), slot_counter(3))
