"""Which values of the server's arguments and variables are shown: those whose names are known.

A flag is known where SGLang's releases have it and it takes no secret; a variable where its name
begins as those of SGLang, of the compilers and of the libraries below it do. Of a known name's
value, texts in JSON and credentials in addresses are not shown all the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from sgl_admin.contract.disclosure import NOT_SHOWN, without_credentials
from sgl_admin.sglang.public_flags import FLAGS

# Of the command itself.
_OWN_FLAGS = frozenset(("-m", "-P"))
_FLAG = re.compile(r"--?[A-Za-z][A-Za-z0-9_-]*")
# What stands behind these is no value of theirs.
_SWITCH = re.compile(r"--(enable|disable|skip|trust|show|is|enforce)-")
_NUMBER = re.compile(r"-[\d.]+")
# By who reads them.
_FAMILIES = re.compile(
    r"""
    (SGLANG | SGL | FLASHINFER | DG | DEEP_GEMM | DEEPEP | TORCH\w* | PYTORCH | TRITON | TVM | CUTE
    | CUTLASS | TILELANG | NVCC | CUDA | CUDNN | CUBLAS | NVIDIA | NCCL | GLOO | UCX | NVSHMEM | OMP
    | KMP | MKL | GOMP | OPENBLAS | NUMEXPR | MALLOC | HF | HUGGINGFACE | TRANSFORMERS | TOKENIZERS
    | TQDM | OTEL | PYTHON | LC | IS | USE | MASTER | PROMETHEUS_MULTIPROC)_\w+
    | CUDAARCHS | (NVCC|HOST|CUDAHOST)?(CC|CXX) | (CPP|C|CXX|LD)FLAGS | LD_(LIBRARY_PATH|PRELOAD)
    | PYTHON[A-Z]+ | PATH | HOME | LANG | TZ | TERM | NO_COLOR | MOE_CONFIG\w*
    | (http|https|no|all)_proxy | (HTTP|HTTPS|NO|ALL)_PROXY
    """,
    re.VERBOSE,
)
# A part of a name that marks its value as a secret, in any program.
_SECRET = re.compile(
    r"(^|_)(TOKEN|(API|ACCESS|AUTH)_KEYS?|KEY|SECRETS?|PASS|PASS(WORD|WD|PHRASE)\w*|PW|PWD|PAT"
    r"|CRED\w*|AUTH|AUTHORIZATION|COOKIES?|PRIVATE|HEADERS|SIGNATURE)(_|$)",
    re.IGNORECASE,
)
# Numbers and switches of a known family hold none, whatever their name says.
_PLAIN = re.compile(r"[+-]?\d{0,5}(\.\d{0,6})?|true|false|yes|no|on|off", re.IGNORECASE)
# Texts in JSON whose keys name a kind, a type or a backend.
_SHOWN_KEYS = frozenset(
    """
    architectures backend cudagraph_mode dtype kv_cache_dtype kv_connector kv_role mode model_type
    publisher quant_algo quant_method quantization rope_type torch_dtype type
    """.split()
)
_JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')


def shown_arguments(words: Iterable[str], public: Collection[str] = ()) -> list[str]:
    """A command line as it is shown; `public` are names that an operator calls public."""
    shown: list[str] = []
    # Before the first flag stands the program.
    known = True
    for word in words:
        flag, equals, value = word.partition("=")
        if _FLAG.fullmatch(flag):
            known = flag in FLAGS or flag in _OWN_FLAGS or flag in public
            shown.append(f"{flag}={_value(value, known)}" if equals else flag)
            known = known and not _SWITCH.match(flag)
        elif word.startswith("-") and not _NUMBER.fullmatch(word):
            known = False
            shown.append(NOT_SHOWN)
        else:
            shown.append(_value(word, known))
    return shown


def shown_environment(
    environment: Mapping[str, str], public: Collection[str] = ()
) -> dict[str, str]:
    """An environment as it is shown."""
    return {
        name: _value(value, name in public or _is_public(name, value))
        for name, value in environment.items()
    }


def _is_public(name: str, value: str) -> bool:
    if not _FAMILIES.fullmatch(name):
        return False
    return not _SECRET.search(name) or _PLAIN.fullmatch(value) is not None


def _value(value: str, known: bool) -> str:
    if not value:
        return value
    if not known:
        return NOT_SHOWN
    if value.lstrip()[:1] in ("{", "["):
        return _without_texts(value)
    return without_credentials(value)


def _without_texts(document: str) -> str:
    """JSON without the texts that it holds, but for keys, and for those whose key names a kind."""
    key, parts, end = "", [], 0
    for text in _JSON_TEXT.finditer(document):
        parts.append(document[end : text.start()])
        end = text.end()
        if document[end:].lstrip().startswith(":"):
            key = text[0][1:-1]
            parts.append(text[0])
        else:
            parts.append(text[0] if key in _SHOWN_KEYS else f'"{NOT_SHOWN}"')
    rest = document[end:]
    # What is no JSON has texts without quotes.
    plain = re.sub(r"true|false|null|[-+\d.eE]+|[\s{}\[\]:,]", "", "".join(parts[::2]) + rest)
    return NOT_SHOWN if plain else "".join(parts) + rest
