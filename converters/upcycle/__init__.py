"""Turn dense models into models with memory layers."""
