"""The models, M3 and CLaMP 2, their contrastive loss, and embedding with them. What they read is made in `patches.py`.

Symbols, here and in the other files: B batch, T patches (or text tokens) of a piece, P characters of a patch
(PATCH_SIZE), N real patches (or tokens) of a batch, H hidden size.
"""

import copy
import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedConfig

from config import (
    CLAMP2_HIDDEN_SIZE,
    EVAL_SPLIT,
    LOGIT_SCALE,
    M3_HIDDEN_SIZE,
    PATCH_LENGTH,
    PATCH_NUM_LAYERS,
    PATCH_SIZE,
    TOKEN_NUM_LAYERS,
)
from dropout import use_cheap_dropout
from files import InputError
from hub_model import HubModel
from packing import Packing, first_position, packable, run_packed, use_packed_attention
from patches import BOS, EOS, PAD, VOCABULARY, M3Patchilizer, mask_patches, read_music, remove_instrument_info

__all__ = [
    "CLaMP2Model",
    "ClipLoss",
    "M3Model",
    "M3PatchEncoder",
    "M3Patchilizer",
    "M3TokenDecoder",
    "mask_patches",
    "read_music",
    "remove_instrument_info",
    "split_data",
]

HEAD_SIZE = 64  # of every attention head
_LIBRARY = ("load_clamp2", "embed_texts", "embed_music")

T = TypeVar("T")


def __getattr__(name: str) -> object:
    """`from utils import load_clamp2, embed_texts, embed_music`: they are in clamp2.py, which imports this file."""
    if name not in _LIBRARY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import clamp2

    return getattr(clamp2, name)


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


