"""Summaries from servers that are slow, busy, cut off, choosy, talkative, or killed: nothing is lost, nothing asked twice."""

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from email.utils import formatdate

import pytest

import chat
import chat_server
from chat_server import (
    ENGLISH,
    KEY,
    assert_key_is_nowhere,
    completion,
    errors,
    good,
    read_tree,
    run,
    start,
    status,
    wait_for,
    write_records,
)

place, serve = chat_server.place, chat_server.serve  # fixtures


# --- servers that fail -----------------------------------------------------------------------------------------------


def cut(after):
    """Closes the connection after that many bytes of a good answer; 0: without a word."""

    def answer(handler):
        body = json.dumps(completion("x" * 1000)).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        handler.wfile.write((head + body)[:after])
        handler.wfile.flush()
        handler.connection.shutdown(2)
        handler.close_connection = True

    return answer


PASSING = {  # what passes if one asks again
    "429": status(429, "too many requests"),
    "429 with Retry-After": status(429, retry_after="0.01"),
    "500": status(500),
    "502 of a proxy": lambda handler: handler.say(502, "<html><body>Bad gateway</body></html>"),
    "503": status(503, retry_after="soon"),
    "cut before the answer": cut(0),
    "cut in the head": cut(30),
    "cut in the body": cut(400),
    "no JSON": lambda handler: handler.say(200, "<html>Log in to the network</html>"),
    "another JSON": lambda handler: handler.say(200, {"choices": []}),
}


def test_what_passes_is_waited_for(place, serve):
    server = serve(lambda title, count, request: PASSING[title] if count < 3 else good(request))
    write_records(place / "in", *({"title": kind} for kind in PASSING))
    assert run(place, server) == 0
    assert server.counts == dict.fromkeys(PASSING, 3)
    assert {record["summary_en"] for record in read_tree(place / "out").values()} == {ENGLISH}


def test_what_does_not_pass_costs_the_record(place, serve, monkeypatch):
    monkeypatch.setattr(chat, "BUSY_ATTEMPTS", 12)

    def behave(title, count, request):
        if title in PASSING:
            wait_for(lambda: server.answered)  # else the form of answer might be the cause of status 500
            return PASSING[title]
        return good(request)

    server = serve(behave)
    write_records(place / "in", *({"title": title} for title in [*PASSING, "fine"]))
    assert run(place, server) == 1
    attempts = {kind: 12 if kind.startswith("429") else chat.ATTEMPTS for kind in PASSING}
    assert server.counts == attempts | {"fine": 1}
    assert set(read_tree(place / "out")) == {"fine.json"}
    reasons = errors(place / "out")
    assert set(reasons) == {f"{kind}.json" for kind in PASSING}
    assert "Bad gateway" in reasons["502 of a proxy.json"] and "Log in" in reasons["no JSON.json"]

    server.behave = lambda title, count, request: good(request)
    assert run(place, server) == 0
    assert server.counts == {kind: number + 1 for kind, number in attempts.items()} | {"fine": 1}
    assert not errors(place / "out")


def test_a_request_without_an_answer_is_repeated(place, serve, monkeypatch):
    monkeypatch.setattr(chat, "TIMEOUT", 0.5)

    def behave(title, count, request):
        if count < 3:
            time.sleep(1)
        return good(request)

    server = serve(behave)
    write_records(place / "in", {"title": "a"})
    assert run(place, server) == 0
    assert server.counts["a"] >= 3


def test_slow_answers_are_waited_for_side_by_side(place, serve):
    def behave(title, count, request):
        wait_for(lambda: server.most_active >= 4)
        time.sleep(0.05)  # for a fifth, which must not come
        return good(request)

    server = serve(behave)
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(12)))
    assert run(place, server, "--concurrency", 4) == 0
    assert server.most_active == 4
    assert len(server.requests) == 12


@pytest.fixture
def chats(monkeypatch):
    """The Chat objects of the runs in this process. Their `ended` is set once the run is to end."""
    made = []

    class Seen(chat.Chat):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.ended = threading.Event()
            made.append(self)

        def end(self):
            super().end()
            self.ended.set()

    monkeypatch.setattr(chat, "Chat", Seen)
    return made


