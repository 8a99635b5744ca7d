"""Counters, limits and pauses of the summarizing client, each at its limit and one off, without a network or a clock."""

import asyncio
import json
import threading
import time
from email.utils import formatdate
from types import SimpleNamespace

import httpx2 as httpx  # the library that `openai` stands on
import openai
import pytest

import chat
import chat_server
import gpt4_summarize
import prompts
from chat_server import KEY, completion, errors, good, read_tree, run, status, wait_for, write_records

place, serve = chat_server.place, chat_server.serve  # fixtures
ANSWER = 200


class Server:
    """Answers from a list of (status, headers), then `last`; no sockets. `forms` has the form each request asked for."""

    def __init__(self, *answers, last=ANSWER):
        self.answers = [answer if isinstance(answer, tuple) else (answer, {}) for answer in answers]
        self.last, self.forms, self.usage = last, [], {"prompt_tokens": 100, "completion_tokens": 10}
        self.content = "text"

    async def __call__(self, request):
        self.forms.append(json.loads(request.content).get("response_format", {}).get("type"))
        code, headers = self.answers.pop(0) if self.answers else (self.last, {})
        if code == "never":
            self.never()
            await asyncio.sleep(5)
            code = ANSWER  # nobody gave up
        body = completion(self.content) | {"usage": self.usage} if code == ANSWER else {"error": {"message": "no"}}
        return httpx.Response(code, json=body, headers=headers)


@pytest.fixture
def connect(monkeypatch):
    """A Chat with a Server behind it."""

    def connect_to(server, key=KEY):
        client = httpx.AsyncClient(transport=httpx.MockTransport(server))
        create = openai.AsyncOpenAI
        with monkeypatch.context() as patch:
            patch.setattr(openai, "AsyncOpenAI", lambda **options: create(**options, http_client=client))
            return chat.Chat("m", "http://server/v1", key)

    return connect_to


@pytest.fixture
def start(connect, monkeypatch):
    """The same, whose pauses pass at once: `pauses` has their lengths, with the longest jitter, `jitter` its bounds."""

    def start_chat(server, key=KEY):
        model = connect(server, key)
        model.pauses, model.jitter = [], []
        clock = SimpleNamespace(now=1000.0)

        async def pause(self, seconds):
            self.pauses.append(seconds)
            clock.now += seconds

        def uniform(low, high):
            model.jitter.append((low, high))
            return high

        monkeypatch.setattr(chat.Chat, "_pause", pause)
        monkeypatch.setattr(chat, "random", SimpleNamespace(uniform=uniform))
        monkeypatch.setattr(chat, "time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
        return model

    return start_chat


def ask(model: chat.Chat, times: int = 1) -> list[str]:
    """What comes of questions one after another: the text of an answer, or the kind of error, its reason behind it."""

    async def ask_all():
        outcomes = []
        for _ in range(times):
            try:
                outcomes.append(await model.ask("instructions", "question", {}))
            except (chat.Failed, chat.Stop) as error:
                outcomes.append(f"{type(error).__name__}: {error}")
        return outcomes

    return asyncio.run(ask_all())


def kinds(outcomes: list[str]) -> str:
    """A for an answer, F for Failed, S for Stop."""
    return "".join({"Failed": "F", "Stop": "S"}.get(outcome.partition(":")[0], "A") for outcome in outcomes)


# Attempts and pauses


@pytest.mark.parametrize("limit", [1, 2, 5, None])
@pytest.mark.parametrize(
    ("code", "name", "default"), [(503, "ATTEMPTS", 8), (408, "ATTEMPTS", 8), (429, "BUSY_ATTEMPTS", 100)]
)
def test_attempts_of_one_request(start, monkeypatch, limit, code, name, default):
    if limit:
        monkeypatch.setattr(chat, name, limit)
    limit = limit or default
    server = Server(*[code] * (limit - 1))
    model = start(server)
    assert ask(model) == ["text"]
    assert len(server.forms) == limit and model.retries == limit - 1 and model.answers == 1

    server = Server(*[code] * limit)
    model = start(server)
    (outcome,) = ask(model)
    assert outcome == f"Failed: the server answers {code}: no (asked {limit} times)"
    assert len(server.forms) == limit and model.retries == limit and len(model.pauses) == limit - 1


def test_failures_and_busy_answers_are_counted_apart_and_for_each_request_anew(start, monkeypatch):
    monkeypatch.setattr(chat, "ATTEMPTS", 3)
    monkeypatch.setattr(chat, "BUSY_ATTEMPTS", 5)
    mixed = [429, 503, 429, 429, 503, 429]
    server = Server(*[*mixed, ANSWER] * 3)
    assert ask(start(server), 3) == ["text"] * 3 and len(server.forms) == 21
    for more in (429, 503):
        assert ask(start(Server(*mixed, more))) == [f"Failed: the server answers {more}: no (asked 7 times)"]


def test_pauses_double_up_to_a_minute(start):
    model = start(Server(last=503))
    ask(model, 2)
    assert model.pauses == [1, 2, 4, 8, 16, 32, 60] * 2
    assert set(model.jitter) == {(0.5, 1)}  # so that many clients do not ask in step
    model = start(Server(*[429] * 4, 503, 429))
    assert ask(model) == ["text"] and model.pauses == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "5"}, 5), ({"retry-after": "600"}, 600), ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500"}, 1.5), ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
    ],
)  # fmt: skip
@pytest.mark.parametrize("code", [429, 503])
def test_the_pause_that_a_server_asks_for(start, headers, seconds, code):
    model = start(Server((code, headers), (code, headers)))
    assert ask(model) == ["text"]
    assert model.pauses == [pytest.approx(seconds + chat.FIRST_PAUSE)] * 2  # and up to a second, not all at once
    assert model.jitter == [(0, chat.FIRST_PAUSE)] * 2


