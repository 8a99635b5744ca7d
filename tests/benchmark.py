"""Time and memory of the models against the straightforward form of the same computation. Run by hand; CI does not.

    python tests/benchmark.py                                  all works, published sizes, float32
    python tests/benchmark.py --work m3_step --precision bfloat16
    python tests/benchmark.py --abc interleaved/ --mtf mtf/ --json benchmark.json
    python tests/benchmark.py --scaling        10^2 ... 10^5 pieces: is time linear, memory flat? One and two processes

The straightforward form: one-hot patches through a linear layer in floats, music always padded to PATCH_LENGTH and text
to MAX_TEXT_LENGTH, the decoder over all characters of a patch, eager attention, in extraction one segment at a time.
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
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import XLMRobertaConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "code")]
import config
import embedding
import loading
import train_clamp2
import utils
from patches import M3Patchilizer, corrupt_patches, read_music, remove_unit_length
from processes import autocast, keep_freed_memory, precision

WORKS = ("m3_step", "clamp2_step", "extract_clamp2_abc", "extract_clamp2", "extract_m3")
LENGTH, TEXT = 512, 128  # patches of a segment, tokens of a text
WARM_UP = {True: 3, False: 1}  # runs before the clock counts: the first ones, of steps, reserve memory


# --- the straightforward form -----------------------------------------------------------------------------------------
class Plain:
    """The computation of a model of ours, with its weights, as one would write it down first."""

    def __init__(self, model: nn.Module):
        for module in model.modules():
            if isinstance(module, transformers.PreTrainedModel):
                module.set_attn_implementation("eager")
        self.model = model

    def encode(self, encoder: nn.Module, patches: Tensor, masks: Tensor) -> Tensor:
        """[B, T, P], [B, T] -> [B, T, H]"""
        embedded = encoder.patch_embedding(F.one_hot(patches.long(), 128).float().flatten(2))
        return encoder.base(inputs_embeds=embedded, attention_mask=masks.long()).last_hidden_state

    def m3_loss(self, inputs: Tensor, masks: Tensor, selected: Tensor, targets: Tensor) -> Tensor:
        decoder = self.model.decoder.base
        features = self.encode(self.model.encoder, inputs, masks)[selected.bool()]
        targets = targets[selected.bool()].long()
        embedded = torch.cat([features[:, None], decoder.transformer.wte(targets)[:, 1:]], dim=1)
        labels = targets.masked_fill(targets == 0, -100)
        return decoder(inputs_embeds=embedded, attention_mask=(targets != 0).long(), labels=labels).loss

    def music_features(self, patches: Tensor, masks: Tensor) -> Tensor:
        hidden = self.encode(self.model.music_model, patches, masks)
        return self.model.music_proj((hidden * masks[..., None]).sum(1) / masks.sum(1, keepdim=True))

    def text_features(self, ids: Tensor, masks: Tensor) -> Tensor:
        hidden = self.model.text_model(input_ids=ids, attention_mask=masks.long()).last_hidden_state
        return self.model.text_proj((hidden * masks[..., None]).sum(1) / masks.sum(1, keepdim=True))

    def clamp2_loss(self, text_ids: Tensor, text_masks: Tensor, patches: Tensor, masks: Tensor) -> Tensor:
        text, music = self.text_features(text_ids, text_masks), self.music_features(patches, masks)
        logits, labels = text @ music.t(), torch.arange(len(text), device=text.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2

    def extract(self, piece: np.ndarray, device: torch.device, pooled: bool) -> np.ndarray:
        """One piece, a segment at a time."""
        encoder = self.model.music_model if pooled else self.model
        starts = embedding.segment_starts(len(piece), LENGTH)
        features = []
        for start in starts:
            segment = piece[start : start + LENGTH]
            patches, masks = to_length([segment], LENGTH)
            patches, masks = patches.to(device), masks.to(device)
            if pooled:
                features.append(self.music_features(patches, masks)[0].float().cpu().numpy())
            else:
                features.append(self.encode(encoder, patches, masks)[0, : len(segment)].float().cpu().numpy())
        new = len(piece) - (len(starts) - 1) * LENGTH
        if pooled:
            return np.average(features, axis=0, weights=[LENGTH] * (len(starts) - 1) + [new])
        return np.concatenate([*features[:-1], features[-1][-new:]])


def to_length(rows: list[np.ndarray], length: int, value: int = 0) -> tuple[Tensor, Tensor]:
    """Padded to `length`, whatever the longest is."""
    array, mask = loading.pad([*rows, np.zeros((length, *rows[0].shape[1:]), rows[0].dtype)], value)
    return array[:-1], mask[:-1]


def products(lengths: Iterable[int], layers: int, is_decoder: bool = False) -> int:
    """Floating-point operations of the matrix products of a transformer of hidden size 768 over sequences."""
    attention = 2 if is_decoder else 4  # a character attends to those before it: half of all pairs
    logits = 2 * 768 * utils.VOCABULARY if is_decoder else 0
    return sum(layers * (24 * 768**2 * length + attention * 768 * length**2) + logits * length for length in lengths)


def new_model(name: str) -> nn.Module:
    """At published sizes, with the same random weights each time."""
    torch.manual_seed(0)
    if name == "m3_step":
        return utils.M3Model(utils.encoder_config(), utils.decoder_config())
    if name == "extract_m3":
        return utils.M3PatchEncoder(utils.encoder_config())
    return utils.CLaMP2Model.from_configs(
        XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1), utils.encoder_config()
    )


# --- the works ----------------------------------------------------------------------------------------------------
class Work:
    """Something to be timed, in one of the two forms.

    Attributes: `pieces`, `tokens` (real patches and text tokens), `flops` (of real elements) and `padded_flops` (of the
    straightforward form) of one run.
    """

    def __init__(self, name: str, music: list[np.ndarray], form: str, args: argparse.Namespace):
        self.name, self.device, self.is_plain = name, torch.device(args.device), form == "plain"
        self.is_step = name.endswith("_step")
        self.dtype = torch.float32 if self.is_plain else precision(self.device, args.precision)
        self.model = new_model(name).to(self.device)
        self.plain = Plain(self.model) if self.is_plain else None
        if self.is_step:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=None if self.is_plain else True)
            music = [piece[:LENGTH] for piece in music]
        rng = random.Random(0)
        self.music, self.pieces, self.tokens = music, len(music), sum(map(len, music))
        batch, texts, characters, segments, selected_patches = (), [], [], [], 0
        if name == "m3_step":
            masked = [corrupt_patches(piece, np.random.default_rng(0)) for piece in music]
            chosen = [piece[selected.astype(bool)] for piece, (_, selected) in zip(music, masked, strict=True)]
            characters = [int(count) for rows in chosen for count in (rows != 0).sum(1)]
            selected_patches = len(characters)
            (patches, masks), (targets, _), (selected, _) = (
                self._pad(rows) for rows in ([m[0] for m in masked], music, [m[1] for m in masked])
            )
            batch = (patches, masks, selected, targets)
        elif name == "clamp2_step":
            texts = [np.array([0, *rng.choices(range(4, 250_000), k=rng.randint(8, 88)), 2]) for _ in music]
            self.tokens += sum(map(len, texts))
            batch = (*self._pad(texts, TEXT, 1), *self._pad(music))
        for piece in music:  # segments overlap at the end of a piece
            segments += [min(LENGTH, len(piece))] * len(embedding.segment_starts(len(piece), LENGTH))
        one_hot = 2 * 768 * config.PATCH_SIZE * utils.VOCABULARY
        self.flops = products(segments, 12) + products(map(len, texts), 12) + products(characters, 3, True)
        self.padded_flops = (
            products([LENGTH] * len(segments), 12)
            + products([TEXT] * len(texts), 12)
            + products([config.PATCH_SIZE] * selected_patches, 3, True)
            + one_hot * LENGTH * len(segments)
        )
        if self.is_step:  # backward, twice as much
            self.flops, self.padded_flops = 3 * self.flops, 3 * self.padded_flops
        self.batch = tuple(tensor.to(self.device) for tensor in batch)

    def _pad(self, rows: list[np.ndarray], length: int = LENGTH, value: int = 0) -> tuple[Tensor, Tensor]:
        return to_length(rows, length, value) if self.is_plain else loading.pad(rows, value)

    def back_propagate(self) -> float:
        """The loss, with its gradients in the parameters."""
        if self.name == "clamp2_step" and not self.plain:  # the trainer's own, with its CLAMP2_MICRO_BATCH
            scaler = torch.amp.GradScaler(self.device.type, enabled=False)
            pairs, job = train_clamp2.Pairs(self.model), SimpleNamespace(world_size=1)
            run = SimpleNamespace(
                module=pairs, parallel=pairs, processes=job, device=self.device, dtype=self.dtype, scaler=scaler
            )
            return train_clamp2.step(run, dict(zip(train_clamp2.INPUTS, self.batch, strict=True))).total  # type: ignore[arg-type]
        with autocast(self.device, self.dtype):
            if self.name == "m3_step":
                loss = self.plain.m3_loss(*self.batch) if self.plain else self.model(*self.batch).loss
            else:
                loss = self.plain.clamp2_loss(*self.batch)
        loss.backward()
        return loss

    def features(self) -> list[np.ndarray]:
        pooled = self.name != "extract_m3"
        if self.plain:
            with torch.inference_mode():
                return [self.plain.extract(piece, self.device, pooled) for piece in self.music]
        return list(embedding.embed(self.model, self.music, pooled, dtype=self.dtype))

    def results(self) -> dict[str, Tensor]:
        """What both forms must give alike: loss and gradients, or features. Without dropout."""
        self.model.eval()
        if not self.is_step:
            return {str(i): torch.from_numpy(feature) for i, feature in enumerate(self.features())}
        results = {"loss": self.back_propagate().detach()}
        results |= {k: p.grad.cpu() for k, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return results

    def run(self) -> float:
        """Once; returns the seconds it took."""
        self.model.train(self.is_step)
        synchronize(self.device)
        start = time.perf_counter()
        if self.is_step:
            self.back_propagate()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self.features()
        synchronize(self.device)
        return time.perf_counter() - start

    def peak_memory(self) -> float:
        """GB at the most so far: on the GPU, allocated there; else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(peak) / 1e6


