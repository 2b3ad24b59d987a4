"""Random English: a small grammar of templates, plus nonsense words for rare pairs of sounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DET = ["the", "a", "my", "your", "our", "this", "that", "every", "another", "some", "his", "her"]
ADJ = [
    "big",
    "small",
    "bright",
    "purple",
    "warm",
    "cold",
    "happy",
    "fuzzy",
    "wooden",
    "quiet",
    "simple",
    "clever",
    "foolish",
    "heavy",
    "broken",
    "thin",
    "smooth",
    "yellow",
    "shiny",
    "modern",
    "brave",
    "vivid",
    "thick",
    "gentle",
    "famous",
    "perfect",
    "open",
    "hidden",
    "silver",
    "orange",
    "childish",
    "rough",
    "huge",
    "boring",
    "juicy",
    "lovely",
    "wobbly",
    "peaceful",
    "amazing",
    "beautiful",
    "ordinary",
    "virtual",
    "municipal",
]
NOUN = [
    "boat",
    "baby",
    "paper",
    "mother",
    "pepper",
    "bamboo",
    "window",
    "village",
    "river",
    "shoe",
    "voice",
    "thumb",
    "bridge",
    "fish",
    "house",
    "mouth",
    "tooth",
    "wolf",
    "zebra",
    "judge",
    "jelly",
    "cheese",
    "church",
    "garden",
    "coffee",
    "bottle",
    "mountain",
    "computer",
    "question",
    "answer",
    "problem",
    "family",
    "summer",
    "winter",
    "weather",
    "music",
    "measure",
    "treasure",
    "vision",
    "pleasure",
    "oven",
    "photo",
    "giraffe",
    "puppet",
    "bubble",
    "robot",
    "camera",
    "phone",
    "movie",
    "office",
    "letter",
    "number",
    "table",
    "apple",
    "banana",
    "engine",
    "pilot",
    "teacher",
    "doctor",
    "farmer",
    "neighbour",
    "opinion",
    "example",
    "memory",
    "university",
    "telephone",
    "umbrella",
    "butterfly",
    "vegetable",
]
VERB = [
    "bought",
    "made",
    "saw",
    "found",
    "moved",
    "pushed",
    "showed",
    "gave",
    "kept",
    "wrote",
    "threw",
    "loved",
    "watched",
    "chose",
    "carried",
    "opened",
    "followed",
    "moved",
    "remembered",
    "believed",
    "wanted",
    "brought",
    "taught",
    "caught",
    "shaped",
    "bumped",
    "wiped",
    "vowed",
    "whispered",
    "borrowed",
    "forgot",
    "improved",
    "removed",
    "purchased",
    "examined",
    "surprised",
]
ADVERB = [
    "slowly",
    "today",
    "again",
    "very often",
    "in the morning",
    "every week",
    "before lunch",
    "for fun",
    "without a reason",
    "as usual",
    "by mistake",
    "over the bridge",
    "with both hands",
    "near the farm",
]
OPENING = ["well", "of course", "maybe", "you know", "I think", "we believe", "to be honest", "so", "however", "oh"]
QUESTION = ["what about", "why did we forget", "who moved", "where is", "how about", "have you seen", "do you want"]
NUMBER = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "fifteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "ninety",
    "hundred",
    "thousand",
]
ONSET = [
    "p",
    "b",
    "t",
    "d",
    "k",
    "g",
    "m",
    "n",
    "f",
    "v",
    "th",
    "s",
    "z",
    "sh",
    "ch",
    "j",
    "l",
    "r",
    "w",
    "y",
    "h",
    "bl",
    "pr",
    "tr",
    "st",
    "sp",
    "sm",
    "fl",
]
VOWEL = ["a", "e", "i", "o", "u", "oo", "ee", "ai", "oa", "ow", "oy", "aw", "er", "ar"]
CODA = ["", "", "", "p", "b", "m", "f", "v", "t", "k", "n", "s", "sh", "l", "m", "p"]


def _one(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def noun_phrase(rng: np.random.Generator) -> str:
    words = [_one(rng, DET)]
    if rng.random() < 0.6:
        words.append(_one(rng, ADJ))
    return " ".join([*words, _one(rng, NOUN)])


def nonsense(rng: np.random.Generator) -> str:
    """Three to seven made-up words of one to three syllables."""
    return " ".join(
        "".join(_one(rng, ONSET) + _one(rng, VOWEL) + _one(rng, CODA) for _ in range(int(rng.integers(1, 4)))) for _ in range(int(rng.integers(3, 8)))
    )


def sentence(rng: np.random.Generator) -> str:
    """One sentence without a full stop: flite then takes it for one utterance."""
    kind = rng.random()
    if kind < 0.15:
        return nonsense(rng)
    if kind < 0.25:
        return " ".join(_one(rng, NUMBER) for _ in range(int(rng.integers(3, 9))))
    if kind < 0.4:
        return f"{_one(rng, QUESTION)} {noun_phrase(rng)} and {noun_phrase(rng)}"
    text = f"{noun_phrase(rng)} {_one(rng, VERB)} {noun_phrase(rng)} {_one(rng, ADVERB)}"
    if rng.random() < 0.4:
        text = f"{_one(rng, OPENING)}, {text}"
    if rng.random() < 0.3:
        text += f" because {noun_phrase(rng)} {_one(rng, VERB)} {noun_phrase(rng)}"
    return text
