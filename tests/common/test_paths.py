from pathlib import Path

from jaxllm.common.paths import user_path


def test_a_home_is_filled_in_and_that_of_nobody_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/a") == Path("/home/me/a")
    assert user_path("~no-such-user/a") == Path("~no-such-user/a")
    assert user_path(Path("a/~")) == Path("a/~")
