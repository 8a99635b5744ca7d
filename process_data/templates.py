"""Facts about a piece in the words of six languages: keys, genres, instruments, and sentences made of them.

Shared by the quick start and `offline_summaries.py`. A fact that is not known gives no words.
"""

import re

LANGUAGES = ("English", "German", "French", "Spanish", "Italian", "Chinese (Simplified)")
STYLES = ("sentence first", "sentence last", "list")  # wordings of a summary

# --- keys and pitches ------------------------------------------------------------------------------------------------
# The tonic of a mode stands so many fifths above that of the major scale with the same signature.
MODES = {"major": 0, "minor": 3, "dorian": 2, "phrygian": 4, "lydian": -1, "mixolydian": 1}
KEY_NAMES = {  # C D E F G A B, sharp, flat; the modes in the order of MODES
    "German": ("C D E F G A H is es", "Dur Moll Dorisch Phrygisch Lydisch Mixolydisch"),
    "French": ("do ré mi fa sol la si dièse bémol", "majeur mineur dorien phrygien lydien mixolydien"),
    "Spanish": ("do re mi fa sol la si sostenido bemol", "mayor menor dórico frigio lidio mixolidio"),
    "Italian": ("do re mi fa sol la si diesis bemolle", "maggiore minore dorico frigio lidio misolidio"),
    "Chinese (Simplified)": ("C D E F G A B 升 降", "大调 小调 多利亚调式 弗里几亚调式 利底亚调式 混合利底亚调式"),
}
PITCHES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


def key_name(key: str, language: str) -> str:
    """`Bb major` in another language: `B-Dur`, `si bémol majeur`."""
    if language == "English":
        return key
    tonic, mode = key.split()
    notes, modes = (names.split() for names in KEY_NAMES[language])
    note, mode = notes["CDEFGAB".index(tonic[0])], modes[list(MODES).index(mode)]
    signs = [notes[7]] * tonic.count("#") + [notes[8]] * tonic.count("b")
    if language == "German":
        step = "".join([note, *signs]).replace("Hes", "B").replace("Ees", "Es").replace("Aes", "As")
        return f"{step if mode == 'Dur' else step.lower()}-{mode}"
    return "".join([*signs, note, mode]) if language.startswith("Chinese") else " ".join([note, *signs, mode])


def pitch_name(pitch: int) -> str:
    """A MIDI pitch in scientific notation: 60 -> `C4`."""
    return f"{PITCHES[pitch % 12]}{pitch // 12 - 1}"


