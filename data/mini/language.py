"""The text-only families of the mini world: small tables of words that belong together.

Every table maps a key to its answer; a question names the key and offers answers of other keys as
distractors. Knows nothing of pictures, files or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32


@dataclass(frozen=True)
class WordTable:
    """Pairs of a key and its answer, with the wordings of question and statement."""

    name: str
    subject: str
    topic: str
    pairs: Mapping[str, str]
    wordings: tuple[str, ...]
    statements: tuple[str, ...]
    lecture: str

    def distractors(self, key: str) -> tuple[str, ...]:
        """Every answer of the table that is wrong for this key, in a fixed order."""
        right = self.pairs[key]
        return tuple(sorted({answer for answer in self.pairs.values() if answer != right}))

    def reserved(self, key: str, options: tuple[str, ...]) -> bool:
        """Whether this key with this set of options belongs to the evaluation splits alone."""
        return crc32("|".join((self.name, key, *sorted(options))).encode()) % 5 == 0


def _pairs(text: str) -> dict[str, str]:
    return dict(item.split(":") for item in text.split())


OPPOSITES = _pairs(
    "hot:cold big:small fast:slow happy:sad open:closed early:late full:empty hard:soft heavy:light "
    "high:low long:short loud:quiet new:old rich:poor strong:faint wet:dry wide:narrow young:aged "
    "clean:dirty deep:shallow sharp:blunt brave:afraid thick:thin bright:dark"
)
PAST = _pairs(
    "go:went eat:ate see:saw take:took give:gave write:wrote run:ran sing:sang swim:swam drive:drove "
    "fly:flew know:knew grow:grew draw:drew break:broke speak:spoke choose:chose begin:began "
    "drink:drank find:found"
)
PLURALS = _pairs(
    "mouse:mice goose:geese foot:feet tooth:teeth child:children man:men woman:women leaf:leaves "
    "wolf:wolves knife:knives box:boxes city:cities baby:babies story:stories"
)
CAPITALS = _pairs(
    "France:Paris Italy:Rome Spain:Madrid Germany:Berlin Japan:Tokyo Egypt:Cairo Peru:Lima "
    "Kenya:Nairobi Norway:Oslo Greece:Athens Cuba:Havana Poland:Warsaw Austria:Vienna Russia:Moscow "
    "Turkey:Ankara Portugal:Lisbon Finland:Helsinki Ireland:Dublin Chile:Santiago Canada:Ottawa"
)
CONTINENTS = _pairs(
    "France:Europe Italy:Europe Spain:Europe Poland:Europe Norway:Europe Japan:Asia China:Asia "
    "India:Asia Nepal:Asia Egypt:Africa Kenya:Africa Ghana:Africa Mali:Africa Peru:America "
    "Chile:America Cuba:America Canada:America"
)
ANIMAL_GROUPS = _pairs(
    "horse:mammal whale:mammal bat:mammal cow:mammal lion:mammal eagle:bird penguin:bird duck:bird "
    "parrot:bird salmon:fish trout:fish tuna:fish cod:fish ant:insect bee:insect beetle:insect "
    "moth:insect lizard:reptile turtle:reptile crocodile:reptile"
)
MATERIALS = _pairs(
    "window:glass bottle:glass mirror:glass plank:wood log:wood fence:wood nail:metal coin:metal "
    "spoon:metal towel:cotton shirt:cotton sock:cotton book:paper letter:paper map:paper"
)
TRADES = _pairs(
    "bread:baker shoes:cobbler coat:tailor chair:carpenter sword:smith painting:painter song:singer "
    "cheese:farmer medicine:doctor lesson:teacher bridge:engineer"
)
WORD_KINDS = _pairs(
    "table:noun river:noun garden:noun pencil:noun jump:verb listen:verb carry:verb build:verb "
    "gentle:adjective purple:adjective round:adjective tiny:adjective slowly:adverb quickly:adverb "
    "quietly:adverb often:adverb"
)

TABLES: tuple[WordTable, ...] = (
    WordTable(
        "opposites",
        "language science",
        "vocabulary",
        OPPOSITES,
        ("Which word is the opposite of {}?", "Which word means the opposite of {}?"),
        ("The opposite of {} is {}.",),
        "Words with opposite meanings are called antonyms.",
    ),
    WordTable(
        "past_tense",
        "language science",
        "verbs",
        PAST,
        ("What is the past tense of {}?", "Which word tells that someone did {} in the past?"),
        ("The past tense of {} is {}.",),
        "The past tense of a verb tells what happened before now. Some verbs are irregular.",
    ),
    WordTable(
        "plurals",
        "language science",
        "reference-skills",
        PLURALS,
        ("What is the plural of {}?", "Which word means more than one {}?"),
        ("The plural of {} is {}.",),
        "A plural noun names more than one thing. Some plurals are irregular.",
    ),
    WordTable(
        "word_kinds",
        "language science",
        "grammar",
        WORD_KINDS,
        ("What kind of word is {}?", "Which part of speech is {}?"),
        ("The word {} is of the kind {}.",),
        "A noun names a thing, a verb an action, an adjective describes a noun, an adverb a verb.",
    ),
    WordTable(
        "capitals",
        "social science",
        "geography",
        CAPITALS,
        ("What is the capital of {}?", "Which city is the capital of {}?"),
        ("The capital of {} is {}.",),
        "The capital of a country is the city where its government sits.",
    ),
    WordTable(
        "continents",
        "social science",
        "geography",
        CONTINENTS,
        ("On which continent is {}?", "Which continent does {} belong to?"),
        ("The country {} belongs to {}.",),
        "A continent is one of the large areas of land on the earth.",
    ),
    WordTable(
        "trades",
        "social science",
        "economics",
        TRADES,
        ("Who makes or gives {}?", "Whose work is {}?"),
        ("The work of making or giving {} is done by the {}.",),
        "People do different kinds of work and trade what they make.",
    ),
    WordTable(
        "animal_groups",
        "natural science",
        "biology",
        ANIMAL_GROUPS,
        ("To which group of animals does the {} belong?", "What kind of animal is the {}?"),
        ("The {} belongs to the group {}.",),
        "Scientists sort animals into groups such as mammals, birds, fish, reptiles and insects.",
    ),
    WordTable(
        "materials",
        "natural science",
        "chemistry",
        MATERIALS,
        ("Which material is the {} made of?", "What is the {} most likely made of?"),
        ("The {} is made of {}.",),
        "A material is a kind of matter that things are made of.",
    ),
)
