"""How each chat format is written, as data; `template.py` renders them all.

In a pattern `{q}`, `{a}` and `{system}` are places of text; a name listed in `specials` is that special
token, and nothing else ever is. `<s>` and `</s>` are the tokenizer's begin and end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_HUMAN = _VICUNA.replace("curious user", "curious human").replace("the user's", "the human's")
_LLAVA = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that "
    "the user provides, and assist the user with a variety of tasks using natural language."
)
# Meta's prompt for LLaMA-2-chat.
_SAFETY = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while "
    "being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, "
    "dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive "
    "in nature.\n\nIf a question does not make any sense, or is not factually coherent, explain why "
    "instead of answering something not correct. If you don't know the answer to a question, please "
    "don't share false information."
)


@dataclass(frozen=True)
class Format:
    """One chat format: what stands around questions, answers and pictures."""

    question: str  # {opening} stands where the first question has the system prompt
    answer: str  # supervised, its end token included
    opening: str = ""  # around {system}
    system: str | None = None  # the prompt where a sample has none of its own
    start: str = "<s>"  # before everything; left out by tokenizers without a begin token
    again: str = ""  # before every question but the first
    after: str = ""  # behind every answer, not supervised
    specials: tuple[str, ...] = ("</s>",)
    stops: tuple[str, ...] = ("</s>",)  # special tokens that end generation
    stop: tuple[str, ...] = ()  # texts that end generation
    strip: bool = False  # texts lose the space around them
    before_pictures: str | None = None  # pictures stand behind this text, wherever their marks are
    without_pictures: str = ""  # stands there instead when there is no picture
    keeps_question: bool = True


_VICUNA_V1 = Format(
    question="{opening}USER: {q} ASSISTANT:", answer=" {a}</s>", opening="{system} ", system=_VICUNA
)
_LLAMA_2 = Format(
    question="[INST] {opening}{q} [/INST]",
    answer=" {a} </s>",
    opening="<<SYS>>\n{system}\n<</SYS>>\n\n",
    system=_SAFETY,
    again="<s>",
    specials=("<s>", "</s>"),
)
_CHATML = Format(
    question="{opening}<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
    answer="{a}<|im_end|>",
    opening="<|im_start|>system\n{system}<|im_end|>\n",
    system="You are a helpful assistant.",
    start="",
    after="\n",
    specials=("<|im_start|>", "<|im_end|>"),
    stops=("<|im_end|>", "<|endoftext|>"),
)
_PHI = replace(_VICUNA_V1, answer=" {a}<|endoftext|>", specials=("<|endoftext|>",), stops=("<|endoftext|>",))
_ZEPHYR = Format(
    question="{opening}<|user|>\n{q}<|endoftext|>\n<|assistant|>\n",
    answer="{a}<|endoftext|>",
    opening="<|system|>\n{system}<|endoftext|>\n",
    after="\n",
    specials=("<|endoftext|>",),
    stops=("<|endoftext|>",),
)
_MISTRAL = Format(question="[INST] {opening}{q} [/INST]", answer=" {a} </s>", opening="{system}\n\n")
_DIRECT = replace(
    _CHATML,
    question="{opening}<|im_start|>user\n{q}<|im_end|><|im_start|>assistant\n",
    opening="<|im_start|>system\n{system}<|im_end|>",
    system="Answer the questions.",
    after="",
    stops=("<|im_end|>",),
)
_LAVIN = Format(question="{q}", answer="{a}</s>", before_pictures="Image: ", without_pictures="Image: N/A")

FORMATS: dict[str, Format] = {
    "vicuna_v1": _VICUNA_V1,
    "llava_v1": replace(_VICUNA_V1, system=_HUMAN),
    "llava_v0": Format(
        question="{opening}Human: {q}###Assistant:",
        answer=" {a}###",
        opening="{system}###",
        system=_HUMAN,
        stop=("###",),
    ),
    "llama_2": _LLAMA_2,
    "llava_llama_2": replace(_LLAMA_2, system=_LLAVA),
    "llama_3": Format(
        question="{opening}<|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer="{a}<|eot_id|>",
        opening="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        system=_LLAVA,
        start="<|begin_of_text|>",
        specials=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        stops=("<|eot_id|>", "<|end_of_text|>"),
        strip=True,
    ),
    "chatml": _CHATML,
    "chatml_direct": _DIRECT,
    "mpt": replace(
        _DIRECT,
        system="A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
        "honest answers.",
    ),
    "qwen2_5": replace(
        _CHATML, system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    "mistral": _MISTRAL,
    "mistral_chat": replace(_MISTRAL, answer=" {a}</s>"),
    "phi": _PHI,
    "phi_instruct": replace(
        _PHI, question="{opening}Instruct: {q}\nOutput:", opening="{system}\n", system=None, after="\n"
    ),
    "tinyllama": _VICUNA_V1,
    "tinyllama_chat": Format(
        question="{opening}<|user|>\n{q}</s>\n<|assistant|>\n",
        answer="{a}</s>",
        opening="<|system|>\n{system}</s>\n",
        after="\n",
    ),
    "stablelm": _ZEPHYR,
    "zephyr": _ZEPHYR,
    "plain": Format(question="", answer="{a}\n", before_pictures="", keeps_question=False, stop=("\n",)),
    "lavin": _LAVIN,
    "lavin_chat": replace(_LAVIN, question="Instruction: {q}\nResponse:"),
}
