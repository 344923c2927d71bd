"""How good a model is: answers against references, choices by likelihood, and the likelihood of texts."""
