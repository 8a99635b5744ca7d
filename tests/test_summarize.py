"""Summaries: what is asked, what is made of the answers, and what the command line takes."""

import json
import re
import subprocess
import sys

import pytest

import chat_server
import gpt4_summarize
import prompts
from chat_server import (
    ENGLISH,
    IN_OTHER,
    KEY,
    SCRIPTS,
    arguments,
    asked,
    assert_key_is_nowhere,
    completion,
    errors,
    good,
    read_tree,
    run,
    status,
    write_records,
)

place, serve = chat_server.place, chat_server.serve  # fixtures


# --- what is asked, and what is written ------------------------------------------------------------------------------

JIG = {
    "instruments": ["fiddle", None],
    "year": 1850,
    "title": "The Humours",
    "composer": "None",
    "genres": ["jig"],
    "lyrics": None,
    "tags": [],
    "filepaths": ["abc/a.abc", "mtf/a.mtf"],
}


def test_records_are_completed_and_nothing_else_in_them_changes(place, serve, capsys):
    server = serve()
    write_records(place / "in", JIG | {"at": "book/one/a.json"}, {"title": "Naïve ☃ 曲"})
    (place / "in" / "notes.txt").write_text("not a record")
    assert run(place, server) == 0

    out = read_tree(place / "out")
    assert set(out) == {"book/one/a.json", "Naïve ☃ 曲.json"}
    record = out["book/one/a.json"]
    fields = "title composer genres description lyrics tags ensembles instruments summary_en summary_nen filepaths"
    assert list(record) == [*fields.split(), "year"]
    assert {field: record[field] for field in JIG} == JIG
    assert record["description"] is record["ensembles"] is None
    assert record["summary_en"] == ENGLISH
    language = record["summary_nen"]["language"]
    assert record["summary_nen"] == {"language": language, "summary": IN_OTHER[language]}

    request = next(request for request in server.requests if request["title"] == "The Humours")
    assert request["key"] == f"Bearer {KEY}" and request["path"] == "/v1/chat/completions" and request["model"] == "m"
    assert json.loads(asked(request)[1]) == {"title": "The Humours", "genres": ["jig"], "instruments": ["fiddle"]}
    assert request["response_format"]["type"] == "json_schema"
    printed = capsys.readouterr().out
    assert "200 tokens in, 20 out" in printed and "year (1 records)" in printed
    assert "2 done (0 of them" in printed and "1 other files ignored" in printed


def test_what_was_answered_is_not_asked_again(place, serve, capsys):
    server = serve()
    write_records(place / "in", *({"title": f"Tune {number}", "filepaths": ["a.abc"]} for number in range(5)))
    assert run(place, server) == 0
    before = read_tree(place / "out")
    (place / "out" / "Tune 1.json").unlink()  # lost
    write_records(place / "in", {"title": "Tune 2", "genres": ["reel"], "filepaths": ["a.abc"]})  # more is known
    write_records(place / "in", {"title": "Tune 3", "filepaths": ["b.mtf"]})  # nothing that the model is told
    (place / "out" / "Tune 4.json").write_text('{"title": "Tune')  # damaged
    assert run(place, server, "--seed", 7) == 0
    assert server.counts == {"Tune 0": 1, "Tune 1": 2, "Tune 2": 2, "Tune 3": 1, "Tune 4": 2}
    after = read_tree(place / "out")
    assert after["Tune 3.json"] == before["Tune 3.json"] | {"filepaths": ["b.mtf"]}
    assert after["Tune 2.json"]["genres"] == ["reel"]
    assert "3 done (0 of them without summaries: too little is known), 2 skipped" in capsys.readouterr().out


def test_summaries_that_are_there_stay(place, serve):
    server = serve()
    other = {"language": "Welsh", "summary": "Alaw draddodiadol."}
    write_records(place / "in", {"title": "both", "summary_en": "Mine.", "summary_nen": other})
    write_records(place / "in", {"title": "one", "summary_en": ["Mine.", "Mine too."]})
    assert run(place, server) == 0
    out = read_tree(place / "out")
    assert server.counts == {"one": 1}
    assert (out["both.json"]["summary_en"], out["both.json"]["summary_nen"]) == ("Mine.", other)
    assert out["one.json"]["summary_en"] == ["Mine.", "Mine too."]
    assert out["one.json"]["summary_nen"]["language"] in IN_OTHER


