"""Text from a model: sampling, the loop over tokens, and text that is final as it streams."""
