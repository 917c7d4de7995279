"""Words of a caption as the Penn Treebank tokenizer of the official caption evaluation cuts them.

The official tool is a Java program; this one needs no Java and gives the same words on ordinary captions: on
the references of COCO, on school books and reviews without exception, and on captions with signs thrown in at
random but for one in a thousand. It was built by watching what that program does. Known differences are signs
in the middle of a word. Knows nothing of scores.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that the official tool takes out. Its list also names -LRB- and its like in capitals, which never
occur because the text is lower-cased first, so brackets stay as words (quirk)."""

_CHANGED = {
    '"': "''", "“": "``", "”": "''", "«": "``", "»": "''", "‘": "`", "’": "'", "‛": "`", "‹": "`", "›": "'",
    "\x91": "`", "\x92": "'", "\x93": "``", "\x94": "''", "\x96": "--", "\x97": "--", "\x85": "...",
    "–": "--", "—": "--", "―": "--", "---": "--", "…": "...",
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "£": "#", "€": "$", "₠": "$", "¤": "$", "\x80": "$", "¢": "cents",
    "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'",
}  # fmt: skip
"""Tokens that come out as something else."""

_NOTHING = re.compile(
    r"[\U00010000-\U0010ffff\ue000-\uf8ff\ufe00-\ufe6f\ufff0-\uffff\u2010-\u2012\u2024\u2025\u2027\u203c"
    r"\u203d\u2043\u2045-\u205e\u20a1-\u20a3\u20a5-\u20ab\u20ad-\u20f0\u3003-\u3004\u3008-\u3011\u3013-\u301f"
    r"\u3030]"
)
"""Characters that the official tool throws away where they stand alone: picture signs, rare punctuation."""

# Abbreviations keep their period; some only with a capital, some only before a number.
_BEFORE = (
    "cf dr ft lt mr ms mt ph st vs wm adj adm adv ave cie col cpl det drs ens gen gov hon jos maj mfg mme "
    "mrs mtg pfc pvt rep rev sen sfc sgt spc ste alex asst atty brig capt cmdr dept elec govs insp invt "
    "mlle msgr natl pres prof reps sens supt assoc attys comdr lieut profs supts treas messrs"
)
"""Those that stand before a name; the others may end a sentence."""

_LAST = (
    "al co ct ga jr ky md mo rd rt sq sr va vt ala apr aug bhd cos dak dec esq est etc ext feb fla fri "
    "inc ind jan jul jun kan ltd mar mon neb nev nov oct plc pte pty sep seq sys tel thu tue wed wis wyo "
    "ariz assn bldg blvd bros colo conn corp intl kans mich minn mont okla penn ppte ppty ptes ptys sept "
    "tenn tues univ wisc calif pptes pptys thurs bancorp"
)
_CAPITAL = "Az La Pa Ark Del Ill Ore Tex Mass Miss Wash"
_NUMBERED = "ca no nos op pp art fig figs prop"
_STARTERS = (
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More "
    "Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When "
    "While Yet You"
)
"""Words that show, with a capital, that a new sentence begins: the period before them is its own token."""


def _either(words: str) -> str:
    return words.replace(" ", "|")


_SOME_CAPITAL = re.sub(r"(\w)(\w+)", r"\1(?i:\2)", _either(_CAPITAL))
_ENDING = f"(?:(?i:{_either(_LAST)})|{_SOME_CAPITAL})"
_ABBREVIATION = f"(?:(?i:{_either(_BEFORE)})|{_ENDING})"
_NEW_SENTENCE = rf"(?:{_either(_STARTERS)}|{_either(_STARTERS.upper())}|M[rR]\.|M[sS]\.)"

_MARKS = (
    r"\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05c5\u05c7\u0615-\u061a"
    r"\u064b-\u065e\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7-\u06e8\u06ea-\u06ed\u0711\u0730-\u074a"
    r"\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962-\u0963"
    r"\u0981-\u0983\u09bc\u09be-\u09c4\u09c7-\u09c8\u09cb-\u09cd\u09d7\u09e2-\u09e3\u0a01-\u0a03"
    r"\u0a3c\u0a3e-\u0a42\u0a47-\u0a48\u0a4b-\u0a4d\u0a81-\u0a83\u0abc\u0abe-\u0ac5\u0ac7-\u0ac9"
    r"\u0acb-\u0acd\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03\u0c3e-\u0c44"
    r"\u0c46-\u0c48\u0c4a-\u0c4d\u0c55-\u0c56\u0d3e-\u0d44\u0d46-\u0d48\u0e31\u0e34-\u0e3a"
    r"\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u1885-\u1886"
)
"""Accents and vowel signs that belong to a word; the official tool throws all others away."""

