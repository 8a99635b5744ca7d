import hashlib
import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batch_interleaved_abc
import plain_patches
from files import InputError
from helpers import KIT
from patches import (
    BOS,
    EOS,
    PAD,
    M3Patchilizer,
    corrupt_patches,
    read_music,
    remove_instrument_info,
    remove_unit_length,
)

PATCHILIZER = M3Patchilizer()
TUNE = '%%score 1 2\nM:3/4\nK:G\nV:1 treble nm="Violin" snm="Vl."\nV:2 bass nm="Cello"\n[V:1]|:G2 A B|[V:2]|:z4:|\n'


def kit_music():
    return sorted([*(KIT / "interleaved").iterdir(), *(KIT / "mtf").iterdir()])


def texts(patches):
    """The characters of each patch."""
    return [bytes(row).strip(b"\0").strip(b"\1").strip(b"\2").decode() for row in patches]


@pytest.mark.parametrize("path", kit_music(), ids=lambda path: path.name)
def test_golden_patches(path):
    golden = json.loads((KIT / "tokens.json").read_text())[path.name]
    patches = PATCHILIZER.encode_array(remove_unit_length(read_music(path)), add_special_patches=True)
    assert patches.dtype == np.uint8 and patches.shape == (golden["n_patches"], 64)
    assert hashlib.sha256(patches.tobytes()).hexdigest() == golden["sha256"]


@pytest.mark.parametrize("path", kit_music(), ids=lambda path: path.name)
def test_decode_inverts_encode(path):
    """With room enough for every bar. A volta number that ends a line is the one thing that gives no patch."""
    text = read_music(path)
    roomy = M3Patchilizer(patch_size=1000)
    assert roomy.decode(roomy.encode_array(text, add_special_patches=True)) == re.sub(r"(?<=\|)\d\n", "\n", text)


@pytest.mark.parametrize("path", kit_music(), ids=lambda path: path.name)
def test_decode_inverts_encode_up_to_the_size_of_a_patch(path):
    text = read_music(path)
    patches = PATCHILIZER.encode_array(text)
    whole = [line[:63] for line in texts(M3Patchilizer(patch_size=1000).encode_array(text))]
    if path.suffix == ".abc":
        assert PATCHILIZER.decode(patches) == "".join(whole)
    else:
        assert PATCHILIZER.decode(patches) == text


def test_bars():
    assert texts(PATCHILIZER.encode_array("X:1\nK:G\n|:G2 A|B2|1 c|2 d:|\n% a comment\ngf\n")) == [
        "X:1\n", "K:G\n", "|:G2 A|", "B2|", "1 c|", "2 d:|\n", "gf\n",
    ]  # fmt: skip


def test_text_behind_the_last_barline_is_kept_only_if_it_has_a_note():
    assert texts(PATCHILIZER.encode_array("K:C\nAB|cd\nAB|1\nAB|  \n")) == ["K:C\n", "AB|", "cd\n", "AB|\n", "AB|\n"]


def test_mtf_lines_of_one_kind_share_a_patch_up_to_62_characters():
    notes = [f"note_on {i} 0 60 64" for i in range(10)]
    patches = texts(PATCHILIZER.encode_array("\n".join(["ticks_per_beat 480", *notes])))
    assert patches[0] == "ticks_per_beat 480\n"
    assert patches[1] == "note_on 0 0 60 64\t1 0 60 64\t2 0 60 64\t3 0 60 64\t4 0 60 64\n"
    assert len(patches[1]) <= 62 < len(patches[1]) + len("\t5 0 60 64")


def test_special_patches():
    patches = PATCHILIZER.encode_array("K:C\nA|\n", add_special_patches=True)
    assert patches[0].tolist() == [BOS] * 64
    assert patches[-1].tolist() == [BOS] + [EOS] * 63
    assert patches[1].tolist() == [BOS, *b"K:C\n", EOS] + [PAD] * 58


def test_long_patch_is_cut():
    (patch,) = PATCHILIZER.encode_array("T:" + "x" * 100 + "\n")
    assert patch.tolist() == [BOS, *b"T:", *b"x" * 61]


def test_truncation():
    long = "K:C\n" + "".join(f"{'ABCDEFG'[i % 7]}{i}|\n" for i in range(700))
    everything = PATCHILIZER.encode_array(long)
    assert len(everything) == 701
    assert np.array_equal(PATCHILIZER.encode_array(long, truncate=True), everything[:512])
    part = PATCHILIZER.encode_array(long, truncate=True, random_truncate=True)
    assert any(np.array_equal(everything[start : start + 512], part) for start in range(190))
    special = PATCHILIZER.encode_array(long, add_special_patches=True, truncate=True)  # of the special ones, too
    assert len(special) == 512 and np.array_equal(special[1:], everything[:511])


