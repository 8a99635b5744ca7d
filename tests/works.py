"""What `benchmark.py` times: training steps and extraction, in our form and in the straightforward form.

The straightforward form: one-hot patches through a linear layer in floats, music always padded to PATCH_LENGTH and text
to MAX_TEXT_LENGTH, the decoder over all characters of a patch, eager attention, in extraction one segment at a time.
"""

import random
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import XLMRobertaConfig

import config
import embedding
import train_clamp2
import train_m3
import utils
from packing import compile_layers
from patches import corrupt_patches
from processes import Processes, autocast

LENGTH, TEXT = 512, 128  # patches of a segment, tokens of a text
WORDS = 250_002  # of the text model


# --- our form ---------------------------------------------------------------------------------------------------------
class Ours:
    """Batches and steps are the trainers' own, features the extractors'."""

    def __init__(self, name: str, model: nn.Module, device: torch.device, dtype: torch.dtype):
        self.model = model
        if name == "clamp2_step" and device.type == "cuda" and dtype == torch.bfloat16:
            compile_layers(model)
        self.trainer, self.collate, module = train_m3, train_m3.collate, train_m3.Restoration(model)
        if name == "clamp2_step":
            self.trainer, self.collate, module = train_clamp2, train_clamp2.PairBatch, train_clamp2.PairFeatures(model)
        self.state = SimpleNamespace(
            model=model, module=module, parallel=module, processes=Processes(0, 0, 1), device=device, dtype=dtype,
            scaler=torch.amp.GradScaler(device.type, enabled=False),
        )  # fmt: skip

    def batch(self, samples: list[dict]) -> object:
        return self.collate(samples).to(self.state.device)

    def back_propagate(self, batch: object) -> Tensor:
        """The loss, with its gradients in the parameters."""
        step = self.trainer.step(self.state, batch)
        return step.total / step.weight

    def features(self, items: list[np.ndarray], pooled: bool, batch_tokens: int) -> list[np.ndarray]:
        embedded = embedding.embed(self.model, enumerate(items), pooled, batch_tokens, self.state.dtype)
        return [feature for _, feature in embedded]


