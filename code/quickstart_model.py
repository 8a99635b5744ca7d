"""A small text encoder of XLM-R's kind with its tokenizer, made on the spot: TEXT_MODEL_NAME of the quick start."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

VOCABULARY, MAX_LENGTH = 3000, 128  # tokens
HIDDEN, LAYERS, HEADS = 128, 2, 2
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


def make_text_model(texts: Iterable[str], folder: Path, seed: int) -> None:
    """Trains a tokenizer (BPE) on the texts, and saves it with an encoder of random weights for `from_pretrained`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = list(SPECIAL.values())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    )
    ids = [(token, special.index(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, cls_token="<s>", sep_token="</s>", **SPECIAL
    )
    torch.manual_seed(seed)
    model = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * HIDDEN,
            max_position_embeddings=MAX_LENGTH + 2,  # its positions count from behind that of the padding
            bos_token_id=special.index("<s>"),
            pad_token_id=special.index("<pad>"),
            eos_token_id=special.index("</s>"),
        )
    )
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
