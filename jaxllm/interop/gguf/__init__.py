"""GGUF files, llama.cpp's format, in and out: as the Hugging Face folder that they were made of.

`read.py` and `write.py` are the two ways; one table of families (`families.py`) serves both.
"""
