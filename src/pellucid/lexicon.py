"""The words that a model has learned: emoji in a prompt become words, unknown words are found.

A small model draws what it was trained on and nothing else, and its tokenizer spells any other word
without complaint. So its file has a `Lexicon`, from which the user learns which words of a prompt the
model does not know, and which known ones are nearest.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pellucid.nouns import plural, singulars, with_article

COUNTS = dict(enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine"), 2))
ALIKE = 0.8  # of two spellings, as difflib measures it
NEAREST = 3  # known things that are named for an unknown word

# Words that are not reported: those that name no thing, and those that most prompts for other models
# have and that change little. By their kind.
_PLAIN = """
a an the and or but nor so if than then else of in on at to with without by for from into onto over
under above below behind before after beside besides between among near next left right top bottom
front back side sides middle center centre centered corner inside outside around against up down along
across through toward towards off out upon within beneath underneath while during until per via
i me my mine you your yours he him his she her hers it its we us our they them their who whom whose
which what where when why how this that these those there here some any all both each every either
neither none no not other others another same such only just also too very really quite rather more
most much many less least few several enough lot lots bit kind sort type like as
one two three four five six seven eight nine ten eleven twelve dozen dozens hundred hundreds thousand
thousands first second third last
once twice single double triple couple pair group bunch herd flock set pile stack row rows column
columns grid line lines piece pieces
is are was were be been being am do does did done doing have has had having can could will would shall
should may might must let lets get gets got getting make makes made making go goes going gone went come
comes coming came take takes taking took give gives giving gave put puts putting show shows showing
shown showed draw draws drawing drawn paint paints painting painted render renders rendering rendered
create creates created depict depicting depicted illustrate illustrated generate generated want wants
need needs please see seen looking look looks looked made say says saying
sit sits sitting sat stand stands standing stood lie lies lying lay hold holds holding held wear wears
wearing wore ride rides riding rode run runs running ran walk walks walking walked jump jumps jumping
jumped fly flies flying flew swim swims swimming swam sleep sleeps sleeping slept eat eats eating ate
drink drinks drinking drank play plays playing played dance dances dancing danced sing sings singing
read reads reading cook cooks cooking smile smiles smiling smiled laugh laughing laughed cry cries
crying fall falls falling float floats floating hang hangs hanging hug hugs hugging kiss kissing fight
fighting breathe breathing burn burns burning erupt erupts erupting explode exploding
bloom blooming melt melting
chase chasing drive drives driving climb climbs climbing look carry carries carrying carried
cover covered filled surrounded shaped colored coloured made grow growing shining shine glow glowing
waving wave throw throwing catch catching watch watching talk talking work working write writing open
closed opened facing hidden wrapped topped
small big large tiny little huge great giant gigantic enormous massive mini miniature long short tall
high low deep wide narrow thick thin fat slim heavy light dark bright pale vivid deep soft hard round
square flat curved straight new old young ancient modern vintage retro classic future futuristic
beautiful pretty cute kawaii adorable lovely nice good best better bad ugly handsome gorgeous
stunning amazing
awesome cool perfect wonderful fantastic magical magic mystical mysterious epic dramatic dreamy funny
silly happy sad angry mad scared scary spooky creepy evil friendly sleepy tired lazy grumpy surprised
excited calm cozy cosy shiny glossy glittery sparkly sparkling matte rough smooth fluffy furry fuzzy
hairy wet dry clean dirty fresh ripe juicy tasty delicious sweet spicy hot cold warm frozen broken whole
half full empty fast quick slow strong weak simple plain minimal minimalist detailed intricate complex
fancy elegant luxurious royal rich poor wild real realistic photorealistic hyperrealistic cinematic
abstract surreal artistic digital traditional colorful colourful transparent metallic wooden
golden striped spotted checkered dotted random different various typical normal common special unique
picture pictures photo photos photograph photography image images drawing painting art artwork icon
icons emoji emojis sticker stickers logo symbol sign illustration sketch cartoon anime manga comic
portrait render vector pixel clipart clip style styles background backdrop scene view closeup close
shot angle lighting lit quality resolution masterpiece trending hd uhd hdr octane unreal ultra highly
super extremely color colour colors colours shade tone size shape form pattern thing things something
anything everything someone anyone somebody way today now always never forever again time
"""
PLAIN_WORDS = frozenset(_PLAIN.split())

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_JOINER = "\u200d"
_SELECTORS = re.compile("[\ufe0e\ufe0f]")
_SKIN = re.compile("[\U0001f3fb-\U0001f3ff]")
_PICTOGRAM = "[\U0001f1e6-\U0001f1ff\U0001f300-\U0001f64f\U0001f680-\U0001faff\u2600-\u27bf]"
_EMOJI = re.compile(f"{_PICTOGRAM}(?:{_JOINER}{_PICTOGRAM}|[\U0001f1e6-\U0001f1ff])*")


@dataclass(frozen=True)
class Entry:
    """One thing that a model can draw."""

    emoji: str
    names: tuple[str, ...]
    """The commonest first."""
    tags: tuple[str, ...] = ()
    """Words that go with it and need not name it."""


STYLES = ("flat", "3d", "noto", "twemoji")
"""The words for the styles of the emoji's art, as in ", flat style"."""


