r"""Trains CLaMP 2: texts and music of the same piece are drawn together, those of different pieces apart.

Set TRAIN_JSONL in config.py first (process_data/gpt4_summarize.py makes it). Then, from any folder:

    python code/train_clamp2.py                                                                  one process
    python -m torch.distributed.launch --nproc_per_node=8 --use_env code/train_clamp2.py         eight GPUs of a machine
    torchrun --nproc_per_node=8 code/train_clamp2.py                                             the same
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 code/train_clamp2.py
                                                                     on each of two machines; HOST is the name of one

On a SLURM cluster, this with `sbatch` (SIGTERM makes it save and end two minutes before its time is over):

    #!/bin/bash
    #SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=32 --time=24:00:00 --signal=TERM@120
    host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node=8 --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \
        --rdzv-endpoint="$host:29500" code/train_clamp2.py

The music encoder starts from M3_WEIGHTS_PATH, if CLAMP2_LOAD_M3 is True and they are there. The weights with the lowest
evaluation loss go to CLAMP2_WEIGHTS_PATH, the losses to CLAMP2_LOGS_PATH, and the complete state to latest_* beside the
weights: the same command continues a run that was stopped.
Exit status: 0 done, 2 something to mend (one line says what), 130 told to stop, and saved.
"""

import argparse
import contextlib
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import config
import processes
import training
from checkpoints import load_checkpoint, load_weights
from files import InputError
from loading import REMOVE_INSTRUMENTS, PieceDataset, make_loader, pad
from patches import M3Patchilizer, read_music, remove_instrument_info
from processes import autocast
from texts import join_lines, load_text_config, load_text_model, load_tokenizer, tokenize
from utils import CLaMP2Model, ClipLoss, split_data

METADATA = ("title", "composer", "genres", "description", "lyrics", "tags", "ensembles", "instruments")


class Jsonl:
    """The records of a JSONL file, read one at a time through an index of byte offsets."""

    def __init__(self, path: Path):
        self.path = path
        starts = [0]
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 24), b""):
                starts.extend(
                    (np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + (file.tell() - len(block) + 1)).tolist()
                )
        if path.stat().st_size == starts[-1]:
            starts.pop()  # nothing behind the last newline
        self.starts = np.array(starts, np.int64)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, line: int) -> dict:
        """The record of a line, counted from 0. Raises InputError that names file and line."""
        with open(self.path, "rb") as file:
            file.seek(int(self.starts[line]))
            text = file.readline()
        where = f"{self.path}, line {line + 1}"
        try:
            record = json.loads(text)
            json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair (`\\ud83d`) is no text
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: not a JSON object")
        paths = record.get("filepaths")
        if not (isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)):
            raise InputError(f"{where}: `filepaths` is not a list of paths")
        for path in paths:
            if "\0" in path:
                raise InputError(f"{where}: the path {path!r} has a NUL in it")
            if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == "..":
                raise InputError(f"{where}: the path {path!r} leaves the folder of the JSONL file")
        return record


def metadata_lines(record: dict) -> list[str]:
    """The lines of the metadata fields, each once, in their order. Missing and null fields give none."""
    values: list[str] = []
    for field in METADATA:
        value = record.get(field)
        values += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
    return list(dict.fromkeys(line.strip() for value in values for line in value.splitlines() if line.strip()))


def summaries(value: object) -> list[str]:
    """The texts of `summary_en` (a string or a list of strings) or `summary_nen` (a dict or a list of dicts)."""
    items = value if isinstance(value, list) else [value]
    texts = [item.get("summary") if isinstance(item, dict) else item for item in items]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def choose_text(record: dict, rng: random.Random) -> list[str]:
    """The lines of text of a piece in training (paper, section 3.3, "text dropout"): with probability 1/2 some of the
    metadata lines, each with probability 1/2, in random order; else a summary, English or not, equally likely."""
    metadata = metadata_lines(record)
    by_language = [
        texts for texts in (summaries(record.get("summary_en")), summaries(record.get("summary_nen"))) if texts
    ]
    if metadata and (rng.random() < 0.5 or not by_language):
        lines = [line for line in metadata if rng.random() < 0.5] or metadata
        rng.shuffle(lines)
        return lines
    if by_language:
        return [rng.choice(rng.choice(by_language))]
    return []


