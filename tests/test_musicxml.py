"""MusicXML -> ABC: the published text to the byte, any encoding and container, and nothing that hostile files can do."""

import io
import json
import os
import random
import zipfile

import pytest

import musicxml
from files import InputError
from helpers import ROOT, SHARED, run
from scores import CONTAINER, DOCTYPE, mxl, note, score
from xml_abc import musicxml_to_abc

SCRIPT = ROOT / "process_data" / "batch_xml2abc.py"
TUNE = 'X:1\nT:{}\nL:1/8\nM:4/4\nK:C\nV:1 treble nm="Flute"\nV:1\n C2 E2 G4 | %1\n\n'  # what xml2abc makes of score()


def abc_of(data: bytes | str) -> str:
    return musicxml_to_abc(data.encode() if isinstance(data, str) else data, "x.xml")[0]


def warnings_of(data: bytes | str) -> list[str]:
    return musicxml_to_abc(data.encode() if isinstance(data, str) else data, "x.xml")[1]


def refusal(data: bytes | str) -> str:
    with pytest.raises(InputError) as refused:
        abc_of(data)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# The text


def test_a_small_score_by_hand():
    assert abc_of(score(title="A tune")) == TUNE.format("A tune")
    assert warnings_of(score(title="A tune")) == []


def test_the_golden_abc_to_the_byte():
    """Made with xml2abc itself. The smaller files; `CLAMP2_ALL=1` in the environment takes all."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared golden values")
    sources = {path.stem: path for path in (SHARED / "data").rglob("*") if path.suffix in (".mxl", ".musicxml", ".xml")}
    golden = sorted((SHARED / "golden" / "abc").glob("*.abc"), key=lambda path: path.stat().st_size)
    assert len(golden) == 68
    for path in golden if "CLAMP2_ALL" in os.environ else golden[:40]:
        assert abc_of(sources[path.stem].read_bytes()).encode() == path.read_bytes(), path.name


@pytest.mark.parametrize("piece", ["bach/bwv66.6", "demos/multiple-verses", "demos/voices_with_chords"])
def test_the_script_xml2abc_writes_the_same(piece, tmp_path):
    """As a command of its own, on scores that come with music21."""
    import music21.corpus

    data = music21.corpus.getWork(piece).read_bytes()
    xml, _ = musicxml.read(data)
    path = tmp_path / "piece.xml"
    path.write_text(xml, encoding="utf-8")
    done = run("-m", "abctoolkit.xml2abc", "-d", "8", "-x", path)
    assert done.stdout.startswith("X:1\n") and done.stdout == abc_of(data)


def test_a_note_without_stem_is_written_as_published():
    """abctoolkit's copy of xml2abc writes `!stemless!` in full; the music that the weights were trained on has `s`."""
    chord = note("C4", 2, stem="none") + note("E4", 2, "<chord/>", stem="none").replace("<note>", "<note>", 1)
    chord = chord.replace("<note><pitch><step>E", "<note><chord/><pitch><step>E")
    abc = abc_of(score(chord + note("D4", 2, stem="none") + note("G4", 4), title="x"))
    assert abc.splitlines()[5] == "U:s=!stemless!"
    assert " s[CE]2 sD2 G4 | %1" in abc and "stemless!" not in abc.split("V:1", 1)[1]
    assert "stemless" not in abc_of(score())  # the next file


def test_nothing_of_one_file_reaches_the_next():
    first = score(note("C4", 2, stem="none", extra="<voice>1</voice>") + note("E4", 6), note("F4", 8), title="First")
    broken = score('<direction><direction-type><words>hm</words></direction-type><sound tempo="fast"/></direction>')
    alone = abc_of(score(title="Alone"))
    for before in (first, broken, "no xml", score(note("C4", "x"))):
        try:
            abc_of(before)
        except InputError:
            assert before is not first
        assert abc_of(score(title="Alone")) == alone == TUNE.format("Alone")


