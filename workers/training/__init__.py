"""Room for fine-tuning."""
