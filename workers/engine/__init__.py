"""Text in, text out: the engines and what they share."""
