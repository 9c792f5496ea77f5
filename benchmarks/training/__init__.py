"""How fast training is beside the notebook's recipe and beside a plain Trainer."""
