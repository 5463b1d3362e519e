"""The README and the pages of docs/: their code runs, and what they name exists.

Python blocks are executed, those of a page in one namespace, in a process of their own:

    python tests/test_docs.py README.md docs/data.md

Command lines of tfdp are read by the flags of their verb, with their configs checked; those that
start tasks run with --dry-run. Of scripts the files and the flags have to exist.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tfdp import cli, cluster, config, run
from tfdp.launch import network

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
# Its blocks need parameter servers.
SERVERS = "docs/servers.md"
# What is printed ("text") is no code.
LANGUAGES = ("python", "sh", "text")
# Programs that are not tfdp's: their lines cannot be tried here.
EXEMPT = (
    *(".", "nft", "pip", "ssh", "ssh-copy-id", "ssh-keygen", "tensorflow_model_server"),
    *("salloc", "sbatch", "scancel", "scontrol", "srun", "mkdir"),
)
# Flags of theirs that the text names, written as those of absl.
EXEMPT_FLAGS = {"--distribution", "--mem", "--resv_ports", "--signal"}
SECONDS = 240

# What the pages' commands find in their folder.
FILES = {
    "script.py": "",
    "package/__init__.py": "",
    "package/module.py": "",
    "hosts.txt": "a slots=2\nb slots=3\n",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a page, from the line after its fence on."""

    page: str
    line: int
    language: str
    text: str


def blocks(page):
    """The code blocks of a page, and the text around them with the blocks left blank."""
    found, prose = [], []
    language = start = None
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        if line.startswith("```"):
            if language is None:
                language, start, lines = line[3:], number + 1, []
            else:
                found.append(Block(page, start, language, "\n".join(lines) + "\n"))
                language = None
            prose.append("")
        elif language is None:
            prose.append(line)
        else:
            lines.append(line)
            prose.append("")
    assert language is None, f"{page}:{start}: the block has no end"
    return found, prose


BLOCKS = {page: blocks(page)[0] for page in PAGES}
COMMANDS = [
    pytest.param(line, id=f"{block.page}:{block.line + offset} {line}")
    for page in PAGES
    for block in BLOCKS[page]
    if block.language == "sh"
    for offset, line in enumerate(block.text.splitlines())
]


@pytest.mark.parametrize("page", PAGES)
def test_code_is_marked_as_what_it_is(page):
    found, prose = blocks(page)
    for block in found:
        assert block.language in LANGUAGES, f"{page}:{block.line}"
        if block.language == "text":
            assert not re.search(r"^(\$ |tfdp \w+ -|import |from )", block.text, re.MULTILINE)
    # Four spaces would make code without a language, which nobody runs.
    indented = [n for n, line in enumerate(prose, 1) if re.match(r" {4}\S", line)]
    options = [n for n in indented if page.startswith("docs/reference/")]  # of "::: NAME"
    assert indented == options


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which the commands of the pages can be given."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    command = {"config": str(ROOT / "configs" / "digits.py"), "settings": {}}
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "command.json").write_text(json.dumps(command))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setenv(network.TRUST_VARIABLE, "")  # so that it is set back
    return tmp_path


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line, folder, monkeypatch, capsys):
    words = shlex.split(line)
    if words[0] == "export":
        name, _, value = words[1].partition("=")
        assert name == "TF_CONFIG"
        cluster.parse(value)
        return
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    program, *arguments = words
    if program == "tfdp":
        give(arguments, monkeypatch, capsys)
    elif arguments[:2] == ["-m", "tfdp.run"]:
        assert program == "python"
        assert (
            run.check_script([word for word in arguments[2:] if word != "--trust-network"]) is None
        )
    elif program == "python" and arguments == ["script.py"]:
        assert (folder / "script.py").is_file()
    elif program == "python" or re.match(r"(\./)?scripts/", program):
        check_script(*(arguments if program == "python" else words))
    else:
        assert program in EXEMPT


def give(words, monkeypatch, capsys):
    """Give tfdp a command line, up to where it would do its work."""

    def until_work(name, own, values, *words):
        if name in ("train", "shards"):
            config.validate(values.config)
        if name == "launch" or (name == "train" and values.workers):
            values.dry_run = True
            return own(values, *words)
        return 0

    for name, verb in cli.VERBS.items():
        instead = functools.partial(until_work, name, verb.run)
        monkeypatch.setattr(verb, "run", instead)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # what ml_collections has read
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0, capsys.readouterr().err


def check_script(file, *words):
    """Check that a script of the repository is there, and knows the flags."""
    path = ROOT / file
    assert os.access(path, os.R_OK if path.suffix else os.X_OK)
    text = path.read_text()
    text += "".join((ROOT / name).read_text() for name in re.findall(r"[\w/]+/\w+\.py", text))
    for word in words:
        flag = word.partition("=")[0]
        assert not flag.startswith("-") or f'"{flag}"' in text


@pytest.mark.cluster
def test_python(tmp_path):
    pages = [page for page in PAGES if page != SERVERS]
    in_python(tmp_path, [__file__, *(page for page in pages if python_of(page))])


@pytest.mark.cluster
def test_python_on_parameter_servers(tmp_path):
    (tmp_path / "script.py").write_text(python_of(SERVERS))
    in_python(tmp_path, ["-m", "tfdp", "launch", "--chief", "--ps=1", "--", "script.py"])


def in_python(folder, words):
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("TF_CONFIG", "TFDP_"))}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def python_of(page):
    """The Python blocks of a page as one program, each at its own line."""
    lines = []
    for block in BLOCKS[page]:
        if block.language == "python":
            lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n" if lines else ""


