"""Run by test_settings.py with a configuration of its own: prints what comes of the constants that modules take over
when they are imported, as JSON."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "code"))

import embedding
import train_clamp2
import train_m3
import utils
from loading import make_loader
from patches import M3Patchilizer
from processes import Processes
from small_runs import Pieces, Rows, a_run
from texts import load_tokenizer

LONG = ROOT / "tests" / "kit" / "interleaved" / "long_duo.abc"


class Segments(torch.nn.Linear):
    """A model that notes how long the segments are that it is given."""

    def __init__(self):
        super().__init__(1, 1)
        self.lengths = []

    def features(self, batch, pooled):
        self.lengths += batch.packing.counts.tolist()
        return torch.zeros(len(batch.tokens), 1)


def segments(item):
    model = Segments()
    list(embedding.embed(model, [("", item)]))
    return model.lengths


class Unit(torch.nn.Module):
    """Texts and music with the features (1, 0) and (0, 1)."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Parameter(torch.eye(2))

    def forward(self, batch):
        return self.features[batch.rows], self.features[batch.rows]


def contrastive(folder):
    """The loss of a step and of an evaluation on those two pairs."""
    run = a_run(folder, Unit())
    rows = Rows(torch.arange(2))
    step = train_clamp2.step(run, rows).total.detach()
    loader = make_loader(Pieces(2, False), 2, Processes(0, 0, 1), lambda samples: rows)
    with torch.no_grad():
        return float(step), train_clamp2.evaluate(run, loader)


def main():
    torch.manual_seed(0)
    piece = train_m3.M3Dataset([str(LONG)], True, 0)[1, 0]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / LONG.name).symlink_to(LONG)
        records = Path(folder) / "pieces.jsonl"
        records.write_text(json.dumps({"summary_en": "a word and " * 20, "filepaths": [LONG.name]}) + "\n")
        pair = train_clamp2.CLaMP2Dataset(train_clamp2.Jsonl(records), [0], load_tokenizer(), True, 0)[1, 0]
        losses = contrastive(Path(folder))
    encoder, decoder = utils.encoder_config(), utils.decoder_config()
    m3, clamp2 = utils.M3Model(encoder, decoder).state_dict(), utils.empty_clamp2().state_dict()
    halves = utils.M3PatchEncoder(encoder).state_dict(), utils.M3TokenDecoder(decoder).state_dict()
    facts = {
        "halves of m3": {name: list(value.shape) for half in halves for name, value in half.items()},
        "m3": {name: list(value.shape) for name, value in m3.items()},
        "clamp2": {name: list(value.shape) for name, value in clamp2.items()},
        "patches": list(M3Patchilizer().encode_array(LONG.read_text(), truncate=True).shape),
        "patches of a piece": list(piece["target"].shape),
        "selected": int(piece["selected"].sum()),
        "patches of a pair": list(pair["music"].shape),
        "tokens of a pair": len(pair["text"]),
        "segments of music": segments(np.ones((50, 8), np.uint8)),
        "segments of text": segments(np.ones(50, np.int64)),
        "held out of ten": len(utils.split_data(range(10))[1]),
        "contrastive losses": losses,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
