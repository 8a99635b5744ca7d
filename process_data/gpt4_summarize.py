"""Write summaries of music from its metadata with a large language model: in English, and in one more language.

examples:
  export OPENAI_API_KEY=...                        the only place for the key; a server without keys takes any value
  python gpt4_summarize.py data/metadata data/summaries --dry_run --price 2.5 10            what would it cost?
  python gpt4_summarize.py data/metadata data/summaries --model gpt-4o --limit 20           a first look
  python gpt4_summarize.py data/metadata data/summaries --model gpt-4o --merge data/train.jsonl
  python gpt4_summarize.py data/metadata data/summaries --model my-model --base_url http://localhost:8000/v1
  python gpt4_summarize.py data/metadata data/summaries --merge data/train.jsonl            asks nothing more

IN holds records, one .json file each (or is one .jsonl file); OUT gets each of them, its metadata untouched, with
`summary_en` and `summary_nen`; both are null where the model finds that the metadata are not enough. The second
language is drawn from XLM-R's list. Each answer is paid for once: the same command resumes a run that ended early, and
asks only for records that are not finished, or whose metadata have changed. errors.jsonl in OUT names each failed
record with its reason, warnings.jsonl those without summaries. With --merge, all records that are fit for training go
to one JSONL file (see merge_jsonl.py).
Exit status: 0; 1 if a record failed or was left out; 2 for wrong use.
"""

import argparse
import asyncio
import functools
import io
import json
import os
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

import chat
import jobs
import languages
import merge_jsonl
import metadata
import prompts
from shared import InputError, files, records

ANSWERS = 3  # the first, and two more if one cannot be used
LAST_WAIT = 60.0  # seconds; when a run must end, requests under way may still be answered: they are paid for
# For --dry_run. A token of English text is some four bytes; an answer in two languages is about as long as this.
BYTES_PER_TOKEN, ANSWER_TOKENS, OVERHEAD_TOKENS = 4, 300, 100


async def summarize(model: chat.Chat, facts: dict, language: str) -> tuple[str, str] | None:
    """Ask for the summaries (English, other) of a piece; None if too little is known of it.

    Raises chat.Failed, and what `model.ask` raises.
    """
    fault = None
    for _ in range(ANSWERS):
        text = await model.ask(prompts.INSTRUCTIONS, prompts.question(facts, language, fault), prompts.SCHEMA)
        try:
            summaries = prompts.read_answer(text, language)
            if summaries and any(model.shows_key(summary) for summary in summaries):
                raise prompts.Unusable("it shows a secret")
            return summaries
        except prompts.Unusable as error:
            fault = model.hide(str(error))
    raise chat.Failed(f"no usable answer in {ANSWERS}; the last: {fault}")


