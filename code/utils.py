"""The models, M3 and CLaMP 2, and their contrastive loss, under the published names and signatures.

A padded batch of the public methods is packed first (`packing.py`); training, evaluation and extraction take the same
packed path. What the models read is made in `patches.py` and `texts.py`.

Symbols, here and in the other files: B batch, T patches (or text tokens) of a piece, P characters of a patch
(PATCH_SIZE), N real patches (or tokens) of a batch, H hidden size.
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
from config import (
    CLAMP2_HIDDEN_SIZE,
    CLAMP2_LOAD_M3,
    EVAL_SPLIT,
    LOGIT_SCALE,
    PATCH_SIZE,
    TEXT_MODEL_NAME,
)
from cpu import sum_rows, use_cheap_dropout
from files import InputError, printable
from hub_model import HubModel
from packing import Characters, Packed, Packing, Tensors, first_position, packable, run_packed, use_packed_attention
from patches import BOS, EOS, PAD, VOCABULARY, M3Patchilizer, mask_patches, read_music, remove_instrument_info
from processes import Processes
from texts import load_text_config, load_text_model

# Names that `from utils import *` brings, as in the published code: the constants of config.py too
_CONSTANTS = {name: value for name, value in vars(config).items() if name.isupper() and not name.startswith("_")}
globals().update(_CONSTANTS)
has_distributed = dist.is_available()
__all__ = [
    "AutoModel",
    "BertModel",
    "CLaMP2Model",
    "ClipLoss",
    "F",
    "GPT2Config",
    "GPT2LMHeadModel",
    "M3Model",
    "M3PatchEncoder",
    "M3Patchilizer",
    "M3TokenDecoder",
    "PreTrainedModel",
    "dist",
    "has_distributed",
    "mask_patches",
    "math",
    "os",
    "random",
    "re",
    "read_music",
    "remove_instrument_info",
    "split_data",
    "torch",
    "unidecode",
    *_CONSTANTS,
]

HEAD_SIZE = 64  # of every attention head

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def split_data(data: Sequence[T], eval_ratio: float = EVAL_SPLIT) -> tuple[list[T], list[T]]:
    """(train, eval): the same split in every process and every run. At least one piece is held out.

    Raises InputError for fewer than two pieces.
    """
    if len(data) < 2:
        raise InputError(f"{len(data)} piece(s) cannot be split into training and evaluation data: 2 is the least")
    order = list(data)
    random.Random(0).shuffle(order)
    count = min(max(1, int(eval_ratio * len(order))), len(order) - 1)
    return order[count:], order[:count]


def encoder_config() -> BertConfig:
    """The configuration of the patch encoder with the sizes of config.py."""
    return BertConfig(
        vocab_size=1,
        hidden_size=config.M3_HIDDEN_SIZE,
        num_hidden_layers=config.PATCH_NUM_LAYERS,
        num_attention_heads=config.M3_HIDDEN_SIZE // HEAD_SIZE,
        intermediate_size=config.M3_HIDDEN_SIZE * 4,
        max_position_embeddings=config.PATCH_LENGTH,
    )


def decoder_config() -> GPT2Config:
    """The configuration of the token decoder with the sizes of config.py."""
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=PATCH_SIZE,
        n_embd=config.M3_HIDDEN_SIZE,
        n_layer=config.TOKEN_NUM_LAYERS,
        n_head=config.M3_HIDDEN_SIZE // HEAD_SIZE,
        n_inner=config.M3_HIDDEN_SIZE * 4,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def empty(make: Callable[..., M], *args: object) -> M:
    """The model that `make` returns, for `load_weights` to fill: no parameter has memory yet, nothing is drawn."""
    with init_empty_weights(include_buffers=False):
        model = make(*args)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.tie_weights()  # each parameter has been replaced by one of its own
    return model


def empty_clamp2() -> "CLaMP2Model":
    """A CLaMP 2 of the sizes of config.py, for a checkpoint to be loaded into; see `empty`."""
    return empty(CLaMP2Model.from_configs, load_text_config(), encoder_config(), config.CLAMP2_HIDDEN_SIZE)


def on_host(padded: Tensor) -> np.ndarray:
    """A tensor that a public method is given, as an array of which a packed batch is made."""
    if padded.dtype == torch.bfloat16:  # NumPy has no such type
        padded = padded.float()
    return padded.detach().cpu().numpy()


def unflatten(patches: Tensor) -> Tensor:
    """Reshapes patches [B, T, P], or [B, T * P] as the published trainer has them, to [B, T, P]."""
    return patches.reshape(len(patches), -1, PATCH_SIZE)


class M3PatchEncoder(nn.Module):
    """Patches -> one feature each: a linear embedding of the patch's characters, then BERT over the patches."""

    keep_unit_length = False  # M3 reads music without its header line `L:1/8`, in training and in extraction

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(PATCH_SIZE * VOCABULARY, config.hidden_size)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        self.base = BertModel(copy.deepcopy(config))
        freeze_unused(self.base)
        self.base.embeddings.word_embeddings.requires_grad_(False)  # the patch embedding stands in for it
        use_packed_attention(self.base)
        use_cheap_dropout(self.base)

    def embed(self, batch: Packed) -> Tensor:
        """Packed patches -> [N, H]: what the linear layer gives for the one-hot patches, as a sum of its columns.

        Where a patch's end is PAD, the columns of PAD are summed once for all patches of that length.
        """
        if type(self.patch_embedding) is not nn.Linear:  # another layer in its place, such as LoRA's
            return self.patch_embedding(F.one_hot(batch.tokens.long(), VOCABULARY).flatten(1).to(self.base.dtype))
        columns = self.patch_embedding.weight.t().contiguous()  # [P * V, H]: row p * V + v is of id v at place p
        characters = sum_rows(columns, batch.characters.int(), batch.starts)  # [N, H]
        # the sum of the PAD columns from each place on, which a patch of that length is filled up with
        pads = columns[PAD::VOCABULARY]  # [P, H]
        after = torch.cat([pads.flip(0).cumsum(0).flip(0), pads.new_zeros((1, pads.shape[1]))])  # [P + 1, H]
        return characters + after.index_select(0, batch.sizes) + self.patch_embedding.bias

    def features(self, batch: Packed, pooled: bool = False) -> Tensor:
        """Packed patches -> features [N, H]."""
        if pooled:
            raise ValueError("M3 has no pooled features; CLaMP 2 has")
        return run_packed(self.base, batch.packing, inputs_embeds=self.embed(batch))

    def forward(self, input_patches: Tensor, input_masks: Tensor) -> BaseModelOutput:
        """Patches [B, T, P] or [B, T * P] and masks [B, T] -> `last_hidden_state` [B, T, H], zero at padding."""
        mask = on_host(input_masks) != 0
        batch = Packed(Packing(mask), on_host(unflatten(input_patches))[mask]).to(self.base.device)
        return BaseModelOutput(last_hidden_state=batch.packing.unpack(self.features(batch)))


