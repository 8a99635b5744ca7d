"""A chat model behind any OpenAI-compatible server: one question, one answer, whatever happens in between.

The server may be slow, busy, restarted or cut off: requests are repeated, with growing pauses, or when it says so. It
may not know structured answers: then JSON mode is tried, then none. Its key appears in no message of this module.
"""

import asyncio
import contextlib
import email.utils
import json
import math
import random
import re
import time

import openai

from shared import files

TIMEOUT = 600.0  # seconds that one attempt may take, all in all
ATTEMPTS = 8  # of one request, when the server fails or is not there: with the pauses below, over some two minutes
BUSY_ATTEMPTS = 100  # of one request, when the server says that it gets too many (429): others may get through first
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts; each pause is twice the one before
LONGEST_WAIT = 600.0  # seconds; a server that asks for more, with Retry-After, is not waited for
UNANSWERED = 20  # requests in a row given up, with no answer in between: then the server is gone, or never was right
FORM_ATTEMPTS = 3  # failures with status 500, after which another form of answer is tried, if this one never worked
FORMATS = ("json_schema", "json_object", None)  # what may be asked of the answer's form, from strict to nothing
_SECRET = 6  # characters of the key in a row that nothing may show; a shorter key is a word for a server without keys


class Failed(Exception):
    """There is no answer to this question. str() is the reason, in one line."""


class Stop(Exception):
    """There will be no answer to any further question. str() is the reason, in one line."""


