"""What turns one artifact into another. Converters meet on disk and never import one another."""
