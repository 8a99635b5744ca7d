"""What a GPU is asked, in one run of a few minutes: `python tests/benchmark.py --gpu FOLDER --json gpu.json`.

FOLDER holds interleaved ABC and MTF. The stages, the most important first:

    ceilings      rates of matrix products and of a copy
    attention     ways to attend within sequences of different lengths, forward and backward; see gpu_attention.py
    steps         a training step of each model against the straightforward form, in bfloat16, and where its time goes
    extraction    features in float32 and bfloat16
    compilation   CLaMP 2's step with layers as they are, and compiled
    tests         test_gpu.py
    training      M3 by its real script: stopped, and continued

Each stage is a process of its own, so that a fault costs what comes after it in its stage alone, and ends when its time
is over. --json is written after each stage. Without a GPU all this runs at a tiny size on the CPU, to try the script.
"Share" is model operations of real patches, characters and tokens over time and the measured rate of the precision.
"""

import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import config
import works
from embedding import BATCH_TOKENS_GPU
from files import list_files
from helpers import ROOT
from patches import M3Patchilizer, read_music, remove_unit_length
from works import Work, compare, peak_memory, random_texts, synchronize

STAGES = {  # seconds each may take at most
    "ceilings": 40, "attention": 110, "steps": 140, "extraction": 90, "compilation": 90, "tests": 60, "training": 200,
}  # fmt: skip
TINY = {"M3_HIDDEN_SIZE": 64, "PATCH_NUM_LAYERS": 2, "TOKEN_NUM_LAYERS": 1}
GRACE = 5  # seconds that a stage has beyond its own to end by itself
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "aten::nonzero", "aten::_local_scalar_dense")


