"""Summaries without a language model: their facts, their words in six languages, and the way to the training."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

import batch_midi2mtf
import languages
import merge_jsonl
import offline_summaries
import records
import templates
from helpers import ROOT
from offline_summaries import key_of, meter_of, of_abc, of_metadata, of_mtf, tempo_of

KIT = ROOT / "tests" / "kit"


def write_records(folder: Path, **found: dict) -> None:
    folder.mkdir(exist_ok=True)
    for name, record in found.items():
        (folder / f"{name}.json").write_text(json.dumps(record))


@pytest.fixture
def run(tmp_path, capsys):
    """Summarizes the records of tmp_path/in about music of the kit; gives records and logs of OUT by their names."""

    def run_here(*options: str, status: int = 0, music: Path = KIT) -> tuple[dict, str]:
        argv = [tmp_path / "in", tmp_path / "out", music, "--workers", 1, *options]
        assert offline_summaries.main([*map(str, argv)]) == status
        made = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
        for path in (tmp_path / "out").glob("[ew]*.jsonl"):
            made[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
        return made, capsys.readouterr().out

    return run_here


# --- words ------------------------------------------------------------------------------------------------------------

REEL = {
    "genres": ["Reel"], "key": "F# minor", "meter": "2/4", "tempo": 112, "bars": 16, "range": (57, 82),
    "instruments": ["strings", "Acoustic Guitar"], "composer": ["Clara Schumann"],
}  # fmt: skip
REEL_SAYS = {
    "English": "Reel in F# minor, in 2/4 time, 112 BPM, 16 bars, from A3 to Bb5. Music by Clara Schumann."
    " Instruments: strings, Acoustic Guitar.",
    "German": "Reel in fis-Moll, 2/4-Takt, 112 BPM, 16 Takte, A3 bis Bb5. Musik: Clara Schumann."
    " Instrumente: Streicher, Gitarre.",
    "French": "Reel en fa dièse mineur, à 2/4, 112 BPM, 16 mesures, de A3 à Bb5. Musique : Clara Schumann."
    " Instruments : cordes, guitare.",
    "Spanish": "Reel en fa sostenido menor, en 2/4, 112 BPM, 16 compases, de A3 a Bb5. Música: Clara Schumann."
    " Instrumentos: cuerdas, guitarra.",
    "Italian": "Reel in fa diesis minore, in 2/4, 112 BPM, 16 battute, da A3 a Bb5. Musica: Clara Schumann."
    " Strumenti: archi, chitarra.",
    "Chinese (Simplified)": "升F小调的里尔舞曲，2/4拍，112 BPM，16小节，音域A3到Bb5。作曲：Clara Schumann。乐器：弦乐、吉他。",
}
SONG = {
    "genres": ["pop", "Shoegaze"], "key": "Bb major", "meter": "6/8", "tempo": 90, "bars": 40, "range": (36, 72),
    "ensembles": ["band"], "instruments": ["Piano", "Violin I", "Violin II", "Hang", "drums"],
}  # fmt: skip
SONG_SAYS = {
    "English": "Genre: pop, Shoegaze. Key: Bb major. Time signature: 6/8. Tempo: 90 BPM. Number of bars: 40."
    " Range: C2 to C5. Ensemble: band. Instruments: Piano, Violin I, Violin II, Hang, drums.",
    "German": "Genre: Pop, Shoegaze. Tonart: B-Dur. Taktart: 6/8. Tempo: 90 BPM. Anzahl der Takte: 40."
    " Tonumfang: C2 bis C5. Besetzung: band. Instrumente: Klavier, Streicher, Hang, Schlagzeug.",
    "French": "Genre : pop, Shoegaze. Tonalité : si bémol majeur. Mesure : 6/8. Tempo : 90 BPM."
    " Nombre de mesures : 40. Ambitus : de C2 à C5. Effectif : band. Instruments : piano, cordes, Hang, batterie.",
    "Spanish": "Género: pop, Shoegaze. Tonalidad: si bemol mayor. Compás: 6/8. Tempo: 90 BPM."
    " Número de compases: 40. Ámbito: de C2 a C5. Conjunto: band. Instrumentos: piano, cuerdas, Hang, batería.",
    "Italian": "Genere: pop, Shoegaze. Tonalità: si bemolle maggiore. Metro: 6/8. Velocità: 90 BPM."
    " Numero di battute: 40. Estensione: da C2 a C5. Organico: band. Strumenti: pianoforte, archi, Hang, batteria.",
    "Chinese (Simplified)": "类型：流行、Shoegaze。调性：降B大调。拍号：6/8。速度：90 BPM。小节数：40。音域：C2到C5。编制：band。"
    "乐器：钢琴、弦乐、Hang、架子鼓。",
}


@pytest.mark.parametrize("language", templates.LANGUAGES)
def test_two_pieces_in_six_languages(language):
    assert templates.summary(REEL, language, "sentence first") == REEL_SAYS[language]
    assert templates.summary(SONG, language, "list") == SONG_SAYS[language]
    for text in (REEL_SAYS[language], SONG_SAYS[language]):
        assert languages.misfit(text, language) is None


@pytest.mark.parametrize(
    ("facts", "text"),
    [({}, ""), ({"meter": "3/4"}, "Music, in 3/4 time."), ({"genres": ["waltz"]}, "Genre: waltz."),
     ({"genres": ["waltz"], "tempo": 160}, "Waltz, 160 BPM."), ({"key": "D dorian"}, "Music in D dorian."),
     ({"genres": ["jazz"], "bars": 32}, "Genre: jazz. Music, 32 bars."),
     ({"genres": ["jig", "reel"], "bars": 32}, "Genre: jig, reel. Music, 32 bars.")],
)  # fmt: skip
def test_what_is_unknown_is_not_said(facts, text):
    assert templates.summary(facts, "English", "sentence last") == text


def test_general_midi():
    """Programs as the standard numbers them, from 0: the first and last of its families, and those that differ."""
    names = {
        0: "piano", 5: "piano", 6: "harpsichord", 7: "clavinet", 8: "tuned percussion", 15: "tuned percussion",
        16: "organ", 20: "organ", 21: "accordion", 22: "harmonica", 23: "accordion", 24: "guitar", 31: "guitar",
        32: "bass", 37: "bass", 38: "synthesizer", 40: "strings", 45: "strings", 46: "harp", 47: "timpani",
        48: "strings", 49: "strings", 50: "synthesizer", 52: "voices", 53: "voices", 54: "synthesizer", 55: "",
        56: "brass", 61: "brass", 62: "synthesizer", 64: "saxophone", 67: "saxophone", 68: "woodwinds",
        71: "woodwinds", 72: "flutes", 79: "flutes", 80: "synthesizer", 103: "synthesizer",
        104: "traditional instruments", 109: "traditional instruments", 110: "strings", 111: "traditional instruments",
        112: "percussion", 119: "percussion", 120: "sound effects", 127: "sound effects",
    }  # fmt: skip
    assert {program: templates.PROGRAMS[program] for program in names} == names and len(templates.PROGRAMS) == 128
    assert all(templates.instrument(name) == name for name in set(templates.PROGRAMS))


@pytest.mark.parametrize(
    ("name", "word"),
    [("Violin II", "strings"), ("Electric Bass Guitar", "bass"), ("Bass Clarinet in Bb", "woodwinds"),
     ("English Horn", "woodwinds"), ("French Horn", "brass"), ("Synth Strings 1", "synthesizer"), ("Klavier", "piano"),
     ("Overdriven Guitar", "guitar"), ("Steel Drums", "percussion"), ("Drums", "drums"), ("钢琴", "piano"),
     ("Timbales", "percussion"), ("Bass Drum", "percussion"), ("Double Bass", "strings"),
     ("Glass Harmonica", "tuned percussion"), ("Jew's Harp", "traditional instruments"), ("Soprano Sax", "saxophone"), ("Erhu", ""), ("Part 1", ""), ("", "")],
)  # fmt: skip
def test_names_of_instruments(name, word):
    assert templates.instrument(name) == word


# --- facts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [("G", "G major"), ("Gm", "G minor"), ("F#m", "F# minor"), ("Bb", "Bb major"), ("Bb major", "Bb major"),
     ("Ddor", "D dorian"), ("A Mixolydian", "A mixolydian"), ("Emin", "E minor"), ("B aeolian", "B minor"),
     ("C clef=bass", "C major"), ("Am treble", "A minor"), ("E-flat major", "Eb major"), ("C sharp minor", "C# minor"),
     ("none", None), ("", None), ("HP", None), ("D exp _e ^f", None), ("Classical", None), ("Blues", None),
     ("B loc", None), ("None", None), ("d-Moll", None)],
)  # fmt: skip
def test_keys(text, key):
    assert key_of(text) == key


def test_meters_and_tempos():
    assert [meter_of(text) for text in ("C", "C|", " 6/8", "12/8", "none", "(2+3)/8", "4", "0/4", "")] == [
        *("4/4", "2/2", "6/8", "12/8"), *[None] * 5,
    ]  # fmt: skip
    tempos = {
        "120": 120,
        "1/4=72": 72,
        '"Lento" 3/8=40': 60,
        "1/2=60": 120,
        "99.6": 100,
        "89.4 BPM": 89,
        "1/8 = 90": 45,
    }
    assert {text: tempo_of(text) for text in tempos} == tempos
    assert [tempo_of(text) for text in ("Allegro", "0", "None", "C=120", "9" * 5000, "1/4=9999", "True", "1/0=5")] == (
        [None] * 8
    )


def test_facts_of_abc():
    """Read by eye in the files: duo.abc has 20 lines of bars, K:Em, M:3/4, Q:1/4=120, and two voices of a choir."""
    duo = of_abc((KIT / "interleaved" / "duo.abc").read_text())
    assert duo == {"key": "E minor", "meter": "3/4", "tempo": 120, "bars": 20, "instruments": ["voices"] * 2}
    head = 'L:1/4\nM:4/4\nK:C\nV:1 nm="Bass" snm="B."\n'
    changing = of_abc(head + "[V:1]C4|\n[V:1][M:3/4][K:G]C3|\n[V:1][Q:1/4=60]C3|\n")
    assert changing == {"key": False, "meter": False, "tempo": 60, "bars": None, "instruments": ["bass"]}
    assert of_abc("X:1\n" + head + "C4|")["bars"] is None  # not interleaved
    odd = of_abc(head + "[V:1][K:bass][M:(2+3)/8][Q:120]C5/2|\n[V:1]C5/2|\n")  # a clef is no change of key
    assert (odd["key"], odd["meter"], odd["tempo"]) == ("C major", False, None)  # 120 what?


@pytest.mark.parametrize(
    ("last", "key"),
    [("[V:1]B G2|]", "G major"), ("[V:1]B E2|]", None), ("[V:1]G2|][V:2]B,,E,,2|]", None), ("[V:1]z3|]", None),
     ('[V:1]e4|][V:2]"Em"[G,,D,B,]3|]', "G major"), ("[V:1]G2|][V:2][E,G,]3|]", None),
     ("[V:1]B z2|][V:2]G,3[I:staff +1]!fermata!z|]", "G major"), ("[V:1]|[2 B, G3|]", "G major")],
)  # fmt: skip
def test_a_major_key_is_one_that_the_music_ends_in(last, key):
    """A signature without a mode is K:G, of E minor too; what ends in E minor has E in the bass."""
    assert of_abc(f"L:1/4\nM:3/4\nK:G\nV:1\n[V:1]GBd|\n{last}\n")["key"] == key
    assert of_abc(f"L:1/4\nM:3/4\nK:Em\nV:1\n[V:1]GBd|\n{last}\n")["key"] == "E minor"


@pytest.mark.parametrize(
    ("bars", "count"),
    [("d|GBd|GBd|GB", 3), ("d|GBd|GB|d|GBd", 3), ("GBd|GBd", 2), ("GBd|d16|GBd", None), ("(3GBdG|GBd|GB", 2)],
)
def test_pickups_and_divided_bars_are_not_counted(bars, count):
    lines = "".join(f"[V:1]{bar}|\n" for bar in bars.split("|"))
    assert of_abc(f"L:1/4\nM:3/4\nK:G\nV:1\n{lines}")["bars"] == count


@pytest.mark.parametrize(
    ("names", "words"),
    [(["Soprano", "Alto 1", "Tenor", "Bass II", "Piano"], ["voices"] * 4 + ["piano"]), (["Bass", "Drums"], ["bass", "drums"]),
     (["Alto Sax", "Tenor Sax", "Bass"], ["saxophone", "saxophone", "bass"]), (["Solo\\nViola"], ["strings"]),
     (["Piano", "Part 2"], None), ([], None)],
)  # fmt: skip
def test_parts_are_told_if_all_are_known(names, words):
    parts = "".join(f'V:{number} nm="{name}"\n' for number, name in enumerate(names))
    assert of_abc(f"K:C\n{parts}[V:1]C|\n")["instruments"] == words


def mtf(*lines: str) -> str:
    notes = ("note_on 0 0 60 80", "note_on 9 1 64 0", "note_on 0 0 67 9", "note_on 0 9 35 80", "note_off 9 0 67 0")
    return "\n".join(["ticks_per_beat 480", *lines, *notes, "end_of_track 0"])


def test_facts_of_mtf():
    facts = of_mtf(
        mtf("time_signature 3 8 24 8 0", "key_signature F#m 0", "set_tempo 600000 0", "program_change 0 0 0",
            "program_change 0 1 56", "program_change 0 9 0", "program_change 0 0 24")
    )  # fmt: skip
    # 60 s / 0.6 s = 100; channel 1 has no note, and channel 0 none as a piano
    assert facts == {
        "key": "F# minor", "meter": "3/8", "tempo": 100, "instruments": ["guitar", "drums"], "range": (60, 67),
    }  # fmt: skip
    drums = of_mtf("ticks_per_beat 480\n" + "note_on 0 9 35 80\nnote_off 9 9 35 0\n" * 10**4)  # at once, not in minutes
    assert [fact for fact in drums.values() if fact] == [["drums"]]
    for unknown in ((), ("program_change 0 0 999",), ("program_change 0 0 55",)):  # more than drums sounds
        assert of_mtf(mtf(*unknown))["instruments"] is None


@pytest.mark.parametrize(
    ("key", "last", "known"),
    [("Bb", 58, "Bb major"), ("Bb", 55, None), ("Gm", 58, "G minor"), ("Cb", 59, "Cb major"), ("F#", 54, "F# major"),
     ("B", 58, None)],
)  # fmt: skip
def test_a_major_key_is_one_that_midi_ends_in(key, last, known):
    """The lowest note that sounds with the last one is held from before, as in a broken chord."""
    ends = (f"note_on 0 0 {last} 80", "note_on 9 0 65 80", "note_on 0 9 35 80", "note_off 9 0 65 0")
    text = mtf(f"key_signature {key} 0").replace("end_of_track 0", "\n".join([*ends, f"note_off 0 0 {last} 0"]))
    assert of_mtf(text)["key"] == known


@pytest.mark.parametrize(
    ("lines", "known"),
    [((), {}), (("time_signature 4 4 24 8 0", "set_tempo 500000 0", "key_signature C 0"), {}),
     (("time_signature 4 4 24 8 0", "set_tempo 600000 0"), {"meter": "4/4", "tempo": 100}),
     (("time_signature 3 4 24 8 0", "set_tempo 500000 0"), {"meter": "3/4", "tempo": 120}),
     (("key_signature C 0", "key_signature G 0"), {}), (("key_signature G 0", "key_signature G 0"), {"key": "G major"}),
     (("set_tempo 600000 0", "set_tempo 300000 0", "time_signature 3 4 24 8 0"), {"meter": "3/4"})],
)  # fmt: skip
def test_defaults_of_midi_and_what_changes_are_no_facts(lines, known):
    found = of_mtf(mtf(*lines))
    assert {name: found[name] for name in ("key", "meter", "tempo") if found[name]} == known


def test_facts_of_metadata():
    record = dict.fromkeys(records.METADATA) | {
        "genres": ["pop", "None", " pop ", "x" * 61], "composer": ["J. S.\nBach.", "Trad.", "Composer"], "instruments": ["Piano", None],
        "key": "Bb major", "time_signature": "4/4", "tempo": 119.6, "duration": 12,
    }  # fmt: skip
    assert of_metadata(record) == {
        "genres": ["pop"], "composer": ["J. S. Bach"], "instruments": ["Piano"], "key": "Bb major", "meter": "4/4",
        "tempo": 120,
    }  # fmt: skip
    blank = dict.fromkeys(records.METADATA)
    assert of_metadata(blank | {"tempo": None, "key": 5}) == {}
    tags = ["happy", "A minor", "6/8", "F major seventh", "120 beats per minute at the beginning"]
    assert of_metadata(blank | {"tags": tags}) == {"key": "A minor", "meter": "6/8"}
    assert of_metadata(blank | {"tags": "3/4 time", "meter": "C|", "key": "G"}) == {"key": "G major", "meter": "2/2"}
    assert of_metadata(blank | {"tags": ["A minor", "C major", "C"]}) == {}


# --- records ----------------------------------------------------------------------------------------------------------


def test_from_records_to_training(tmp_path, run, capsys):
    """Real scores and MIDI through the conversions, the summaries and the merge."""
    assert batch_midi2mtf.main([str(ROOT / "tests/examples/midi/twinkle.mid"), str(tmp_path / "mtf")]) == 0
    shutil.copytree(KIT / "interleaved", tmp_path / "abc")
    write_records(
        tmp_path / "in",
        duo={"title": "Duo", "key": "Ab major", "tags": ["x"], "filepaths": ["abc/duo.abc", "mtf/twinkle.mtf"]},
        late={"title": "Late", "genres": ["march"], "meter": "6/8", "filepaths": ["abc/duo.abc", "abc/gone.abc"]},
        bare={"title": "Bare", "filepaths": ["abc/gone.abc"]},
    )
    made, printed = run(status=1, music=tmp_path)
    assert "2 done, 0 skipped (finished before), 1 failed, 1 with warnings" in printed
    [bare], [late] = made["errors"], made["warnings"]
    assert bare["file"] == "bare.json" and "nothing is known" in bare["error"] and "abc/gone.abc" in bare["error"]
    assert late["file"] == "late.json" and "abc/gone.abc: No such file" in late["warnings"][0]

    duo = made["duo"]
    assert list(duo) == [*records.FIELDS, "key", "summaries"]
    assert duo["summaries"] == {"summary_en": "template", "summary_nen": "template"}
    for fact in ("E minor", "3/4", "120 BPM", "20", "voices", "G2", "A4"):  # the key of the music, not of the record
        assert fact in duo["summary_en"]
    assert duo["title"] not in duo["summary_en"]

    target = tmp_path / "train.jsonl"
    assert merge_jsonl.main([str(tmp_path / "out"), str(target)]) == 0
    merged = {record["title"]: record for record in records.Jsonl(target)}
    assert merged["Duo"] == duo and merged["Late"]["filepaths"] == ["abc/duo.abc"]
    assert records.fixed_text(merged["Duo"]) == [duo["summary_en"]]
    assert records.summaries(merged["Duo"]["summary_nen"]) == [duo["summary_nen"]["summary"]]
    assert languages.misfit(duo["summary_nen"]["summary"], duo["summary_nen"]["language"]) is None


def test_what_changes_in_the_music_is_not_taken_from_the_record(tmp_path, run):
    (tmp_path / "a.abc").write_text("L:1/4\nM:3/4\nK:Em\nV:1\n[V:1]G3|\n[V:1][M:2/4]E2|\n")
    record = {"key": "Ab major", "time_signature": "3/4", "tempo": 90, "filepaths": ["a.abc"]}
    write_records(tmp_path / "in", piece=record)
    summary = run(music=tmp_path)[0]["piece"]["summary_en"]
    assert "E minor" in summary and "90" in summary and "3/4" not in summary


def test_captions_and_summaries_that_are_there(tmp_path, run):
    caption, music = "A slow pop song\n in Bb major.", {"filepaths": ["interleaved/duo.abc"]}
    french = {"language": "French", "summary": "À moi."}
    write_records(
        tmp_path / "in",
        captioned={"description": caption, **music},
        untold={"description": caption, "filepaths": ["interleaved/gone.abc"]},
        foreign={"description": "巴赫的小步舞曲。", **music},
        mine={"description": caption, "summary_en": "Mine.", **music},
        both={"summary_en": "Mine.", "summary_nen": french, **music},
    )
    made, _ = run("--captions")
    captioned = made["captioned"]
    assert captioned["summary_en"] == "A slow pop song in Bb major." and captioned["description"] == caption
    assert captioned["summaries"] == {"summary_en": "caption", "summary_nen": "template"}
    assert made["untold"]["summary_nen"] is None and made["untold"]["summaries"] == {"summary_en": "caption"}
    assert "E minor" in made["foreign"]["summary_en"] and made["foreign"]["summaries"]["summary_en"] == "template"
    assert made["mine"]["summary_en"] == "Mine." and made["mine"]["summaries"] == {"summary_nen": "template"}
    assert (made["both"]["summary_en"], made["both"]["summary_nen"]) == ("Mine.", french)
    assert "summaries" not in made["both"]
    assert [entry["file"] for entry in made["warnings"]] == ["foreign.json", "untold.json"]
    made, _ = run("--overwrite", status=1)  # without --captions, a description says nothing
    assert "E minor" in made["captioned"]["summary_en"] and "untold" not in made


def test_a_set_has_all_languages_and_wordings_and_a_restart_changes_nothing(tmp_path, run):
    music = {"filepaths": ["interleaved/duo.abc"]}
    write_records(tmp_path / "in", **{f"piece{number}": {"genres": ["pop"]} | music for number in range(60)})
    before, _ = run()
    texts = Counter(record["summary_en"] for record in before.values())
    others = Counter(record["summary_nen"]["language"] for record in before.values())
    assert len(texts) == 3 and min(texts.values()) > 10  # of 60, each is expected 20 times
    assert set(others) == set(templates.LANGUAGES[1:]) and min(others.values()) > 4  # 12 times each
    write_records(tmp_path / "in", piece7={"genres": ["rock"], **music})
    (tmp_path / "out" / "piece8.json").unlink()
    after, printed = run()
    assert "2 done, 58 skipped" in printed
    assert "rock" in after["piece7"]["summary_en"] and after | {"piece7": 0} == before | {"piece7": 0}


def test_faults_of_records(tmp_path, run, capsys):
    write_records(
        tmp_path / "in",
        leaves={"genres": ["pop"], "filepaths": ["../x.abc"]},
        none={"genres": ["pop"]},
        number={"genres": 5, "filepaths": ["interleaved/duo.abc"]},
        midi={"genres": ["pop"], "filepaths": ["midi/plain.mid"]},
    )
    made, _ = run(status=1)
    reasons = {entry["file"]: entry["error"] for entry in made["errors"]}
    assert set(reasons) == {"leaves.json", "none.json", "number.json"}
    assert "leaves the folder" in reasons["leaves.json"] and "`filepaths`" in reasons["none.json"]
    assert reasons["number.json"].startswith("`genres` is neither text nor a list of texts: ")
    assert made["warnings"] == [
        {"file": "midi.json", "warnings": ["midi/plain.mid: neither .abc nor .mtf; convert it first"]}
    ]
    with pytest.raises(SystemExit):
        run(music=tmp_path / "nowhere")
    assert "nowhere: no such folder" in capsys.readouterr().err
