"""jaxllm: one small, pure-functional JAX stack from raw text to an aligned, tool-using assistant.

Data flows one way: config, common, layers, models, sharding, data, objectives, train, generation, cli.
Each of these may import only those before it. Nothing happens at import.
"""

__version__ = "0.1.0"
