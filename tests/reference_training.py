"""Both trainings as one plain loop, which the trainers must equal step by step.

One process, nothing resumed, no dropout, no loader, padded batches, one-hot patches, transformers' own attention;
the losses, the optimizer, the warm-up and all that is random about a piece are written out.
"""

import math
import random

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from helpers import KIT
from patches import M3Patchilizer, read_music, remove_instrument_info

PAD, EOS, MASK = 0, 2, 3
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"}
METADATA = ("title", "composer", "genres", "description", "lyrics", "tags", "ensembles", "instruments")


# --- models, with the names of the published checkpoints ------------------------------------------------------------
class Encoder(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.patch_embedding = nn.Linear(64 * 128, 64)
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256}
        self.base = BertModel(BertConfig(vocab_size=1, max_position_embeddings=length, **sizes, **OFF))

    def forward(self, pieces):
        """Pieces [T, 64] of different lengths -> features [B, T, H], and which of them are of patches [B, T]."""
        patches = pad_sequence([torch.tensor(piece).long() for piece in pieces], batch_first=True)
        mask = pad_sequence([torch.ones(len(piece)) for piece in pieces], batch_first=True)
        embedded = self.patch_embedding(nn.functional.one_hot(patches, 128).flatten(2).float())
        return self.base(inputs_embeds=embedded, attention_mask=mask).last_hidden_state, mask


class M3(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.encoder, self.decoder = Encoder(length), nn.Module()
        sizes = {"vocab_size": 128, "n_positions": 64, "n_embd": 64, "n_layer": 1, "n_head": 1}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "attn_implementation": "eager"}
        self.decoder.base = GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=1, eos_token_id=2))

    def loss(self, batch):
        """The cross-entropy of the characters of the selected patches, as a sum, and their number."""
        hidden, _ = self.encoder([piece["input"] for piece in batch])
        features = torch.cat([row[piece["selected"]] for row, piece in zip(hidden, batch, strict=True)])
        targets = torch.from_numpy(np.concatenate([piece["target"][piece["selected"]] for piece in batch])).long()
        embedded = self.decoder.base.transformer.wte(targets)
        embedded = torch.cat([features[:, None], embedded[:, 1:]], dim=1)  # the feature in the place of BOS
        logits = self.decoder.base(inputs_embeds=embedded, attention_mask=(targets != PAD).long()).logits
        own = logits[:, :-1].log_softmax(-1).gather(-1, targets[:, 1:, None])[..., 0]
        real = targets[:, 1:] != PAD
        return -own[real].sum(), int(real.sum())

    def evaluate(self, batch, _):
        sums = [self.loss([piece]) for piece in batch]
        return float(sum(total for total, _ in sums)) / sum(count for _, count in sums)


