"""Fine-tuning: a child process trains and reports over a pipe; whoever started it holds a `TrainingChild`.

`plan`, `events` and `child` are the parent's side and import no torch. All else runs in the child, where transformers' Trainer
and peft do the training.
"""
