"""Gives the two models `save_pretrained`, `from_pretrained` and `push_to_hub`, and a model card."""

import json
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from transformers import AutoConfig, BertConfig, GPT2Config, PreTrainedConfig


class HubModel(PyTorchModelHubMixin):
    """Saves a model's configurations as `config.json` and its weights as `model.safetensors`."""

    @classmethod
    def _encode_arg(cls, argument: Any) -> Any:
        """Encodes a configuration for `config.json` in full, but for the folder it is from."""
        if not isinstance(argument, PreTrainedConfig):
            return super()._encode_arg(argument)
        values = json.loads(argument.to_json_string(use_diff=False))
        values.pop("_name_or_path", None)
        return values

    @classmethod
    def _decode_arg(cls, expected_type: Any, value: Any) -> Any:
        if isinstance(value, dict) and "model_type" in value:
            return AutoConfig.for_model(**value)
        return super()._decode_arg(expected_type, value)

    @classmethod
    def _from_pretrained(cls, *, config: dict | None = None, strict: bool = True, **options: Any) -> Any:
        """Loads strictly, unlike the client by default: weights that do not fit are an error."""
        if config and "patch_num_layers" in config:  # sizes, the form of this project's first versions
            options |= _configs_of_sizes(config)
        model = super()._from_pretrained(strict=strict, **options)
        model.is_clamp3 = bool((config or {}).get("checkpoint", {}).get("is_clamp3"))
        return model

    def generate_model_card(self, **facts: object) -> ModelCard:
        """Describes the model, with its sizes and further facts, such as the epoch of a checkpoint."""
        kind = type(self).__name__
        arguments: dict[str, Any] = dict(self._hub_mixin_config or {})  # type: ignore[arg-type]
        sizes = {name: _size(value) if isinstance(value, dict) else value for name, value in arguments.items()}
        facts = {"parameters": sum(p.numel() for p in self.parameters()), **sizes, **facts}  # type: ignore[attr-defined]
        table = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in facts.items())
        return ModelCard(_CARD.format(kind=kind, about=_ABOUT[kind], table=table))


def _configs_of_sizes(sizes: dict[str, Any]) -> dict[str, PreTrainedConfig]:
    """Makes the configurations of a `config.json` that holds sizes."""
    of_m3 = "token_num_layers" in sizes
    hidden = sizes["hidden_size" if of_m3 else "music_hidden_size"]
    common = {"num_attention_heads": hidden // 64, "intermediate_size": hidden * 4}
    encoder = BertConfig(
        vocab_size=1,
        hidden_size=hidden,
        num_hidden_layers=sizes["patch_num_layers"],
        max_position_embeddings=sizes["patch_length"],
        **common,
    )
    if not of_m3:
        return {"music_config": encoder}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    decoder = {"n_positions": sizes["patch_size"], "n_embd": hidden, "n_layer": sizes["token_num_layers"]}
    return {
        "encoder_config": encoder,
        "decoder_config": GPT2Config(vocab_size=128, n_head=hidden // 64, n_inner=hidden * 4, **decoder, **ids),
    }


def _size(values: dict[str, Any]) -> str:
    part = AutoConfig.for_model(**values)
    return f"{part.model_type}, {part.num_hidden_layers} layers of width {part.hidden_size}"


_ABOUT = {
    "M3Model": "M3 encodes interleaved ABC notation and MTF (MIDI as text), a patch of 64 characters at a time",
    "CLaMP2Model": "CLaMP 2 embeds texts in any of 101 languages, ABC notation and MIDI (as MTF) in one space",
}
_CARD = """---
library_name: clamp2
pipeline_tag: feature-extraction
tags:
- music
- clamp2
---
# {kind}

{about} ([arXiv 2410.13267](https://arxiv.org/abs/2410.13267)).

| | |
|---|---|
{table}

With `code/` of CLaMP 2 on the path:

```python
from utils import {kind}

model = {kind}.from_pretrained("FOLDER OR REPOSITORY")
```

`python code/convert_checkpoint.py FOLDER WEIGHTS.pth` makes of it a checkpoint for the scripts.
"""
