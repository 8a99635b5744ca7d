"""Train CLaMP 2: contrastive learning on pairs of text and music.

Set TRAIN_JSONL in config.py first (process_data/gpt4_summarize.py makes it). Then, from any folder:

    python code/train_clamp2.py                                                                  one process
    python -m torch.distributed.launch --nproc_per_node=8 --use_env code/train_clamp2.py         eight GPUs of a machine
    torchrun --nproc_per_node=8 code/train_clamp2.py                                             the same
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 code/train_clamp2.py
                                                                     on each of two machines; HOST is the name of one

`python code/train_m3.py --help` shows a script for SLURM, and how long a run has to save its state after a signal.

The music encoder starts from M3_WEIGHTS_PATH, if CLAMP2_LOAD_M3 is True and they are there. The weights with the lowest
evaluation loss go to CLAMP2_WEIGHTS_PATH, the losses to CLAMP2_LOGS_PATH, and the complete state to latest_* beside the
weights: the same command continues a run that was stopped.
Exit status: 0 finished; 2 a mistake, described in one line; 130 stopped and saved.
"""

import contextlib
import random
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

import command_line

if __name__ == "__main__":
    command_line.begin(command_line.documented(__doc__))  # before the imports below, which take seconds

import torch
from torch import Tensor

import config
import processes
import training
from files import InputError
from loading import Loader, PieceDataset, digest, hold_out, make_loader, require_set
from packing import Packed, Tensors, compile_layers
from patches import M3Patchilizer, random_segment, read_music, remove_instrument_info, remove_unit_length
from processes import autocast
from records import Jsonl, choose_text, fixed_text
from run_state import Settings
from texts import join_lines, load_tokenizer, tokenize
from utils import CLaMP2Model, ClipLoss, empty_clamp2, encoder_config

LEAST_PAIRS = 2  # that a loss can compare: of one pair alone it is 0, whatever the model
EVALUATION_GROUP = 1024  # pairs compared in evaluation: the published global batch, 128 on each of 8 GPUs


class CLaMP2Dataset(PieceDataset):
    """Pairs of token ids of a text and patches of a piece of music, from records of a JSONL file."""

    batch_constant = "CLAMP2_BATCH_SIZE"

    def __init__(self, records: Jsonl, lines: Sequence[int], tokenizer, train: bool, seed: int):
        super().__init__(train, seed)
        self.records, self.lines, self.tokenizer = records, array("q", lines), tokenizer
        self.patchilizer = M3Patchilizer()

    def __len__(self) -> int:
        return len(self.lines)

    def digest(self) -> str:
        return digest(self.records.starts.tobytes(), self.lines.tobytes())

    def load(self, index: int, rng: random.Random) -> dict:
        record, where = self.records[self.lines[index]], self.records.where(self.lines[index])
        lines = choose_text(record, rng) if self.train and config.TEXT_DROPOUT else fixed_text(record)
        if not lines:
            raise InputError(f"{where}: there is no text in it, neither metadata nor a summary")
        path, music, bad = self._read_music(record["filepaths"], where, rng)
        if self.train and rng.random() < config.REMOVE_INSTRUMENTS:
            music = remove_instrument_info(music)
        patches = self.patchilizer.encode_array(
            remove_unit_length(music), add_special_patches=True, truncate=True, random_truncate=self.train, rng=rng
        )
        ids = tokenize(join_lines(lines, self.tokenizer), self.tokenizer)
        limit = config.MAX_TEXT_LENGTH
        ids = ids[random_segment(len(ids), limit, rng)] if self.train else ids[:limit]
        return {"name": str(path), "text": ids, "music": patches, "problems": bad}

    def _read_music(self, paths: list[str], where: str, rng: random.Random) -> tuple[Path, str, list[str]]:
        """Read one of the files: in training a random one, in evaluation the first .abc file, if there is one.

        Returns its path, its text, and the problems of files tried before it. Raises InputError if none can be used.
        """
        if self.train:
            order = rng.sample(paths, len(paths))
        else:
            order = sorted(paths, key=lambda path: not path.lower().endswith(".abc"))
        bad: list[str] = []
        for name in order:
            path = self.records.path.parent / name
            try:
                return path, read_music(path), [f"{problem} (another of its files is used)" for problem in bad]
            except InputError as error:
                bad.append(f"{where}: {error}")
        raise InputError("; ".join(bad))


