"""Data of the large quick start: 12,750 tunes in ABC that music21's corpus carries, and what their headers say.

    python code/quickstart_large.py collect DATA                   each tune of four collections to a file of its own
    python code/quickstart_large.py describe DATA                  MusicXML, headers, twins -> tunes.json
    python code/quickstart_large.py prepare DATA RUN [--seed N]    parts, records, labels, classes, a text encoder

The collections are Essen's folk songs (for non-commercial use only), O'Neill's, Aird's and Ryan's. Three of their books
are held out whole (HELD_OUT), and of the others some groups of twins at random. Twins are never in two parts: a tune of
a held-out book that has a twin in another book is used for nothing.
"""

import importlib.util
import json
import random
import re
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import fromstring

from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

import command_line
import files
from conversions import musicxml, templates
from quickstart_data import clean_abc, key_of, make_text_model, notes_of, step_name, write
from records import metadata_lines, summaries

FOLDERS = {"airdsAirs": "aird-", "oneills1850": "oneill-", "ryansMammoth": "ryan-", "essenFolksong": ""}
HELD_OUT = ("oneill", "boehme", "dva")  # dances; songs; songs of Germany and Lorraine
SIZES = {"test": 1000, "validation": 300}  # tunes held out at random
COMMON = 30  # tunes in training of a class that is asked for
SEVERAL_VOICES = re.compile(r"^\[?V:", re.MULTILINE)

# --- classes: a pattern of the header's line, the class in English and German ---------------------------------------
# Of regions the first in this order that `O:` names, so that Germany comes last.
REGIONS = {
    "Lorraine": ("Lothringen", "Lothringen"), "Alsace": ("Elsass", "Elsass"), "Luxembourg": ("Luxemburg", "Luxemburg"),
    "China": ("China", "China"), "Yugoslavia": ("Jugoslawien", "Jugoslawien"), "Ireland": ("Irland", "Irland"),
    "Austria": ("Oesterreich|Tirol|Steiermark", "Österreich"), "Switzerland": ("Schweiz", "der Schweiz"),
    "the Netherlands": ("Niederlande", "den Niederlanden"), "the Soviet Union": ("UdSSR", "der Sowjetunion"),
    "Hungary": ("Ungarn", "Ungarn"), "Czechoslovakia": ("Tschechoslowakei", "der Tschechoslowakei"),
    "Romania": ("Rumaenien", "Rumänien"), "Poland": ("Polen", "Polen"), "Germany": ("Deutschland", "Deutschland"),
}  # fmt: skip
# Of genres the one that `R:` names first.
GENRES = {
    "love song": ("liebe|brautwerbung", "Liebeslied"), "ballad": ("ballade|romanze", "Ballade"),
    "legend": ("sage|maerchen|erzaehl", "Sage"), "children's song": ("kinder|wiegen", "Kinderlied"),
    "religious song": ("geistlich|relig", "geistliches Lied"), "drinking song": ("trink|zech", "Trinklied"),
    "soldiers' song": ("soldat|krieg", "Soldatenlied"), "hunting song": ("jaeger", "Jägerlied"),
    "dance song": ("tanz|reigen", "Tanzlied"), "students' song": ("student", "Studentenlied"),
    "farewell song": ("abschied", "Abschiedslied"), "walking song": ("wander", "Wanderlied"),
    "workers' song": ("handwerker|beruf|bauern|haozi", "Arbeitslied"), "humorous song": ("scherz|spott", "Scherzlied"),
    "wedding song": ("hochzeit|ehestand|brautlied", "Hochzeitslied"),
    "patriotic song": ("vaterland|heimat", "Heimatlied"), "custom song": ("brauchtum|ansinge", "Brauchlied"),
    "nature song": ("natur|jahreszeit|fruehling", "Naturlied"),
    "xiaodiao": ("xiaodiao", "Xiaodiao"), "shange": ("shange", "Shange"), "wuge": ("wuge", "Wuge"),
    "slip jig": ("slip ?jig", "Slip Jig"), "jig": ("jig", "Jig"), "reel": ("reel", "Reel"),
    "hornpipe": ("hornpipe", "Hornpipe"), "strathspey": ("strathspey", "Strathspey"), "clog": ("clog", "Clog"),
    "highland fling": ("fling", "Highland Fling"), "waltz": ("waltz", "Walzer"),
}  # fmt: skip
ASKED = {"region": ("From {}.", "Aus {}."), "genre": ("A {}.", "{}."), "collection": ("In the book {}.", "Im Buch {}.")}
MORE = {"key": ("In {}.", "In {}."), "meter": ("In {} time.", "Im {}-Takt.")}
LANGUAGES = ("English", "German")


def region_of(line: str) -> str:
    return next((name for name, (pattern, _) in REGIONS.items() if re.search(pattern, line)), "")