@dataclass(frozen=True)
class Lexicon:
    """All that a model has learned: things, and the other words of its captions (colours, styles)."""

    entries: tuple[Entry, ...]
    words: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes it again."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Any) -> Lexicon:
        """The inverse of `to_json`. ValueError for anything else."""
        try:
            entries = tuple(
                Entry(_text(e["emoji"]), _texts(e["names"]), _texts(e["tags"]))
                for e in facts["entries"]
            )
            return cls(entries, _texts(facts["words"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the words of a model: {error!r}") from error

    @cached_property
    def known(self) -> frozenset[str]:
        """Every word that names something by itself: names of one word, and of longer names the
        head and what follows it ("cup of coffee": cup, coffee; "maple leaf": leaf)."""
        found = set(self.words)
        for name in (name for entry in self.entries for name in entry.names):
            parts = re.split(r" (?:of|with|in|on|and) ", name.lower())
            found.update(words[-1] for part in parts if (words := words_of(part)))
        return frozenset(found)

    @cached_property
    def styles(self) -> tuple[str, ...]:
        """The words of its styles, in their order."""
        return tuple(style for style in STYLES if style in self.words)

    @cached_property
    def phrases(self) -> tuple[tuple[str, ...], ...]:
        """The names of several words."""
        names = (tuple(words_of(name)) for entry in self.entries for name in entry.names)
        return tuple(words for words in names if len(words) > 1)

    @cached_property
    def things(self) -> dict[tuple[str, ...], str]:
        """The words of each name -> the name, in lower case."""
        names = (name.lower() for entry in self.entries for name in entry.names)
        return {tuple(name.split()): name for name in names if name not in PLAIN_WORDS}

    @cached_property
    def by_emoji(self) -> dict[str, str]:
        """Emoji without variation selector -> the commonest name."""
        return {bare(e.emoji): e.names[0] for e in self.entries if e.names and bare(e.emoji)}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"{values!r} is not a list of words")
    return tuple(map(_text, values))


def bare(emoji: str) -> str:
    """An emoji without its variation selector, which data sets add or leave out at will."""
    return _SELECTORS.sub("", emoji)


def words_of(text: str) -> list[str]:
    """The words in lower case: "A cat's T-Rex" -> a, cat, t, rex."""
    found = _WORD.findall(text.lower().replace("’", "'"))
    return [re.sub(r"'s?$", "", word) for word in found]


# ---------------------------------------------------------------- emoji in a prompt

_NO_ARTICLE_AFTER = re.compile(
    r"(?:^|[\s,])(?:a|an|the|this|that|my|your|one|small|big|large|tiny|little|[\w-]+ed|"
    r"red|orange|yellow|green|blue|purple|pink|brown|gray|grey|black|white)\s*$",
    re.IGNORECASE,
)
_COUNT_BEFORE = re.compile(
    r"(?:^|[\s,])(?:[2-9]|two|three|four|five|six|many|some)(?:\s+[\w-]+)?\s*$", re.IGNORECASE
)


def expand_emoji(prompt: str, lexicon: Lexicon) -> str:
    """A prompt in which emoji that the model knows are words: "🐸 on 🍕" -> "a frog on a pizza".

    The same one several times is counted ("🐸🐸" -> "two frogs"), different ones are joined ("🐸🐰" ->
    "a frog and a rabbit"). Tones of skin are left out. Unknown emoji stay as they are.
    """
    names = lexicon.by_emoji
    if not names or prompt.isascii():
        return prompt
    text = _SKIN.sub("", bare(prompt))
    longest_first = sorted(names, key=len, reverse=True)
    # Not a part of a longer emoji, whose parts are joined: a woman and a rocket are an astronaut.
    one = rf"(?<!{_JOINER})(?:{'|'.join(map(re.escape, longest_first))})(?!{_JOINER})"
    out, end = "", 0
    for run in re.finditer(rf"(?:{one})(?:\s*(?:{one}))*", text):
        before = out + text[end : run.start()]
        runs: list[tuple[str, int]] = []
        for emoji in re.findall(one, run.group()):
            if runs and runs[-1][0] == emoji:
                runs[-1] = (emoji, runs[-1][1] + 1)
            else:
                runs.append((emoji, 1))
        phrases = [
            _phrase(names[emoji], count, before if i == 0 else "")
            for i, (emoji, count) in enumerate(runs)
        ]
        joined = phrases[0] if len(runs) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
        gap = " " if before and before[-1].isalnum() else ""
        out, end = before + gap + joined, run.end()
        if end < len(text) and text[end].isalnum():
            out += " "
    return out + text[end:]


def _phrase(name: str, count: int, before: str) -> str:
    """A name with the article or the number that it needs after `before`."""
    many = plural(name) or name
    if count > 1:
        return f"{COUNTS.get(count, str(count))} {many}"
    if _COUNT_BEFORE.search(before):
        return many
    if _NO_ARTICLE_AFTER.search(before):
        return name
    return with_article(name)


# ---------------------------------------------------------------- unknown words


@cache
def stand_ins() -> dict[str, str]:
    """Words -> the name of what stands for them where a model has not learned them: "poodle" -> dog."""
    lines = Path(__file__).with_name("stand_ins.txt").read_text("utf-8").splitlines()
    pairs = (line.split(": ") for line in lines if not line.startswith("#"))
    return {word: name for name, words in pairs for word in words.split()}


def stand_ins_in(
    prompt: str, lexicon: Lexicon, also: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """The words of a prompt, in lower case, in whose place the model draws something else, and the name
    of that, each once. also: words that are known too, in lower case."""
    text = prompt.lower().replace("’", "'")
    places = list(_WORD.finditer(text))
    words = words_of(text)
    part_of_name = {words[i] for i in _covered(words, lexicon)}
    found: dict[str, str] = {}
    for i, word in enumerate(words):
        forms = singulars(word)
        name = next((name for form in forms if (name := stand_ins().get(form))), None)
        if word in part_of_name or name is None or tuple(name.split()) not in lexicon.things:
            continue
        if any((form,) in lexicon.things or form in also for form in forms):
            continue
        # "a ruby" is a thing and "a ruby dress" is not.
        after = text[places[i].end() : places[i + 1].start()] if i + 1 < len(words) else "."
        if after.isspace() and words[i + 1] not in PLAIN_WORDS:
            continue
        found[word] = name if word in stand_ins() else plural(name) or name
    return tuple(found.items())


class Unknown(NamedTuple):
    """A word of a prompt that the model has not learned, and names of things near to it."""

    word: str
    nearest: tuple[str, ...]


def unknown_words(prompt: str, lexicon: Lexicon, also: Collection[str] = ()) -> list[Unknown]:
    """The words and emoji of a prompt that the model has not learned, in their order, each once.

    also: words that are known too, in lower case.
    """
    words = words_of(prompt)
    covered = _covered(words, lexicon)
    found = [
        word
        for i, word in enumerate(words)
        if i not in covered and not _is_known(word, lexicon, also)
    ]
    found += [each for each in _EMOJI.findall(bare(prompt)) if each not in lexicon.by_emoji]
    return [Unknown(word, nearest(word, lexicon)) for word in dict.fromkeys(found)]


def _is_known(word: str, lexicon: Lexicon, also: Collection[str]) -> bool:
    known = (lexicon.known, PLAIN_WORDS, also)
    return len(word) < 2 or any(form in words for form in singulars(word) for words in known)


def _covered(words: Sequence[str], lexicon: Lexicon) -> set[int]:
    """The positions of words that are part of a known name of several words."""
    covered, present = set[int](), set(words)
    for name in lexicon.phrases:
        if name[0] not in present:
            continue
        for start in range(len(words) - len(name) + 1):
            last = words[start + len(name) - 1]
            if tuple(words[start : start + len(name) - 1]) == name[:-1] and (
                name[-1] in singulars(last)
            ):
                covered.update(range(start, start + len(name)))
    return covered


def nearest(word: str, lexicon: Lexicon) -> tuple[str, ...]:
    """What may stand for the word, things that go with it, and those spelled like it."""
    forms = set(singulars(word))
    stands_in = {name for _, name in stand_ins_in(singulars(word)[-1], lexicon)}
    chosen = [e.names[0] for e in lexicon.entries if stands_in & set(e.names)]
    chosen += [e.names[0] for e in lexicon.entries if forms & set(e.tags)]
    spelled = {
        name: entry.names[0]
        for entry in reversed(lexicon.entries)
        for name in entry.names
        if " " not in name
    }
    chosen += [spelled[part] for part in difflib.get_close_matches(word, spelled, NEAREST, ALIKE)]
    return tuple(dict.fromkeys(chosen))[:NEAREST]


# What the captions of the pictures have besides names, colours, styles, sizes and counts.
_CAPTIONS = """
a an the of on in at to and next left right above below front with background style emoji picture corner
top bottom row column grid
"""
CAPTION_WORDS = frozenset(_CAPTIONS.split())
_ANY_WORD = re.compile(r"<[^<>]*>|[^\W_]+(?:['’][^\W\d_]+)*")
_ARTICLES = frozenset(("a", "an", "the"))
_JOINING = frozenset(("of", "in", "on", "at", "to", "and", "with"))


def not_learned(prompt: str, lexicon: Lexicon, also: Collection[str] = ()) -> frozenset[str]:
    """The words of a prompt that no caption had, in lower case; none if nothing else is left, or if the
    rest names nothing.

    A small model reads such words as pieces of others, and "a photo of a cute dog" is then no dog.
    also: words that are known too, in lower case.
    """
    found = [word for word in _ANY_WORD.findall(prompt) if word[0] != "<" and not word.isdecimal()]
    words = [word.lower() for word in found if word not in ("AND", "BREAK")]
    bare_words = [word if re.search(r"\d", word) else words_of(word)[0] for word in words]
    covered = _covered(bare_words, lexicon)
    read = (lexicon.known, CAPTION_WORDS, also)
    strange = frozenset(
        word
        for i, word in enumerate(words)
        if i not in covered
        and not any(form in known for form in singulars(bare_words[i]) for known in read)
    )
    rest = [word for word in bare_words if word not in CAPTION_WORDS and word not in lexicon.words]
    return strange if covered or any(word not in strange for word in rest) else frozenset()


class LeftOut(NamedTuple):
    """What a model does not read of a prompt."""

    phrases: bool = False
    """What the prompt says not to draw, and parts of a body."""
    words: frozenset[str] = frozenset()
    """Words that it has not learned, in lower case."""
    instead: tuple[tuple[str, str], ...] = ()
    """Words that it has not learned, in lower case, and what is read in their place."""

    def rest(self, prompt: str) -> str:
        """What the model reads of a prompt."""
        for found, phrase in ((negations, _NEGATION), (body_parts, _BODY)):
            if self.phrases and found(prompt):
                prompt = re.sub(r" +(?=[ ,.:)\]]|$)", "", phrase.sub(" ", prompt))
        if self.instead:
            names = dict(self.instead)
            prompt = _WORD.sub(lambda at: names.get(words_of(at.group())[0], at.group()), prompt)
            prompt = _fit_articles(prompt)
        return without(prompt, self.words) if self.words else prompt


def without(prompt: str, words: Collection[str]) -> str:
    """A prompt without some words, given in lower case, and without what then joins nothing."""

    def kept(at: re.Match[str]) -> str:
        word = at.group()
        return "" if word not in ("AND", "BREAK") and word.lower() in words else word

    text = _ANY_WORD.sub(kept, prompt)
    if text == prompt:
        return prompt
    text = re.sub(r"\((?:an?|the)? ?(?::[\d.]+)?\)|\[ ?\]", "", text)  # brackets around nothing
    parts = [_joined(part.split()) for part in text.split(",")]
    return ", ".join(part for part in parts if part)


def _joined(words: Sequence[str]) -> str:
    """A part of a prompt, of which words were taken, without articles and joining words that have
    nothing behind or before them: "a of a dog in a" -> "a dog"."""
    kept: list[str] = []
    for word in words:
        loose = _ARTICLES if word.lower() in _ARTICLES else _ARTICLES | _JOINING
        if word.lower() in _ARTICLES | _JOINING:
            while kept and kept[-1].lower() in loose:
                kept.pop()
        if kept or word.lower() not in _JOINING:
            kept.append(word)
    while kept and kept[-1].lower() in _ARTICLES | _JOINING:
        kept.pop()
    return _fit_articles(" ".join(kept))


def _fit_articles(text: str) -> str:
    """A text with "a" or "an" as the word after it has it."""
    text = re.sub(r"\ban (?=[b-df-hj-np-tv-z])", "a ", text)
    return re.sub(r"\ba (?=[aeio])", "an ", text)


# What a prompt says not to draw, up to the next part: "a cat without a hat on a rug". A network that was
# trained on captions reads the noun and not the negation.
_NEGATION = re.compile(
    r"(?:,\s*)?\b(?:(?:but|and|with)\s+)?(?:without|no|not|minus|except)\b(?:\s+for\b)?"
    r"\s+(?P<what>[^\W_][\w\s'’-]{0,80}?)\s*"
    r"(?=$|[^\w\s'’-]|\b(?:on|in|with|and|at|near|next|above|below|under|behind|beside|but|or|without)\b)",
    re.IGNORECASE,
)


def negations(prompt: str) -> list[str]:
    """What a prompt says not to draw: "a cat without a hat" -> a hat. Nothing if that is all it says."""
    found = [match.group("what") for match in _NEGATION.finditer(prompt)]
    return found if _WORD.search(_NEGATION.sub(" ", prompt)) else []


# What belongs to the thing before it, and would be drawn as a thing of its own: "a cat with blue eyes".
_PART = (
    r"(?:eyes?|ears?|nose|mouth|tongue|lips|tooth|teeth|legs?|foot|feet|hands?|arms?|paws?|wings?|tail"
    r"|horns?|beard|head|face|muscles|brain)"
)
_SOME = rf"(?:(?!and\b|of\b|with\b)[^\W\d_]+\s+){{0,4}}?{_PART}\b"
_BODY = re.compile(
    rf"(?<=\w)\s+\b(?:with|has|having)\s+(?P<what>{_SOME}(?:\s+and\s+{_SOME})?)"
    r"(?:\s+(?:out|open|closed|up|down|spread))?(?=\s*(?:$|[^\w\s'’-]"
    r"|\b(?:on|in|with|and|at|near|next|above|below|under|behind|beside|but|or|without|wearing|holding)\b))",
    re.IGNORECASE,
)


def body_parts(prompt: str) -> list[str]:
    """Parts of what a prompt names: "a cat with blue eyes" -> blue eyes."""
    return [match.group("what") for match in _BODY.finditer(prompt)]


def describe_stand_ins(instead: Sequence[tuple[str, str]], name: str) -> str | None:
    """One sentence for the user; None if there are none. name: of the model."""
    if not instead:
        return None
    if len(instead) == 1:
        ((word, other),) = instead
        return f"{name} has not learned the word {word!r}, and draws {other!r} in its place"
    listed = ", ".join(f"{other!r} for {word!r}" for word, other in instead)
    return f"{name} has not learned some words, and draws others in their place: {listed}"


def describe(unknown: Sequence[Unknown], name: str) -> str | None:
    """One sentence for the user; None if every word is known. name: of the model."""
    if not unknown:
        return None
    each = [
        repr(u.word) + (f" (known: {', '.join(u.nearest)})" if u.nearest else "") for u in unknown
    ]
    listed = each[0] if len(each) == 1 else f"{', '.join(each[:-1])} and {each[-1]}"
    return f"{name} has not learned the word{'s' if len(each) > 1 else ''} {listed}"
