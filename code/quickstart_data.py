"""Data of the quick start: music of music21's corpus, texts about it, a text encoder.

    python code/quickstart_data.py collect FOLDER               copy tunes (ABC) and chorales (MusicXML) of the corpus
    python code/quickstart_data.py prepare FOLDER [--seed N]    MusicXML -> three parts with MIDI, records, texts

Ryan's Mammoth Collection (Boston, 1883) has 1,059 fiddle tunes in ABC with title, dance, key and meter. Chorales by
Bach add music in four voices. No service writes the texts: they are templates, filled with what the scores hold.
"""

import importlib.util
import json
import random
import re
import string
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import mido

import command_line
import files
from conversions import musicxml, templates
from records import metadata_lines, summaries

TEST, VALIDATION = 300, 48  # pieces that are held out; the others are for training
DANCES = ("reel", "hornpipe", "jig", "slip jig", "strathspey", "clog", "highland fling")
OTHER_NAMES = {"slipjig": "slip jig", "fling": "highland fling"}
NGRAM, SAME = 8, 0.25  # tunes that share this part of their runs of eight intervals are versions of one tune
COMMON = 10  # pieces in training of a class that zero-shot classification asks for
TICKS = 48  # of a quarter note
VELOCITY, VIOLIN, CHOIR = 90, 40, 52  # the latter two are MIDI programs
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}

# --- texts ----------------------------------------------------------------------------------------------------------
ENGLISH = (
    "A {kind} in {key}, in {meter} time. It has {bars} bars, from {lowest} up to {highest}, and begins {incipit}.",
    "This {kind} is in {key}. Meter {meter}; {bars} bars; {lowest} to {highest}; the first notes are {incipit}.",
    "{kind}, {key}, {meter}, {bars} bars, range {lowest} to {highest}, incipit {incipit}.",
)
_BEGINS = {"German": "beginnt", "French": "début", "Spanish": "empieza", "Italian": "comincia"}
OTHER_LANGUAGES = {
    language: "{key}, {meter}, {bars}, {range}".format(**templates.PHRASES[language]) + f", {begins} {{incipit}}."
    for language, begins in _BEGINS.items()
} | {  # with spaces between words, as the tokenizer of the quick start needs them
    "Chinese (Simplified)": "{key} 的 {kind} ， {meter} 拍， {bars} 小节， {lowest} 到 {highest} ，开头 {incipit} 。",
}
# A single fact: in training one more English summary, in zero-shot classification the text of a class.
FACTS = {"dance": "A {kind}.", "meter": "In {meter} time.", "key": "In {key}."}


@dataclass
class Piece:
    """Facts about a piece of music."""

    name: str  # of its files, without extension
    title: str
    dance: str  # one of DANCES, or "chorale"
    key: str  # "G major"
    meter: str  # "6/8"
    bars: int
    lowest: int  # as MIDI pitch
    highest: int  # as MIDI pitch
    incipit: str  # letters of the first notes of the first part
    intervals: list[int]  # of that part, in semitones: the same in every key


# --- music ----------------------------------------------------------------------------------------------------------
def collect(folder: Path, tunes: int, chorales: int) -> int:
    """Copy so many tunes and chorales, evenly spaced, out of the corpus; tunes without a known dance are left out."""
    package = importlib.util.find_spec("music21")  # it is not imported, which takes seconds
    if package is None or package.origin is None:
        raise files.InputError("the package music21 is not installed: pip install -r requirements.txt")
    corpus = Path(package.origin).parent / "corpus"
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in corpus.glob("ryansMammoth/*.abc")}
    for path in evenly([path for path, text in texts.items() if dance_of(text)], tunes):
        write(folder / "tunes" / path.name, clean_abc(texts[path]))
    for path in evenly(list(corpus.glob("bach/bwv*.mxl")), chorales):
        write(folder / "chorales" / path.name, path.read_bytes())
    return 0


