"""From text and conversations to batches.

`sources.py` opens what a `SourceConfig` describes: `records.py`, `tfds_source.py` and `files.py` read files by index,
and `instructions.py` makes conversations (`conversations.py`) of their records. `survey.py` reads all of it once: which
documents are kept and of which task, and which are held out, by `split.py` and what `passages.py` finds they share.
`tokenizer.py` turns text into tokens; `chat_template.py` makes a
conversation a text, in processes of their own (`rendering.py`), and `chat_tokens.py` tokens, of which those are trained
that the model itself must write. `corpus.py` keeps tokenised documents in a cache folder named after their content.

`packing.py` plans the rows, `examples.py` says what an objective reads and tells of each, with the noise of
`corruption.py`, `mixture.py` how often each task comes, and `loader.py` makes batch k from them; `shown.py` puts rows
in words. Nothing here needs jax.
"""
