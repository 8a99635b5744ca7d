"""The models on the hub: `save_pretrained`, `from_pretrained`, `push_to_hub` and a model card."""

import json
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from transformers import AutoConfig, PreTrainedConfig


class HubModel(PyTorchModelHubMixin):
    """Saves a model's configurations as `config.json` and its weights as `model.safetensors`."""

    @classmethod
    def _encode_arg(cls, argument: Any) -> Any:
        """Encode a configuration in full, without the folder it is from."""
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
        """Load strictly, unlike the client by default."""
        model = super()._from_pretrained(strict=strict, **options)
        model.is_clamp3 = bool((config or {}).get("checkpoint", {}).get("is_clamp3"))
        return model

    def generate_model_card(self, **facts: object) -> ModelCard:
        """Describe the model: its sizes and further facts, such as the epoch of a checkpoint."""
        kind = type(self).__name__
        arguments: dict[str, Any] = dict(self._hub_mixin_config or {})  # type: ignore[arg-type]
        for name, values in arguments.items():
            if isinstance(values, dict):
                part = AutoConfig.for_model(**values)
                arguments[name] = f"{part.model_type}, {part.num_hidden_layers} layers of width {part.hidden_size}"
        facts = {"parameters": sum(p.numel() for p in self.parameters()), **arguments, **facts}  # type: ignore[attr-defined]
        table = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in facts.items())
        return ModelCard(_CARD.format(kind=kind, about=_ABOUT[kind], table=table))


_ABOUT = {
    "M3Model": "M3 encodes interleaved ABC notation and MTF (MIDI as text), a patch of 64 characters at a time",
    "CLaMP2Model": "CLaMP 2 embeds texts in 101 languages, ABC notation and MIDI (as MTF) in one space",
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

`python code/convert_checkpoint.py FOLDER WEIGHTS.pth` converts it to a checkpoint for the scripts.
"""
