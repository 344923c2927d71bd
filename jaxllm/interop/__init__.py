"""Models of others in and out: Hugging Face folders and GGUF files, a tensor at a time.

Needs the extra `[interop]`.
"""
