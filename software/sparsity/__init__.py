"""Patterns and N:M tensors: the values that devices, layers and offload share."""
