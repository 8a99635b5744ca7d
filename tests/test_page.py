"""The page of hits: what it says, what is engraved, and how it looks in a real browser."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
import zipfile
from xml.etree import ElementTree

import mido
import numpy as np
import pytest

import batch_script
import mtf
import page
import pictures
import xml_abc
from helpers import CODE, KIT, KIT_MODEL, run_script, write_config
from test_mtf import meta, midi, rmi

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TEN_BARS = "X:1\nT:{title}\nL:1/8\nM:4/4\nK:G\n" + "G2 A2 B2 c2|" * 10 + "]\n"  # four notes in a bar
NASTY = "<script>alert(\"x\")</script> & 'quotes' <img src=http://example.org/x>"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    return write_config(folder / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(folder / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    (folder / "book.abc").write_text("\n".join(TEN_BARS.format(title=title) for title in ("First", NASTY)))
    shutil.copy(KIT / "interleaved" / "octet.abc", folder)
    shutil.copy(KIT / "interleaved" / "piano.abc", folder / "piano & <b>.abc")
    score = xml_abc.abc_to_musicxml((KIT / "abc" / "quartet.abc").read_text())
    (folder / "quartet.musicxml").write_bytes(score)
    with zipfile.ZipFile(folder / "quartet.mxl", "w") as archive:
        archive.writestr("quartet.xml", score)
    shutil.copy(KIT / "midi" / "many_tracks.mid", folder)
    shutil.copy(KIT / "mtf" / "long.mtf", folder)
    (folder / "words.txt").write_text(f"Ein Walzer. {NASTY}\nשלום\n" + "lang " * 500)
    return folder


def search(query, folder, config, target, *more):
    result = run_script(CODE / "semantic_search.py", "search", query, folder, "--html", target, *more, config=config)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(folder, config, tmp_path_factory):
    """A page of all nine hits, and the hits."""
    target = tmp_path_factory.mktemp("page")
    text = search(NASTY, folder, config, target / "hits.html", "--json", target / "hits.json")
    return target / "hits.html", text, json.loads((target / "hits.json").read_text())["hits"]


class Reader(html.parser.HTMLParser):
    """The elements of a page, and its text by the element that it is in."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)


def drawn(image):
    """The SVG of an <img>."""
    kind, _, data = image["src"].partition(";base64,")
    assert kind == "data:image/svg+xml"
    return ElementTree.fromstring(base64.b64decode(data))


def count(svg, name):
    return sum(name in element.get("class", "").split() for element in svg.iter())


def test_page_says_what_the_search_says_and_fetches_nothing(written):
    _, text, hits = written
    reader = Reader(text)
    assert reader.open == []
    assert reader.texts["h1"] == [f"“{NASTY}”"] and len(hits) == 9
    titles = [hit["title"] or hit["name"].rpartition(".")[0] for hit in hits]
    assert reader.texts["h2"] == titles and NASTY in titles and "piano & <b>" in titles
    named = [line for line in reader.texts["p"] if line in {hit["name"] for hit in hits}]
    assert named == [hit["name"] for hit in hits]
    assert [line for line in reader.texts["span"] if "." in line] == [f"{hit['score']:.3f}" for hit in hits]
    [words] = reader.texts["blockquote"]
    assert words.startswith(f"Ein Walzer. {NASTY}\nשלום\nlang") and words.endswith("…")
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object") and "src" not in (attributes if tag != "img" else ())
        assert not any(
            name.startswith("on") or "http" in (value or "")
            for name, value in attributes.items()
            if name not in ("alt", "aria-label")
        )
    [policy] = [a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a]
    script = "".join(reader.texts["script"])
    assert script == (CODE / "page.js").read_text(encoding="utf-8")
    assert sum(tag == "script" for tag, _ in reader.elements) == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "url(" not in text and "@import" not in text


def test_every_piece_of_music_has_a_picture_with_a_description(written):
    _, text, hits = written
    images = [attributes for tag, attributes in Reader(text).elements if tag == "img"]
    music = [hit for hit in hits if not hit["name"].endswith(".txt")]
    assert [image["alt"] for image in images] == [
        f"The first bars of {hit['title'] or hit['name'].rpartition('.')[0]}" for hit in music
    ]
    for image, hit in zip(images, music, strict=True):
        svg = drawn(image)
        assert count(svg, "note") > 8, hit["name"]
        if hit["name"].startswith("book"):
            assert (count(svg, "note"), count(svg, "measure")) == (32, 8)
        elif not hit["name"].endswith((".mid", ".mtf")):
            assert count(svg, "measure") == 8 and count(svg, "staff") % 8 == 0
        outside = [value for element in svg.iter() for value in element.attrib.values() if "//" in value]
        assert not outside and not list(svg.iter(f"{SVG}script")) and not list(svg.iter(f"{SVG}image"))


def bars_of(ticks_per_beat, meters, last):
    """The first tick of every bar, beat by beat; a new meter begins a bar."""
    bars, beats, meter = [], 0, (4, 4)
    for tick in range(last + 64 * ticks_per_beat):
        if tick in meters:
            meter, beats = meters[tick], 0
        if beats % (4 * ticks_per_beat * meter[0] / meter[1]) == 0:
            bars.append(tick)
        beats += 1
    return bars


