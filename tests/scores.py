"""MusicXML written by hand: small scores, and .mxl files of any shape, as bytes."""

import io
import zipfile

DOCTYPE = (
    '<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 3.1 Partwise//EN" '
    '"http://www.musicxml.org/dtds/partwise.dtd">'
)
CONTAINER = '<?xml version="1.0"?><container><rootfiles>{}</rootfiles></container>'


def note(pitch: str = "C4", duration: int = 2, extra: str = "", stem: str = "up", alter: str = "") -> str:
    """A note; `extra` are elements that come before the stem (voice, type, accidental)."""
    alter = f"<alter>{alter}</alter>" if alter else ""
    pitch = f"<pitch><step>{pitch[0]}</step>{alter}<octave>{pitch[1]}</octave></pitch>"
    return f"<note>{pitch}<duration>{duration}</duration>{extra}<stem>{stem}</stem></note>"


def score(
    *measures: str,
    title: str = "",
    declaration: str = '<?xml version="1.0"?>',
    doctype: str = DOCTYPE,
    beats: str = "4",
) -> str:
    """One part in C, two divisions a quarter note."""
    attributes = (
        "<attributes><divisions>2</divisions><key><fifths>0</fifths></key>"
        f"<time><beats>{beats}</beats><beat-type>4</beat-type></time><clef><sign>G</sign><line>2</line></clef></attributes>"
    )
    measures = measures or (note("C4") + note("E4") + note("G4", 4),)
    body = "".join(
        f'<measure number="{number}">{attributes if number == 1 else ""}{measure}</measure>'
        for number, measure in enumerate(measures, 1)
    )
    return (
        f'{declaration}\n{doctype}\n<score-partwise version="3.1">'
        f"<work><work-title>{title}</work-title></work>"
        '<part-list><score-part id="P1"><part-name>Flute</part-name></score-part></part-list>'
        f'<part id="P1">{body}</part></score-partwise>\n'
    )


def mxl(members: dict[str, bytes | str], rootfiles: list[str] | None = None, container: str | None = None) -> bytes:
    """A compressed MusicXML file; its container names `rootfiles`, or is `container`, or is not there at all."""
    if rootfiles is not None:
        container = CONTAINER.format("".join(f'<rootfile full-path="{name}"/>' for name in rootfiles))
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        if container is not None:
            archive.writestr("META-INF/container.xml", container)
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()