def test_what_xml2abc_prints_are_warnings(capsys):
    data = score(note("F4", 2, alter="1") + note("E4") + note("G4", 4) + note("G4", 4))
    assert warnings_of(data) == [
        "accidental 1 added in part 1, measure 1, voice 2 note F",
        "measure 1 in part 1 longer than metre",
    ]
    assert capsys.readouterr() == ("", "")
    many = warnings_of(score(*[note("G4", 12)] * 80))
    assert len(many) == 51 and many[-1] == "... and 30 more"


# Encodings


@pytest.mark.parametrize(
    ("encoding", "title"),
    [
        ("UTF-8", "Für Élise – 春"),
        ("utf8", "Für Élise – 春"),
        ("utf-8-sig", "Für Élise – 春"),
        ("UTF-16", "Für Élise – 春"),  # with a byte order mark
        ("UTF-16LE", "Für Élise – 春"),
        ("UTF-16BE", "Für Élise – 春"),
        ("UTF-32", "Für Élise – 春"),
        ("ISO-8859-1", "Für Élise"),
        ("windows-1252", "Für Élise – “x”"),
        ("macintosh", "Für Élise"),
        ("ISO-8859-2", "Křemílek"),
        ("KOI8-R", "Полька"),
        ("Shift_JIS", "春の海"),
        ("EUC-JP", "春の海"),
        ("EUC-KR", "아리랑"),
        ("GB18030", "茉莉花"),
        ("Big5", "茉莉花"),
    ],
)
def test_encodings(encoding, title):
    text = score(title=title, declaration=f'<?xml version="1.0" encoding="{encoding}" standalone="no"?>')
    for data in (
        text.encode(encoding),
        text.replace('"', "'").encode(encoding),
        mxl({"a": text.encode(encoding)}, ["a"]),
    ):
        assert abc_of(data) == TUNE.format(title) and warnings_of(data) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_unicode_with_and_without_a_mark(encoding):
    text = score(title="Für Élise – 春")
    for mark in ("", "\ufeff"):
        assert abc_of((mark + text).encode(encoding)) == TUNE.format("Für Élise – 春")
        assert warnings_of((mark + text).encode(encoding)) == []


def test_what_is_declared_may_be_wrong():
    text = score(title="Élise", declaration='<?xml version="1.0" encoding="UTF-16"?>')
    assert abc_of(text) == TUNE.format("Élise") and "read as UTF-8" in warnings_of(text)[0]
    for declared in ("UTF-8", "us-ascii"):
        latin = score(title="Élise", declaration=f'<?xml version="1.0" encoding="{declared}"?>').encode("latin-1")
        assert abc_of(latin) == TUNE.format("Élise") and "read as cp1252" in warnings_of(latin)[0]
    assert abc_of("\n\0 \ufeff" + score(title="x")) == TUNE.format("x")
    for unknown in ("klingon", "zip", "rot13"):
        assert unknown in refusal(score(declaration=f'<?xml version="1.0" encoding="{unknown}"?>'))


# Compressed files