@pytest.mark.parametrize("said", ["0", "-5", "nan", "inf", "-inf", "soon", "", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_pause_that_says_nothing(start, said):
    model = start(Server((429, {"retry-after": said}), (429, {"retry-after-ms": said})))
    assert ask(model) == ["text"] and model.pauses == [1, 2]


def test_a_pause_until_a_date(start):
    date = {"retry-after": formatdate(time.time() + 100, usegmt=True)}
    model = start(Server((503, date), (503, date | {"retry-after-ms": "1500"})))
    assert ask(model) == ["text"]
    assert 90 < model.pauses[0] <= 101 and model.pauses[1] == pytest.approx(1.5 + chat.FIRST_PAUSE)


@pytest.mark.parametrize(("said", "kind"), [("599", "A"), ("600", "A"), ("601", "S"), ("1e9", "S")])
def test_the_longest_pause_that_is_waited_for(start, said, kind):
    model = start(Server((429, {"retry-after": said})))
    (outcome,) = ask(model)
    assert kinds([outcome]) == kind
    if kind == "S":
        assert f"asks for a pause of {float(said):.0f} s" in outcome and not model.pauses


def test_a_shorter_pause_does_not_end_a_longer_one(start, monkeypatch):
    """Two requests are on their way; the server asks one for 50 seconds, then the other for 1."""
    model = start(Server())
    pauses, both = [], asyncio.Event()

    async def pause(self, seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            both.set()
        await both.wait()
        raise chat.Stop("enough is known")

    async def answer(request):
        if b"first" in request.content:
            return httpx.Response(429, json={}, headers={"retry-after": "50"})
        while not pauses:
            await asyncio.sleep(0)
        return httpx.Response(429, json={}, headers={"retry-after": "1"})

    async def ask_both():
        both_asked = (model.ask("instructions", question, {}) for question in ("first", "second"))
        return await asyncio.gather(*both_asked, return_exceptions=True)

    monkeypatch.setattr(chat.Chat, "_pause", pause)
    monkeypatch.setattr(model._client._client._transport, "handler", answer)
    assert all(isinstance(outcome, chat.Stop) for outcome in asyncio.run(ask_both()))
    assert pauses == [51, 51]


@pytest.mark.parametrize("silent", [1, 2])
def test_time_of_one_attempt(start, monkeypatch, silent):
    """Ten minutes, which are over as soon as the server decides not to answer."""
    monkeypatch.setattr(chat, "ATTEMPTS", 2)
    limits = []

    def timeout(seconds):
        limits.append((seconds, asyncio.timeout(None)))
        return limits[-1][1]

    server = Server(*["never"] * silent)
    server.never = lambda: limits[-1][1].reschedule(asyncio.get_running_loop().time())
    model = start(server)
    monkeypatch.setattr(chat, "asyncio", SimpleNamespace(timeout=timeout))
    assert ask(model) == ["text" if silent == 1 else "Failed: no answer within 600 s (asked 2 times)"]
    assert [seconds for seconds, _ in limits] == [600, 600]


@pytest.mark.parametrize("answers", [(), (503,), (429,), ((429, {"retry-after": "5"}),)])
def test_at_the_end_of_a_run_answers_are_taken_and_nothing_is_repeated(connect, answers):
    server = Server(*answers)
    model = connect(server)
    model.end()
    assert ask(model) == (["Stop: the run ends"] if answers else ["text"]) and len(server.forms) == 1


# Requests in a row that were given up


@pytest.mark.parametrize("code", [503, 429, 599])
def test_requests_in_a_row_without_an_answer(start, monkeypatch, code):
    monkeypatch.setattr(chat, "ATTEMPTS", 1)
    monkeypatch.setattr(chat, "BUSY_ATTEMPTS", 1)
    assert kinds(ask(start(Server(*[code] * 19)), 20)) == "F" * 19 + "A"
    outcomes = ask(start(Server(*[code] * 20)), 20)
    assert kinds(outcomes) == "F" * 19 + "S"
    assert outcomes[-1].startswith("Stop: 20 records in a row without an answer; the last: the server answers")


def test_scattered_failures_are_none_in_a_row(start, monkeypatch):
    """An answer in between begins the count anew, however many have failed by then."""
    monkeypatch.setattr(chat, "ATTEMPTS", 1)
    monkeypatch.setattr(chat, "UNANSWERED", 3)
    answers = [503, 503, ANSWER] * 5 + [503, ANSWER] * 5 + [503] * 3
    assert kinds(ask(start(Server(*answers)), len(answers))) == "FFA" * 5 + "FA" * 5 + "FFS"
    # What a server holds back is an answer too.
    server = Server(*[503, 503, ANSWER] * 3)
    server.content = {"no": "text"}  # no chat completion: no answer
    assert kinds(ask(start(server), 3)) == "FFS"


@pytest.mark.parametrize("code", [400, 403, 422])
def test_rejections_count_only_before_the_first_answer(start, monkeypatch, code):
    """Before it, the server may never be right; behind it, the record is to blame."""
    monkeypatch.setattr(chat, "UNANSWERED", 3)
    assert kinds(ask(start(Server(last=code)), 3)) == "FFS"
    server = Server(ANSWER, last=code)
    assert kinds(ask(start(server), 30)) == "A" + "F" * 29


@pytest.mark.parametrize("failed", range(5))
def test_a_long_run_with_scattered_failures_goes_on(place, serve, monkeypatch, failed):
    """Of each group of records, `failed` fail before one is answered; three in a row end the run."""
    monkeypatch.setattr(chat, "ATTEMPTS", 1)
    monkeypatch.setattr(chat, "UNANSWERED", 3)
    server = serve(lambda title, count, request: status(503) if title[0] == "x" else good(request))
    groups = 4
    titles = [
        f"{'x' if place < failed else 'y'}{group}{place}" for group in range(groups) for place in range(failed + 1)
    ]
    write_records(place / "in", *({"title": title, "at": f"{at:02d}.json"} for at, title in enumerate(titles)))
    assert run(place, server, "--concurrency", 1) == (1 if failed else 0)
    if failed < 3:
        assert len(read_tree(place / "out")) == groups and len(errors(place / "out")) == groups * failed
    else:
        assert list(server.counts) == titles[:3] and len(errors(place / "out")) == 2


# The form of the answer


def test_failures_with_status_500_before_another_form_is_tried(start):
    limit = 3
    server = Server(*[500] * (limit - 1))
    assert ask(start(server)) == ["text"] and server.forms == ["json_schema"] * limit
    server = Server(*[500] * limit)
    assert ask(start(server), 2) == ["text"] * 2
    assert server.forms == ["json_schema"] * limit + ["json_object"] * 2
    server = Server(*[500] * 2 * limit)
    assert ask(start(server), 2) == ["text"] * 2
    assert server.forms == ["json_schema"] * limit + ["json_object"] * limit + [None] * 2
    # Without another form left, or with one that has worked, it is a failure as any other.
    server = Server(last=500)
    assert kinds(ask(start(server))) == "F" and server.forms.count(None) == chat.ATTEMPTS
    server = Server(ANSWER, last=500)
    assert kinds(ask(start(server), 2)) == "AF" and server.forms == ["json_schema"] * (1 + chat.ATTEMPTS)
    # Other failures say nothing of the form; but 429 and 500 are counted apart.
    server = Server(503, 503, 503)
    assert ask(start(server)) == ["text"] and set(server.forms) == {"json_schema"}
    server = Server(429, 500, 429, 500, 429)
    assert ask(start(server)) == ["text"] and set(server.forms) == {"json_schema"}


def test_a_form_that_is_rejected_at_once_is_not_repeated(start):
    for code in (400, 404, 405, 415, 422, 501):
        server = Server(code, code)
        assert ask(start(server), 2) == ["text"] * 2
        assert server.forms == ["json_schema", "json_object", None, None]


# What is counted, cut and hidden


def test_tokens_are_added_up(start):
    server = Server()
    model = start(server)
    for usage, total in (
        ({"prompt_tokens": 7, "completion_tokens": 5}, (7, 5)),
        ({"prompt_tokens": 20, "completion_tokens": 1}, (27, 6)),
        ({"prompt_tokens": "many", "completion_tokens": 1}, (27, 7)),
        ({"prompt_tokens": 3}, (30, 7)),
        (None, (30, 7)),
        ([1, 2], (30, 7)),
    ):
        server.usage = usage
        assert ask(model) == ["text"]
        assert (model.tokens_in, model.tokens_out) == total
    assert model.answers == 6 and model.retries == 0


def test_how_much_of_a_key_may_be_shown(start):
    model = start(Server(), key="abcdefghijklm")
    for text, shown in (
        ("abcde fghij", "abcde fghij"),
        ("abcdef bcdef", "[key] bcdef"),
        ("x-hijklm-x\n and  hijkl", "[key] and hijkl"),
        ("abcdefghijklm.", "[key]"),
    ):
        assert model.hide(text) == shown
    assert start(Server(), key="abcde").hide("abcde abcdef") == "[key] abcdef"  # a word for a server without keys
    assert model.shows_key("(abcdefghijklm)") and not model.shows_key("abcdefghijkl")
    assert not start(Server(), key="abcdefghijkl").shows_key("abcdefghijkl")


def test_the_longest_report_of_a_failure(start, monkeypatch):
    monkeypatch.setattr(chat, "ATTEMPTS", 1)
    long = "x" * 1000

    async def answer(request):
        return httpx.Response(503, json={"error": {"message": long}})

    model = start(Server())
    monkeypatch.setattr(model._client._client._transport, "handler", answer)
    (outcome,) = ask(model)
    assert outcome == f"Failed: the server answers 503: {long}"[: 500 + len("Failed: ")] + " (asked 1 times)"


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_longest_field_that_is_told_whole(more):
    size = prompts.LONGEST_FIELD + more
    record = dict.fromkeys(prompts.records.METADATA) | {"lyrics": "x" * size, "tags": ["y" * (size - 4), "zzzz"]}
    told, cut = prompts.known(record)
    assert told["lyrics"] == "x" * min(size, 4000)
    assert told["tags"] == ["y" * (size - 4), "zzz" if more > 0 else "zzzz"]
    assert cut == [
        f"{field}: the model was sent the first 4000 of 4001 characters" for field in ("lyrics", "tags") if more > 0
    ]


# The run


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_the_limit_counts_what_was_asked_for(place, serve, limit):
    """Not records that are done, too poor to ask about, or unreadable; but those that failed."""
    server = serve(lambda title, count, request: status(400) if title == "c" else good(request))
    records = [
        {"title": "a"},
        {"title": 5, "at": "b.json"},
        {"title": None, "at": "bb.json"},
        *({"title": t} for t in "cde"),
    ]
    write_records(place / "in", *records)
    assert run(place, server, "--limit", limit, "--concurrency", 1) == int(limit > 1)
    assert list(server.counts) == ["a", "c", "d", "e"][:limit]


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_the_limit_of_a_dry_run(place, serve, limit, capsys):
    write_records(place / "in", *({"title": title} for title in "abc"))
    assert run(place, serve(), "--limit", limit, "--dry_run") == 0
    printed = capsys.readouterr().out
    assert f"{min(limit, 3)} of 3 records would be asked for" in printed
    assert [f"--- {title}.json" in printed for title in "abc"] == [limit > 0, limit > 1, limit > 2]


def test_cost_is_per_million_tokens():
    assert gpt4_summarize.cost(2_000_000, 500_000, (3.0, 8.0)) == pytest.approx(2 * 3 + 0.5 * 8)
    assert gpt4_summarize.cost(1, 0, (3.0, 8.0)) == pytest.approx(3e-6)


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_requests_at_a_time(place, serve, concurrency):
    """As many as are wanted, where the server waits until they are there, and never more."""

    def behave(title, count, request):
        wait_for(lambda: server.most_active == concurrency)
        return good(request)

    server = serve(behave)
    write_records(place / "in", *({"title": f"Tune {number}"} for number in range(10)))
    assert run(place, server, "--concurrency", concurrency) == 0
    assert server.most_active == concurrency and len(server.requests) == 10


def test_an_answer_that_does_not_come_does_not_hold_up_the_end(place, serve, monkeypatch, capsys):
    monkeypatch.setattr(gpt4_summarize, "LAST_WAIT", 0.05)
    over = threading.Event()

    def behave(title, count, request):
        if title == "slow":
            over.wait(20)
        else:
            wait_for(lambda: "slow" in server.counts)
        return status(402)

    server = serve(behave)
    write_records(place / "in", {"title": "slow"}, {"title": "no credit"})
    try:
        assert run(place, server, "--concurrency", 2) == 1
        assert not over.is_set() and server.active == 1  # it is still waiting
    finally:
        over.set()
    assert "0 done" in capsys.readouterr().out