_AP = "['’\x92]"  # what stands for an apostrophe within a word
_SP = r"[\s\xa0]"
_NUMERALS = r"²³¹¼-¾\u2070-\u209f\u2150-\u218f\u2460-\u24ff\u2776-\u2793"  # Python counts them as digits
_L = rf"[^\W\d_{_NUMERALS}]"  # a letter of any alphabet
_AN = rf"(?:[^\W_{_NUMERALS}]|[{_MARKS}\u2011])"  # a letter, a digit, a mark on a letter, a firm hyphen
_END = rf"(?!{_AN})"
_LM = rf"(?:{_L}|[{_MARKS}])"  # quirk: a mark may begin a word, but stands in none with a hyphen
_WORD = rf"{_LM}{_AN}*(?:[.!?]{_LM}{_AN}*)*"
_HN = rf"(?:[^\W_{_NUMERALS}]|\u2011)"
_HYPHENED = rf"(?:[dDoOlL]{_AP}{_L}{_HN}+|{_HN}+)(?:[-_](?:[dDoOlL]{_AP}{_HN}{{2,}}|{_HN}+))*"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_POINTED = rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{_INITIALS}\.|[A-Za-z0-9]+))+"
_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_SLASHED = rf"{_PART}(?:\\?/{_PART}){{1,2}}"
_AMPERSAND = r"[A-Z]+(?:&[A-Z]+)+"
_NUMBER = r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)"
_FRACTION = r"(?:\d{1,4}[- ])?\d{1,4}\\?/\d{1,4}(?!\d)"
_DATE = r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"
# Quirk: any two to four groups of digits that are as long as those of a telephone number are one token.
_PHONE = (
    r"(?:\(\d{2,3}\)[ \xa0]?|\+{0,2}(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}"
    r"|(?:\+{0,2}\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}"
)
_ANY_WORD = f"(?:{_WORD}|{_HYPHENED}|{_POINTED}|{_AMPERSAND}|{_NUMBER}|{_DATE}|{_FRACTION})"
_TAIL = rf"(?:'(?i:[msd]|re|ve|ll)(?!{_L})|[’\x92](?i:[msd]|re|ve|ll))"
_IN_URL = r"[^\s<>|\"()]"
_ENDS_URL = r"[^\s.!?,\"<>|(){}-]"  # quirk: an apostrophe or a colon behind an address belongs to it
_DOMAIN = r"(?:com|net|org|edu)"