class Summarizer:
    """Summarizes all records, `--concurrency` at a time."""

    def __init__(self, args: argparse.Namespace, todo: jobs.Jobs, model: chat.Chat):
        self.args, self.jobs, self.model = args, todo, model
        self.asked = self.done = self.insufficient = self.skipped = self.failed = 0
        self.is_ending = False
        self.other_fields: Counter[str] = Counter()
        self.errors = jobs.Log("errors", "error", todo)
        self.warnings = jobs.Log("warnings", "warnings", todo)

    async def all(self) -> None:
        """Summarize all records. Raises chat.Stop or InputError if it ends early; answers until then are written."""
        with jobs.progress("record", total=len(self.jobs)) as progress:
            waiting_jobs = iter(self.jobs)
            tasks = {asyncio.create_task(self._work(waiting_jobs, progress)) for _ in range(self.args.concurrency)}
            try:
                done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                if waiting:
                    self.is_ending = True
                    self.model.end()
                    await asyncio.wait(waiting, timeout=LAST_WAIT)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.model.close()

    async def _work(self, todo: Iterator[jobs.Job], progress: tqdm) -> None:
        for job in todo:
            if self.is_ending or (self.args.limit and self.asked >= self.args.limit):
                return
            try:
                await self._one(job)
            except (records.Unfit, chat.Failed) as error:
                self.failed += 1
                self.errors.add(job.name, str(error))
            counts = {"done": self.done, "skipped": self.skipped, "failed": self.failed, "retries": self.model.retries}
            progress.set_postfix(counts, refresh=False)
            progress.update()
            await asyncio.sleep(0)  # so that answers are read as they come, also among thousands of finished records

    async def _one(self, job: jobs.Job) -> None:
        record = metadata.read(job)
        self.other_fields.update(record.keys() - set(records.FIELDS))
        output = metadata.read_output(job, record)
        if output:
            wanted = metadata.with_summaries(record, output["summary_en"], output["summary_nen"])
            if wanted != output:  # another field has changed, `filepaths` for one
                metadata.write(job, wanted)
            self.skipped += 1
            self.errors.discard(job.name)
            return
        facts, warnings = prompts.known(record)
        english = other = None
        if facts and not metadata.has_summaries(record):
            self.asked += 1
            language = languages.draw(self.args.languages, self.args.seed, job.name)
            summaries = await summarize(self.model, facts, language)
            if summaries:
                english, other = summaries[0], {"language": language, "summary": summaries[1]}
        record = metadata.with_summaries(record, english, other)
        metadata.write(job, record)
        if not metadata.has_summaries(record):
            self.insufficient += 1
            warnings = ["too little is known of it for a summary", *warnings]
        self.done += 1
        self.errors.discard(job.name)
        self.warnings.discard(job.name)
        if warnings:
            self.warnings.add(job.name, warnings)

    def report(self) -> None:
        jobs.finish_logs(self.errors, self.warnings, "record(s)")
        if self.other_fields:
            fields = ", ".join(f"{field} ({count} records)" for field, count in self.other_fields.most_common())
            print(f"Kept, but not sent to the model, because the format has no such field: {files.printable(fields)}")
        tokens = f"{self.model.tokens_in} tokens in, {self.model.tokens_out} out"
        if self.args.price:
            tokens += f": ${cost(self.model.tokens_in, self.model.tokens_out, self.args.price):.2f}"
        print(f"{self.asked} records asked for, {tokens}; {self.model.retries} requests repeated")
        left = len(self.jobs) - self.done - self.skipped - self.failed
        print(
            f"{self.done} done ({self.insufficient} of them without summaries: too little is known), {self.skipped} "
            f"skipped (finished before), {self.failed} failed, {left} left, {self.jobs.other_files} other files "
            "ignored"
        )


def cost(tokens_in: float, tokens_out: float, price: tuple[float, float]) -> float:
    """Compute a cost in dollars; `price` is dollars per million tokens in and out."""
    return (tokens_in * price[0] + tokens_out * price[1]) / 1e6


def dry_run(args: argparse.Namespace, todo: jobs.Jobs) -> int:
    """Print the prompts and an estimate of their cost, write nothing. Returns the exit status."""
    print(f"--- to all\n{prompts.INSTRUCTIONS}")
    fixed = len((prompts.INSTRUCTIONS + json.dumps(prompts.SCHEMA)).encode()) / BYTES_PER_TOKEN + OVERHEAD_TOKENS
    asked, failed, tokens_in = 0, 0, 0.0
    for job in todo:
        try:
            record = metadata.read(job)
        except records.Unfit as error:
            failed += 1
            print(files.printable(f"--- {job.name}: cannot be asked for: {error}"))
            continue
        facts, _ = prompts.known(record)
        if not facts or metadata.has_summaries(record) or metadata.read_output(job, record):
            continue
        prompt = prompts.question(facts, languages.draw(args.languages, args.seed, job.name))
        print(f"--- {files.printable(job.name)}\n{prompt}")
        asked += 1
        tokens_in += fixed + len(prompt.encode()) / BYTES_PER_TOKEN
        if asked == args.limit:
            break
    tokens_out = asked * ANSWER_TOKENS
    print(f"--- {asked} of {len(todo)} records would be asked for, {failed} cannot be read")
    print(f"About {tokens_in:.0f} tokens in, {tokens_out} out (a rough estimate, within a third or so)")
    if args.price:
        print(f"About ${cost(tokens_in, tokens_out, args.price):.2f}")
    return int(failed > 0)


