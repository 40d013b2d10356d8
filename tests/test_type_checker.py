"""The checker of annotations is at work where it should be: `make types`."""

import os

import jax.numpy as jnp
import pytest

from lambdanet.ops.softmax_attention import softmax_attention


@pytest.mark.skipif(os.environ.get("LAMBDANET_CHECK_TYPES") != "1", reason="see `make types`")
def test_an_argument_of_another_type_than_annotated_is_an_error():
    """Without the hook, or with one that came after the import, 0 passes for False."""
    query = jnp.ones((2, 3, 4))
    assert softmax_attention(query, query, query, scale=1.0)[0].shape == (2, 3, 4)
    with pytest.raises(Exception, match="Type-check error"):
        softmax_attention(query, query, query, scale=1.0, heads=0)