@dataclass
class M3Output(ModelOutput):
    loss: Tensor | None = None  # mean cross-entropy over the characters of the selected patches
    characters: Tensor | None = None  # how many there are


class M3TokenDecoder(nn.Module):
    """Restores the characters of a patch, one after another, from the patch's feature: GPT-2."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        config = copy.deepcopy(config)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS, EOS, PAD
        if config.activation_function == "gelu_new":
            config.activation_function = "gelu_pytorch_tanh"  # the same, in one kernel
        self.base = GPT2LMHeadModel(config)
        use_packed_attention(self.base)
        use_cheap_dropout(self.base)

    def forward(self, patch_features: Tensor, target_patches: Tensor) -> M3Output:
        """Features [S, H] of patches [S, P] -> the mean cross-entropy of their characters."""
        patches = on_host(target_patches.reshape(len(patch_features), -1))
        return self.restore(patch_features, Characters(patches).to(patch_features.device))

    def restore(self, features: Tensor, characters: Characters) -> M3Output:
        """The loss of characters, and the features of a packed row in which their patches' stand."""
        hidden = self._run(characters, features)
        logits = self.base.lm_head(hidden).float()  # [n, V]
        return M3Output(F.cross_entropy(logits, characters.labels.long()), characters.count)

    @torch.no_grad()
    def generate(self, patch_feature: Tensor, tokens: Tensor) -> Tensor:
        """The feature [H] of a patch and its first characters, ids [n], the BOS included -> the next one's
        probabilities [V]."""
        tokens = tokens.flatten().long().to(patch_feature.device)
        packing = Packing.of_lengths([len(tokens)]).to(tokens.device)
        embeddings = self.base.transformer.wte(tokens)
        embeddings[0] = patch_feature.flatten()
        hidden = run_packed(self.base.transformer, packing, inputs_embeds=embeddings)
        return self.base.lm_head(hidden[-1]).float().softmax(-1)

    def _run(self, characters: Characters, features: Tensor) -> Tensor:
        """-> hidden states [n, H]. A patch's feature stands where the embedding of its BOS would."""
        embeddings = self.base.transformer.wte(characters.inputs.int())
        features = features.index_select(0, characters.rows).to(embeddings.dtype)
        embeddings = embeddings.index_copy(0, characters.firsts, features)
        return run_packed(self.base.transformer, characters.packing, inputs_embeds=embeddings)


