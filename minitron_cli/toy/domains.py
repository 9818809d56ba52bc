"""The four domains of the toy corpus: what a document says, and what can be asked about it.

Every domain is a function `(rng, world) -> Document`. The text of a document is a run of pieces; some pieces are
answers: they follow from the text before them or from the world's fixed facts, and only those are graded.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minitron_cli.toy import lexicon
from minitron_cli.toy.lexicon import Person

MAX_ADDEND = 20
BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}


@dataclass(frozen=True, slots=True)
class World:
    """What the documents of one seed share: the people, and the sums that training never shows."""

    people: tuple[Person, ...]
    held_out_sums: frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Question:
    """A gap in a document: `context` up to it, four `choices` to continue with, the index of the right one."""

    skill: str
    context: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the questions about it; a question's right choice is what the text says next."""

    text: str
    questions: tuple[Question, ...]


def make_world(seed: int) -> World:
    """The people, and one sum in ten to hold out: never trained on, so that grading them grades arithmetic."""
    rng = random.Random(f"world:{seed}")
    sums = [(a, b) for a in range(MAX_ADDEND + 1) for b in range(MAX_ADDEND + 1)]
    return World(lexicon.census(seed), frozenset(rng.sample(sums, len(sums) // 10)))


class _Writer:
    """Collects the pieces of a document and the questions about its answers."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.text = ""
        self.questions: list[Question] = []

    def say(self, piece: str) -> None:
        self.text += piece if not self.text else " " + piece

    def answer(self, skill: str, right: str, wrong: list[str], after: str = "", blank: str = " ") -> None:
        """Write `right` (`blank` before, `after` after); its question has the first three other words of `wrong`."""
        others = list(dict.fromkeys(word for word in wrong if word != right))[:3]
        choices = [right, *others]
        self.rng.shuffle(choices)
        self.questions.append(
            Question(skill, self.text, tuple(blank + choice for choice in choices), choices.index(right))
        )
        self.text += blank + right + after

    def document(self) -> Document:
        return Document(self.text, tuple(self.questions))


def _others(rng: random.Random, words: Sequence[str]) -> list[str]:
    return rng.sample(words, len(words))


def story(rng: random.Random, world: World) -> Document:
    """Two or three people, each with something of one colour; they meet, and the story returns to each.

    `facts` are closed-book (job, town and pet belong to the world); the answers of `story` are in the text.
    """
    out = _Writer(rng)
    cast = rng.sample(world.people, rng.choice((1, 2, 3)))
    items = rng.sample(lexicon.ITEMS, len(cast))
    colours = rng.sample(lexicon.COLOURS, len(cast))
    for person, colour, item in zip(cast, colours, items, strict=True):
        out.say(f"{person.name} the")
        out.answer("facts", person.job, _others(rng, lexicon.JOBS))
        out.say(f"{rng.choice(lexicon.GETS)} a {colour} {item} .")
    out.say(f"They met at the {rng.choice(lexicon.PLACES)} .")
    beats = [(beat, index) for beat in (_town, _pet, _thing) for index in range(len(cast))]
    for beat, index in rng.sample(beats, len(beats)):
        beat(out, cast[index], colours[index], items[index], items)
    return out.document()


def _town(out: _Writer, person: Person, colour: str, item: str, items: list[str]) -> None:
    out.say(f"{person.name} lives in")
    out.answer("facts", person.town, _others(out.rng, lexicon.TOWNS), " .")


def _pet(out: _Writer, person: Person, colour: str, item: str, items: list[str]) -> None:
    out.say(f"{person.name} loves the")
    out.answer("facts", person.pet, _others(out.rng, lexicon.PETS), " .")


def _thing(out: _Writer, person: Person, colour: str, item: str, items: list[str]) -> None:
    """The wrong answers begin with the other things of the same story."""
    out.say(f"{out.rng.choice(lexicon.NAMES)} {out.rng.choice(lexicon.TAKES)} the {colour}")
    out.answer("story", item, items + _others(out.rng, lexicon.ITEMS), " .")


def arithmetic(rng: random.Random, world: World, held_out: bool = False) -> Document:
    """Eight lines `a+b=c`; with `held_out` only sums that training never shows, else only sums that it may."""
    out = _Writer(rng)
    sums: list[tuple[int, int]] = []
    while len(sums) < 8:
        pair = (rng.randint(0, MAX_ADDEND), rng.randint(0, MAX_ADDEND))
        if (pair in world.held_out_sums) == held_out and pair not in sums:
            sums.append(pair)
    for a, b in sums:
        out.text += f"{a}+{b}="
        near = [str(a + b + delta) for delta in (-10, -2, -1, 1, 2, 10) if a + b + delta >= 0]
        out.answer("arithmetic", str(a + b), _others(rng, near), "\n", blank="")
    return out.document()


def brackets(rng: random.Random, world: World) -> Document:
    """A balanced word over four kinds of brackets (Dyck-4); graded: which closer comes next, its opener far away."""
    out = _Writer(rng)
    stack: list[str] = []
    length, previous_opens = rng.randint(8, 20), False
    for _ in range(length):
        opens = not stack or (len(stack) < 6 and rng.random() < 0.5)
        if opens:
            stack.append(rng.choice(list(BRACKETS)))
            out.say(stack[-1])
        else:
            _close(out, stack, graded=not previous_opens)
        previous_opens = opens
    while stack:
        _close(out, stack, graded=not previous_opens)
        previous_opens = False
    return out.document()


def _close(out: _Writer, stack: list[str], graded: bool) -> None:
    closer = BRACKETS[stack.pop()]
    if graded:
        out.answer("brackets", closer, _others(out.rng, list(BRACKETS.values())))
    else:
        out.say(closer)


def recall(rng: random.Random, world: World) -> Document:
    """An item for each direction, then the directions in any order, each to be followed by its item."""
    out = _Writer(rng)
    size = rng.randint(2, len(lexicon.DIRECTIONS))
    pairs = list(zip(rng.sample(lexicon.DIRECTIONS, size), rng.sample(lexicon.ITEMS, size), strict=True))
    held = [item for _, item in pairs]
    for key, item in pairs:
        out.say(f"{key} {item}")
    for key, item in [pair for _ in range(3) for pair in rng.sample(pairs, size)]:
        out.say(key)
        out.answer("recall", item, _others(rng, held) + _others(rng, lexicon.ITEMS))
    return out.document()


DOMAINS: dict[str, Callable[[random.Random, World], Document]] = {
    "stories": story,
    "arithmetic": arithmetic,
    "brackets": brackets,
    "recall": recall,
}