@pytest.mark.parametrize(
    ("headers", "least"), [({"retry_after": "1"}, 1), ({"retry_after_ms": "1000"}, 1), ({"retry_after": "date"}, 2)]
)
def test_retry_after_holds_for_all_requests(place, serve, chats, headers, least):
    busy = []

    def behave(title, count, request):
        if not busy:
            busy.append(time.monotonic())
            date = formatdate(time.time() + 3, usegmt=True)  # in whole seconds: 2 to 3 from now
            return status(429, **{name: date if value == "date" else value for name, value in headers.items()})
        wait_for(lambda: chats[0].retries == 1)  # it has read that
        return good(request)

    server = serve(behave)
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(6)))
    assert run(place, server, "--concurrency", 2) == 0
    after = [request["time"] - busy[0] for request in server.requests[1:]]
    assert len(after) == 6 and len(read_tree(place / "out")) == 6
    assert sum(wait < least - 0.05 for wait in after) <= 1  # the one that was on its way at the same time


def test_rate_limits_are_no_failures(place, serve, monkeypatch):
    """Answers to some come after more requests than ATTEMPTS; those that are too many are no failures."""
    monkeypatch.setattr(chat, "ATTEMPTS", 3)
    needed = {f"Tune {number}": number % 7 + 1 for number in range(30)}
    server = serve(
        lambda title, count, request: good(request) if count == needed[title] else status(429, retry_after="0.01")
    )
    write_records(place / "in", *({"title": title} for title in needed))
    assert run(place, server, "--concurrency", 30) == 0
    assert server.counts == needed and Counter(server.answered) == Counter(needed.keys())


def test_a_server_that_is_gone_is_not_asked_for_ever(place, serve, monkeypatch, capsys):
    monkeypatch.setattr(chat, "ATTEMPTS", 2)
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(60)))

    def behave(title, count, request):
        if len(server.answered) < 30:
            return good(request)
        return cut(0)

    server = serve(behave)
    assert run(place, server, "--concurrency", 4) == 1
    captured = capsys.readouterr()
    assert f"{chat.UNANSWERED} records in a row" in captured.err and "connection failed" in captured.err
    answered = set(server.answered)
    assert {name.removesuffix(".json") for name in read_tree(place / "out")} == answered
    done = len(answered)
    failed = len(errors(place / "out"))
    assert failed == chat.UNANSWERED - 1 and f"{failed} failed, {60 - done - failed} left" in captured.out

    server.behave = lambda title, count, request: good(request)  # it is back
    before = Counter(server.counts)
    assert run(place, server) == 0
    assert all(server.counts[title] == before[title] for title in answered)
    assert len(read_tree(place / "out")) == 60 and Counter(server.answered) == Counter(set(server.answered))


def test_a_long_pause_is_left_to_the_user(place, serve, capsys):
    server = serve(lambda title, count, request: status(429, "daily limit", retry_after="86400"))
    write_records(place / "in", {"title": "a"}, {"title": "b"})
    assert run(place, server, "--concurrency", 1) == 1
    assert len(server.requests) == 1
    assert "pause of 86400 s" in capsys.readouterr().err


# --- the form of the answer ------------------------------------------------------------------------------------------


REJECTIONS = [(400, "json_object"), (422, None), (501, None), (404, "json_object"), (415, None)]


@pytest.mark.parametrize("code, taken", REJECTIONS)
def test_servers_without_schemas_are_asked_in_another_way_once(place, serve, code, taken):
    def behave(title, count, request):
        form = request.get("response_format", {}).get("type")
        return good(request) if form == taken else status(code, f"response_format {form} is not supported")

    server = serve(behave)
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(10)))
    assert run(place, server, "--concurrency", 1) == 0
    forms = [request.get("response_format", {}).get("type") for request in server.requests]
    tried = ["json_schema", "json_object", None]
    assert forms == tried[: tried.index(taken)] + [taken] * 10
    assert all("JSON" in request["messages"][0]["content"] for request in server.requests)  # JSON mode needs the word


@pytest.mark.parametrize("taken", ["json_object", None])
def test_servers_that_break_down_at_a_schema_are_asked_in_another_way(place, serve, taken):
    """Status 500 may also pass: each record tries the same form again before it tries another."""

    def behave(title, count, request):
        return good(request) if request.get("response_format", {}).get("type") == taken else status(500)

    server = serve(behave)
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(10)))
    assert run(place, server, "--concurrency", 4) == 0
    assert len(read_tree(place / "out")) == 10
    failed = len(server.requests) - 10
    assert failed <= 4 * chat.FORM_ATTEMPTS * (1 if taken else 2)  # the first four; all others know it from them