# --- the run ----------------------------------------------------------------------------------------------------------
@dataclass
class Bench:
    """What a stage is given. `report(key, value)` adds to the results at once."""

    folder: Path
    deadline: float  # of the stage, by time.monotonic()
    report: Callable[[str, Any], None]
    full: bool  # published sizes; else tiny ones
    device: torch.device

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of a stage, which the next one does without."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - named; the other parts are measured
            traceback.print_exc()
            say(f"{name}: not measured: {one_line(error)}")
            self.report(f"{name} failed", one_line(error))
        self.free()

    def free(self) -> None:
        """Gives the memory of models that are no longer used back."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def say(text: str) -> None:
    print(text, flush=True)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:110]


def run(folder: Path, minutes: float, stages: list[str], path: Path | None = None) -> dict:
    """All stages that the time suffices for. Returns their results."""
    end = time.monotonic() + minutes * 60
    full = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if full else f"no GPU, a tiny size on {platform.processor() or 'the CPU'}"
    results: dict = {"machine": name, "torch": torch.__version__, "transformers": transformers.__version__}
    say(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} cores")
    for stage in (stage for stage in STAGES if stage in stages):
        began = time.monotonic()
        if end - began < 15:
            say(f"\n=== {stage}: skipped, the {minutes:g} minutes are over")
            results[stage] = {"skipped": True}
            continue
        say(f"\n=== {stage}, after {minutes * 60 - (end - began):.0f} s")
        results[stage] = _run_stage(stage, folder, min(end, began + STAGES[stage]), full)
        results[stage]["seconds"] = round(time.monotonic() - began, 1)
        if path:
            path.write_text(json.dumps(results, indent=1))
    return results


def _run_stage(stage: str, folder: Path, deadline: float, full: bool) -> dict:
    """The results of a stage in a process of its own: those it had, if it fails or is ended."""
    context = multiprocessing.get_context("spawn" if full else "fork")  # CUDA does not survive a fork
    incoming, outgoing = context.Pipe(duplex=False)
    child = context.Process(target=_stage, args=(stage, folder, deadline, full, outgoing))
    child.start()
    outgoing.close()
    results: dict = {}
    while incoming.poll(max(0.0, deadline + GRACE - time.monotonic())):
        try:
            key, value = incoming.recv()
        except EOFError:
            break
        results[key] = value
    else:
        say(f"{stage}: its time is over")
        results["ended"] = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with what it has started
    child.join()
    if child.exitcode:
        say(f"{stage}: exit status {child.exitcode}")
        results["exit status"] = child.exitcode
    return results


def _stage(stage: str, folder: Path, deadline: float, full: bool, outgoing: Connection) -> None:
    os.setsid()
    gc.freeze()  # what was imported need not be looked through for garbage
    if not full:
        vars(config).update(TINY)
        works.WORDS, works.LENGTH = 1000, 128
    device = torch.device("cuda" if full else "cpu")
    bench = Bench(folder, deadline, lambda key, value: outgoing.send((key, value)), full, device)
    with bench.part(stage):
        globals()[stage](bench)


# --- measuring --------------------------------------------------------------------------------------------------------
def timed(device: torch.device, function: Callable[[], object], seconds: float = 0.15) -> tuple[float, float]:
    """(seconds, seconds the host takes to start it), medians."""
    hosts = []
    for _ in range(5 if device.type == "cuda" else 2):  # the first ones to warm up
        synchronize(device)
        start = time.perf_counter()
        function()
        hosts.append(time.perf_counter() - start)
        synchronize(device)
    count = max(5, min(100, int(seconds / (time.perf_counter() - start))))
    if device.type == "cpu":  # to try the script
        return hosts[-1], hosts[-1]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    synchronize(device)
    times = [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(marks)]
    return statistics.median(times), statistics.median(hosts[2:])


def product_rate(device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int] | None = None) -> float:
    """Floating-point operations a second of a matrix product, by default of a large square one."""
    rows, inner, columns = sizes or ((8192, 8192, 8192) if device.type == "cuda" else (256, 256, 256))
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)
    return 2 * rows * inner * columns / timed(device, lambda: a @ b)[0]


def pieces(bench: Bench, count: int, seed: int = 0, crop: bool = True) -> list[np.ndarray]:
    """Patches of random pieces of the folder, repeated if there are too few; cropped: to 512 patches somewhere."""
    rng, patchilizer = random.Random(seed), M3Patchilizer()
    paths, _ = list_files(bench.folder, (".abc", ".mtf"))
    chosen = itertools.islice(itertools.cycle(rng.sample(paths, min(count, len(paths)))), count)
    return [
        patchilizer.encode_array(
            remove_unit_length(read_music(bench.folder / path)), add_special_patches=True, truncate=crop,
            random_truncate=crop, rng=rng,
        )
        for path in chosen
    ]  # fmt: skip


# --- stages -----------------------------------------------------------------------------------------------------------
def ceilings(bench: Bench) -> None:
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        rate = product_rate(bench.device, dtype)
        say(f"matrix product, {name}: {rate / 1e12:.3g} TFLOP/s")
        bench.report(name, rate)
    for columns in (768, 3072):  # as in a layer, on the patches of 16 pieces
        rate = product_rate(bench.device, torch.bfloat16, (6000 if bench.full else 60, 768, columns))
        say(f"matrix product of 6000 x 768 x {columns}, bfloat16: {rate / 1e12:.3g} TFLOP/s")
        bench.report(f"bfloat16 768 x {columns}", rate)
    source = torch.randn(2**28 if bench.full else 2**16, device=bench.device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / timed(bench.device, lambda: target.copy_(source))[0]
    say(f"copy, read and written: {rate / 1e9:.0f} GB/s")
    bench.report("copy", rate)


def attention(bench: Bench) -> None:
    import gpu_attention

    encoder = [len(piece) for piece in pieces(bench, 128 if bench.full else 2)]
    rng = random.Random(0)
    gpu_attention.measure(bench, {
        "encoder, 16": (encoder[:16], False),
        "encoder, 128": (encoder, False),
        "decoder, 3000": ([rng.randint(27, 63) for _ in range(3000 if bench.full else 5)], True),
        "text, 128": ([rng.randint(10, 90) for _ in range(128 if bench.full else 2)], False),
    })  # fmt: skip


def steps(bench: Bench) -> None:
    for name, count in (("m3_step", 16), ("clamp2_step", 128)):
        with bench.part(name):
            _step(bench, name, count if bench.full else 3)


def _step(bench: Bench, name: str, count: int) -> None:
    music = pieces(bench, count)
    rate = product_rate(bench.device, torch.bfloat16)
    ours = Work(name, "ours", bench.device, torch.bfloat16)
    ours.prepare(music[:16])
    with torch.compiler.set_stance("force_eager"):  # the tests compare compiled layers
        found = ours.results()
    ours.prepare(music)
    row = _row(bench, name, "ours", ours, rate)
    with bench.part(f"{name} profile"):
        _profile(bench, name, ours, row["ms"])
    del ours
    bench.free()
    plain = Work(name, "plain", bench.device, torch.bfloat16)
    plain.prepare(music[:16])
    there = plain.results()
    bench.report(f"{name} loss difference", abs(found["loss"] - there["loss"]).item())
    say(f"{name}: {compare(name, found, there, exact=False)}")
    del found, there
    while count:
        try:
            plain.prepare(music[:count])
            there = _row(bench, name, "plain", plain, rate)
            break
        except torch.OutOfMemoryError:
            say(f"{name:12} plain: no memory for {count} pieces at once, half as many then")
        count //= 2
        plain.optimizer.zero_grad(set_to_none=True)
        bench.free()
    ratio = row["pieces/s"] / there["pieces/s"]
    say(f"{name}: {ratio:.2f} times the straightforward form")
    bench.report(f"{name} ratio", ratio)


def _row(bench: Bench, name: str, form: str, work: Work, rate: float) -> dict:
    """Times a step, prints and reports it."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, host = timed(bench.device, work.once, 2)
    row = {
        "pieces": work.pieces, "tokens": work.tokens, "ms": seconds * 1e3, "host ms": host * 1e3,
        "pieces/s": work.pieces / seconds, "share": work.flops / seconds / rate, "GB": peak_memory(bench.device),
        "padded": work.padded_flops / work.flops,
    }  # fmt: skip
    say(
        f"{name:12} {form:5}: {row['pieces']} pieces of {row['tokens'] / row['pieces']:.0f} patches and tokens in"
        f" {row['ms']:.1f} ms (started in {row['host ms']:.1f}); {row['pieces/s']:.0f} pieces/s, {row['share']:.1%} of"
        f" {rate / 1e12:.3g} TFLOP/s, {row['GB']:.1f} GB"
    )
    bench.report(f"{name} {form}", row)
    return row


