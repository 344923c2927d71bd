"""Every test sees 8 devices on the CPU; jax reads both variables when it is first imported."""

import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

SET_BY_MAIN = ("TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's caches, nor what the command line set in the environment for an earlier test."""
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "cache"))
    for name in SET_BY_MAIN:
        monkeypatch.setenv(name, "")  # so that it is removed again after the test
        monkeypatch.delenv(name)
