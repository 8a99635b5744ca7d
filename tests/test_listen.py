"""The sound of the page of hits: its events are those of the files, and a real browser plays and stops them."""

import itertools
import json
import math
import os
import re
import subprocess
import time
from xml.etree import ElementTree

import mido
import numpy as np
import pytest

import page
import pictures
import sound
import xml_abc
from helpers import KIT
from test_mtf import midi
from test_page import CHROMIUM, NASTY, SVG, TEN_BARS, Reader, roll

# A dotted quarter note lasts 600 ms (150 quarter notes a minute); from the second bar on, a quarter note 1 s.
TUNE = "X:1\nT:Two tempos\nM:2/4\nL:1/4\nQ:3/8=100\nK:C\nC E-|[Q:1/4=60] E G|]\n"
EVENTS = [[0, 400, 60], [400, 1400, 64], [1800, 1000, 67]]
LINES = [0, 800, 2800]
MTF = """ticks_per_beat 4
set_tempo 400000 0
time_signature 2 4 24 8 0
note_on 0 0 60 64
note_on 0 9 35 64
note_off 4 0 60 0
note_on 0 0 64 64
set_tempo 1000000 4
note_off 4 0 64 0
note_on 0 0 67 64
note_off 4 0 67 0
end_of_track 0
"""


def midi_file() -> bytes:
    first = b"\0\xff\x51\3" + (400_000).to_bytes(3, "big") + b"\0\xff\x58\4\2\2\x18\x08"
    second = b"\x81\x40\xff\x51\3" + (1_000_000).to_bytes(3, "big")  # after 192 ticks
    return midi(first + second, b"\0\x90\x3c\x40\x60\x3c\0\0\x40\x40\x81\x40\x40\0\0\x43\x40\x60\x43\0")


@pytest.mark.parametrize("name", ["a.abc", "a.musicxml", "a.mtf", "a.mid"])
def test_events_are_those_of_the_file(name, tmp_path):
    contents = {"a.abc": TUNE.encode(), "a.musicxml": xml_abc.abc_to_musicxml(TUNE), "a.mtf": MTF.encode()}
    (tmp_path / name).write_bytes(contents.get(name) or midi_file())
    found = sound.read(tmp_path / name)
    assert found["notes"] == EVENTS and found["count"] == 3
    assert found["bars"][:3] == LINES


@pytest.mark.parametrize("name", ["many_tracks", "long", "one_track"])
def test_times_of_midi_are_those_that_mido_plays(name):
    """From the bar on in which the first note lies: all of these have notes in the first one."""
    path = KIT / "midi" / f"{name}.mid"
    now, starts = 0.0, []
    for message in mido.MidiFile(path):  # in seconds
        now += message.time
        if message.type == "note_on" and message.velocity and message.channel != 9:
            starts.append((round(now * 1000), message.note))
    found = sound.read(path)
    ours = sorted((start, pitch) for start, _, pitch in found["notes"])
    assert len(ours) == len(starts) == found["count"] > 30
    np.testing.assert_allclose(sorted(a for a, _ in ours), sorted(a for a, _ in starts), atol=1)
    assert sorted(pitch for _, pitch in ours) == sorted(pitch for _, pitch in starts)


def note(step: str, duration: int) -> str:
    return f"<note><pitch><step>{step}</step><octave>4</octave></pitch><duration>{duration}</duration></note>"


def score(*parts: str) -> str:
    names = "".join(f'<score-part id="P{n}"><part-name/></score-part>' for n, _ in enumerate(parts))
    bodies = "".join(f'<part id="P{n}">{part}</part>' for n, part in enumerate(parts))
    return f'<score-partwise version="4.0"><part-list>{names}</part-list>{bodies}</score-partwise>'


def test_parts_keep_together_and_sound_at_their_pitch(tmp_path):
    """The first bar of the clarinet has one beat of four in it; it sounds a whole tone below what is written."""
    clarinet = (
        "<measure><attributes><divisions>1</divisions><transpose><chromatic>-2</chromatic></transpose></attributes>"
        f"{note('D', 1)}</measure><measure>{note('E', 4)}</measure>"
    )
    piano = f"<measure><attributes><divisions>2</divisions></attributes>{note('C', 8)}</measure><measure>{note('G', 8)}"
    (tmp_path / "a.musicxml").write_text(score(clarinet, piano + "</measure>"))
    found = sound.read(tmp_path / "a.musicxml")
    assert sorted(found["notes"]) == [[0, 500, 60], [0, 2000, 60], [2000, 2000, 62], [2000, 2000, 67]]
    assert found["bars"] == [0, 2000, 4000]