# The longest match is the next token, the earlier shape of two as long. Where a shape has a group, the token
# is the group alone; the rest of the match is what must follow, and it counts for the length.
_SHAPES = (
    # words that are cut in two
    rf"(?i:(can)not|(gon|wan)na|(got)ta|(lem|gim)me|('t)(?:is|was)){_END}",
    rf"([A-Za-z]*[A-MO-Za-mo-z])[nN]{_AP}[tT]",
    rf"[nN]{_AP}[tT]{_L}*",
    rf"({_ANY_WORD}){_TAIL}",
    _TAIL,
    # addresses, tags, names of accounts, entities
    rf"(?i:https?)://{_IN_URL}+{_ENDS_URL}",
    rf"(?:[A-Za-z0-9-]+\.)+{_DOMAIN}{_END}",
    rf"(?i:www)\.(?:[^\s<>|\"().]+\.)+[A-Za-z]{{2,4}}(?:/{_IN_URL}*{_ENDS_URL})?",
    r"[A-Za-z0-9][^\s<>|\"(),;]*@(?:[^\s<>|\"().,;:]+\.)*[^\s<>|\"().,;:!?']+",
    r"@[A-Za-z_]\w*",
    rf"#{_L}+",
    r"</?[A-Za-z!?][^<>\r\n]*>",
    r"&(?:amp|lt|gt|quot|apos|nbsp|#\d+);",
    # numbers
    _NUMBER,
    _DATE,
    _FRACTION,
    _PHONE,
    rf"({_AP}\d\d)(?:{_SP}|$|[.,;:!?)])",
    rf"{_AP}\d\ds",
    # words
    rf"({_ENDING}\.)[A-Za-z]{_END}",
    _WORD,
    _HYPHENED,
    _POINTED,
    _SLASHED,
    _AMPERSAND,
    rf"{_AP}[nN]{_AP}|'[nN]{_END}|[’\x92][nN]|[lLdDjJ]{_AP}|[yY]{_AP}(?={_L})|{_AP}(?i:em|til|cause)",
    rf"(?i:dunkin|somethin|ol){_AP}|(?i:c{_AP}mon|(?:e|ne|o){_AP}er|ma{_AP}am|o{_AP}clock|hallowe{_AP}en|s{_AP}mores)",
    rf"[A-Za-z]+(?:[aeiouyAEIOUY]{_AP}[aeiouAEIOU][A-Za-z]*|[oO]{_AP}[A-Z][A-Za-z]+)",
    r"[A-Za-z]\+\+|[cCfF]#|[A-Z]+\$|Ph\.D\.?",
    # periods that belong to a word
    rf"([A-Za-z])\.{_SP}+{_NEW_SENTENCE}(?:{_SP}|$)",
    rf"(?:{_ABBREVIATION}|{_INITIALS}|[A-Za-z])\.",
    rf"((?:{_WORD}|{_HYPHENED})\.)[,;:]",
    rf"((?i:{_either(_NUMBERED)})\.?){_SP}?\d",
    _INITIALS,
    # signs
    r"[“”‘’]{2}|\.\.\.|[?!]+|-{2,3}|\*+|@+|#+|_+|<<|>>|``|''",
    rf"[<>]?[:;=][-o*']?[()DPdp]{_END}|-_-|\^_\^",
)
_MARK = re.compile(f"[{_MARKS}]")
_PATTERNS = [re.compile(shape) for shape in _SHAPES]
_CURLY = re.compile(rf"[nN]?{_AP}(?i:t|[msd]|re|ve|ll)")
_PLAIN = re.compile(r"[A-Za-z]+(?=\s|$)")
_SPLIT = frozenset(["cannot", "gonna", "wanna", "gotta", "lemme", "gimme"])


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """The words of each caption, lower-cased and joined by single blanks, as the official scores take them.

    The official tool reads one file with a caption a line, and looks beyond the end of a line: "vitamin C."
    keeps its period or not by the word that the next caption begins with (quirk).
    """
    lines = [" ".join(caption.splitlines()).replace("\xad", "") for caption in captions]
    return [
        " ".join(token for token in _tokens(line, after) if token not in DROPPED)
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
    ]


def _tokens(line: str, after: str) -> list[str]:
    text = f"{line}\n{after[:40]}"
    found: list[str] = []
    place = 0
    while place < len(line):
        if text[place].isspace() or text[place] in "\xad\u200b\ufeff":
            place += 1
            continue
        plain = _PLAIN.match(text, place)
        if plain and plain[0].lower() not in _SPLIT:
            found.append(plain[0].lower())
            place = plain.end()
            continue
        token = _longest(text, place)
        place += len(token)
        if shown := _shown(token):
            found.append(shown)
    return found


def _longest(text: str, place: int) -> str:
    best, length = text[place], 0
    for pattern in _PATTERNS:
        match = pattern.match(text, place)
        if match and match.end() - place > length:
            length = match.end() - place
            best = next((part for part in match.groups() if part is not None), match[0])
    return best


def _shown(token: str) -> str:
    """The token as it is printed; nothing for a character that the official tool throws away."""
    if token in _CHANGED:
        return _CHANGED[token]
    if len(token) == 2 and token[0] in "“”‘’" and token[1] in "“”‘’":
        return _CHANGED[token[0]] + _CHANGED[token[1]]  # so two double ones become a word (quirk)
    if _NOTHING.fullmatch(token) or token == "&nbsp;" or _is_stray_mark(token):
        return ""
    if token[0] in "<>:;=" and token[-1] in "()":  # a face
        return token[:-1] + _CHANGED[token[-1]]
    if _CURLY.fullmatch(token):
        return token.lower().replace("’", "'").replace("\x92", "'")
    if token[0].isdigit() or token[0] in "<+":
        token = token.replace(" ", "\xa0")  # one token: a number with a fraction, or a tag
    if re.fullmatch(r"\(\d{2,3}\).+", token):
        token = token.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\xa0")
    return token.lower()


def _is_stray_mark(token: str) -> bool:
    return len(token) == 1 and unicodedata.category(token).startswith("M") and not _MARK.fullmatch(token)
