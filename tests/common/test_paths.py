from pathlib import Path

import pytest

from jaxllm.common.paths import user_path, whole_folder
from jaxllm.config import UserError


def test_a_home_is_filled_in_and_that_of_nobody_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/a") == Path("/home/me/a")
    assert user_path("~no-such-user/a") == Path("~no-such-user/a")
    assert user_path(Path("a/~")) == Path("a/~")


def test_a_folder_is_there_when_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "new" / "folder") as writing:
        (writing / "file").touch()
        assert not (tmp_path / "new" / "folder").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]
    assert (tmp_path / "new" / "folder" / "file").is_file()


def test_of_two_that_make_one_folder_the_first_to_end_has_it(tmp_path):
    slow = whole_folder(tmp_path / "folder")
    (slow.__enter__() / "slow").touch()
    with whole_folder(tmp_path / "folder") as quick:
        (quick / "quick").touch()
    with pytest.raises(UserError, match="folder' is there already: name another folder, or remove it"):
        slow.__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "quick"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_to_an_empty_folder_or_to_none_is_followed(tmp_path, is_there):
    if is_there:
        (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_folder(tmp_path / "link") as writing:
        (writing / "file").touch()
    assert (tmp_path / "real" / "file").is_file()
    assert (tmp_path / "link").is_symlink()


def test_a_folder_within_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file/folder", "file/folder/inner"):
        with pytest.raises(UserError, match="a part of that path is a file"), whole_folder(tmp_path / name):
            raise AssertionError
    with pytest.raises(UserError, match="'/' is there already"), whole_folder(Path("/")):
        raise AssertionError


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for name in ("file", "full"):
        with (
            pytest.raises(UserError, match=f"{name}' is there already: name another folder, or remove it"),
            whole_folder(tmp_path / name),
        ):
            raise AssertionError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine"]