# --- words: a row for each, in the order of LANGUAGES ----------------------------------------------------------------
FORMS = """
reel | Reel | reel | reel | reel | 里尔舞曲
hornpipe | Hornpipe | hornpipe | hornpipe | hornpipe | 号笛舞曲
jig | Jig | gigue | giga | giga | 吉格舞曲
slip jig | Slip jig | gigue à 9/8 | giga a 9/8 | giga in 9/8 | 滑步吉格舞曲
strathspey | Strathspey | strathspey | strathspey | strathspey | 斯特拉斯佩舞曲
clog | Clog | clog | clog | clog | 木屐舞曲
highland fling | Highland fling | highland fling | highland fling | highland fling | 高地舞曲
chorale | Choral | choral | coral | corale | 众赞歌
waltz | Walzer | valse | vals | valzer | 圆舞曲
polka | Polka | polka | polca | polca | 波尔卡
mazurka | Mazurka | mazurka | mazurca | mazurca | 玛祖卡
march | Marsch | marche | marcha | marcia | 进行曲
minuet | Menuett | menuet | minueto | minuetto | 小步舞曲
"""
GENRES = """
classical | Klassik | classique | clásica | classica | 古典
electronic | elektronische Musik | électronique | electrónica | elettronica | 电子
folk | Folk | folk | folk | folk | 民谣
jazz | Jazz | jazz | jazz | jazz | 爵士
pop | Pop | pop | pop | pop | 流行
rock | Rock | rock | rock | rock | 摇滚
blues | Blues | blues | blues | blues | 布鲁斯
country | Country | country | country | country | 乡村
soundtrack | Soundtrack | bande originale | banda sonora | colonna sonora | 原声配乐
"""
INSTRUMENTS = """
piano | Klavier | piano | piano | pianoforte | 钢琴
harpsichord | Cembalo | clavecin | clavecín | clavicembalo | 羽管键琴
clavinet | Clavinet | clavinet | clavinet | clavinet | 电翼琴
tuned percussion | melodisches Schlagwerk | percussions mélodiques | percusión melódica | percussioni intonate | 有音高打击乐器
organ | Orgel | orgue | órgano | organo | 管风琴
accordion | Akkordeon | accordéon | acordeón | fisarmonica | 手风琴
harmonica | Mundharmonika | harmonica | armónica | armonica a bocca | 口琴
guitar | Gitarre | guitare | guitarra | chitarra | 吉他
bass | Bass | basse | bajo | basso | 贝斯
strings | Streicher | cordes | cuerdas | archi | 弦乐
harp | Harfe | harpe | arpa | arpa | 竖琴
timpani | Pauken | timbales | timbales | timpani | 定音鼓
voices | Stimmen | voix | voces | voci | 人声
brass | Blechbläser | cuivres | metales | ottoni | 铜管乐器
saxophone | Saxophon | saxophone | saxofón | sassofono | 萨克斯
woodwinds | Holzbläser | bois | maderas | legni | 木管乐器
flutes | Flöten | flûtes | flautas | flauti | 长笛类
synthesizer | Synthesizer | synthétiseur | sintetizador | sintetizzatore | 合成器
traditional instruments | traditionelle Instrumente | instruments traditionnels | instrumentos tradicionales | strumenti tradizionali | 民族乐器
percussion | Schlagwerk | percussions | percusión | percussioni | 打击乐器
sound effects | Klangeffekte | effets sonores | efectos de sonido | effetti sonori | 音效
drums | Schlagzeug | batterie | batería | batteria | 架子鼓
"""  # noqa: E501


def _rows(table: str) -> dict[str, dict[str, str]]:
    rows = [[word.strip() for word in row.split("|")] for row in table.strip().splitlines()]
    return {row[0]: dict(zip(LANGUAGES, row, strict=True)) for row in rows}


_FORMS, _GENRES, _INSTRUMENTS = _rows(FORMS), _rows(GENRES), _rows(INSTRUMENTS)
# General MIDI: so many programs in a row are of this instrument. 55, an orchestra hit, is of none.
_PROGRAMS = (
    ("piano", 6), ("harpsichord", 1), ("clavinet", 1), ("tuned percussion", 8), ("organ", 5), ("accordion", 1),
    ("harmonica", 1), ("accordion", 1), ("guitar", 8), ("bass", 6), ("synthesizer", 2), ("strings", 6), ("harp", 1),
    ("timpani", 1), ("strings", 2), ("synthesizer", 2), ("voices", 2), ("synthesizer", 1), ("", 1), ("brass", 6),
    ("synthesizer", 2), ("saxophone", 4), ("woodwinds", 4), ("flutes", 8), ("synthesizer", 24),
    ("traditional instruments", 6), ("strings", 1), ("traditional instruments", 1), ("percussion", 8),
    ("sound effects", 8),
)  # fmt: skip
PROGRAMS = tuple(name for name, count in _PROGRAMS for _ in range(count))
# Other names of them; of a longer name, the last of these words counts: "bass clarinet", "trumpet in Bb".
_OTHER_NAMES = {
    "piano": "pianoforte",
    "tuned percussion": "glockenspiel vibraphone marimba xylophone celesta dulcimer tubular_bells music_box"
    " glass_harmonica",
    "accordion": "bandoneon",
    "harmonica": "mouth_organ",
    "guitar": "guitars",
    "bass": "bass_guitar electric_bass",
    "strings": "string violin violins viola violas cello cellos violoncello contrabass double_bass fiddle"
    " violino violini violoncelli contrabbasso violine bratsche kontrabass",
    "voices": "voice vocal vocals choir soprano mezzo_soprano tenor tenore canto gesang singstimme chant",
    "brass": "trumpet trumpets trombone trombones tuba horn horns cornet euphonium flugelhorn corno corni",
    "saxophone": "sax saxophones",
    "woodwinds": "woodwind oboe oboes clarinet clarinets bassoon bassoons contrabassoon english_horn basset_horn oboi"
    " clarinetto klarinette fagott fagotto fagotti",
    "flutes": "flute piccolo recorder ocarina shakuhachi",
    "synthesizer": "synth",
    "traditional instruments": "sitar banjo shamisen koto kalimba thumb_piano bagpipe bagpipes shanai"
    " jaw_harp jew_s_harp",
    "percussion": "bass_drum snare_drum side_drum steel_drum steel_drums taiko_drum"
    " woodblock cymbal cymbals tambourine timbales claves",
    "sound effects": "noise",
    "drums": "drum drumset drumkit",
}
_KNOWN = {word.casefold(): name for name, row in reversed(_INSTRUMENTS.items()) for word in row.values()}
_KNOWN |= {word.replace("_", " "): name for name, words in _OTHER_NAMES.items() for word in words.split()}


