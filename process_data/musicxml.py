"""Read MusicXML as it is found: any encoding, compressed or not, damaged containers; hostile files are refused.

Nothing is unpacked to the disk, no entity is expanded and nothing outside the file is read.
"""

import codecs
import io
import lzma
import re
import zipfile
import zlib
from xml.etree import ElementTree
from xml.parsers import expat

from shared import InputError

SUFFIXES = (".xml", ".musicxml", ".mxl")
MAX_BYTES = 128 * 2**20  # of a score, unpacked: a long string quartet has 5 MB, a symphony some tens
_BOMS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z][A-Za-z0-9._-]*)["']""")
# What zipfile and the decompressors raise for a damaged, encrypted or unsupported archive.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)


def read(data: bytes) -> tuple[str, list[str]]:
    """Read a file, compressed (.mxl) or not: (text of the score without its XML declaration, warnings).

    Raises InputError if it is no well-formed, partwise MusicXML with a part in it, or could do harm: entities,
    attribute declarations, or more than MAX_BYTES unpacked.
    """
    warnings: list[str] = []
    if data.startswith(b"PK"):
        data, warnings = _unzip(data)
    if len(data) > MAX_BYTES:
        raise InputError(f"over {MAX_BYTES // 2**20} MiB of XML")
    text, more = _decode(data)
    _check(text)
    return text, warnings + more


def _unzip(data: bytes) -> tuple[bytes, list[str]]:
    """Unpack the score of a compressed MusicXML file: what META-INF/container.xml names, or the only one it can be."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [member.filename for member in archive.infolist() if not member.is_dir()]
            name, problem = _rootfile(archive, names)
            if not problem:
                return _member(archive, name), []
            scores = [name for name in names if _may_be_score(name)]
            if len(scores) != 1:
                raise InputError(f"{problem}, and it holds {len(scores)} files that may be the score")
            return _member(archive, scores[0]), [f"{problem}: took {scores[0]!r}, the only score in it"]
    except InputError:
        raise
    except _ZIP_ERRORS as error:
        raise InputError(f"damaged or unreadable compressed MusicXML: {_one_line(error)}") from error


def _rootfile(archive: zipfile.ZipFile, names: list[str]) -> tuple[str, str]:
    """Return (name of the member that the container names as the score, "") or ("", why there is none)."""
    if "META-INF/container.xml" not in names:
        return "", "META-INF/container.xml is missing"
    try:
        text, _ = _decode(_member(archive, "META-INF/container.xml"))
        _parse(text)
        root = ElementTree.fromstring(text).find(".//{*}rootfile")  # the first, by the specification
    except (InputError, ElementTree.ParseError, *_ZIP_ERRORS) as error:
        return "", f"META-INF/container.xml is damaged ({_one_line(error)})"
    path = "" if root is None else root.get("full-path", "")
    if path not in names:
        return "", f"META-INF/container.xml names {path!r}, which is not in the file"
    return path, ""


def _may_be_score(name: str) -> bool:
    folders, _, base = name.rpartition("/")
    is_metadata = folders.partition("/")[0] in ("META-INF", "__MACOSX") or base.startswith(".")
    return not is_metadata and base.lower().endswith((".xml", ".musicxml"))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Unpack at most MAX_BYTES, whatever size the archive gives for the member."""
    with archive.open(name) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{name!r} unpacks to over {MAX_BYTES // 2**20} MiB")
    return data


def _decode(data: bytes) -> tuple[str, list[str]]:
    """Decode XML: bytes -> text. expat itself knows four encodings; Python knows all that files declare."""
    warnings = []
    encoding = next((encoding for bom, encoding in _BOMS if data.startswith(bom)), None)
    if not encoding:
        encoding = next((encoding for encoding in _WIDE if data.startswith("<?".encode(encoding))), None)
    if not encoding:
        declared = _DECLARED.match(data[:1000])
        encoding = declared[1].decode() if declared else "utf-8"
        if re.match(r"(utf|ucs)[-_]?(16|32|2|4)", encoding, re.IGNORECASE):
            warnings.append(f"declared {encoding}, which it is not: read as UTF-8")
            encoding = "utf-8"
    try:
        text = data.decode(encoding)
    except LookupError as error:
        raise InputError(f"declared encoding {encoding!r} is unknown") from error
    except UnicodeError:
        is_unicode = codecs.lookup(encoding).name in ("utf-8", "ascii")
        fallback = "cp1252" if is_unicode else encoding
        warnings.append(f"not in its encoding {encoding}: read as {fallback}, what does not exist there as U+FFFD")
        text = data.decode(fallback, errors="replace")
    return re.sub(r"\A[\ufeff\0\s]*(<\?xml\s[^>]*\?>)?", "", text), warnings


def _check(text: str) -> None:
    """Raise InputError unless `text` is a partwise score with parts."""
    tags = _parse(text)
    root = tags[0] if tags else ""
    if root == "score-timewise":
        raise InputError(
            "score-timewise MusicXML is not read: save it as score-partwise, as every notation program does"
        )
    if root == "opus":
        raise InputError("a list of scores (<opus>), not a score")
    if root != "score-partwise":
        raise InputError(f"not MusicXML: the root element is <{root}>, not <score-partwise>")
    if "part" not in tags:
        raise InputError("it has no <part>: no music in it")


def _parse(text: str) -> list[str]:
    """Parse the tags of the first two levels. Raises InputError if `text` is malformed, or declares what could do harm.

    A DOCTYPE is normal in MusicXML, and expat does not fetch the DTD that it names. Entities (expansion, other files)
    and default attributes (which expand too) can only be declared in a DOCTYPE of the file itself.
    """
    tags, depth = [], 0

    def refuse(*_) -> None:
        raise InputError("it has XML entities or attribute declarations, which no score needs: refused for safety")

    def start(tag: str, _) -> None:
        nonlocal depth
        depth += 1
        if depth <= 2:
            tags.append(tag)
        if depth > 100:  # MusicXML needs ten; deeper nesting is an attack on whoever walks the tree
            raise InputError("elements nested over 100 deep: not MusicXML")

    def end(_) -> None:
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = parser.SkippedEntityHandler = parser.AttlistDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, UnicodeError) as error:
        raise InputError(f"not well-formed XML: {_one_line(error)}") from error
    return tags


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
