"""Recipes: YAML files that name the stages of a job and their options. `shipped/` holds those of this project."""