@pytest.mark.parametrize(
    ("direction", "quarter"),
    [
        ('<sound tempo="240"/>', 250),
        ('<direction><direction-type/><sound tempo="60"/></direction>', 1000),
        ("<metronome><beat-unit>half</beat-unit><per-minute>60</per-minute></metronome>", 500),
        ("<metronome><beat-unit>eighth</beat-unit><beat-unit-dot/><per-minute>160</per-minute></metronome>", 500),
        ("<metronome><beat-unit>quarter</beat-unit><per-minute>c. 60</per-minute></metronome>", 500),
        ('<sound tempo="0"/>', 500),
        ('<sound tempo="nan"/>', 500),
    ],
)
def test_tempos_of_musicxml(direction, quarter, tmp_path):
    if direction.startswith("<metronome"):
        direction = f"<direction><direction-type>{direction}</direction-type></direction>"
    measure = f"<measure><attributes><divisions>1</divisions></attributes>{direction}{note('C', 1)}{note('D', 2)}"
    (tmp_path / "a.xml").write_text(score(measure + "</measure>"))
    assert sound.read(tmp_path / "a.xml")["notes"] == [[0, quarter, 60], [quarter, 2 * quarter, 62]]


def test_smpte_time_and_a_late_beginning(tmp_path):
    lines = ["ticks_per_beat -6120", "set_tempo 9 0", "note_on 1152 0 60 64", "note_off 288 0 60 0", "end_of_track 0"]
    (tmp_path / "a.mtf").write_text("\n".join(lines))
    found = sound.read(tmp_path / "a.mtf")  # 576 ticks a second
    assert found == {"notes": [[0, 500, 60]], "bars": [0, 16000], "count": 1}
    late = MTF.replace("note_on 0 0 60", "note_on 100 0 60")  # 12 bars and a beat are silent
    (tmp_path / "b.mtf").write_text(late)
    assert [start for start, *_ in sound.read(tmp_path / "b.mtf")["notes"]] == [400 + start for start, *_ in EVENTS]


def test_drums_alone_cannot_be_played(tmp_path):
    (tmp_path / "a.mtf").write_text("ticks_per_beat 4\nnote_on 0 9 35 64\nnote_off 4 9 35 0\nend_of_track 0\n")
    page.write(tmp_path / "a.html", "q", None, [{"rank": 1, "score": 0, "name": "a.mtf"}], [tmp_path / "a.mtf"], "x")
    reader = Reader((tmp_path / "a.html").read_text())
    assert "It cannot be played: there is no note of a definite pitch in it" in reader.texts["p"]
    tags = [tag for tag, _ in reader.elements]
    assert "button" not in tags and "img" in tags


def test_buttons_name_what_sounds_and_what_is_left_out():
    notes = [[500 * row, 500, 60] for row in range(40)]
    heard = {"notes": notes, "bars": list(range(0, 18000, 2000)), "count": 40}
    assert page.player(heard, [])[1] == [("first bars", 16000), ("whole piece", 20000)]
    assert page.player(heard | {"count": 12345}, [])[1][1] == ("first 40 of 12,345 notes", 20000)
    assert page.player(heard | {"notes": notes[:32], "count": 32}, [])[1] == [("whole piece", 16000)]


def test_no_more_notes_than_the_page_should_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(sound, "MOST", 5)
    (tmp_path / "a.abc").write_text(TEN_BARS.format(title="x"))
    found = sound.read(tmp_path / "a.abc")
    assert [start for start, *_ in found["notes"]] == [0, 500, 1000, 1500, 2000] and found["count"] == 40


