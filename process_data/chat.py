"""Ask a chat model behind any OpenAI-compatible server, through rate limits, restarts and lost connections.

Requests are retried with growing pauses, or after the pause that the server asks for. (The client's own retries share
one limit between rate limits and failures, pause at most 8 s, cannot be ended, and honour no Retry-After over 120 s nor
one sent to another request.) A server without structured answers is asked in JSON mode, then in none. No message shows
the key.
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

TIMEOUT = 600.0  # seconds for one attempt
ATTEMPTS = 8  # of one request if the server fails or cannot be reached: with the pauses below, about two minutes
BUSY_ATTEMPTS = 100  # of one request under a rate limit (429), where others may get through first
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts; each pause is twice the one before
LONGEST_WAIT = 600.0  # seconds; the run stops if Retry-After asks for more
UNANSWERED = 20  # requests in a row that failed: then the server is gone, or its settings are wrong, and the run stops
FORM_ATTEMPTS = 3  # failures with status 500 until the next format is tried, if this one never worked
FORMATS = ("json_schema", "json_object", None)  # of the answer, from strict to free
_SECRET = 6  # consecutive characters of the key that no message shows; a shorter key is a placeholder


class Failed(Exception):
    """This question got no answer. str() is the reason, in one line."""


class Stop(Exception):
    """No further question can be answered. str() is the reason, in one line."""


class Chat:
    """A chat model; counts `tokens_in` and `tokens_out` (as reported by the server), `answers` and `retries`."""

    def __init__(self, model: str, base_url: str | None, key: str):
        self.model, self._key = model, key
        self._client = openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=TIMEOUT)
        self.url = str(self._client.base_url)
        self.tokens_in = self.tokens_out = self.retries = self.answers = 0
        self._unanswered = 0
        self._format, self._format_is_known = 0, False  # index in FORMATS; whether the server accepts it
        self._not_before = 0.0  # on the monotonic clock, from Retry-After
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Retry no request from now on: those under way may be answered, those that fail raise Stop."""
        self._ending.set()

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, instructions: str, question: str, schema: dict) -> str:
        """Return the text of the answer, which follows the JSON `schema` if the server supports that.

        Raises Failed, Stop, or files.InputError if key, address or model is wrong.
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
                if form < self._format:  # a concurrent request found the format
                    form = self._format
                elif self._is_last_form(form):
                    raise self._hopeless(error) from None
                else:
                    form += 1
        if not self._format_is_known:
            self._format, self._format_is_known = form, True
        return self._text(choice)

    def _is_last_form(self, form: int) -> bool:
        """Whether no other format is left to try: the server accepts this one, or it is the free one."""
        return form + 1 == len(FORMATS) or (self._format_is_known and form >= self._format)

    def hide(self, text: str) -> str:
        """Put a text on one line, and mask the words that contain a part of the key."""
        pieces = {self._key[start : start + _SECRET] for start in range(len(self._key) - _SECRET + 1)}
        return " ".join(
            "[key]" if word == self._key or any(piece in word for piece in pieces) else word for word in text.split()
        )

    def shows_key(self, text: str) -> bool:
        """Whether a text contains the key; a placeholder such as "none" is no secret."""
        return len(self._key) > 2 * _SECRET and self._key in text

    def _text(self, choice: dict) -> str:
        message = choice["message"]
        if message.get("refusal"):
            raise Failed(self.hide(f"the model refused: {message['refusal']}")[:300])
        if choice.get("finish_reason") == "content_filter":
            raise Failed("the server's content filter held the answer back")
        return message.get("content") or ""

    async def _send(self, request: dict, form: int) -> dict:
        """Return the first choice of the answer to a request, which is retried as often as the limits allow."""
        failures = busy = 0
        while True:
            while (pause := self._not_before - time.monotonic()) > 0:
                await self._pause(pause + random.uniform(0, FIRST_PAUSE))  # so that not all are sent at once
            status, wait = 0, 0.0
            try:
                async with asyncio.timeout(TIMEOUT):
                    response = await self._client.chat.completions.with_raw_response.create(**request)
                choice = self._read(response.http_response.text)
                self.answers += 1
                self._unanswered = 0
                return choice
            except (TimeoutError, openai.APITimeoutError):
                reason = f"no answer within {TIMEOUT:g} s"
            except openai.APIConnectionError as error:
                reason = self.hide(f"connection failed ({error.__cause__ or error})")
            except openai.APIStatusError as error:
                status = error.status_code
                reason = self.hide(f"the server answers {status}: {_message(error)}")[:500]
                self._raise_if_final(error, reason)
                wait = _retry_after(error.response.headers)
            except _NoCompletion as error:
                reason = self.hide(str(error))[:300]

            self.retries += 1
            busy += status == 429
            failures += status != 429
            if failures >= ATTEMPTS or busy >= BUSY_ATTEMPTS:
                raise self._given_up(f"{reason} (asked {failures + busy} times)")
            if status == 500 and failures >= FORM_ATTEMPTS and not self._is_last_form(form):
                raise _Rejected(reason, status)
            if wait > LONGEST_WAIT:
                raise Stop(f"{reason} (and asks for a pause of {wait:.0f} s)")
            self._not_before = max(self._not_before, time.monotonic() + wait)
            if not wait:
                pause = min(FIRST_PAUSE * 2 ** (failures + busy - 1), LONGEST_PAUSE)
                await self._pause(pause * random.uniform(0.5, 1))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
            raise Stop("the run ends")

    def _given_up(self, reason: str) -> Exception:
        """Return Failed, or Stop after UNANSWERED failures in a row."""
        self._unanswered += 1
        if self._unanswered >= UNANSWERED:
            return Stop(f"{UNANSWERED} records in a row without an answer; the last: {reason}")
        return Failed(reason)

    def _hopeless(self, error: "_Rejected") -> Exception:
        """Return the error for a request that is rejected in every format."""
        if self.answers:
            return Failed(str(error))
        if error.status in (404, 405):
            return files.InputError(
                f"{error}; is the model {self.model!r} right, and the address {self.url}? It usually ends in /v1"
            )
        return self._given_up(str(error))

    def _raise_if_final(self, error: openai.APIStatusError, reason: str) -> None:
        """Raise the error for a status that a retry would not change."""
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
        """Return the first choice of a chat completion, and count its tokens."""
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
            read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
            self.tokens_in += read if isinstance(read, int) else 0
            self.tokens_out += written if isinstance(written, int) else 0
        return choice


class _Rejected(Exception):
    """The server rejects this request, perhaps because of its format."""

    def __init__(self, reason: str, status: int):
        super().__init__(reason)
        self.status = status


class _NoCompletion(Exception):
    """The answer is not a chat completion."""


def _message(error: openai.APIStatusError) -> str:
    """Return the server's message in an error."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("error") or body.get("detail") or body
    return re.sub(r"<[^>]*>", " ", str(body or error.response.text or "nothing more"))


def _retry_after(headers) -> float:
    """Read how many seconds to wait, from `retry-after-ms`, or `retry-after` in seconds or as a date; else 0."""
    seconds = 0.0
    with contextlib.suppress(ValueError):
        seconds = email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
    for name, unit in (("retry-after", 1), ("retry-after-ms", 1000)):  # the more precise one counts
        with contextlib.suppress(ValueError):
            seconds = float(headers.get(name, "")) / unit
    return seconds if 0 < seconds < math.inf else 0.0
