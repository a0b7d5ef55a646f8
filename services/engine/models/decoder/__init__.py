"""What the families of decoders share: shapes, weights and the forward pass. No family of its own."""
