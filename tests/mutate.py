"""Mutation testing: changes the code in one place at a time and reports the changes that no test notices.

    pip install cosmic-ray                                   # by hand; the tests do not need it
    python tests/mutate.py                                   # every file of TESTS, 25 mutants each
    python tests/mutate.py code/cache.py --sample 0 --json cache.json        # all mutants of a file
    python tests/mutate.py code/cache.py --again cache.json                  # those that survived, with more tests

The mutants are those of cosmic-ray's operators, and statements that are left out (a call, an assignment to an attribute
or an item, `+=`). A sample takes places in the source at random, each as likely as any other, and at each place one of
its mutants. Left out is what cannot change a result: annotations, progress bars, `strict=` of zip, the test of
`__name__`, decorators that a module does not load without or that only save time; and what does not compile.

Each worker has a copy of the tree, and each mutant a process, forked from one that has imported the large libraries.
It runs the tests that TESTS names for its file, up to the first that fails; a test that takes three times as long as
it does without a mutant, and a minute more, has failed. Tests that fail without a mutant are left out and named; so
are those of SLOW, through real launchers and by the clock. A mutant that survives is printed; "all" weights the files
by their places.
"""

import argparse
import ast
import compileall
import contextlib
import ctypes
import importlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from py_compile import PycInvalidationMode

import parso
import psutil
import pytest
from cosmic_ray.ast import Visitor
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
STEPS = ["test_resume", "test_reported_numbers", "test_settings", "test_reference_training", "test_randomness"]
MUSIC = ["test_abc_lines", "test_abc_text", "test_bar_lengths", "test_interleaving"]
TESTS = {  # the tests of a file, the quickest to notice a fault first
    "code/training.py": [*STEPS, "test_loading", "test_training"],
    "code/loading.py": ["test_loading", "test_choices", "test_limits", *STEPS],
    "code/train_m3.py": ["test_loading", "test_choices", *STEPS, "test_training"],
    "code/train_clamp2.py": ["test_loading", "test_choices", *STEPS, "test_training"],
    "code/records.py": ["test_texts", "test_choices", "test_merge_jsonl"],
    "code/extraction.py": ["test_extraction_folder", "test_settings", "test_extraction", "test_published"],
    "code/embedding.py": ["test_embedding", "test_models", "test_golden"],
    "code/cache.py": ["test_cache", "test_search"],
    "code/patches.py": ["test_patches", "test_choices", "test_published_calls", "test_loading"],
    "code/packing.py": ["test_packing", "test_models", "test_published_calls"],
    "code/retrieval.py": ["test_retrieval_numbers", "test_retrieval"],
    "code/linear_probe.py": ["test_probe_numbers", "test_linear_probe"],
    "code/classify.py": ["test_classify"],
    "process_data/interleaving.py": MUSIC,
    "process_data/abc_voices.py": MUSIC,
    "process_data/bar_lengths.py": MUSIC,
    "process_data/abc_line.py": MUSIC,
    "process_data/abc_text.py": MUSIC,
    "process_data/overlays.py": MUSIC,
    "process_data/simplified.py": ["test_simplified"],
    "process_data/xml_values.py": ["test_xml_values", "test_mending"],
    "process_data/mending.py": ["test_mending", "test_xml_values", "test_musicxml"],
}
PRELOADED = (
    "accelerate torch.distributed torch.utils.data transformers transformers.models.bert.modeling_bert"
    " transformers.models.gpt2.modeling_gpt2 transformers.models.xlm_roberta.modeling_xlm_roberta"
    " hypothesis scipy.linalg scipy.stats sklearn.metrics sklearn.utils.class_weight"
)
SLOW = ("launchers", "two_processes_compute", "several_processes", "time_grows")  # in names of tests
COSMETIC = {"tqdm", "bar.update", "bar.set_postfix"}
DECORATORS = ("dataclass", "property", "staticmethod", "classmethod", "contextlib.contextmanager", "functools.cache")