# --- the straightforward form -----------------------------------------------------------------------------------------
class Plain:
    """The computation of a model of ours, with its weights, as one would write it down first."""

    def __init__(self, name: str, model: nn.Module, device: torch.device, dtype: torch.dtype):
        for module in model.modules():
            if isinstance(module, transformers.PreTrainedModel):
                module.set_attn_implementation("eager")
        self.name, self.model, self.device, self.dtype = name, model, device, dtype

    def batch(self, samples: list[dict]) -> tuple[Tensor, ...]:
        rows = {key: [sample[key] for sample in samples] for key in samples[0]}
        if self.name == "m3_step":
            (inputs, masks), (selected, _), (targets, _) = (
                to_length(rows[key], LENGTH) for key in ("input", "selected", "target")
            )
            batch = (inputs, masks, selected, targets)
        else:
            batch = (*to_length(rows["text"], TEXT, 1), *to_length(rows["music"], LENGTH))
        return tuple(tensor.to(self.device) for tensor in batch)

    def back_propagate(self, batch: tuple[Tensor, ...]) -> Tensor:
        with autocast(self.device, self.dtype):
            loss = self.m3_loss(*batch) if self.name == "m3_step" else self.clamp2_loss(*batch)
        loss.backward()
        return loss

    @torch.inference_mode()
    def features(self, items: list[np.ndarray], pooled: bool, batch_tokens: int) -> list[np.ndarray]:
        with autocast(self.device, self.dtype):
            return [self.extract(item, pooled) for item in items]

    def encode(self, encoder: nn.Module, patches: Tensor, masks: Tensor) -> Tensor:
        """[B, T, P], [B, T] -> [B, T, H]"""
        embedded = encoder.patch_embedding(F.one_hot(patches.long(), 128).float().flatten(2))
        return encoder.base(inputs_embeds=embedded, attention_mask=masks.long()).last_hidden_state

    def m3_loss(self, inputs: Tensor, masks: Tensor, selected: Tensor, targets: Tensor) -> Tensor:
        decoder = self.model.decoder.base
        features = self.encode(self.model.encoder, inputs, masks)[selected.bool()]
        targets = targets[selected.bool()].long()
        embedded = torch.cat([features[:, None], decoder.transformer.wte(targets)[:, 1:]], dim=1)
        labels = targets.masked_fill(targets == 0, -100)
        return decoder(inputs_embeds=embedded, attention_mask=(targets != 0).long(), labels=labels).loss

    def music_features(self, patches: Tensor, masks: Tensor) -> Tensor:
        hidden = self.encode(self.model.music_model, patches, masks)
        return self.model.music_proj((hidden * masks[..., None]).sum(1) / masks.sum(1, keepdim=True))

    def text_features(self, ids: Tensor, masks: Tensor) -> Tensor:
        hidden = self.model.text_model(input_ids=ids, attention_mask=masks.long()).last_hidden_state
        return self.model.text_proj((hidden * masks[..., None]).sum(1) / masks.sum(1, keepdim=True))

    def clamp2_loss(self, text_ids: Tensor, text_masks: Tensor, patches: Tensor, masks: Tensor) -> Tensor:
        text, music = self.text_features(text_ids, text_masks), self.music_features(patches, masks)
        logits, labels = text @ music.t(), torch.arange(len(text), device=text.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2

    def extract(self, piece: np.ndarray, pooled: bool) -> np.ndarray:
        """One piece, a segment at a time; or one text, no longer than a segment."""
        if piece.ndim == 1:
            ids, masks = (tensor.to(self.device) for tensor in to_length([piece], TEXT, 1))
            return self.text_features(ids, masks)[0].float().cpu().numpy()
        encoder = self.model.music_model if pooled else self.model
        starts = embedding.segment_starts(len(piece), LENGTH)
        features = []
        for start in starts:
            segment = piece[start : start + LENGTH]
            patches, masks = to_length([segment], LENGTH)
            patches, masks = patches.to(self.device), masks.to(self.device)
            if pooled:
                features.append(self.music_features(patches, masks)[0].float().cpu().numpy())
            else:
                features.append(self.encode(encoder, patches, masks)[0, : len(segment)].float().cpu().numpy())
        new = len(piece) - (len(starts) - 1) * LENGTH
        if pooled:
            return np.average(features, axis=0, weights=[LENGTH] * (len(starts) - 1) + [new])
        return np.concatenate([*features[:-1], features[-1][-new:]])


def to_length(rows: list[np.ndarray], length: int, value: int = 0) -> tuple[Tensor, Tensor]:
    """Arrays [T, ...] of different T -> [B, length, ...], and the mask [B, length] of what is not padding."""
    padded = np.full((len(rows), length, *rows[0].shape[1:]), value, rows[0].dtype)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
        mask[i, : len(row)] = True
    return torch.from_numpy(padded), torch.from_numpy(mask)


def products(lengths: Iterable[int], layers: int, is_decoder: bool = False) -> int:
    """Floating-point operations of the matrix products of a transformer over sequences."""
    hidden = config.M3_HIDDEN_SIZE
    attention = 2 if is_decoder else 4  # a character attends to those before it: half of all pairs
    logits = 2 * hidden * utils.VOCABULARY if is_decoder else 0
    return sum(
        layers * (24 * hidden**2 * length + attention * hidden * length**2) + logits * length for length in lengths
    )


def text_config() -> XLMRobertaConfig:
    """XLM-R base, or as small as the music encoder is."""
    hidden = config.M3_HIDDEN_SIZE
    return XLMRobertaConfig(
        vocab_size=WORDS, hidden_size=hidden, intermediate_size=4 * hidden, num_attention_heads=hidden // 64,
        num_hidden_layers=config.PATCH_NUM_LAYERS, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip


def new_model(name: str, device: torch.device) -> nn.Module:
    """Of the sizes of config.py, with the same random weights each time."""
    torch.manual_seed(0)
    with device:
        if name == "m3_step":
            return utils.M3Model(utils.encoder_config(), utils.decoder_config())
        if name == "extract_m3":
            return utils.M3PatchEncoder(utils.encoder_config())
        return utils.CLaMP2Model.from_configs(text_config(), utils.encoder_config())


def random_texts(count: int) -> list[np.ndarray]:
    """Token ids, 10 to 90 of a text, the lengths of real metadata."""
    rng = random.Random(0)
    return [np.array([0, *rng.choices(range(4, WORDS - 2), k=rng.randint(8, 88)), 2]) for _ in range(count)]


# --- a work -------------------------------------------------------------------------------------------------------
class Work:
    """A training step of a model or an extraction, to be timed in one of the two forms; `prepare` gives it its pieces.

    Attributes: `pieces`, `tokens` (real patches and text tokens), `flops` (of real elements) and `padded_flops` (of the
    straightforward form) of one run.
    """

    def __init__(self, name: str, form: str, device: torch.device, dtype: torch.dtype):
        self.name, self.device, self.dtype = name, device, dtype
        self.is_step = name.endswith("_step")
        self.model = new_model(name, device)
        self.form = (Ours if form == "ours" else Plain)(name, self.model, device, dtype)
        self.batch_tokens = config.EXTRACT_BATCH_TOKENS
        if self.is_step:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=form == "ours" or None)

    def prepare(self, items: list[np.ndarray]) -> None:
        """items: patches [T, P] of pieces, or token ids [T] of texts to be extracted."""
        if self.is_step:
            items = [piece[:LENGTH] for piece in items]
        self.items, self.pieces, self.tokens = items, len(items), sum(map(len, items))
        texts: list[np.ndarray] = []
        characters: list[int] = []  # of selected patches
        if self.name == "m3_step":
            corrupted = [corrupt_patches(piece, np.random.default_rng(0)) for piece in items]
            samples = [
                {"name": "", "input": row, "selected": selected, "target": piece}
                for piece, (row, selected) in zip(items, corrupted, strict=True)
            ]
            for sample in samples:
                characters += (sample["target"][sample["selected"].astype(bool)] != 0).sum(1).tolist()
        elif self.name == "clamp2_step":
            texts = random_texts(len(items))
            samples = [{"name": "", "text": text, "music": piece} for text, piece in zip(texts, items, strict=True)]
            self.tokens += sum(map(len, texts))
        elif items[0].ndim == 1:
            texts, items = items, []
        segments: list[int] = []
        for piece in items:  # segments overlap at the end of a piece
            segments += [min(LENGTH, len(piece))] * len(embedding.segment_starts(len(piece), LENGTH))
        layers = config.PATCH_NUM_LAYERS
        one_hot = 2 * config.M3_HIDDEN_SIZE * config.PATCH_SIZE * utils.VOCABULARY
        self.flops = products(segments, layers) + products(map(len, texts), layers)
        self.flops += products(characters, config.TOKEN_NUM_LAYERS, True)
        self.padded_flops = (
            products([LENGTH] * len(segments), layers)
            + products([TEXT] * len(texts), layers)
            + products([config.PATCH_SIZE] * len(characters), config.TOKEN_NUM_LAYERS, True)
            + one_hot * LENGTH * len(segments)
        )
        if self.is_step:  # backward, twice as much
            self.flops, self.padded_flops = 3 * self.flops, 3 * self.padded_flops
            self.batch = self.form.batch(samples)

    def results(self) -> dict[str, Tensor]:
        """What both forms must give alike: loss and gradients, or features. Without dropout."""
        self.model.eval()
        if not self.is_step:
            return {str(i): torch.from_numpy(feature) for i, feature in enumerate(self.features())}
        results = {"loss": self.form.back_propagate(self.batch).detach().cpu()}
        results |= {k: p.grad.cpu() for k, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return results

    def features(self) -> list[np.ndarray]:
        pooled = self.name != "extract_m3"
        return self.form.features(self.items, pooled, self.batch_tokens)

    def once(self) -> None:
        """One run, which a GPU may not have ended yet."""
        self.model.train(self.is_step)
        if not self.is_step:
            self.features()
            return
        self.form.back_propagate(self.batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self) -> float:
        """One run; returns the seconds it took."""
        synchronize(self.device)
        start = time.perf_counter()
        self.once()
        synchronize(self.device)
        return time.perf_counter() - start


def peak_memory(device: torch.device) -> float:
    """GB at the most so far: on the GPU, allocated there; else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) / 1e6


def compare(name: str, ours: dict[str, Tensor], plain: dict[str, Tensor], exact: bool) -> str:
    """Says how nearly both forms gave the same. Ends the program if they did not, where they compute `exact`ly alike."""
    if "loss" not in ours:
        difference = max((ours[key].double() - plain[key]).abs().max().item() for key in ours)
        cosine = min(
            F.cosine_similarity(ours[k].double().flatten(), plain[k].double().flatten(), 0).item() for k in ours
        )
        if exact and difference > 1e-4:
            sys.exit(f"{name}: the two forms' features differ by {difference}")
        return f"features differ by at most {difference:.1e}, least cosine {cosine:.6f}"
    difference = abs(ours.pop("loss") - plain.pop("loss")).item()
    worst, squares, differences = 0.0, 0.0, 0.0
    for key in ours.keys() & plain.keys():
        delta = (ours[key] - plain[key]).double()
        worst = max(worst, (delta.abs().max() / max(plain[key].abs().max().item(), 1e-5)).item())
        squares, differences = squares + plain[key].double().square().sum(), differences + delta.square().sum()
    if exact and (difference > 1e-4 or worst > 1e-2):
        sys.exit(f"{name}: the two forms' losses differ by {difference}, gradients by {worst} of their largest entry")
    return f"losses differ by {difference:.1e}, gradients by {(differences / squares) ** 0.5:.1e} of their norm"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        _ = a @ b
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
