"""Secrets: which words hold them, and what is shown in their place.

    redactor = Redactor(os.environ)
    redactor.text("HF_TOKEN is hf_abc...")                   # "HF_TOKEN is ***"
    redactor.command(("train.py", "--password", "hunter2"))  # ("train.py", "--password", "***")
    stream = redactor.stream()
    stream.feed(b"the key is sec")                           # b"the key is ": "sec" may begin it
    stream.end()                                             # b"sec": it did not

What is secret is known by its name (TOKEN, PASSWORD, ..._KEY), or by its own look (a URL with a
password, the tokens of well-known services). A secret under an innocent name is not recognised.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence

SHOWN = "***"
# Shorter values are words of everyday output: "yes" as a password would blot out every "yes".
_SHORTEST = 6

_SECRET_WORDS = (
    *("token", "secret", "password", "passwd", "passphrase", "credential"),
    *("credentials", "apikey", "authorization", "bearer", "cookie"),
)
# "..._KEY" is a secret, unless it says which key of a table is meant.
_OPEN_KEYS = frozenset({"sort", "primary", "foreign", "group", "public", "partition", "index"})
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s:'\"]*:([^/@\s'\"]+)(?=@)")
_TOKENS = re.compile(
    r"AKIA[0-9A-Z]{16}|gh[opsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|hf_[A-Za-z0-9]{30,}"
    r"|sk-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{35}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-]|-(?!-))*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{8,}=*"
)
_FLAG = re.compile(r"--?([A-Za-z][\w.-]*)(=?)(.*)", re.DOTALL)


def is_secret_name(name: str) -> bool:
    """Whether a variable or a flag of that name holds a secret.

    True for MY_API_KEY, HF_TOKEN, dbPassword; False for TOKENIZERS_PARALLELISM, max_tokens, KEY.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if any(word.endswith(_SECRET_WORDS) for word in words):
        return True
    if len(words) < 2:  # PWD is a folder, and a KEY by itself may be any
        return False
    return words[-1] == "pwd" or (words[-1] == "key" and words[-2] not in _OPEN_KEYS)


class Redactor:
    """Replaces the secrets of an environment, and what looks like one, by "***".

    Args:
      environs: The environments whose secrets must not be shown.
      secrets: Values that must not be shown, whatever their names are.
    """

    def __init__(self, *environs: Mapping[str, str], secrets: Iterable[str] = ()) -> None:
        found: set[str] = set()
        for value in secrets:
            found.update((value, *value.splitlines()))
        for environ in environs:
            for name, value in environ.items():
                # The name of a file that holds a secret is none.
                if is_secret_name(name) and not os.path.exists(value):
                    # Each line too: a key of several lines is seldom printed in one piece.
                    found.update((value, *value.splitlines()))
                found.update(_URL_PASSWORD.findall(value))
        # The longest first: one secret may begin another.
        kept = (value for value in found if len(value) >= _SHORTEST)
        self._values = tuple(sorted(kept, key=lambda value: (-len(value), value)))

    def text(self, text: str) -> str:
        """A text without the secrets."""
        for value in self._values:
            text = text.replace(value, SHOWN)
        return _TOKENS.sub(SHOWN, _URL_PASSWORD.sub(SHOWN, text))

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Variables without the secrets."""
        return {
            name: SHOWN if value and is_secret_name(name) else self.text(value)
            for name, value in environ.items()
        }

    def command(self, words: Iterable[str]) -> tuple[str, ...]:
        """A command without the secrets: "--password=x" and "--password x" are seen by name."""
        shown: list[str] = []
        follows = False  # whether this word is the value of a flag that takes a secret
        for word in words:
            flag = _FLAG.fullmatch(word)
            if flag and is_secret_name(flag[1]):
                shown.append(word[: flag.start(3)] + (SHOWN if flag[3] else ""))
                follows = not flag[2]
            else:
                shown.append(SHOWN if follows and not flag else self.text(word))
                follows = False
        return tuple(shown)

    def stream(self) -> "Stream":
        """For what a task writes, piece by piece: the secrets of the environment alone."""
        return Stream([value.encode(errors="surrogateescape") for value in self._values])


class Stream:
    """Redacts bytes that come in pieces, wherever they are cut.

    Args:
      values: What must not be shown; the longest first.
    """

    def __init__(self, values: Sequence[bytes]) -> None:
        self._values = tuple(values)
        self._pattern = re.compile(b"|".join(map(re.escape, values))) if values else None
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be shown now. What may be the beginning of a secret is held back."""
        if self._pattern is None:
            return data
        data = self._held + data
        cut = len(data) - max(_overlap(data, value) for value in self._values)
        for match in self._pattern.finditer(data):
            if match.start() < cut < match.end():
                cut = match.start()
        self._held = data[cut:]
        return self._pattern.sub(SHOWN.encode(), data[:cut])

    def end(self) -> bytes:
        """What was held back: nothing follows."""
        held, self._held = self._held, b""
        return self._pattern.sub(SHOWN.encode(), held) if self._pattern else held


def _overlap(data: bytes, value: bytes) -> int:
    """How many bytes at the end of the data are the beginning of the value, without all of it."""
    for length in range(min(len(data), len(value) - 1), 0, -1):
        if data.endswith(value[:length]):
            return length
    return 0
