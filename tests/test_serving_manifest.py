import json
import shutil

import pytest

from tfdp.error import Error
from tfdp.serving import manifest


@pytest.fixture
def version(tmp_path):
    version = tmp_path / "models" / "a" / "3"
    (version / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "variables/variables.index", "variables/x"):
        (version / name).write_text(name)
    manifest.write(version, {"config": {"seed": 3}})
    return version


def test_what_it_says(version):
    # printf saved_model.pb | sha256sum
    digest = "a88724450fab0d32e46724bc95e0a9b7d8443460b73431c93e4b815ddd324b1a"
    content = json.loads((version / "manifest.json").read_text())
    assert content["config"] == {"seed": 3}
    assert list(content["files"]) == ["saved_model.pb", "variables/variables.index", "variables/x"]
    assert content["files"]["saved_model.pb"] == {"bytes": 14, "sha256": digest}
    assert manifest.read(version) == content


def test_a_copy_is_the_same_model(version, tmp_path):
    shutil.copytree(version, tmp_path / "copy")
    assert manifest.verify(version) == manifest.verify(tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").unlink()
    (tmp_path / "copy" / "variables" / "x").write_text("other")
    (tmp_path / "copy" / "variables" / "variables.data-00000-of-00001").write_text("")
    assert manifest.verify(version) != manifest.verify(tmp_path / "copy")


def test_the_newest_version(version):
    for name in ("2", "10", "9", "notes", "1.5"):
        (version.parent / name).mkdir()
    assert manifest.version_folder(version.parent) == version.parent / "10"
    assert manifest.version_folder(version) == version


def test_every_difference_is_named(version):
    (version / "saved_model.pb").write_text("other")
    (version / "variables" / "x").unlink()
    (version / "more").touch()
    with pytest.raises(Error) as raised:
        manifest.verify(version)
    assert str(raised.value) == (
        f"The model {version} is not whole: saved_model.pb was changed, variables/x is missing, "
        "more is not in the manifest."
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [("{", "cannot be read: Expecting property name"), ("[]", "is no manifest of tfdp.")],
)
def test_no_manifest(content, line, version):
    (version / "manifest.json").write_text(content)
    with pytest.raises(Error) as raised:
        manifest.verify(version)
    assert str(raised.value).startswith(f"{version}/manifest.json {line}")