def _profile(bench: Bench, name: str, work: Work, milliseconds: float) -> None:
    """The kernels of a step by their time, and how often the host waits for them."""
    activity, count = torch.profiler.ProfilerActivity, 3 if bench.full else 1
    on_gpu = bench.device.type == "cuda"
    with torch.profiler.profile(activities=[activity.CPU, *([activity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(count):
            work.once()
        synchronize(bench.device)
    events = profiler.key_averages()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kernels = [
        (getattr(event, key) / 1e3 / count, event.count / count, event.key)
        for event in events
        if (event.device_type != torch.autograd.DeviceType.CPU) == on_gpu and not event.key.startswith("Optimizer.")
    ]
    kernels.sort(reverse=True)
    total = sum(time for time, _, _ in kernels)
    waits = {event.key: event.count / count for event in events if event.key in WAITS}
    say(
        f"{name}: kernels take {total:.1f} ms of a step's {milliseconds:.1f}; {sum(n for _, n, _ in kernels):.0f} of"
        f" them; waits of a step, by the profiler: {waits}"
    )
    for time_, number, kernel in kernels[:25]:
        say(f"  {time_:8.3f} ms {time_ / total:5.1%} {number:6.1f} x  {short(kernel)}")
    bench.report(f"{name} profile", {"kernel ms": total, "waits": waits, "kernels": kernels[:25]})


def short(kernel: str) -> str:
    """A kernel's name without what all have."""
    kernel = re.sub(r"^void |at::native::|\(anonymous namespace\)::|std::|c10::|unsigned |\(.*\)$", "", kernel)
    return kernel[:110]


def extraction(bench: Bench) -> None:
    count = 256 if bench.full else 4
    music = pieces(bench, count, crop=False)
    items = {"extract_m3": music, "extract_clamp2": music, "extract_clamp2 text": random_texts(4 * count)}
    for (name, inputs), dtype in itertools.product(items.items(), (torch.bfloat16, torch.float32)):
        with bench.part(f"{name} {dtype}"):
            rate = product_rate(bench.device, dtype)
            speeds = {}
            for form in ("ours", "plain"):
                work = Work(name.removesuffix(" text"), form, bench.device, dtype)
                work.prepare(inputs[: len(inputs) // (1 if form == "ours" else 8) or 1])
                sizes = (BATCH_TOKENS_GPU, 4096, 16384) if form == "ours" and bench.full else (4096,)
                for work.batch_tokens in sizes:
                    work.run()
                    seconds = statistics.median(work.run() for _ in range(3 if bench.full else 1))
                    speed = {"pieces/s": work.pieces / seconds, "tokens/s": work.tokens / seconds,
                             "share": work.flops / seconds / rate}  # fmt: skip
                    say(
                        f"{name:20} {str(dtype)[6:]:9} {form:5}, {work.batch_tokens:5} tokens a pass:"
                        f" {speed['pieces/s']:7.0f} pieces/s, {speed['tokens/s']:9.0f} tokens/s, {speed['share']:.1%} of"
                        f" {rate / 1e12:.3g} TFLOP/s"
                    )
                    bench.report(f"{name} {str(dtype)[6:]} {form} {work.batch_tokens}", speed)
                    speeds.setdefault(form, speed)  # of the first size, the default
                del work
                bench.free()
            ratio = speeds["ours"]["tokens/s"] / speeds["plain"]["tokens/s"]
            say(f"{name}, {str(dtype)[6:]}: {ratio:.1f} times the straightforward form")
            bench.report(f"{name} {str(dtype)[6:]} ratio", ratio)


def compilation(bench: Bench) -> None:
    """CLaMP 2's step with layers as they are, and compiled."""
    counts = torch._dynamo.utils.counters
    work = Work("clamp2_step", "ours", bench.device, torch.bfloat16)
    batches = [pieces(bench, 128 if bench.full else 2, seed) for seed in range(10)]

    def milliseconds() -> float:
        times = []
        for batch in batches:
            work.prepare(batch)
            times.append(work.run())
        return sum(times) * 1e3 / len(times)

    with torch.compiler.set_stance("force_eager"):
        milliseconds()
        before = milliseconds()
    work.prepare(batches[0])
    first = work.run()
    graphs = counts["stats"]["unique_graphs"]
    milliseconds()
    more = counts["stats"]["unique_graphs"] - graphs
    breaks = Counter(counts["graph_break"])
    after = milliseconds()
    say(
        f"CLaMP 2 step: {before:.1f} ms, compiled {after:.1f} ms: {before / after - 1:+.0%}; {graphs} graphs in {first:.1f} s,"
        f" {more} more over 10 batches, {sum(breaks.values())} graph breaks"
        f" {[short(reason.splitlines()[0]) for reason, _ in breaks.most_common(3)]}"
    )
    bench.report(
        "clamp2_step", {"ms": before, "compiled ms": after, "graphs": graphs, "more graphs": more, "first s": first}
    )


def tests(bench: Bench) -> None:
    files = [str(ROOT / "tests" / name) for name in ("test_gpu.py", "test_waits.py")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", "--tb=short", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=bench.left)
    say(done.stdout[-6000:] + done.stderr[-2000:])
    bench.report("status", done.returncode)
    bench.report("summary", done.stdout.strip().splitlines()[-1])


# --- the real script --------------------------------------------------------------------------------------------------
def training(bench: Bench) -> None:
    """train_m3.py for two minutes or what is left, SIGTERM, and the same command again."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        constants = {
            "TRAIN_FOLDERS": [str(bench.folder.resolve())], "M3_NUM_EPOCH": 1000, "M3_WEIGHTS_PATH": str(folder / "m3.pth"),
            "M3_LOGS_PATH": str(folder / "log.txt"), "NUM_WORKERS": 12 if bench.full else 0, "PRECISION": "bfloat16",
            **({} if bench.full else TINY | {"M3_BATCH_SIZE": 2, "EVAL_SPLIT": 0.5}),
        }  # fmt: skip
        losses: list[float] = []
        path = folder / "config.py"
        path.write_text("".join(f"{name} = {value!r}\n" for name, value in constants.items()))
        for part, seconds in (("begun", 120), ("continued", 15)):
            done = _train(path, seconds if bench.full else 2, bench.left - (60 if part == "begun" else 5))
            say(f"{part}, and stopped with exit status {done['status']}\n")
            bench.report(part, done)
            losses += [float(loss) for line in done["printed"] for loss in re.findall(r"eval_loss ([\d.]+|nan)", line)]
        if not losses or not losses[-1] < min(losses) + 0.5:
            raise RuntimeError(f"M3 did not learn: evaluation losses {losses}")


def _train(path: Path, seconds: float, limit: float) -> dict:
    """Runs the script until so many seconds after its first step, and stops it. Prints and returns what it showed."""
    log = path.with_name("printed.txt")
    began, first_step = time.monotonic(), None
    with log.open("wb") as file:
        script = subprocess.Popen(
            [sys.executable, str(ROOT / "code/train_m3.py")], env=os.environ | {"CLAMP2_CONFIG": str(path)},
            stdout=file, stderr=file,
        )  # fmt: skip
    while script.poll() is None and time.monotonic() - began < limit:
        if not first_step and b"loss=" in log.read_bytes():
            first_step = time.monotonic()
        if first_step and time.monotonic() - first_step > seconds:
            break
        time.sleep(0.2)
    script.terminate()
    try:
        script.wait(30)
    except subprocess.TimeoutExpired:
        script.kill()
        script.wait()
    printed = re.split(r"[\r\n]+", log.read_text(errors="replace"))
    bars: dict[str, list[str]] = {}  # of an epoch
    for line in printed:
        if line.startswith("epoch ") and "loss=" in line:
            bars.setdefault(line.split(":")[0], []).append(line)
    shown = [line for line in printed if line.startswith(("epoch ", "stopped", "  starts", "bad")) and "|" not in line]
    shown = [*shown, *(found[0] for found in list(bars.values())[:1]), *(found[-1] for found in bars.values())]
    say("\n".join(shown[-40:] if bars else printed[-20:]))
    return {"status": script.returncode, "printed": shown}
