"""Train memory layers on text so that their tables hold something."""
