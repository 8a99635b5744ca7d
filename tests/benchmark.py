"""Time and memory of the models against the straightforward form of the same computation. Run by hand; CI does not.

    python tests/benchmark.py                                  all works, published sizes, float32
    python tests/benchmark.py --work m3_step --precision bfloat16
    python tests/benchmark.py --abc interleaved/ --mtf mtf/ --json benchmark.json
    python tests/benchmark.py --scaling                        10^2 ... 10^5 pieces: is time linear, memory flat?

The straightforward form: one-hot patches through a linear layer in floats, music always padded to PATCH_LENGTH and text
to MAX_TEXT_LENGTH, the decoder over all characters of a patch, eager attention, in extraction one segment at a time.
Before anything is timed, both forms must give the same loss and gradients, or the same features (dropout off).

Pieces come from --abc (interleaved) and --mtf, half and half; by default the few of tests/kit. Texts are random tokens,
10 to 90 each, the lengths of real metadata. "Matrix rate" is what one large matrix product reaches on this machine;
"share" is how much of it the products of real patches, characters and tokens (no padding, attention not counted) use.
"""

import argparse
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import XLMRobertaConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "code")]
import embedding
import loading
import utils
from patches import M3Patchilizer, mask_patches, read_music
from processes import autocast, precision

WORKS = ("m3_step", "clamp2_step", "extract_clamp2_abc", "extract_clamp2", "extract_m3")
LENGTH, TEXT = 512, 128  # patches of a segment, tokens of a text


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


def new_model(name: str) -> nn.Module:
    """At published sizes, with the same random weights each time."""
    torch.manual_seed(0)
    if name == "m3_step":
        return utils.M3Model()
    if name == "extract_m3":
        return utils.M3PatchEncoder()
    return utils.CLaMP2Model(XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1))


