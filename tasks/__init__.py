"""Task definitions for lm-eval (entry point group `lm_eval.tasks`)."""
