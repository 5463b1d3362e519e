import random

import pytest

from tfdp.launch import redaction
from tfdp.launch.redaction import Redactor


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *((name, True) for name in ("HF_TOKEN", "token", "githubToken", "GITHUBTOKEN", "X-Token")),
        *((name, True) for name in ("PASSWORD", "db_password", "DB_PWD", "PASSWORD_HASH")),
        *((name, True) for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "apikey", "API-KEY")),
        *((name, True) for name in ("CLIENT_SECRET", "GOOGLE_APPLICATION_CREDENTIALS", "COOKIE")),
        *((name, False) for name in ("TOKENIZERS_PARALLELISM", "max_tokens", "KEY", "PWD", "PATH")),
        *((name, False) for name in ("SORT_KEY", "PUBLIC_KEY", "KEYBOARD", "OLDPWD", "SSH_AGENT")),
    ],
)
def test_names(name, is_secret):
    assert redaction.is_secret_name(name) == is_secret


ENVIRON = {
    "HF_TOKEN": "canary-token",
    "DB_PASSWORD": "canary",
    "SHORT_SECRET": "yes",
    "URL": "postgres://me:canary-url@host/db",
    "PEM_KEY": "first line\nsecond line",
    "KEY_FILE_PASSWORD": "/",
    "PATH": "/bin",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("HF_TOKEN=canary-token;", "HF_TOKEN=***;"),
        ("canarycanary-token", "******"),
        ("yes", "yes"),
        ("postgres://me:canary-url@host/db", "postgres://***@host/db"),
        ("https://other:unknown1@host", "https://***@host"),
        ("https://host/a:b@c", "https://host/a:b@c"),
        ("the second line of it", "the *** of it"),
        ("/bin", "/bin"),
        ("ghp_" + "a" * 36, "***"),
        ("AKIA" + "A1" * 8, "***"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nx", "***\nx"),
    ],
)
def test_text(text, shown):
    assert Redactor(ENVIRON).text(text) == shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("a.py", "--password=hunter2", "b"), ("a.py", "--password=***", "b")),
        (("a.py", "--password", "hunter2", "b"), ("a.py", "--password", "***", "b")),
        (("a.py", "--password", "--lr=1"), ("a.py", "--password", "--lr=1")),
        (("a.py", "--api-key=a\nb"), ("a.py", "--api-key=***")),
        (
            ("a.py", "-token", "x", "--max_tokens=128"),
            ("a.py", "-token", "***", "--max_tokens=128"),
        ),
        (("a.py", "--note=my canary-token"), ("a.py", "--note=my ***")),
    ],
)
def test_command(words, shown):
    assert Redactor(ENVIRON).command(words) == shown


def test_environment():
    assert Redactor(ENVIRON).environment({"A_TOKEN": "x", "B": "canary", "C_TOKEN": ""}) == {
        "A_TOKEN": "***",
        "B": "***",
        "C_TOKEN": "",
    }


def test_a_stream_is_redacted_wherever_it_is_cut():
    draw = random.Random(7)
    for _ in range(500):
        parts = draw.choices([b"canary-token", b"canary", b"can", b"x\n", b"first line", b"-"], k=9)
        data = b"".join(parts)
        stream = Redactor(ENVIRON).stream()
        shown, rest = b"", data
        while rest:
            cut = draw.randint(1, 5)
            shown += stream.feed(rest[:cut])
            rest = rest[cut:]
            # Nothing is held back for long: at most what may be the beginning of a secret.
            assert len(data) - len(rest) - len(shown) < len(data)
        shown += stream.end()
        assert b"canary" not in shown
        assert b"first line" not in shown
        expected = data.replace(b"canary-token", b"***").replace(b"canary", b"***")
        assert shown == expected.replace(b"first line", b"***")


def test_values_are_secret_whatever_their_names_are():
    redactor = Redactor({"MY_THING": "innocent"}, secrets=["first line\nsecond line", "x"])
    assert redactor.text("innocent: first line, second line, x") == "innocent: ***, ***, x"


def test_a_stream_without_secrets_passes_on_what_comes():
    stream = Redactor({"PATH": "/bin"}).stream()
    data = b"anything at all"
    assert stream.feed(data) is data
    assert stream.end() == b""