class Pairs(Tensors):
    """Texts and the music of the same pieces, each for its tower."""

    def __init__(self, samples: list[dict]):
        self.text = Packed.of([sample["text"] for sample in samples])
        self.music = Packed.of([sample["music"] for sample in samples])


class PairBatch(Tensors):
    """The pairs of a batch in parts of CLAMP2_MICRO_BATCH, or all in one."""

    def __init__(self, samples: list[dict]):
        size = config.CLAMP2_MICRO_BATCH or len(samples)
        self.parts = [Pairs(samples[start : start + size]) for start in range(0, len(samples), size)]


class PairFeatures(torch.nn.Module):
    """The features of pairs of text and music, [B, CLAMP2_HIDDEN_SIZE] each, as a module for DistributedDataParallel.

    The loss is outside, since a step may make the features in parts. The tower of CLAMP2_FREEZE, projection included,
    gets no gradient, and so no moments in the optimizer, and has no dropout.
    """

    def __init__(self, model: CLaMP2Model):
        super().__init__()
        self.model, frozen = model, config.CLAMP2_FREEZE
        self.frozen = [getattr(model, f"{frozen}_{part}") for part in ("model", "proj")] if frozen else []
        for part in self.frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "PairFeatures":
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.model.features(pairs.text, pooled=True), self.model.features(pairs.music, pooled=True)


def step(run: training.Training, batch: PairBatch) -> training.Step:
    """Back-propagate the contrastive loss over the pairs of all processes.

    With CLAMP2_MICRO_BATCH, features are made in parts without a graph, the loss gives their gradients, and each part
    is run again, with the same dropout, to propagate its own ("gradient caching", Gao et al. 2021): the gradient is
    that of the whole batch.
    """
    job, parts = run.processes, batch.parts
    loss_function = ClipLoss(local_loss=True, gather_with_grad=True, rank=job.rank, world_size=job.world_size)
    if len(parts) == 1:
        with autocast(run.device, run.dtype):
            text, music = run.parallel(parts[0])
        loss = loss_function(text, music)
        run.scaler.scale(loss).backward()
        return training.Step(loss, torch.ones_like(loss))

    generator = torch if run.device.type == "cpu" else torch.get_device_module(run.device)
    states, features = [], []
    for part in parts:
        states.append(generator.get_rng_state())
        with torch.no_grad(), autocast(run.device, run.dtype):
            features.append(run.module(part))
    text, music = (torch.cat(side).detach().requires_grad_() for side in zip(*features, strict=True))
    loss = loss_function(text, music)
    run.scaler.scale(loss).backward()
    sizes = [len(part_text) for part_text, _ in features]
    gradients = zip(text.grad.split(sizes), music.grad.split(sizes), strict=True)  # type: ignore[union-attr]
    for i, (part, part_gradients) in enumerate(zip(parts, gradients, strict=True)):
        generator.set_rng_state(states[i])
        alone = i == len(parts) - 1 or job.world_size == 1
        with contextlib.nullcontext() if alone else run.parallel.no_sync():  # type: ignore[operator]
            with autocast(run.device, run.dtype):
                part_features = run.parallel(part)
            sides = [side for side in zip(part_features, part_gradients, strict=True) if side[0].requires_grad]
            torch.autograd.backward([feature for feature, _ in sides], [gradient for _, gradient in sides])
    return training.Step(loss, torch.ones_like(loss))


