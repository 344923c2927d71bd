"""Numbers in fewer bits: blocks of a frozen base's matrices in int8 and NF4."""
