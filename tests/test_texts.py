"""Which words of a record CLaMP 2 is trained on."""

import io
import json
import logging
import random
import shutil
import time
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

import config
from files import InputError
from helpers import KIT
from hub import serving
from records import Jsonl, choose_text, fixed_text, is_blank, metadata_lines, summaries
from texts import join_lines, load_text_config, load_text_model, read_text, text_lines, tokenize

RECORD = {
    "title": "Morrison's",
    "composer": None,
    "genres": ["Folk", "Dance"],
    "description": "A jig.\nA fast one.\n\nA jig.",
    "lyrics": None,
    "tags": [],
    "ensembles": ["Duo"],
    "instruments": ["Fiddle", "Flute", "Folk"],
    "summary_en": "An Irish jig.",
    "summary_nen": {"language": "French", "summary": "Une gigue."},
    "filepaths": ["a.abc"],
}
LINES = ["Morrison's", "Folk", "Dance", "A jig.", "A fast one.", "Duo", "Fiddle", "Flute"]


NOTHING = (None, "None", " None ", "", " \n", [])


@pytest.mark.parametrize("value", NOTHING)
def test_a_field_that_does_not_apply(value):
    """In any of the ways of saying so, a field is as if it were missing."""
    assert is_blank(value) and not is_blank("none") and not is_blank(["x"])
    for field in ("title", "genres", "summary_en", "summary_nen"):
        for given in (value, [value], [value, value]):
            blank, missing = RECORD | {field: given}, {k: v for k, v in RECORD.items() if k != field}
            for read in (metadata_lines, fixed_text, lambda record: choose_text(record, random.Random(1))):
                assert read(blank) == read(missing), (field, given)
    assert summaries({"language": "None", "summary": value}) == summaries([{"summary": value}, value]) == []
    assert summaries([value, "One."]) == ["One."]
    assert metadata_lines({"genres": ["Folk", value, "Dance"]} if value != [] else {"genres": ["Folk", "Dance"]}) == [
        "Folk",
        "Dance",
    ]


def test_metadata_lines():
    assert metadata_lines(RECORD) == LINES
    assert metadata_lines({"title": "x", "genres": None, "tags": [3, "y"], "summary_en": "z"}) == ["x", "y"]


@pytest.mark.parametrize(
    "field", ["title", "composer", "genres", "description", "lyrics", "tags", "ensembles", "instruments"]
)
def test_each_field_of_the_metadata_is_text(field):
    assert metadata_lines({field: "a\n b \n\na"}) == metadata_lines({field: ["a", " b \n", None, "a"]}) == ["a", "b"]


@pytest.mark.parametrize("field", ["summary_en", "summary_nen", "filepaths", "key", "language", "Title"])
def test_no_other_field_is_metadata(field):
    assert metadata_lines({"title": "x", field: "a"}) == ["x"]


def test_summaries_in_both_forms():
    assert summaries(" \n") == summaries({"summary": " "}) == summaries([3, {}, {"summary": ["un"]}]) == []
    assert summaries("one") == summaries(["one", None, ""]) == ["one"]
    assert summaries({"language": "French", "summary": "un"}) == ["un"]
    assert summaries([{"summary": "un"}, {"language": "German", "summary": "eins"}]) == ["un", "eins"]
    assert summaries(None) == summaries({"language": None, "summary": None}) == []


def test_what_is_missing_is_made_up_for():
    rng = random.Random(0)
    for _ in range(50):
        assert choose_text({"title": "x"}, rng) == ["x"]
        assert choose_text({"summary_en": "s"}, rng) == ["s"]
        assert choose_text({"title": None, "genres": []}, rng) == []


def test_text_lines_are_deduplicated_in_their_order(tmp_path):
    assert text_lines("b\na\n\nb\n  \nc") == ["b", "a", "c"]
    assert text_lines(" a\u2028b\x0c\na") == [" a\u2028b\x0c", "a"]  # split at newlines, and otherwise as they are
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffb\r\na\r\nb".encode())
    assert read_text(path) == ["b", "a"]


