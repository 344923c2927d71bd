"""Every test sees 8 devices on the CPU; jax reads both variables when it is first imported.

Tests compile much and compute little, so LLVM is told to take it easy: programs are then compiled in a third of the
time. What XLA itself makes of them, such as what devices send each other, stays as it is.
"""

import importlib.metadata
import os
from pathlib import Path

import pytest

OLD_JAX = importlib.metadata.version("jax").startswith("0.10.")
QUICK = "--xla_cpu_use_fusion_emitters=false" if OLD_JAX else "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
FLAGS = f"--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 {QUICK}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

SET_BY_MAIN = ("TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    """Tests share their compiled programs, those that run beside one another too."""
    import jax

    root = tmp_path_factory.getbasetemp()
    shared = root if worker_id == "master" else root.parent
    jax.config.update("jax_compilation_cache_dir", str(shared / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's caches, nor what the command line set in the environment for an earlier test."""
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "cache"))
    for name in SET_BY_MAIN:
        monkeypatch.setenv(name, "")  # so that it is removed again after the test
        monkeypatch.delenv(name)