class CLaMP2Dataset(PieceDataset):
    """Records of a JSONL file -> token ids of a text, and patches of a piece of music."""

    def __init__(self, records: Jsonl, lines: list[int], tokenizer, train: bool, seed: int):
        super().__init__(train, seed)
        self.records, self.lines, self.tokenizer = records, np.array(lines, np.int64), tokenizer
        self.patchilizer = M3Patchilizer()

    def __len__(self) -> int:
        return len(self.lines)

    def load(self, index: int, rng: random.Random) -> dict:
        line = int(self.lines[index])
        record = self.records[line]
        where = f"{self.records.path}, line {line + 1}"
        if self.train and config.TEXT_DROPOUT:
            lines = choose_text(record, rng)
        else:
            lines = (summaries(record.get("summary_en")) or summaries(record.get("summary_nen")))[:1] or metadata_lines(
                record
            )
        if not lines:
            raise InputError(f"{where}: there is no text in it, neither metadata nor a summary")
        path = self._choose_path(record["filepaths"], rng)
        try:
            music = read_music(path)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if self.train and rng.random() < REMOVE_INSTRUMENTS:
            music = remove_instrument_info(music)
        patches = self.patchilizer.encode(
            music, add_special_patches=True, truncate=True, random_truncate=self.train, rng=rng
        )
        text = join_lines(lines, self.tokenizer)
        return {"name": str(path), "text": tokenize(text, self.tokenizer, config.MAX_TEXT_LENGTH), "music": patches}

    def _choose_path(self, paths: list[str], rng: random.Random) -> Path:
        """A random one in training; in evaluation the first .abc file, if there is one."""
        if self.train:
            chosen = rng.choice(paths)
        else:
            chosen = next((path for path in paths if path.lower().endswith(".abc")), paths[0])
        return self.records.path.parent / chosen


class Collate:
    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, samples: list[dict]) -> dict:
        text_ids, text_masks = pad([sample["text"] for sample in samples], self.pad_token_id)
        patches, music_masks = pad([sample["music"] for sample in samples])
        return {"text_ids": text_ids, "text_masks": text_masks, "music_patches": patches, "music_masks": music_masks}


INPUTS = ("text_ids", "text_masks", "music_patches", "music_masks")


def step(run: training.Training, batch: dict) -> training.Step:
    """Back-propagates the contrastive loss over the pairs of all processes.

    With CLAMP2_MICRO_BATCH, features are made in parts without a graph, the loss gives their gradients, and each part
    is run again, with the same dropout, to carry its own back ("gradient caching", Gao et al. 2021): the gradient is
    that of the whole batch.
    """
    inputs = [batch[name] for name in INPUTS]
    size = config.CLAMP2_MICRO_BATCH or len(inputs[0])
    parts = list(zip(*(tensor.split(size) for tensor in inputs), strict=True))
    loss_function = ClipLoss()
    if len(parts) == 1:
        with autocast(run.device, run.dtype):
            text, music = run.parallel(*parts[0])
        loss = loss_function(text, music)
        run.scaler.scale(loss).backward()
        return training.Step(loss, 1.0)

    states, features = [], []
    for part in parts:
        states.append(random_state(run.device))
        with torch.no_grad(), autocast(run.device, run.dtype):
            features.append(run.model(*part))
    text, music = (torch.cat(side).detach().requires_grad_() for side in zip(*features, strict=True))
    loss = loss_function(text, music)
    run.scaler.scale(loss).backward()
    for i, part in enumerate(parts):
        set_random_state(run.device, states[i])
        last = i == len(parts) - 1
        alone = last or run.parallel is run.model
        with contextlib.nullcontext() if alone else run.parallel.no_sync():  # type: ignore[operator]
            with autocast(run.device, run.dtype):
                part_text, part_music = run.parallel(*part)
            own = slice(i * size, i * size + len(part_text))
            gradients = [side.grad[own] for side in (text, music)]  # type: ignore[index]
            torch.autograd.backward([part_text, part_music], gradients)
    return training.Step(loss, 1.0)


