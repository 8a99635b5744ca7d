"""Time and memory of the models against the straightforward form of the same computation. Run by hand; CI does not.

    python tests/benchmark.py                                  all works, published sizes, float32
    python tests/benchmark.py --work m3_step --precision bfloat16
    python tests/benchmark.py --abc interleaved/ --mtf mtf/ --json benchmark.json
    python tests/benchmark.py --scaling        10^2 ... 10^5 pieces: is time linear, memory flat? One and two processes
    python tests/benchmark.py --gpu music/ --json gpu.json     all that a GPU is asked, in 9 minutes; see gpu.py

The straightforward form is that of works.py.
Before anything is timed, both forms must give the same loss and gradients, or the same features (dropout off). Each
form has a process of its own, and the two run in turns; the straightforward form always computes in float32.

Pieces come from --abc (interleaved) and --mtf, half and half; by default the few of tests/kit. Texts are random tokens,
10 to 90 each, the lengths of real metadata. "Matrix rate" is what one large matrix product reaches on this machine;
"share" is how much of it the products of real patches, characters and tokens (no padding) use;
"padded" is how many times as many products the straightforward form computes.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "code")]
import config
import gpu
import utils
from patches import M3Patchilizer, read_music, remove_unit_length
from processes import keep_freed_memory, precision
from works import Work, compare, matrix_rate, peak_memory

WORKS = ("m3_step", "clamp2_step", "extract_clamp2_abc", "extract_clamp2", "extract_m3")
WARM_UP = {True: 3, False: 1}  # runs before the clock counts: the first ones, of steps, reserve memory


# --- both forms in turns ----------------------------------------------------------------------------------------------
def serve(connection: Connection, name: str, music: list[np.ndarray], form: str, args: argparse.Namespace, path: Path):
    """A process for one form: writes its results to `path`, then runs when it is asked to, and sends seconds and GB."""
    config.CLAMP2_MICRO_BATCH = args.micro_batch
    if form == "ours" and args.device == "cpu":
        keep_freed_memory()  # as every script does
    device = torch.device(args.device)
    work = Work(name, form, device, precision(device, args.precision if form == "ours" else "float32"))
    work.prepare(music)
    torch.save(work.results(), path)
    connection.send((work.pieces, work.tokens, work.flops, work.padded_flops))
    while connection.recv():
        connection.send((work.run(), peak_memory(device)))


# --- reading, scaling ---------------------------------------------------------------------------------------------
def reading_time(paths: list[Path]) -> tuple[float, float]:
    """(milliseconds, kilobytes) of reading and patchilizing a piece, medians."""
    patchilizer = M3Patchilizer()
    times = []
    for path in paths:
        start = time.perf_counter()
        patchilizer.encode_array(
            remove_unit_length(read_music(path)), add_special_patches=True, random_truncate=True, rng=random.Random(0)
        )
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), statistics.median(path.stat().st_size for path in paths) / 1e3


def many_pieces() -> list[dict]:
    """Listing, reading and patchilizing 10^2 ... 10^5 synthetic pieces."""
    rows = []
    for count in (100, 1000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(count):
                path = Path(folder, str(number % 100), f"{number}.abc")
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"M:4/4\nK:C\nV:1 treble\n[V:1]C{number % 9 + 1} D2 E2|\n" * 3)
            code = (
                "import sys, time, resource; sys.path.insert(0, sys.argv[1])\n"
                "from pathlib import Path; import files, patches, utils\n"
                "start = time.perf_counter(); p = patches.M3Patchilizer(); n = 0\n"
                "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
                "paths, _ = files.list_files(Path(sys.argv[2]), ('.abc', '.mtf'))\n"
                "train, held_out = utils.split_data(paths); listed = time.perf_counter() - start\n"
                "for path in train + held_out: n += len(p.encode_array(patches.read_music(sys.argv[2] / path)))\n"
                "print(len(paths), listed, time.perf_counter() - start,\n"
                "      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
            )
            command = [sys.executable, "-c", code, str(ROOT / "code"), folder]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        rows.append({"pieces": count, "listing_s": float(output[1]), "all_s": float(output[2]),
                     "own_memory_MB": float(output[3]) / 1e3})  # fmt: skip
        print(
            f"{count:8,} pieces: listed in {rows[-1]['listing_s']:.2f} s, all read in {rows[-1]['all_s']:.2f} s "
            f"({rows[-1]['all_s'] / count * 1e3:.2f} ms a piece), {rows[-1]['own_memory_MB']:.0f} MB more",
            flush=True,
        )
    return rows


def many_processes(args: argparse.Namespace) -> list[dict]:
    """M3 at published sizes by the real scripts, with one thread a process: an epoch of training (the second one, with
    its evaluation), and the extraction of 30 pieces beyond the first 10."""
    paths = [path for folder, suffix in ((args.abc, "abc"), (args.mtf, "mtf")) for path in folder.rglob(f"*.{suffix}")]
    rng = random.Random(0)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        torch.save(
            {"model": utils.M3Model(utils.encoder_config(), utils.decoder_config()).state_dict()}, folder / "m3.pth"
        )
        for count in (14, 10, 40):
            (folder / str(count)).mkdir()
            for number in range(count):
                path = rng.choice(paths)
                (folder / str(count) / f"{number}{path.suffix}").write_bytes(path.read_bytes())
        for processes in (1, 2):
            environment = os.environ | {"OMP_NUM_THREADS": "1", "CLAMP2_CONFIG": str(folder / "config.py")}
            launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]

            def start(launch: list[str], *command: object, env: dict[str, str] = environment) -> float:
                began = time.perf_counter()
                subprocess.run([*launch, *map(str, command)], env=env, check=True, capture_output=True)
                return time.perf_counter() - began

            weights = folder / f"trained_{processes}.pth"
            constants = {
                "TRAIN_FOLDERS": [str(folder / "14")], "EVAL_SPLIT": 0.15, "M3_BATCH_SIZE": 4 // processes, "M3_NUM_EPOCH": 2,
                "M3_WEIGHTS_PATH": str(weights), "M3_LOGS_PATH": str(folder / "log.txt"),
            }  # fmt: skip
            (folder / "config.py").write_text("".join(f"{name} = {value!r}\n" for name, value in constants.items()))
            start(launch, ROOT / "code/train_m3.py")
            log = (folder / "log.txt").read_text().splitlines()
            epoch = [json.loads(line) for line in log if line.startswith("{")][-1]
            weights.with_name("latest_" + weights.name).unlink()
            weights.unlink()
            (folder / "log.txt").unlink()

            (folder / "config.py").write_text(f"M3_WEIGHTS_PATH = {str(folder / 'm3.pth')!r}\n")
            seconds = {
                count: start(launch, ROOT / "code/extract_m3.py", folder / str(count), folder / f"{count}_{processes}")
                for count in (10, 40)
            }
            rows.append(
                {"processes": processes, "epoch_s": epoch["seconds"], "extraction_s": seconds[40] - seconds[10]}
            )
            print(
                f"{processes} process(es): an epoch of training {rows[-1]['epoch_s']:.1f} s, extraction {rows[-1]['extraction_s']:.1f} s",
                flush=True,
            )
    return rows


# --- the command --------------------------------------------------------------------------------------------------
def load_pieces(args: argparse.Namespace, number: int, is_abc_only: bool) -> tuple[list[np.ndarray], list[Path]]:
    """Patches of `number` pieces, ABC and MTF in turns."""
    rng = random.Random(0)
    pools = [sorted(args.abc.rglob("*.abc")), sorted(args.mtf.rglob("*.mtf"))]
    for pool in pools:
        rng.shuffle(pool)
    half = number if is_abc_only else number - number // 2
    paths = pools[0][:half] + ([] if is_abc_only else pools[1][: number // 2])
    return [
        M3Patchilizer().encode_array(remove_unit_length(read_music(path)), add_special_patches=True) for path in paths
    ], paths


def measure(name: str, args: argparse.Namespace, rate: float) -> dict:
    """Both forms of one work in turns. Prints and returns its row."""
    number = args.pieces or {"m3_step": 4, "clamp2_step": 8, "extract_clamp2_abc": 16}.get(name, 12)
    music, files = load_pieces(args, number, name.endswith("_abc"))
    context = multiprocessing.get_context("spawn")
    connections, children = {}, []
    with tempfile.TemporaryDirectory() as folder:
        paths = {form: Path(folder, form) for form in ("ours", "plain")}
        for form, path in paths.items():
            connections[form], other = context.Pipe()
            children.append(context.Process(target=serve, args=(other, name, music, form, args, path), daemon=True))
            children[-1].start()
            other.close()
            facts = connections[form].recv()
            if form == "ours":
                pieces, tokens, flops, _ = facts
            padded_flops = facts[3]
        results = {form: torch.load(path, mmap=True) for form, path in paths.items()}
        same = compare(name, **results, exact=args.precision == "float32")
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    memory = {}
    for turn in tqdm(range(-WARM_UP[name.endswith("_step")], args.pairs), desc=name, leave=False):
        for form, connection in connections.items():
            connection.send(True)
            seconds, memory[form] = connection.recv()
            if turn >= 0:
                times[form].append(seconds)
    for connection, child in zip(connections.values(), children, strict=True):
        connection.send(False)
        child.join()
    ours, plain = (statistics.median(found) for found in times.values())
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["plain"], strict=True))
    reading, size = reading_time(files)
    result = {
        "work": name, "pieces": pieces, "mean_patches": float(np.mean([len(piece) for piece in music])), "same": same,
        "seconds": ours, "plain_seconds": plain, "ratio": ratio, "padded": padded_flops / flops,
        "pieces_per_s": pieces / ours, "tokens_per_s": tokens / ours, "share_of_matrix_rate": flops / ours / rate,
        "memory_GB": memory, "reading_ms": reading, "median_kB": size,
    }  # fmt: skip
    print(
        f"{name:19} {pieces:4d} {result['mean_patches']:6.0f}  {plain:8.2f} {ours:8.2f} {ratio:6.2f} {result['padded']:6.2f} "
        f"{result['pieces_per_s']:9.2f} {result['tokens_per_s']:9.0f} {result['share_of_matrix_rate']:6.0%} "
        f"{memory['ours']:6.2f} {memory['plain']:6.2f}\n    {same}; reading a piece {reading:.2f} ms ({size:.1f} kB)",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--abc", type=Path, default=ROOT / "tests/kit/interleaved", help="folder of interleaved ABC")
    parser.add_argument("--mtf", type=Path, default=ROOT / "tests/kit/mtf", help="folder of MTF")
    parser.add_argument("--pieces", type=int, default=0, help="pieces of a run")
    parser.add_argument("--pairs", type=int, default=5, help="both forms in turns, so often; medians are told")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of ours; the other form stays in float32",
    )
    parser.add_argument("--micro_batch", type=int, default=0, help="CLAMP2_MICRO_BATCH of the CLaMP 2 step")
    parser.add_argument("--scaling", action="store_true", help="only the tables of many pieces and processes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gpu", type=Path, metavar="FOLDER", help="of interleaved ABC and MTF: what a GPU is asked")
    parser.add_argument("--minutes", type=float, default=9, help="of --gpu: no stage goes on after that")
    parser.add_argument("--stages", nargs="+", choices=gpu.STAGES, default=list(gpu.STAGES), help="of --gpu")
    args = parser.parse_args()
    if args.gpu:
        gpu.run(args.gpu, args.minutes, args.stages, args.json)
        return
    if args.scaling:
        results: dict = {"pieces": many_pieces(), "processes": many_processes(args)}
    else:
        device = torch.device(args.device)
        rate = matrix_rate(device, precision(device, args.precision))
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"  # fmt: skip
        print(
            f"{name}; torch {torch.__version__}, transformers {transformers.__version__}, {args.precision}; "
            f"matrix rate {rate / 1e9:.0f} GFLOP/s\n"
            "work                pieces patches   plain s   ours s  ratio padded  pieces/s  tokens/s  share  GB ours, plain"
        )
        results = {"machine": name, "torch": torch.__version__, "transformers": transformers.__version__,
                   "precision": args.precision, "matrix_rate": rate,
                   "works": [measure(work, args, rate) for work in args.work]}  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