@pytest.mark.parametrize("name", ["score.xml", "x.musicxml", "a/b c/ä.MusicXML", "noten", "../../x.xml", "/etc/x.xml"])
def test_the_container_names_the_score(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = score(note("B4", 8), title="another")
    for data in (
        mxl({"other.xml": other, name: score(title="x")}, [name, "other.xml"]),
        mxl({name: score(title="x")}, [name]),
    ):
        assert abc_of(data) == TUNE.format("x") and warnings_of(data) == []
    assert not list(tmp_path.iterdir())  # nothing is unpacked


@pytest.mark.parametrize(
    ("container", "problem"),
    [
        (None, "is missing"),
        ("<container><rootfiles><rootfile full-path='it's.xml'/></rootfiles></container>", "is damaged"),
        ("", "is damaged"),
        (CONTAINER.format(""), "names ''"),
        (CONTAINER.format('<rootfile full-path="gone.xml"/>'), "names 'gone.xml'"),
        ('<!DOCTYPE c [<!ENTITY e "x">]>' + CONTAINER.format('<rootfile full-path="&e;"/>'), "is damaged"),
    ],
)
def test_without_a_container_that_helps(container, problem):
    members = {"__MACOSX/._s.xml": b"\0", ".hidden.xml": "", "cover.png": b"", "s/score.XML": score(title="x")}
    data = mxl(members, container=container)
    assert abc_of(data) == TUNE.format("x")
    assert problem in warnings_of(data)[0] and "took 's/score.XML', the only score" in warnings_of(data)[0]
    assert "holds 2 files that may be the score" in refusal(mxl(members | {"t.musicxml": score()}, container=container))
    assert "holds 0 files" in refusal(mxl({"cover.png": b""}, container=container))


def test_folders_and_metadata_of_an_archive_are_no_scores():
    members = {"__MACOSX/s.xml": score(), "META-INF/s.xml": score(), "s/": "", "s/s.xml": score(title="x")}
    for container in (["s/"], ["s"], None):
        assert abc_of(mxl(members, container)) == TUNE.format("x")
        assert "took 's/s.xml', the only score in it" in warnings_of(mxl(members, container))[0]


def test_a_container_with_a_bad_checksum():
    data = mxl({"a.xml": score(title="x")}, ["a.xml"])
    damaged = bytearray(data)
    damaged[14] ^= 1  # of the checksums in the local header and in the directory, the second counts
    damaged[damaged.index(b"PK\1\2") + 16] ^= 1
    assert abc_of(bytes(damaged)) == TUNE.format("x") and "Bad CRC" in warnings_of(bytes(damaged))[0]


def test_the_content_decides_what_is_compressed():
    assert abc_of(mxl({"a.xml": score(title="x")}, ["a.xml"])) == musicxml_to_abc(score(title="x").encode(), "x.mxl")[0]


def test_damaged_archives_are_refused():
    data = mxl({"a.xml": score(title="x")}, ["a.xml"])
    assert "damaged" in refusal(data[:100]) and "damaged" in refusal(b"PK\3\4")
    middle = data.index(b"a.xml") + 100
    assert "damaged" in refusal(data[:middle] + b"????" + data[middle + 4 :])
    encrypted = bytearray(data)
    encrypted[encrypted.rindex(b"PK\1\2") + 8] |= 1
    assert "encrypted" in refusal(bytes(encrypted))


def test_any_damage_is_refused_or_read():
    """2,000 damaged files: no exception but the one that a batch and a search index expect."""
    chance, outcomes = random.Random(1), {True: 0, False: 0}
    originals = [score(title="x").encode(), mxl({"a.xml": score(title="x")}, ["a.xml"])]
    for _ in range(1000):
        for original in originals:
            data = bytearray(original)
            for _ in range(chance.choice((1, 1, 4))):
                data[chance.randrange(len(data))] = chance.randrange(256)
            data = data[: chance.choice((len(data), len(data), chance.randrange(len(data))))]
            try:
                outcomes[abc_of(bytes(data)).startswith("X:1\n")] += 1
            except InputError:
                outcomes[False] += 1
    assert min(outcomes.values()) > 100  # the damage was neither too small nor too great to tell


# Hostile files


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha" * 10}">' for i in range(10))


@pytest.mark.parametrize(
    "declarations",
    [
        LAUGHS,
        '<!ENTITY l9 "small">',
        '<!ENTITY l9 SYSTEM "file:///etc/passwd">',
        '<!ENTITY % l9 SYSTEM "file:///etc/passwd"> %l9;',
        f'<!ATTLIST note x CDATA "{"x" * 1000}">',
    ],
)
def test_entities_are_refused(declarations):
    doctype = f"<!DOCTYPE score-partwise [{declarations}]>"
    data = score(title="&l9;", doctype=doctype)
    assert "refused for safety" in refusal(data) and "refused for safety" in refusal(data.encode("utf-16"))
    assert "refused for safety" in refusal(mxl({"a.xml": data}, ["a.xml"]))


def test_a_doctype_is_no_harm_and_its_dtd_is_not_read(tmp_path):
    (tmp_path / "evil.dtd").write_text('<!ENTITY e "expanded">')
    outside = f'<!DOCTYPE score-partwise SYSTEM "{(tmp_path / "evil.dtd").as_uri()}">'
    for doctype in ("", DOCTYPE, "<!DOCTYPE score-partwise []>", outside):
        assert abc_of(score(title="x", doctype=doctype)) == TUNE.format("x")
    assert "entities" in refusal(score(title="&e;", doctype=outside))


def test_nothing_unpacks_without_limit(monkeypatch):
    monkeypatch.setattr(musicxml, "MAX_BYTES", 100_000)
    long = score(title="x") + " " * 99_000
    assert abc_of(mxl({"a.xml": long[:100_000]}, ["a.xml"])) == abc_of(long[:100_000]) == TUNE.format("x")
    assert "unpacks to over" in refusal(mxl({"a.xml": long * 20}, ["a.xml"]))
    assert "over" in refusal(long * 20)
    bomb = mxl({"a.xml": score()}, container=" " * 10_000_000)
    assert "container.xml' unpacks to over" in warnings_of(bomb)[0]


def test_the_true_size_counts_not_the_declared_one(monkeypatch):
    monkeypatch.setattr(musicxml, "MAX_BYTES", 100_000)
    data = bytearray(mxl({"a.xml": score() + " " * 1_000_000}, ["a.xml"]))
    entry = data.rindex(b"PK\1\2")
    assert int.from_bytes(data[entry + 24 : entry + 28], "little") > 1_000_000
    data[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    assert refusal(bytes(data))


def test_deep_nesting_is_refused():
    assert "nested" in refusal("<score-partwise><part>" + "<a>" * 1_000_000)
    deep = score("<a>" * 500_000 + "</a>" * 500_000)
    assert "nested" in refusal(deep)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not well-formed"),
        (b"\0\1\2\3", "not well-formed"),
        ("<score-partwise>", "not well-formed"),
        (score()[:300], "not well-formed"),
        (score(title="&nbsp;", doctype=""), "not well-formed"),
        (score(title="\x07"), "not well-formed"),
        ("<html><body/></html>", "root element is <html>"),
        ("<museScore/>", "root element is <museScore>"),
        ("<score-timewise/>", "save it as score-partwise"),
        ("<opus/>", "not a score"),
        ("<score-partwise/>", "no <part>"),
        ("<score-partwise><x><part/></x></score-partwise>", "no <part>"),
        (score('<note><rest measure="yes"/><duration>8</duration></note>'), "no part of it has a note"),
        (score(note("C4", "two")), "part P1, measure 1: duration 'two' is no length"),
    ],
)
def test_what_is_no_music_is_refused_with_the_reason(data, reason):
    assert reason in refusal(data)