def random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def evaluate(run: training.Training, loader: DataLoader) -> float:
    """The contrastive loss over all evaluation pairs, in groups of about a global batch."""
    texts, music = [], []
    for batch in run.evaluation_batches(loader):
        with autocast(run.device, run.dtype):
            text_features, music_features = run.model(*(batch[name] for name in INPUTS))
        texts.append(text_features.float().cpu())
        music.append(music_features.float().cpu())
    own = (torch.cat(texts), torch.cat(music)) if texts else None
    parts = run.processes.gather(own)
    count = len(loader.dataset)  # type: ignore[arg-type]
    width = next(part for part in parts if part)[0].shape[1]
    sides = torch.empty(2, count, width)
    for rank, part in enumerate(parts):
        if part:  # rank r had the pieces r, r + world_size, ...
            sides[0, rank :: len(parts)], sides[1, rank :: len(parts)] = part
    groups = -(-count // (run.settings.batch_size * run.processes.world_size))
    loss_function = ClipLoss(local=True)
    losses = [
        loss_function(text, music) * len(text)
        for text, music in zip(*(side.tensor_split(groups) for side in sides), strict=True)
    ]
    return float(sum(losses)) / count


def split_jsonl() -> tuple[tuple[Jsonl, list[int]], tuple[Jsonl, list[int]]]:
    """(records, lines) for training and for evaluation."""
    train = open_jsonl("TRAIN_JSONL", config.TRAIN_JSONL)
    if config.EVAL_JSONL:
        evaluation = open_jsonl("EVAL_JSONL", config.EVAL_JSONL)
        return (train, list(range(len(train)))), (evaluation, list(range(len(evaluation))))
    train_lines, eval_lines = split_data(range(len(train)))
    return (train, train_lines), (train, eval_lines)


def open_jsonl(name: str, value: str) -> Jsonl:
    training.require_set(name, value)
    path = config.resolve(value)
    if not path.is_file():
        raise InputError(f"{name}: {path} is not a file; set it in {config.source()}")
    records = Jsonl(path)
    if not len(records):
        raise InputError(f"{name}: {path} is empty")
    return records


def load_m3(model: CLaMP2Model, path: Path) -> None:
    """Starts the music encoder from the encoder of M3 weights."""
    weights = load_checkpoint(path)["model"]
    encoder = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    load_weights(model.music_model, encoder, path)


def new_model(job: processes.Processes) -> CLaMP2Model:
    """CLaMP 2 before its first step: the pre-trained text model, and M3's encoder, if it is wanted and there."""
    torch.manual_seed(0)  # every rank starts from the same weights
    text_model = load_text_model()
    model = CLaMP2Model(text_model.config)
    load_weights(model.text_model, text_model.state_dict(), Path(config.text_model()))
    m3_path = config.resolve(config.M3_WEIGHTS_PATH)
    if config.CLAMP2_LOAD_M3 and m3_path.exists():
        load_m3(model, m3_path)
        job.say(f"the music encoder starts from {m3_path}")
    elif config.CLAMP2_LOAD_M3:
        job.say(
            f"the music encoder starts from new weights: CLAMP2_LOAD_M3 is True, but {m3_path} does not exist;"
            " train M3 first to begin with what it has learnt"
        )
    return model


def main(job: processes.Processes) -> int:
    settings = training.Settings(
        name="clamp2",
        num_epoch=config.CLAMP2_NUM_EPOCH,
        learning_rate=config.CLAMP2_LEARNING_RATE,
        batch_size=config.CLAMP2_BATCH_SIZE,
        deterministic=config.CLAMP2_DETERMINISTIC,
        load_ckpt=config.CLAMP2_LOAD_CKPT,
        wandb_log=config.CLAMP2_WANDB_LOG,
        weights_path=config.resolve(config.CLAMP2_WEIGHTS_PATH),
        logs_path=config.resolve(config.CLAMP2_LOGS_PATH),
    )
    (train_records, train_lines), (eval_records, eval_lines) = split_jsonl()
    tokenizer = load_tokenizer()
    model = CLaMP2Model(load_text_config()) if settings.checkpoint else new_model(job)
    run = training.Training(settings, job, model)
    collate = Collate(tokenizer.pad_token_id)
    train_loader, eval_loader = (
        make_loader(dataset, settings.batch_size, job, collate)
        for dataset in (
            CLaMP2Dataset(train_records, train_lines, tokenizer, True, run.seed),
            CLaMP2Dataset(eval_records, eval_lines, tokenizer, False, 0),
        )
    )
    return run.run(train_loader, eval_loader, step, evaluate)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(processes.run(main))