class M3PatchEncoder(nn.Module):
    """Patches -> one feature each: a linear embedding of the patch's characters, then BERT over the patches."""

    def __init__(
        self,
        patch_size: int = PATCH_SIZE,
        patch_length: int = PATCH_LENGTH,
        hidden_size: int = M3_HIDDEN_SIZE,
        num_layers: int = PATCH_NUM_LAYERS,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.patch_embedding = nn.Linear(patch_size * VOCABULARY, hidden_size)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        self.base = BertModel(
            BertConfig(
                vocab_size=1,
                hidden_size=hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=hidden_size // HEAD_SIZE,
                intermediate_size=hidden_size * 4,
                max_position_embeddings=patch_length,
            )
        )
        freeze_unused(self.base)
        self.base.embeddings.word_embeddings.requires_grad_(False)  # the patch embedding stands in for it
        use_packed_attention(self.base)
        use_cheap_dropout(self.base)

    def embed(self, patches: Tensor) -> Tensor:
        """[N, P] ids -> [N, H]: what the linear layer gives for the one-hot patches, as a sum of its columns.

        Where a patch's end is PAD, the columns of PAD are summed once for all patches of that length.
        """
        size = self.patch_size
        columns = self.patch_embedding.weight.t().contiguous()  # [P * V, H]: row p * V + v is of id v at place p
        lengths = size - (patches != PAD).flip(1).int().argmax(1)  # [N], of a patch without its last PADs
        lengths = lengths.where((patches != PAD).any(1), lengths.new_zeros(()))
        places = torch.arange(size, device=patches.device)
        used = places < lengths[:, None]  # [N, P]
        tokens = (places * VOCABULARY + patches.long())[used]  # [characters of all patches]
        offsets = lengths.cumsum(0) - lengths
        characters = F.embedding_bag(tokens, columns, offsets, mode="sum")  # [N, H]
        # the sum of the PAD columns from each place on, which a patch of that length is filled up with
        pads = columns[places * VOCABULARY + PAD]  # [P, H]
        after = torch.cat([pads.flip(0).cumsum(0).flip(0), pads.new_zeros((1, pads.shape[1]))])  # [P + 1, H]
        return characters + after[lengths] + self.patch_embedding.bias

    def encode(self, packing: Packing, patches: Tensor) -> Tensor:
        """Packed patches [N, P] -> features [N, H]."""
        return run_packed(self.base, packing, inputs_embeds=self.embed(patches))

    def features(self, packing: Packing, patches: Tensor, pooled: bool = False) -> Tensor:
        """What `embedding.embed` asks a model for: packed patches [N, P] -> [N, H]."""
        if pooled:
            raise ValueError("M3 has no pooled features; CLaMP 2 has")
        return self.encode(packing, patches)

    def forward(self, input_patches: Tensor, input_masks: Tensor) -> Tensor:
        """[B, T, P] ids and [B, T] masks -> [B, T, H]; zero where there is no patch."""
        packing = Packing(input_masks)
        return packing.unpack(self.encode(packing, packing.pack(input_patches)))


class M3TokenDecoder(nn.Module):
    """Restores the characters of a patch, one after another, from the patch's feature: GPT-2."""

    def __init__(
        self,
        patch_size: int = PATCH_SIZE,
        hidden_size: int = M3_HIDDEN_SIZE,
        num_layers: int = TOKEN_NUM_LAYERS,
    ):
        super().__init__()
        self.base = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=patch_size,
                n_embd=hidden_size,
                n_layer=num_layers,
                n_head=hidden_size // HEAD_SIZE,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=PAD,
                activation_function="gelu_pytorch_tanh",  # GPT-2's own "gelu_new", in one kernel
            )
        )
        use_packed_attention(self.base)
        use_cheap_dropout(self.base)

    def forward(self, features: Tensor, target_patches: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, H] of patches [N, P] -> the summed cross-entropy of their characters, and their number.

        The feature stands where the embedding of BOS would. Nothing is computed for PAD, nor for a patch's last
        character as an input.
        """
        real = target_patches != PAD  # [N, P]
        is_input = real[:, :-1] & real[:, 1:]  # [N, P - 1]: places with a character to predict behind them
        packing = Packing(is_input)
        embeddings = self.base.transformer.wte(packing.pack(target_patches[:, :-1]).long())  # [characters, H]
        first = packing.positions == 0
        embeddings = torch.where(first[:, None], features[packing.sequences].to(embeddings.dtype), embeddings)
        hidden = run_packed(self.base.transformer, packing, inputs_embeds=embeddings)
        logits = self.base.lm_head(hidden).float()  # [characters, V]
        labels = packing.pack(target_patches[:, 1:]).long()
        return F.cross_entropy(logits, labels, reduction="sum"), torch.tensor(len(labels), device=logits.device)


class M3Output(NamedTuple):
    loss: Tensor  # mean cross-entropy over the characters of the selected patches
    characters: Tensor  # how many there are


class M3Model(nn.Module, HubModel):
    """M3, the multimodal music model: encodes corrupted patches and restores the selected ones (paper, section 3.2)."""

    def __init__(
        self,
        patch_size: int = PATCH_SIZE,
        patch_length: int = PATCH_LENGTH,
        hidden_size: int = M3_HIDDEN_SIZE,
        patch_num_layers: int = PATCH_NUM_LAYERS,
        token_num_layers: int = TOKEN_NUM_LAYERS,
    ):
        super().__init__()
        self.encoder = M3PatchEncoder(patch_size, patch_length, hidden_size, patch_num_layers)
        self.decoder = M3TokenDecoder(patch_size, hidden_size, token_num_layers)

    def forward(
        self, input_patches: Tensor, input_masks: Tensor, selected_indices: Tensor, target_patches: Tensor
    ) -> M3Output:
        """input_patches, target_patches: ids [B, T, P]; input_masks, selected_indices: [B, T]."""
        packing = Packing(input_masks)
        features = self.encoder.encode(packing, packing.pack(input_patches))  # [N, H]
        selected = packing.pack(selected_indices).bool()  # [N]
        total, characters = self.decoder(features[selected], packing.pack(target_patches)[selected])
        return M3Output(total / characters, characters)


class CLaMP2Model(nn.Module, HubModel):
    """Text and music in one space (paper, section 3.3): a text model and the M3 encoder, each with a projection.

    Args:
        text_config: the configuration of the text model. Its weights are random until they are loaded.
    """

    def __init__(
        self,
        text_config: PreTrainedConfig,
        hidden_size: int = CLAMP2_HIDDEN_SIZE,
        patch_size: int = PATCH_SIZE,
        patch_length: int = PATCH_LENGTH,
        music_hidden_size: int = M3_HIDDEN_SIZE,
        patch_num_layers: int = PATCH_NUM_LAYERS,
    ):
        super().__init__()
        self.text_model = AutoModel.from_config(copy.deepcopy(text_config), dtype=torch.float32)
        freeze_unused(self.text_model)
        use_cheap_dropout(self.text_model)
        if packable(self.text_model.config):
            use_packed_attention(self.text_model)
        self.text_proj = nn.Linear(self.text_model.config.hidden_size, hidden_size)
        nn.init.normal_(self.text_proj.weight, std=0.02)
        self.music_model = M3PatchEncoder(patch_size, patch_length, music_hidden_size, patch_num_layers)
        self.music_proj = nn.Linear(music_hidden_size, hidden_size)
        nn.init.normal_(self.music_proj.weight, std=0.02)

    def encode_text(self, packing: Packing, text_ids: Tensor) -> Tensor:
        """Packed token ids [N] -> [N, H of the text model]."""
        config = self.text_model.config
        if packable(config):
            return run_packed(self.text_model, packing, first_position(config), input_ids=text_ids)
        output = self.text_model(input_ids=packing.unpack(text_ids), attention_mask=packing.mask.long())
        return packing.pack(output.last_hidden_state)

    def get_text_features(self, text_ids: Tensor, text_masks: Tensor) -> Tensor:
        """Token ids and masks [B, T] -> pooled and projected [B, CLAMP2_HIDDEN_SIZE]."""
        packing = Packing(text_masks)
        return self.text_proj(packing.mean(self.encode_text(packing, packing.pack(text_ids))))

    def get_music_features(self, music_patches: Tensor, music_masks: Tensor) -> Tensor:
        """Patches [B, T, P] and masks [B, T] -> pooled and projected [B, CLAMP2_HIDDEN_SIZE]."""
        packing = Packing(music_masks)
        return self.music_proj(packing.mean(self.music_model.encode(packing, packing.pack(music_patches))))

    def features(self, packing: Packing, tokens: Tensor, pooled: bool = False) -> Tensor:
        """What `embedding.embed` asks a model for.

        Packed patches [N, P] or token ids [N] -> [N, H], or, pooled and projected, [B, CLAMP2_HIDDEN_SIZE].
        """
        is_music = tokens.ndim == 2
        hidden = self.music_model.encode(packing, tokens) if is_music else self.encode_text(packing, tokens)
        if not pooled:
            return hidden
        return (self.music_proj if is_music else self.text_proj)(packing.mean(hidden))

    def forward(
        self, text_ids: Tensor, text_masks: Tensor, music_patches: Tensor, music_masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The features of texts and of music, [B, CLAMP2_HIDDEN_SIZE] each; `ClipLoss` compares them."""
        return self.get_text_features(text_ids, text_masks), self.get_music_features(music_patches, music_masks)


