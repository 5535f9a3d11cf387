"""optuna-dashboard on a storage, and the limits on who may see it."""
