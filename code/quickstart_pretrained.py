"""The search of the quick start with the published weights: they come from the hub (about 2 GB, once)."""

from pathlib import Path

from files import InputError

WEIGHTS = (
    "sander-wood/clamp2",
    "weights_clamp2_h_size_768_lr_5e-05_batch_128_scale_1_t_length_128_t_model_FacebookAI_xlm-roberta-base"
    "_t_dropout_True_m3_True.pth",
)
TEXT_MODEL = "FacebookAI/xlm-roberta-base"
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model")


def download(repository: str, name: str) -> Path:
    """A file of a hub repository, from the hub's cache where it is there. HF_ENDPOINT names another hub.

    Raises InputError if it cannot be had.
    """
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # the hub's client raises its own errors, those of its HTTP library, and OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name} of {repository} cannot be had from {constants.ENDPOINT} ({reason}); connect to the network, or"
            " name a mirror in HF_ENDPOINT"
        ) from error


def constants_of_config(folder: Path) -> dict[str, str]:
    """Downloads all that search needs; the constants for CLAMP2_CONFIG."""
    text_files = [download(TEXT_MODEL, name) for name in TEXT_FILES]
    weights = download(*WEIGHTS)
    return {
        "TEXT_MODEL_NAME": str(text_files[0].parent),
        "CLAMP2_WEIGHTS_PATH": str(weights),
        "FEATURE_CACHE": str(folder / "cache"),
    }
