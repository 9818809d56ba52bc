"""The patterns by which tokenizers split text: whether every text comes apart before its spaces, and the words of it.

Where no match has a space after a character that is not white space, each text comes apart before such a
space. Matches on its left do not reach it, and what decides them ends there; those on its right do not look back.
"""

import re
import unicodedata
from functools import cache

# What a pre-tokenizer of type ByteLevel has built in.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Characters whose category never changed, which normalise to themselves and have one case folding each.
_PLAIN = re.compile("[\0-\u017e\u2010-\u2027\u2030-\u205e]*")
_PLAIN_CHARS = tuple(filter(_PLAIN.fullmatch, map(chr, range(0x2060))))
_PLAIN_BLANK = r"\t-\r \x85\xa0"

_CATEGORY = r"\\p\{[LMNPSZC][a-z]?\}"
_ATOM = re.compile(
    rf"""(?P<or>\|) | (?P<ahead>\(\?!\\S\)) | (?P<suffix>\(\?i:[\w'|]+\)\??)
    | (?P<one>\[(?:{_CATEGORY}|\\[srn\W]|[^\]\\\[])+\] | {_CATEGORY} | \\[srn\W] | [^\\()\[\]{{}}|^$.?*+])
      (?P<times>[?*+] | \{{\d+(?:,\d*)?\}})?""",
    re.VERBOSE,
)
_BLANK = (" ", r"\s", r"\r", r"\n", r"[\r\n]")  # atoms that match white space alone


def is_plain(text: str) -> bool:
    """Whether `in_python` holds for a text."""
    return _PLAIN.fullmatch(text) is not None


def parts_before_spaces(pattern: str) -> bool:
    """Whether no match has a space after another character that is not white space, nor looks further than its own
    end but for white space that goes on. False for what is not understood."""
    blank = True  # all that the alternative has matched so far
    for atom in _atoms(pattern):
        if atom is None:
            return False
        if atom["or"]:
            blank = True
        elif atom["suffix"]:
            blank = False
        elif one := atom["one"]:
            repeated = atom["times"] not in (None, "?")
            alone = one in _BLANK
            if re.fullmatch(in_python(one), " ") and not (blank and (alone or not repeated)):
                return False
            blank = blank and alone
    return True


def matches_all_white_space(pattern: str) -> bool:
    r"""Whether `\s+` is one of the alternatives, so that a match begins wherever white space is left."""
    return r"\s+" in "".join(
        "\0" if atom and atom["or"] else atom[0] if atom else "" for atom in _atoms(pattern)
    ).split("\0")


def _atoms(pattern: str) -> list[re.Match[str] | None]:
    """What a pattern is made of; None ends the list where it is not understood."""
    found: list[re.Match[str] | None] = []
    end = 0
    while end < len(pattern):
        atom = None if "&&" in pattern else _ATOM.match(pattern, end)
        found.append(atom)
        if atom is None:
            break
        end = atom.end()
    return found


def in_python(pattern: str) -> str:
    """A pattern as Python's `re` has it, for text of plain characters."""
    in_set, parts = False, []
    for piece in re.findall(rf"{_CATEGORY}|\\.|.", pattern, re.DOTALL):
        members = {r"\s": _PLAIN_BLANK, r"\S": f"^{_PLAIN_BLANK}"}.get(piece)
        if piece.startswith(r"\p"):
            members = _members(piece[3:-1])
        if members is None:
            in_set = piece == "[" or (in_set and piece != "]")
        parts.append(piece if members is None else members if in_set else f"[{members}]")
    return "".join(parts)


@cache
def _members(category: str) -> str:
    chars = [char for char in _PLAIN_CHARS if unicodedata.category(char).startswith(category)]
    return "".join(map(re.escape, chars)) + "\uffff"  # which is not plain, so that no set is empty
