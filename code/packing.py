"""Run transformers models on sequences of different lengths without padding.

The tokens of a batch are one row [1, N, H], and attention stays within each sequence: on an NVIDIA GPU in one call of a
fused kernel, elsewhere in buckets (cpu.py). Loader workers prepare all indices, and one copy moves a batch, so that
the host never waits for the GPU.

Symbols: B sequences, N tokens (or patches) of all of them, P characters of a patch, C characters of all patches,
H hidden size, A heads, D = H / A.
"""

# Search caches features: if an edit here changes them, raise FEATURE_VERSION in cache.py.

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from cpu import Buckets, bucket_attention
from patches import PAD, VOCABULARY

_ALIGNMENT = 16  # bytes, of the tensors in a block


class Tensors:
    """A record of tensors and of further records, which moves as one block of memory."""

    def joined(self, pin: bool = False) -> Self:
        """Return the record with its tensors in one block, which moves at once."""
        tensors: list[Tensor] = []
        self._each(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
        is_block = len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
        if is_block and all(tensor.is_contiguous() for tensor in tensors) and not pin:
            return self
        ends = np.cumsum([0] + [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]).tolist()
        block = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=pin)
        starts = iter(ends)
        return self._each(lambda tensor: _view(block, next(starts), tensor).copy_(tensor))

    def pin_memory(self) -> Self:
        """Return the record in pinned memory. DataLoader calls it."""
        return self.joined(pin=True)

    def to(self, device: torch.device) -> Self:
        """Return the record on a device. The host does not wait for the copy if the record is pinned."""
        blocks: list[Tensor] = []

        def place(tensor: Tensor) -> Tensor:
            if not blocks:
                block = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                blocks.append(block.to(device, non_blocking=block.is_pinned()))
            return _view(blocks[0], int(tensor.storage_offset()) * tensor.element_size(), tensor)

        return self.joined()._each(place)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a record with `change(tensor)` in place of each tensor."""
        record = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(record, name, change(value))
            elif isinstance(value, Tensors):
                setattr(record, name, value._each(change))
            elif isinstance(value, list) and value and isinstance(value[0], Tensors):
                setattr(record, name, [part._each(change) for part in value])
        return record


def _view(block: Tensor, start: int, tensor: Tensor) -> Tensor:
    """View the bytes from `start` on as a tensor like `tensor`."""
    return block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


class Packing(Tensors):
    """The layout of B sequences in one row of N tokens.

    Args:
        mask: [B, T], true where there is a token. A sequence may have holes.
        positions: [N], of the tokens, as the model counts them; default: their columns in the mask.
    Attributes: `sequences` [N], `columns` [N]: row and column of a token in the mask; `positions` [N]; `lengths` [B];
    `offsets` [B + 1], the ends of the sequences. On the host: `counts`, the lengths, and `longest`, the greatest.
    """

    def __init__(self, mask: np.ndarray, positions: np.ndarray | None = None):
        self.width = mask.shape[1]
        self.counts = mask.sum(1)
        self.longest = int(self.counts.max(initial=0))
        self.sequences, self.columns = (torch.from_numpy(index.astype(np.int32)) for index in mask.nonzero())
        self.positions = self.columns if positions is None else torch.from_numpy(positions)
        self.lengths = torch.from_numpy(self.counts)
        self.offsets = torch.from_numpy(np.concatenate([[0], self.counts.cumsum()]).astype(np.int32))
        self._buckets: Buckets | None = None

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> Self:
        """Lay out sequences without holes."""
        return cls(np.arange(max(lengths, default=0)) < np.array(lengths, int)[:, None])

    def pack(self, padded: Tensor) -> Tensor:
        """Pack [B, T, ...] as [N, ...]."""
        return padded[self.sequences, self.columns]

    def unpack(self, packed: Tensor) -> Tensor:
        """Pad [N, ...] with zeros to [B, T, ...]."""
        padded = packed.new_zeros((len(self.counts), self.width, *packed.shape[1:]))
        return padded.index_put((self.sequences, self.columns), packed)

    def mean(self, packed: Tensor) -> Tensor:
        """Average over the tokens of each sequence, in float32 or wider: [N, H] -> [B, H]."""
        dtype = torch.promote_types(packed.dtype, torch.float32)
        total = packed.new_zeros((len(self.counts), packed.shape[1]), dtype=dtype)
        return total.index_add(0, self.sequences, packed.to(dtype)) / self.lengths[:, None]

    def buckets(self) -> Buckets:
        if self._buckets is None or self._buckets.tokens.device != self.lengths.device:
            self._buckets = Buckets(self.counts, self.lengths.device)
        return self._buckets


class Packed(Tensors):
    """A batch for one tower: a packing, and the tokens of all sequences, ids [N] or patches [N, P].

    For the patch embedding, patches are also their characters before the trailing PADs: `characters` [C], as columns of
    its weight, `starts` [N], where each patch begins in them, and `sizes` [N], the number of each.
    """

    def __init__(self, packing: Packing, tokens: np.ndarray):
        self.packing = packing
        self.tokens = torch.from_numpy(tokens)
        if tokens.ndim == 2:
            if tokens.max(initial=0) >= VOCABULARY or tokens.min(initial=0) < 0:
                raise ValueError(f"patches hold ids from 0 to {VOCABULARY - 1}")  # another is that of another position
            real = tokens != PAD
            sizes = real.shape[1] - real[:, ::-1].argmax(1)  # up to the last real character
            sizes[~real[:, -1] & (sizes == real.shape[1])] = 0  # of a patch of PADs only
            small = np.int16 if tokens.shape[1] * VOCABULARY <= 2**15 else np.int32  # to be moved fast
            places = np.arange(tokens.shape[1], dtype=small)
            used = places < sizes[:, None]  # [N, P]
            self.characters = torch.from_numpy((places * VOCABULARY + tokens.astype(places.dtype))[used])
            self.starts = torch.from_numpy((sizes.cumsum() - sizes).astype(np.int32))
            self.sizes = torch.from_numpy(sizes)

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> Self:
        """Pack sequences of token ids [T] or patches [T, P]."""
        return cls(Packing.of_lengths([len(sequence) for sequence in sequences]), np.concatenate(sequences))


class Characters(Tensors):
    """Patches as the token decoder reads them: packed characters without PAD, each with the next one as its label.

    Args:
        patches: [S, P].
        rows: [S], the row of each patch's feature; default: 0, 1, ...
    Attributes: `packing`, a sequence for each patch; `inputs`, `labels` [n]; `firsts`, the first input of each patch,
    which its feature replaces; `rows`, the rows of these features; `count`, n as a tensor.
    """

    def __init__(self, patches: np.ndarray, rows: np.ndarray | None = None):
        real = patches != PAD
        is_input = real[:, :-1] & real[:, 1:]
        self.packing = Packing(is_input)
        self.inputs = torch.from_numpy(patches[:, :-1][is_input])
        self.labels = torch.from_numpy(patches[:, 1:][is_input])
        sequences, columns = is_input.nonzero()
        firsts = np.flatnonzero(columns == 0)
        rows = np.arange(len(patches)) if rows is None else rows
        self.firsts, self.rows = torch.from_numpy(firsts), torch.from_numpy(rows[sequences[firsts]])
        self.count = torch.tensor(len(self.labels))


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
    """Attend within each sequence of a packed row, [1, A, N, D] -> [1, N, A, D]; causal where `module.is_causal`.

    Has the signature of an attention function of transformers. Without `packing`, attends in padded batches.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    causal = bool(getattr(module, "is_causal", False))
    if query.device.type != "cuda" or query.dtype == torch.float64:
        return bucket_attention(query, key, value, packing, dropout, causal, scaling), None
    return gpu_attention(query, key, value, packing, dropout, causal, scaling), None


