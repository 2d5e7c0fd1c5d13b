"""Where a model or tokenizer lies: a folder, or the local snapshot of a Hugging Face id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

TOKENIZER_FILES = ("tokenizer*", "*.jinja", "vocab.*", "merges.txt", "*_map.json", "added_tokens*")
MODEL_FILES = ("*.json", "*.safetensors", *TOKENIZER_FILES)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def find_folder(
    name: str | Path, *, key: str = "model.path", files: Sequence[str] = MODEL_FILES, hint: str = ""
) -> Path:
    """The folder called `name`, or the snapshot of the Hugging Face id `name`, downloaded once.

    `files` are the patterns to download; `key` is the setting that an error blames, `hint` its
    remedy. Raises ValueError where there is neither a folder nor a reachable repository.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{key} = {str(name)!r}: is a file; give the folder it lies in")
    if not _HUB_ID.fullmatch(str(name)):
        raise ValueError(f"{key} = {str(name)!r}: no such folder{hint}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files)))
    except (OSError, HFValidationError) as error:  # every error of the hub is an OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{key} = {str(name)!r}: no such folder, nor found on the Hugging Face hub ({reason})"
        ) from None
