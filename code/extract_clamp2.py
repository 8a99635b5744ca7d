r"""Features of text (.txt) and music (.abc interleaved, .mtf) files by CLaMP 2, as .npy.

    python code/extract_clamp2.py files features                       [1, T, H] for T patches or text tokens
    python code/extract_clamp2.py files features --normalize           [1, CLAMP2_HIDDEN_SIZE], for semantic search
    accelerate launch --num_processes 4 code/extract_clamp2.py files features --normalize          on four GPUs
    torchrun --nproc_per_node=2 code/extract_clamp2.py files features --normalize      in two processes, on the CPU too

On two machines, this on the first, with `--machine_rank 1` on the other (`accelerate config` asks for the same once):

    accelerate launch --multi_gpu --num_machines 2 --machine_rank 0 --main_process_ip HOST --main_process_port 29500 \
        --num_processes 16 code/extract_clamp2.py files features --normalize

On a SLURM cluster, a task for each subfolder of files/, with `sbatch`:

    #!/bin/bash
    #SBATCH --array=0-9 --gpus=1 --cpus-per-task=8
    folders=(files/*/)
    folder=${folders[$SLURM_ARRAY_TASK_ID]}
    python code/extract_clamp2.py "$folder" "features/$(basename "$folder")" --normalize

The weights are those of CLAMP2_WEIGHTS_PATH in config.py or, with --download, the published ones if it does not exist.
A second start skips files that are done. A file that has changed, even into an older one, is done again; a feature
whose file is gone is named, and removed with --remove_orphans.
Exit status: 0 all done, 1 some file failed (the reasons are in OUT.errors.jsonl beside OUT), 2 an error to correct.
Under accelerate launch and torchrun it is 1 for any of these but 0.
"""

import sys
from functools import partial
from pathlib import Path

import command_line
from command_line import CLAMP2_SUFFIXES

if __name__ == "__main__":
    command_line.begin(command_line.extractor(__doc__, CLAMP2_SUFFIXES))  # before the imports below, which take seconds

import numpy as np

import checkpoints
import config
import extraction
from processes import Processes
from texts import join_lines, load_tokenizer, read_text, tokenize
from utils import empty_clamp2


def read(keep_unit_length: bool, path: Path, tokenizer) -> np.ndarray:
    """Read a file as token ids or patches."""
    if path.suffix.lower() == ".txt":
        return tokenize(join_lines(read_text(path), tokenizer), tokenizer)
    return extraction.read_patches(keep_unit_length, path)


def main(job: Processes) -> int:
    args = command_line.extractor(__doc__, CLAMP2_SUFFIXES).parse_args()
    weights = extraction.find_weights(job, config.CLAMP2_WEIGHTS_PATH, args.download)
    return extraction.extract(
        job,
        args.input_dir,
        args.output_dir,
        CLAMP2_SUFFIXES,
        weights,
        load_model=lambda: checkpoints.load(empty_clamp2(), weights).eval().to(job.device),
        read=partial(read, tokenizer=load_tokenizer()),
        pooled=args.normalize,
        keep_unit_length=config.KEEP_UNIT_LENGTH,
        remove_orphans=args.remove_orphans,
    )


if __name__ == "__main__":
    sys.exit(extraction.run(main))
