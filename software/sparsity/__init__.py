"""N:M sparsity for PyTorch: patterns, compact tensors, training schemes, layers."""
