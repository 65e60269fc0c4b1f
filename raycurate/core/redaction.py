"""Secrets, told by the name of a key or by the form of a value, masked in all that is shown or written.

There are few ways out of this program: errors, log lines, what the command line prints, manifests and what is sent
with a job. Each passes through `redact` (values with keys) or `hide_credentials` (text), so that no stage has to think
of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "**********"
_REFERENCE = re.compile(r"\$\{[^${}]+\}")

_WORDS = (
    "token|secret|password|passwd|passphrase|pwd|api_?key|access_?key|private_?key|secret_?key|account_?key|"
    "subscription_?key|credentials?|authorization|auth|bearer|cookie|signature"
)
_SECRET_NAME = re.compile(rf"(^|_)({_WORDS})(_(id|value|string|json|hash|header|\d+))?$")
_OF_A_TOKENIZER = re.compile(r"^(add_)?(pad|bos|eos|unk|cls|sep|mask|image|audio|video|fake)_token(_id)?$")
# In a URL's query anything may be a key; these are known to be none.
_OPEN_PARAMETERS = (
    "endpoint_override|region|scheme|anonymous|allow_bucket_creation|allow_bucket_deletion|api-version|version|rev|"
    "revision|format|page|limit|offset|length|config|split|dataset"
)
_NAMED = r"\$\{[^${}]+\}"  # where a secret is, not what it is
_USER_OF_WEB = re.compile(rf"\b((?:https?|wss?|ftps?)://)(?!(?:{_NAMED}|:)+@)[^/?#\s'\"]*(@)", re.I)
_USER_AND_PASSWORD = re.compile(rf"\b([a-z][a-z0-9+.-]*://)(?!(?:{_NAMED}|:)+@)[^/?#\s@:'\"]*:[^/?#\s'\"]*(@)", re.I)
_PARAMETER = re.compile(rf"([?&](?!(?:{_OPEN_PARAMETERS})=)[\w.%\[\]-]+=)(?!{_NAMED})[^&\s#'\"]+", re.I)
_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|(?:x-)?api-?key|x-[a-z-]*(?:token|key))(['\"]?\s*[:=]\s*['\"]?)"
    r"(?:(?:bearer|basic|token|digest)\s+)?[^\s'\",;}]+",
    re.I,
)
_BEARER = re.compile(r"\b(bearer)\s+(?=[\w.~+/=-]*\d)[\w.~+/=-]{8,}", re.I)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)
_KNOWN_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|nvapi-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|"
    r"glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,})"
)


def redact(value: Any, name: str = "") -> Any:
    """`value` with all that looks like a secret masked: by its key's name, and in any text by its form."""
    secret = is_secret_name(name)
    if isinstance(value, Mapping):
        return {k: redact(v, name if secret else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(v, name) for v in value]
    if secret and _could_be_one(value, name):
        text = str(value)
        return text if _REFERENCE.fullmatch(text) else REDACTED
    return hide_credentials(value) if isinstance(value, str) else value


def is_secret_name(name: str) -> bool:
    """Whether a key of this name holds a secret; spelt as in Python, in headers (X-Api-Key) or in JSON (apiKey).

    Names of variables, files and folders that hold one (`api_key_env`) are none, nor are a tokenizer's own tokens.
    """
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]+", "_", name).lower()
    return bool(_SECRET_NAME.search(plain)) and not _OF_A_TOKENIZER.fullmatch(plain)


def _could_be_one(value: Any, name: str) -> bool:
    if value is None or value == "" or isinstance(value, bool):
        return False
    return not (isinstance(value, int | float) and "token" in name.lower())  # a number of tokens


def hide_credentials(text: str) -> str:
    """`text` without the user and password of URLs, values in their queries, headers and keys of known forms."""
    if "://" in text:
        text = _USER_OF_WEB.sub(rf"\1{REDACTED}\2", text)
        text = _USER_AND_PASSWORD.sub(rf"\1{REDACTED}\2", text)
        text = _PARAMETER.sub(rf"\1{REDACTED}", text)
    text = _HEADER.sub(rf"\1\2{REDACTED}", text)
    text = _BEARER.sub(rf"\1 {REDACTED}", text)
    text = _PRIVATE_KEY.sub(REDACTED, text)
    return _KNOWN_FORMS.sub(REDACTED, text)
