"""How a GGUF file's `tokenizer.ggml.pre` cuts a text into words, before any merge.

The names and regular expressions are facts of the format: those of the tokenizers that
llama.cpp's converter recognises. Several expressions cut one after the other, each what
the ones before have left in one piece.
"""

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LINES = r"\s*[\r\n]+"

_GPT2 = (
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
)
_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"


def _modern(letters: str, digits: str, symbols: str = _SYMBOLS) -> str:
    """Return the form that GPT-4's tokenizer made common."""
    return "|".join([letters, digits, symbols, _LINES, _SPACES])


def _cased(ending: str, digits: str) -> str:
    """Return the form that also cuts `camelCase` before the capital."""
    begin = r"[^\r\n\p{L}\p{N}]?"
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    letters = f"{begin}{upper}*{lower}+{ending}|{begin}{upper}+{lower}*{ending}"
    return _modern(letters, digits, r" ?[^\s\p{L}\p{N}]+[\r\n/]*")


_ENGLISH = f"{_CONTRACTIONS}|{_LETTERS}"
_LLAMA3 = _modern(_ENGLISH, _THREE_DIGITS)
_QWEN2 = _modern(_ENGLISH, _DIGIT)
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_SENTENCE = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+"
_DEEPSEEK3 = "|".join(
    [
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        _LINES,
        _SPACES,
    ]
)
_CASED_SCRIPTS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57"
    "\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"
    "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f"
    "\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
"""Letters of the scripts that have two cases, as DeepSeek lists them."""


@dataclass(frozen=True)
class WordSplit:
    """How the tokenizers of one family begin.

    Attributes:
        regexes: cuts of the text, applied one after the other.
        ignore_merges: a word that is in the vocabulary is one token, whatever the
            merges say.
        adds_bos: a prompt begins with BOS unless the file says otherwise.
    """

    regexes: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Return the cuts, followed by the spelling in GPT-2's byte alphabet."""
        cuts = [pre_tokenizers.Split(Regex(x), "isolated") for x in self.regexes]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*cuts, to_bytes])


DEFAULT_SPLIT = WordSplit((_GPT2,))
"""What most vocabularies took before files said how words are cut."""

_SPLITS = {
    ("a.x-4.0", "exaone4", "gigachat", "gpt-2", "granite-docling", "jais"): (_GPT2,),
    ("mellum", "modern-bert", "mpt", "olmo", "phi-2", "trillion"): (_GPT2,),
    ("codeshell", "command-r", "exaone", "mellum2", "minerva-7b"): (_DIGIT, _GPT2),
    ("refact", "smollm", "starcoder"): (_DIGIT, _GPT2),
    ("falcon",): (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    ("chatglm-bpe", "dbrx", "smaug-bpe"): (_LLAMA3,),
    ("deepseek-r1-qwen", "f2llmv2", "grok-2", "hunyuan", "kormo"): (_QWEN2,),
    ("megrez", "qwen2", "solar-open", "stablelm2"): (_QWEN2,),
    ("qwen35",): (
        _modern(
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+",
            _DIGIT,
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        ),
    ),
    ("gpt-4o", "kanana2", "llama4", "minimax-m2", "talkie"): (
        _cased(f"{_CONTRACTIONS}?", _THREE_DIGITS),
    ),
    ("bailingmoe", "bailingmoe2", "llada-moe"): (
        rf"'(?i:[sdmt]|ll|ve|re)|{_LETTERS}|{_DIGIT}|{_SYMBOLS}|\s*[\r\n]|{_SPACES}",
    ),
    ("seed-coder",): (_modern(_ENGLISH, _DIGIT, r" ?[^\s\p{L}\p{N}\r\n]+"),),
    ("deepseek-llm",): (
        r"[\r\n]",
        rf"\s?[{_CASED_SCRIPTS}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        _HAN,
        r"\p{N}+",
    ),
    ("deepseek-coder",): (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, _DIGIT),
    ("deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"): (
        _THREE_DIGITS,
        _HAN_AND_KANA,
        _DEEPSEEK3,
    ),
    ("bloom", "gpt3-finnish", "poro-chat"): (_SENTENCE,),
    ("viking",): (_SENTENCE, _DIGIT),
    ("superbpe",): (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
}
_WITHOUT_MERGES = {
    ("falcon-h1", "falcon3", "lfm2", "llama-bpe", "llama-v3", "llama3"): (_LLAMA3,),
    ("jina-v5-nano", "midm-2.0", "pixtral"): (_LLAMA3,),
    ("tekken",): (_cased("", _DIGIT),),
}
SPLIT_OF_PRE = {
    pre: WordSplit(cuts) for pres, cuts in _SPLITS.items() for pre in pres
} | {
    pre: WordSplit(cuts, ignore_merges=True, adds_bos=True)
    for pres, cuts in _WITHOUT_MERGES.items()
    for pre in pres
}
SPLIT_OF_PRE |= {
    pre: WordSplit((_LLAMA3,), ignore_merges=True) for pre in ("glm4", "glm5")
}
SPLIT_OF_PRE["minicpm5"] = WordSplit(
    (_THREE_DIGITS, _modern(_ENGLISH, r"\p{N}+")), ignore_merges=True
)
"""Value of `tokenizer.ggml.pre` -> how its tokenizer begins."""
