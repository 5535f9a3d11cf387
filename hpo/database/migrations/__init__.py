"""Hold the Alembic migrations of our tables; Optuna's tables are Optuna's to migrate."""
