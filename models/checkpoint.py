"""Checkpoints in Hugging Face's layout: config.json, sharded safetensors, tokenizer."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .hf_config import config_to_json, read_config, read_json
from .llama import Llama, LlamaConfig
from .tokenizer import eos_token_ids

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_checkpoint(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Llama:
    """The model in a checkpoint folder, its weights converted to `dtype` on `device`.

    Raises ValueError on a folder that is no checkpoint, an unsupported architecture, a damaged
    file, and on missing, unexpected or misshapen tensors, which it names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: holds LoRA adapters only; give the merged model")
    config = read_config(folder)
    with torch.device("meta"):
        model = Llama(config)
    weights = {name: tensor for file in weight_files(folder) for name, tensor in _tensors(file)}
    _check_names(folder, config, expected=model.state_dict(), found=weights)
    # A copy of our own: mapped tensors are not aligned alike in every file, and sums of unaligned
    # vectors round differently, which would end bit-exact resume.
    state = {k: v.to(device=device, dtype=dtype, copy=True) for k, v in weights.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; ValueError if one is missing."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{folder / INDEX}: has no weight_map")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(f"{folder}: {INDEX} names files that are not there: {_few(missing)}")
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    hint = "no model.safetensors"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        hint += "; only safetensors are read: convert the .bin or .pth files"
    raise ValueError(f"{folder}: {hint}")


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                if not name.endswith("rotary_emb.inv_freq"):  # written by old transformers
                    yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or not a safetensors file ({error})") from None


def _check_names(
    folder: Path, config: LlamaConfig, *, expected: dict[str, Tensor], found: dict[str, Tensor]
) -> None:
    if config.tie_word_embeddings and _HEAD in found and _EMBEDDING in found:
        if not torch.equal(found[_HEAD], found[_EMBEDDING]):
            raise ValueError(f"{folder}: tie_word_embeddings is set but {_HEAD} is another matrix")
        del found[_HEAD]
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing:
        raise ValueError(f"{folder}: tensors missing on disk: {_few(sorted(missing))}")
    if unexpected:
        names = _few(sorted(unexpected))
        raise ValueError(f"{folder}: tensors that {config.architecture} does not have: {names}")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, config.json says {tuple(expected[name].shape)}"
            raise ValueError(f"{folder}: {name} has shape {shapes}")


def _few(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def save_checkpoint(
    state: dict[str, Tensor],
    config: LlamaConfig,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write weights, configuration and tokenizer so that the folder is either whole or not there.

    In a folder that exists, weights and files of the same name are replaced, the rest is kept.
    Token ids that `config` does not declare are taken from the tokenizer. Raises OSError, with one
    line and nothing left behind, if the disk is full or not writable.
    """
    num_bytes = sum(t.numel() * t.element_size() for t in state.values())
    with replaced_folder(Path(folder), num_bytes=num_bytes) as staging:
        write_checkpoint(
            state, config, staging, tokenizer=tokenizer, max_shard_bytes=max_shard_bytes
        )


def write_checkpoint(
    state: dict[str, Tensor],
    config: LlamaConfig,
    folder: Path,
    *,
    tokenizer: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """The files of `save_checkpoint`, into a folder that the caller makes whole."""
    if tokenizer is not None:
        config = _with_token_ids(config, tokenizer)
    _write_weights(state, folder, max_shard_bytes=max_shard_bytes)
    _write_json(folder / "config.json", config_to_json(config, dtype=state[_EMBEDDING].dtype))
    _write_json(folder / "generation_config.json", _generation_config(config))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _with_token_ids(config: LlamaConfig, tokenizer: Any) -> LlamaConfig:
    bos, pad = config.bos_token_id, config.pad_token_id
    return replace(
        config,
        bos_token_id=tokenizer.bos_token_id if bos is None else bos,
        eos_token_ids=config.eos_token_ids or tuple(eos_token_ids(tokenizer)),
        pad_token_id=tokenizer.pad_token_id if pad is None else pad,
    )


def _generation_config(config: LlamaConfig) -> dict[str, Any]:
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
        "pad_token_id": config.pad_token_id,
    }
    return {key: value for key, value in ids.items() if value is not None}


@contextmanager
def replaced_folder(folder: Path, *, num_bytes: int = 0) -> Iterator[Path]:
    """A staging folder beside `folder` that takes its place when the block ends without error.

    `num_bytes` must be free on the disk. Raises OSError with one line that names `folder`.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; give a folder to save into")
    staging = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed while saving
        staging.mkdir(parents=True)
        free = shutil.disk_usage(staging).free
        if free < num_bytes:
            needs = f"needs {num_bytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left"
            raise OSError(errno.ENOSPC, needs)
        yield staging
        _swap(staging, folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder}: not saved: {_reason(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _reason(error: OSError | SafetensorError) -> str:
    text = getattr(error, "strerror", None) or str(error)
    full = getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in text
    return f"{text}; free some space and resume" if full else text


def _swap(staging: Path, folder: Path) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)  # from here to the next line the folder is not there
    staging.rename(folder)
    for entry in old.iterdir():
        stale = entry.name.endswith((".safetensors", ".safetensors.index.json"))
        if not stale and not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    shutil.rmtree(old)


def _write_weights(state: dict[str, Tensor], folder: Path, *, max_shard_bytes: int) -> None:
    shards = _shards(state, max_shard_bytes)
    if len(shards) == 1:
        return _write_shard(state, shards[0], folder / SINGLE)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(state, names, folder / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(t.numel() * t.element_size() for t in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX, index)


def _shards(state: dict[str, Tensor], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _write_shard(state: dict[str, Tensor], names: list[str], file: Path) -> None:
    tensors = {name: state[name].detach().to("cpu").contiguous() for name in names}
    save_file(tensors, file, metadata={"format": "pt"})
    with file.open("rb") as written:
        os.fsync(written.fileno())  # the rename must not outlive the data in a power cut


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