class CLaMP2(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.text_model = AutoModel.from_config(AutoConfig.from_pretrained(KIT / "tiny-xlmr", **OFF))
        self.text_proj = nn.Linear(64, 48)
        self.music_model = Encoder(length)
        self.music_proj = nn.Linear(64, 48)

    def features(self, batch):
        ids = pad_sequence([torch.tensor(piece["text"]) for piece in batch], batch_first=True, padding_value=1)
        mask = pad_sequence([torch.ones(len(piece["text"])) for piece in batch], batch_first=True)
        text = self.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
        music, music_mask = self.music_model([piece["music"] for piece in batch])
        means = ((x * m[..., None]).sum(1) / m.sum(1, keepdim=True) for x, m in ((text, mask), (music, music_mask)))
        return self.text_proj(next(means)), self.music_proj(next(means))

    @staticmethod
    def contrast(text, music):
        scores = text @ music.T
        return -(scores.log_softmax(1).diag().mean() + scores.log_softmax(0).diag().mean()) / 2

    def loss(self, batch):
        return self.contrast(*self.features(batch)), 1

    def evaluate(self, batch, _):
        """In groups of about 1024, the larger ones first; each pair counts the same."""
        groups = np.array_split(np.arange(len(batch)), math.ceil(len(batch) / 1024))
        losses = [float(self.contrast(*self.features([batch[i] for i in group]))) * len(group) for group in groups]
        return sum(losses) / len(batch)


# --- what is random about a piece -----------------------------------------------------------------------------------
def cut(patches, length, rng, train):
    """The head, the tail or a random part of a long piece; its head in evaluation."""
    last = len(patches) - length
    start = rng.choice((0, last, rng.randint(0, last))) if train and last > 0 else 0
    return patches[start : start + length]


def patches_of(text):
    text = "".join(line for line in text.splitlines(True) if line != "L:1/8\n")
    return M3Patchilizer().encode_array(text, add_special_patches=True)


def m3_piece(path, rng, train, length):
    target = cut(patches_of(read_music(path)), length, rng, train)
    dice = np.random.default_rng(rng.getrandbits(64))
    selected = sorted(dice.permutation(len(target))[: math.ceil(0.45 * len(target))].tolist())
    corrupted, draw = target.copy(), dice.random() if train else 1.0
    for row in selected:
        if draw < 0.8:
            corrupted[row] = MASK
        elif draw < 0.9:
            ids = target[row].tolist()
            stop = ids.index(EOS) if ids.count(EOS) == 1 else 64
            corrupted[row, 1:stop] = dice.permutation(target[row, 1:stop])
    kind = "masked" if draw < 0.8 else "shuffled" if draw < 0.9 else "kept"
    return {"name": path.name, "input": corrupted, "selected": selected, "target": target, "kind": kind}


def clamp2_piece(record, rng, train, folder, length, tokenizer, text_length=128):
    values = [record.get(field) or [] for field in METADATA]
    values = [item for value in values for item in (value if isinstance(value, list) else [value])]
    metadata = list(dict.fromkeys(line.strip() for value in values for line in value.split("\n") if line.strip()))
    english, others = record.get("summary_en") or [], record.get("summary_nen") or []
    english = english if isinstance(english, list) else [english]
    others = [item["summary"] for item in (others if isinstance(others, list) else [others])]
    languages = [texts for texts in (english, others) if texts]
    if not train:
        lines = [languages[0][0]] if languages else metadata
    elif metadata and (rng.random() < 0.5 or not languages):
        lines = [line for line in metadata if rng.random() < 0.5] or metadata
        rng.shuffle(lines)
    else:
        lines = [rng.choice(rng.choice(languages))]
    paths = record["filepaths"]
    first = rng.sample(paths, len(paths))[0] if train else next((p for p in paths if p.endswith(".abc")), paths[0])
    path = folder / first
    music = read_music(path)
    if train and rng.random() < 0.9:
        music = remove_instrument_info(music)
    patches = cut(patches_of(music), length, rng, train)
    ids = cut(tokenizer("</s>".join(lines))["input_ids"], text_length, rng, train)
    return {"name": path.name, "text": ids, "music": patches}


# --- the loop -------------------------------------------------------------------------------------------------------
def split(pieces, share):
    """Training and evaluation data."""
    order = list(pieces)
    random.Random(0).shuffle(order)
    count = int(share * len(order))
    return order[count:], order[:count]


def train(model, pieces, eval_pieces, make, *, seed, epochs, batch_size, rate, warmup, max_norm=0.0, evaluate_first):
    """Returns the steps, the epochs, the best checkpoint (None if nothing was better than the start) and the last.

    make: (piece, rng, train) -> what the model takes.
    """
    parameters, moments, steps, records, best = list(model.parameters()), {}, [], [], None
    evaluated = [make(piece, random.Random(f"0 0 {i}"), False) for i, piece in enumerate(eval_pieces)]
    with torch.no_grad():
        best_epoch, lowest = 0, model.evaluate(evaluated, batch_size) if evaluate_first else math.inf
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng([seed, epoch]).permutation(len(pieces)).tolist()
        total, weight = 0.0, 0
        for first in range(0, len(pieces) - batch_size + 1, batch_size):
            batch = [
                make(pieces[index], random.Random(f"{seed} {epoch} {index}"), True)
                for index in order[first : first + batch_size]
            ]
            loss, count = model.loss(batch)
            gradients = torch.autograd.grad(loss / count, parameters, allow_unused=True)
            norm = math.sqrt(sum(g.square().sum().item() for g in gradients if g is not None))
            current = rate * min(1, len(steps) / warmup)
            values = {"loss": loss.item() / count, "gradient_norm": norm, "learning_rate": current}
            steps.append({**values, "pieces": batch})
            total, weight = total + loss.item(), weight + count
            shrink = min(1, max_norm / norm) if max_norm else 1
            for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                if gradient is not None:
                    m, v = moments.get(i, (0.0, 0.0))
                    m, v = 0.9 * m + 0.1 * shrink * gradient, 0.999 * v + 0.001 * (shrink * gradient) ** 2
                    moments[i] = m, v
                    m, v = m / (1 - 0.9 ** len(steps)), v / (1 - 0.999 ** len(steps))
                    parameter.data -= current * (0.01 * parameter.data + m / (v.sqrt() + 1e-8))
        with torch.no_grad():
            eval_loss = model.evaluate(evaluated, batch_size)
        after = rate * min(1, len(steps) / warmup)
        records.append({"train_loss": total / weight, "eval_loss": eval_loss, "learning_rate": after})
        improved = eval_loss < lowest
        best_epoch, lowest = (epoch, eval_loss) if improved else (best_epoch, lowest)
        last = {
            "model": {name: value.clone() for name, value in model.state_dict().items()},
            "moments": dict(moments),
            "steps": len(steps),
            "rate": after,
            "epoch": epoch,
            "best_epoch": best_epoch,
            "min_eval_loss": lowest,
        }
        best = last if improved else best
    return steps, records, best, last
