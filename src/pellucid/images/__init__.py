"""Pictures: from files to tensors (3, H, W) in [-1, 1] and back, with what made them inside."""