def test_one_rejected_record_does_not_change_the_form_for_others(place, serve):
    server = serve(lambda title, count, request: status(400, "too long") if title[0] == "x" else good(request))
    titles = ("x1", "y1", "y2", "x2", "y3")
    write_records(place / "in", *({"title": title, "at": f"{at}.json"} for at, title in enumerate(titles)))
    assert run(place, server, "--concurrency", 1) == 1
    assert server.counts == {"x1": 3, "x2": 1, "y1": 1, "y2": 1, "y3": 1}
    forms = {request["response_format"]["type"] for request in server.requests if request["title"][0] == "y"}
    assert forms == {"json_schema"}
    assert errors(place / "out") == dict.fromkeys(("0.json", "3.json"), "the server answers 400: too long")


# --- key and account -------------------------------------------------------------------------------------------------


ANSWER_WITH_KEY = {"sufficient": True, "summary_en": ENGLISH, "summary_nen": {"language": KEY, "summary": "x"}}
ECHOES = {  # of a server that repeats the key where it can
    "400": status(400, f"bad request with Authorization: Bearer {KEY} in it"),
    "418": status(418, f"{KEY[1:-1]}: not for you", x_request_id=KEY, x_echo=KEY),
    "500": status(500, "x" * 490 + f" {KEY}"),
    "no JSON": lambda handler: handler.say(200, f"<p>{'x' * 70} key={KEY}</p>"),
    "HTML error": lambda handler: handler.say(500, f"<pre>Authorization: Bearer {KEY}</pre>"),
    "language": lambda handler: handler.say(200, completion(json.dumps(ANSWER_WITH_KEY)), x_request_id=KEY),
}
LAST_ECHOES = [  # these end the run
    status(401, f"Incorrect API key provided: {KEY[:12]}***{KEY[-8:]}"),
    status(404, f"{KEY}: no such model"),
    status(429, f"slow down, {KEY}!", retry_after="100000"),
]


def test_the_key_is_in_no_error(place, serve, capfd, monkeypatch):
    monkeypatch.setattr(chat, "ATTEMPTS", 2)
    server = serve(lambda title, count, request: ECHOES[title])
    write_records(place / "in", *({"title": kind} for kind in ECHOES))
    assert run(place, server) == 1
    assert set(errors(place / "out")) == {f"{kind}.json" for kind in ECHOES}
    assert_key_is_nowhere(place, *capfd.readouterr())


@pytest.mark.parametrize("echo", LAST_ECHOES)
def test_the_key_is_not_in_the_last_words(place, serve, echo, capfd):
    server = serve(lambda title, count, request: echo)
    write_records(place / "in", {"title": "a"})
    assert run(place, server) in (1, 2)
    printed = capfd.readouterr()
    assert re.search("error: |Stopped: ", printed.err)
    assert_key_is_nowhere(place, *printed)


def test_the_key_is_not_in_the_logs_of_the_client(place, serve):
    server = serve(lambda title, count, request: ECHOES["400"] if count < 3 else good(request))
    write_records(place / "in", {"title": "a"})
    os.environ["OPENAI_LOG"] = "debug"
    try:
        process = start(place, server)
    finally:
        del os.environ["OPENAI_LOG"]
    printed = process.communicate(timeout=300)
    assert process.returncode == 0 and "DEBUG" in printed[1]
    assert_key_is_nowhere(place, *printed)


FATAL = [(401, 0, 2), (404, 0, 2), (405, 0, 2), (402, 0, 1), (401, 5, 2)]


@pytest.mark.parametrize("code, answered, expected", FATAL)
def test_what_no_repetition_helps_ends_the_run(place, serve, code, answered, expected):
    def behave(title, count, request):
        return good(request) if len(server.requests) <= answered else status(code)

    server = serve(behave)
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(40)))
    assert run(place, server, "--concurrency", 1) == expected
    forms = len(chat.FORMATS) if code in (404, 405) else 1  # the form of answer may be what is not found
    assert len(server.requests) == answered + forms and len(read_tree(place / "out")) == answered


@pytest.mark.parametrize("code", [400, 403, 413])
def test_a_server_that_rejects_everything_is_not_asked_about_everything(place, serve, code, capsys):
    server = serve(lambda title, count, request: status(code, "no model m here"))
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(60)))
    assert run(place, server, "--concurrency", 1) == 1
    assert len(server.counts) == chat.UNANSWERED
    assert f"Stopped: {chat.UNANSWERED} records in a row without an answer" in (error := capsys.readouterr().err)
    assert "no model m here" in error


