"""Parts of a forward pass that families share: attention, products, elementwise kernels."""