def genre_of(line: str, meter: str) -> str:
    """The genre that a line names first, "" if none; a jig in 9/8 is a slip jig."""
    found = {name: re.search(pattern, line, re.IGNORECASE) for name, (pattern, _) in GENRES.items()}
    places = [(match.start(), -match.end(), name) for name, match in found.items() if match]
    name = min(places)[-1] if places else ""
    return "slip jig" if name == "jig" and meter == "9/8" else name


def in_language(asked: str, name: str, language: str) -> str:
    """The word for a class of a question."""
    if language == "English" or asked in ("collection", "meter"):
        return name
    if asked == "key":
        return templates.key_name(name, language)
    return (REGIONS if asked == "region" else GENRES)[name][1]


def sentence(asked: str, name: str, language: str) -> str:
    """A class as a sentence: "From China.", "Aus China."."""
    template = (ASKED | MORE)[asked][LANGUAGES.index(language)]
    return template.format(in_language(asked, name, language))


# --- tunes ------------------------------------------------------------------------------------------------------------
def corpus_tunes() -> dict[str, str]:
    """Read the tunes of the four collections by name: `erk10-3` is the third of erk10.abc."""
    package = importlib.util.find_spec("music21")  # it is not imported, which takes seconds
    if package is None or package.origin is None:
        raise files.InputError("the package music21 is not installed: pip install -r requirements.txt")
    found = {}
    for folder, prefix in FOLDERS.items():
        for path in sorted((Path(package.origin).parent / "corpus" / folder).glob("*.abc")):
            tunes = split_tunes(path.read_text(encoding="utf-8", errors="replace"))
            for number, tune in enumerate(tunes, 1):
                found[f"{prefix}{path.stem}-{number}"] = tune
    return found


def split_tunes(text: str) -> list[str]:
    """Split an ABC file at its `X:` lines; what stands before the first belongs to no tune."""
    return re.split(r"^(?=X:)", text, flags=re.MULTILINE)[1:]


def music_only(tune: str) -> str:
    """Leave out of a tune what would betray its transcriber: words, tempo, slurs, ornaments."""
    head, _, body = clean_abc(tune).partition("\nK:")
    lines = [line for line in head.splitlines() if re.match("[ML]:", line)]
    for line in ("K:" + body).splitlines():
        if re.match("[KLM]:", line):
            lines.append(line)
        elif not re.match("[A-Za-z]:|%", line) and line.strip():
            line = re.sub(
                r"(\[[KLM]:[^]]*\])|![^! ]*!|\+\w+\+|\((?!\d)|[)~.`!H-WY]", lambda found: found[1] or "", line
            )
            lines.append(line.partition("%")[0])
    return "\n".join(["X:1", *lines]) + "\n"


def collect(data: Path) -> int:
    several = 0
    for name, tune in corpus_tunes().items():
        if SEVERAL_VOICES.search(tune):
            several += 1
        else:
            write(data / f"tunes/{name}.abc", music_only(tune))
    print(f"{several} tunes with several voices are left out")
    return 0


def facts_of(name: str, tune: str, score: bytes) -> dict:
    """What is known about a tune: classes by its headers (ABC), key, meter and melody by its MusicXML."""
    root = fromstring(musicxml.read(score)[0])
    fields = {letter: " ".join(re.findall(f"^{letter}:(.*)$", tune, re.MULTILINE)) for letter in "TOR"}
    fifths, mode = key_of(root)
    tonic = fifths + {"ionian": 0, "aeolian": 3}.get(mode, templates.MODES.get(mode, 0))
    notes = sorted(notes_of(next(root.iter("part"))))
    melody = {onset: pitch for onset, _, pitch in notes}  # the highest at each onset
    pitches, onsets = list(melody.values()), list(melody)
    meter = f"{root.findtext('.//time/beats', 'none')}/{root.findtext('.//time/beat-type', '')}".removesuffix("/")
    return {
        "name": name,
        "title": fields["T"].strip(" ."),
        "collection": name.partition("-")[0].rstrip("0123456789"),
        "region": region_of(fields["O"]),
        "genre": genre_of(fields["R"], meter),
        "key": f"{step_name(tonic)} {mode}" if mode in templates.MODES else "",
        "meter": meter,
        # words whose n-grams are counted
        "pitches": " ".join(str((pitch - 7 * tonic) % 12) for pitch in pitches),
        "intervals": " ".join(str(after - before) for before, after in pairwise(pitches)),
        "rhythm": " ".join(str(after - before) for before, after in pairwise(onsets)),
    }


def groups_of(names: list[str], twins: list[dict]) -> list[int]:
    """Number the groups of tunes that are twins, directly or by way of others."""
    row = {name: number for number, name in enumerate(names)}
    pairs = [[row[Path(pair[side]).stem] for side in ("first", "second")] for pair in twins]
    first, second = zip(*pairs, strict=True) if pairs else ((), ())
    return connected_components(csr_matrix(([1] * len(pairs), (first, second)), (len(names),) * 2))[1].tolist()