class ClipLoss(nn.Module):
    """Symmetric cross-entropy over the dot products of all texts with all music, of all processes.

    Each process forms the rows of its own pairs only, so that memory grows linearly with their number. The mean over
    the processes is the loss of the global batch, and so is its gradient.
    """

    def __init__(self, logit_scale: float = LOGIT_SCALE, local: bool = False):
        """local: over the pairs of this process only."""
        super().__init__()
        self.logit_scale = logit_scale
        self.distributed = _is_distributed() and not local

    def forward(self, text_features: Tensor, music_features: Tensor) -> Tensor:
        """text_features, music_features: [B, H], of the same B on every process."""
        with torch.autocast(text_features.device.type, enabled=False):
            text_features, music_features = text_features.float(), music_features.float()
            rank = dist.get_rank() if self.distributed else 0
            labels = torch.arange(len(text_features), device=text_features.device) + rank * len(text_features)
            text_logits = self.logit_scale * text_features @ self._all(music_features).t()  # [B, B of all processes]
            music_logits = self.logit_scale * music_features @ self._all(text_features).t()
            return (F.cross_entropy(text_logits, labels) + F.cross_entropy(music_logits, labels)) / 2

    def _all(self, features: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks: [B, H] -> [B of all, H], with gradient."""
        return _Gather.apply(features) if self.distributed else features


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


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
    """The pooler of a BERT is in the published checkpoints, but takes no part in anything."""
    for name, parameter in model.named_parameters():
        if name.startswith("pooler."):
            parameter.requires_grad_(False)
