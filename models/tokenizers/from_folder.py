"""The tokenizer in a local folder laid out as Hugging Face checkpoints are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from deft_jax.errors import DeftError

from .from_sentencepiece import read_sentencepiece
from .token_roles import checked_ids, ends_by_name
from .tokenizer_parts import TokenizerParts

_CONFIG = "tokenizer_config.json"
_SENTENCEPIECE = "tokenizer.model"


def read_folder_tokenizer(path: Path) -> TokenizerParts:
    """Read `tokenizer.json`, else `tokenizer.model`, and the files that go with it.

    Args:
        path: folder that may also hold `tokenizer_config.json`, `chat_template.jinja`,
            `generation_config.json` and `config.json`.

    Raises:
        DeftError: there is neither file, or a file cannot be read.
    """
    config = _read_json(path / _CONFIG)
    if not (path / "tokenizer.json").is_file() and (path / _SENTENCEPIECE).is_file():
        added = _added_tokens(path, config)
        backend, defaults = read_sentencepiece(path / _SENTENCEPIECE, added)
        config = defaults | config
    else:
        backend = _read_backend(path / "tokenizer.json")
    model = _read_json(path / "config.json")
    model |= _read_json(path / "generation_config.json")
    bos = _ids(backend, config, model, "bos")[:1]
    ends = _ids(backend, config, model, "eos")
    added = backend.get_added_tokens_decoder()
    control = {token.content: i for i, token in added.items() if token.special}
    templates = _chat_templates(path, config)
    return TokenizerParts(
        backend=backend,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=tuple(dict.fromkeys([*ends, *ends_by_name(control)])),
        add_bos=_adds_bos(backend, config, bos),
        chat_template=templates.get("default"),
        tool_template=templates.get("tool_use"),
    )


def _read_backend(path: Path) -> Tokenizer:
    if not path.is_file():
        raise DeftError(
            f"expected tokenizer.json in {path.parent}, found none, nor a "
            "tokenizer.model; use a folder that holds the checkpoint's tokenizer"
        )
    try:
        backend = Tokenizer.from_file(str(path))
        backend.encode("")
    except Exception as error:  # The library raises nothing narrower.
        reason = " ".join(str(error).split())
        raise DeftError(f"cannot read {path} as a tokenizer: {reason}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeftError(f"cannot read {path} as UTF-8 text: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read_text(path))
    except RecursionError as error:
        raise DeftError(
            f"cannot read {path} as JSON: its lists and objects are nested too deeply"
        ) from error
    except ValueError as error:
        raise DeftError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DeftError(
            f"expected a JSON object in {path}, got a {type(content).__name__}"
        )
    return content


def _added_tokens(path: Path, config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Return the tokens that a folder adds to its SentencePiece model.

    Returns:
        The text of each token by its id, and whether it is special.

    Raises:
        DeftError: an entry is malformed.
    """
    added: dict[int, tuple[str, bool]] = {}
    for text, token_id in _read_json(path / "added_tokens.json").items():
        if type(token_id) is not int:
            raise DeftError(
                f"added_tokens.json: expected an id for {text!r}, got a "
                f"{type(token_id).__name__}"
            )
        added[token_id] = text, True
    declared = config.get("added_tokens_decoder") or {}
    for key, token in declared.items() if isinstance(declared, dict) else ():
        match token:
            case {"content": str(text)} if key.isascii() and key.isdigit():
                added[int(key[:20])] = text, bool(token.get("special"))
            case _:
                raise DeftError(
                    f"{_CONFIG}: expected added_tokens_decoder to map ids to objects "
                    f"with `content`, got {str(token)[:60]!r} for {key[:20]!r}"
                )
    return added


def _ids(
    backend: Tokenizer, config: Mapping[str, Any], model: Mapping[str, Any], name: str
) -> list[int]:
    """Return the ids that play the part `name`, the tokenizer's own first.

    A token that `tokenizer_config.json` names becomes special, as its part demands.

    Args:
        backend: the vocabulary, which learns what is special.
        config: content of `tokenizer_config.json`.
        model: content of `config.json` and `generation_config.json`.
        name: "bos" or "eos".
    """
    ids: list[int] = []
    text = _token_text(config, f"{name}_token")
    if text is not None and (token_id := backend.token_to_id(text)) is not None:
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        ids.append(token_id)
    if name == "eos" or f"{name}_token" not in config:
        key = f"{name}_token_id"
        size = backend.get_vocab_size(with_added_tokens=True)
        ids += checked_ids([(key, model.get(key))], size)
    return list(dict.fromkeys(ids))


def _token_text(config: Mapping[str, Any], key: str) -> str | None:
    """Return a token that the configuration gives as text or as an object."""
    token = config.get(key)
    text = token.get("content") if isinstance(token, dict) else token
    if text is None or isinstance(text, str):
        return text or None
    raise DeftError(
        f"{_CONFIG}: expected {key} to be text, an object with the text as `content`, "
        f"or null; got a {type(text).__name__}"
    )


def _adds_bos(backend: Tokenizer, config: Mapping[str, Any], bos: list[int]) -> bool:
    """Return what the configuration says, else what the post-processor does."""
    declared = config.get("add_bos_token")
    if isinstance(declared, bool):
        return declared
    return bool(bos) and backend.encode("").ids[:1] == bos


def _chat_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name; one that stands alone is the default.

    A template in a file of its own comes before the configuration's.
    """
    declared = config.get("chat_template")
    if isinstance(declared, list):
        declared = dict(map(_named_template, declared))
    named = declared if isinstance(declared, dict) else {"default": declared}
    named = {name: source for name, source in named.items() if source is not None}
    for name, source in named.items():
        if not isinstance(source, str):
            raise DeftError(
                f"{_CONFIG}: expected chat_template to be text, a list of objects with "
                "`name` and `template`, or null; got a "
                f"{type(source).__name__} for the template {name!r}"
            )
    if len(named) == 1:
        named = {"default": next(iter(named.values()))}
    if (path / "chat_template.jinja").is_file():
        named["default"] = _read_text(path / "chat_template.jinja")
        named.pop("tool_use", None)
    return named


def _named_template(entry: Any) -> tuple[str, Any]:
    match entry:
        case {"name": str(name), "template": template}:
            return name, template
    raise DeftError(
        f"{_CONFIG}: expected each entry of chat_template to be an object with `name` "
        f"and `template`, got {str(entry)[:60]!r}"
    )