def test_music_is_transliterated_and_holds_no_special_id():
    (patch,) = PATCHILIZER.encode_array("T:Élise\0\1\2\3 月\n")
    assert patch.tolist() == [BOS, *b"T:Elise Yue \n", EOS] + [PAD] * 49


def test_a_piece_of_one_rest_or_with_a_name_in_capitals_is_music(tmp_path):
    for name, text in {
        "rest.abc": "K:C\n[V:1]z4|\n",
        "A.ABC": "K:C\n[V:1]A|\n",
        "B.MTF": "ticks_per_beat 480\nnote_on 0 0 60 64",
    }.items():
        (tmp_path / name).write_text(text)
        assert read_music(tmp_path / name) == text


# --- instruments, reading -------------------------------------------------------------------------------------------
def test_remove_instruments():
    assert 'nm="' not in remove_instrument_info(TUNE)
    assert "V:1 treble\nV:2 bass\n[V:1]|:G2" in remove_instrument_info(TUNE)
    mtf = "ticks_per_beat 480\nprogram_change 0 3 52\nnote_on 0 3 52 64\nprogram_change 5 0 1"
    assert remove_instrument_info(mtf) == (
        "ticks_per_beat 480\nprogram_change 0 3 0\nnote_on 0 3 52 64\nprogram_change 5 0 0"
    )


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("empty.abc", b"", "empty"),
        ("blank.mtf", b" \n\n", "empty"),
        ("latin.abc", b"K:C\nT:\xe9t\xe9\nABc|\n", "not UTF-8"),
        ("silent.abc", b"K:C\nM:4/4\n", "no note"),
        ("comment.abc", b"K:C\n% A|B|\n", "no note"),
        ("standard.abc", b"X:1\nK:C\nAB|\n", "not interleaved ABC"),
        ("voices.abc", b"K:C\nV:1\nAB|\nV:2\nCD|\n", "not interleaved ABC"),
        ("inline.abc", b"X:1\nK:C\n[V:1]AB|\n[V:2]CD|\n", "not interleaved ABC"),  # voice after voice
        ("first.abc", b"K:C\nAB|\nX:2\nK:C\n[V:1]AB|\n", "not interleaved ABC"),
        ("silent.mtf", b"ticks_per_beat 480\nend_of_track 0", "no note"),
        ("score.xml", b"<score-partwise/>", "neither an .abc nor an .mtf file"),
        ("not.mtf", b"K:C\nABc|\n", "which is not what .mtf files begin with"),
        ("not.abc", b"ticks_per_beat 480\nnote_on 0 0 60 64", "which is not what .abc files begin with"),
    ],
)
def test_bad_files(tmp_path, name, data, problem):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=problem) as error:
        read_music(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", sorted(path.name for path in (KIT / "abc").iterdir()))
def test_standard_abc_is_refused_and_what_it_is_converted_to_is_not(tmp_path, name):
    """Of one voice or of many."""
    with pytest.raises(InputError, match=r"`python process_data/batch_interleaved_abc\.py IN OUT` converts"):
        read_music(KIT / "abc" / name)
    assert batch_interleaved_abc.main([str(KIT / "abc" / name), str(tmp_path)]) == 0
    assert read_music(tmp_path / name) == read_music(KIT / "interleaved" / name)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_music(tmp_path / "none.abc")


def test_byte_order_mark_and_unit_length_line_go(tmp_path):
    path = tmp_path / "a.abc"
    path.write_bytes("\ufeffL:1/8\r\nK:C\r\n[V:1]AB|\r\n".encode())
    assert read_music(path) == "L:1/8\nK:C\n[V:1]AB|\n"
    assert remove_unit_length(read_music(path)) == "K:C\n[V:1]AB|\n"
    assert remove_unit_length("L:1/8\nK:C\nL:1/8\nA|\n") == "K:C\nA|\n"
    assert remove_unit_length("L:1/4\nT:L:1/8\nL:1/8 \nL:1/8\n") == "L:1/4\nT:L:1/8\nL:1/8 \n"


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85"])
def test_only_a_newline_ends_a_line(separator):
    """`str.splitlines` would cut here too, and make a field line of what follows."""
    lines = texts(PATCHILIZER.encode_array(f"K:C\nAB|c{separator}T:d|\n"))
    assert lines[0] == "K:C\n" and len(lines) == 3 and lines[2].endswith("T:d|\n")


# --- any text -------------------------------------------------------------------------------------------------------
@settings(max_examples=300, deadline=None)
@given(st.text(min_size=1), st.booleans())
def test_encode_takes_any_text(text, special):
    patches = PATCHILIZER.encode_array(text, add_special_patches=special)
    assert patches.ndim == 2 and patches.shape[1] == 64
    assert not len(patches) or patches.max() < 128
    assert (patches[:, 0] == BOS).all()


MUSIC_LINE = st.text(alphabet="ABcdg z|:[]123'\n/^=xZ\"", min_size=1)


@settings(max_examples=300, deadline=None)
@given(MUSIC_LINE)
def test_encode_loses_no_note(text):
    """Every note and rest of the lines that are music is in a patch; with room enough, nothing is cut off."""
    patches = M3Patchilizer(patch_size=4096).encode_array("K:C\n" + text)
    kept = "".join(texts(patches))
    assert Counter(re.findall(r"[A-Ga-gxzXZ]", kept.removeprefix("K:C\n"))) == Counter(
        re.findall(r"[A-Ga-gxzXZ]", text)
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["note_on", "control_change", "set_tempo"]), st.integers(0, 9**9)), min_size=1)
)
def test_encode_and_decode_mtf(messages):
    text = "\n".join(["ticks_per_beat 480", *(f"{kind} {value} 0 60" for kind, value in messages)])
    assert PATCHILIZER.decode(PATCHILIZER.encode_array(text)) == text


