"""Our ROUGE for others: `evaluate.load("workers/evaluation/gistmill_rouge")`."""