def evaluate(run: training.Training, loader: Loader) -> float:
    """Return the contrastive loss over all evaluation pairs, in groups whose size depends on their number alone."""
    features = []
    for batch in run.evaluation_batches(loader):
        for part in batch.parts:
            with autocast(run.device, run.dtype):
                features.append(torch.stack(run.module(part)).float())  # of texts and music, [2, B, CLAMP2_HIDDEN_SIZE]
    gathered = run.processes.gather(torch.cat(features, 1).cpu() if features else None)
    count, width = len(loader.dataset), next(part for part in gathered if part is not None).shape[2]
    pairs = torch.empty(2, count, width)
    for rank, part in enumerate(gathered):
        if part is not None:  # rank r had the pieces r, r + world_size, ...
            pairs[:, rank :: len(gathered)] = part
    groups = pairs.tensor_split(-(-count // EVALUATION_GROUP), dim=1)
    return float(sum(ClipLoss()(text, music) * len(text) for text, music in groups)) / count


def open_jsonl(name: str, value: str) -> Jsonl:
    """Open the file of pairs that the constant `name` holds. Raises InputError if it is not there or is empty."""
    require_set(name, value)
    path = config.resolve(value)
    if not path.is_file():
        raise InputError(f"{name}: {path} is not a file; set it in {config.source()}")
    records = Jsonl(path)
    if not len(records):
        raise InputError(f"{name}: {path} is empty")
    return records


def main(job: processes.Processes) -> int:
    settings = Settings.read("clamp2", "LOGIT_SCALE", "MAX_TEXT_LENGTH")
    if settings.batch_size * job.world_size < LEAST_PAIRS:
        raise InputError(
            f"CLAMP2_BATCH_SIZE = 1 leaves a pair no other to be compared with; raise it in {config.source()}"
        )
    train_records = eval_records = open_jsonl("TRAIN_JSONL", config.TRAIN_JSONL)
    train_lines: Sequence[int] = range(len(train_records))
    if config.EVAL_JSONL:
        eval_records = open_jsonl("EVAL_JSONL", config.EVAL_JSONL)
        eval_lines: Sequence[int] = range(len(eval_records))
        if len(eval_lines) < LEAST_PAIRS:
            raise InputError(
                f"EVAL_JSONL: {eval_records.path} has 1 pair, and evaluation takes {LEAST_PAIRS}; add some"
            )
    else:
        train_lines, eval_lines = hold_out(train_lines, LEAST_PAIRS, "EVAL_JSONL")
    tokenizer = load_tokenizer()

    torch.manual_seed(0)  # every rank starts from the same weights
    if settings.checkpoint:
        model = empty_clamp2()
    else:
        model = CLaMP2Model(
            encoder_config(),
            text_model_name=config.TEXT_MODEL_NAME,
            hidden_size=config.CLAMP2_HIDDEN_SIZE,
            load_m3=config.CLAMP2_LOAD_M3,
        )
    run = training.Training(settings, job, model, PairFeatures)
    if config.CLAMP2_FREEZE and not settings.checkpoint:
        job.print(
            f"warning: CLAMP2_FREEZE = {config.CLAMP2_FREEZE!r} without weights of CLaMP 2 to start from: the frozen"
            f" projection stays random; copy some to CLAMP2_WEIGHTS_PATH, set in {config.source()}"
        )
    # Attention with dropout is one kernel in bfloat16 only. A micro-batch is computed twice, and must drop the same.
    if job.device.type == "cuda" and run.dtype == torch.bfloat16 and not config.CLAMP2_MICRO_BATCH:
        compile_layers(model)
    train_set = CLaMP2Dataset(train_records, train_lines, tokenizer, True, run.progress.seed)
    eval_set = CLaMP2Dataset(eval_records, eval_lines, tokenizer, False, 0)
    train_loader = make_loader(train_set, settings.batch_size, job, PairBatch)
    eval_loader = make_loader(eval_set, settings.batch_size, job, PairBatch)
    return run.run(train_loader, eval_loader, step, evaluate)


if __name__ == "__main__":
    sys.exit(processes.run(main))
