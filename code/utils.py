"""The models M3 and CLaMP 2 and the contrastive loss, under the published names and signatures.

The public methods pack padded batches first (`packing.py`), so that all computation takes one packed path.

Symbols, here and in the other files: B batch, T patches (or text tokens) of a piece, P characters of a patch
(PATCH_SIZE), N real patches (or tokens) of a batch, H hidden size, V vocabulary.
"""

import copy
import math
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput
from unidecode import unidecode

import checkpoints
import config

# By name too, where a parameter of a published signature is called `config`.
from config import CLAMP2_HIDDEN_SIZE, CLAMP2_LOAD_M3, EVAL_SPLIT, LOGIT_SCALE, PATCH_SIZE, TEXT_MODEL_NAME
from cpu import sum_rows, use_cheap_dropout
from files import InputError, printable
from hub_model import HubModel
from packing import Characters, Packed, Packing, Tensors, first_position, packable, run_packed, use_packed_attention
from patches import BOS, EOS, PAD, VOCABULARY, M3Patchilizer, mask_patches, read_music, remove_instrument_info
from processes import Processes
from texts import load_text_config, load_text_model

# Names that `from utils import *` exports, as in the published code: the constants of config.py too
_CONSTANTS = {name: value for name, value in vars(config).items() if name.isupper() and not name.startswith("_")}
globals().update(_CONSTANTS)
has_distributed = dist.is_available()
__all__ = [
    "AutoModel", "BertModel", "CLaMP2Model", "ClipLoss", "F", "GPT2Config", "GPT2LMHeadModel", "M3Model",
    "M3PatchEncoder", "M3Patchilizer", "M3TokenDecoder", "PreTrainedModel", "dist", "has_distributed", "mask_patches",
    "math", "os", "random", "re", "read_music", "remove_instrument_info", "split_data", "torch", "unidecode",
    *_CONSTANTS,
]  # fmt: skip

HEAD_SIZE = 64  # of every attention head

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def split_data(data: Sequence[T], eval_ratio: float = EVAL_SPLIT) -> tuple[list[T], list[T]]:
    """Split data into (train, eval), neither empty, the same in every run. Raises InputError for too few pieces."""
    if len(data) < 2:
        raise InputError(f"{len(data)} piece(s) cannot be split into training and evaluation data: 2 is the least")
    order = list(data)
    random.Random(0).shuffle(order)
    count = min(max(1, int(eval_ratio * len(order))), len(order) - 1)
    return order[count:], order[:count]


