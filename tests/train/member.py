"""One process of a run that a test starts: `jaxllm train`, which also writes down what it reads.

    member.py ROOT INDEX OPTIONS

trains the configuration in `ROOT/config.json`. OPTIONS is JSON: `argv`, more words for the command; `stop`, a process
and a step after which it sends itself a SIGTERM; `fail`, a process and a batch that it cannot make;
`unwritable`, a process that cannot write its part of a checkpoint.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path


def row_hashes(batch, rows):
    """A hash of each row of a batch."""
    return {
        row: hashlib.sha256(b"".join(batch[name][i].tobytes() for name in sorted(batch))).hexdigest()
        for i, row in enumerate(rows)
    }


def watch(root, index, log, options):
    """Writes the rows that the loader makes to `log`, and arranges for what is to happen."""
    from jaxllm.data import corpus
    from jaxllm.data.loader import Loader
    from jaxllm.train.checkpoint import Checkpoints
    from jaxllm.train.loop import _Loop

    make, prepare, read = Loader.batch, corpus.prepare_corpus, _Loop.read

    def batch(loader, k, rows=None):
        if options.get("fail") == [index, k]:
            raise OSError(5, "Input/output error", "the disk of a test")
        made = make(loader, k, rows)
        wanted = range(loader.batch_size) if rows is None else rows
        log.write(json.dumps({"batch": k, "rows": row_hashes(made, wanted)}) + "\n")
        return made

    def prepare_corpus(*args, **kwargs):
        log.write(json.dumps({"prepared": True}) + "\n")
        return prepare(*args, **kwargs)

    def read_step(loop):
        read(loop)
        if options.get("stop") == [index, loop.info.step]:
            options.pop("stop")
            os.kill(os.getpid(), signal.SIGTERM)

    if options.get("unwritable") == index:
        finish = Checkpoints._finish

        def unwritable(checkpoints, *args):
            checkpoints._orbax.wait_until_finished = Path("/proc/no-such-folder/part").touch
            finish(checkpoints, *args)

        Checkpoints._finish = unwritable
    Loader.batch, corpus.prepare_corpus, _Loop.read = batch, prepare_corpus, read_step


def main():
    root, index, options = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    recipe = root / f"recipe{index}.py"
    recipe.write_text(
        "import json\nfrom jaxllm.config import RunConfig, from_dict\n"
        f"def recipe():\n    return from_dict(RunConfig, json.loads(open({str(root / 'config.json')!r}).read()))\n"
    )
    from jaxllm.cli.main import main as jaxllm
    from jaxllm.cli.main import set_environment

    set_environment()
    with open(root / f"{index}.rows", "w", buffering=1) as log:
        watch(root, index, log, options)
        return jaxllm(["train", str(recipe), *options.get("argv", [])])


if __name__ == "__main__":
    sys.exit(main())