def roll(svg):
    """Of a piano roll: the corners of the notes, the places of the bar lines, the numbers of the bars."""
    svg = ElementTree.fromstring(svg) if isinstance(svg, (str, bytes)) else svg
    boxes = [(float(box.get("x")), float(box.get("y"))) for box in svg.iter(f"{SVG}rect")]
    lines = [float(path.get("d").split()[0][1:]) for path in svg.iter(f"{SVG}path") if "V" in path.get("d")]
    numbers = [int(text.text) for text in svg.iter(f"{SVG}text") if text.text.isdigit()]
    return boxes, lines, numbers


@pytest.mark.parametrize("header", ["", "V:1\n", 'V:1 nm="Flute"\n'])
def test_scores_from_abc_without_a_clef_are_drawn_with_one(header, tmp_path):
    text = f"X:1\nM:4/4\nL:1/4\nK:D\n{header}DEFG|]\n"
    (tmp_path / "tune.abc").write_text(text)
    (tmp_path / "tune.musicxml").write_bytes(xml_abc.abc_to_musicxml(text))
    for path in tmp_path.iterdir():
        svg = ElementTree.fromstring(pictures.draw(path))
        assert [count(svg, kind) for kind in ("clef", "keySig", "note")] == [1, 1, 4], path


def units(svg) -> list[str]:
    """What stands below a piano roll, beside the numbers."""
    texts = [text for text in svg.iter(f"{SVG}text") if not re.fullmatch(r"C-?\d|\d+", text.text)]
    below = max(float(text.get("y")) for text in svg.iter(f"{SVG}text"))
    assert all(float(text.get("y")) == below for text in texts)
    return [text.text for text in texts]


@pytest.mark.parametrize("name", ["plain", "two_tracks", "many_tracks", "one_track", "long"])
def test_piano_roll_has_the_notes_that_mido_reads(name):
    midi = mido.MidiFile(KIT / "midi" / f"{name}.mid")
    svg = ElementTree.fromstring(
        pictures.piano_roll(mtf.midi_to_mtf((KIT / "midi" / f"{name}.mid").read_bytes(), "carry_delta")[0])
    )
    time, meters, starts = 0, {0: (4, 4)}, []
    for message in mido.merge_tracks(midi.tracks):
        time += message.time
        if message.type == "time_signature":
            meters[time] = (message.numerator, message.denominator)
        if message.type == "note_on" and message.velocity and message.channel != 9:
            starts.append((time, message.note))
    bars = bars_of(midi.ticks_per_beat, meters, time)
    first = max(number for number, bar in enumerate(bars) if bar <= min(starts)[0])
    begin, end = bars[first], bars[first + 8]
    expected = sorted((start - begin, pitch) for start, pitch in starts if start < end)
    boxes, lines, numbers = roll(svg)
    assert numbers == list(range(first + 1, first + 9)) and units(svg) == ["bar"]
    scale = (end - begin) / (lines[8] - lines[0])
    np.testing.assert_allclose(lines, [lines[0] + (bar - begin) / scale for bar in bars[first : first + 9]], atol=0.01)
    assert len(boxes) == len(expected) > 8
    at = sorted((x - lines[0]) * scale for x, _ in boxes)
    np.testing.assert_allclose(at, [start for start, _ in expected], atol=0.01 * scale)
    np.testing.assert_allclose(
        sorted(y for _, y in boxes),
        sorted(max(p for _, p in expected) * 5 + min(y for _, y in boxes) - 5 * p for _, p in expected),
    )


def test_a_picture_of_midi_is_at_the_true_times(tmp_path):
    """Lyrics on their own track beside four quarter notes: in the text that the model reads, they sound at once."""
    lyrics = b"".join(delta + meta(5, b"la") for delta in (b"\0", b"\x60", b"\x60", b"\x60"))
    notes = b"\0\x90\x3c\x40" + b"\x60\x3c\x00\0\x3c\x40" * 3 + b"\x60\x3c\x00"
    for suffix in (".mid", ".KAR", ".rmi"):
        path = tmp_path / f"song{suffix}"
        path.write_bytes(rmi(midi(lyrics, notes)) if suffix == ".rmi" else midi(lyrics, notes))
        boxes, lines, _ = roll(pictures.draw(path))
        assert [line - lines[0] for line in lines] == [100.5 * bar for bar in range(9)]  # 804 units
        assert [round(x - lines[0], 3) for x, _ in boxes] == [0, 25.12, 50.25, 75.38]