def evenly(paths: list[Path], count: int) -> list[Path]:
    """`count` of the paths, or all if there are fewer, evenly spaced in their alphabetical order."""
    paths, count = sorted(paths), min(count, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


def clean_abc(text: str) -> str:
    """A tune without fingerings, annotations, bowings and grace notes: they are not in the MIDI, or are no music."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not re.match(r"[A-Za-z]:|%", line):
            line = re.sub(r'"[^"]*"|\{[^}]*\}', "", line)
            lines[number] = re.sub(r"(?<![A-Za-z!])[uv](?=[.~(]*[\^_=]?[A-Ga-g(\[])", "", line)
    return "\n".join(lines) + "\n"


def dance_of(tune: str) -> str:
    """The dance of a tune (ABC) by its `R:` line; a jig in 9/8 is a slip jig. "" if it has no class."""
    name = abc_field(tune, "R").lower()
    name = "slip jig" if name == "jig" and abc_field(tune, "M") == "9/8" else OTHER_NAMES.get(name, name)
    return name if name in DANCES else ""


def abc_field(tune: str, letter: str) -> str:
    """The first line of a header field, such as `T:`; "" if there is none."""
    found = re.search(rf"^{letter}:[ \t]*(.*?)[ \t]*$", tune, re.MULTILINE)
    return found[1] if found else ""


def read_piece(source: Path) -> tuple[Piece, Path, mido.MidiFile]:
    """Facts, MusicXML and MIDI of a collected piece. The ABC header of a tune holds its title and dance."""
    if source.suffix == ".abc":
        tune, folder = source.read_text(encoding="utf-8"), source.parent.with_name("tunes_xml")
        path = folder / f"{source.stem}.musicxml"
        title, dance, program = abc_field(tune, "T").removeprefix("T:").strip(" ."), dance_of(tune), VIOLIN
    else:
        title, dance, program, path = f"Chorale {source.stem}", "chorale", CHOIR, source
    score = fromstring(musicxml.read(path.read_bytes())[0])
    title = string.capwords(re.sub(r"\s+-+\s+", " ", title))
    piece = describe(score, source.stem.replace(".", "_"), title, dance)
    return piece, path, midi_file(score, piece.meter, program)


def describe(score: Element, name: str, title: str, dance: str) -> Piece:
    """The facts about a score."""
    parts = [notes_of(part) for part in score.iter("part")]
    pitches = [pitch for notes in parts for _, _, pitch in notes]
    melody = list({onset: pitch for onset, _, pitch in sorted(parts[0])}.values())  # the highest at each onset
    fifths, mode = key_of(score)
    return Piece(
        name=name,
        title=title,
        dance=dance,
        key=f"{step_name(fifths + templates.MODES[mode])} {mode}",
        meter=f"{score.findtext('.//time/beats')}/{score.findtext('.//time/beat-type')}",
        bars=len(score.findall("part[1]/measure")),
        lowest=min(pitches),
        highest=max(pitches),
        incipit=" ".join("CCDDEFFGGAAB"[pitch % 12] for pitch in melody[:4]),
        intervals=[after - before for before, after in pairwise(melody)],
    )


def key_of(score: Element) -> tuple[int, str]:
    """The first key signature: sharps (or, negative, flats), and mode."""
    return int(score.findtext(".//key/fifths", "0")), score.findtext(".//key/mode", "major")


def step_name(fifths: int) -> str:
    """The note so many fifths above C: 6 -> `F#`, -2 -> `Bb`."""
    alter, step = divmod(fifths + 1, 7)
    return "FCGDAEB"[step] + ("#" * alter if alter > 0 else "b" * -alter)


def notes_of(part: Element) -> list[tuple[int, int, int]]:
    """(onset, length, pitch) of the notes of a part of MusicXML with one voice, in ticks and as MIDI pitch.

    Repeats are read once, tied notes are joined, and grace notes left out.
    """
    notes: list[tuple[int, int, int]] = []
    tied: dict[int, int] = {}  # pitch -> the note that a tie leads on from
    divisions, now, onset = 1, 0.0, 0.0
    for element in part.iterfind("measure/*"):
        divisions = int(element.findtext("divisions", divisions))
        length = float(element.findtext("duration", "0")) * TICKS / divisions
        if element.tag == "backup":
            raise files.InputError("a part of a score has several voices, which the quick start does not read")
        if length and element.find("chord") is None:
            onset, now = now, now + length
        pitch = element.find("pitch")
        if pitch is None or not length:
            continue
        number = 12 * int(pitch.findtext("octave", "4")) + 12 + SEMITONES[pitch.findtext("step", "C")]
        number += int(float(pitch.findtext("alter", "0")))
        begin, stop = round(onset), round(onset + length)
        ties = {tie.get("type") for tie in element.findall("tie")}
        if "stop" in ties and number in tied:
            begin = notes[tied[number]][0]
            notes[tied[number]] = (begin, stop - begin, number)
        else:
            tied[number] = len(notes)
            notes.append((begin, stop - begin, number))
        if "start" not in ties:
            tied.pop(number, None)
    return notes


def midi_file(score: Element, meter: str, program: int) -> mido.MidiFile:
    """A score as MIDI: a track for meter, key and tempo, and one for each part, on a channel of its own."""
    fifths, mode = key_of(score)
    is_minor = mode in ("minor", "dorian", "phrygian")  # MIDI has two modes: the one with the same kind of third
    numerator, denominator = map(int, meter.split("/"))
    head = [
        mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator),
        mido.MetaMessage("key_signature", key=step_name(fifths + 3 * is_minor) + "m" * is_minor),
        mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(120)),
    ]
    midi = mido.MidiFile(type=1, ticks_per_beat=TICKS, tracks=[mido.MidiTrack(head)])
    for channel, part in enumerate(score.iter("part")):
        events = []
        for onset, length, pitch in notes_of(part):
            events += [(onset, VELOCITY, pitch), (onset + length, 0, pitch)]
        track = mido.MidiTrack([mido.Message("program_change", channel=channel, program=program)])
        now = 0
        for tick, velocity, pitch in sorted(events):  # at one time, notes end before others begin
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=velocity, time=tick - now))
            now = tick
        midi.tracks.append(track)
    return midi


# --- records --------------------------------------------------------------------------------------------------------
def split(pieces: list[Piece], seed: int) -> dict[str, list[Piece]]:
    """{part: pieces}. A tune with another version in the collection is for training: no other part has a twin there."""
    single = without_twin(pieces)
    random.Random(seed).shuffle(single)
    count = TEST + VALIDATION
    if len(single) <= count:
        raise files.InputError(f"{len(single)} different pieces are too few to hold out {count}")
    held_out = {piece.name for piece in single[:count]}
    train = [piece for piece in pieces if piece.name not in held_out]
    return {"train": train, "validation": single[TEST:count], "test": single[:TEST]}


def without_twin(pieces: list[Piece]) -> list[Piece]:
    """The pieces that share neither title nor SAME of their runs of intervals with another piece."""
    runs = [{tuple(p.intervals[i : i + NGRAM]) for i in range(len(p.intervals) - NGRAM + 1)} for p in pieces]
    titled, users = defaultdict(list), defaultdict(list)
    for index, piece in enumerate(pieces):
        bare = re.sub(r"\W|\b(the|" + "|".join(DANCES) + r")\b", "", piece.title.lower())
        titled[bare or piece.title].append(index)
        for run in runs[index]:
            users[run].append(index)
    twins = {index for indices in titled.values() if len(indices) > 1 for index in indices}
    shared = Counter(pair for indices in users.values() for pair in combinations(indices, 2))
    for (a, b), count in shared.items():
        if count >= SAME * min(len(runs[a]), len(runs[b])):
            twins |= {a, b}
    return [piece for index, piece in enumerate(pieces) if index not in twins]


def facts_of(piece: Piece, language: str) -> dict:
    """The facts of a piece in the words of a language."""
    return vars(piece) | {
        "kind": templates.genre(piece.dance, language),
        "key": templates.key_name(piece.key, language),
        "lowest": templates.pitch_name(piece.lowest),
        "highest": templates.pitch_name(piece.highest),
    }


def text_of(piece: Piece, template: str, language: str = "English") -> str:
    """A template of the texts, filled in."""
    text = template.format(**facts_of(piece, language))
    return text[0].upper() + text[1:]


def record_of(piece: Piece, paths: list[str]) -> dict:
    """The record that `train_clamp2.py` reads; its summaries stand where `gpt4_summarize.py` would put its own."""
    english = [text_of(piece, template) for template in (*ENGLISH, *FACTS.values())]
    others = {language: text_of(piece, template, language) for language, template in OTHER_LANGUAGES.items()}
    chorale = {"composer": "Johann Sebastian Bach", "ensembles": ["four voices"]}
    return (chorale if piece.dance == "chorale" else {"instruments": ["fiddle"]}) | {
        "title": piece.title,
        "genres": [piece.dance],
        "description": text_of(piece, "{key}, {meter}, {bars} bars, {lowest} to {highest}, {incipit}"),
        "tags": [piece.key, f"{piece.meter} time"],
        "summary_en": english,
        "summary_nen": [{"language": language, "summary": text} for language, text in others.items()],
        "filepaths": paths,
    }


def make_text_model(texts: list[str], folder: Path, seed: int) -> None:
    """Train a tokenizer (BPE) on the texts, and save it with a small XLM-R of random weights for `from_pretrained`."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, sep_token="</s>", **special)
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 130}  # for 128 tokens
    XLMRobertaModel(XLMRobertaConfig(**sizes)).save_pretrained(folder)


