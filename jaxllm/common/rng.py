"""Random keys by name, so that a new consumer never shifts the numbers of an old one."""

import zlib

import jax


def named_key(key: jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """The key of a stream: each name is folded in, strings by their CRC-32."""
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key
