"""The texts of the quick start, from what is known of a piece: metadata, summaries in six languages, and prompts.

No service is asked: the sentences are templates. What they tell is in the music: dance, key, meter, length, range and
first notes.
"""

import random

from quickstart_music import DANCES, Piece

LANGUAGES = ("English", "German", "French", "Spanish", "Italian", "Chinese (Simplified)")
PITCHES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")

_TEMPLATES = {
    "English": (
        "A {dance} in {key}, in {meter} time. It has {bars} bars, from {lowest} up to {highest}, and begins {incipit}.",
        "This {dance} is in {key}. Meter {meter}; {bars} bars; {lowest} to {highest}; the first notes are {incipit}.",
        "{dance}, {key}, {meter}, {bars} bars, range {lowest} to {highest}, incipit {incipit}.",
    ),
    "German": (
        "Ein Stück der Art {dance} in {key}, {meter}-Takt, {bars} Takte, {lowest} bis {highest}, beginnt {incipit}.",
        "{dance} in {key}. Taktart {meter}, {bars} Takte, Umfang {lowest} bis {highest}, erste Töne {incipit}.",
    ),
    "French": (
        "Une pièce de type {dance} en {key}, à {meter}, {bars} mesures, de {lowest} à {highest}, début {incipit}.",
        "{dance} en {key}. Mesure à {meter}, {bars} mesures, ambitus {lowest} à {highest}, premières notes {incipit}.",
    ),
    "Spanish": (
        "Una pieza de tipo {dance} en {key}, en {meter}, {bars} compases, de {lowest} a {highest}, empieza {incipit}.",
        "{dance} en {key}. Compás {meter}, {bars} compases, extensión {lowest} a {highest}, primeras notas {incipit}.",
    ),
    "Italian": (
        "Un brano di tipo {dance} in {key}, in {meter}, {bars} battute, da {lowest} a {highest}, comincia {incipit}.",
        "{dance} in {key}. Tempo {meter}, {bars} battute, estensione {lowest} a {highest}, prime note {incipit}.",
    ),
    "Chinese (Simplified)": (
        "一首 {key} 的 {dance} ， {meter} 拍，共 {bars} 小节，音域从 {lowest} 到 {highest} ，开头是 {incipit} 。",
        "{dance} ， {key} ， {meter} 拍， {bars} 小节，音域 {lowest} 到 {highest} ，最初的音 {incipit} 。",
    ),
}
# Dances go by their English names where nothing else is said.
_DANCES = {
    "German": {"chorale": "Choral", "": "Tanz"},
    "French": {"jig": "gigue", "slip jig": "gigue à 9/8", "chorale": "choral", "": "danse"},
    "Spanish": {"jig": "giga", "slip jig": "giga a 9/8", "chorale": "coral", "": "danza"},
    "Italian": {"jig": "giga", "slip jig": "giga in 9/8", "chorale": "corale", "": "danza"},
    "Chinese (Simplified)": {
        "reel": "里尔舞曲",
        "hornpipe": "号笛舞曲",
        "jig": "吉格舞曲",
        "slip jig": "滑步吉格舞曲",
        "strathspey": "斯特拉斯佩舞曲",
        "clog": "木屐舞曲",
        "highland fling": "高地舞曲",
        "chorale": "众赞歌",
        "": "舞曲",
    },
}
_SYLLABLES = dict(zip("CDEFGAB", ("do", "re", "mi", "fa", "sol", "la", "si"), strict=True))
_SIGNS = {
    "French": (" dièse", " bémol"),
    "Spanish": (" sostenido", " bemol"),
    "Italian": (" diesis", " bemolle"),
}
_MODE_NAMES = ("major", "minor", "dorian", "phrygian", "lydian", "mixolydian", "locrian")
_MODES = {
    "German": ("Dur", "Moll", "Dorisch", "Phrygisch", "Lydisch", "Mixolydisch", "Lokrisch"),
    "French": ("majeur", "mineur", "dorien", "phrygien", "lydien", "mixolydien", "locrien"),
    "Spanish": ("mayor", "menor", "dórico", "frigio", "lidio", "mixolidio", "locrio"),
    "Italian": ("maggiore", "minore", "dorico", "frigio", "lidio", "misolidio", "locrio"),
    "Chinese (Simplified)": (
        "大调", "小调", "多利亚调式", "弗里几亚调式", "利底亚调式", "混合利底亚调式", "洛克里亚调式",
    ),
}  # fmt: skip