def instrument(name: str) -> str:
    """The word of INSTRUMENTS for an instrument's name: `Violin II` -> `strings`; "" if it is not known."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    if any(word.startswith("synth") for word in words):  # "synth bass", "synth strings"
        return "synthesizer"
    for last in range(len(words), 0, -1):
        for first in range(max(0, last - 3), last):
            if found := _KNOWN.get(" ".join(words[first:last])):
                return found
    return ""


# --- sentences --------------------------------------------------------------------------------------------------------
# `key` begins the sentence of a piece; the rest follows behind commas. `kind`: one of FORMS, or the word for music.
PHRASES = {
    "English": {
        "music": "music", "key": "{kind} in {key}", "meter": "in {meter} time", "tempo": "{tempo} BPM",
        "bars": "{bars} bars", "range": "from {lowest} to {highest}",
    },
    "German": {
        "music": "Musik", "key": "{kind} in {key}", "meter": "{meter}-Takt", "tempo": "{tempo} BPM",
        "bars": "{bars} Takte", "range": "{lowest} bis {highest}",
    },
    "French": {
        "music": "musique", "key": "{kind} en {key}", "meter": "à {meter}", "tempo": "{tempo} BPM",
        "bars": "{bars} mesures", "range": "de {lowest} à {highest}",
    },
    "Spanish": {
        "music": "música", "key": "{kind} en {key}", "meter": "en {meter}", "tempo": "{tempo} BPM",
        "bars": "{bars} compases", "range": "de {lowest} a {highest}",
    },
    "Italian": {
        "music": "musica", "key": "{kind} in {key}", "meter": "in {meter}", "tempo": "{tempo} BPM",
        "bars": "{bars} battute", "range": "da {lowest} a {highest}",
    },
    "Chinese (Simplified)": {
        "music": "乐曲", "key": "{key}的{kind}", "meter": "{meter}拍", "tempo": "{tempo} BPM",
        "bars": "{bars}小节", "range": "音域{lowest}到{highest}",
    },
}  # fmt: skip
LABELS = {  # in the order of a summary
    "English": {
        "composer": "Music by {composer}", "genres": "Genre: {genres}", "key": "Key: {key}",
        "meter": "Time signature: {meter}", "tempo": "Tempo: {tempo} BPM", "bars": "Number of bars: {bars}",
        "range": "Range: {lowest} to {highest}", "ensembles": "Ensemble: {ensembles}",
        "instruments": "Instruments: {instruments}",
    },
    "German": {
        "composer": "Musik: {composer}", "genres": "Genre: {genres}", "key": "Tonart: {key}",
        "meter": "Taktart: {meter}", "tempo": "Tempo: {tempo} BPM", "bars": "Anzahl der Takte: {bars}",
        "range": "Tonumfang: {lowest} bis {highest}", "ensembles": "Besetzung: {ensembles}",
        "instruments": "Instrumente: {instruments}",
    },
    "French": {
        "composer": "Musique : {composer}", "genres": "Genre : {genres}", "key": "Tonalité : {key}",
        "meter": "Mesure : {meter}", "tempo": "Tempo : {tempo} BPM", "bars": "Nombre de mesures : {bars}",
        "range": "Ambitus : de {lowest} à {highest}", "ensembles": "Effectif : {ensembles}",
        "instruments": "Instruments : {instruments}",
    },
    "Spanish": {
        "composer": "Música: {composer}", "genres": "Género: {genres}", "key": "Tonalidad: {key}",
        "meter": "Compás: {meter}", "tempo": "Tempo: {tempo} BPM", "bars": "Número de compases: {bars}",
        "range": "Ámbito: de {lowest} a {highest}", "ensembles": "Conjunto: {ensembles}",
        "instruments": "Instrumentos: {instruments}",
    },
    "Italian": {
        "composer": "Musica: {composer}", "genres": "Genere: {genres}", "key": "Tonalità: {key}",
        "meter": "Metro: {meter}", "tempo": "Velocità: {tempo} BPM", "bars": "Numero di battute: {bars}",
        "range": "Estensione: da {lowest} a {highest}", "ensembles": "Organico: {ensembles}",
        "instruments": "Strumenti: {instruments}",
    },
    "Chinese (Simplified)": {
        "composer": "作曲：{composer}", "genres": "类型：{genres}", "key": "调性：{key}", "meter": "拍号：{meter}",
        "tempo": "速度：{tempo} BPM", "bars": "小节数：{bars}", "range": "音域：{lowest}到{highest}",
        "ensembles": "编制：{ensembles}", "instruments": "乐器：{instruments}",
    },
}  # fmt: skip


def genre(name: str, language: str) -> str:
    """A genre in a language; one that is not in the tables stays as it is, and so does any in English."""
    row = (_FORMS | _GENRES).get(name.casefold(), {})
    return name if language == "English" else row.get(language, name)


def in_words(facts: dict, language: str) -> dict[str, str]:
    """Facts as the templates take them. An instrument without a word in the language keeps its name."""
    words = {name: str(facts[name]) for name in ("meter", "tempo", "bars") if name in facts}
    if "key" in facts:
        words["key"] = key_name(facts["key"], language)
    if "range" in facts:
        words["lowest"], words["highest"] = map(pitch_name, facts["range"])
    lists = {name: facts.get(name, []) for name in ("composer", "genres", "ensembles", "instruments")}
    lists["genres"] = [genre(name, language) for name in lists["genres"]]
    if language != "English":
        rows = [(name, _INSTRUMENTS.get(instrument(name), {})) for name in lists["instruments"]]
        lists["instruments"] = [row.get(language, name) for name, row in rows]
    comma = "、" if language.startswith("Chinese") else ", "
    words |= {name: comma.join(dict.fromkeys(texts)) for name, texts in lists.items() if texts}
    return words | {"kind": words["genres"] if _is_form(facts) else PHRASES[language]["music"]}


def _is_form(facts: dict) -> bool:
    """Whether the genre of a piece is a noun for the piece itself: "reel", not "classical"."""
    return [name.casefold() in _FORMS for name in facts.get("genres", [])] == [True]


def summary(facts: dict, language: str, style: str) -> str:
    """What is known of a piece in a language; "" if that is nothing.

    Args:
        facts: any of `key` ("Bb major"), `meter` ("6/8"), `tempo` and `bars` (numbers), `range` (two MIDI pitches), and
            of `composer`, `genres`, `ensembles`, `instruments` (lists of names).
        style: one of STYLES.
    """
    words, phrases = in_words(facts, language), PHRASES[language]
    stated = [name for name in ("key", "meter", "tempo", "bars", "range") if name in facts]
    stated = [] if style == "list" else stated
    sentence = [] if "key" in stated else [words["kind"]] if stated else []
    sentence += [phrases[name].format(**words) for name in stated]
    stated += ["genres"] if stated and _is_form(facts) else []
    texts = [label.format(**words) for name, label in LABELS[language].items() if name in facts and name not in stated]
    comma, stop, space = ("，", "。", "") if language.startswith("Chinese") else (", ", ".", " ")
    if sentence:
        texts.insert(0 if style == "sentence first" else len(texts), comma.join(sentence))
    return space.join(text[0].upper() + text[1:] + stop for text in texts)
