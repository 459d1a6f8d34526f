"""What the pictures say: words, pseudo-words, letters, numbers, codes and phrases, in two disjoint splits.

A piece of text belongs to the held-out split iff a hash of its letters and digits says so. Punctuation and case do not
count: "$4.99", "-4.99" and "499" are all on one side, and so are "Tea" and "TEA".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.sample import Split

TextKind = Literal["short", "word", "letters", "number", "code", "phrase"]

_COMMON = (
    "able about above across act add after again age agree air all allow alone along also always among and animal "
    "answer any apple april area arm army art ask august autumn away baby back bad bag baker ball bank barn base "
    "basket bath beach bean bear beat bed bee before begin behind bell below bench best better big bird black blue "
    "boat body bone book boot born both bottle bottom box boy brave bread break bridge bright bring brother brown "
    "brush build burn bus busy butter button buy cabin cake call calm camera camp can candle card care carry castle "
    "cat catch cause center chair chance change cheap check cheese chest chicken child choose church circle city "
    "clean clear clever climb clock close cloth cloud coach coast coat coffee cold color common cook cool copper corn "
    "corner cost cotton count country course cover cow crown cry cup cut dance danger dark day deal dear deep deer "
    "desk dinner dish doctor dog door double down dream dress drink drive drop dry duck dust early earn earth east "
    "easy eat edge egg eight empty end engine enjoy enough enter equal evening ever every exit eye face fact fair "
    "fall family far farm fast father feather february feed feel fence few field fight fill film find fine finger "
    "fire first fish five flag flat floor flour flower fly fold follow food foot forest forget fork form forty four "
    "fox free fresh friday friend frog from front fruit full fun garden gate gentle gift girl give glad glass glove "
    "goat gold good grain grand grape grass great green grey ground group grow guess guest guide hair half hall "
    "hammer hand happy hard harvest hat have head hear heart heat heavy help hen here high hill hold holiday home "
    "honey hope horse hotel hour house how hundred hungry hurry ice idea inch ink iron island jacket january jar job "
    "join journey juice july jump june jungle just keep kettle key kind king kitchen knee knife knock know ladder "
    "lady lake lamp land large last late laugh law lead leaf learn leather leave left leg lemon lend less lesson "
    "letter level library life lift light like lime line lion list listen little live long look lose lost loud love "
    "low lucky lunch machine mail make man many map march mark market master match may maybe meadow meal mean measure "
    "meat meet melon member metal middle milk million mind minute mirror monday money monkey month moon morning "
    "mother mountain mouse mouth move much music must name near neck need nest never new news next nice night nine "
    "noise none noon north nose note nothing november now number nurse nut ocean october offer office often oil old "
    "once onion only open orange order other oven over owl own page paint pair palace paper parcel parent park part "
    "party pass past path pay peace pear pen pencil people pepper person phone photo piano picture piece pig pilot "
    "pink pizza place plain plan plane plant plate play please plum pocket poem point police pond pool poor port post "
    "potato pound power present press pretty price prince print prize problem proud public pull purple push put queen "
    "question quick quiet quite rabbit race radio railway rain raise reach read ready real record red rest rice rich "
    "ride right ring rise river road robin rock roof room root rope rose rough round row rule run sad safe sail salad "
    "salt same sand saturday save say scale school science sea seat second secret see seed sell send september seven "
    "shade shape share sharp sheep shelf shell shine ship shirt shoe shop short shout show shut side sign silk silver "
    "simple since sing sister sit six size skin sky sleep slow small smell smile smoke snow soap sock soft soil some "
    "song soon sound soup south space spade speak spell spend spoon spring square stable stage stamp stand star start "
    "station stay steam steel step stick still stone stop store storm story straight street strong student study "
    "sugar summer sun sunday sure sweet swim table tail take tale talk tall taste tea teach team tell ten tent thank "
    "that theater then there thick thin thing think third this thread three throw thursday ticket tide tiger time tin "
    "tired today together tomato tomorrow tooth top touch towel tower town toy trade train travel tree trip true "
    "trust try tuesday turn turtle twelve twenty two uncle under until upon useful valley van velvet very village "
    "violin visit voice wagon wait walk wall want warm wash watch water wave way wear weather wednesday week welcome "
    "well west wet what wheat wheel when where which while white who whole why wide wild wind window wine wing winter "
    "wire wise wish with wolf woman wonder wood wool word work world write yard year yellow yes yesterday young zebra "
    "zero zone "
)
COMMON = tuple(_COMMON.split())

_ONSETS = "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sk sl sm sn sp st th tr y"
_VOWELS = "a a e e i i o o u ai ea ee oa oo ou"
_CODAS = "n r s t l m d p k x ck ll nd ng nk nt rd rk rm rn rt sh sk ss st th"
ONSETS, VOWELS, CODAS = _ONSETS.split(), _VOWELS.split(), [*([""] * 14), *_CODAS.split()]
LOWER, UPPER, DIGITS = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
# In many fonts I, l and 1 or O and 0 look the same: where nothing else tells them apart they are left out.
CLEAR_UPPER, CLEAR_LOWER = "ABCDEFGHJKLMNPQRSTUVWXYZ", "abcdefghijkmnpqrstuvwxyz"


def is_heldout(text: str) -> bool:
    """Whether `text` (one word or number, without spaces) belongs to the held-out split: one in ten does."""
    key = "".join(c for c in text.lower() if c.isalnum())
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % 10 == 0


def in_split(text: str, split: Split) -> bool:
    """Whether every part of `text` between white space belongs to `split`."""
    return all(is_heldout(part) == (split == "heldout") for part in text.split())


@lru_cache(maxsize=4)
def common_words(split: Split) -> tuple[str, ...]:
    """The common words of `split`."""
    return tuple(word for word in COMMON if in_split(word, split))


def draw_text(rng: np.random.Generator, kind: TextKind, split: Split, max_length: int = 12) -> str:
    """One piece of text of `kind`, of at most `max_length` characters, all of its parts in `split`.

    "short" is one lower-case word of 3 to 6 letters; "phrase" is 2 to 4 parts with single spaces; the others have none.
    """
    if kind not in _SOURCES:
        raise ConfigError(f"text kind {kind!r} is unknown", hint=f"Use one of {', '.join(_SOURCES)}.")
    source = _SOURCES[kind]
    for _ in range(2000):
        text = source(rng, split)
        if len(text) <= max_length and in_split(text, split):
            return text
    raise ConfigError(f"no {kind} of at most {max_length} characters was found", hint="Allow longer text.")


def _pick(rng: np.random.Generator, items: str | list[str] | tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]


def _string(rng: np.random.Generator, alphabet: str, shortest: int, longest: int) -> str:
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=int(rng.integers(shortest, longest + 1))))


def _digits(rng: np.random.Generator, shortest: int, longest: int) -> str:
    """Digits without a leading zero, but for "0" alone."""
    text = _string(rng, DIGITS, shortest, longest)
    return text if len(text) == 1 or text[0] != "0" else _pick(rng, DIGITS[1:]) + text[1:]


def _pseudo(rng: np.random.Generator) -> str:
    syllables = 1 + int(rng.integers(3))
    return "".join(_pick(rng, ONSETS) + _pick(rng, VOWELS) + _pick(rng, CODAS) for _ in range(syllables))


def _base_word(rng: np.random.Generator, split: Split) -> str:
    return _pick(rng, common_words(split)) if rng.random() < 0.5 else _pseudo(rng)


def _short(rng: np.random.Generator, split: Split) -> str:
    for _ in range(200):
        word = _base_word(rng, split) if rng.random() < 0.8 else _string(rng, LOWER, 3, 6)
        if 3 <= len(word) <= 6:
            return word
    return _string(rng, LOWER, 3, 6)


def _cased(rng: np.random.Generator, word: str) -> str:
    form = rng.random()
    if form < 0.45:
        return word
    if form < 0.7:
        return word.capitalize()
    if form < 0.92 or len(word) < 5:
        return word.upper()
    cut = int(rng.integers(2, len(word) - 1))
    return word[:cut].capitalize() + word[cut:].capitalize()


def _word(rng: np.random.Generator, split: Split) -> str:
    return _cased(rng, _base_word(rng, split))


def _letters(rng: np.random.Generator, split: Split) -> str:
    del split  # drawn again until it fits
    alphabets = (LOWER, UPPER, CLEAR_UPPER + CLEAR_LOWER)
    return _string(rng, alphabets[int(rng.integers(3))], 2, 8)


def _code(rng: np.random.Generator, split: Split) -> str:
    del split
    form, letters = int(rng.integers(4)), _string(rng, CLEAR_UPPER, 1, 3)
    if form == 0:
        return letters + _string(rng, DIGITS, 1, 4)
    if form == 1:
        return f"{letters}{_string(rng, DIGITS, 0, 1)}-{_string(rng, DIGITS, 2, 4)}"
    if form == 2:
        return f"{_string(rng, DIGITS, 1, 3)}{letters}"
    return f"#{_string(rng, DIGITS, 2, 5)}"


def _amount(rng: np.random.Generator) -> str:
    return f"{int(10 ** rng.uniform(0, 3.3))}.{int(rng.integers(100)):02d}"


def _date(rng: np.random.Generator) -> str:
    year, month, day = int(rng.integers(1990, 2040)), int(rng.integers(1, 13)), int(rng.integers(1, 29))
    return f"{year}-{month:02d}-{day:02d}" if rng.random() < 0.5 else f"{day:02d}/{month:02d}/{year}"


_NUMBERS: tuple[tuple[float, Callable[[np.random.Generator], str]], ...] = (
    (0.32, lambda rng: _digits(rng, 1, 8)),
    (0.10, lambda rng: f"{_digits(rng, 1, 4)}.{_string(rng, DIGITS, 1, 3)}"),
    (0.14, _amount),
    (0.08, lambda rng: f"${_amount(rng)}"),
    (0.07, lambda rng: f"{int(rng.integers(1000, 1_000_000)):,}{_pick(rng, ['', '.00', '.50'])}"),
    (0.09, _date),
    (0.06, lambda rng: f"{int(rng.integers(24)):02d}:{int(rng.integers(60)):02d}"),
    (0.05, lambda rng: f"{_digits(rng, 1, 2)}%"),
    (0.05, lambda rng: f"-{_digits(rng, 1, 4)}"),
    (0.04, lambda rng: f"{_string(rng, DIGITS, 3, 3)}-{_string(rng, DIGITS, 4, 4)}"),
)
_NUMBER_ENDS = np.cumsum([share for share, _ in _NUMBERS])


def _number(rng: np.random.Generator, split: Split) -> str:
    del split
    return _NUMBERS[int(np.searchsorted(_NUMBER_ENDS[:-1], rng.random()))][1](rng)


def _phrase(rng: np.random.Generator, split: Split) -> str:
    # Parts are drawn until they fit: a phrase drawn whole would almost never be held out.
    parts: list[str] = []
    form = int(rng.integers(4))
    for _ in range(2 + int(rng.integers(3))):
        if parts and rng.random() < 0.15:
            parts.append(draw_text(rng, "number", split, max_length=6))
            continue
        word = draw_text(rng, "word", split, max_length=9).lower()
        parts.append((word, word.capitalize(), word.upper(), word if parts else word.capitalize())[form])
    return " ".join(parts)


_SOURCES: dict[TextKind, Callable[[np.random.Generator, Split], str]] = {
    "short": _short,
    "word": _word,
    "letters": _letters,
    "number": _number,
    "code": _code,
    "phrase": _phrase,
}
