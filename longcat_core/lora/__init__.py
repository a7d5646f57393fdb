"""LoRA files of every convention."""