def test_too_little_known_is_an_outcome(place, serve, capsys):
    server = serve(lambda title, count, request: {"sufficient": False, "summary_en": "", "summary_nen": None})
    write_records(place / "in", {"title": "No. 3"}, {"title": None, "tags": ["None", " "], "at": "empty.json"})
    assert run(place, server) == 0
    assert server.counts == {"No. 3": 1}  # of the other there is nothing to tell
    out = read_tree(place / "out")
    assert all(record["summary_en"] is None and record["summary_nen"] is None for record in out.values())
    assert "2 done (2 of them without summaries" in capsys.readouterr().out
    named = [json.loads(line)["file"] for line in (place / "out" / "warnings.jsonl").read_text().splitlines()]
    assert named == ["No. 3.json", "empty.json"]
    assert run(place, server) == 0 and server.counts == {"No. 3": 1}


def test_lines_of_a_jsonl_file(place, serve):
    server = serve()
    lines = [json.dumps({"title": f"Tune {number}"}) for number in range(3)]
    (place / "set.jsonl").write_text("\n".join([*lines, "", '{"title": 5}', "{"]))
    argv = arguments(place, server)
    argv[0] = str(place / "set.jsonl")
    assert gpt4_summarize.main(argv) == 1
    out = read_tree(place / "out")
    assert {name: record["title"] for name, record in out.items()} == {
        f"set/000000{number}.json": f"Tune {number - 1}" for number in (1, 2, 3)
    }
    assert set(errors(place / "out")) == {"set.jsonl:5", "set.jsonl:6"}
    assert "`title`" in errors(place / "out")["set.jsonl:5"]
    assert gpt4_summarize.main(argv) == 1 and sum(server.counts.values()) == 3


def test_bad_records_are_named_and_cost_no_request(place, serve):
    server = serve()
    write_records(place / "in", {"title": "good"}, {"title": "bad", "genres": {"a": 1}})
    (place / "in" / "list.json").write_text('[{"title": "x"}]')
    (place / "in" / "latin.json").write_bytes('{"title": "é"}'.encode("latin-1"))
    (place / "in" / "deep.json").write_text("[" * 100_000)
    (place / "in" / "gone.json").symlink_to("nowhere")
    assert run(place, server) == 1
    assert server.counts == {"good": 1}
    said = errors(place / "out")
    assert set(said) == {"bad.json", "list.json", "latin.json", "deep.json", "gone.json"}
    assert "`genres`" in said["bad.json"] and "not a JSON object, but a list" in said["list.json"]


def test_text_that_utf8_cannot_hold(place, serve):
    """JSON can say half of a surrogate pair; it must not stop a run, and not be lost."""

    def behave(title, count, request):
        return json.dumps(good(request)).replace("lively", "lively \\ud83d")

    server = serve(behave)
    (place / "in").mkdir()
    (place / "in" / "a.json").write_text('{"title": "half \\ud83d", "tags": ["\\ud83d\\ude00"]}')
    assert run(place, server) == 0
    record = json.loads((place / "out" / "a.json").read_text())
    assert record["title"] == "half \ud83d" and record["tags"] == ["😀"]
    assert record["summary_en"] == ENGLISH.replace("lively", "lively ?")


def test_long_fields_are_cut_in_the_prompt_only(place, serve):
    server = serve()
    write_records(place / "in", {"title": "long", "lyrics": "la " * 30_000, "tags": ["x" * 3000, "y" * 3000, "z"]})
    assert run(place, server) == 0
    told = json.loads(asked(server.requests[0])[1])
    assert len(told["lyrics"]) == prompts.LONGEST_FIELD
    assert [len(tag) for tag in told["tags"]] == [3000, prompts.LONGEST_FIELD - 3000]
    assert read_tree(place / "out")["long.json"]["lyrics"] == "la " * 30_000
    assert "of 90000 characters" in (place / "out" / "warnings.jsonl").read_text()


def test_a_restart_asks_for_the_same_language(place, serve):
    server = serve(lambda title, count, request: status(400) if count < 3 else good(request))
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(12)))
    for _ in range(3):
        run(place, server)
    by_title = {}
    for request in server.requests:
        by_title.setdefault(request["title"], set()).add(asked(request)[0])
    assert all(len(found) == 1 for found in by_title.values())
    assert set.union(*by_title.values()) == set(IN_OTHER)


