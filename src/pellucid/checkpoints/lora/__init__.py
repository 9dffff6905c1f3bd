"""LoRA files: what they hold, which modules of a model they mean, and what they change."""
