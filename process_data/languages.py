"""The languages a summary may be asked in, and whether a text can be in one of them.

XLM-R's list (Conneau et al. 2020, appendix A) counts 100 entries. Without English, and with Burmese once (its second
entry is the Zawgyi encoding of the same language), these 98 remain, romanized forms included.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# Script -> languages written in it. A script is named by the first word of its characters' Unicode names.
_WRITTEN_IN = {
    "LATIN": """Afrikaans, Albanian, Azerbaijani, Basque, Bengali (Romanized), Bosnian, Breton, Catalan, Croatian,
        Czech, Danish, Dutch, Esperanto, Estonian, Filipino, Finnish, French, Galician, German, Hausa, Hindi
        (Romanized), Hungarian, Icelandic, Indonesian, Irish, Italian, Javanese, Kurdish (Kurmanji), Latin, Latvian,
        Lithuanian, Malagasy, Malay, Norwegian, Oromo, Polish, Portuguese, Romanian, Scottish Gaelic, Serbian, Slovak,
        Slovenian, Somali, Spanish, Sundanese, Swahili, Swedish, Tamil (Romanized), Telugu (Romanized), Turkish, Urdu
        (Romanized), Uzbek, Vietnamese, Welsh, Western Frisian, Xhosa""",
    "CYRILLIC": """Belarusian, Bosnian, Bulgarian, Kazakh, Kyrgyz, Macedonian, Mongolian, Russian, Serbian, Ukrainian,
        Uzbek""",
    "ARABIC": "Arabic, Pashto, Persian, Sindhi, Urdu, Uyghur",
    "DEVANAGARI": "Hindi, Marathi, Nepali, Sanskrit, Sindhi",
    "CJK": "Chinese (Simplified), Chinese (Traditional), Japanese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HEBREW": "Hebrew, Yiddish",
    "BENGALI": "Assamese, Bengali",
    "HANGUL": "Korean",
    "ARMENIAN": "Armenian",
    "ETHIOPIC": "Amharic",
    "GEORGIAN": "Georgian",
    "GREEK": "Greek",
    "GUJARATI": "Gujarati",
    "GURMUKHI": "Punjabi",
    "KANNADA": "Kannada",
    "KHMER": "Khmer",
    "LAO": "Lao",
    "MALAYALAM": "Malayalam",
    "MONGOLIAN": "Mongolian",
    "MYANMAR": "Burmese",
    "ORIYA": "Oriya",
    "SINHALA": "Sinhala",
    "TAMIL": "Tamil",
    "TELUGU": "Telugu",
    "THAI": "Thai",
}
_NAMES = {script: [" ".join(name.split()) for name in names.split(",")] for script, names in _WRITTEN_IN.items()}
LANGUAGES = sorted({name for names in _NAMES.values() for name in names})
SCRIPTS = {language: {script for script, names in _NAMES.items() if language in names} for language in LANGUAGES}

# The least share of letters in the language's scripts. Titles and names may stay in another, mostly Latin.
LEAST_SHARE, LEAST_LATIN_SHARE = 0.2, 0.6
# In English prose more than every third word is one of both sets. Other languages have some of _COMMON (Dutch: in, is,
# of), but no two of _ENGLISH; where those are in a quoted title, they are few.
_ENGLISH = {"the", "and", "with", "this", "that", "which", "its", "from", "are"}
_COMMON = _ENGLISH | {"a", "an", "as", "by", "for", "has", "in", "is", "it", "of", "on", "or", "to", "was"}
_ENGLISH_SHARE = 0.25


def read(path: Path) -> list[str]:
    """Read the languages in a file, one a line. Raises ValueError if it names none, one twice, or English."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"{path}: names no language; it should have one a line, such as: French")
    if any(name.casefold() == "english" for name in names):
        raise ValueError(f"{path}: names English, in which there is a summary anyway")
    twice = [name for name, uses in Counter(names).items() if uses > 1]
    if twice:
        raise ValueError(f"{path}: names {twice[0]} twice")
    return names


def draw(languages: Sequence[str], seed: int, name: str) -> str:
    """Draw the language for the record `name`: each equally likely, the same in every run."""
    digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
    return languages[int.from_bytes(digest[:8], "big") % len(languages)]


def is_name_of(name: str, language: str) -> bool:
    """Whether a name is that of the language, perhaps in short: "Chinese" for "Chinese (Simplified)"."""
    words = set(re.findall(r"\w+", name.casefold()))
    return bool(words) and words <= set(re.findall(r"\w+", language.casefold()))


def misfit(text: str, language: str) -> str | None:
    """Return why a text cannot be in a language, or None if it may be.

    It recognizes wrong scripts, and English: the usual mistakes of a model. It does not distinguish Danish from
    Norwegian. For a language that is not in the list it recognizes English alone.
    """
    scripts = {"LATIN"} if language == "English" else SCRIPTS.get(language)
    letters = [unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha()]
    if not letters:
        return "there is no letter in it"
    if scripts:
        share = sum(letter in scripts for letter in letters) / len(letters)
        if share < (LEAST_LATIN_SHARE if "LATIN" in scripts else LEAST_SHARE):
            most = Counter(letters).most_common(1)[0][0]
            return f"it is written in {most.capitalize()} script"
    words = re.findall(r"[^\W\d_]+", text.casefold())
    common = [word for word in words if word in _COMMON]
    if language != "English" and len(_ENGLISH & set(words)) > 1 and len(common) > _ENGLISH_SHARE * len(words):
        return "it is English"
    return None