# --- answers that cannot be used -------------------------------------------------------------------------------------


def wrapped(before, after):
    return lambda request: before + json.dumps(good(request)) + after


def changed(**fields):
    return lambda request: good(request) | fields


def other(**fields):
    return lambda request: good(request) | {"summary_nen": good(request)["summary_nen"] | fields}


USABLE = {
    "fenced": wrapped("```json\n", "\n```"),
    "prose around": wrapped("Sure! Here {as you wish} it is:\n\n", "\n\nAnything else?"),
    "thoughts": wrapped('<think>Maybe {"sufficient": false}?</think>', ""),
    "newlines in strings": lambda request: json.dumps(good(request)).replace(". Its", ".\n Its"),
    "sufficient not said": lambda request: {key: good(request)[key] for key in ("summary_en", "summary_nen")},
}
UNUSABLE = {
    "prose": lambda request: "This is a lively Irish jig in D major.",
    "empty": lambda request: "",
    "cut off": lambda request: json.dumps(good(request))[:-20],
    "a list": lambda request: "[1, 2]",
    "no summary": changed(summary_en=" "),
    "null summary": other(summary=None),
    "no second summary": changed(summary_nen="Une gigue."),
    "another language said": other(language="Danish"),
    "no language said": other(language=None),
    "English for other": other(summary=ENGLISH + " Very much so."),
    "other for English": changed(summary_en=IN_OTHER["Japanese"]),
    "key in the answer": changed(summary_en=f"{ENGLISH} {KEY}"),
}


def test_answers_are_found_in_what_surrounds_them(place, serve):
    server = serve(lambda title, count, request: USABLE[title](request))
    write_records(place / "in", *({"title": kind} for kind in USABLE))
    assert run(place, server) == 0
    assert server.counts == dict.fromkeys(USABLE, 1)
    for name, record in read_tree(place / "out").items():
        assert record["summary_en"].split() == ENGLISH.split(), name


def test_an_answer_in_parts(place, serve):
    def behave(title, count, request):
        parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": json.dumps(good(request))}]
        return lambda handler: handler.say(200, completion(parts))

    write_records(place / "in", {"title": "a"})
    assert run(place, serve(behave)) == 0
    assert read_tree(place / "out")["a.json"]["summary_en"] == ENGLISH


def test_unusable_answers_are_asked_for_twice_more(place, serve):
    server = serve(lambda title, count, request: UNUSABLE[title](request) if count < 3 else good(request))
    write_records(place / "in", *({"title": kind} for kind in UNUSABLE))
    assert run(place, server) == 0
    assert server.counts == dict.fromkeys(UNUSABLE, 3)
    assert {record["summary_en"] for record in read_tree(place / "out").values()} == {ENGLISH}
    for kind in UNUSABLE:
        said = [
            "could not be used" in request["messages"][-1]["content"]
            for request in server.requests
            if request["title"] == kind
        ]
        assert said == [False, True, True]


def test_after_three_unusable_answers_the_record_fails(place, serve, capfd):
    server = serve(lambda title, count, request: UNUSABLE.get(title, good)(request))
    write_records(place / "in", *({"title": title} for title in [*UNUSABLE, "fine"]))
    assert run(place, server) == 1
    assert server.counts == dict.fromkeys(UNUSABLE, 3) | {"fine": 1}
    assert set(read_tree(place / "out")) == {"fine.json"}
    said = errors(place / "out")
    assert set(said) == {f"{kind}.json" for kind in UNUSABLE}
    assert all("no usable answer in 3; the last: " in text for text in said.values())
    assert re.search("it is English|Latin script", said["English for other.json"])
    assert "is Danish" in said["another language said.json"]
    assert_key_is_nowhere(place, *capfd.readouterr())


def test_a_refusal_is_taken_for_an_answer(place, serve):
    refusals = {
        "refusal": completion(None, refusal=f"I will not, {KEY}."),
        "filter": {"choices": [{"finish_reason": "content_filter", "message": {"content": None}}]},
    }
    server = serve(lambda title, count, request: lambda handler: handler.say(200, refusals[title]))
    write_records(place / "in", *({"title": title} for title in refusals))
    assert run(place, server) == 1
    assert server.counts == {"refusal": 1, "filter": 1}
    said = errors(place / "out")
    assert said["refusal.json"] == "the model refused: I will not, [key]" and "content filter" in said["filter.json"]


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [3, 16])
def test_limit(place, serve, concurrency):
    server = serve()
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(9)))
    for expected in (4, 8, 9):
        assert run(place, server, "--limit", 4, "--concurrency", concurrency) == 0
        assert len(read_tree(place / "out")) == sum(server.counts.values()) == expected