def serve(connection: Connection, name: str, music: list[np.ndarray], form: str, args: argparse.Namespace, path: Path):
    """A process for one form: writes its results to `path`, then runs when it is asked to, and tells seconds and GB."""
    config.CLAMP2_MICRO_BATCH = args.micro_batch
    if form == "ours" and args.device == "cpu":
        keep_freed_memory()  # as every script does
    work = Work(name, music, form, args)
    torch.save(work.results(), path)
    connection.send((work.pieces, work.tokens, work.flops, work.padded_flops))
    while connection.recv():
        connection.send((work.run(), work.peak_memory()))


def compare(name: str, paths: dict[str, Path], exact: bool) -> str:
    """Says how nearly both forms gave the same. Ends the program if they did not, where they compute `exact`ly alike."""
    ours, plain = (torch.load(paths[form], mmap=True) for form in ("ours", "plain"))
    if "loss" not in ours:
        difference = max((ours[key].double() - plain[key]).abs().max().item() for key in ours)
        cosine = min(
            F.cosine_similarity(ours[k].double().flatten(), plain[k].double().flatten(), 0).item() for k in ours
        )
        if exact and difference > 1e-4:
            sys.exit(f"{name}: the two forms' features differ by {difference}")
        return f"features differ by at most {difference:.1e}, least cosine {cosine:.6f}"
    difference = abs(ours.pop("loss") - plain.pop("loss")).item()
    worst, squares, differences = 0.0, 0.0, 0.0
    for key in ours.keys() & plain.keys():
        delta = (ours[key] - plain[key]).double()
        worst = max(worst, (delta.abs().max() / max(plain[key].abs().max().item(), 1e-5)).item())
        squares, differences = squares + plain[key].double().square().sum(), differences + delta.square().sum()
    if exact and (difference > 1e-4 or worst > 1e-2):
        sys.exit(f"{name}: the two forms' losses differ by {difference}, gradients by {worst} of their largest entry")
    return f"losses differ by {difference:.1e}, gradients by {(differences / squares) ** 0.5:.1e} of their norm"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        _ = a @ b
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


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
        same = compare(name, paths, args.precision == "float32")
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
    args = parser.parse_args()
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