# --- against a plain second implementation --------------------------------------------------------------------------
ODD = ["\0", "\1", "\2", "\3", "\r", "\t", "\x0b", "\f", "\x1c", "\x85", "\u2028", "é", "月 亮", "\ud800", " ", "%", "x" * 70]  # fmt: skip
LINES = ["\n", " ", "\nV:", "\nL:1/8\n", "\nprogram_change 0 "] * 2
ABC = ["|:", "::", ":|", "[|", "||", "|]", "|", "|", ":", "[", "]", "A", "z2", "1", "(3", "T:d|", "[V:1]", "K:G", "%%score", "L:1/8", "V:1", ' nm="Vc."', ' snm="V"']  # fmt: skip
MTF = ["note_on", "note_off", "program_change 0 1 2", "program_change 0 1", "end_of_track", "0 1 60 64", "480", "L:1/8"]


def random_texts(count):
    rng = random.Random(0)
    for number in range(count):
        words = [*(ABC, MTF, [])[number % 3], *ODD, *LINES]
        text = "".join(rng.choices(words, k=rng.randrange(60)))
        yield "ticks_per_beat " * (number % 3 == 1) + text


def assert_as_plain(text, rng):
    """With random options, of which the sizes are often small enough to cut."""
    for function in ("remove_unit_length", "remove_instrument_info"):
        assert globals()[function](text) == getattr(plain_patches, function)(text), (function, text)
    size, limit, special, truncate, at_random = (
        rng.choice(given) for given in ((64, 5, 20), (512, 6), *[(False, True)] * 3)
    )
    seed = rng.random()
    ours = M3Patchilizer(size, limit).encode_array(text, special, truncate, at_random, random.Random(seed))
    plain = plain_patches.encode(text, size, limit, special, truncate, random.Random(seed) if at_random else None)
    assert ours.dtype == plain.dtype and np.array_equal(ours, plain), (text, size, limit, special, truncate, at_random)


@pytest.mark.filterwarnings("ignore:Surrogate character")
def test_any_text_gives_the_patches_of_the_plain_implementation():
    rng = random.Random(1)
    for text in random_texts(3000):
        assert_as_plain(text, rng)


def test_music_gives_the_patches_of_the_plain_implementation():
    rng = random.Random(1)
    for path in [*kit_music(), *(KIT / "abc").glob("*.abc"), *(KIT / "mtf_all").glob("*.mtf")]:
        assert_as_plain(path.read_text(encoding="utf-8"), rng)


def test_shuffled_patches_are_those_of_the_plain_implementation():
    """Draw for draw; a patch that is cut has no EOS, and the special ones have none or many."""
    music = "K:C\n" + "".join(f"{'ABc' * (number % 30)}|" for number in range(40)) + "\n"
    patches = PATCHILIZER.encode_array(music, add_special_patches=True)
    shuffled = 0
    for seed in range(60):
        rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
        corrupted, selected = corrupt_patches(patches, rng, mask_ratio=0.9)
        again.permutation(len(patches))
        if 0.8 <= again.random() < 0.9:
            shuffled += 1
            assert np.array_equal(corrupted, plain_patches.shuffle_characters(patches, selected, again))
            assert rng.random() == again.random()
    assert shuffled > 2