def test_dry_run_asks_and_writes_nothing(place, serve, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve()
    write_records(
        place / "in", {"title": "Tune Ä", "composer": "None"}, {"title": "done"}, {"title": 3, "at": "b.json"}
    )
    write_records(place / "out", {"title": "done"})
    before = sorted(place.rglob("*"))
    assert run(place, server, "--dry_run", "--price", 2.5, 10) == 1  # one record cannot be asked for
    assert not server.requests and sorted(place.rglob("*")) == before
    printed = capsys.readouterr().out
    assert printed.count("Language: ") == 1 and '"title": "Tune Ä"' in printed and 'composer": ' not in printed
    assert "b.json: cannot be asked for" in printed and "1 of 3 records" in printed
    tokens_in, tokens_out = map(int, re.search(r"About (\d+) tokens in, (\d+) out", printed).groups())
    # The real numbers for these prompts, as GPT-4o's tokenizer counts, lie between four and five characters a token.
    assert 300 < tokens_in < 900 and tokens_out == 300
    assert f"About ${(tokens_in * 2.5 + tokens_out * 10) / 1e6:.2f}" in printed


def test_price_of_a_run(place, serve, capsys):
    def behave(title, count, request):
        answer = completion(json.dumps(good(request)))
        answer["usage"] = {"prompt_tokens": 400_000, "completion_tokens": 100_000}
        return lambda handler: handler.say(200, answer)

    server = serve(behave)
    write_records(place / "in", {"title": "a"}, {"title": "b"})
    assert run(place, server, "--price", 2.5, 10) == 0
    assert "800000 tokens in, 200000 out: $4.00" in capsys.readouterr().out


WRONG = {
    "no model": (["in", "out"], "--model"),
    "no input": (["nowhere", "out", "--model", "m"], "nowhere"),
    "empty input": (["empty", "out", "--model", "m"], "no .json"),
    "output in input": (["in", "in/out", "--model", "m"], "inside"),
    "no address": (["in", "out", "--model", "m", "--base_url", "localhost:8000"], "http://"),
    "no host": (["in", "out", "--model", "m", "--base_url", "http:///v1"], "http:///v1"),
    "no port": (["in", "out", "--model", "m", "--base_url", "http://localhost:99999/v1"], "99999"),
    "concurrency": (["in", "out", "--model", "m", "--concurrency", "0"], "positive"),
    "no languages": (["in", "out", "--model", "m", "--languages", "empty.txt"], "no language"),
    "English": (["in", "out", "--model", "m", "--languages", "english.txt"], "names English"),
    "merge into what": (["in", "out", "--merge", "train.json"], ".jsonl"),
    "no key": (["in", "out", "--model", "m"], "OPENAI_API_KEY"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_use_is_said_before_anything_is_asked(place, kind, monkeypatch, capsys):
    monkeypatch.chdir(place)
    write_records(place / "in", {"title": "a"})
    (place / "empty").mkdir()
    (place / "empty.txt").write_text("# none\n")
    (place / "english.txt").write_text("French\nEnglish\n")
    if kind == "no key":
        monkeypatch.delenv("OPENAI_API_KEY")
    argv, said = WRONG[kind]
    with pytest.raises(SystemExit) as caught:
        gpt4_summarize.main(argv)
    assert caught.value.code == 2 and said in capsys.readouterr().err
    assert not (place / "out").exists()


@pytest.mark.parametrize("key", ["sk with space", "sk-ключ", "sk-\x07bell-secret"])
def test_a_key_that_can_be_none_is_not_shown(place, serve, key, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    write_records(place / "in", {"title": "a"})
    server = serve()
    with pytest.raises(SystemExit) as caught:
        run(place, server)
    assert caught.value.code == 2 and not server.requests
    said = capsys.readouterr().err
    assert "OPENAI_API_KEY" in said and key not in said


def test_help_shows_how_to_use_it():
    command = [sys.executable, SCRIPTS / "gpt4_summarize.py", "--help"]
    help = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert help.returncode == 0 and "python gpt4_summarize.py data/" in help.stdout
