"""Recipes, schedules and search spaces: records, and pure functions over them."""
