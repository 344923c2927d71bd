import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig, UserError
from jaxllm.sharding.mesh import make_mesh
from jaxllm.train import checkpoint as checkpoint_module
from jaxllm.train.checkpoint import Checkpoints, Info
from jaxllm.train.state import State


def make_state(step, sizes=None, value=1.0, ema=True):
    """A small state, its matrix cut along fsdp; concrete where `value` is one, else shapes."""
    mesh = make_mesh(MeshConfig(**(sizes or {"fsdp": 8, "data": 1})))

    def leaf(shape, dtype, spec):
        sharding = NamedSharding(mesh, spec)
        if value is None:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        return jax.device_put(np.arange(np.prod(shape)).reshape(shape).astype(dtype) * dtype(value), sharding)

    matrix = leaf((16, 4), np.float32, P("fsdp", "tensor"))
    count = leaf((), np.int32, P())
    return State(count, {"w": {"kernel": matrix}}, ((), (count, {"w": matrix})), {"w": matrix} if ema else None, count)


def info(step, loss=None):
    return Info(step=step, tokens=100 * step, corpus="text", tokenizer="pieces", held_out_loss=loss)


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        yield checkpoints


def test_a_state_comes_back_bit_for_bit_on_any_mesh_with_what_was_known_beside_it(checkpoints):
    state = make_state(5, value=np.pi)
    checkpoints.save(state, info(5, loss=2.5))
    checkpoints.wait()
    for sizes in ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        wanted = make_state(5, sizes, value=None)
        restored, known = checkpoints.restore(wanted, 5)
        assert known == info(5, loss=2.5)
        for a, b, place in zip(*map(jax.tree.leaves, (state, restored, wanted)), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
            assert b.sharding == place.sharding
        assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_a_step_may_consume_the_state_while_it_is_being_written(checkpoints):
    size = 1 << 22
    mesh = make_mesh(MeshConfig())
    ones = jax.device_put(np.ones(size, np.float32), NamedSharding(mesh, P("data")))
    count = jax.device_put(np.int32(0), NamedSharding(mesh, P()))
    state = State(count, {"w": ones}, (), None, jnp.copy(count))
    consume = jax.jit(lambda s: jax.tree.map(lambda x: x + x, s), donate_argnums=0)
    checkpoints.save(state, info(1))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for _ in range(5):
        state = consume(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    restored, _ = checkpoints.restore(abstract, 1)
    assert (np.asarray(restored.params["w"]) == 1).all()


def test_the_latest_and_the_best_are_kept(checkpoints):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        checkpoints.save(make_state(step), info(step, loss))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["2", "4", "5"]


def test_any_changed_shortened_or_missing_file_is_named_with_the_checkpoint_before_it(checkpoints):
    for step in (1, 2):
        checkpoints.save(make_state(step), info(step))
    checkpoints.wait()
    folder = checkpoints.folder / "2"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        for damaged in (flipped, content[:-1], None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"/2' is damaged: .*; go on from the one before with --step 1$"):
                checkpoints.info(2)
            path.write_bytes(content)
    assert checkpoints.info(2) == info(2)
    (checkpoints.folder / "1" / "hashes.json").unlink()
    with pytest.raises(UserError, match=r"'hashes.json' is missing; there is none before it"):
        checkpoints.info(1)


def test_a_step_that_was_not_kept_is_answered_with_those_that_were(checkpoints):
    with pytest.raises(UserError, match=r"there is no checkpoint of step 3 in .*; there are: none"):
        checkpoints.info(3)
    for step in (1, 2):
        checkpoints.save(make_state(step), info(step))
    checkpoints.wait()
    with pytest.raises(UserError, match="there are: 1, 2"):
        checkpoints.restore(make_state(3, value=None), 3)


def test_a_state_of_another_shape_or_with_other_leaves_is_refused_by_name(checkpoints):
    checkpoints.save(make_state(1), info(1))
    checkpoints.wait()
    with_ema = make_state(1, value=None)
    wider = with_ema._replace(params={"w": {"kernel": jax.ShapeDtypeStruct((16, 8), np.float32)}})
    with pytest.raises(UserError, match=r"'params/w/kernel' is float32\[16, 4\] there and float32\[16, 8\] here"):
        checkpoints.restore(wider, 1)
    with pytest.raises(UserError, match="the checkpoint has no 'params/w/bias'"):
        checkpoints.restore(with_ema._replace(params={"w": {"bias": with_ema.step}}), 1)
    with pytest.raises(UserError, match="the checkpoint also holds 'ema/w'"):
        checkpoints.restore(with_ema._replace(ema=None), 1)


def test_a_failed_write_is_told_with_the_reason_and_leaves_nothing(checkpoints, monkeypatch):
    checkpoints.save(make_state(1), info(1))
    checkpoints.wait()

    def no_room(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", no_room)
        checkpoints.save(make_state(2), info(2))
        with pytest.raises(UserError, match=r"step 2 .*: No space left on device; the last whole one is of step 1;"):
            checkpoints.wait()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["1"]
    checkpoints.save(make_state(3), info(3))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3]


def test_a_file_system_that_refuses_orbax_gives_its_reason_and_no_traceback(tmp_path):
    program = f"""
import resource, signal
from pathlib import Path
from test_checkpoint import make_state, info
from jaxllm.config import UserError
from jaxllm.train.checkpoint import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
with Checkpoints(Path({str(tmp_path)!r})) as checkpoints:
    try:
        checkpoints.save(make_state(1), info(1))
        checkpoints.wait()
    except UserError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert "cannot write the checkpoint of step 1" in done.stdout
    assert ": File too large; there is none yet;" in done.stdout
    assert done.stderr == ""
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_forgetting_deletes_what_is_later_or_unfinished(checkpoints):
    for step in (1, 2):
        checkpoints.save(make_state(step), info(step))
    checkpoints.wait()
    for name in ("3.writing", "4.deleting"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "file").touch()
    assert checkpoints.steps() == [1, 2]
    checkpoints.forget_after(1)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["1"]
    assert json.loads((checkpoints.folder / "1" / "info.json").read_text())["step"] == 1


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_not_called_damaged(checkpoints, monkeypatch):
    checkpoints.save(make_state(1), info(1))
    checkpoints.wait()
    hashes = checkpoint_module._hashes

    def deleting(folder):
        checkpoints._delete(1)
        return hashes(folder)

    monkeypatch.setattr(checkpoint_module, "_hashes", deleting)
    with pytest.raises(UserError, match=r"checkpoint '.*/1' was deleted while it was read"):
        checkpoints.info(1)