# --- the works ----------------------------------------------------------------------------------------------------
class Work:
    """Something to be timed in both forms on the same pieces.

    Attributes: `pieces`, `tokens` (real patches and text tokens) and `flops` (of real elements) of one run.
    """

    def __init__(self, name: str, music: list[np.ndarray], args: argparse.Namespace):
        self.name, self.device = name, torch.device(args.device)
        self.is_step = name.endswith("_step")
        self.dtype = {"ours": precision(self.device, args.precision), "plain": torch.float32}
        self.models = {form: new_model(name).to(self.device) for form in args.forms}
        self.plain = Plain(self.models["plain"]) if "plain" in self.models else None
        self.optimizers = {
            form: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=form == "ours" or None)
            for form, model in self.models.items()
            if self.is_step
        }
        rng = random.Random(0)
        self.music, self.pieces = music, len(music)
        hidden = 24 * 768**2 * 12  # flops of an encoder's products for one token: 12 layers of 12 H^2 weights
        patches = sum(map(len, music))
        if name == "m3_step":
            music = [piece[:LENGTH] for piece in music]
            patches = sum(map(len, music))
            masked = [mask_patches(piece, np.random.default_rng(0)) for piece in music]
            inputs, selected = [m[0] for m in masked], [m[1] for m in masked]
            self.batches = {"ours": self._m3(loading.pad, music, inputs, selected),
                            "plain": self._m3(lambda rows: to_length(rows, LENGTH), music, inputs, selected)}  # fmt: skip
            characters = sum(
                int((piece[chosen.astype(bool)] != 0).sum()) for piece, chosen in zip(music, selected, strict=True)
            )
            self.flops = 3 * (hidden * patches + (24 * 768**2 * 3 + 2 * 768 * 128) * characters)
        elif name == "clamp2_step":
            music = [piece[:LENGTH] for piece in music]
            patches = sum(map(len, music))
            texts = [np.array([0, *rng.choices(range(4, 250_000), k=rng.randint(8, 88)), 2]) for _ in music]
            words = sum(map(len, texts))
            self.batches = {
                "ours": (*loading.pad(texts, 1), *loading.pad(music)),
                "plain": (*to_length(texts, TEXT, 1), *to_length(music, LENGTH)),
            }
            self.flops, patches = 3 * hidden * (patches + words), patches + words
        else:
            self.flops = hidden * sum(  # segments overlap at the end of a piece
                min(LENGTH, len(piece)) for piece in music for _ in embedding.segment_starts(len(piece), LENGTH)
            )
        self.tokens = patches
        if self.is_step:
            self.batches = {k: tuple(t.to(self.device) for t in v) for k, v in self.batches.items()}

    @staticmethod
    def _m3(pad: Callable, music: list, inputs: list, selected: list) -> tuple[Tensor, ...]:
        (patches, masks), (targets, _), (chosen, _) = pad(inputs), pad(music), pad(selected)
        return patches, masks, chosen, targets

    def loss(self, form: str) -> Tensor:
        batch, model = self.batches[form], self.models[form]
        with autocast(self.device, self.dtype[form]):
            if self.name == "m3_step":
                return model(*batch).loss if form == "ours" else self.plain.m3_loss(*batch)
            return utils.ClipLoss()(*model(*batch)) if form == "ours" else self.plain.clamp2_loss(*batch)

    def features(self, form: str) -> list[np.ndarray]:
        pooled = self.name != "extract_m3"
        if form == "ours":
            order = sorted(range(len(self.music)), key=lambda index: len(self.music[index]))  # as extraction does
            found = embedding.embed(
                self.models["ours"], [self.music[i] for i in order], pooled, dtype=self.dtype["ours"]
            )
            by_index = dict(zip(order, found, strict=True))
            return [by_index[index] for index in range(len(order))]
        with torch.inference_mode():
            return [self.plain.extract(piece, self.device, pooled) for piece in self.music]

    def check(self) -> str:
        """Both forms give the same; says how nearly."""
        for model in self.models.values():
            model.eval()
        if not self.is_step:
            pairs = list(zip(self.features("ours"), self.features("plain"), strict=True))
            difference = max(float(np.abs(a - b).max()) for a, b in pairs)
            cosine = min(float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs)
            if self.dtype["ours"] == torch.float32 and difference > 1e-4:
                sys.exit(f"{self.name}: the two forms differ by {difference}")
            return f"features differ by at most {difference:.1e}, least cosine {cosine:.6f}"
        losses = {form: self.loss(form) for form in self.models}
        for form, loss in losses.items():
            loss.backward()
            losses[form] = loss.item()
        ours, plain = (dict(self.models[form].named_parameters()) for form in ("ours", "plain"))
        worst = 0.0
        for key, value in ours.items():
            if value.grad is not None and plain[key].grad is not None:
                scale = plain[key].grad.abs().max().item() or 1.0
                worst = max(worst, (value.grad - plain[key].grad).abs().max().item() / max(scale, 1e-5))
        for model in self.models.values():
            model.zero_grad(set_to_none=True)
        difference = abs(losses["ours"] - losses["plain"])
        if self.dtype["ours"] == torch.float32 and (difference > 1e-4 or worst > 1e-2):
            sys.exit(f"{self.name}: losses differ by {difference}, gradients by {worst} of their largest entry")
        return f"losses differ by {difference:.1e}, gradients by {worst:.1e} of the largest entry of their tensor"

    def run(self, form: str) -> float:
        """Once; returns the seconds it took."""
        self.models[form].train(self.is_step)
        synchronize(self.device)
        start = time.perf_counter()
        if self.is_step:
            self.loss(form).backward()
            self.optimizers[form].step()
            self.optimizers[form].zero_grad(set_to_none=True)
        else:
            self.features(form)
        synchronize(self.device)
        return time.perf_counter() - start


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


# --- memory, reading, scaling -------------------------------------------------------------------------------------
def peak_memory(args: argparse.Namespace, work: Work, form: str) -> float:
    """GB at the most, in one run: on the GPU allocated there, else of a process of its own."""
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work.run(form)
        return torch.cuda.max_memory_allocated() / 1e9
    command = [sys.executable, __file__, *args.argv, "--work", work.name, "--memory_of", form]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def reading_time(paths: list[Path]) -> tuple[float, float]:
    """(milliseconds, kilobytes) of reading and patchilizing a piece, medians."""
    patchilizer = M3Patchilizer()
    times = []
    for path in paths:
        start = time.perf_counter()
        patchilizer.encode(read_music(path), add_special_patches=True, random_truncate=True, rng=random.Random(0))
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), statistics.median(path.stat().st_size for path in paths) / 1e3


