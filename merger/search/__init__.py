"""The search: an Optuna study of blend weights, its samplers and its stopping rules. Optuna is used only here."""