@pytest.mark.parametrize(
    ("meters", "earliest", "first", "lines"),
    [
        ([], 0, 0, [0, 16, 32, 48]),
        ([], 33, 2, [32, 48, 64, 80]),
        ([(0, 3, 4)], 12, 1, [12, 24, 36, 48]),
        ([(0, 3, 4), (24, 6, 8), (24, 2, 4), (40, 5, 8)], 0, 0, [0, 12, 24, 32]),  # of two at once, the later
        ([(0, 3, 4), (24, 2, 4), (40, 5, 8)], 30, 2, [24, 32, 40, 50]),
        ([(0, 3, 4), (24, 2, 4), (40, 5, 8)], 61, 6, [60, 70, 80, 90]),
        ([(20, 3, 4)], 0, 0, [0, 16, 20, 32]),  # within a bar: it begins a new one
        ([(20, 3, 4)], 20, 2, [20, 32, 44, 56]),
        ([(0, 3, 32), (0, 0, 4)], 0, 0, [0, 1.5, 3, 4.5]),  # no meter has no beats
    ],
)
def test_bars_are_those_of_the_meter_in_force(meters, earliest, first, lines):
    assert pictures.bar_lines(4, meters, earliest, 3) == (first, lines)


@pytest.mark.parametrize(
    ("ticks", "shown", "unit"),
    [
        (-25 * 256 + 40, [0, 8000, 15999], ["0 s", "16 s"]),  # 25 frames a second of 40 ticks
        (0, [0, 8000, 15999, 16000, 90000], ["tick 0", "tick 90001"]),
    ],
)
def test_ticks_that_are_no_part_of_a_beat_have_no_bars(ticks, shown, unit):
    times = np.diff([0, 0, 8000, 15999, 16000, 90000])
    notes = "\n".join(f"note_on {time} 0 60 1\nnote_on 0 0 60 0" for time in times)
    svg = ElementTree.fromstring(pictures.piano_roll(f"ticks_per_beat {ticks}\n{notes}\nend_of_track 0"))
    boxes, lines, numbers = roll(svg)
    assert units(svg) == unit
    assert len(lines) == 2 and numbers == [] and len(boxes) == len(shown)
    end = 16000 if ticks else 90001
    np.testing.assert_allclose([x for x, _ in boxes], [34 + 804 * time / end for time in shown], atol=0.006)


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    orders = {"crash.abc": "signal 11", "slow.abc": "work 60", "odd.abc": "refuse <too odd>", "good.abc": "<svg/>"}
    for name, order in orders.items():
        (tmp_path / name).write_text(order)
    monkeypatch.setattr(pictures, "draw", batch_script.draw)
    monkeypatch.setattr(pictures, "TIMEOUT", 1)
    hits = [{"rank": rank, "score": 0.5, "name": name} for rank, name in enumerate(orders, 1)]
    page.write(tmp_path / "x.html", "query", None, hits, [tmp_path / name for name in orders], "4 pieces")
    reader = Reader((tmp_path / "x.html").read_text())
    problems = [line for line in reader.texts["p"] if "cannot be shown" in line]
    assert [re.sub(r".*: ", "", line) for line in problems[1:]] == ["took over 1 s of CPU time", "<too odd>"]
    assert "signal 11" in problems[0] and len(problems) == 3
    assert len([tag for tag, _ in reader.elements if tag == "img"]) == 1


def test_page_of_a_file_and_of_features(folder, config, tmp_path):
    text = search(folder / "book.abc#1", folder, config, tmp_path / "a.html", "--top_k", 2)
    reader = Reader(text)
    assert reader.texts["h1"] == ["First"] and sum(tag == "img" for tag, _ in reader.elements) == 3
    np.save(tmp_path / "piece.npy", np.ones((1, 48), np.float32))
    reader = Reader(search(tmp_path / "piece.npy", tmp_path, config, tmp_path / "b.html"))
    assert reader.texts["h1"] == ["piece.npy"] and reader.texts["h2"] == ["piece"]


PROBE = """<script>
addEventListener("load", () => {
  const shown = [...document.images].map(image => {
    const canvas = document.createElement("canvas"), box = image.getBoundingClientRect();
    canvas.width = box.width; canvas.height = box.height;
    const context = canvas.getContext("2d");
    if (!image.complete || !image.naturalWidth) return [0, 0, box.width];
    context.drawImage(image, 0, 0, box.width, box.height);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let ink = 0;
    for (let i = 3; i < pixels.length; i += 4) ink += pixels[i] > 100;
    return [ink / (pixels.length / 4), image.naturalWidth, box.width];
  });
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.title = JSON.stringify({shown, wide});
});
</script></head>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [1200, 500])
def test_chromium_shows_as_many_engraved_hits_as_there_are(written, tmp_path, width):
    _, text, hits = written
    policy = re.search(r"<meta http-equiv=.*?>", text)[0]
    probe = tmp_path / "probe.html"
    probe.write_text(text.replace(policy, "").replace("</head>", PROBE, 1))  # the page, but for the script that asks
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += [f"--window-size={width},900", "--virtual-time-budget=10000", "--dump-dom"]
    command = [CHROMIUM, *options, probe.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    seen = json.loads(re.search(r"<title>(.*?)</title>", dom)[1].replace("&quot;", '"'))
    assert len(seen["shown"]) == len([hit for hit in hits if not hit["name"].endswith(".txt")]) == 8
    for ink, natural, wide in seen["shown"]:
        assert ink > 0.01 and natural > 0 and width / 2 < wide <= width
    assert not seen["wide"]  # nothing to scroll sideways