@pytest.mark.parametrize(("data", "problem"), [(b"", "empty"), (b" \n\n ", "empty"), (b"\xff\xfea", "not UTF-8")])
def test_bad_text_files(tmp_path, data, problem):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.txt: .*{problem}"):
        read_text(path)


def test_tokens():
    tokenizer = AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")
    text = join_lines(["one line", "another line"], tokenizer)
    assert text == "one line</s>another line"
    assert join_lines(["one", "two"], SimpleNamespace(sep_token=None)) == "one\ntwo"  # a tokenizer without a separator
    whole = tokenize(text, tokenizer)
    assert whole[0] == tokenizer.bos_token_id and whole[-1] == tokenizer.eos_token_id
    assert (whole == tokenizer.sep_token_id).sum() == 2 and whole.dtype == np.int64


def test_a_text_model_without_a_pooler_is_loaded_and_one_without_a_layer_is_not(tmp_path, monkeypatch):
    """Published checkpoints of text models lack the pooler, and hold a head that is not ours."""
    folder = tmp_path / "model"
    shutil.copytree(KIT / "tiny-xlmr", folder)
    monkeypatch.setattr(config, "TEXT_MODEL_NAME", str(folder))
    weights = load_file(folder / "model.safetensors")
    weights = {f"roberta.{name}": value for name, value in weights.items() if not name.startswith("pooler.")}
    weights["lm_head.bias"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    handler = logging.StreamHandler(io.StringIO())  # the library's own writes to the stderr of its import
    transformers_logging.add_handler(handler)
    model = load_text_model()
    transformers_logging.remove_handler(handler)
    assert handler.stream.getvalue() == ""
    assert torch.equal(model.embeddings.word_embeddings.weight, weights["roberta.embeddings.word_embeddings.weight"])
    del weights["roberta.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights .* \(the first: encoder\.layer\.1\.output\.dense\.weight\)"):
        load_text_model()


def test_jsonl_is_read_by_byte_offsets(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"title": "é" * i, "filepaths": [f"{i}.abc"]} for i in range(50)]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    for end in ("", "\n"):
        path.write_text(text + end, encoding="utf-8")
        records = Jsonl(path)
        assert len(records) == 50 and [records[i] for i in range(50)] == lines
        assert records.starts.itemsize == records.lines.itemsize == 8