def test_answers_on_their_way_when_a_run_must_end_are_kept(place, serve, chats, capsys):
    """They are paid for. What waits before it asks again is not waited for."""

    def behave(title, count, request):
        if title == "no credit":
            wait_for(lambda: len(server.requests) == 8)
            return status(402)
        if title == "busy":
            return status(429, retry_after="300")
        assert chats[0].ended.wait(240)
        return good(request)

    server = serve(behave)
    titles = ["busy", "no credit", *(f"Tune {number}" for number in range(6)), "later"]
    write_records(place / "in", *({"title": title, "at": f"{at}.json"} for at, title in enumerate(titles)))
    begin = time.monotonic()
    assert run(place, server, "--concurrency", 8) == 1
    assert time.monotonic() - begin < 300
    assert {record["title"] for record in read_tree(place / "out").values()} == set(server.answered)
    assert len(server.answered) == 6 and "later" not in server.counts
    captured = capsys.readouterr()
    assert "402" in captured.err and "6 done" in captured.out and "0 failed, 3 left" in captured.out


def test_an_account_without_credit_ends_the_run(place, serve, capsys):
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    server = serve(lambda title, count, request: lambda handler: handler.say(429, body))
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(40)))
    assert run(place, server, "--concurrency", 1) == 1
    assert len(server.requests) == 1 and "credit" in capsys.readouterr().err


@pytest.mark.parametrize("forbidden", "ab")
def test_a_forbidden_record_does_not_end_the_run(place, serve, forbidden):
    server = serve(lambda title, count, request: status(403, "moderated") if title == forbidden else good(request))
    write_records(place / "in", *({"title": title} for title in "abc"))
    assert run(place, server, "--concurrency", 1) == 1
    assert set(read_tree(place / "out")) == {"a.json", "b.json", "c.json"} - {f"{forbidden}.json"}


@pytest.mark.parametrize("key", ["x", "a", "none"])
def test_a_word_in_place_of_a_key_does_not_blot_out_messages(place, serve, key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server = serve(lambda title, count, request: status(400, f"exceeds max tokens, Bearer {key}"))
    write_records(place / "in", {"title": "b"})
    assert run(place, server) == 1
    assert errors(place / "out") == {"b.json": "the server answers 400: exceeds max tokens, Bearer [key]"}


# --- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_where_it_was(place, serve, number):
    def behave(title, count, request):
        time.sleep(0.05)
        return good(request)

    server = serve(behave)
    titles = {f"Tune {number:02d}" for number in range(40)}
    write_records(place / "in", *({"title": title, "filepaths": [f"{title}.abc"]} for title in titles))
    process = start(place, server, "--concurrency", 4)
    wait_for(lambda: len(read_tree(place / "out")) >= 12 if (place / "out").exists() else False)
    process.send_signal(number)
    printed, error = process.communicate(timeout=300)
    written = {name.removesuffix(".json") for name in read_tree(place / "out")}
    assert len(written) < len(titles)
    if number == signal.SIGINT:
        assert process.returncode == 130 and "goes on from here" in error and "Traceback" not in error
        assert f"{len(written)} done" in printed
        assert not list((place / "out").glob(".tmp*"))
    before = Counter(server.counts)

    process = start(place, server)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert all(server.counts[title] == before[title] == 1 for title in written)
    assert sum(server.counts.values()) <= len(titles) + 4  # those that were on their way
    out = read_tree(place / "out")
    assert {name.removesuffix(".json"): record["filepaths"] for name, record in out.items()} == {
        title: [f"{title}.abc"] for title in titles
    }
    assert all(record["summary_en"] == ENGLISH for record in out.values())
    assert not list((place / "out").glob(".tmp*"))


def test_a_server_that_is_restarted_in_between(place, serve):
    """It is killed with requests under way, and comes back on the same port while the run goes on."""

    def behave(title, count, request):
        time.sleep(0.05)
        return good(request)

    first = serve(behave)
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(30)))
    process = start(place, first, "--concurrency", 4)
    wait_for(lambda: len(first.answered) >= 8)
    first.behave = lambda title, count, request: cut(0)
    first.close()
    time.sleep(0.3)
    second = serve(behave, first.server_port)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert len(read_tree(place / "out")) == 30
    assert not set(first.answered) & set(second.answered)
    assert len(first.answered) + len(second.answered) == 30
    [repeated] = re.findall(r"(\d+) requests repeated", out)
    assert int(repeated) > 0


def test_what_cannot_be_written_stops_the_run(place, serve, capsys):
    server = serve()
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(20)))
    (place / "out" / "Tune 5.json").mkdir(parents=True)
    assert run(place, server, "--concurrency", 1) == 1
    assert "Stopped: " in (error := capsys.readouterr().err) and "Tune 5.json" in error
    assert len(server.requests) < 20