@pytest.mark.parametrize("name", ["ten.abc", "octet.abc", "piano.abc"])
def test_boxes_of_bars_end_at_the_bar_lines_of_the_engraving(name, tmp_path):
    path = KIT / "interleaved" / name
    if name == "ten.abc":
        path = tmp_path / name
        path.write_text(TEN_BARS.format(title="x"))
    svg = pictures.draw(path)
    boxes = pictures.bar_boxes(svg)
    assert len(boxes) == len(sound.read(path)["bars"]) - 1 == 8
    inner = ElementTree.fromstring(svg).find(f"{SVG}svg")
    size = np.array(inner.get("viewBox").split()[2:], float)
    margin = np.array(inner.find(f"{SVG}g").get("transform")[len("translate(") : -1].split(","), float)
    measures = [g for g in inner.iter(f"{SVG}g") if g.get("class") == "measure"]
    for measure, (left, top, width, height) in zip(measures, boxes, strict=True):
        lines = [g for g in measure.iter(f"{SVG}g") if g.get("class") == "barLine"]
        points = [re.findall(r"[\d.]+", path.get("d")) for line in lines for path in line.iter(f"{SVG}path")]
        ends = 100 * (np.array(points, float).reshape(-1, 2) + margin) / size
        np.testing.assert_allclose([left + width, top + height], ends.max(0), atol=0.15)
        assert top == pytest.approx(ends.min(0)[1], abs=0.15)
    assert all(a[0] + a[2] == pytest.approx(b[0], abs=0.05) or b[1] > a[1] for a, b in itertools.pairwise(boxes))


def test_boxes_of_bars_lie_between_the_lines_of_the_roll():
    svg = pictures.draw(KIT / "midi" / "many_tracks.mid")
    _, lines, _ = roll(svg)
    boxes = pictures.bar_boxes(svg)
    np.testing.assert_allclose([box[0] for box in boxes], [line / 8.4 for line in lines[:-1]], atol=0.01)
    np.testing.assert_allclose([box[0] + box[2] for box in boxes], [line / 8.4 for line in lines[1:]], atol=0.02)


def test_bars_of_rests_are_drawn_one_by_one(tmp_path):
    """Else the eight bars of the picture would not be those that sound."""
    rests = "<attributes><measure-style><multiple-rest>3</multiple-rest></measure-style></attributes>"
    rest = '<note><rest measure="yes"/><duration>4</duration></note>'
    first = f"<attributes><divisions>1</divisions></attributes>{note('C', 4)}"
    bars = [first, rests + rest, rest, rest, *[note("D", 4)] * 7]
    (tmp_path / "a.musicxml").write_text(score("".join(f"<measure>{bar}</measure>" for bar in bars)))
    svg = ElementTree.fromstring(pictures.draw(tmp_path / "a.musicxml"))
    assert [sum(g.get("class") == kind for g in svg.iter()) for kind in ("measure", "note")] == [8, 5]


def test_no_bar_is_marked_where_the_picture_has_other_bars():
    heard = {"notes": [[0, 1, 60]], "bars": [0, 1, 2, 3], "count": 1}
    assert json.loads(page.player(heard, [[1, 2, 3, 4]] * 3)[0])["boxes"] == [[1, 2, 3, 4]] * 3
    assert json.loads(page.player(heard, [[1, 2, 3, 4]] * 2)[0])["boxes"] == []


class Browser:
    """Chromium without a window, asked through a pipe by its DevTools protocol, which no policy of a page restrains."""

    def __init__(self, profile):
        read, self.requests = os.pipe()
        self.answers, write = os.pipe()
        options = f"--headless --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={profile}"
        command = f"exec {CHROMIUM} {options} 3<&{read} 4>&{write}"
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read), os.close(write)
        self.rest, self.count, self.events, self.session = b"", 0, [], {}
        target = self("Target.createTarget", url="about:blank")["targetId"]
        session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}

    def __call__(self, method: str, **params) -> dict:
        self.count += 1
        request = {"id": self.count, "method": method, "params": params} | self.session
        os.write(self.requests, json.dumps(request).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.answers, 2**20) or pytest.fail("Chromium has ended")
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.count:
                return answer["result"]
            self.events.append(answer)

    def ask(self, expression: str):
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 5):
        for _ in range(int(seconds * 20)):
            if value := self.ask(expression):
                return value
            time.sleep(0.05)
        return pytest.fail(f"never: {expression}")

    def press(self, key: str, code: int, text: str = ""):
        name = {"key": text or key, "code": key, "windowsVirtualKeyCode": code}
        self("Input.dispatchKeyEvent", type="keyDown", text=text, **name)
        self("Input.dispatchKeyEvent", type="keyUp", **name)