class Chat:
    """Asks a model. Counts what it cost in `tokens_in`, `tokens_out` (as the server says) and `retries`."""

    def __init__(self, model: str, base_url: str | None, key: str):
        self.model, self._key = model, key
        self._client = openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=TIMEOUT)
        self.url = str(self._client.base_url)
        self.tokens_in = self.tokens_out = self.retries = self.answers = 0
        self._unanswered = 0
        self._format, self._format_is_known = 0, False  # place in FORMATS; whether the server has accepted it
        self._not_before = 0.0  # on the monotonic clock: the server asked not to be asked earlier
        self._ending = asyncio.Event()

    def end(self) -> None:
        """From now on no request is repeated: those on their way may be answered, those that fail raise Stop."""
        self._ending.set()

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, instructions: str, question: str, schema: dict) -> str:
        """The text of the answer, which follows the JSON `schema` if the server can make it do so.

        Raises Failed, Stop, or files.InputError if key, address or model must be wrong.
        """
        messages = [{"role": "system", "content": instructions}, {"role": "user", "content": question}]
        form = self._format
        while True:
            request: dict = {"model": self.model, "messages": messages}
            if FORMATS[form]:
                request["response_format"] = {"type": FORMATS[form]}
            if FORMATS[form] == "json_schema":
                request["response_format"]["json_schema"] = {"name": "answer", "strict": True, "schema": schema}
            try:
                choice = await self._send(request, form)
                break
            except _Rejected as error:
                if form < self._format:  # others have found out what the server takes
                    form = self._format
                elif self._is_last_form(form):
                    raise self._hopeless(error) from None
                else:
                    form += 1
        if not self._format_is_known:
            self._format, self._format_is_known = form, True
        return self._text(choice)

    def _is_last_form(self, form: int) -> bool:
        """Whether no other form of answer is left to try: the server takes this one, or it asks for nothing."""
        return form + 1 == len(FORMATS) or (self._format_is_known and form >= self._format)

    def hide(self, text: str) -> str:
        """A text, in one line, without the words that show the key or some of it."""
        pieces = {self._key[start : start + _SECRET] for start in range(len(self._key) - _SECRET + 1)}
        return " ".join(
            "[key]" if word == self._key or any(piece in word for piece in pieces) else word for word in text.split()
        )

    def shows_key(self, text: str) -> bool:
        """Whether the key is in a text. "none" and such, for servers without keys, are no secrets."""
        return len(self._key) > 2 * _SECRET and self._key in text

    def _text(self, choice: dict) -> str:
        message = choice["message"]
        if message.get("refusal"):
            raise Failed(self.hide(f"the model refused: {message['refusal']}")[:300])
        if choice.get("finish_reason") == "content_filter":
            raise Failed("the server's content filter held the answer back")
        return message.get("content") or ""

    async def _send(self, request: dict, form: int) -> dict:
        """The first choice of the answer to one request, repeated as long as there is hope."""
        failures = busy = 0
        while True:
            while (pause := self._not_before - time.monotonic()) > 0:
                await self._pause(pause + random.uniform(0, FIRST_PAUSE))  # not all of them at the same moment
            status: int | None = None
            wait: float | None = None
            try:
                async with asyncio.timeout(TIMEOUT):
                    response = await self._client.chat.completions.with_raw_response.create(**request)
                choice = self._read(response.http_response.text)
            except (TimeoutError, openai.APITimeoutError):
                reason = f"no answer within {TIMEOUT:g} s"
            except openai.APIConnectionError as error:
                reason = self.hide(f"connection failed ({error.__cause__ or error})")
            except openai.APIStatusError as error:
                status = error.status_code
                reason = self.hide(f"the server answers {status}: {_message(error)}")[:500]
                self._give_up_if(error, reason)
                wait = _retry_after(error.response.headers)
            except _NoCompletion as error:
                reason = self.hide(str(error))[:300]
            else:
                self.answers += 1
                self._unanswered = 0
                return choice

            self.retries += 1
            if status == 429:
                busy += 1
            else:
                failures += 1
            if failures >= ATTEMPTS or busy >= BUSY_ATTEMPTS:
                raise self._given_up(f"{reason} (asked {failures + busy} times)")
            if status == 500 and failures >= FORM_ATTEMPTS and not self._is_last_form(form):
                raise _Rejected(reason, status)
            if not wait:
                pause = min(FIRST_PAUSE * 2 ** (failures + busy - 1), LONGEST_PAUSE)
                await self._pause(pause * random.uniform(0.5, 1))
            elif wait > LONGEST_WAIT:
                raise Stop(f"{reason} (and asks for a pause of {wait:.0f} s)")
            else:
                self._not_before = max(self._not_before, time.monotonic() + wait)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
            raise Stop("the run ends")

    def _given_up(self, reason: str) -> Exception:
        self._unanswered += 1
        if self._unanswered >= UNANSWERED:
            return Stop(f"{UNANSWERED} records in a row without an answer; the last: {reason}")
        return Failed(reason)

    def _hopeless(self, error: "_Rejected") -> Exception:
        """What it means that a request is rejected in every form of answer."""
        if self.answers:
            return Failed(str(error))
        if error.status in (404, 405):
            return files.InputError(
                f"{error}; is the model {self.model!r} right, and the address {self.url}? It usually ends in /v1"
            )
        return self._given_up(str(error))

    def _give_up_if(self, error: openai.APIStatusError, reason: str) -> None:
        """Raises what a status means that another attempt would not change."""
        status = error.status_code
        if status == 401:
            raise files.InputError(f"{self.url} does not accept the key in OPENAI_API_KEY (status 401)")
        if status == 402 or error.code == "insufficient_quota":
            raise Stop(f"{reason} (the account has no credit left)")
        if status in (400, 404, 405, 415, 422, 501):
            raise _Rejected(reason, status)
        if status < 500 and status not in (408, 409, 425, 429):
            raise Failed(reason) if self.answers else self._given_up(reason)

    def _read(self, text: str) -> dict:
        """The first choice of a chat completion; adds up the tokens."""
        try:
            completion = json.loads(text)
            choice = completion["choices"][0]
            message = choice["message"]
            content = message.get("content")
            if isinstance(content, list):  # of parts: thoughts, and the text
                message["content"] = content = "".join(part.get("text", "") for part in content)
            if not isinstance(content, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _NoCompletion(f"the server's answer is no chat completion: {text[:100]!r}") from None
        usage = completion.get("usage")
        if isinstance(usage, dict):
            tokens = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
            self.tokens_in, self.tokens_out = (
                total + (count if isinstance(count, int) else 0)
                for total, count in zip((self.tokens_in, self.tokens_out), tokens, strict=True)
            )
        return choice


class _Rejected(Exception):
    """The server does not take this request, perhaps because of the form of answer it asks for."""

    def __init__(self, reason: str, status: int):
        super().__init__(reason)
        self.status = status


class _NoCompletion(Exception):
    """The server answered, but with something else."""


def _message(error: openai.APIStatusError) -> str:
    """What the server says of an error."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("error") or body.get("detail") or body
    return re.sub(r"<[^>]*>", " ", str(body or error.response.text or "nothing more"))


def _retry_after(headers) -> float | None:
    """Seconds to wait, as a server states them: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())
