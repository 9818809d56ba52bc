"""The words of the toy world, and the facts that every story of it agrees on."""

import random
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ada Ben Cleo Dan Eve Finn Gus Hana Ivo Jill Kai Lena Max Nora Otto Pia Rex Sara Tom Uma Vic Wren Yan Zoe"
)
JOBS = _words("baker fisher smith tailor farmer potter singer guard")
TOWNS = _words("Arden Brill Corva Dunmore Elsby Fenwick Glenn Hollow")
PETS = _words("cat dog goat hen horse owl parrot rabbit")
ITEMS = _words("ball bell book boot coin drum hat key kite lamp map pen ring rope shell spoon")
COLOURS = _words("blue gold green red")
DIRECTIONS = _words("north east south west")
GETS = _words("found bought made got")
TAKES = _words("saw took lost hid")
PLACES = _words("bridge mill well market tower forest")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody whose job, town and pet are the same in every story of the world."""

    name: str
    job: str
    town: str
    pet: str


def census(seed: int) -> tuple[Person, ...]:
    """Everybody in the world: the closed-book facts, fixed by `seed`, in no document as a list."""
    rng = random.Random(f"census:{seed}")
    return tuple(Person(name, rng.choice(JOBS), rng.choice(TOWNS), rng.choice(PETS)) for name in NAMES)