SPY = """
window.contexts = []; window.tones = []; window.level = () => {
  const samples = new Float32Array(2048); contexts.at(-1).ear.getFloatTimeDomainData(samples);
  return Math.max(...samples.map(Math.abs));
};
const Context = AudioContext, Oscillator = OscillatorNode, connect = AudioNode.prototype.connect;
window.AudioContext = class extends Context { constructor() { super(); contexts.push(this) } };
window.OscillatorNode = class extends Oscillator {
  start(at) { tones.push([at, this.frequency.value, contexts.length]); super.start(at) }
};
AudioNode.prototype.connect = function (to) {
  if (to === this.context.destination) connect.call(this, this.context.ear = new AnalyserNode(this.context));
  return connect.call(this, to);
};
"""


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.process.kill()
    browser.process.wait()
    os.close(browser.requests), os.close(browser.answers)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_chromium_plays_and_stops(browser, tmp_path):
    (tmp_path / "nasty.abc").write_text(TEN_BARS.format(title=NASTY))
    (tmp_path / "octet.musicxml").write_bytes(xml_abc.abc_to_musicxml((KIT / "abc" / "octet.abc").read_text()))
    sources = [tmp_path / "nasty.abc", tmp_path / "octet.musicxml", KIT / "midi" / "long.mid", KIT / "mtf" / "long.mtf"]
    hits = [{"rank": rank, "score": 0, "name": path.name, "title": NASTY} for rank, path in enumerate(sources, 1)]
    path = tmp_path / "hits.html"
    page.write(path, "query", None, hits, sources, "4 pieces")
    text = path.read_text(encoding="utf-8")
    for domain in ("Page", "Network", "Log", "Accessibility"):
        browser(f"{domain}.enable")
    browser("Page.addScriptToEvaluateOnNewDocument", source=SPY)
    browser("Page.navigate", url=path.as_uri())
    browser.wait_for("document.readyState === 'complete' && document.querySelectorAll('button:not([hidden])').length")

    tree = [node for node in browser("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    buttons = [a for tag, a in Reader(text).elements if tag == "button"]
    names = [node["name"]["value"] for node in tree if node["role"]["value"] in ("button", "ToggleButton")]
    assert names == [" ".join(a["aria-label"].split()) for a in buttons] and len(names) == 8

    browser.press("Tab", 9)
    assert browser.ask("document.activeElement === document.querySelectorAll('button')[0]")
    browser.press("Space", 32, " ")
    browser.wait_for("tones.length > 3 && level() > 0.02")
    pressed = "[...document.querySelectorAll('button')].map(button => button.ariaPressed).indexOf('true')"
    assert browser.ask(pressed) == 0
    shown = "[...document.querySelectorAll('.mark')].map(mark => mark.hidden ? '' : mark.getAttribute('style'))"
    [data, *_] = [json.loads(a["data-sound"]) for _, a in Reader(text).elements if "data-sound" in a]
    places = zip(("left", "top", "width", "height"), data["boxes"][0], strict=True)
    assert browser.ask(shown)[0] == " ".join(f"{side}: {place:g}%;" for side, place in places)
    tones = browser.ask("tones")
    for (at, frequency, _), (start, _, pitch) in zip(tones, data["notes"], strict=False):
        assert at - tones[0][0] == pytest.approx((start - data["notes"][0][0]) / 1000, abs=1e-6)
        assert 69 + 12 * math.log2(frequency / 440) == pytest.approx(pitch, abs=1e-3)

    browser.ask("document.querySelectorAll('button')[3].click()")  # another hit: the first one stops
    assert browser.ask(pressed) == 3
    assert browser.wait_for("contexts[0].state === 'closed' && contexts.length === 2")
    browser.wait_for("level() > 0.02")
    browser.ask("document.querySelectorAll('button')[3].click()")
    assert browser.ask(pressed) == -1
    browser.wait_for("contexts[1].state === 'closed'")
    count = len(browser.ask("tones"))
    time.sleep(0.3)
    assert len(browser.ask("tones")) == count and not any(browser.ask(shown))

    browser.ask("document.querySelectorAll('button')[0].dataset.until = 300")
    browser.ask("document.querySelectorAll('button')[0].click()")  # it ends by itself
    assert browser.ask(pressed) == 0
    browser.wait_for("contexts.length === 3 && contexts[2].state === 'closed'")
    assert browser.ask(pressed) == -1

    requests = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert not [event for event in browser.events if event.get("method") == "Log.entryAdded"]
    refused = "const s = document.createElement('script'); s.text = 'window.intruder = 1'; document.body.append(s);"
    assert browser.ask(refused + "window.intruder") is None