# --- mutants --------------------------------------------------------------------------------------------------------
class RemoveStatement(Operator):
    """Leaves out a statement that only has an effect: a call, an assignment to an attribute or an item, `+=`."""

    def mutation_positions(self, node):
        if node.type == "simple_stmt":
            statement = node.children[0]
            if statement.type == "expr_stmt":
                target, assign = statement.children[:2]
                leaves_out = "." in target.get_code() or "[" in target.get_code() or len(assign.get_code().strip()) == 2
                leaves_out &= assign.type == "operator"
            else:
                leaves_out = statement.type == "atom_expr" and statement.children[-1].get_code().startswith("(")
            if leaves_out:
                yield (statement.start_pos, statement.end_pos)

    def mutate(self, node, index):
        first = node.children[0]
        node.children[0] = parso.python.tree.Keyword("pass", first.start_pos, first.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls):
        return ()


class Places(Visitor):
    """The places that an operator can change, in the order in which cosmic-ray counts them."""

    def __init__(self, operator):
        self.operator, self.found = operator, []

    def visit(self, node):
        self.found += self.operator.mutation_positions(node)
        return node


def operators() -> dict:
    """Those that need no arguments, by name."""
    known = {name.split("/")[1]: get_operator(name) for name in operator_names()}
    return {name: kind() for name, kind in known.items() if not kind.arguments()} | {"Remove": RemoveStatement()}


def meaningless(source: str) -> list[tuple]:
    """The ranges, ((line, column), (line, column)), in which a change means nothing."""
    nodes = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            nodes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes += [name for name in node.decorator_list if ast.unparse(name).startswith(DECORATORS)]
            nodes.append(getattr(node, "returns", None))
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            nodes.append(node.value)
        elif (isinstance(node, ast.Call) and ast.unparse(node.func) in COSMETIC) or (
            isinstance(node, ast.Compare) and ast.unparse(node.left) == "__name__"
        ):
            nodes.append(node)
    # from the sign of a decorator on; columns are bytes here and characters there, which differ in few lines
    return [((n.lineno, max(n.col_offset - 1, 0)), (n.end_lineno, n.end_col_offset)) for n in nodes if n]


def places(file: str) -> dict[tuple, list]:
    """What can be changed in a file, (operator, its name, how many before), by place."""
    source = (ROOT / file).read_text()
    skipped, tree, found = meaningless(source), parso.parse(source), {}
    for name, operator in operators().items():
        visitor = Places(operator)
        visitor.walk(tree)
        for occurrence, (start, end) in enumerate(visitor.found):
            if not any(first <= start and end <= last for first, last in skipped):
                found.setdefault((start, end), []).append((name, operator, occurrence))
    return found


def common(one: list[str], other: list[str]) -> int:
    """How many lines are the same at the beginning."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return [*same, False].index(False)


def mutants(file: str, count: int, seed: int) -> list[dict]:
    """A sample of a file's mutants, or all of them for a count of 0."""
    source, found, chosen = (ROOT / file).read_text(), places(file), []
    rng, original, old = random.Random(f"{seed} {file}"), ast.dump(ast.parse(source)), source.splitlines()
    for place in rng.sample(sorted(found), len(found)):
        for name, operator, occurrence in rng.sample(found[place], len(found[place])):
            text = mutate_code(source, operator, occurrence)
            try:
                if not text or ast.dump(ast.parse(text)) == original:
                    continue
            except SyntaxError:
                continue
            new = text.splitlines()
            head = common(old, new)
            tail = common(old[head:][::-1], new[head:][::-1])
            changed = [f"- {line}" for line in old[head : len(old) - tail]]
            changed += [f"+ {line}" for line in new[head : len(new) - tail]]
            chosen.append({"file": file, "line": head + 1, "operator": name, "changed": changed, "text": text})
            if count:
                break
        if count and len(chosen) == count:
            break
    return chosen