def test_a_long_jsonl_file_is_read_in_blocks(tmp_path):
    """Records across the ends of blocks of 16 MiB."""
    path = tmp_path / "a.jsonl"
    lines = [{"title": f"{number} " + "x" * (6 << 20), "filepaths": ["a.abc"]} for number in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = Jsonl(path)
    assert len(records) == 3 and all(records[number] == line for number, line in enumerate(lines))


def test_a_jsonl_file_may_begin_with_a_byte_order_mark_and_have_line_ends_of_windows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes("\ufeff".encode() + b'{"filepaths": ["a.abc"]}\r\n{"filepaths": ["b.abc"]}\r\n')
    records = Jsonl(path)
    assert [records[number]["filepaths"] for number in range(len(records))] == [["a.abc"], ["b.abc"]]


@pytest.mark.parametrize("name", ["..a.abc", "a..abc", "x/../b.abc", "x/..y/b.abc", "./a.abc"])
def test_paths_within_the_folder(tmp_path, name):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"filepaths": [name]}))
    assert Jsonl(path)[0]["filepaths"] == [name]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"title": "\\ud83d", "filepaths": ["a.abc"]}', "half of a surrogate pair"),
        ("{'title': 'x', 'filepaths': ['a.abc']}", "Python's notation, not JSON: write null for None, and double"),
        ('{"title": None, "filepaths": ["a.abc"]}', "Python's notation, not JSON"),
        ("None", "not JSON [(]Expecting value"),
        ("{'title': '" + "x" * 2**20 + "'}", "not JSON [(]Expecting property name"),  # too long to be tried as Python
        ("[1]", "not a JSON object, but a list"),
        ('{"filepaths": ["a\\u0000.abc"]}', "has a NUL in it"),
        ('{"title": "x"}', "`filepaths` is not a list"),
        ('{"filepaths": "a.abc"}', "`filepaths` is not a list"),
        ('{"filepaths": []}', "`filepaths` is not a list"),
        ('{"filepaths": ["a.abc", "../b.abc"]}', "leaves the folder"),
        ('{"filepaths": ["x/../../b.abc"]}', "leaves the folder"),
        ('{"filepaths": ["/etc/passwd"]}', "leaves the folder"),
    ],
)
def test_bad_records(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_text('{"filepaths": ["a.abc"]}\n' + line + "\n")
    records = Jsonl(path)
    assert records[0] == {"filepaths": ["a.abc"]}
    with pytest.raises(InputError, match=rf"a\.jsonl, line 2: .*{problem}"):
        records[1]


def test_blank_lines_are_no_records_and_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        "",
        '{"filepaths": ["1.abc"]}',
        "   ",
        "",
        '{"filepaths": ["2.abc"]}',
        "{bad",
        "\t",
        '{"filepaths": ["3.abc"]}',
        "",
    ]
    path.write_text("\n".join(lines) + "\n")
    records = Jsonl(path)
    assert len(records) == 4
    assert [records[i]["filepaths"] for i in (0, 1, 3)] == [["1.abc"], ["2.abc"], ["3.abc"]]
    assert [records.where(i) for i in range(4)] == [f"{path}, line {number}" for number in (2, 5, 6, 8)]
    with pytest.raises(InputError, match=r"a\.jsonl, line 6: not JSON"):
        records[2]


@pytest.mark.parametrize(
    "text", ['[{"title": "x"}]', '\ufeff[{"title": "x"}]', '\n [\n{"title": "x"},\n{"title": "y"}\n]\n', "[]"]
)
def test_a_json_array_is_one_error(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.jsonl: a JSON array; write one object a line"):
        Jsonl(path)


def test_paths_that_do_not_apply_are_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"filepaths": [null, "a.abc", "None", ""]}\n{"filepaths": ["None", null]}\n')
    records = Jsonl(path)
    assert records[0] == {"filepaths": ["a.abc"]}
    with pytest.raises(InputError, match="line 2: `filepaths` is not a list of paths: there is none in it"):
        records[1]


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Loads the configuration of a text model from a hub that has one, `kit/text`, or from where there is none."""
    files = {f"kit/text/{path.name}": path.read_bytes() for path in (KIT / "tiny-xlmr").iterdir()}
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it tries again and again"))
    with serving(files) as hub:

        def ask(name, url=hub.url):
            monkeypatch.setattr(config, "TEXT_MODEL_NAME", name)
            template = url + "/{repo_id}/resolve/{revision}/{filename}"
            constants = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(tmp_path)}
            for constant, value in (constants | {"HF_HUB_OFFLINE": False}).items():
                monkeypatch.setattr(huggingface_hub.constants, constant, value)
            return load_text_config().model_type

        yield ask


def test_a_text_model_of_the_hub_with_the_network_and_without(ask):
    nowhere = "http://127.0.0.1:9"
    with pytest.raises(InputError, match=rf"'kit/text' cannot be loaded \(.* {nowhere} .*check the network"):
        ask("kit/text", nowhere)
    assert ask("kit/text") == "xlm-roberta"
    assert ask("kit/text", nowhere) == "xlm-roberta"  # it is kept here now
    with pytest.raises(InputError, match=r"'kit/none' cannot be loaded \((?!.*(network|Client Error))"):
        ask("kit/none")  # which the hub does not know