def get_args_parser() -> argparse.ArgumentParser:
    parser = jobs.parser(__doc__)
    add = parser.add_argument
    add("source", metavar="IN", type=Path, help="folder of .json files (its whole tree), a .json or a .jsonl file")
    add("output", metavar="OUT", type=Path, help="folder that gets the mirrored tree and the logs")
    add("--model", metavar="M", help="name of the model, as the server knows it")
    add("--base_url", metavar="U", help="of the server, up to and with /v1 (default: OPENAI_BASE_URL, or OpenAI's)")
    add(
        "--concurrency",
        metavar="N",
        type=jobs.positive(int),
        default=16,
        help="at a time (default: %(default)s)",
    )
    add("--languages", metavar="FILE", type=Path, help="names of languages to draw from, one a line")
    add("--seed", metavar="S", type=int, default=0, help="of the draw of languages (default: %(default)s)")
    add("--limit", metavar="N", type=jobs.positive(int), help="ask for the next N records only")
    add("--dry_run", action="store_true", help="ask nothing; print the prompts, and estimate tokens and cost")
    add(
        "--price",
        metavar=("DOLLARS_IN", "DOLLARS_OUT"),
        type=float,
        nargs=2,
        help="dollars per million tokens in and out",
    )
    add("--merge", metavar="FILE.jsonl", type=Path, help="then merge OUT into this file; without --model: only that")
    return parser


def get_jobs(args: argparse.Namespace) -> jobs.Jobs:
    """Return the records as jobs, after all checks that need no answer. Raises OSError or ValueError."""
    if not (args.model or args.merge or args.dry_run):
        raise ValueError("--model is needed; or --dry_run, or --merge alone")
    if args.merge:
        merge_jsonl.check_target(args.merge)
        if args.merge.exists() and args.merge.samefile(args.source):
            raise ValueError(f"--merge {args.merge} would overwrite the input")
    args.languages = languages.read(args.languages) if args.languages else languages.LANGUAGES
    if args.source.suffix.lower() == ".jsonl" and not args.source.is_dir():
        return metadata.Lines(args.source, args.output)
    return jobs.Jobs(args.source, args.output, (".json",), ".json", (1, 1), several=False)


def get_model(args: argparse.Namespace) -> chat.Chat:
    """Return the model at its server. Raises InputError if the key or the address cannot be right."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise InputError("set OPENAI_API_KEY to the key of the server, or to any word if it has no keys")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError("OPENAI_API_KEY holds something that is no key: spaces, or characters beyond ASCII")
    if url := args.base_url or os.environ.get("OPENAI_BASE_URL"):
        try:
            parts = urllib.parse.urlsplit(url)
            is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # the port is no number, or none that exists
            is_address = False
        if not is_address:
            hint = "it must be the address of a server, such as http://localhost:8000/v1"
            raise InputError(f"--base_url {url}: {hint}")
    return chat.Chat(args.model, args.base_url, key)


def ask(args: argparse.Namespace, todo: jobs.Jobs, model: chat.Chat) -> int:
    """Ask for all records that are not finished, and print the counts. Returns the exit status.

    Raises chat.Stop, InputError or KeyboardInterrupt if it ended early.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(args.output)
    print(f"Asking {args.model} at {model.url}, {args.concurrency} requests at a time", file=sys.stderr)
    summarizer = Summarizer(args, todo, model)
    try:
        asyncio.run(summarizer.all())
    finally:
        summarizer.report()
    return int(summarizer.failed > 0)


def main(argv: list[str] | None = None) -> int:
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # prompts are in all languages, a terminal may show few
    try:
        todo = get_jobs(args)
        model = get_model(args) if args.model and not args.dry_run else None
    except (OSError, ValueError) as error:
        parser.error(files.printable(error))
    try:
        if args.dry_run:
            return dry_run(args, todo)
        status = ask(args, todo, model) if model else 0
        if args.merge:
            status |= merge_jsonl.merge(
                [(job.name, functools.partial(metadata.finished, job)) for job in todo], args.merge
            )
        return status
    except (InputError, OSError) as error:
        print(f"{parser.prog}: error: {files.printable(error)}", file=sys.stderr)
        return 2
    except chat.Stop as error:
        print(f"Stopped: {files.printable(error)}. The same command goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