def prepare(folder: Path, seed: int) -> int:
    """MusicXML of the pieces -> the same in three parts, MIDI, records, texts, labels, a text encoder."""
    if (folder / "test.json").exists():  # it is written last
        return 0
    sources = sorted(folder.glob("tunes/*.abc")) + sorted(folder.glob("chorales/*.mxl"))
    read = [read_piece(source) for source in sources]
    pieces = [piece for piece, _, _ in read]
    parts, texts = split(pieces, seed), []
    part_of = {piece.name: part for part, members in parts.items() for piece in members}
    for piece, path, midi in read:
        part = part_of[piece.name]
        name = f"{part}/{piece.name}"
        write(folder / f"scores/{name}{path.suffix}", path.read_bytes())
        (folder / "midi" / part).mkdir(parents=True, exist_ok=True)
        midi.save(folder / f"midi/{name}.mid")
        record = record_of(piece, [f"interleaved/{name}.abc", f"mtf/{name}.mtf"])
        write(folder / f"records/{name}.json", json.dumps(record, ensure_ascii=False, indent=1))
        if part == "train":
            texts += [*metadata_lines(record), *record["summary_en"], *summaries(record["summary_nen"])]
        elif part == "test":
            write(folder / f"held_out/text/{piece.name}.txt", record["summary_en"][0])
    questions = {}
    for asked, template in FACTS.items():
        counts = Counter(getattr(piece, asked) for piece in parts["train"])
        common = {getattr(piece, asked): piece for piece in parts["train"] if counts[getattr(piece, asked)] >= COMMON}
        questions[asked] = {label: text_of(piece, template) for label, piece in common.items()}
        write(folder / f"{asked}.csv", "".join(f"{piece.name},{getattr(piece, asked)}\n" for piece in pieces))
    write(folder / "classes.json", json.dumps(questions, ensure_ascii=False, indent=1))
    make_text_model(texts, folder / "text-model", seed)
    write(folder / "test.json", json.dumps([vars(piece) for piece in parts["test"]]))
    print(", ".join(f"{len(members)} pieces for {part}" for part, members in parts.items()))
    return 0


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def main(argv: list[str] | None = None) -> int:
    parser = command_line.summarized(__doc__)
    commands = parser.add_subparsers(required=True, metavar="{collect,prepare}")
    sub = commands.add_parser("collect", help="copy tunes and chorales of the corpus")
    sub.set_defaults(run=lambda args: collect(args.folder, args.tunes, args.chorales))
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of the run")
    sub.add_argument("--tunes", type=int, default=2000, metavar="N", help="so many (default: all)")
    sub.add_argument("--chorales", type=int, default=40, metavar="N", help="so many (default: 40)")
    sub = commands.add_parser("prepare", help="make all that the trainings need from MusicXML")
    sub.set_defaults(run=lambda args: prepare(args.folder, args.seed))
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of the run")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the parts and the text encoder")
    return files.run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
