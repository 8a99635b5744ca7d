r"""Features of interleaved ABC (.abc) and MTF (.mtf) files by M3: [1, T, H] for T patches, as .npy.

    python code/extract_m3.py scores features
    accelerate launch --num_processes 4 code/extract_m3.py scores features        on four GPUs
    torchrun --nproc_per_node=2 code/extract_m3.py scores features     in two processes, on the CPU too

On two machines, this on the first, with `--machine_rank 1` on the other (`accelerate config` asks for the same once):

    accelerate launch --multi_gpu --num_machines 2 --machine_rank 0 --main_process_ip HOST --main_process_port 29500 \
        --num_processes 16 code/extract_m3.py scores features

On a SLURM cluster, a task for each subfolder of scores/, with `sbatch`:

    #!/bin/bash
    #SBATCH --array=0-9 --gpus=1 --cpus-per-task=8
    folders=(scores/*/)
    folder=${folders[$SLURM_ARRAY_TASK_ID]}
    python code/extract_m3.py "$folder" "features/$(basename "$folder")"

The weights are those of M3_WEIGHTS_PATH in config.py or, with --download, the published ones if it does not exist.
A second start skips files that are done. A file that has changed, even into an older one, is done again; a feature
whose file is gone is named, and removed with --remove_orphans.
Exit status: 0 all done, 1 some file failed (the reasons are in OUT.errors.jsonl beside OUT), 2 an error to correct.
Under accelerate launch and torchrun it is 1 for any of these but 0.
"""

import sys

import command_line
from command_line import M3_SUFFIXES

if __name__ == "__main__":
    command_line.begin(command_line.extractor(__doc__, M3_SUFFIXES))  # before the imports below, which take seconds

import checkpoints
import config
import extraction
from processes import Processes
from utils import M3PatchEncoder, empty, encoder_config


def main(job: Processes) -> int:
    args = command_line.extractor(__doc__, M3_SUFFIXES).parse_args()

    def load_model() -> M3PatchEncoder:
        return checkpoints.load(empty(M3PatchEncoder, encoder_config()), weights, "encoder.").eval().to(job.device)

    weights = extraction.find_weights(job, config.M3_WEIGHTS_PATH, args.download)
    return extraction.extract(
        job,
        args.input_dir,
        args.output_dir,
        M3_SUFFIXES,
        weights,
        load_model,
        read=extraction.read_patches,
        pooled=False,
        keep_unit_length=False,  # as in M3's training
        remove_orphans=args.remove_orphans,
    )


if __name__ == "__main__":
    sys.exit(extraction.run(main))