class M3Batch(Tensors):
    """Pieces as M3 is trained on them: their corrupted patches, and the characters of the selected ones to restore.

    Args:
        packing: of the pieces.
        inputs, targets: [N, P], the corrupted patches and the patches as they were.
        selected: [N], which patches are to be restored.
    """

    def __init__(self, packing: Packing, inputs: np.ndarray, selected: np.ndarray, targets: np.ndarray):
        rows = selected.nonzero()[0]
        self.music = Packed(packing, inputs)
        self.characters = Characters(targets[rows], rows)


class M3Model(nn.Module, HubModel):
    """M3, the multimodal music model: encodes corrupted patches and restores the selected ones (paper, section 3.2)."""

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
        """input_patches, target_patches: ids [B, T, P] or [B, T * P]; input_masks, selected_indices: [B, T]."""
        mask = on_host(input_masks) != 0
        arrays = (on_host(x)[mask] for x in (unflatten(input_patches), selected_indices, unflatten(target_patches)))
        return self.restore(M3Batch(Packing(mask), *arrays).to(self.device))

    def restore(self, batch: M3Batch) -> M3Output:
        """The loss of a packed batch."""
        return self.decoder.restore(self.encoder.features(batch.music), batch.characters)


class CLaMP2Model(nn.Module, HubModel):
    """Text and music in one space (paper, section 3.3): a text model and the M3 encoder, each with a projection."""

    is_clamp3 = False  # whether its weights are CLaMP 3's text and symbolic towers

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
        """With pre-trained parts to start a training from; `from_configs` makes one without.

        Args:
            music_config: of the M3 encoder.
            global_rank, world_size: of the processes whose pairs are compared; default: those of torch.distributed.
            text_model_name: of a text model that `from_pretrained` takes, its weights included.
            load_m3: start the music encoder from M3_WEIGHTS_PATH of config.py, if there are such weights.
            text_config: see `from_configs`.
        Raises InputError if the text model or M3's weights cannot be used.
        """
        super().__init__()
        self.config = music_config
        if text_config is None:
            self.text_model = load_text_model(text_model_name)
        else:
            self.text_model = AutoModel.from_config(copy.deepcopy(text_config), dtype=torch.float32)
        freeze_unused(self.text_model)
        use_cheap_dropout(self.text_model)
        if packable(self.text_model.config):
            use_packed_attention(self.text_model)
        self.text_proj = nn.Linear(self.text_model.config.hidden_size, hidden_size)
        nn.init.normal_(self.text_proj.weight, std=0.02)
        self.music_model = M3PatchEncoder(music_config)
        self.music_proj = nn.Linear(music_config.hidden_size, hidden_size)
        nn.init.normal_(self.music_proj.weight, std=0.02)
        joined = has_distributed and dist.is_initialized()
        self.loss_fn = ClipLoss(
            gather_with_grad=True,
            rank=global_rank if global_rank is not None else dist.get_rank() if joined else 0,
            world_size=world_size if world_size is not None else dist.get_world_size() if joined else 1,
        )
        if load_m3 and text_config is None:
            self._start_from_m3(config.resolve(config.M3_WEIGHTS_PATH))
        # what `config.json` of the hub's form holds: `from_pretrained` needs neither name nor weights of the text model
        parts = {"music_config": music_config, "text_config": self.text_model.config}
        self._hub_mixin_config = {name: self._encode_arg(part) for name, part in parts.items()}
        self._hub_mixin_config["hidden_size"] = hidden_size

    @classmethod
    def from_configs(
        cls,
        text_config: PreTrainedConfig,
        music_config: BertConfig,
        hidden_size: int = CLAMP2_HIDDEN_SIZE,
    ) -> "CLaMP2Model":
        """A model with random weights, for a checkpoint to be loaded into: the text model's are not read."""
        return cls(music_config, hidden_size=hidden_size, text_config=text_config)

    def _start_from_m3(self, path: Path) -> None:
        """Starts the music encoder from the encoder of M3 weights, if they are there."""
        if not path.exists():
            Processes().say(
                f"the music encoder starts from new weights: CLAMP2_LOAD_M3 is True, but {printable(path)} does not"
                " exist; train M3 first to begin with what it has learnt"
            )
            return
        checkpoints.load(self.music_model, path, "encoder.")
        Processes().say(f"the music encoder starts from {printable(path)}")

    @property
    def device(self) -> torch.device:
        return self.text_model.device

    @property
    def keep_unit_length(self) -> bool:
        """Whether music is embedded with its header line `L:1/8`; CLaMP 3 always has it without."""
        return config.KEEP_UNIT_LENGTH and not self.is_clamp3

    def features(self, batch: Packed, pooled: bool = False) -> Tensor:
        """Packed patches or token ids -> [N, H], or, pooled and projected, [B, CLAMP2_HIDDEN_SIZE].

        What training, evaluation and extraction call, and the methods below.
        """
        is_music = batch.tokens.ndim == 2
        hidden = self.music_model.features(batch) if is_music else self._encode_text(batch)
        if not pooled:
            return hidden
        projection = self.music_proj if is_music else self.text_proj
        return projection(batch.packing.mean(hidden).to(projection.weight.dtype))

    def _encode_text(self, batch: Packed) -> Tensor:
        """-> [N, H of the text model]."""
        config, packing = self.text_model.config, batch.packing
        if packable(config):
            return run_packed(self.text_model, packing, first_position(config), input_ids=batch.tokens)
        mask = packing.unpack(torch.ones_like(batch.tokens))
        output = self.text_model(input_ids=packing.unpack(batch.tokens), attention_mask=mask)
        return packing.pack(output.last_hidden_state)

    def get_text_features(self, text_inputs: Tensor, text_masks: Tensor, get_normalized: bool = False) -> Tensor:
        """Token ids and masks [B, T] -> [B, T, H], or, pooled and projected, [B, CLAMP2_HIDDEN_SIZE].

        get_normalized: pooled and projected. The name is the published one; the vectors are not of length 1.
        """
        ids, mask, positions = on_host(text_inputs), on_host(text_masks) != 0, None
        if first_position(self.text_model.config):  # RoBERTa's kin count tokens, wherever the padding is
            positions = ((ids != self.text_model.config.pad_token_id).cumsum(1) - 1)[mask]
        return self._padded(Packed(Packing(mask, positions), ids[mask]), get_normalized)

    def get_music_features(self, music_inputs: Tensor, music_masks: Tensor, get_normalized: bool = False) -> Tensor:
        """As `get_text_features`, for patches [B, T, P] or [B, T * P] and masks [B, T]."""
        mask = on_host(music_masks) != 0
        return self._padded(Packed(Packing(mask), on_host(unflatten(music_inputs))[mask]), get_normalized)

    def _padded(self, batch: Packed, get_normalized: bool) -> Tensor:
        batch = batch.to(self.device)
        features = self.features(batch, get_normalized)
        return features if get_normalized else batch.packing.unpack(features)

    @staticmethod
    def avg_pooling(input_features: Tensor, input_masks: Tensor) -> Tensor:
        """[B, T, H] and masks [B, T] -> the mean over what is not padding, [B, H]."""
        packing = Packing(on_host(input_masks) != 0).to(input_features.device)
        return packing.mean(packing.pack(input_features)).to(input_features.dtype)

    def forward(self, text_inputs: Tensor, text_masks: Tensor, music_inputs: Tensor, music_masks: Tensor) -> Tensor:
        """The contrastive loss of pairs of texts and music; see `ClipLoss`."""
        text = self.get_text_features(text_inputs, text_masks, get_normalized=True)
        music = self.get_music_features(music_inputs, music_masks, get_normalized=True)
        return self.loss_fn(text, music, LOGIT_SCALE)


