"""The database: the only folder that contains SQL."""