def scaling() -> list[dict]:
    """Listing, reading and patchilizing 10^2 ... 10^5 synthetic pieces through the loader's classes."""
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
                "paths = files.list_files(Path(sys.argv[2]), ('.abc', '.mtf'))\n"
                "train, _ = utils.split_data(paths); listed = time.perf_counter() - start\n"
                "for path in train: n += len(p.encode(patches.read_music(path)))\n"
                "print(len(paths), listed, time.perf_counter() - start,\n"
                "      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
            )
            command = [sys.executable, "-c", code, str(ROOT / "code"), folder]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        rows.append({"pieces": count, "listing_s": float(output[1]), "all_s": float(output[2]),
                     "own_memory_MB": float(output[3]) / 1e3})  # fmt: skip
        print(
            f"{count:8,} pieces: listed in {rows[-1]['listing_s']:.2f} s, all read in {rows[-1]['all_s']:.2f} s "
            f"({rows[-1]['all_s'] / count * 1e3:.2f} ms a piece), {rows[-1]['own_memory_MB']:.0f} MB more"
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
    return [M3Patchilizer().encode(read_music(path), add_special_patches=True) for path in paths], paths


def measure(name: str, args: argparse.Namespace, rate: float) -> dict:
    number = args.pieces or {"m3_step": 16, "clamp2_step": 16, "extract_clamp2_abc": 64}.get(name, 24)
    music, paths = load_pieces(args, number, name.endswith("_abc"))
    work = Work(name, music, args)
    if args.memory_of:
        work.run(args.memory_of)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return {}
    same = work.check()
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for form in times:
        work.run(form)  # the first run also reserves memory and chooses kernels
    for _ in tqdm(range(args.pairs), desc=name, leave=False):
        for form, found in times.items():
            found.append(work.run(form))
    ours, plain = (statistics.median(found) for found in times.values())
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["plain"], strict=True))
    memory = {form: peak_memory(args, work, form) for form in times} if not args.no_memory else {}
    reading, size = reading_time(paths)
    result = {
        "work": name, "pieces": work.pieces, "mean_patches": float(np.mean([len(piece) for piece in music])), "same": same,
        "seconds": ours, "plain_seconds": plain, "ratio": ratio, "pieces_per_s": work.pieces / ours,
        "tokens_per_s": work.tokens / ours, "share_of_matrix_rate": work.flops / ours / rate, "memory_GB": memory,
        "reading_ms": reading, "median_kB": size,
    }  # fmt: skip
    gigabytes = f"{memory['ours']:6.2f} {memory['plain']:6.2f}" if memory else "     -      -"
    print(
        f"{name:19} {work.pieces:4d} {result['mean_patches']:6.0f}  {plain:8.2f} {ours:8.2f} {ratio:6.2f} "
        f"{result['pieces_per_s']:9.2f} {result['tokens_per_s']:9.0f} {result['share_of_matrix_rate']:6.0%}  {gigabytes}  "
        f"{same}; reading {reading:.2f} ms ({size:.0f} kB)"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--abc", type=Path, default=ROOT / "tests/kit/interleaved", help="folder of interleaved ABC")
    parser.add_argument("--mtf", type=Path, default=ROOT / "tests/kit/mtf", help="folder of MTF")
    parser.add_argument("--pieces", type=int, default=0, help="pieces of a run (default: 16 in steps, 24 or 64 else)")
    parser.add_argument("--pairs", type=int, default=5, help="both forms in turns, so often; medians are told")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of ours; the other form stays in float32",
    )
    parser.add_argument("--no_memory", action="store_true", help="do not measure memory")
    parser.add_argument("--scaling", action="store_true", help="only the table of 10^2 ... 10^5 pieces")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory_of", choices=("ours", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.argv = sys.argv[1:]
    args.forms = [args.memory_of] if args.memory_of else ["ours", "plain"]
    if args.scaling:
        results: dict = {"scaling": scaling()}
    else:
        device = torch.device(args.device)
        rate = matrix_rate(device, precision(device, args.precision))
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"  # fmt: skip
        if not args.memory_of:
            print(
                f"{name}; torch {torch.__version__}, transformers {transformers.__version__}, {args.precision}; "
                f"matrix rate {rate / 1e9:.0f} GFLOP/s"
            )
            print(
                "work                pieces patches   plain s   ours s  ratio  pieces/s  tokens/s  share  GB ours, plain"
            )
        results = {"machine": name, "torch": torch.__version__, "transformers": transformers.__version__,
                   "precision": args.precision, "matrix_rate": rate,
                   "works": [measure(work, args, rate) for work in args.work]}  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
