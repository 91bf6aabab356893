"""The tokenizer in a local folder laid out as Hugging Face checkpoints are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from deft_jax.errors import DeftError

from .tokenizer_parts import TokenizerParts


def read_folder_tokenizer(path: Path) -> TokenizerParts:
    """Read `tokenizer.json` and, where they exist, the files that go with it.

    path: folder that may also hold `tokenizer_config.json`, `chat_template.jinja`,
        `generation_config.json` and `config.json`.

    Raises:
        DeftError: `tokenizer.json` is missing, or a file cannot be read.
    """
    backend = _read_backend(path / "tokenizer.json")
    config = _read_json(path / "tokenizer_config.json")
    model = _read_json(path / "config.json")
    model |= _read_json(path / "generation_config.json")
    bos = _ids(backend, config, model, "bos")[:1]
    return TokenizerParts(
        backend=backend,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=_ids(backend, config, model, "eos"),
        add_bos=_adds_bos(backend, config, bos),
        chat_template=_chat_template(path, config),
    )


def _read_backend(path: Path) -> Tokenizer:
    if not path.is_file():
        raise DeftError(
            f"expected tokenizer.json in {path.parent}, found none; "
            "convert a tokenizer.model to tokenizer.json first"
        )
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises nothing narrower.
        raise DeftError(f"cannot read {path} as a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DeftError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DeftError(
            f"expected a JSON object in {path}, got a {type(content).__name__}"
        )
    return content


def _ids(
    backend: Tokenizer, config: Mapping[str, Any], model: Mapping[str, Any], name: str
) -> tuple[int, ...]:
    """Ids that play the part `name`, "bos" or "eos", the tokenizer's own first.

    A token that `tokenizer_config.json` names becomes special, as its part demands.
    """
    ids: list[Any] = []
    token = config.get(f"{name}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and (token_id := backend.token_to_id(text)) is not None:
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        ids.append(token_id)
    if name == "eos" or f"{name}_token" not in config:
        declared = model.get(f"{name}_token_id")
        ids += declared if isinstance(declared, list) else [declared]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _adds_bos(
    backend: Tokenizer, config: Mapping[str, Any], bos: tuple[int, ...]
) -> bool:
    """What the configuration says, else what the post-processor does."""
    declared = config.get("add_bos_token")
    if isinstance(declared, bool):
        return declared
    return bool(bos) and backend.encode("").ids[:1] == [*bos]


def _chat_template(path: Path, config: Mapping[str, Any]) -> str | None:
    """The template in a file of its own, else the configuration's default one."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    declared = config.get("chat_template")
    if not isinstance(declared, list):
        return declared
    named = {entry["name"]: entry["template"] for entry in declared}
    return named.get("default", next(iter(named.values())) if len(named) == 1 else None)
