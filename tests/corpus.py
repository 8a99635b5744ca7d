"""Damaged and hostile files, made from the good ones of the golden kit: what a folder from the internet may hold.

`write` fills a folder with one kind of them and says which are good and which are bad; of the others, some programs can
make something. Nothing here is random.
"""

import io
import json
import os
import struct
import zipfile
from pathlib import Path

from helpers import KIT

GOOD, BAD, EITHER = "good", "bad", "either"
LONG_NAME = "n" * 246  # with the suffix, about the 255 bytes that a name may have
ODD_NAMES = (
    "with space",
    "quote'\"s",
    "two\nlines",
    "\x1b[31mred\x9b2J",
    "月亮 ñ",
    "-rf *",
    "$(touch pwned);&|`x`",
    os.fsdecode(b"\xff\xfe"),
)
XML = b"""<?xml version="1.0" encoding="UTF-8"?>
<score-partwise version="4.0"><part-list><score-part id="P1"><part-name>Voice</part-name></score-part></part-list>
<part id="P1"><measure number="1"><attributes><divisions>1</divisions><key><fifths>0</fifths></key>
<time><beats>4</beats><beat-type>4</beat-type></time></attributes>
<note><pitch><step>C</step><octave>4</octave></pitch><duration>4</duration><voice>1</voice><type>whole</type></note>
</measure></part></score-partwise>
"""
RECORD = {"title": "A tune", "genres": ["folk"], "filepaths": ["good.abc"]}
PLAIN = {
    ".abc": (KIT / "abc" / "solo_jig.abc").read_bytes(),
    ".mtf": (KIT / "mtf" / "plain.mtf").read_bytes(),
    ".mid": (KIT / "midi" / "two_tracks.mid").read_bytes(),
    ".xml": XML,
    ".json": json.dumps(RECORD).encode(),
    ".txt": b"A slow waltz.\nFor piano.\n",
}
NOISE = bytes((number * number * 31 + number * 17 + 5) % 256 for number in range(4096))


def archive(members: dict[str, bytes], root: str = "score.xml") -> bytes:
    """A compressed MusicXML file."""
    container = f'<container><rootfiles><rootfile full-path="{root}"/></rootfiles></container>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in ({"META-INF/container.xml": container.encode()} | members).items():
            file.writestr(name, content)
    return buffer.getvalue()