def pitch_name(pitch: int) -> str:
    """A MIDI pitch -> `F#4`"""
    return f"{PITCHES[pitch % 12]}{pitch // 12 - 1}"


def key_name(key: str, language: str) -> str:
    """`Bb major` in another language: `B-Dur`, `si bémol majeur`."""
    tonic, mode = key.split()
    if language == "English":
        return key
    mode = _MODES[language][_MODE_NAMES.index(mode)]
    sharps, flats = tonic.count("#"), tonic.count("b")
    if language == "German":
        step = {"B": "H", "Bb": "B", "Eb": "Es", "Ab": "As"}.get(tonic, tonic[0] + "is" * sharps + "es" * (flats))
        return f"{step if mode == 'Dur' else step.lower()}-{mode}"
    if language.startswith("Chinese"):
        return "升" * sharps + "降" * flats + tonic[0] + mode
    step = "ré" if language == "French" and tonic[0] == "D" else _SYLLABLES[tonic[0]]
    return f"{step}{_SIGNS[language][0] * sharps}{_SIGNS[language][1] * flats} {mode}"


def dance_name(dance: str, language: str) -> str:
    return _DANCES.get(language, {}).get(dance, dance) or "dance"


def facts(piece: Piece, language: str) -> dict[str, str]:
    """What the templates tell, in a language."""
    return {
        "dance": dance_name(piece.dance, language),
        "key": key_name(piece.key, language),
        "meter": piece.meter,
        "bars": str(piece.bars),
        "lowest": pitch_name(piece.lowest),
        "highest": pitch_name(piece.highest),
        "incipit": " ".join(piece.incipit),
    }


def summary(piece: Piece, language: str, rng: random.Random | None = None) -> str:
    """The piece in a sentence or two: the language's first wording, or one that is drawn."""
    templates = _TEMPLATES[language]
    text = (rng.choice(templates) if rng else templates[0]).format(**facts(piece, language))
    return text[0].upper() + text[1:]


def record(piece: Piece, paths: list[str], rng: random.Random) -> dict:
    """What `train_clamp2.py` reads about a piece; the summaries stand where `gpt4_summarize.py` would put its own."""
    told = facts(piece, "English")
    return {
        "title": piece.title,
        "composer": "Johann Sebastian Bach" if piece.dance == "chorale" else None,
        "genres": [piece.dance] if piece.dance else None,
        "description": "{key}, {meter}, {bars} bars, {lowest} to {highest}, {incipit}".format(**told),
        "lyrics": None,
        "tags": [told["key"], f"{told['meter']} time"],
        "ensembles": ["four voices"] if piece.dance == "chorale" else None,
        "instruments": None if piece.dance == "chorale" else ["fiddle"],
        "summary_en": [template.format(**told) for template in _TEMPLATES["English"]],
        "summary_nen": [{"language": language, "summary": summary(piece, language, rng)} for language in LANGUAGES[1:]],
        "filepaths": paths,
    }


def of_record(record: dict) -> list[str]:
    """All texts that training may show the text encoder."""
    other = [told["summary"] for told in record["summary_nen"]]
    return [record["title"], record["description"], *record["tags"], *record["summary_en"], *other]


def said(piece: Piece) -> dict[str, tuple[str, ...]]:
    """Single facts in the words of the summaries, a few wordings each: {"dance": ("This reel.", "A reel.")}."""
    key, meter, dance = piece.key, piece.meter, piece.dance
    told: dict[str, tuple[str, ...]] = {
        "meter": (f"This is in {meter} time.", f"In {meter} time.", f"Meter {meter}."),
        "key": (f"This is in {key}.", f"A dance in {key}.", f"This dance is in {key}."),
    }
    return ({"dance": (f"This {dance}.", f"A {dance}.")} if dance in DANCES else {}) | told


def prompts(pieces: list[Piece]) -> dict[str, dict[str, tuple[str, ...]]]:
    """For zero-shot classification: {what is asked: {class: sentences that say it}}, for every class there is."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for piece in pieces:
        for asked, sentences in said(piece).items():
            found.setdefault(asked, {})[getattr(piece, asked)] = sentences
    return found


QUERIES = (
    "a jig in D major",
    "a reel in A major, in 2/4 time",
    "Hornpipe in B-Dur, 2/4-Takt",
    "une gigue à 9/8 en sol majeur",
    "a chorale in G minor",
)
