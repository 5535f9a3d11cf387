"""optuna-dashboard on a storage, and who may see it."""
