"""From text to batches.

`sources.py` reads documents by index, `tokenizer.py` turns text into tokens, `corpus.py` keeps tokenised
documents in a cache folder named after their content, `packing.py` plans the rows, `examples.py` says what an
objective reads and tells of each, with the noise of `corruption.py`, and `loader.py` makes batch k from them.
`chat_template.py` makes a conversation a text, and `chat_tokens.py` tokens. Nothing here needs jax.
"""
