"""Recipes: YAML files that name the stages of a job and their options. `recipes/` holds those of this project."""