def run_pages(pages):
    import keras

    # The model that pages predict with.
    layers = [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1), dtype="uint8"), *layers])
    model.export("models/digits/1", verbose=False)
    for page in pages:
        keras.utils.clear_session()
        exec(compile(python_of(page), str(ROOT / page), "exec"), {"__name__": page})


def spans():
    """Yield (page:line, text) of each `code` in the text of the pages."""
    for page in PAGES:
        for number, line in enumerate(blocks(page)[1], 1):
            for text in re.findall(r"`([^`]+)`", line):
                yield f"{page}:{number}", text


def test_flags_in_the_text_exist():
    known = {"--help", *EXEMPT_FLAGS}
    for verb in cli.VERBS.values():
        values = cli.flags.FlagValues()
        verb.define(values, [])
        known |= {f"--{name}" for name in values}
    scripts = [p for p in ROOT.glob("scripts/**/*") if p.is_file() and p.suffix in ("", ".py")]
    for script in scripts:
        known |= set(re.findall(r'"(--[a-z][\w-]+)"', script.read_text()))
    wrong = [
        f"{place}: {flag}"
        for place, text in spans()
        for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", text)
        if flag != "--config" and flag.replace("-", "_").replace("__", "--", 1) not in known
    ]
    assert not wrong


def test_settings_in_the_text_exist():
    examples = ("config.a.b", "config.py")
    wrong = []
    for place, text in spans():
        for name in re.findall(r"(?<![\w./])config(?:\.[a-z_]+)+", text):
            problem = None if name in examples else config.unknown_setting(name)
            if problem and "is a group of settings" not in problem:
                wrong.append(f"{place}: {problem}")
    assert not wrong


def test_files_in_the_text_exist():
    wrong = [
        f"{place}: {text}"
        for place, text in spans()
        if re.fullmatch(r"(\./)?(\.ci|configs|docs|scripts|tests|tfdp)/[\w./]+", text)
        and not (ROOT / text).exists()
    ]
    assert not wrong


def test_methods_that_the_architecture_names_exist():
    source = "".join(path.read_text() for path in ROOT.glob("tfdp/**/*.py"))
    texts = [text for place, text in spans() if place.startswith("docs/architecture.md")]
    texts += [path.read_text() for path in ROOT.glob("docs/images/*.svg")]
    named = {name for text in texts for name in re.findall(r"(?<![\w./])[A-Z][a-z]\w*\.\w+", text)}
    wrong = []
    for name in named:
        owner, method = name.split(".")
        body = re.search(rf"^class {owner}\b.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
        if not (body and re.search(rf"^    def {method}\(", body[0], re.MULTILINE)):
            wrong.append(name)
    assert named
    assert not wrong


def test_messages_to_look_up_are_those_of_the_code():
    source = "".join(path.read_text() for path in sorted(ROOT.glob("tfdp/**/*.py")))
    source = " ".join(re.sub(r'"\s*\n\s*f?"', "", source).split())  # parts of a string, joined
    page = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) == len(re.findall(r"^\| `", page, re.MULTILINE))

    def is_there(message):
        """Most of the words stand there, in threes: the others are names and numbers of a run."""
        words = message.split()
        threes = [at for at in range(len(words) - 2) if " ".join(words[at : at + 3]) in source]
        found = {at + n for at in threes for n in range(3)}
        plain = {at for at, word in enumerate(words) if re.fullmatch(r"[A-Z]?[a-z]+[.,;:]?", word)}
        return threes and len(found & plain) > len(plain) / 2

    assert [message for message in messages if not is_there(message)] == []


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    pages = [page for page in PAGES if not page.startswith(("README", "docs/reference/"))]
    assert set(pages) <= set(links)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_names_in_the_text_exist():
    import tfdp

    modules = {path.stem for path in (ROOT / "tfdp").iterdir()}
    wrong = [
        f"{place}: tfdp.{name}"
        for place, text in spans()
        for name in re.findall(r"(?<![\w./@])tfdp\.([a-z_]\w*)", text, re.IGNORECASE)
        if name not in tfdp.__all__ and name not in modules
    ]
    assert not wrong


def test_each_verb_has_its_help_on_the_page_of_the_command_line():
    text = (ROOT / "docs/reference/commands.md").read_text()
    assert re.findall(r'^--8<-- "([\w-]+)\.txt"$', text, re.MULTILINE) == list(cli.VERBS)
    assert re.findall(r"^## tfdp ([\w-]+)$", text, re.MULTILINE) == list(cli.VERBS)


def rows(page):
    """The table of exactness in a page: its head, and its rows by name."""
    text = (ROOT / page).read_text()
    table = text[text.index("| | tfdp, mirrored |") :].partition("\n\n")[0].splitlines()
    return table[0], {row.split(" | ")[0].removeprefix("| "): row for row in table[2:]}


def test_the_table_of_exactness(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    import exactness

    head, whole = rows("docs/exactness.md")
    assert list(whole) == list(exactness.TABLE)
    assert rows("README.md") == (head, {name: whole[name] for name in rows("README.md")[1]})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{exactness.BEGIN}\n\nold\n\n{exactness.END}\nafter\n")
    exactness._write(page, "| new |")
    assert page.read_text() == (f"before\n{exactness.BEGIN}\n\n| new |\n\n{exactness.END}\nafter\n")


if __name__ == "__main__":
    run_pages(sys.argv[1:])