def gpu_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, p: float, causal: bool, scale: float | None
) -> Tensor:
    """Compute `bucket_attention` in one call of the kernels behind PyTorch's attention over jagged tensors.

    PyTorch's own attention over jagged tensors takes the host longer than the GPU, and `varlen_attn` has no dropout.
    The flash kernel has no float32, and no float16 on some GPUs; for these, the efficient kernel, but not with dropout:
    over jagged tensors its backward pass drops other weights than its forward pass.
    """
    if query.dtype != torch.bfloat16 and p:
        return bucket_attention(query, key, value, packing, p, causal, scale)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [1, N, A, D]
    scale = None if scale == query.shape[-1] ** -0.5 else scale  # the kernels' own
    ends = (packing.offsets, packing.offsets, packing.longest, packing.longest)
    if query.dtype == torch.bfloat16:
        arrays = (x[0] for x in (query, key, value))
        return torch.ops.aten._flash_attention_forward(*arrays, *ends, p, causal, False, scale=scale)[0][None]
    return torch.ops.aten._efficient_attention_forward(
        query, key, value, None, *ends, 0.0, int(causal), torch.is_grad_enabled(), scale=scale
    )[0]


def packable(config: PreTrainedConfig) -> bool:
    """Whether a text model can run packed: absolute positions, and attention through transformers' interface."""
    return config.model_type in ("bert", "roberta", "xlm-roberta", "camembert")


def first_position(config: PreTrainedConfig) -> int:
    """Return the position id of a sequence's first token: RoBERTa and its relatives start after the padding id."""
    return config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0


def run_packed(model: PreTrainedModel, packing: Packing, first: int = 0, **inputs: Tensor) -> Tensor:
    """Run a transformers model on packed `input_ids` [N] or `inputs_embeds` [N, H]: the last hidden state [N, H]."""
    inputs = {name: value[None] for name, value in inputs.items()}
    positions = packing.positions[None] + first
    # Without a mask of four dimensions, transformers would look for packed sequences in the positions, and wait for
    # the GPU.
    no_mask = positions.new_empty((1, 1, 1, 1))
    output = model(position_ids=positions, attention_mask=no_mask, packing=packing, use_cache=False, **inputs)
    return output.last_hidden_state[0]


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make a transformers model attend through `packed_attention`; called directly, it still takes padded batches."""
    AttentionInterface.register("packed", packed_attention)
    AttentionMaskInterface.register("packed", sdpa_mask)
    model.set_attn_implementation("packed")


def compile_layers(model: torch.nn.Module) -> None:
    """Compile the layers of models with packed attention, for sequences of any length.

    Saves a fifth of the GPU's time in CLaMP 2's training, nothing in M3's, whose small batches keep the host busier. A
    layer that cannot be compiled, as without a C compiler, runs as it is, with PyTorch's warning.
    """
    torch._dynamo.config.suppress_errors = True
    # In DistributedDataParallel, layers would be compiled in parts, which draw other dropout than whole layers: a
    # micro-batch is run once without it and once with it, and must have the same.
    torch._dynamo.config.optimize_ddp = False
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config._attn_implementation == "packed":
            for layer in module.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.compile(dynamic=True)
