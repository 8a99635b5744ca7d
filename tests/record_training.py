"""Runs a trainer without dropout and records its steps, for test_reference_training.py.

CLAMP2_CONFIG=CONFIG record_training.py KIND OUT, where CONFIG sets LOGGER to "wandb".
"""

import importlib
import importlib.machinery
import random
import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "code"))


def main(kind: str, out: str) -> int:
    make = torch.nn.Dropout.__init__
    torch.nn.Dropout.__init__ = lambda self, *_, **__: make(self, 0.0)
    curves, names, modes, start = [], [], [], {}
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.init = lambda **_: types.SimpleNamespace(
        log=lambda values, step: curves.append({**values, "step": step}), finish=lambda: None
    )
    sys.modules["wandb"] = wandb
    import processes
    import training

    trainer = importlib.import_module(f"train_{kind}")
    train_step, evaluate = trainer.step, trainer.evaluate

    def recorded_step(run, batch):
        if not start:
            start.update({name: value.clone() for name, value in run.model.state_dict().items()})
        modes.append(("train", {module.training for module in run.parallel.modules()}))
        return train_step(run, batch)

    def recorded_evaluation(run, loader):
        modes.append(("evaluate", {module.training for module in run.model.modules()}))
        return evaluate(run, loader)

    account = training.Training._account

    def recorded_account(run, numbers, step, names_of_pieces, *others):
        names.append([Path(name).name for name in names_of_pieces])
        return account(run, numbers, step, names_of_pieces, *others)

    training.Training._account = recorded_account
    trainer.step, trainer.evaluate = recorded_step, recorded_evaluation
    random.seed(20)  # of the seed that a run draws; nothing else may depend on these
    np.random.seed(21)
    torch.manual_seed(22)
    status = processes.run(trainer.main)
    torch.save({"curves": curves, "names": names, "modes": modes, "start": start}, out)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