def mutants_again(report: Path, file: str) -> list[dict]:
    """The mutants of an earlier run; those that survived with the file as it is now and their change."""
    lines, found = (ROOT / file).read_text().splitlines(keepends=True), []
    for mutant in json.loads(report.read_text()):
        if mutant["file"] == file and mutant["by"] is None:
            old, new = ([line[2:] + "\n" for line in mutant["changed"] if line[0] == sign] for sign in "-+")
            there = [start for start in range(len(lines)) if lines[start : start + len(old)] == old]
            if not there:
                print(f"the code is another now: {file}:{mutant['line']}", *mutant["changed"], sep="\n    ")
                continue
            start = min(there, key=lambda start: abs(start + 1 - mutant["line"]))
            mutant |= {"line": start + 1, "text": "".join([*lines[:start], *new, *lines[start + len(old) :]])}
        if mutant["file"] == file:
            found.append(mutant)
    return found


# --- running the tests ----------------------------------------------------------------------------------------------
class Tests:
    """Hooks of pytest: which tests are run, how long each may take, and what became of them."""

    def __init__(self, seconds: dict[str, float] | None):
        self.known, self.seconds, self.failed, self.skipped = seconds, Counter(), {}, set()

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if not any(word in item.name for word in SLOW)]
        if self.known is None:
            return
        items[:] = [item for item in items if item.nodeid in self.known]
        for item in items:
            item.add_marker(pytest.mark.timeout(3 * self.known[item.nodeid] + 60))

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed[report.nodeid or "collection"] = str(report.longrepr)[-300:]

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)[-300:]
        elif report.skipped:
            self.skipped.add(report.nodeid)


