r"""Train M3 on interleaved ABC and MTF: the encoder reads corrupted patches, the decoder restores their characters.

Set TRAIN_FOLDERS in config.py first (process_data/ makes the files). Then, from any folder:

    python code/train_m3.py                                                                      one process
    python -m torch.distributed.launch --nproc_per_node=8 --use_env code/train_m3.py             eight GPUs of a machine
    torchrun --nproc_per_node=8 code/train_m3.py                                                 the same
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 code/train_m3.py
                                                                     on each of two machines; HOST is the name of one

On a SLURM cluster, with `sbatch` (at SIGTERM, two minutes before its time is over, it saves and ends):

    #!/bin/bash
    #SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=32 --time=24:00:00 --signal=TERM@120
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
    host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node=8 --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \
        --rdzv-endpoint="$host:29500" code/train_m3.py

30 s after SIGTERM or Ctrl-C, or TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds, torchrun kills its processes: saving must take
less (a run prints its time if it is a second or more). PyTorch 2.11 has 30 s only: set SAVE_EVERY_STEPS there.

The weights with the lowest evaluation loss go to M3_WEIGHTS_PATH, the losses to M3_LOGS_PATH, and the complete state to
latest_* beside the weights: the same command continues a run that was stopped.
Exit status: 0 finished; 2 a mistake, described in one line; 130 stopped and saved.
"""

import random
import sys

import command_line
from command_line import M3_SUFFIXES

if __name__ == "__main__":
    command_line.begin(command_line.documented(__doc__))  # before the imports below, which take seconds

import numpy as np
import torch

import config
import processes
import training
from extraction import no_file, to_convert
from files import InputError, list_files
from loading import Loader, Paths, PieceDataset, hold_out, make_loader, require_set
from packing import Packing
from patches import M3Patchilizer, corrupt_patches, read_music, remove_unit_length
from processes import autocast
from run_state import Settings
from utils import M3Batch, M3Model, M3Output, decoder_config, empty, encoder_config


class M3Dataset(PieceDataset):
    """Corrupted patches, which of them were selected, and the original patches, from files of music."""

    batch_constant = "M3_BATCH_SIZE"

    def __init__(self, files: list[str], train: bool, seed: int):
        super().__init__(train, seed)
        self.files = Paths(files)
        self.patchilizer = M3Patchilizer()

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        return self.files.digest

    def load(self, index: int, rng: random.Random) -> dict:
        path = self.files[index]
        text = remove_unit_length(read_music(path))
        target = self.patchilizer.encode_array(
            text, add_special_patches=True, truncate=True, random_truncate=self.train, rng=rng
        )
        corrupted, selected = corrupt_patches(target, np.random.default_rng(rng.getrandbits(64)), self.train)
        return {"name": str(path), "input": corrupted, "selected": selected, "target": target}


def collate(samples: list[dict]) -> M3Batch:
    packing = Packing.of_lengths([len(sample["input"]) for sample in samples])
    arrays = (np.concatenate([sample[name] for sample in samples]) for name in ("input", "selected", "target"))
    return M3Batch(packing, *arrays)


class Restoration(torch.nn.Module):
    """The loss of a packed batch, as a module for DistributedDataParallel."""

    def __init__(self, model: M3Model):
        super().__init__()
        self.model = model

    def forward(self, batch: M3Batch) -> M3Output:
        return self.model.restore(batch)


def step(run: training.Training, batch: M3Batch) -> training.Step:
    """Back-propagate the mean over the characters of *all* processes, so that N processes compute what one does."""
    with autocast(run.device, run.dtype):
        output = run.parallel(batch)
    everywhere = run.processes.sum(output.characters.clone())
    # the gradients of the processes are averaged, not added up
    run.scaler.scale(output.loss * (output.characters * run.processes.world_size / everywhere)).backward()
    return training.Step(output.loss * output.characters, output.characters)


def evaluate(run: training.Training, loader: Loader) -> float:
    """Return the mean cross-entropy over the selected characters of all pieces."""
    sums = torch.zeros(2, dtype=run.sum_dtype, device=run.device)
    for batch in run.evaluation_batches(loader):
        with autocast(run.device, run.dtype):
            output = run.module(batch)
        characters = output.characters.to(run.sum_dtype)
        sums += torch.stack([output.loss.to(run.sum_dtype) * characters, characters])
    total, characters = run.processes.sum(sums).tolist()
    return total / characters


def find_files(name: str, folders: list[str]) -> list[str]:
    """List the .abc and .mtf files below the folders of the constant `name`, each once where folders overlap."""
    found: dict[str, str] = {}  # real path: path
    for folder in folders:
        require_set(name, folder)
        path = config.resolve(folder)
        if not path.is_dir():
            raise InputError(f"{name}: {path} is not a folder; set it in {config.source()}")
        files, others = list_files(path, M3_SUFFIXES)
        if not files:
            raise InputError(f"{name}: {no_file(M3_SUFFIXES)} in {path}{to_convert(others)}")
        real = path.resolve()
        for file in files:
            found.setdefault(str(real / file), str(path / file))
    return list(found.values())


def main(job: processes.Processes) -> int:
    if not config.TRAIN_FOLDERS:
        raise InputError(f"TRAIN_FOLDERS is empty; set it in {config.source()}")
    train_files = find_files("TRAIN_FOLDERS", config.TRAIN_FOLDERS)
    if eval_folders := [folder for folder in config.EVAL_FOLDERS if folder]:
        eval_files = find_files("EVAL_FOLDERS", eval_folders)
    else:
        train_files, eval_files = hold_out(train_files, 1, "EVAL_FOLDERS")

    settings = Settings.read("m3", "M3_MASK_RATIO")
    torch.manual_seed(0)  # every rank starts from the same weights
    configs = encoder_config(), decoder_config()
    model = empty(M3Model, *configs) if settings.checkpoint else M3Model(*configs)
    run = training.Training(settings, job, model, Restoration)
    train_loader = make_loader(M3Dataset(train_files, True, run.progress.seed), settings.batch_size, job, collate)
    eval_loader = make_loader(M3Dataset(eval_files, False, 0), settings.batch_size, job, collate)
    return run.run(train_loader, eval_loader, step, evaluate)


if __name__ == "__main__":
    sys.exit(processes.run(main))