# Line breaks inside texts, which would end a line of ABC


@pytest.mark.parametrize(
    "broken", ["ge\nbe", "ge \n\n be", "ge\r\nbe", "ge&#10;be", "ge&#xD;\nbe", "ge\u2028be", "\nge be\n "]
)
def test_lyrics_of_several_lines_add_no_notes(broken):
    def sung(text: str) -> str:
        lyric = f"<lyric><syllabic>single</syllabic><text>{text}</text><text></text></lyric>"
        return score(note("C4", extra=lyric) + note("E4") + note("G4", 4), note("C4", 8))

    assert abc_of(sung(broken)) == abc_of(sung("ge be")) and "\nw: ge~be" in abc_of(sung("ge be"))
    assert warnings_of(sung(broken)) == ["1 × line break in the lyrics taken for a space"]
    assert warnings_of(sung("ge be")) == []


def test_names_of_several_lines_stay_in_their_line():
    for broken in ("Long&#13;\nname", "Long&#xd;&#xA;name", "Long\r\nname", "Long\nname"):
        assert '\nV:1 treble nm="Long\\nname"\n' in abc_of(score().replace("Flute", broken))


# What stops xml2abc, mended


def direction(content: str, extra: str = "") -> str:
    return f"<direction><direction-type>{content}</direction-type>{extra}</direction>"