def _any_kind(suffix: str) -> dict[str, tuple[bytes, str]]:
    """What can happen to a file of any type."""
    good = PLAIN[suffix]
    text = good.decode("latin-1")
    return {
        "good": (good, GOOD),
        "no_bytes": (b"", BAD),
        "only_newlines": (b"\n" * 1000, BAD),
        "zero_bytes": (bytes(5000), EITHER),
        "noise": (NOISE, EITHER),
        "cut_at_1": (good[:1], EITHER),
        "cut_in_half": (good[: len(good) // 2], EITHER),
        "cut_before_the_end": (good[:-3], EITHER),
        "byte_order_mark": (b"\xef\xbb\xbf" + good, EITHER),
        "utf_16": (text.encode("utf-16"), EITHER),
        "utf_32": (text.encode("utf-32"), EITHER),
        "cr_line_ends": (good.replace(b"\n", b"\r"), EITHER),
        "crlf_line_ends": (good.replace(b"\n", b"\r\n"), EITHER),
        "nul_inside": (good[:40] + b"\0" + good[40:], EITHER),
        "half_a_character": (good + b"\xc3", EITHER),
        "line_of_5_mb": (good[:60].rstrip(b"\n") + b" " * 5_000_000 + b"\n" + good[60:], EITHER),
        "twice": (good + good, EITHER),
        "an_archive": (
            archive({"score.xml": XML}),
            EITHER if suffix == ".xml" else BAD if suffix == ".mid" else EITHER,
        ),
        "a_picture": (b"\x89PNG\r\n\x1a\n" + NOISE, EITHER),
        "a_web_page": (
            b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
            EITHER if suffix in (".abc", ".txt") else BAD,
        ),
    }


def _abc() -> dict[str, tuple[bytes, str]]:
    head = b"X:1\nL:1/8\nM:4/4\nK:C\n"
    return {
        "no_note": (head, BAD),
        "no_key": (b"X:1\nT:no key\nABc|\n", EITHER),
        "a_bar_of_5_mb": (head + b"AB" * 2_500_000 + b"|\n", EITHER),
        "million_bars": (head + b"|" * 1_000_000 + b"A|\n", EITHER),
        "voice_line_of_spaces": (head + b"V:1" + b" " * 1_000_000 + b"\nV:1\nA8|\n", EITHER),
        "open_everything": (head + b'"[({!+' * 5000 + b"A|\n", EITHER),
        "length_of_zero": (b"X:1\nL:1/0\nM:0/0\nK:C\nA0/0 B1/0|(0:0:0abc|\n", EITHER),
        "huge_numbers": (b"X:9\nL:1/99999999999999\nM:99999999/1\nK:C\nA99999999999 B|Z99999999|\n", EITHER),
        "huge_digits": (b"X:1\nL:1/8\nM:4/4\nK:C\nA" + b"9" * 6000 + b"|Z" + b"9" * 6000 + b"|\n", EITHER),
        "many_voices": (head + b"".join(b"V:%d\nA8|\n" % number for number in range(3000)), EITHER),
        "include": (head + b"%%abc-include /etc/passwd\nI:abc-include /etc/passwd\nA8|\n", EITHER),
        "is_mtf": (PLAIN[".mtf"], BAD),
        "control_characters": (head + bytes(range(1, 32)) * 20 + b"A|\n", EITHER),
    }


def _mtf() -> dict[str, tuple[bytes, str]]:
    start = b"ticks_per_beat 480\n"
    return {
        "no_note": (start + b"end_of_track 0", EITHER),
        "million_lines": (start + b"note_on 1 0 60 64\nnote_off 1 0 60 64\n" * 500_000 + b"end_of_track 0", EITHER),
        "negative_numbers": (start + b"note_on -1 -2 -3 -4\nend_of_track -5", EITHER),
        "huge_numbers": (start + b"note_on 99999999999999999999 0 60 64\nend_of_track 0", EITHER),
        "huge_digits": (start + b"note_on " + b"9" * 6000 + b" 0 60 64\nend_of_track 0", EITHER),
        "huge_beat": (b"ticks_per_beat 99999999\nnote_on 0 0 60 64\nend_of_track 0", EITHER),
        "no_numbers": (start + b"note_on one two three four\nend_of_track", EITHER),
        "too_few": (start + b"note_on 1\nend_of_track 0", EITHER),
        "unknown_kind": (start + b"sudo rm -rf\nnote_on 0 0 60 64\nend_of_track 0", EITHER),
        "is_abc": (PLAIN[".abc"], BAD),
    }


def _mid() -> dict[str, tuple[bytes, str]]:
    def track(body: bytes, length: int | None = None) -> bytes:
        return b"MThd" + struct.pack(">LHHH", 6, 0, 1, 96) + b"MTrk" + struct.pack(">L", length or len(body)) + body

    note, end = b"\0\x90\x3c\x40\x60\x80\x3c\0", b"\0\xff\x2f\0"
    return {
        "running_status_cut_off": (track(b"\0\x90\x3c\x40\x60\x3c"), EITHER),
        "no_status": (track(b"\0\x3c\x40" + note + end), EITHER),
        "track_too_long": (track(note + end, 0xFFFFFFFF), EITHER),
        "track_too_short": (track(note + end, 3), EITHER),
        "many_tracks_promised": (b"MThd" + struct.pack(">LHHH", 6, 1, 65535, 96) + track(note + end)[14:], EITHER),
        "header_length": (b"MThd" + struct.pack(">LHHH", 0xFFFFFFFF, 0, 1, 96) + track(note + end)[14:], EITHER),
        "time_for_ever": (track(b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + note + end), EITHER),
        "meta_of_a_gigabyte": (track(b"\0\xff\x01\x84\x80\x80\x80\0" + note + end), EITHER),
        "no_track": (b"MThd" + struct.pack(">LHHH", 6, 0, 0, 0), EITHER),
        "is_riff": (b"RIFF" + struct.pack("<L", 200) + b"RMIDdata" + PLAIN[".mid"], EITHER),
    }


def _xml() -> dict[str, tuple[bytes, str]]:
    laughs = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
    laughs = f'<!DOCTYPE score-partwise [<!ENTITY a0 "ha">{laughs}]>'
    file = '<!DOCTYPE score-partwise [<!ENTITY secret SYSTEM "file:///etc/passwd">]>'
    text = XML.decode()
    return {
        "entities_that_expand": (text.replace("<score-", laughs + "<score-", 1).replace("Voice", "&a9;").encode(), BAD),
        "entity_of_a_file": (text.replace("<score-", file + "<score-", 1).replace("Voice", "&secret;").encode(), BAD),
        "deep": (b"<score-partwise>" + b"<part>" * 200_000, BAD),
        "tag_not_closed": (XML.replace(b"</part>", b""), BAD),
        "timewise": (XML.replace(b"score-partwise", b"score-timewise"), BAD),
        "no_note": (XML.replace(b"<note>", b"<forward>").replace(b"</note>", b"</forward>"), BAD),
        "huge_numbers": (XML.replace(b"<duration>4", b"<duration>" + b"9" * 30), EITHER),
        "negative_numbers": (
            XML.replace(b"<duration>4", b"<duration>-4").replace(b"<octave>4", b"<octave>-999"),
            EITHER,
        ),
        "no_divisions": (XML.replace(b"<divisions>1", b"<divisions>0"), EITHER),
        "huge_digits": (XML.replace(b"<duration>4", b"<duration>" + b"9" * 6000), EITHER),
    }


def _mxl() -> dict[str, tuple[bytes, str]]:
    """Archives, for which the suffix of the file is `.mxl`."""
    whole = archive({"score.xml": XML})
    return {
        "good_archive": (whole, GOOD),
        "path_above": (archive({"../../outside.xml": XML}, "../../outside.xml"), EITHER),
        "path_absolute": (archive({"/tmp/outside.xml": XML}, "/tmp/outside.xml"), EITHER),
        "root_outside": (archive({"score.txt": XML}, "../../../../etc/passwd"), BAD),
        "bomb": (archive({"score.xml": b" " * (200 << 20)}), BAD),
        "empty_archive": (archive({}), BAD),
        "cut_archive": (whole[: len(whole) // 2], BAD),
        "damaged_archive": (whole[:60] + NOISE[:50] + whole[110:], EITHER),
        "archive_in_archive": (archive({"score.xml": whole}), BAD),
    }


def _json() -> dict[str, tuple[bytes, str]]:
    def record(**changes) -> bytes:
        return json.dumps(RECORD | changes).encode()

    return {
        "deep": (b"[" * 200_000, BAD),
        "a_list": (b"[1, 2]", BAD),
        "a_number": (b"1" * 6000, BAD),
        "number_as_title": (record(title=1e308), BAD),
        "title_of_5_mb": (record(title="t" * 5_000_000), EITHER),
        "half_a_surrogate": (b'{"title": "\\ud83d", "filepaths": ["good.abc"]}', EITHER),
        "path_above": (record(filepaths=["../good.abc"]), EITHER),
        "path_absolute": (record(filepaths=["/etc/passwd", "/etc/passwd.abc"]), EITHER),
        "path_hidden_above": (record(filepaths=["x/../../good.abc"]), EITHER),
        "path_with_nul": (record(filepaths=["good\0.abc"]), EITHER),
        "path_of_10_kb": (record(filepaths=["a/" * 5000 + "good.abc"]), EITHER),
        "not_a_number": (b'{"title": NaN}', BAD),
    }


def _txt() -> dict[str, tuple[bytes, str]]:
    return {
        "one_word_of_1_mb": (b"la" * 500_000, EITHER),
        "unassigned": ("\U000e0fff\uffff\u202e text".encode(), EITHER),
        "specials": (b"<s></s><pad><mask><unk>" * 50, EITHER),
    }


_OWN = {".abc": _abc, ".mtf": _mtf, ".mid": _mid, ".xml": _xml, ".json": _json, ".txt": _txt}


def corpus(suffix: str) -> dict[str, tuple[bytes, str]]:
    """File name -> (content, GOOD or BAD or EITHER) of the damaged files of one type."""
    found = {name + suffix: case for name, case in (_any_kind(suffix) | _OWN[suffix]()).items()}
    if suffix == ".xml":
        found |= {name + ".mxl": case for name, case in _mxl().items()}
    found |= {name + suffix: (PLAIN[suffix], GOOD) for name in ODD_NAMES}
    return found


def write(folder: Path, suffix: str) -> dict[str, str]:
    """Writes the damaged files of one type, and what is no regular file. Returns name -> GOOD, BAD or EITHER."""
    folder.mkdir(parents=True, exist_ok=True)
    verdicts = {}
    for name, (content, verdict) in corpus(suffix).items():
        (folder / name).write_bytes(content)
        verdicts[name] = verdict
    (folder / (LONG_NAME + suffix)).write_bytes(PLAIN[suffix])
    verdicts[LONG_NAME + suffix] = EITHER  # the name of its output may be too long
    (folder / ("link_to_itself" + suffix)).symlink_to("link_to_itself" + suffix)
    (folder / ("link_to_nothing" + suffix)).symlink_to("nothing")
    (folder / ("link_to_zeros" + suffix)).symlink_to("/dev/zero")
    os.mkfifo(folder / ("pipe" + suffix))
    verdicts |= {f"{name}{suffix}": BAD for name in ("link_to_itself", "link_to_nothing", "link_to_zeros", "pipe")}
    (folder / ("folder" + suffix)).mkdir()
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    if os.geteuid():  # root reads everything
        (folder / ("unreadable" + suffix)).touch(0)
        verdicts["unreadable" + suffix] = BAD
    return verdicts