class Worker:
    """A copy of the tree, and a process that runs its scripts (zygote.py)."""

    def __init__(self, folder: str):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what a test leaves running is ours to end
        os.nice(10)
        self.tree = Path(folder, str(os.getpid()), ROOT.name)
        ignore = shutil.ignore_patterns(".*", "__pycache__", "weights_*[0-9].pth", "latest_*", "logs_*", "wandb")
        shutil.copytree(ROOT, self.tree, ignore=ignore)
        compileall.compile_dir(self.tree, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        if (shared := ROOT.parent / "shared").exists():
            (self.tree.parent / "shared").symlink_to(shared)
        sys.path[0] = str(self.tree / "tests")
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.helpers = importlib.import_module("helpers")
        self.start_script = self.helpers._zygote.__wrapped__
        self.zygote = self.start_script()

    def run(self, names: list[str], seconds: dict[str, float] | None = None) -> Tests:
        """Runs tests in a process of its own: all of them, or those of `seconds` up to the first that fails."""
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = os.fork()
        if process == 0:
            self._run(names, seconds, theirs)
        theirs.close()
        result = Tests(None)
        result.failed = {"": "the process of the tests died or hung"}
        with contextlib.suppress(EOFError):
            if ours.poll(sum(3 * each + 1 for each in seconds.values()) + 60 if seconds else 3600):
                result.failed, result.skipped, result.seconds = ours.recv()
        hangs = bool(psutil.Process(self.zygote.pid).children())  # a script that a test did not wait for
        for left in psutil.Process().children(recursive=True):
            if hangs or left.pid != self.zygote.pid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
                    left.wait()
        if hangs:
            self.zygote = self.start_script()
        shutil.rmtree(self.tree / ".hypothesis", ignore_errors=True)
        return result

    def _run(self, names, seconds, pipe):
        """In the process of the tests."""
        started_by = self.helpers.run

        def run(*command, timeout=240, **options):  # as run_script does, without importing all anew
            plain = command[2:] if command[0] == "-W" else command
            if str(plain[0]).endswith(".py") and "PYTHONPATH" not in options:
                return self.helpers.run_script(*plain, **options)
            return started_by(*command, timeout=timeout, **options)

        self.helpers.run, self.helpers._zygote = run, lambda: self.zygote
        tests = Tests(seconds)
        os.setpgrp()
        os.chdir(self.tree)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        files = [f"tests/{name}.py" for name in names]
        options = ["-p", "no:cacheprovider", "-p", "no:randomly", "-q", "--assert=plain", "--tb=line", "--timeout=600"]
        status = pytest.main([*options, *(["-x"] if seconds else []), *files], plugins=[tests])
        if status and not tests.failed:
            tests.failed["pytest"] = f"status {status}"
        pipe.send((tests.failed, tests.skipped, tests.seconds))
        os._exit(0)


worker: Worker


def begin(folder: str) -> None:
    global worker
    worker = Worker(folder)


def clean(name: str) -> Tests:
    return worker.run([name])


def judge(job: tuple[dict, dict]) -> dict:
    """What becomes of a mutant: it, with the test that notices it as "by"."""
    mutant, seconds = job
    path = worker.tree / mutant["file"]
    source = path.read_text()
    try:
        path.write_text(mutant.pop("text"))
        result = worker.run(TESTS[mutant["file"]], seconds)
    finally:
        path.write_text(source)
    by, how = next(iter(result.failed.items()), (None, ""))
    return mutant | {"by": by, "how": how, "seconds": round(sum(result.seconds.values()), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", default=list(TESTS), metavar="FILE", help="of TESTS, from the repository's root"
    )
    parser.add_argument("--sample", type=int, default=25, help="mutants of each file; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, help="run what survived in an earlier --json, and add up with the rest")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where every mutant and what became of it is written")
    options = parser.parse_args()
    if options.again:
        made = {file: mutants_again(options.again, file) for file in options.files}
    else:
        made = {file: mutants(file, options.sample, options.seed) for file in options.files}
    for name in PRELOADED.split():
        importlib.import_module(name)
    with (
        tempfile.TemporaryDirectory(prefix="mutate-") as folder,
        ProcessPoolExecutor(options.workers, multiprocessing.get_context("fork"), begin, (folder,)) as pool,
    ):
        names = list(dict.fromkeys(name for file in options.files for name in TESTS[file]))
        seconds = {}
        for result in pool.map(clean, names):
            for test, duration in result.seconds.items():
                if test in result.failed:
                    print(f"left out: {test}: {result.failed[test]}", flush=True)
                elif test not in result.skipped:
                    seconds[test] = duration
        print(f"{len(seconds)} tests, {sum(seconds.values()):.0f} s without a mutant", flush=True)
        jobs = []
        for file, sample in made.items():
            of_file = {test: each for test, each in seconds.items() if Path(test.split("::")[0]).stem in TESTS[file]}
            jobs.append([(mutant, of_file) for mutant in sample if "text" in mutant])
        # the first of each file, then the second of each: a run that is cut off has some of all
        jobs = [job for rank in itertools.zip_longest(*jobs) for job in rank if job]
        done = [mutant for sample in made.values() for mutant in sample if "text" not in mutant]
        for judged in as_completed([pool.submit(judge, job) for job in jobs]):
            done.append(mutant := judged.result())
            if mutant["by"] is None:
                where = f"{mutant['file']}:{mutant['line']} {mutant['operator']}"
                print(where, *mutant["changed"], sep="\n    ", flush=True)
            if options.json:
                options.json.write_text(json.dumps(done, indent=1))
    rates, weights = [], [len(places(file)) for file in made]
    for file, count in zip(made, weights, strict=True):
        noticed = [mutant["by"] is not None for mutant in done if mutant["file"] == file]
        rates.append(sum(noticed) / max(len(noticed), 1))
        print(f"{file:32}{sum(noticed):4} of{len(noticed):4} = {rates[-1]:4.0%}  ({count} places)")
    print(f"{'all':32}{sum(a * b for a, b in zip(rates, weights, strict=True)) / sum(weights):18.1%}")


if __name__ == "__main__":
    main()
