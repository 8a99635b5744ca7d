"""Run by test_cluster.py under torchrun.

fail KIND          two processes, of which the second one, or both, fail, and an end of their group that never returns
evaluate FOLDER    a training of two processes, of which the second one is told to stop in the evaluation
save FOLDER S      a training that is in its first epoch for hours, and whose saving takes S seconds more than it does
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "code"), str(Path(__file__).parent)]

import torch
import torch.distributed as dist

import processes


def fail(job: processes.Processes, kind: str) -> int:
    dist.destroy_process_group = lambda: time.sleep(3600)
    if kind == "both":
        raise torch.OutOfMemoryError("both by hand")
    if job.rank == 1:
        raise torch.OutOfMemoryError("one by hand")
    return len(job.gather("what rank 0 waits with"))


def save(job: processes.Processes, folder: str, seconds: str) -> int:
    import config
    import small_runs
    import training

    save_checkpoint = training.save_checkpoint

    def slowly(*arguments) -> None:
        time.sleep(float(seconds))
        save_checkpoint(*arguments)

    def step(run, batch):
        (Path(folder) / "begun").touch()
        time.sleep(0.01)
        (run.parallel.weight * 0.5).sum().backward()
        return training.Step(torch.tensor(1.0), torch.tensor(1.0))

    config.NUM_WORKERS = 0
    training.save_checkpoint = slowly
    return small_runs.finish(small_runs.a_run(Path(folder), job=job), step, [], train=1_000_000)


def evaluate(job: processes.Processes, folder: str) -> int:
    import config
    import small_runs
    import training
    from loading import make_loader

    def step(run, batch):
        run.parallel(torch.ones(1, 2)).sum().backward()
        return training.Step(torch.tensor(1.0), torch.tensor(1.0))

    def evaluate(run, loader):
        for number, _ in enumerate(run.evaluation_batches(loader)):
            if job.rank == 1 and number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return float(run.processes.sum(torch.ones(1)))

    config.NUM_WORKERS = 0
    run = small_runs.a_run(Path(folder), job=job, batch_size=1)
    pieces = small_runs.Pieces(6, True), small_runs.Pieces(101, False)
    return run.run(*(make_loader(part, 1, job, small_runs.collate) for part in pieces), step, evaluate)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    sys.exit(processes.run(lambda job: {"fail": fail, "save": save, "evaluate": evaluate}[what](job, *arguments)))