class ClipLoss(nn.Module):
    """Symmetric cross-entropy over the dot products of all texts with all music, of all processes.

    With `gather_with_grad`, each process forms the rows of its own pairs only, so that memory grows linearly with their
    number; the mean over the processes is the loss of the global batch, and so is its gradient.

    Args:
        local_loss: the loss of this process's rows; else the mean over all processes, that of the global batch.
        gather_with_grad: let gradients reach the features of other processes too, as `train_clamp2.py` needs. Without,
            those of other processes are constants.
        cache_labels: has no effect; labels cost nothing.
        rank, world_size: of the processes whose pairs are compared. With 1, this process compares its own pairs.
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
            raise ValueError("Horovod is not supported; processes are joined by torch.distributed")
        self.local_loss, self.gather_with_grad = local_loss, gather_with_grad
        self.rank, self.world_size = rank, world_size

    def forward(
        self,
        text_features: Tensor,
        music_features: Tensor,
        logit_scale: float | Tensor = LOGIT_SCALE,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """text_features, music_features: [B, H], of the same B on every process. -> the loss, or
        {"contrastive_loss": the loss}."""
        with torch.autocast(text_features.device.type, enabled=False):
            text_features, music_features = text_features.float(), music_features.float()
            all_text, all_music, first = self._all(text_features), self._all(music_features), 0
            if not (self.local_loss or self.gather_with_grad):  # only other rows than its own bring all the gradient
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
        """The rows of all processes, in the order of their ranks: [B, H] -> [B of all, H]."""
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


def freeze_unused(model: nn.Module) -> None:
    """Freezes a BERT's pooler, which is in the published checkpoints but not used."""
    for name, parameter in model.named_parameters():
        if name.startswith("pooler."):
            parameter.requires_grad_(False)