def describe(data: Path) -> int:
    """Write tunes.json: the facts about each tune that was converted, and the number of its group of twins."""
    scores = {path.stem: path.read_bytes() for path in (data / "scores").glob("*.musicxml")}
    tunes = [facts_of(name, tune, scores[name]) for name, tune in corpus_tunes().items() if name in scores]
    twins = json.loads((data / "twins.json").read_text(encoding="utf-8"))["twins"]
    for tune, group in zip(tunes, groups_of([tune["name"] for tune in tunes], twins), strict=True):
        tune["group"] = group
    write(data / "tunes.json", json.dumps(tunes, ensure_ascii=False, indent=0))
    print(f"{len(tunes)} tunes in {len({tune['group'] for tune in tunes})} groups of twins")
    return 0


# --- parts ------------------------------------------------------------------------------------------------------------
def split(tunes: list[dict], seed: int) -> dict[str, list[dict]]:
    """{part: tunes}: the books held out, groups at random for "test" and "validation", and the others for "train"."""
    groups, others = defaultdict(list), []
    for tune in tunes:
        groups[tune["group"]].append(tune)
    parts: dict[str, list[dict]] = {part: [] for part in ("train", "validation", "test", *HELD_OUT, "unused")}
    for group in groups.values():
        rest = [tune for tune in group if tune["collection"] not in HELD_OUT]
        for tune in group:
            if tune not in rest:
                parts["unused" if rest else tune["collection"]].append(tune)
        others.append(rest)
    random.Random(seed).shuffle(others)
    for group in others:
        has_room = (part for part, size in SIZES.items() if len(parts[part]) + len(group) <= size)
        parts[next(has_room, "train")] += group
    return parts


def record_of(tune: dict, path: str) -> dict:
    """The record that `train_clamp2.py` reads. Each fact alone is a summary, as in the classification by words."""
    known = [asked for asked in (*ASKED, *MORE) if tune[asked]]
    texts = {language: [sentence(asked, tune[asked], language) for asked in known] for language in LANGUAGES}
    english, german = ([" ".join(sentences), *sentences] for sentences in texts.values())
    return {
        "title": tune["title"],
        "genres": [tune["genre"]] if tune["genre"] else None,
        "tags": [tune[asked] for asked in known if asked != "genre"],
        "summary_en": english,
        "summary_nen": [{"language": "German", "summary": summary} for summary in german],
        "filepaths": [path],
    }


def prepare(data: Path, run: Path, seed: int) -> int:
    """Write the music of each part, records, labels, classes and a text encoder."""
    if (run / "parts.json").exists():  # it is written last
        return 0
    parts, texts = split(json.loads((data / "tunes.json").read_text(encoding="utf-8")), seed), []
    for part, tunes in parts.items():
        for tune in tunes if part != "unused" else ():
            path = f"music/{part}/{tune['name']}.abc"
            write(run / path, (data / f"interleaved/{tune['name']}.abc").read_bytes())
            if part in ("train", "validation"):
                record = record_of(tune, path)
                write(run / f"records/{part}/{tune['name']}.json", json.dumps(record, ensure_ascii=False))
                texts += [*metadata_lines(record), *record["summary_en"], *summaries(record["summary_nen"])]
    for asked in ASKED:
        counts = Counter(tune[asked] for tune in parts["train"] if tune[asked])
        classes = sorted(name for name, count in counts.items() if count >= COMMON)
        for language in LANGUAGES:
            sentences = {name: sentence(asked, name, language) for name in classes}
            write(run / f"classes/{asked}_{language}.json", json.dumps(sentences, ensure_ascii=False, indent=1))
        rows = [
            f"{tune['name']},{tune[asked]}\n" for tunes in parts.values() for tune in tunes if tune[asked] in classes
        ]
        write(run / f"labels/{asked}.csv", "".join(rows))
    make_text_model(texts, run / "text-model", seed)
    write(run / "parts.json", json.dumps({part: [tune["name"] for tune in tunes] for part, tunes in parts.items()}))
    print(", ".join(f"{len(tunes)} {part}" for part, tunes in parts.items()))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = command_line.summarized(__doc__)
    commands = parser.add_subparsers(required=True, metavar="{collect,describe,prepare}")
    for name, run in (
        ("collect", lambda args: collect(args.data)),
        ("describe", lambda args: describe(args.data)),
        ("prepare", lambda args: prepare(args.data, args.folder, args.seed)),
    ):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        sub.add_argument("data", metavar="DATA", type=Path, help="the folder that all seeds share")
    sub.add_argument("folder", metavar="RUN", type=Path, help="the folder of this seed")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the parts and the text encoder")
    return files.run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
