"""Music text -> patches, one line, bar and character at a time: what code/patches.py computes, without its short cuts."""

import re

import numpy as np
from unidecode import unidecode

from patches import BOS, EOS, random_segment

BARLINES = ("|:", "::", ":|", "[|", "||", "|]", "|")  # the longest first


def encode(text, size=64, limit=512, special=False, truncate=False, rng=None):
    """`M3Patchilizer.encode_array`; with `rng`, `truncate` keeps a random segment."""
    text = "".join(character for character in unidecode(text) if ord(character) > 3)
    parts = joined_messages(text, size) if text.startswith("ticks_per_beat ") else bars_and_fields(text)
    rows = [row(part, size) for part in parts]
    if special:
        rows = [[BOS] * size, *rows, [BOS] + [EOS] * (size - 1)]
    if truncate and len(rows) > limit:
        rows = rows[random_segment(len(rows), limit, rng) if rng else slice(limit)]
    return np.array(rows, np.uint8).reshape(-1, size)


def row(part, size):
    ids = [BOS, *map(ord, part), EOS][:size]
    return ids + [0] * (size - len(ids))


def lines_of(text):
    """With their newlines."""
    *lines, last = text.split("\n")
    return [line + "\n" for line in lines] + [last] * (last != "")


def joined_messages(text, size):
    groups = []  # of values, each with the type of its messages
    for line in text.split("\n"):
        kind, *values = line.split(" ", 1)
        if not line:
            continue
        if groups and groups[-1][0] == kind:
            longer = groups[-1][1] + "\t" + "".join(values)
            if len(longer + "\n") <= size - 2:
                groups[-1][1] = longer
                continue
        groups.append([kind, line])
    parts = [joined + "\n" for _, joined in groups]
    if parts and not text.endswith("\n"):
        parts[-1] = parts[-1][:-1]
    return parts


def bars_and_fields(text):
    parts = []
    for line in lines_of(text):
        if re.match("[A-Za-z]:|%%", line):
            parts.append(line)
        elif not line.startswith("%"):
            parts += bars(line)
    return parts


def bars(line):
    newline = "\n" * line.endswith("\n")
    line = line.removesuffix("\n")
    found, begun, place = [], 0, 0
    while place < len(line):
        barline = next((barline for barline in BARLINES if line.startswith(barline, place)), "")
        place += len(barline) or 1
        if barline and place > len(barline):  # one that opens the line belongs to the first bar
            found.append(line[begun:place])
            begun = place
    rest = line[begun:]
    if any(note in rest for note in "ABCDEFGabcdefgxzXZ") or (not found and rest.startswith(BARLINES)):
        found.append(rest)
    if found:
        found[-1] += newline
    return found


def remove_unit_length(text):
    return "".join(line for line in lines_of(text) if line != "L:1/8\n")


def remove_instrument_info(text):
    """A program is the last of three words that single spaces part; a voice's names stand behind `nm=` and `snm=`."""
    changed = []
    for line in text.split("\n"):
        words = line.split(" ")
        if text.startswith("ticks_per_beat "):
            is_program = (
                len(words) == 4 and words[0] == "program_change" and all(map(re.compile(r"\S+").fullmatch, words))
            )
            changed.append(" ".join([*words[:3], "0"]) if is_program else line)
        else:
            changed.append(re.sub(r'(?<!\s)\s+s?nm="[^"]*"', "", line) if line.startswith("V:") else line)
    return "\n".join(changed)


def shuffle_characters(patches, selected, rng):
    """Of each selected patch, up to its EOS."""
    shuffled = patches.copy()
    for number in np.flatnonzero(selected):
        ends = np.flatnonzero(patches[number] == EOS)
        stop = ends[0] if len(ends) == 1 else patches.shape[1]
        shuffled[number, 1:stop] = rng.permutation(patches[number, 1:stop])
    return shuffled
