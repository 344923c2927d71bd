import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.layers.mlp import ACTIVATIONS


def tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


CLOSED_FORMS = {
    "swiglu": lambda x: x / (1 + math.exp(-x)),
    "geglu": tanh_gelu,
    "gelu": tanh_gelu,
    "gelu_erf": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_have_their_closed_form(kind):
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    expected = [CLOSED_FORMS[kind](float(value)) for value in x]
    np.testing.assert_allclose(ACTIVATIONS[kind](jnp.asarray(x)), expected, atol=1e-6)
