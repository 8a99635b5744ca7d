"""Run by test_training.py in several processes: loss and gradients of one global batch, shared out over them.

torchrun --nproc_per_node=N gradients.py OUT
"""

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests")]

from transformers import AutoConfig

import processes
import train_clamp2
import train_m3
import training
import utils
from helpers import m3_configs

KIT = ROOT / "tests" / "kit"


def share(job, samples):
    """This rank's part of a global batch."""
    return samples[job.rank * len(samples) // job.world_size : (job.rank + 1) * len(samples) // job.world_size]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def mean_loss(job, told):
    sums = job.sum(torch.tensor([float(told.total.detach()), float(told.weight)], dtype=torch.float64))
    return float(sums[0] / sums[1])


def main(job):
    values = np.load(KIT / "values.npz")
    names = ("input_patches", "input_masks", "selected_indices", "target_patches")
    pieces = [
        {"input": patches[mask], "selected": selected[mask].astype(bool), "target": targets[mask]}
        for patches, mask, selected, targets in zip(*(values[f"m3_loss/{name}"] for name in names), strict=True)
        for mask in [mask.astype(bool)]
    ]
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(4, 300, (length,), generator=generator).numpy() for length in (12, 3, 7, 9)]
    pairs = [{"text": text, "music": piece["target"]} for text, piece in zip(texts, pieces, strict=True)]
    settings = training.Settings("test", 1, 1e-3, 1, True, False, False, Path("w"), Path("l"))
    results = {}

    torch.manual_seed(0)
    m3 = utils.M3Model(*m3_configs())
    run = training.Training(settings, job, m3, train_m3.Restoration)
    run.parallel.eval()  # no dropout
    assert job.world_size == 1 or not run.parallel.will_sync_module_buffers()  # in each forward pass
    results["m3_loss"] = mean_loss(job, train_m3.step(run, train_m3.collate(share(job, pieces))))
    results["m3"] = gradients(m3)

    for micro_batch in (0, 1):
        train_clamp2.config.CLAMP2_MICRO_BATCH = micro_batch
        torch.manual_seed(0)
        text_config = AutoConfig.from_pretrained(KIT / "tiny-xlmr")
        clamp2 = utils.CLaMP2Model.from_configs(text_config, m3_configs()[0], 48)
        run = training.Training(settings, job, clamp2, train_clamp2.PairFeatures)
        run.parallel.eval()
        told = train_clamp2.step(run, train_clamp2.PairBatch(share(job, pairs)))
        results[f"clamp2_{micro_batch}_loss"] = mean_loss(job, told)
        results[f"clamp2_{micro_batch}"] = gradients(clamp2)
    if job.rank == 0:
        torch.save(results, sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(processes.run(main))
