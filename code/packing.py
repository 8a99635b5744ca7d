"""Sequences of different lengths computed without padding: every linear layer sees real tokens only.

The tokens of a batch stand one after another in one row [1, N, H]. Only inside attention are they laid out per
sequence, in buckets of similar length; PyTorch's fused kernel (`scaled_dot_product_attention`) runs once for each.
`packed_attention` is given to a transformers model as its attention implementation, named "packed".

Symbols: B sequences, T positions, N = sum of the lengths, H hidden size, A heads, D = H / A.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dropout import dropout as drop_out


class Packing:
    """Where the tokens of a padded batch stand when they are packed.

    Args:
        masks: [B, T], true (non-zero) where there is a token.
        device: where the tokens are; default: where the masks are. Masks on the CPU for tokens on a GPU spare waiting
            for the GPU.
    """

    def __init__(self, masks: Tensor, device: torch.device | None = None):
        self.shape = masks.shape
        mask = masks.bool()
        lengths = mask.sum(dim=1)  # [B]
        starts = lengths.cumsum(0) - lengths  # [B]
        sequences, positions = mask.nonzero(as_tuple=True)
        widths: dict[int, list[int]] = {}
        counts = lengths.tolist()
        for sequence, length in enumerate(counts):
            if length:
                widths.setdefault(_bucket_width(length), []).append(sequence)
        tokens, reals = [positions[:0]], [mask[0, :0]]
        for width, members in sorted(widths.items()):
            rows = torch.tensor(members, device=masks.device)
            columns = torch.arange(width, device=masks.device)
            real = columns < lengths[rows, None]  # [b, width]
            tokens.append((starts[rows, None] + columns).where(real, starts[rows, None]).flatten())
            reals.append(real.flatten())
        all_tokens = torch.cat(tokens)
        real_places = torch.cat(reals).nonzero()[:, 0]  # [N]
        places = torch.empty_like(real_places)
        places[all_tokens[real_places]] = real_places

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device or masks.device, non_blocking=True)

        self.mask, self.lengths = move(mask), move(lengths)
        self.sequences, self.positions = move(sequences), move(positions)  # [N]: the row and the column of a token
        # The places of all buckets, one after another: [M], M >= N. A place holds a token, or fills its bucket up.
        self.tokens, self.places = move(all_tokens), move(places)  # [M]: of a place; [N]: of a token
        self.buckets: list[tuple[int, int, Tensor | None]] = []  # b, width; which places [b, width] are real, None: all
        for (width, members), real in zip(sorted(widths.items()), reals[1:], strict=True):
            is_full = all(counts[row] == width for row in members)
            self.buckets.append((len(members), width, None if is_full else move(real.view(-1, width))))

    def pack(self, padded: Tensor) -> Tensor:
        """[B, T, ...] -> [N, ...]"""
        return padded[self.mask]

    def unpack(self, packed: Tensor) -> Tensor:
        """[N, ...] -> [B, T, ...], zero where there is no token."""
        padded = packed.new_zeros((*self.shape, *packed.shape[1:]))
        return padded.index_put((self.sequences, self.positions), packed)

    def mean(self, packed: Tensor) -> Tensor:
        """Mean over the tokens of each sequence: [N, H] -> [B, H], in float32 or wider."""
        dtype = torch.promote_types(packed.dtype, torch.float32)
        total = packed.new_zeros((self.shape[0], packed.shape[1]), dtype=dtype)
        return total.index_add(0, self.sequences, packed.to(dtype)) / self.lengths[:, None]


def _bucket_width(length: int) -> int:
    """The next of 8, 12, 16, 24, 32, 48, ...: few shapes, and at most a third of a bucket is padding."""
    width = 8
    while width < length:
        width += width // 2 if width & (width - 1) == 0 else width // 3
    return width


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a packed row, in the form transformers asks for.

    query, key, value: [1, A, N, D]. Returns [1, N, A, D]. Causal where `module.is_causal`; what only fills up a bucket
    stands at its end, so that a causal kernel needs no mask for it. Without `packing`, padded batches as usual.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    causal = bool(getattr(module, "is_causal", False))
    heads = query.shape[1]
    sizes = [count * width for count, width, _ in packing.buckets]
    query, key, value = (
        _ToPlaces.apply(x[0].transpose(0, 1).flatten(1), packing) for x in (query, key, value)
    )  # [M, H]
    outputs = []
    for (count, width, real), *parts in zip(
        packing.buckets, *(x.split(sizes) for x in (query, key, value)), strict=True
    ):
        q, k, v = (x.view(count, width, heads, -1).transpose(1, 2) for x in parts)  # [b, A, width, D]
        mask = None if causal or real is None else real[:, None, None, :]  # [b, 1, 1, width]
        if q.device.type == "cpu" and (dropout or q.dtype != torch.float32):
            out = plain_attention(q, k, v, mask, dropout, causal, scaling)
        else:
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling
            )
        outputs.append(out.transpose(1, 2).reshape(count * width, -1))
    packed = _FromPlaces.apply(torch.cat(outputs), packing)  # [N, H]
    return packed.view(1, len(packed), heads, -1), None


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, causal: bool, scale: float | None
) -> Tensor:
    """What scaled_dot_product_attention computes, for the CPU, where it has no fused kernel with dropout, and one in
    bfloat16 that is slower than this."""
    scores = query * (scale or query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores.masked_fill_(~mask, -math.inf)
    weights = scores.softmax(-1)
    return (drop_out(weights, p) if p else weights) @ value


class _ToPlaces(torch.autograd.Function):
    """[N, H] -> [M, H]. Attention gives what only fills up a bucket no gradient, so that each token has one place's."""

    @staticmethod
    def forward(ctx, packed: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return packed.index_select(0, packing.tokens)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.packing.places), None


class _FromPlaces(torch.autograd.Function):
    """[M, H] -> [N, H]"""

    @staticmethod
    def forward(ctx, placed: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return placed.index_select(0, packing.places)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        zeros = gradient.new_zeros((len(ctx.packing.tokens), gradient.shape[1]))
        return zeros.index_copy_(0, ctx.packing.places, gradient), None


def packable(config: PreTrainedConfig) -> bool:
    """Whether a text model runs packed: learned absolute positions, attention through transformers' interface."""
    return config.model_type in ("bert", "roberta", "xlm-roberta", "camembert")


def first_position(config: PreTrainedConfig) -> int:
    """The position id of a sequence's first token: RoBERTa's kin count from behind the padding id."""
    return config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0


def run_packed(model: PreTrainedModel, packing: Packing, first: int = 0, **inputs: Tensor) -> Tensor:
    """The last hidden state [N, H] of a transformers model on packed `input_ids` [N] or `inputs_embeds` [N, H]."""
    inputs = {name: value[None] for name, value in inputs.items()}
    output = model(position_ids=packing.positions[None] + first, packing=packing, use_cache=False, **inputs)
    return output.last_hidden_state[0]


def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes a transformers model attend through `packed_attention`; called directly, it takes padded batches."""
    AttentionInterface.register("packed", packed_attention)
    AttentionMaskInterface.register("packed", _usual_mask)
    model.set_attn_implementation("packed")


def _usual_mask(*arguments: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """The mask of a padded batch, for a model that is called directly. A packed row has none."""
    return None if attention_mask is None else sdpa_mask(*arguments, attention_mask=attention_mask, **options)