def encoder_config() -> BertConfig:
    """Return the configuration of the patch encoder with the sizes of config.py."""
    size, limit = config.M3_HIDDEN_SIZE, config.PATCH_LENGTH
    sizes = {"hidden_size": size, "num_attention_heads": size // HEAD_SIZE, "intermediate_size": size * 4}
    return BertConfig(vocab_size=1, num_hidden_layers=config.PATCH_NUM_LAYERS, max_position_embeddings=limit, **sizes)


def decoder_config() -> GPT2Config:
    """Return the configuration of the token decoder with the sizes of config.py."""
    size = config.M3_HIDDEN_SIZE
    sizes = {"n_embd": size, "n_head": size // HEAD_SIZE, "n_inner": size * 4, "n_layer": config.TOKEN_NUM_LAYERS}
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return GPT2Config(vocab_size=VOCABULARY, n_positions=PATCH_SIZE, **sizes, **ids)


def empty(make: Callable[..., M], *args: object) -> M:
    """Make a model whose parameters take no memory, for `checkpoints.load` to fill."""
    with init_empty_weights(include_buffers=False):
        model = make(*args)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.tie_weights()  # `init_empty_weights` separates tied weights
    return model


def empty_clamp2() -> "CLaMP2Model":
    """Make a CLaMP 2 of the sizes of config.py; see `empty`."""
    return empty(CLaMP2Model.from_configs, load_text_config(), encoder_config(), config.CLAMP2_HIDDEN_SIZE)


def on_host(padded: Tensor) -> np.ndarray:
    """Copy an input to the host, where batches are packed."""
    padded = padded.float() if padded.dtype == torch.bfloat16 else padded  # NumPy has no bfloat16
    return padded.detach().cpu().numpy()


def unflatten(patches: Tensor) -> Tensor:
    """Reshape patches, [B, T, P] or [B, T * P] as in the published trainer, to [B, T, P]."""
    return patches.reshape(len(patches), -1, PATCH_SIZE)


def prepare(model: PreTrainedModel, packed: bool = True) -> None:
    """Freeze a BERT's pooler, which only the published checkpoints use; install packed attention and fast dropout."""
    if pooler := getattr(model, "pooler", None):
        pooler.requires_grad_(False)
    use_cheap_dropout(model)
    if packed:
        use_packed_attention(model)


class M3PatchEncoder(nn.Module):
    """Encodes each patch as a feature: a linear embedding of its characters, then BERT over the patches."""

    keep_unit_length = False  # M3 never reads the header line `L:1/8`

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(PATCH_SIZE * VOCABULARY, config.hidden_size)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        self.base = BertModel(copy.deepcopy(config))
        prepare(self.base)
        self.base.embeddings.word_embeddings.requires_grad_(False)  # replaced by the patch embedding

    def embed(self, batch: Packed) -> Tensor:
        """Embed packed patches, [N, H]: the linear layer of the one-hot patches, as a sum of its weight's columns."""
        if type(self.patch_embedding) is not nn.Linear:  # replaced, by LoRA for instance
            return self.patch_embedding(F.one_hot(batch.tokens.long(), VOCABULARY).flatten(1).to(self.base.dtype))
        columns = self.patch_embedding.weight.t().contiguous()  # [P * V, H]: row p * V + v is for id v at position p
        characters = sum_rows(columns, batch.characters.int(), batch.starts)  # [N, H]
        pads = columns[PAD::VOCABULARY]  # [P, H]
        padding = F.pad(pads.flip(0).cumsum(0).flip(0), (0, 0, 0, 1))  # [P + 1, H]: the PADs from each position on
        return characters + padding.index_select(0, batch.sizes) + self.patch_embedding.bias

    def features(self, batch: Packed, pooled: bool = False) -> Tensor:
        """Encode packed patches as features [N, H]."""
        if pooled:
            raise ValueError("M3 has no pooled features; CLaMP 2 has")
        return run_packed(self.base, batch.packing, inputs_embeds=self.embed(batch))

    def forward(self, input_patches: Tensor, input_masks: Tensor) -> BaseModelOutput:
        """Encode patches [B, T, P] or [B, T * P] with masks [B, T]: `last_hidden_state` [B, T, H], 0 at padding."""
        mask = on_host(input_masks) != 0
        batch = Packed(Packing(mask), on_host(unflatten(input_patches))[mask]).to(self.base.device)
        return BaseModelOutput(last_hidden_state=batch.packing.unpack(self.features(batch)))


@dataclass
class M3Output(ModelOutput):
    loss: Tensor | None = None  # mean cross-entropy over the characters of the selected patches
    characters: Tensor | None = None  # their number


class M3TokenDecoder(nn.Module):
    """Restores a patch from its feature, character by character: GPT-2."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        config = copy.deepcopy(config)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS, EOS, PAD
        if config.activation_function == "gelu_new":
            config.activation_function = "gelu_pytorch_tanh"  # the same, in one kernel
        self.base = GPT2LMHeadModel(config)
        prepare(self.base)

    def forward(self, patch_features: Tensor, target_patches: Tensor) -> M3Output:
        """Compute the loss of patches [S, P] given their features [S, H]."""
        patches = on_host(target_patches.reshape(len(patch_features), -1))
        return self.restore(patch_features, Characters(patches).to(patch_features.device))

    def restore(self, features: Tensor, characters: Characters) -> M3Output:
        """Compute the loss of packed characters; a patch's feature (a row of [N, H]) replaces its BOS embedding."""
        embeddings = self.base.transformer.wte(characters.inputs.int())
        features = features.index_select(0, characters.rows).to(embeddings.dtype)
        embeddings = embeddings.index_copy(0, characters.firsts, features)
        hidden = run_packed(self.base.transformer, characters.packing, inputs_embeds=embeddings)  # [n, H]
        logits = self.base.lm_head(hidden).float()  # [n, V]
        return M3Output(F.cross_entropy(logits, characters.labels.long()), characters.count)

    @torch.no_grad()
    def generate(self, patch_feature: Tensor, tokens: Tensor) -> Tensor:
        """Predict the probabilities [V] of a patch's next character, given its feature [H] and first ids [n]."""
        tokens = tokens.flatten().long().to(patch_feature.device)
        packing = Packing.of_lengths([len(tokens)]).to(tokens.device)
        embeddings = self.base.transformer.wte(tokens)
        embeddings[0] = patch_feature.flatten()
        hidden = run_packed(self.base.transformer, packing, inputs_embeds=embeddings)
        return self.base.lm_head(hidden[-1]).float().softmax(-1)


class M3Batch(Tensors):
    """A training batch of M3: corrupted patches `inputs` [N, P], and the characters of the `selected` [N] `targets`."""

    def __init__(self, packing: Packing, inputs: np.ndarray, selected: np.ndarray, targets: np.ndarray):
        rows = selected.nonzero()[0]
        self.music = Packed(packing, inputs)
        self.characters = Characters(targets[rows], rows)


class M3Model(nn.Module, HubModel):
    """M3, the multimodal music model: restores the selected ones of corrupted patches (paper, section 3.2)."""

    def __init__(self, encoder_config: BertConfig, decoder_config: GPT2Config):
        super().__init__()
        self.config = encoder_config
        self.encoder = M3PatchEncoder(encoder_config)
        self.decoder = M3TokenDecoder(decoder_config)

    @property
    def device(self) -> torch.device:
        return self.encoder.base.device

    def forward(
        self, input_patches: Tensor, input_masks: Tensor, selected_indices: Tensor, target_patches: Tensor
    ) -> M3Output:
        """Compute the loss of patches [B, T, P] or [B, T * P]; input_masks, selected_indices: [B, T]."""
        mask = on_host(input_masks) != 0
        arrays = (on_host(x)[mask] for x in (unflatten(input_patches), selected_indices, unflatten(target_patches)))
        return self.restore(M3Batch(Packing(mask), *arrays).to(self.device))

    def restore(self, batch: M3Batch) -> M3Output:
        return self.decoder.restore(self.encoder.features(batch.music), batch.characters)


class CLaMP2Model(nn.Module, HubModel):
    """CLaMP 2: a text model and the M3 encoder, each projected into a shared space (paper, section 3.3)."""

    is_clamp3 = False  # whether the weights are CLaMP 3's text and symbolic towers

    def __init__(
        self,
        music_config: BertConfig,
        global_rank: int | None = None,
        world_size: int | None = None,
        text_model_name: str = TEXT_MODEL_NAME,
        hidden_size: int = CLAMP2_HIDDEN_SIZE,
        load_m3: bool = CLAMP2_LOAD_M3,
        *,
        text_config: PreTrainedConfig | None = None,
    ):
        """Make a model of pre-trained parts to train, or, given `text_config`, one with random weights.

        Args:
            music_config: of the M3 encoder.
            global_rank, world_size: of the processes whose pairs are compared; default: those of torch.distributed.
            text_model_name: a name or folder that `from_pretrained` takes.
            load_m3: start the music encoder from M3_WEIGHTS_PATH of config.py, if that file exists.
        Raises InputError if the text model or M3's weights cannot be used.
        """
        super().__init__()
        self.config = music_config
        if text_config is None:
            self.text_model = load_text_model(text_model_name)
        else:
            self.text_model = AutoModel.from_config(copy.deepcopy(text_config), dtype=torch.float32)
        prepare(self.text_model, packable(self.text_model.config))
        self.text_proj = nn.Linear(self.text_model.config.hidden_size, hidden_size)
        nn.init.normal_(self.text_proj.weight, std=0.02)
        self.music_model = M3PatchEncoder(music_config)
        self.music_proj = nn.Linear(music_config.hidden_size, hidden_size)
        nn.init.normal_(self.music_proj.weight, std=0.02)
        joined = has_distributed and dist.is_initialized()
        rank, size = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
        rank, size = rank if global_rank is None else global_rank, size if world_size is None else world_size
        self.loss_fn = ClipLoss(gather_with_grad=True, rank=rank, world_size=size)
        if load_m3 and text_config is None:
            self._start_from_m3(config.resolve(config.M3_WEIGHTS_PATH))
        parts = {"music_config": music_config, "text_config": self.text_model.config, "hidden_size": hidden_size}
        self._hub_mixin_config = {name: self._encode_arg(part) for name, part in parts.items()}  # for loading

    @classmethod
    def from_configs(
        cls, text_config: PreTrainedConfig, music_config: BertConfig, hidden_size: int = CLAMP2_HIDDEN_SIZE
    ) -> "CLaMP2Model":
        """Make a model with random weights."""
        return cls(music_config, hidden_size=hidden_size, text_config=text_config)

    def _start_from_m3(self, path: Path) -> None:
        """Load the encoder of M3 weights, if they exist, into the music encoder."""
        if path.exists():
            checkpoints.load(self.music_model, path, "encoder.")
            start = printable(path)
        else:
            start = f"new weights: CLAMP2_LOAD_M3 is True, but {printable(path)} does not exist; train M3 first"
        Processes().print(f"the music encoder starts from {start}")

    @property
    def device(self) -> torch.device:
        return self.text_model.device

    @property
    def keep_unit_length(self) -> bool:
        """Whether the model reads the header line `L:1/8`; CLaMP 3 never does."""
        return config.KEEP_UNIT_LENGTH and not self.is_clamp3

    def features(self, batch: Packed, pooled: bool = False) -> Tensor:
        """Encode packed patches or token ids as [N, H], or pooled and projected, [B, CLAMP2_HIDDEN_SIZE]."""
        is_music = batch.tokens.ndim == 2
        hidden = self.music_model.features(batch) if is_music else self._encode_text(batch)
        if not pooled:
            return hidden
        projection = self.music_proj if is_music else self.text_proj
        return projection(batch.packing.mean(hidden).to(projection.weight.dtype))

    def _encode_text(self, batch: Packed) -> Tensor:
        config, packing = self.text_model.config, batch.packing
        if packable(config):
            return run_packed(self.text_model, packing, first_position(config), input_ids=batch.tokens)
        mask = packing.unpack(torch.ones_like(batch.tokens))
        output = self.text_model(input_ids=packing.unpack(batch.tokens), attention_mask=mask)
        return packing.pack(output.last_hidden_state)

    def get_text_features(self, text_inputs: Tensor, text_masks: Tensor, get_normalized: bool = False) -> Tensor:
        """Encode token ids with masks [B, T] as [B, T, H].

        get_normalized: pool and project, [B, CLAMP2_HIDDEN_SIZE]. The name is published; the norm is not 1.
        """
        ids, mask, positions = on_host(text_inputs), on_host(text_masks) != 0, None
        if first_position(self.text_model.config):  # RoBERTa and its relatives count tokens, wherever the padding is
            real = ids != self.text_model.config.pad_token_id
            positions = (real.cumsum(1) * real - 1)[mask]
        return self._padded(Packed(Packing(mask, positions), ids[mask]), get_normalized)

    def get_music_features(self, music_inputs: Tensor, music_masks: Tensor, get_normalized: bool = False) -> Tensor:
        """Encode patches [B, T, P] or [B, T * P] with masks [B, T], as `get_text_features` does."""
        mask = on_host(music_masks) != 0
        return self._padded(Packed(Packing(mask), on_host(unflatten(music_inputs))[mask]), get_normalized)

    def _padded(self, batch: Packed, get_normalized: bool) -> Tensor:
        batch = batch.to(self.device)
        features = self.features(batch, get_normalized)
        return features if get_normalized else batch.packing.unpack(features)

    @staticmethod
    def avg_pooling(input_features: Tensor, input_masks: Tensor) -> Tensor:
        """Average features [B, T, H] over the true entries of masks [B, T]: [B, H]."""
        packing = Packing(on_host(input_masks) != 0).to(input_features.device)
        return packing.mean(packing.pack(input_features)).to(input_features.dtype)

    def forward(self, text_inputs: Tensor, text_masks: Tensor, music_inputs: Tensor, music_masks: Tensor) -> Tensor:
        """Compute the contrastive loss of pairs of texts and music; see `ClipLoss`."""
        text = self.get_text_features(text_inputs, text_masks, get_normalized=True)
        music = self.get_music_features(music_inputs, music_masks, get_normalized=True)
        return self.loss_fn(text, music, LOGIT_SCALE)


class ClipLoss(nn.Module):
    """Symmetric cross-entropy over the dot products of all texts with all music of all processes.

    With `gather_with_grad`, each process forms the rows of its own pairs only, so that memory grows linearly with their
    number; loss and gradient, averaged over the processes, are those of the global batch.

    Args:
        local_loss: return the loss of this process's rows, not the mean over all processes.
        gather_with_grad: backpropagate into the features of other processes; else they are constants.
        cache_labels: has no effect.
        use_horovod: not supported.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ):
        super().__init__()
        if use_horovod:
            raise ValueError("Horovod is not supported; use torch.distributed")
        self.local_loss, self.gather_with_grad = local_loss, gather_with_grad
        self.rank, self.world_size = rank, world_size

    def forward(
        self,
        text_features: Tensor,
        music_features: Tensor,
        logit_scale: float | Tensor = LOGIT_SCALE,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Compare features [B, H], with the same B on every process. output_dict: {"contrastive_loss": the loss}."""
        with torch.autocast(text_features.device.type, enabled=False):
            text_features, music_features = text_features.float(), music_features.float()
            all_text, all_music, first = self._all(text_features), self._all(music_features), 0
            if not (self.local_loss or self.gather_with_grad):  # the other rows contribute to the gradient
                text_features, music_features = all_text, all_music
            elif self.world_size > 1:
                first = self.rank * len(text_features)
            labels = torch.arange(len(text_features), device=text_features.device) + first
            text_logits = logit_scale * text_features @ all_music.t()  # [B, B of all processes]
            music_logits = logit_scale * music_features @ all_text.t()
            loss = (F.cross_entropy(text_logits, labels) + F.cross_entropy(music_logits, labels)) / 2
            if self.world_size > 1 and not self.local_loss:
                mean = loss.detach().clone()
                dist.all_reduce(mean)
                loss = loss + (mean / self.world_size - loss.detach())
        return {"contrastive_loss": loss} if output_dict else loss

    def _all(self, features: Tensor) -> Tensor:
        """Gather features [B, H] of all processes, by rank: [B of all, H]."""
        if self.world_size == 1:
            return features
        if self.gather_with_grad:
            return _Gather.apply(features)
        parts = [torch.empty_like(features) for _ in range(self.world_size)]
        dist.all_gather(parts, features.detach().contiguous())
        if not self.local_loss:
            parts[self.rank] = features
        return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