@pytest.mark.parametrize(
    ("odd", "plain", "said"),
    [
        (direction('<pedal type="change"/>'), "", "1 × pedal of type 'change' left out"),
        (direction('<wedge type="continue"/>') * 2, "", "2 × wedge of type 'continue' left out"),
        (
            direction("<metronome><beat-unit>half</beat-unit><beat-unit>quarter</beat-unit></metronome>"),
            "",
            "1 × metronome mark without beats per minute left out",
        ),
        (
            direction("<words>dolce</words>", "<staff>2</staff>"),
            direction("<words>dolce</words>"),
            "1 × direction on a staff without notes moved",
        ),
        (
            note("C4", extra="<accidental>natural-sharp</accidental>", alter="1"),
            note("C4", alter="1"),
            "1 × accidental 'natural-sharp' left out, the pitch rounded to semitones",
        ),
        (
            note("C4", extra="<accidental>quarter-sharp</accidental>", alter="0.5"),
            note("C4", alter="0"),
            "1 × accidental 'quarter-sharp' left out, the pitch rounded to semitones",
        ),
    ],
)
def test_what_xml2abc_stops_at_is_mended(odd, plain, said):
    rest = note("C4") + note("E4") + note("G4", 4)
    assert abc_of(score(odd + rest)) == abc_of(score(plain + rest))
    assert said in warnings_of(score(odd + rest))
    assert "×" not in "".join(warnings_of(score(plain + rest)))


def test_added_beats_and_unlisted_parts_are_mended():
    assert "\nM:5/4\n" in abc_of(score(note("C4", 10), beats="3+2"))
    assert "1 × 3+2 beats written as 5" in warnings_of(score(note("C4", 10), beats="3+2"))
    one = score(title="x")
    two = one.replace(
        "</score-partwise>", '<part id="P2"><measure>' + note("D4", 8) + "</measure></part></score-partwise>"
    )
    two = two.replace("<measure><note>", "<measure><attributes><divisions>2</divisions></attributes><note>")
    assert " C2 E2 G4 | %1\nV:2\n D8 | %1\n" in abc_of(two)
    assert "1 × part that is missing in the part list added there" in warnings_of(two)


# The script


def test_the_script_on_a_folder(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    (source / "a.xml").write_text(score(title="a", declaration='<?xml version="1.0" encoding="UTF-8"?>'))
    (source / "a.mxl").write_bytes(mxl({"x": score(title="b")}, ["x"]))
    (source / "sub" / "c.MusicXML").write_bytes(score(note("F4", 8, alter="1"), title="c").encode("utf-16"))
    (source / "bad.xml").write_text("<html/>")
    (source / "notes.txt").write_text("")
    done = run(SCRIPT, source, target, "--workers", "1")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(
        "3 done, 0 skipped (finished before), 1 failed, 1 with warnings, 1 other"
    )
    assert "voices" not in done.stdout + done.stderr  # xml2abc prints a line with it for each file
    assert (target / "a.xml.abc").read_text() == TUNE.format("a")
    assert (target / "a.mxl.abc").read_text() == TUNE.format("b")
    assert "\n ^F8 |" in (target / "sub" / "c.abc").read_text()
    assert json.loads((target / "errors.jsonl").read_text()) == {
        "file": "bad.xml",
        "error": "not MusicXML: the root element is <html>, not <score-partwise>",
    }
    assert json.loads((target / "warnings.jsonl").read_text())["warnings"]


def test_help_shows_how():
    done = run(SCRIPT, "--help")
    assert done.returncode == 0 and "batch_xml2abc.py scores/ abc/" in done.stdout


def test_the_archives_of_these_tests_are_what_they_say():
    with zipfile.ZipFile(io.BytesIO(mxl({"a": "b"}, ["a"]))) as archive:
        assert archive.namelist() == ["META-INF/container.xml", "a"] and archive.read("a") == b"b"
